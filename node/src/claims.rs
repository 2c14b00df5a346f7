//! Scarce things without a controller: who holds which address, VNI and ordinal, and what is
//! contested. Pure.
//!
//! A live record holds, a released one rests, nothing else: there is no pending state. Several live
//! records on one thing are settled the same way in every view: the lowest (counter, host, member)
//! holds, the others are contested and out of everybody's names and datapath until they have a
//! thing of their own. First form: every host judges for itself; asking others comes with the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::View;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{COUNTER_MAX, MemberRecord, MemberState, NetworkRecord};
use ipnet::Ipv4Net;
use rand::{Rng, RngExt as _};

/// The subnet of a network nobody gave another.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 22);

/// A member as the ledger names it.
pub type MemberKey = (HostId, NetworkId, MemberId);

/// Who holds what, from one view. Equal views give equal ledgers.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Ledger {
    /// Addresses held by live members.
    pub addresses: BTreeMap<(NetworkId, Ipv4Addr), MemberKey>,
    /// Addresses of released members that nobody holds, with the counter of their last claim.
    pub resting: BTreeMap<(NetworkId, Ipv4Addr), u64>,
    /// Ordinals held by live members.
    pub ordinals: BTreeMap<(NetworkId, AppId, ProcessType, u32), MemberKey>,
    /// Live members whose address another one holds.
    pub contested_addresses: BTreeSet<MemberKey>,
    /// Live members whose ordinal another one holds.
    pub contested_ordinals: BTreeSet<MemberKey>,
    /// What all hosts of a network should publish of it.
    pub networks: BTreeMap<NetworkId, NetworkRecord>,
    /// The highest counter seen anywhere.
    pub counter_max: u64,
}

/// No address is left in a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "network {network} is full: {held} of {size} addresses of {subnet} are held and {resting} rest after a \
     detach; detach members, or attach again when the resting ones are free"
)]
pub struct Full {
    network: NetworkId,
    subnet: Ipv4Net,
    size: u32,
    held: usize,
    resting: usize,
}

/// Why an address the caller asked for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// Outside the subnet, or its network or broadcast address.
    #[error("{0} is not a member address of {1}")]
    Outside(Ipv4Addr, Ipv4Net),
    /// A live member holds it.
    #[error("{0} is held by member {1} on host {2}")]
    Held(Ipv4Addr, MemberId, HostId),
    /// Nothing is left.
    #[error(transparent)]
    Full(#[from] Full),
}

impl Ledger {
    /// Settles every claim of a view.
    pub fn of(view: &View) -> Ledger {
        let mut claims: Vec<(MemberKey, &MemberRecord)> = view
            .hosts
            .iter()
            .flat_map(|(host, h)| {
                let key = move |(pn, member): &(NetworkId, MemberId)| (host.clone(), *pn, member.clone());
                h.records.members.iter().map(move |(k, record)| (key(k), record))
            })
            .collect();
        claims.sort_by(|((h, _, m), r), ((h2, _, m2), r2)| (r.counter, h, m).cmp(&(r2.counter, h2, m2)));

        let mut ledger = Ledger { networks: networks(view), ..Ledger::default() };
        ledger.counter_max = ledger.networks.values().map(|n| n.counter).max().unwrap_or(0);
        for (key, record) in &claims {
            ledger.counter_max = ledger.counter_max.max(record.counter);
            if record.state != MemberState::Released {
                ledger.enter(key, record);
            }
        }
        for ((_, pn, _), record) in &claims {
            let thing = (*pn, record.address);
            if record.state == MemberState::Released && !ledger.addresses.contains_key(&thing) {
                ledger.resting.insert(thing, record.counter);
            }
        }
        ledger
    }

    fn enter(&mut self, key: &MemberKey, record: &MemberRecord) {
        let address = (key.1, record.address);
        if self.addresses.entry(address).or_insert_with(|| key.clone()) != key {
            self.contested_addresses.insert(key.clone());
        }
        if let Some(n) = record.ordinal {
            let ordinal = (key.1, record.app, record.process.clone(), n);
            if self.ordinals.entry(ordinal).or_insert_with(|| key.clone()) != key {
                self.contested_ordinals.insert(key.clone());
            }
        }
    }

    /// The counter a new claim is made with.
    pub fn next_counter(&self) -> u64 {
        // Saturates one below the bound: ties are settled by host and member.
        (self.counter_max + 1).min(COUNTER_MAX - 1)
    }

    /// An address for a new member of `network`: one this host outranks all `hosts` for if there is
    /// any free, so that two sides of a cut collide last; else any free one; else the one that has
    /// rested longest.
    pub fn address(
        &self,
        network: NetworkId,
        subnet: Ipv4Net,
        me: &HostId,
        hosts: &[HostId],
        rng: &mut impl Rng,
    ) -> Result<Ipv4Addr, Full> {
        let free: Vec<Ipv4Addr> = subnet
            .hosts()
            .filter(|a| {
                !self.addresses.contains_key(&(network, *a)) && !self.resting.contains_key(&(network, *a))
            })
            .collect();
        if !free.is_empty() {
            let mine = hash(me.as_str().as_bytes());
            let theirs: Vec<u64> =
                hosts.iter().filter(|h| *h != me).map(|h| hash(h.as_str().as_bytes())).collect();
            let start = rng.random_range(0..free.len());
            let in_turn = || free[start..].iter().chain(&free[..start]).copied();
            let home = in_turn().find(|a| {
                let thing = address_thing(network, *a);
                theirs.iter().all(|host| rank(thing, *host) < rank(thing, mine))
            });
            return Ok(home.unwrap_or(free[start]));
        }
        let of_network = |((pn, address), counter): (&(NetworkId, Ipv4Addr), &u64)| {
            (*pn == network && subnet.contains(address)).then_some((*counter, *address))
        };
        let oldest = self.resting.iter().filter_map(of_network).min();
        oldest.map(|(_, address)| address).ok_or_else(|| Full {
            network,
            subnet,
            size: subnet.hosts().count() as u32,
            held: self.addresses.keys().filter(|(pn, _)| *pn == network).count(),
            resting: self.resting.keys().filter(|(pn, _)| *pn == network).count(),
        })
    }

    /// Whether a caller's own choice of address can be had.
    pub fn chosen_address(
        &self,
        network: NetworkId,
        subnet: Ipv4Net,
        address: Ipv4Addr,
    ) -> Result<Ipv4Addr, AddressRefused> {
        if !subnet.contains(&address) || address == subnet.network() || address == subnet.broadcast() {
            return Err(AddressRefused::Outside(address, subnet));
        }
        match self.addresses.get(&(network, address)) {
            Some((host, _, member)) => Err(AddressRefused::Held(address, member.clone(), host.clone())),
            None => Ok(address),
        }
    }

    /// The lowest free ordinal of (app, type).
    pub fn ordinal(&self, network: NetworkId, app: AppId, process: &ProcessType) -> u32 {
        let taken = |n: &u32| self.ordinals.contains_key(&(network, app, process.clone(), *n));
        (1..).find(|n| !taken(n)).unwrap_or(u32::MAX)
    }

    /// What to publish of a network: what its hosts publish already, else the first of its VNI
    /// candidates that no other network has, with `subnet`.
    pub fn network(&self, network: NetworkId, subnet: Ipv4Net) -> NetworkRecord {
        self.networks.get(&network).cloned().unwrap_or_else(|| NetworkRecord {
            counter: self.next_counter(),
            vni: free_vni(network, &self.networks),
            subnet,
            unknown: BTreeMap::new(),
        })
    }
}

/// All hosts of a network publish the same, copied from its lowest (counter, host) record; two
/// networks on one VNI: the lower (counter, network) keeps it, the other takes its next candidate.
fn networks(view: &View) -> BTreeMap<NetworkId, NetworkRecord> {
    let mut lowest: BTreeMap<NetworkId, (&HostId, &NetworkRecord)> = BTreeMap::new();
    for (host, h) in &view.hosts {
        for (pn, record) in &h.records.networks {
            let held = lowest.entry(*pn).or_insert((host, record));
            if (record.counter, host) < (held.1.counter, held.0) {
                *held = (host, record);
            }
        }
    }
    let mut by_age: Vec<(u64, NetworkId, &NetworkRecord)> =
        lowest.iter().map(|(pn, (_, record))| (record.counter, *pn, *record)).collect();
    by_age.sort_by_key(|(counter, pn, _)| (*counter, *pn));
    let mut settled: BTreeMap<NetworkId, NetworkRecord> = BTreeMap::new();
    let mut losers = Vec::new();
    for (_, pn, record) in by_age {
        if settled.values().any(|other| other.vni == record.vni) {
            losers.push((pn, record));
        } else {
            settled.insert(pn, record.clone());
        }
    }
    for (pn, record) in losers {
        let vni = free_vni(pn, &settled);
        settled.insert(pn, NetworkRecord { vni, ..record.clone() });
    }
    settled
}

fn free_vni(network: NetworkId, held: &BTreeMap<NetworkId, NetworkRecord>) -> u32 {
    let taken: BTreeSet<u32> = held.iter().filter(|(pn, _)| **pn != network).map(|(_, r)| r.vni).collect();
    (0..u32::MAX).map(|i| vni_candidate(network, i)).find(|vni| !taken.contains(vni)).unwrap_or(2)
}

/// The i-th VNI a network tries: 24 bits of a hash, never 0, 1 (used by hand everywhere) or all
/// ones (reserved, RFC 7348 leaves it to implementations).
pub fn vni_candidate(network: NetworkId, i: u32) -> u32 {
    let mut bytes = network.as_bytes().to_vec();
    bytes.extend(i.to_be_bytes());
    2 + (hash(&bytes) % (0xff_ffff - 2)) as u32
}

fn address_thing(network: NetworkId, address: Ipv4Addr) -> u64 {
    hash(network.as_bytes()) ^ u64::from(u32::from(address)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// How high a host ranks as the judge of a thing (rendezvous hashing): every host computes the same.
fn rank(thing: u64, host: u64) -> u64 {
    // splitmix64's finalizer: both halves are already hashes, they only need mixing.
    let mut z = thing ^ host;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(Blake2b::<U8>::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gossip::record::{HostRecord, PublicKey};
    use gossip::standing::Standing;
    use gossip::view::{Host, HostRecords};
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const PN: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
    const PN2: &str = "pn-bd0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
    const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

    fn host(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn pn() -> NetworkId {
        PN.parse().unwrap()
    }

    fn record(counter: u64, last: u8, ordinal: Option<u32>, state: MemberState) -> MemberRecord {
        MemberRecord {
            counter,
            state,
            app: AP.parse().unwrap(),
            process: "web".parse().unwrap(),
            ordinal,
            ordinal_chosen: false,
            address: Ipv4Addr::new(10, 240, 0, last),
            address6: None,
            key: PublicKey([last; 32]),
            unknown: BTreeMap::new(),
        }
    }

    /// (host, member number, record)
    fn view(members: &[(&str, u64, MemberRecord)], nets: &[(&str, &str, u64, u32)]) -> View {
        let mut all: BTreeMap<HostId, HostRecords> = BTreeMap::new();
        let blank = |name: &str| HostRecords {
            host: HostRecord {
                name: host(name),
                counter: 0,
                vtep: "192.0.2.1".parse().unwrap(),
                port: 4789,
                mtu: 1500,
                speaks: 1,
                away: None,
                unknown: BTreeMap::new(),
            },
            networks: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        for (name, id, record) in members {
            let records = all.entry(host(name)).or_insert_with(|| blank(name));
            records.members.insert((pn(), format!("{id:016x}").parse().unwrap()), record.clone());
        }
        for (name, network, counter, vni) in nets {
            let records = all.entry(host(name)).or_insert_with(|| blank(name));
            let claim = NetworkRecord {
                counter: *counter,
                vni: *vni,
                subnet: DEFAULT_SUBNET,
                unknown: BTreeMap::new(),
            };
            records.networks.insert(network.parse().unwrap(), claim);
        }
        let mut view = View::default();
        for (name, records) in all {
            let host = Host {
                generation: 1,
                version: 1,
                address: "192.0.2.1:1".parse().unwrap(),
                standing: Standing::Answering,
                silent_since: None,
                via: gossip::view::Via::Chitchat,
                records: Arc::new(records),
            };
            view.hosts.insert(name, host);
        }
        view
    }

    #[test]
    fn the_lower_counter_then_host_then_member_holds() {
        use MemberState::*;
        let cases = [
            ("counter", ("b", 1, record(4, 1, Some(1), Ready)), ("a", 2, record(5, 1, Some(1), Ready))),
            ("host", ("a", 2, record(5, 1, Some(1), Ready)), ("b", 1, record(5, 1, Some(1), Joining))),
            ("member", ("a", 1, record(5, 1, Some(1), Joining)), ("a", 2, record(5, 1, Some(1), Ready))),
        ];
        for (what, winner, loser) in cases {
            for order in [[&winner, &loser], [&loser, &winner]] {
                let view = view(&order.map(Clone::clone), &[]);
                let ledger = Ledger::of(&view);
                let key = |(h, m, _): &(&str, u64, MemberRecord)| {
                    (host(h), pn(), format!("{m:016x}").parse::<MemberId>().unwrap())
                };
                assert_eq!(ledger.addresses[&(pn(), winner.2.address)], key(&winner), "{what}");
                assert!(ledger.contested_addresses.contains(&key(&loser)), "{what}");
                assert!(ledger.contested_ordinals.contains(&key(&loser)), "{what}");
            }
        }
    }

    #[test]
    fn a_released_member_holds_nothing_but_its_address_rests() {
        let view = view(&[("a", 1, record(4, 1, Some(1), MemberState::Released))], &[]);
        let ledger = Ledger::of(&view);
        assert!(ledger.addresses.is_empty());
        assert_eq!(ledger.ordinal(pn(), AP.parse().unwrap(), &"web".parse().unwrap()), 1);
        assert_eq!(ledger.resting.len(), 1);
        assert_eq!(ledger.next_counter(), 5, "a released claim still counts");
    }

    #[test]
    fn ordinals_fill_gaps() {
        let view = view(
            &[
                ("a", 1, record(1, 1, Some(1), MemberState::Ready)),
                ("b", 2, record(2, 2, Some(3), MemberState::Ready)),
            ],
            &[],
        );
        let ledger = Ledger::of(&view);
        assert_eq!(ledger.ordinal(pn(), AP.parse().unwrap(), &"web".parse().unwrap()), 2);
        assert_eq!(ledger.ordinal(pn(), AP.parse().unwrap(), &"worker".parse().unwrap()), 1);
    }

    #[test]
    fn a_network_fills_to_its_last_address() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut ledger = Ledger::default();
        let me = host("a");
        for i in 0..1022u64 {
            let address =
                ledger.address(pn(), DEFAULT_SUBNET, &me, &[host("b"), me.clone()], &mut rng).unwrap();
            let member: MemberId = format!("{i:016x}").parse().unwrap();
            assert!(ledger.addresses.insert((pn(), address), (me.clone(), pn(), member)).is_none());
        }
        let full = ledger.address(pn(), DEFAULT_SUBNET, &me, &[], &mut rng).unwrap_err();
        assert!(full.to_string().contains("1022 of 1022"), "{full}");
        let (oldest, newer) = (Ipv4Addr::new(10, 240, 0, 7), Ipv4Addr::new(10, 240, 0, 8));
        for (address, counter) in [(oldest, 3), (newer, 4)] {
            ledger.addresses.remove(&(pn(), address));
            ledger.resting.insert((pn(), address), counter);
        }
        assert_eq!(ledger.address(pn(), DEFAULT_SUBNET, &me, &[], &mut rng), Ok(oldest));
    }

    #[test]
    fn hosts_prefer_addresses_apart() {
        let hosts = [host("a"), host("b"), host("c")];
        let mut rng = SmallRng::seed_from_u64(2);
        let picks = |me: &HostId, rng: &mut SmallRng| -> BTreeSet<Ipv4Addr> {
            (0..50)
                .map(|_| Ledger::default().address(pn(), DEFAULT_SUBNET, me, &hosts, rng).unwrap())
                .collect()
        };
        let (a, b) = (picks(&hosts[0], &mut rng), picks(&hosts[1], &mut rng));
        assert!(a.is_disjoint(&b), "what a outranks all for, b does not");
    }

    #[test]
    fn chosen_addresses_are_checked() {
        let view = view(&[("a", 1, record(1, 1, None, MemberState::Ready))], &[]);
        let ledger = Ledger::of(&view);
        let choose = |text: &str| ledger.chosen_address(pn(), DEFAULT_SUBNET, text.parse().unwrap());
        assert!(matches!(choose("10.240.0.1"), Err(AddressRefused::Held(..))));
        for outside in ["10.240.0.0", "10.240.3.255", "10.240.4.1", "192.0.2.1"] {
            assert!(matches!(choose(outside), Err(AddressRefused::Outside(..))), "{outside}");
        }
        assert!(choose("10.240.3.254").is_ok());
    }

    #[test]
    fn networks_agree_on_the_lowest_claim() {
        let view = view(&[], &[("b", PN, 3, 30), ("a", PN, 4, 40), ("c", PN2, 9, 30)]);
        let ledger = Ledger::of(&view);
        assert_eq!(ledger.network(pn(), DEFAULT_SUBNET).vni, 30);
        let other = ledger.network(PN2.parse().unwrap(), DEFAULT_SUBNET);
        assert_eq!(other.vni, vni_candidate(PN2.parse().unwrap(), 0), "the younger network moved on");
        assert_eq!(other.counter, 9);
    }

    #[test]
    fn candidates_stay_in_24_bits_and_off_the_reserved() {
        for i in 0..10_000 {
            let vni = vni_candidate(pn(), i);
            assert!((2..0xff_ffff).contains(&vni));
        }
    }

    proptest! {
        #[test]
        fn any_view_has_one_holder_for_each_thing(
            claims in prop::collection::vec((0u8..4, 0u64..6, 1u8..5, prop::option::of(1u32..4), 0u64..4, 0u8..3), 0..24)
        ) {
            let members: Vec<(String, u64, MemberRecord)> = claims.iter().map(|(h, m, last, n, counter, state)| {
                let state = [MemberState::Joining, MemberState::Ready, MemberState::Released][*state as usize];
                (format!("h{h}"), *m, record(*counter, *last, *n, state))
            }).collect();
            let borrowed: Vec<(&str, u64, MemberRecord)> =
                members.iter().map(|(h, m, r)| (h.as_str(), *m, r.clone())).collect();
            let view = view(&borrowed, &[]);
            let ledger = Ledger::of(&view);
            let live: Vec<(MemberKey, &MemberRecord)> = view.hosts.iter().flat_map(|(h, host)| {
                host.records.members.iter().map(move |((pn, m), r)| ((h.clone(), *pn, m.clone()), r))
            }).filter(|(_, r)| r.state != MemberState::Released).collect();
            for (key, record) in &live {
                let holder = &ledger.addresses[&(key.1, record.address)];
                prop_assert_eq!(holder != key, ledger.contested_addresses.contains(key));
            }
            prop_assert_eq!(ledger.addresses.len() + ledger.contested_addresses.len(), live.len());
        }
    }
}
