//! The ledger: who holds what, as one view has it. It follows from view to view by what changed, and
//! equal views give equal ledgers, whatever way they came about. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use gossip::View;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{COUNTER_MAX, MemberRecord, MemberState, NetworkRecord};
use gossip::standing::Standing;
use gossip::view::{Host, HostChange, HostRecords, Vanished};
use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::MemberKey;
use super::changes::{Changes, VanishedChange, each_change};
use super::networks::Networks;
use super::touched::Touched;

/// What of a claim still counts, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// A live record: it holds.
    Live,
    /// A released one: its address rests, while names that led to it may still be known.
    Released,
    /// Its host vanished with it, without a word, at this moment.
    Ghost(Instant),
}

/// One claim of a thing. In order: what holds it comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// What of it counts.
    pub phase: Phase,
    /// The counter it was made, or released, with.
    pub counter: u64,
    /// Whose member it is.
    pub host: HostId,
    /// The member.
    pub member: MemberId,
}

/// The claims of one network.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Claims {
    addresses: BTreeMap<Ipv4Addr, Vec<Claimant>>,
    ordinals: BTreeMap<(AppId, ProcessType), BTreeMap<u32, Vec<Claimant>>>,
}

/// How many addresses of a network are in which state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Held by live members.
    pub held: usize,
    /// Resting after a release.
    pub released: usize,
    /// Kept for members that vanished.
    pub ghosts: usize,
    /// Live members whose address another one holds.
    pub contested: usize,
}

/// What changed from one view to the next.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Followed {
    /// What a member, its host's standing, tunnel end or draining, or a VNI changed of: enough to look at for whoever follows
    /// the holders.
    pub touched: Touched,
    /// Members that were not there before.
    pub fresh: Vec<MemberKey>,
    /// Whether a host's own record changed, or a host came or went for good.
    pub hosts: bool,
}

/// Which networks a ledger keeps the claims of.
#[derive(Debug, Clone, PartialEq)]
enum Open {
    All,
    Only(BTreeSet<NetworkId>),
}

impl Open {
    fn has(&self, network: &NetworkId) -> bool {
        match self {
            Open::All => true,
            Open::Only(networks) => networks.contains(network),
        }
    }
}

/// Who holds what.
///
/// Claims are kept of the networks that were [`open`](Self::open)ed: a host with members in three
/// networks of a region need not keep the books of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    open: Open,
    claims: BTreeMap<NetworkId, Claims>,
    /// What all hosts of a network should publish of it.
    pub networks: Networks,
    /// The highest counter seen anywhere.
    pub counter_max: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            open: Open::Only(BTreeSet::new()),
            claims: BTreeMap::new(),
            networks: Networks::default(),
            counter_max: 0,
        }
    }
}

impl Ledger {
    /// Settles every claim of a view.
    pub fn of(view: &View) -> Ledger {
        let mut ledger = Ledger { open: Open::All, ..Ledger::default() };
        ledger.follow(&Changes::between(&View::default(), view));
        ledger
    }

    /// Follows from the view it was made of to the next one.
    pub fn follow(&mut self, changes: &Changes) -> Followed {
        let (mut followed, mut rivals) = (Followed::default(), BTreeSet::new());
        for change in &changes.hosts {
            self.follow_owner(change, &mut followed, &mut rivals);
        }
        for change in &changes.vanished {
            followed.touched.at(change.key.1, None);
            self.follow_vanished(change);
        }
        for (host, network, member) in rivals {
            let records = changes.view.hosts.get(&host).map(|h| &h.records);
            let record = records.and_then(|records| records.members.get(&(network, member)));
            followed.touched.at(network, record.map(|record| record.address));
        }
        for network in self.networks.settle(changes.view) {
            followed.touched.whole(network);
        }
        followed
    }

    /// The claims of a network from now on; `view` is the one followed last.
    pub fn open(&mut self, network: NetworkId, view: &View) -> &Claims {
        let new = match &mut self.open {
            Open::Only(open) => open.insert(network),
            Open::All => false,
        };
        if new {
            let mut claims = Claims::default();
            for (host, h) in &view.hosts {
                for (member, record) in members_of(&h.records, network) {
                    claims.enter(host, member, record, phase(record, h));
                }
            }
            for ((host, _, member), vanished) in view.vanished.iter().filter(|((_, pn, _), _)| *pn == network)
            {
                claims.enter(host, member, &vanished.record, Some(Phase::Ghost(vanished.since)));
            }
            self.claims.insert(network, claims);
        }
        self.claims.entry(network).or_default()
    }

    /// Forgets the claims of all networks but these.
    pub fn close_others(&mut self, keep: &BTreeSet<NetworkId>) {
        if let Open::Only(open) = &mut self.open {
            open.retain(|network| keep.contains(network));
            self.claims.retain(|network, _| keep.contains(network));
        }
    }

    /// The claims of a network that is open; none of another.
    pub fn claims(&self, network: NetworkId) -> &Claims {
        static NONE: Claims = Claims { addresses: BTreeMap::new(), ordinals: BTreeMap::new() };
        self.claims.get(&network).unwrap_or(&NONE)
    }

    /// The open networks with their claims.
    pub fn all_claims(&self) -> impl Iterator<Item = (&NetworkId, &Claims)> {
        self.claims.iter()
    }

    /// The counter a new claim is made with.
    pub fn next_counter(&self) -> u64 {
        // Saturates one below the bound: ties are settled by host and member.
        (self.counter_max + 1).min(COUNTER_MAX - 1)
    }

    /// Whether another member holds this one's address.
    pub fn address_contested(&self, key: &MemberKey, record: &MemberRecord) -> bool {
        let holder = self.claims(key.1).holder(record.address);
        holder.is_some_and(|holder| (&holder.host, &holder.member) != (&key.0, &key.2))
    }

    /// Whether another member holds this one's ordinal.
    pub fn ordinal_contested(&self, key: &MemberKey, record: &MemberRecord) -> bool {
        let Some(number) = record.ordinal else { return false };
        let holder = self.claims(key.1).numbered(record.app, &record.process, number);
        holder.is_some_and(|holder| (&holder.host, &holder.member) != (&key.0, &key.2))
    }

    /// `rivals` are those who want a number that somebody else has begun or ceased to want.
    fn follow_owner(
        &mut self,
        HostChange { host, old, new }: &HostChange,
        followed: &mut Followed,
        rivals: &mut BTreeSet<MemberKey>,
    ) {
        let place = |h: Option<&Host>| {
            let gone_since = h.and_then(|h| h.silent_since.filter(|_| h.standing == Standing::Gone));
            let host = |h: &Host| {
                let host = &h.records.host;
                (host.vtep, host.port, host.draining)
            };
            h.map(|h| (h.standing, gone_since, host(h)))
        };
        let moved = place(*old) != place(*new);
        followed.hosts |= moved || old.map(|h| h.records.host.mtu) != new.map(|h| h.records.host.mtu);
        self.networks.follow(host, *old, *new);
        self.counter_max = self.counter_max.max(new.map_or(0, highest_counter));
        let none = BTreeMap::new();
        let before = old.map_or(&none, |h| &h.records.members);
        let after = new.map_or(&none, |h| &h.records.members);
        each_change(before, after, |(network, member), from, to| {
            if from == to && !moved {
                return;
            }
            if from.is_none() {
                followed.fresh.push(((*host).clone(), *network, member.clone()));
            }
            if !self.open.has(network) {
                return followed.touched.at(*network, None);
            }
            followed.touched.at(*network, [from, to].into_iter().flatten().map(|record| record.address));
            let claims = self.claims.entry(*network).or_default();
            if let (Some(record), Some(h)) = (from, old) {
                claims.strike(host, member, record, phase(record, h));
            }
            if let (Some(record), Some(h)) = (to, new) {
                claims.enter(host, member, record, phase(record, h));
            }
            for record in [from, to].into_iter().flatten() {
                let others =
                    claims.who_want_number_of(record).filter(|c| c.host != **host || c.member != *member);
                rivals.extend(others.map(|c| (c.host.clone(), *network, c.member.clone())));
            }
        });
    }

    fn follow_vanished(&mut self, VanishedChange { key, old, new }: &VanishedChange) {
        let (host, network, member) = key;
        if !self.open.has(network) {
            return;
        }
        let claims = self.claims.entry(*network).or_default();
        let ghost = |v: &Vanished| Some(Phase::Ghost(v.since));
        if let Some(vanished) = old {
            claims.strike(host, member, &vanished.record, ghost(vanished));
        }
        if let Some(vanished) = new {
            claims.enter(host, member, &vanished.record, ghost(vanished));
        }
    }
}

impl Claims {
    /// Who holds an address: the first of its live claimants.
    pub fn holder(&self, address: Ipv4Addr) -> Option<&Claimant> {
        live(self.addresses.get(&address)?)
    }

    /// Who holds a number of (app, type).
    pub fn numbered(&self, app: AppId, process: &ProcessType, number: u32) -> Option<&Claimant> {
        live(self.ordinals.get(&(app, process.clone()))?.get(&number)?)
    }

    /// What stands first at an address, were it live, released or a ghost.
    pub fn at(&self, address: Ipv4Addr) -> Option<&Claimant> {
        self.addresses.get(&address)?.first()
    }

    /// What stands first at a number: live, or a ghost; a released number is free at once.
    pub fn at_number(&self, app: AppId, process: &ProcessType, number: u32) -> Option<&Claimant> {
        self.ordinals.get(&(app, process.clone()))?.get(&number)?.first()
    }

    fn who_want_number_of(&self, record: &MemberRecord) -> impl Iterator<Item = &Claimant> {
        let numbers = record.ordinal.zip(self.ordinals.get(&(record.app, record.process.clone())));
        numbers.and_then(|(number, numbers)| numbers.get(&number)).into_iter().flatten()
    }

    /// Who holds an address, in the order of addresses.
    pub fn holders(&self) -> impl Iterator<Item = &Claimant> {
        self.addresses.values().filter_map(|claimants| live(claimants))
    }

    /// Every address with what stands first there.
    pub fn addresses(&self) -> impl Iterator<Item = (Ipv4Addr, &Claimant)> {
        self.addresses.iter().filter_map(|(address, claimants)| Some((*address, claimants.first()?)))
    }

    /// Released addresses, then ghosts, the longest so first: what is given when nothing is free.
    pub fn spent(&self, subnet: Ipv4Net) -> Vec<(Ipv4Addr, &Claimant)> {
        let spent =
            self.addresses().filter(|(address, c)| subnet.contains(address) && c.phase != Phase::Live);
        let mut spent: Vec<_> = spent.collect();
        spent.sort_by_key(|(address, c)| (c.phase, c.counter, *address));
        spent
    }

    /// How many addresses are in which state.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for claimants in self.addresses.values() {
            match claimants.first().map(|c| c.phase) {
                Some(Phase::Live) => tally.held += 1,
                Some(Phase::Released) => tally.released += 1,
                Some(Phase::Ghost(_)) => tally.ghosts += 1,
                None => {}
            }
            let live = claimants.iter().filter(|c| c.phase == Phase::Live).count();
            tally.contested += live.saturating_sub(1);
        }
        tally
    }

    /// How many numbers are held, and how many live members want one another holds.
    pub fn numbers(&self) -> (usize, usize) {
        let live = self
            .ordinals
            .values()
            .flat_map(BTreeMap::values)
            .map(|claimants| claimants.iter().filter(|c| c.phase == Phase::Live).count());
        live.fold((0, 0), |(held, contested), n| (held + n.min(1), contested + n.saturating_sub(1)))
    }

    fn enter(&mut self, host: &HostId, member: &MemberId, record: &MemberRecord, phase: Option<Phase>) {
        let Some(phase) = phase else { return };
        let claimant =
            Claimant { phase, counter: record.counter, host: host.clone(), member: member.clone() };
        if let Some(number) = record.ordinal.filter(|_| phase != Phase::Released) {
            let numbers = self.ordinals.entry((record.app, record.process.clone())).or_default();
            insert(numbers.entry(number).or_insert_with(|| Vec::with_capacity(1)), claimant.clone());
        }
        insert(self.addresses.entry(record.address).or_insert_with(|| Vec::with_capacity(1)), claimant);
    }

    fn strike(&mut self, host: &HostId, member: &MemberId, record: &MemberRecord, phase: Option<Phase>) {
        let Some(phase) = phase else { return };
        let claimant =
            Claimant { phase, counter: record.counter, host: host.clone(), member: member.clone() };
        let of = (record.app, record.process.clone());
        if let (Some(number), Some(numbers)) = (record.ordinal, self.ordinals.get_mut(&of)) {
            remove(numbers, number, &claimant);
            if numbers.is_empty() {
                self.ordinals.remove(&of);
            }
        }
        remove(&mut self.addresses, record.address, &claimant);
    }
}

fn live(claimants: &[Claimant]) -> Option<&Claimant> {
    claimants.first().filter(|claimant| claimant.phase == Phase::Live)
}

fn insert(claimants: &mut Vec<Claimant>, claimant: Claimant) {
    if let Err(place) = claimants.binary_search(&claimant) {
        claimants.insert(place, claimant);
    }
}

fn remove<T: Ord>(things: &mut BTreeMap<T, Vec<Claimant>>, thing: T, claimant: &Claimant) {
    let Some(claimants) = things.get_mut(&thing) else { return };
    claimants.retain(|c| c != claimant);
    if claimants.is_empty() {
        things.remove(&thing);
    }
}

/// What of a host's record counts. What a host that is gone had released is long free.
fn phase(record: &MemberRecord, host: &Host) -> Option<Phase> {
    let gone = host.silent_since.filter(|_| host.standing == Standing::Gone);
    match (record.state, gone) {
        (MemberState::Released, None) => Some(Phase::Released),
        (MemberState::Released, Some(_)) => None,
        (_, Some(since)) => Some(Phase::Ghost(since)),
        (_, None) => Some(Phase::Live),
    }
}

fn members_of(records: &HostRecords, network: NetworkId) -> impl Iterator<Item = (&MemberId, &MemberRecord)> {
    let all = records.members.iter().filter(move |((pn, _), _)| *pn == network);
    all.map(|((_, member), record)| (member, record))
}

fn highest_counter(host: &Host) -> u64 {
    let networks = host.records.networks.values().map(NetworkRecord::counter_max);
    let members = host.records.members.values().map(|record| record.counter);
    networks.chain(members).chain([host.records.host.counter]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
