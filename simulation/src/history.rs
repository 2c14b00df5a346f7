//! What happened in a run, in order: the last of it to read, all of it as one hash.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01b3;

/// One run's events; a clone is the same history.
#[derive(Clone)]
pub struct History(Arc<Mutex<Events>>);

struct Events {
    began: Instant,
    hash: u64,
    count: u64,
    kept: usize,
    last: VecDeque<String>,
    /// What is to be added to another history; none, where it stands here.
    aside: Option<Vec<(Duration, String)>>,
}

impl History {
    /// Begins now, by tokio's clock; so many events are kept to be read.
    pub fn begin(kept: usize) -> History {
        let last = VecDeque::new();
        let events = Events { began: Instant::now(), hash: FNV_OFFSET, count: 0, kept, last, aside: None };
        History(Arc::new(Mutex::new(events)))
    }

    /// A part of this one that is written on another thread, until it is [taken in](Self::take_in).
    pub fn aside(&self) -> History {
        let (began, last) = (self.events().began, VecDeque::new());
        let aside = Some(Vec::new());
        History(Arc::new(Mutex::new(Events { began, hash: FNV_OFFSET, count: 0, kept: 0, last, aside })))
    }

    /// Adds what was written aside since the last time.
    pub fn take_in(&self, aside: &History) {
        let written = aside.events().aside.as_mut().map(std::mem::take);
        let mut events = self.events();
        written.into_iter().flatten().for_each(|(at, what)| events.add(at, &what));
    }

    /// Something happened now.
    pub fn note(&self, what: impl Display) {
        let mut events = self.events();
        let at = events.began.elapsed();
        match &mut events.aside {
            Some(aside) => aside.push((at, what.to_string())),
            None => events.add(at, &what),
        }
    }

    /// Adds to the hash what nobody wants to read.
    pub fn weigh(&self, what: impl Display) {
        let mut events = self.events();
        events.hash = fnv(events.hash, what.to_string().as_bytes());
    }

    /// How long the run has lasted.
    pub fn elapsed(&self) -> Duration {
        self.events().began.elapsed()
    }

    /// One number for all that happened: equal histories have equal hashes.
    pub fn hash(&self) -> u64 {
        self.events().hash
    }

    /// How much happened.
    pub fn count(&self) -> u64 {
        self.events().count
    }

    /// At most so many of the last events that are kept, oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = String> {
        let kept = self.events().last.clone();
        let skipped = kept.len().saturating_sub(most);
        kept.into_iter().skip(skipped)
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    fn add(&mut self, at: Duration, what: &impl Display) {
        let line = format!("{:>12.6} s  {what}", at.as_secs_f64());
        self.hash = fnv(fnv(self.hash, &at.as_nanos().to_be_bytes()), line.as_bytes());
        self.count += 1;
        self.last.push_back(line);
        if self.last.len() > self.kept {
            self.last.pop_front();
        }
    }
}

/// A hash that grows with what is added; the same in every process.
pub struct Fingerprint(pub u64);

impl Default for Fingerprint {
    fn default() -> Fingerprint {
        Fingerprint(FNV_OFFSET)
    }
}

impl Fingerprint {
    /// Adds something.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = fnv(self.0, bytes);
    }

    /// Adds a number at once.
    pub fn add_number(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(FNV_PRIME).rotate_left(29);
    }
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}
