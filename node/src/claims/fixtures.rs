//! Views for the tests of claims.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use gossip::View;
use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{Forwarding, HostRecord, MemberRecord, MemberState, NetworkRecord, PublicKey};
use gossip::standing::Standing;
use gossip::view::{Host, HostRecords, Vanished, Via};
use proptest::prelude::*;
use tokio::time::Instant;

use super::DEFAULT_SUBNET;

pub const PN: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
pub const PN2: &str = "pn-bd0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
pub const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

pub fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub fn pn() -> NetworkId {
    PN.parse().unwrap()
}

pub fn member(number: u64) -> MemberId {
    format!("{number:016x}").parse().unwrap()
}

pub fn address(last: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(DEFAULT_SUBNET.network().to_bits() + u32::from(last))
}

pub fn record(counter: u64, last: u16, ordinal: Option<u32>, state: MemberState) -> MemberRecord {
    MemberRecord {
        counter,
        state,
        app: AP.parse().unwrap(),
        process: "web".parse().unwrap(),
        ordinal,
        ordinal_chosen: false,
        address: address(last),
        address6: None,
        key: PublicKey([last as u8; 32]),
        ports: Vec::new(),
        unknown: BTreeMap::new(),
    }
}

pub fn claim(counter: u64, vni: u32) -> NetworkRecord {
    NetworkRecord { counter, vni, subnet: DEFAULT_SUBNET, forwarding: None, unknown: BTreeMap::new() }
}

/// A region's records, written host by host, that tests look at as views.
#[derive(Debug, Clone, Default)]
pub struct Region {
    pub view: View,
}

impl Region {
    /// Hosts that answer and say nothing.
    pub fn of(names: &[&str]) -> Region {
        let mut region = Region { view: View { whole: true, ..View::default() } };
        for name in names {
            region.host(name);
        }
        region
    }

    pub fn host(&mut self, name: &str) -> &mut Host {
        self.view.hosts.entry(host(name)).or_insert_with(|| {
            let host = HostRecord::new(name.parse().unwrap(), "192.0.2.1:4789".parse().unwrap(), 1500);
            let records = HostRecords { host, networks: BTreeMap::new(), members: BTreeMap::new() };
            Host {
                generation: 1,
                version: 1,
                address: "192.0.2.1:1".parse().unwrap(),
                standing: Standing::Answering,
                silent_since: None,
                via: Via::Frame,
                records: Arc::new(records),
            }
        })
    }

    fn edit(&mut self, name: &str, edit: impl FnOnce(&mut HostRecords)) {
        let host = self.host(name);
        let mut records = HostRecords::clone(&host.records);
        edit(&mut records);
        (host.records, host.version) = (Arc::new(records), host.version + 1);
    }

    pub fn put(&mut self, name: &str, id: u64, record: MemberRecord) {
        self.edit(name, |records| _ = records.members.insert((pn(), member(id)), record));
    }

    pub fn remove(&mut self, name: &str, id: u64) {
        self.edit(name, |records| _ = records.members.remove(&(pn(), member(id))));
    }

    pub fn put_network(&mut self, name: &str, network: &str, record: NetworkRecord) {
        self.edit(name, |records| _ = records.networks.insert(network.parse().unwrap(), record));
    }

    pub fn remove_network(&mut self, name: &str, network: &str) {
        self.edit(name, |records| _ = records.networks.remove(&network.parse().unwrap()));
    }

    /// A host answers, or does not since a moment.
    pub fn stand(&mut self, name: &str, standing: Standing, now: Instant) {
        let host = self.host(name);
        host.silent_since = if standing.answers() { None } else { host.silent_since.or(Some(now)) };
        host.standing = standing;
    }
}

/// What can happen to a region.
#[derive(Debug, Clone)]
pub enum Edit {
    Put(u8, u64, MemberRecord),
    Remove(u8, u64),
    Network(u8, bool, NetworkRecord),
    NoNetwork(u8, bool),
    Stand(u8, Standing),
    Vanish(u8, u64, MemberRecord),
    Remember,
    Forget(u8),
}

pub fn edit() -> impl Strategy<Value = Edit> {
    let state =
        prop_oneof![Just(MemberState::Joining), Just(MemberState::Ready), Just(MemberState::Released)];
    // Some bear the key of another.
    let key = prop::option::weighted(0.1, 1u8..5);
    let member = (0u64..6, 1u16..5, prop::option::of(1u32..4), state, key).prop_map(
        |(counter, last, number, state, key)| {
            let record = record(counter, last, number, state);
            MemberRecord { key: key.map_or(record.key, |key| PublicKey([key; 32])), ..record }
        },
    );
    let standing = prop_oneof![
        Just(Standing::Answering),
        Just(Standing::Dead),
        Just(Standing::Gone),
        Just(Standing::Away)
    ];
    prop_oneof![
        4 => (0u8..4, 0u64..4, member.clone()).prop_map(|(h, m, r)| Edit::Put(h, m, r)),
        1 => (0u8..4, 0u64..4).prop_map(|(h, m)| Edit::Remove(h, m)),
        2 => (0u8..4, any::<bool>(), 0u64..4, 10u32..13, prop::option::of((0u64..4, any::<bool>())))
            .prop_map(|(h, n, c, v, said)| {
                let forwarding = said.map(|(counter, off)| Forwarding { counter, off });
                Edit::Network(h, n, NetworkRecord { forwarding, ..claim(c, v) })
            }),
        1 => (0u8..4, any::<bool>()).prop_map(|(h, n)| Edit::NoNetwork(h, n)),
        2 => (0u8..4, standing).prop_map(|(h, s)| Edit::Stand(h, s)),
        1 => (0u8..4, 0u64..4, member).prop_map(|(h, m, r)| Edit::Vanish(h, m, r)),
        1 => Just(Edit::Remember),
        1 => (0u8..4).prop_map(Edit::Forget),
    ]
}

pub fn apply(region: &mut Region, edit: Edit, now: Instant) {
    let name = |h: u8| format!("h{h}");
    let network = |second: bool| if second { PN2 } else { PN };
    match edit {
        Edit::Put(h, m, record) => region.put(&name(h), m, record),
        Edit::Remove(h, m) => region.remove(&name(h), m),
        Edit::Network(h, second, record) => region.put_network(&name(h), network(second), record),
        Edit::NoNetwork(h, second) => region.remove_network(&name(h), network(second)),
        Edit::Stand(h, standing) => region.stand(&name(h), standing, now),
        Edit::Vanish(h, m, record) => {
            let vanished = Vanished { record, since: now };
            region.view.vanished.insert((host(&name(h)), pn(), member(m)), vanished);
        }
        Edit::Remember => region.view.vanished.clear(),
        Edit::Forget(h) => _ = region.view.hosts.remove(&host(&name(h))),
    }
}
