//! The judge's side: what is given, and what is said instead.

use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::id::{AppId, HostId, NetworkId, ProcessType};
use gossip::record::NetworkRecord;
use ipnet::Ipv4Net;
use rand::Rng;
use rand::seq::{IteratorRandom as _, SliceRandom as _};

use super::{Desk, free, is_member_address};
use crate::claims::grants::Given;
use crate::claims::ledger::{Claimant, Phase};
use crate::claims::{Answer, Question, Thing};

impl Desk<'_> {
    /// Judges a question of a host, which may be this one.
    pub fn judge(&mut self, asker: &HostId, question: &Question, rng: &mut impl Rng) -> Answer {
        let thing = question.thing();
        if let Err(unfit) = self.bench.fit(self.now) {
            let wait =
                unfit.until.map_or(self.bench.hold(), |until| until.saturating_duration_since(self.now));
            return Answer::NotYet(millis(wait) + 1);
        }
        match question {
            Question::Address { network, subnet, preferred, chosen: false } => {
                self.judge_address(asker, *network, *subnet, *preferred, rng)
            }
            _ if !self.bench.judges(&thing, self.now) => self.not_mine(&thing),
            Question::Address { network, preferred, .. } => self.judge_chosen(asker, *network, *preferred),
            Question::Ordinal { network, app, process, chosen } => {
                self.judge_ordinal(asker, (*network, *app, process), *chosen)
            }
            Question::Network { network, vni, subnet } => self.judge_network(*network, *vni, *subnet),
        }
    }

    fn not_mine(&self, thing: &Thing) -> Answer {
        let judge = self.bench.judge_of(thing);
        // It ranks highest of those that answer, and one that answered a short while ago may still
        // have given it.
        if judge == self.bench.me() {
            Answer::NotYet(millis(self.bench.hold()))
        } else {
            Answer::NotMine(judge.clone())
        }
    }

    /// One that is free, the preferred one if that is; else what has rested longest, else what
    /// vanished first, once nothing is free anywhere.
    fn judge_address(
        &mut self,
        asker: &HostId,
        network: NetworkId,
        subnet: Ipv4Net,
        preferred: Ipv4Addr,
        rng: &mut impl Rng,
    ) -> Answer {
        let claims = self.ledger.claims(network);
        let judged = |address: &Ipv4Addr| self.bench.judges(&Thing::Address(network, *address), self.now);
        let granted =
            |address: &Ipv4Addr| self.grants.of(&Given::Address(network, *address), self.now).is_some();
        let fits = is_member_address(subnet, preferred) && claims.at(preferred).is_none();
        let mut given = (fits && !granted(&preferred) && judged(&preferred)).then_some(preferred);
        if given.is_none() {
            let free = free(claims, subnet);
            let mut untold: Vec<Ipv4Addr> = free.into_iter().filter(|address| !granted(address)).collect();
            untold.shuffle(rng);
            let home = |address: &&Ipv4Addr| self.bench.is_home(&Thing::Address(network, **address));
            given = untold.iter().find(home).or_else(|| untold.iter().find(|a| judged(a))).copied();
            if given.is_none() && untold.is_empty() {
                let spent = claims.spent(subnet).into_iter().map(|(address, _)| address);
                given = spent.filter(|address| !granted(address)).find(judged);
            }
            if given.is_none() && !untold.is_empty() {
                return self.not_mine_but(&untold, network, rng);
            }
        }
        match given {
            Some(address) => {
                self.grants.give(Given::Address(network, address), asker, self.now);
                Answer::Address(address)
            }
            None => claims.tally().into(),
        }
    }

    fn not_mine_but(&self, free: &[Ipv4Addr], network: NetworkId, rng: &mut impl Rng) -> Answer {
        let other = free.iter().choose(rng).map(|address| Thing::Address(network, *address));
        other.map_or(Answer::NotYet(1), |thing| self.not_mine(&thing))
    }

    fn judge_chosen(&mut self, asker: &HostId, network: NetworkId, address: Ipv4Addr) -> Answer {
        let given = Given::Address(network, address);
        if let Some(other) = self.given_to_another(asker, &given) {
            return other;
        }
        match self.ledger.claims(network).at(address) {
            // The caller wants this one, and says so: names that led to it lead to it again.
            None | Some(Claimant { phase: Phase::Released, .. }) => {
                self.grants.give(given, asker, self.now);
                Answer::Address(address)
            }
            Some(holder) => taken(holder),
        }
    }

    /// A chosen thing may be asked for again by the same host, should the answer have been lost:
    /// between its own members that host decides itself.
    fn given_to_another(&self, asker: &HostId, given: &Given) -> Option<Answer> {
        let other = self.grants.of(given, self.now).filter(|to| *to != asker)?;
        Some(Answer::Taken { host: other.clone(), member: None })
    }

    fn judge_ordinal(
        &mut self,
        asker: &HostId,
        (network, app, process): (NetworkId, AppId, &ProcessType),
        chosen: Option<u32>,
    ) -> Answer {
        let given = |number| Given::Ordinal(network, app, process.clone(), number);
        let claims = self.ledger.claims(network);
        let number = match chosen {
            None => self.lowest_free((network, app, process)),
            Some(number) => match claims.at_number(app, process, number) {
                Some(holder) => return taken(holder),
                None => number,
            },
        };
        if let Some(other) = self.given_to_another(asker, &given(number)) {
            return other;
        }
        self.grants.give(given(number), asker, self.now);
        Answer::Ordinal(number)
    }

    fn judge_network(&mut self, network: NetworkId, vni: u32, subnet: Ipv4Net) -> Answer {
        let told = self.grants.network(network, self.now).cloned();
        if let Some(record) = self.ledger.networks.get(network).or(told) {
            return Answer::Network(record);
        }
        match self.ledger.networks.holder(vni).or_else(|| self.grants.holder(vni, self.now)) {
            Some(holder) => Answer::Held(holder),
            None => {
                let counter = self.ledger.next_counter();
                let record =
                    NetworkRecord { counter, vni, subnet, forwarding: None, unknown: Default::default() };
                self.grants.tell(network, record.clone(), self.now);
                Answer::Network(record)
            }
        }
    }

    pub(super) fn lowest_free(&self, (network, app, process): (NetworkId, AppId, &ProcessType)) -> u32 {
        let claims = self.ledger.claims(network);
        let free = |number: &u32| {
            claims.at_number(app, process, *number).is_none()
                && self.grants.of(&Given::Ordinal(network, app, process.clone(), *number), self.now).is_none()
        };
        (1..).find(free).unwrap_or(u32::MAX)
    }
}

fn taken(holder: &Claimant) -> Answer {
    Answer::Taken { host: holder.host.clone(), member: Some(holder.member.clone()) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
