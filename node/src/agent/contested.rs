//! Own claims that lost: networks follow what the region says of them, contested members get other
//! things.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use gossip::id::{MemberId, NetworkId};
use gossip::record::NetworkRecord;
use netplumb::kernel::Kernel;
use tokio::time::Instant;

use super::{Agent, EventKind};
use crate::attach::{Halt, Round};
use crate::claims::desk::{Number, Things, Wanted};
use crate::claims::{Desk, Need, Next, Told};
use crate::project;
use crate::store::{Entry, Store};

/// Most own members re-addressed in one second.
pub(super) const READDRESS_PER_TICK: usize = 10;

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Own members, and networks made here, follow what the region says of the network. Whether anything
    /// changed.
    pub(super) fn follow_claims(&mut self) -> bool {
        let newer = |network: NetworkId, had: &NetworkRecord| {
            self.ledger.networks.get(network).filter(|claim| claim != had)
        };
        let stale = |e: &Entry| Some((e.clone(), newer(e.network, &e.claim)?));
        let stale: Vec<(Entry, NetworkRecord)> = self.journal.live().filter_map(stale).collect();
        let made = |(network, had): (&NetworkId, &NetworkRecord)| {
            Some((*network, (had.clone(), newer(*network, had)?)))
        };
        let made: BTreeMap<NetworkId, _> = self.journal.created().iter().filter_map(made).collect();
        let mut told = made.clone();
        told.extend(stale.iter().map(|(e, claim)| (e.network, (e.claim.clone(), claim.clone()))));
        for (network, (had, claim)) in &told {
            self.tell_claim(*network, had, claim);
        }
        for (network, (_, claim)) in made {
            self.change_created(network, claim);
        }
        for (entry, claim) in stale {
            self.change(Entry { claim, ..entry });
        }
        !told.is_empty()
    }

    /// Tells people what became of a network.
    fn tell_claim(&mut self, network: NetworkId, had: &NetworkRecord, claim: &NetworkRecord) {
        if claim.vni != had.vni {
            let (old, new) = (had.vni, claim.vni);
            tracing::warn!(%network, old, new, "the network has another VNI now");
            self.events.note(EventKind::VniMoved, format!("{network}: VNI {old} became {new}"));
            self.metrics.conflict("vni");
        }
        if claim.subnet != had.subnet {
            let (old, new) = (had.subnet, claim.subnet);
            tracing::warn!(%network, %old, %new, "the network has another subnet now");
            self.events.note(EventKind::SubnetMoved, format!("{network}: subnet {old} became {new}"));
            self.metrics.conflict("subnet");
        }
        if claim.forwards() != had.forwards() {
            self.tell_forwarding(network, claim.forwards());
        }
    }

    /// Begins to give contested members other things, each in a task of its own.
    pub(super) fn settle_contested(&mut self) {
        if self.gossip.is_none() {
            return;
        }
        let waiting = |e: &&Entry| !self.moving.contains(&e.member) && self.need(e).is_some();
        let contested: Vec<MemberId> =
            self.journal.live().filter(waiting).map(|e| e.member.clone()).collect();
        for member in contested.into_iter().take(self.readdresses_left) {
            self.readdresses_left -= 1;
            self.moving.insert(member.clone());
            let context = self.context.clone();
            self.tasks.spawn(async move { context.settle(member).await });
        }
    }

    /// What a live member needs in place of what it lost; none when it lost nothing.
    fn need(&self, entry: &Entry) -> Option<Need> {
        let key = (self.here.host.clone(), entry.network, entry.member.clone());
        let record = project::record(entry);
        let outside = !entry.claim.subnet.contains(&entry.address);
        let address = outside || self.ledger.address_contested(&key, &record);
        // A chosen number is never changed behind its caller's back: the member goes without a
        // numbered name until it is free.
        let ordinal = !entry.ordinal_chosen && self.ledger.ordinal_contested(&key, &record);
        (address || ordinal).then(|| Need {
            network: entry.network,
            subnet: entry.claim.subnet,
            address: if address { Wanted::Any } else { Wanted::Nothing },
            number: ordinal.then(|| Number { app: entry.app, process: entry.process.clone(), chosen: None }),
        })
    }

    /// One round of a contested member's search.
    pub(super) fn move_member(&mut self, member: &MemberId, told: Box<Told>) -> Round<()> {
        let entry = self.journal.live().find(|e| e.member == *member).cloned();
        let wanted = entry.and_then(|entry| self.need(&entry).map(|need| (entry, need)));
        let found = wanted.map(|(entry, need)| self.find(&need, told).map(|things| (entry, things)));
        if !matches!(found, Some(Err(Halt::Ask(..) | Halt::Later(..)))) {
            self.moving.remove(member);
        }
        if let Some(Err(Halt::Refused(refusal))) = &found {
            tracing::error!(%member, "contested: {refusal}");
        }
        if let Some((entry, things)) = found.transpose()? {
            self.give(entry, things.address, things.ordinal);
        }
        Ok(())
    }

    fn give(&mut self, entry: Entry, address: Option<Ipv4Addr>, ordinal: Option<u32>) {
        let (member, old) = (entry.member.clone(), entry);
        let entry = moved(old.clone(), address, ordinal, self.ledger.next_counter());
        if let Some(address) = address {
            let old = old.address;
            tracing::warn!(%member, %old, new = %address, "address was contested: re-addressed");
            self.events.note(
                EventKind::Readdressed,
                format!("{member} in {}: {old} became {address}", entry.network),
            );
            self.metrics.conflict("address");
        }
        if let Some(ordinal) = ordinal {
            let old = old.ordinal.unwrap_or_default();
            let what = format!("{member} in {}: {old}.{} became {ordinal}", entry.network, entry.process);
            self.events.note(EventKind::Renumbered, what);
            self.metrics.conflict("ordinal");
        }
        self.change(entry);
    }

    /// Changes an own member that is promised already, on disk too.
    pub(super) fn change(&mut self, entry: Entry) {
        self.journal().change(&entry.member, |e| *e = entry.clone());
        self.write(entry);
    }

    /// Writes a changed entry of a member that is promised already; a failure is retried by the
    /// next change and loses no more than the change.
    pub(super) fn write(&mut self, entry: Entry) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.put(&entry).await {
                tracing::error!(member = %entry.member, "journal: {error}");
            }
        });
    }

    /// What is needed, or why this round does not give it.
    pub(super) fn find(&mut self, need: &Need, mut told: Box<Told>) -> Round<Things> {
        match self.desk(need.network).next(need, &mut told, &mut rand::rng()) {
            Next::Have(things) => Ok(things),
            Next::Ask(questions) => Err(Halt::Ask(told, questions)),
            Next::Wait(then, why) => Err(Halt::Later(told, then, why)),
            Next::Refused(refused) => Err(Halt::Refused(refused.into())),
        }
    }

    /// This host's desk, with the books of a network open.
    pub(super) fn desk(&mut self, network: NetworkId) -> Desk<'_> {
        self.asked.insert(network);
        let followed = Arc::clone(&self.followed);
        self.ledger.open(network, &followed);
        Desk { ledger: &self.ledger, bench: &self.bench, grants: &mut self.grants, now: Instant::now() }
    }
}

/// A member with other things. A new address is a new claim. A new number leaves the claim of the
/// address as old as it is: were it younger, both members of a conflict could lose the address.
fn moved(mut entry: Entry, address: Option<Ipv4Addr>, ordinal: Option<u32>, counter: u64) -> Entry {
    if let Some(address) = address {
        entry.address = address;
        entry.address6 = entry.address6.map(|_| project::address6(entry.network, address));
        entry.counter = counter;
    }
    entry.ordinal = ordinal.or(entry.ordinal);
    entry
}

#[cfg(test)]
mod tests {
    use gossip::record::MemberState;

    use super::*;
    use crate::project::fixtures;

    #[test]
    fn a_new_number_leaves_the_claim_of_the_address_as_old_as_it_is() {
        let entry = fixtures::entry(2, MemberState::Ready);
        let other = Ipv4Addr::new(10, 240, 0, 9);
        for (address, ordinal, claim) in [
            (None, Some(3), (entry.address, Some(3), entry.counter)),
            (Some(other), None, (other, Some(2), 50)),
            (Some(other), Some(3), (other, Some(3), 50)),
        ] {
            let moved = moved(entry.clone(), address, ordinal, 50);
            assert_eq!((moved.address, moved.ordinal, moved.counter), claim);
        }
    }
}
