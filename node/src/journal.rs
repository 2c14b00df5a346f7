//! This host's own members and the networks made here: the intent everything else follows from. Pure; the
//! store keeps it.

use std::collections::{BTreeMap, BTreeSet};

use gossip::id::{MemberId, NetworkId};
use gossip::record::{MemberRecord, MemberState, NetworkRecord, Record};
use tokio::time::Instant;

use crate::project;
use crate::store::Entry;

/// Own members from the claim of their address until the end of their quarantine.
#[derive(Debug, Default, Clone)]
pub struct Journal {
    entries: BTreeMap<MemberId, Entry>,
    /// Entries that are safe on disk: the only ones the kernel may see.
    durable: BTreeSet<MemberId>,
    /// Released members: when the quarantine of their address ends, and whether the kernel is rid
    /// of them.
    released: BTreeMap<MemberId, Released>,
    /// Networks made here: this host has a word on them, with members or without.
    created: BTreeMap<NetworkId, NetworkRecord>,
    /// Whether this host takes no new members, and names lead to those it has no more.
    draining: bool,
    /// Networks of which an entry has changed since they were last taken.
    changed: BTreeSet<NetworkId>,
}

#[derive(Debug, Clone, Copy)]
struct Released {
    until: Instant,
    torn_down: bool,
}

impl Journal {
    /// Takes over what a store held; released entries rest from now on.
    pub fn restore(
        entries: Vec<Entry>,
        created: BTreeMap<NetworkId, NetworkRecord>,
        quarantine_end: Instant,
    ) -> Journal {
        let changed = created.keys().copied().collect();
        let mut journal = Journal { created, changed, ..Journal::default() };
        for entry in entries {
            journal.restore_one(entry, quarantine_end);
        }
        journal
    }

    /// Takes over an entry that is on disk.
    pub fn restore_one(&mut self, entry: Entry, quarantine_end: Instant) {
        self.changed.insert(entry.network);
        if entry.state == MemberState::Released {
            let released = Released { until: quarantine_end, torn_down: false };
            self.released.insert(entry.member.clone(), released);
        }
        self.durable.insert(entry.member.clone());
        self.entries.insert(entry.member.clone(), entry);
    }

    /// Every entry, released ones included.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Members that hold something.
    pub fn live(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|e| e.state != MemberState::Released)
    }

    /// Members the kernel may see.
    pub fn durable(&self) -> impl Iterator<Item = &Entry> {
        self.live().filter(|e| self.durable.contains(&e.member))
    }

    /// Members that the kernel shall have and names are found for: all that it may see, but those that are eclipsed.
    pub fn served(&self) -> impl Iterator<Item = &Entry> {
        let eclipsed = self.eclipsed();
        self.durable().filter(move |e| !eclipsed.contains_key(&e.member))
    }

    /// [`eclipsed`] of all members.
    pub fn eclipsed(&self) -> BTreeMap<MemberId, MemberId> {
        eclipsed(self.entries.values())
    }

    /// What is ours in the kernel: everything on disk that is not torn down yet.
    pub fn in_kernel(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|e| {
            self.durable.contains(&e.member) && !self.released.get(&e.member).is_some_and(|r| r.torn_down)
        })
    }

    /// One entry.
    pub fn get(&self, member: &MemberId) -> Option<&Entry> {
        self.entries.get(member)
    }

    /// The live member a caller names by member or container id.
    pub fn find(&self, network: NetworkId, id: &str) -> Option<&Entry> {
        self.live().find(|e| e.network == network && (e.member.as_str() == id || e.container == id))
    }

    /// Whether a network of this host has changed since they were last taken.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The networks of which an entry has changed since the last call, and the others of these containers: what one
    /// is depends on what is beside it.
    pub fn take_changed(&mut self) -> BTreeSet<NetworkId> {
        let changed = std::mem::take(&mut self.changed);
        let of_changed = self.entries.values().filter(|e| changed.contains(&e.network));
        let containers: BTreeSet<u64> = of_changed.map(|e| e.netns.cookie).collect();
        let beside = self.entries.values().filter(|e| containers.contains(&e.netns.cookie));
        let beside: BTreeSet<NetworkId> = beside.map(|e| e.network).collect();
        changed.union(&beside).copied().collect()
    }

    /// A new claim.
    pub fn insert(&mut self, entry: Entry) {
        self.changed.insert(entry.network);
        self.entries.insert(entry.member.clone(), entry);
    }

    /// Changes a live entry; none when it is not there or released.
    pub fn change(&mut self, member: &MemberId, change: impl FnOnce(&mut Entry)) -> Option<&Entry> {
        let entry = self.entries.get_mut(member).filter(|e| e.state != MemberState::Released)?;
        change(entry);
        self.changed.insert(entry.network);
        Some(entry)
    }

    /// Notes that an entry is on disk.
    pub fn mark_durable(&mut self, member: &MemberId) {
        self.durable.insert(member.clone());
        self.changed.extend(self.entries.get(member).map(|entry| entry.network));
    }

    /// Ends a member; its address rests until then. `counter` tells what was released before what.
    pub fn release(&mut self, member: &MemberId, counter: u64, until: Instant) {
        let end = |entry: &mut Entry| (entry.state, entry.counter) = (MemberState::Released, counter);
        if self.change(member, end).is_some() {
            self.released.insert(member.clone(), Released { until, torn_down: false });
        }
    }

    /// Notes that nothing of a released member is left in the kernel.
    pub fn mark_torn_down(&mut self, member: &MemberId) {
        if let Some(released) = self.released.get_mut(member) {
            released.torn_down = true;
            self.changed.extend(self.entries.get(member).map(|entry| entry.network));
        }
    }

    /// Released members not yet known to be out of the kernel.
    pub fn to_tear_down(&self) -> Vec<MemberId> {
        self.released.iter().filter(|(_, r)| !r.torn_down).map(|(m, _)| m.clone()).collect()
    }

    /// Whether there is anything to [`expire`](Self::expire).
    pub fn any_expired(&self, now: Instant) -> bool {
        self.released.values().any(|r| r.torn_down && r.until <= now)
    }

    /// Takes out the entries whose quarantine is over and of which nothing is left.
    pub fn expire(&mut self, now: Instant) -> Vec<Entry> {
        let over: Vec<MemberId> = self
            .released
            .iter()
            .filter(|(_, r)| r.torn_down && r.until <= now)
            .map(|(member, _)| member.clone())
            .collect();
        over.iter()
            .filter_map(|member| {
                self.released.remove(member);
                self.durable.remove(member);
                let entry = self.entries.remove(member)?;
                self.changed.insert(entry.network);
                Some(entry)
            })
            .collect()
    }

    /// The networks this host has a word on.
    pub fn networks(&self) -> BTreeSet<NetworkId> {
        self.entries.values().map(|e| e.network).chain(self.created.keys().copied()).collect()
    }

    /// The networks made here, as last published.
    pub fn created(&self) -> &BTreeMap<NetworkId, NetworkRecord> {
        &self.created
    }

    /// A network made here, or what became of it.
    pub fn create(&mut self, network: NetworkId, claim: NetworkRecord) {
        self.changed.insert(network);
        self.created.insert(network, claim);
    }

    /// Forgets a network made here; members keep it alive. Whether it was there.
    pub fn forget(&mut self, network: NetworkId) -> bool {
        self.changed.insert(network);
        self.created.remove(&network).is_some()
    }

    /// Whether this host takes no new members, and names lead to those it has no more.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Says so, or takes it back.
    pub fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Own member records, as claims and gossip take them.
    pub fn records(&self) -> BTreeMap<(NetworkId, MemberId), MemberRecord> {
        self.entries.values().map(|e| ((e.network, e.member.clone()), project::record(e))).collect()
    }

    /// This host's word on its networks: released members do not follow what becomes of it.
    pub fn claims(&self) -> BTreeMap<NetworkId, NetworkRecord> {
        let mut networks = BTreeMap::new();
        for entry in self.live().chain(self.entries.values()) {
            networks.entry(entry.network).or_insert_with(|| entry.claim.clone());
        }
        networks.extend(self.created.clone());
        networks
    }

    /// What a new generation of this host starts with: networks before their members.
    pub fn initial(&self) -> Vec<Record> {
        let members =
            self.records().into_iter().map(|((pn, member), record)| Record::Member(pn, member, record));
        self.claims().into_iter().map(|(pn, record)| Record::Network(pn, record)).chain(members).collect()
    }
}

/// Live members whose network's subnet overlaps that of another network of their container, each with the member that
/// it gives way to: the one with the older claim, whose address is of its network's subnet. An attach that would lead
/// there is refused; the two sides of a cut may have given a network different subnets.
pub(crate) fn eclipsed<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<MemberId, MemberId> {
    let mut live: Vec<&Entry> = entries.filter(|e| e.state != MemberState::Released).collect();
    live.sort_by_key(|e| (e.netns.cookie, !e.claim.subnet.contains(&e.address), e.counter, &e.member));
    let (mut kept, mut eclipsed) = (Vec::<&Entry>::new(), BTreeMap::new());
    for entry in live {
        kept.retain(|other| other.netns.cookie == entry.netns.cookie);
        match kept.iter().find(|other| overlap(other, entry)) {
            Some(other) => drop(eclipsed.insert(entry.member.clone(), other.member.clone())),
            None => kept.push(entry),
        }
    }
    eclipsed
}

/// Whether two members lead to the same addresses in two networks.
pub(crate) fn overlap(one: &Entry, other: &Entry) -> bool {
    let (a, b) = (one.claim.subnet, other.claim.subnet);
    one.network != other.network && (a.contains(&b) || b.contains(&a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::fixtures::{entry, pn};

    #[test]
    fn a_released_member_has_no_word_on_its_network() {
        let mut journal = Journal::default();
        for last in [1, 2] {
            journal.insert(entry(last, MemberState::Ready));
        }
        journal.release(&entry(1, MemberState::Ready).member, 9, Instant::now());
        journal.change(&entry(2, MemberState::Ready).member, |e| e.claim.vni = 43);
        assert_eq!(journal.claims()[&pn()].vni, 43);
        journal.release(&entry(2, MemberState::Ready).member, 10, Instant::now());
        assert!(journal.claims().contains_key(&pn()), "an address that rests is published with its network");
    }

    #[test]
    fn of_networks_that_overlap_in_a_container_the_older_claim_is_served() {
        let member = |last: u8, cookie: u64, subnet: &str, address: [u8; 4]| {
            let mut entry = entry(last, MemberState::Ready);
            entry.network = format!("pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d{last:02x}").parse().unwrap();
            (entry.netns.cookie, entry.address) = (cookie, address.into());
            entry.claim.subnet = subnet.parse().unwrap();
            entry
        };
        let mut journal = Journal::default();
        let entries = [
            // Still to be given an address of the subnet that its network has now.
            member(1, 1, "10.1.0.0/24", [10, 9, 0, 1]),
            member(2, 1, "10.1.0.0/16", [10, 1, 0, 2]),
            // Meets only the first one, which is not served.
            member(3, 1, "10.2.0.0/24", [10, 2, 0, 3]),
            member(4, 1, "10.2.0.0/22", [10, 2, 0, 4]),
            // The same subnets in another container.
            member(5, 2, "10.1.0.0/24", [10, 1, 0, 5]),
        ];
        for entry in &entries {
            journal.insert(entry.clone());
            journal.mark_durable(&entry.member);
        }
        let served = |journal: &Journal| journal.served().map(|e| e.counter).collect::<Vec<_>>();
        assert_eq!(served(&journal), [2, 3, 5]);
        let pairs = BTreeMap::from(
            [(&entries[0], &entries[1]), (&entries[3], &entries[2])]
                .map(|(a, b)| (a.member.clone(), b.member.clone())),
        );
        assert_eq!(journal.eclipsed(), pairs);
        // The one that goes leaves what the other one has in common with it.
        let ours = project::ours(journal.in_kernel());
        let beside = |n: usize| {
            let trace = &ours.networks[&entries[n].network.to_string()][entries[n].member.as_str()];
            let others = (0..4).filter(|other| trace.beside.contains(&entries[*other].claim.subnet.into()));
            others.collect::<Vec<_>>()
        };
        assert_eq!([0, 1, 2, 3].map(beside), [vec![1, 2, 3], vec![2, 3], vec![0, 1], vec![0, 1, 2]]);
        journal.take_changed();
        journal.release(&entries[1].member, 9, Instant::now());
        assert_eq!(served(&journal), [1, 3, 5]);
        let beside: BTreeSet<NetworkId> = entries[..4].iter().map(|e| e.network).collect();
        assert_eq!(journal.take_changed(), beside, "what it makes room for is looked at");
    }

    #[test]
    fn a_network_made_here_needs_no_member() {
        let mut journal = Journal::default();
        let claim = entry(1, MemberState::Ready).claim;
        journal.create(pn(), claim.clone());
        assert_eq!(journal.take_changed(), BTreeSet::from([pn()]));
        assert_eq!(journal.claims(), BTreeMap::from([(pn(), claim)]));
        assert!(journal.forget(pn()) && !journal.forget(pn()));
        assert!(journal.claims().is_empty() && journal.networks().is_empty());
    }
}
