//! What befalls a region, drawn from a seed: agents and engines are killed, hosts do not hear each other, containers
//! come and go.

mod troubles;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

pub use self::troubles::{Span, Troubles};
use crate::container::Container;
use crate::host::Host;
use crate::ids::{AP2, PN};
use crate::wait::{clock, pause};

/// Chance and what it has done so far.
pub struct Chaos<'a> {
    hosts: &'a [Host],
    chance: StdRng,
    /// Agents that do not run, since when, and when they are started again.
    down: BTreeMap<usize, Span>,
    /// Who does not hear the other, since when, and when they will again.
    cut: Option<(Vec<[usize; 2]>, Span)>,
    /// Containers that stay for a moment.
    guests: Vec<(Instant, Container)>,
    told: BTreeMap<&'static str, usize>,
    troubles: Troubles,
}

impl<'a> Chaos<'a> {
    /// Nothing has happened yet; the same seed draws the same.
    pub fn new(hosts: &'a [Host], seed: u64) -> Chaos<'a> {
        Chaos {
            hosts,
            chance: StdRng::seed_from_u64(seed),
            down: BTreeMap::new(),
            cut: None,
            guests: Vec::new(),
            told: BTreeMap::new(),
            troubles: Troubles::default(),
        }
    }

    /// One thing after the other for so long.
    pub fn rage(&mut self, duration: Duration) {
        let end = clock() + duration;
        while clock() < end {
            self.mend(clock());
            self.strike();
            let moment = self.within(100..900);
            pause(moment);
        }
    }

    /// Everything that was broken is whole again, the guests have gone: how often what happened, and what there was
    /// to suffer from.
    pub fn calm(mut self) -> (BTreeMap<&'static str, usize>, Troubles) {
        // Later than anything was drawn for.
        self.mend(clock() + Duration::from_secs(60));
        self.hosts.iter().for_each(Host::wait_ready);
        self.hosts.iter().for_each(|host| host.wait_hosts(self.hosts.len()));
        (self.told, self.troubles)
    }

    /// Ends what was to end by `now`.
    fn mend(&mut self, now: Instant) {
        for (number, down) in self.down.extract_if(.., |_, down| down.end <= now) {
            let host = &self.hosts[number];
            // Starts are counted, and their number would delay the next join: not what is asked here.
            let _ = fs::remove_file(host.dir().join("state/starts"));
            host.start_agent();
            self.troubles.headless.push((number, down.start..clock()));
        }
        if let Some((pairs, cut)) = self.cut.take_if(|(_, cut)| cut.end <= now) {
            self.hosts.iter().for_each(Host::hear);
            let healed = clock();
            self.troubles.deaf.extend(pairs.into_iter().map(|pair| (pair, cut.start..healed)));
        }
        self.guests.extract_if(.., |(until, _)| *until <= now).for_each(|(_, guest)| guest.destroy());
    }

    fn strike(&mut self) {
        let number = self.chance.random_range(0..self.hosts.len());
        let host = &self.hosts[number];
        let runs = !self.down.contains_key(&number);
        let what = match self.chance.random_range(0..12) {
            0..=2 if runs => {
                self.miss(number);
                host.kill_agent();
                "agent killed"
            }
            3 if runs => {
                self.miss(number);
                host.stop_agent();
                "agent stopped"
            }
            4..=6 if host.engine_pid().is_some() => {
                self.kill_engine(number);
                "engine killed"
            }
            7 if runs && host.engine_pid().is_some() => {
                self.miss(number);
                host.kill_agent();
                self.kill_engine(number);
                "both killed"
            }
            8 | 9 if self.cut.is_none() => self.deafen(number),
            10 | 11 if runs => self.invite(number),
            _ => return,
        };
        *self.told.entry(what).or_default() += 1;
    }

    /// The agent of a host, which ends now, is started again after a while.
    fn miss(&mut self, host: usize) {
        let start = clock();
        let end = start + self.within(50..2_000);
        self.down.insert(host, start..end);
    }

    fn kill_engine(&mut self, host: usize) {
        let start = clock();
        self.hosts[host].kill_engine();
        self.troubles.killed.push((host, start..clock()));
    }

    /// A host does not hear another one, or none, or nobody hears it either.
    fn deafen(&mut self, number: usize) -> &'static str {
        let now = clock();
        let until = now + self.within(200..4_000);
        let others = (0..self.hosts.len()).filter(|other| *other != number);
        let (others, both, what): (Vec<usize>, bool, _) = match self.chance.random_range(0..3) {
            0 => (others.choose(&mut self.chance).into_iter().collect(), false, "one way cut"),
            1 => (others.choose(&mut self.chance).into_iter().collect(), true, "both ways cut"),
            _ => (others.collect(), true, "host cut off"),
        };
        for other in &others {
            self.hosts[number].ignore(&self.hosts[*other]);
            if both {
                self.hosts[*other].ignore(&self.hosts[number]);
            }
        }
        self.cut = Some((others.into_iter().map(|other| [number, other]).collect(), now..until));
        what
    }

    /// A container joins the network for a while; whether it may, is not asked: its agent may have just started.
    fn invite(&mut self, host: usize) -> &'static str {
        let count = self.told.values().sum::<usize>();
        let guest = self.hosts[host].container(&format!("g{count}"));
        let joined = guest.attach(PN, AP2, &[]).code == 0;
        let until = clock() + self.within(200..5_000);
        self.guests.push((until, guest));
        if joined { "guest" } else { "guest refused" }
    }

    /// A random duration, in milliseconds.
    fn within(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.chance.random_range(milliseconds))
    }
}
