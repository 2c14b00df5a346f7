//! Fresh records pushed at once; chitchat repairs what gets lost.
//!
//! An owner pushes a [`Stretch`] of its own history to a few random hosts, and every host that
//! could take it in pushes the same bytes on, once, to as many: a rumour. Copies that come later
//! are duplicates and end where they arrive, so a change costs each host a handful of copies.

mod frame;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use chitchat::{Chitchat, ChitchatId, NodeState};
use tokio::time::Instant;

use crate::apply::{Verdict, apply};
use crate::interner::Interner;
use crate::stretch::{KeyValue, Stretch};
use frame::{Frame, MalformedFrame, encode, key_values};

/// How long an own change waits for others to travel with it.
pub(crate) const COALESCE: Duration = Duration::from_millis(5);
/// How far back a frame reaches: whoever missed the frames of that time joins again.
const WINDOW: Duration = Duration::from_secs(2);
/// And at least over so many versions.
const WINDOW_VERSIONS: u64 = 8;
/// But not further than this length: under many writes it is copies that get lost to the budget.
const WINDOW_BYTES: usize = 4 * 1024;
/// A state below this length is pushed as a whole: no reader can have a gap.
const WHOLE_BYTES_MAX: usize = 4 * 1024;
/// What is longer is not pushed: chitchat carries it in compressed blocks.
const FRAME_BYTES_MAX: usize = 32 * 1024;
/// Bytes per second, and at once, for the frames of others.
const FORWARD_BYTES: f64 = 1e6;
/// Pulls after a gap per second, and at once.
const PULLS: f64 = 5.0;
/// How long an owner's frames are ignored after one that leapt.
const QUARANTINE: Duration = Duration::from_secs(60);
/// So many owners at once, at most.
const QUARANTINED_MAX: usize = 1000;

/// Tokens that come back at a rate; it is full at the start.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn of(per_second: f64) -> Self {
        Self { per_second, tokens: per_second, at: None }
    }

    /// Takes so many if there are as many.
    fn take(&mut self, tokens: f64, now: Instant) -> bool {
        let since = self.at.map_or(0.0, |at| (now - at).as_secs_f64());
        self.tokens = (self.tokens + since * self.per_second).min(self.per_second);
        self.at = Some(now);
        let enough = self.tokens >= tokens;
        if enough {
            self.tokens -= tokens;
        }
        enough
    }

    /// Takes so many even if there are none left: whoever takes politely waits.
    fn force(&mut self, tokens: f64, now: Instant) {
        if !self.take(tokens, now) {
            self.tokens -= tokens;
        }
    }
}

/// What one host has to know to push and to hear frames.
#[derive(Debug)]
pub(crate) struct Eager {
    /// When own changes were made, each with the version before it.
    changes: VecDeque<(Instant, u64)>,
    /// When the own changes that wait are pushed.
    due: Option<Instant>,
    forwards: Bucket,
    pulls: Bucket,
    /// When each owner's gap was last pulled.
    pulled: BTreeMap<ChitchatId, Instant>,
    quarantined: BTreeMap<ChitchatId, Instant>,
    seen: Interner,
}

/// What came of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Taken in: news of this owner.
    Applied(ChitchatId),
    /// Held already.
    Duplicate,
    /// Of this host's own state.
    Own,
    /// Of a generation that does not count any more.
    Old,
    /// Something of its owner before it is missing; `pull` says whether its sender is to be asked now.
    Gap { owner: ChitchatId, pull: bool },
    /// Of an owner that leapt further than any writes, now or before.
    Quarantined,
    /// No frame, or one that would harm.
    Malformed,
}

impl Heard {
    /// The metric's label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Heard::Applied(_) => "applied",
            Heard::Duplicate => "duplicate",
            Heard::Own => "own",
            Heard::Old => "old",
            Heard::Gap { .. } => "gap",
            Heard::Quarantined => "quarantined",
            Heard::Malformed => "malformed",
        }
    }
}

impl Eager {
    pub(crate) fn new(seen: Interner) -> Self {
        Self {
            changes: VecDeque::new(),
            due: None,
            forwards: Bucket::of(FORWARD_BYTES),
            pulls: Bucket::of(PULLS),
            pulled: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            seen,
        }
    }

    /// A generation has begun: its first records are news from nothing on.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.changes = VecDeque::from([(now, 0)]);
        self.due = Some(now);
    }

    /// An own change was made on top of `version`.
    pub(crate) fn changed(&mut self, version: u64, now: Instant) {
        self.changes.push_back((now, version));
        self.due = self.due.or(Some(now + COALESCE));
    }

    /// When the own changes that wait are to be pushed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The frame that tells the own changes that waited; none when it would be too long.
    pub(crate) fn own_frame(&mut self, owner: &ChitchatId, state: &NodeState, now: Instant) -> Option<Bytes> {
        self.due = None;
        while self.changes.front().is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.changes.pop_front();
        }
        let oldest = self.changes.front().map_or(state.max_version(), |(_, before)| *before);
        let mut stretch = Stretch::cut(owner, state, 0);
        if bytes(&stretch.key_values) > WHOLE_BYTES_MAX {
            stretch = stretch.since(oldest);
        }
        (bytes(&stretch.key_values) <= FRAME_BYTES_MAX && stretch.extent.to > 0).then(|| encode(&stretch))
    }

    /// Own frames are never held back; those of others make way.
    pub(crate) fn spend(&mut self, bytes: usize, now: Instant) {
        self.forwards.force(bytes as f64, now);
    }

    /// Whether another host's frame may be pushed on now.
    pub(crate) fn may_forward(&mut self, bytes: usize, now: Instant) -> bool {
        self.forwards.take(bytes as f64, now)
    }

    /// Takes a frame in. `counts` is the generation that counts of a node id and the version held of it, `interval` the
    /// pause between two pulls of one owner.
    pub(crate) fn hear(
        &mut self,
        bytes: &[u8],
        chitchat: &mut Chitchat,
        counts: impl Fn(&str) -> Option<(u64, u64)>,
        interval: Duration,
        now: Instant,
    ) -> Heard {
        let Ok(frame) = Frame::of(bytes) else { return Heard::Malformed };
        let header = &frame.header;
        if *header.node_id == *chitchat.self_chitchat_id().node_id {
            return Heard::Own;
        }
        // Most copies end here, with nothing read but their header.
        match counts(header.node_id) {
            Some((generation, _)) if header.generation < generation => return Heard::Old,
            Some((generation, version)) if header.generation == generation && header.extent.to <= version => {
                return Heard::Duplicate;
            }
            _ => {}
        }
        let owner = ChitchatId::new(self.seen.text(header.node_id), header.generation, header.address);
        if self.is_quarantined(&owner, now) {
            return Heard::Quarantined;
        }
        match take(&frame, &owner, chitchat, &self.seen) {
            Err(MalformedFrame) => Heard::Malformed,
            Ok(Verdict::Replace { .. } | Verdict::Merge) => Heard::Applied(owner),
            Ok(Verdict::Duplicate) => Heard::Duplicate,
            Ok(Verdict::Gap) => {
                let pull = self.may_pull(owner.clone(), interval, now);
                Heard::Gap { owner, pull }
            }
            Ok(Verdict::Leap) => {
                self.quarantine(owner, now);
                Heard::Quarantined
            }
        }
    }

    fn is_quarantined(&mut self, owner: &ChitchatId, now: Instant) -> bool {
        self.quarantined.retain(|_, since| now < *since + QUARANTINE);
        self.quarantined.contains_key(owner)
    }

    fn quarantine(&mut self, owner: ChitchatId, now: Instant) {
        tracing::warn!(
            owner = &*owner.node_id,
            "a frame leaps too far; its owner's frames are ignored for a while"
        );
        if self.quarantined.len() < QUARANTINED_MAX {
            self.quarantined.insert(owner, now);
        }
    }

    fn may_pull(&mut self, owner: ChitchatId, interval: Duration, now: Instant) -> bool {
        self.pulled.retain(|_, at| *at + interval > now);
        if self.pulled.contains_key(&owner) || !self.pulls.take(1.0, now) {
            return false;
        }
        self.pulled.insert(owner, now);
        true
    }
}

/// What an owner wrote after a version, or all of it where the tombstones since then are collected already; none when
/// that is too long for a frame.
pub(crate) fn frame_since(owner: &ChitchatId, state: &NodeState, version: u64) -> Option<Bytes> {
    let from = if state.last_gc_version() <= version { version } else { 0 };
    let stretch = Stretch::cut(owner, state, from);
    (bytes(&stretch.key_values) <= FRAME_BYTES_MAX).then(|| encode(&stretch))
}

fn bytes(key_values: &[KeyValue<'_>]) -> usize {
    key_values.iter().map(KeyValue::bytes).sum()
}

impl Stretch<'_> {
    /// The part of a whole state that was written after a version, or less of it: as much as the
    /// window holds, and all of the last versions.
    fn since(mut self, oldest: u64) -> Self {
        let to = self.extent.to;
        self.key_values.sort_unstable_by_key(|kv| Reverse(kv.version));
        let mut length = 0;
        let fitting = self.key_values.iter().take_while(|kv| {
            length += kv.bytes();
            length <= WINDOW_BYTES
        });
        // The first that does not fit is the last that a reader must have.
        let bound = self.key_values.get(fitting.count()).map_or(0, |kv| kv.version);
        self.extent.from = oldest.max(bound).min(to.saturating_sub(WINDOW_VERSIONS));
        self.key_values.retain(|kv| kv.version > self.extent.from);
        self
    }
}

fn take(
    frame: &Frame<'_>,
    owner: &ChitchatId,
    chitchat: &mut Chitchat,
    seen: &Interner,
) -> Result<Verdict, MalformedFrame> {
    let body = frame.body(seen)?;
    let key_values = key_values(&body)?;
    let stretch = Stretch { owner: owner.clone(), extent: frame.header.extent, key_values };
    apply(chitchat, &stretch).map_err(|error| {
        tracing::debug!(owner = &*owner.node_id, %error, "frame refused");
        MalformedFrame
    })
}
