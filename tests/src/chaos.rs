//! What befalls a region, drawn from a seed: agents and engines are killed, hosts do not hear each other, containers
//! come and go.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::container::Container;
use crate::host::Host;
use crate::ids::{AP2, PN};
use crate::wait::{clock, pause};

/// Chance and what it has done so far.
pub struct Chaos<'a> {
    hosts: &'a [Host],
    chance: StdRng,
    /// Agents that do not run, and when they are started again.
    down: BTreeMap<usize, Instant>,
    /// When those who do not hear each other will again.
    cut: Option<Instant>,
    /// Containers that stay for a moment.
    guests: Vec<(Instant, Container)>,
    told: BTreeMap<&'static str, usize>,
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

    /// Everything that was broken is whole again, the guests have gone: how often what happened.
    pub fn calm(mut self) -> BTreeMap<&'static str, usize> {
        // Later than anything was drawn for.
        self.mend(clock() + Duration::from_secs(60));
        self.hosts.iter().for_each(Host::wait_ready);
        self.hosts.iter().for_each(|host| host.wait_hosts(self.hosts.len()));
        self.told
    }

    /// Ends what was to end by `now`.
    fn mend(&mut self, now: Instant) {
        for host in self.down.extract_if(.., |_, until| *until <= now).map(|(host, _)| &self.hosts[host]) {
            // Starts are counted, and their number would delay the next join: not what is asked here.
            let _ = fs::remove_file(host.dir().join("state/starts"));
            host.start_agent();
        }
        if self.cut.is_some_and(|until| until <= now) {
            self.cut = None;
            self.hosts.iter().for_each(Host::hear);
        }
        self.guests.extract_if(.., |(until, _)| *until <= now).for_each(|(_, guest)| guest.destroy());
    }

    fn strike(&mut self) {
        let number = self.chance.random_range(0..self.hosts.len());
        let host = &self.hosts[number];
        let runs = !self.down.contains_key(&number);
        let what = match self.chance.random_range(0..12) {
            0..=2 if runs => {
                host.kill_agent();
                self.miss(number, "agent killed")
            }
            3 if runs => {
                host.stop_agent();
                self.miss(number, "agent stopped")
            }
            4..=6 if host.engine_pid().is_some() => {
                host.kill_engine();
                "engine killed"
            }
            7 if runs && host.engine_pid().is_some() => {
                host.kill_agent();
                host.kill_engine();
                self.miss(number, "both killed")
            }
            8 | 9 if self.cut.is_none() => self.deafen(number),
            10 | 11 if runs => self.invite(number),
            _ => return,
        };
        *self.told.entry(what).or_default() += 1;
    }

    /// The agent of a host is started again after a while.
    fn miss(&mut self, host: usize, what: &'static str) -> &'static str {
        let until = clock() + self.within(50..2_000);
        self.down.insert(host, until);
        what
    }

    /// A host does not hear another one, or none, or nobody hears it either.
    fn deafen(&mut self, number: usize) -> &'static str {
        let host = &self.hosts[number];
        self.cut = Some(clock() + self.within(200..4_000));
        let others = || self.hosts.iter().enumerate().filter(|(n, _)| *n != number).map(|(_, other)| other);
        match self.chance.random_range(0..3) {
            0 => {
                others().choose(&mut self.chance).into_iter().for_each(|other| host.ignore(other));
                "one way cut"
            }
            1 => {
                let other = others().choose(&mut self.chance);
                other.into_iter().for_each(|other| (host.ignore(other), other.ignore(host)).0);
                "both ways cut"
            }
            _ => {
                others().for_each(|other| (host.ignore(other), other.ignore(host)).0);
                "host cut off"
            }
        }
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
