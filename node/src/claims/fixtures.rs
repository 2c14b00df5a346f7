//! Views for the tests of claims.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use gossip::View;
use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{HostRecord, MemberRecord, MemberState, NetworkRecord, PublicKey};
use gossip::standing::Standing;
use gossip::view::{Host, HostRecords, Via};
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
            let host = HostRecord {
                name: name.parse().unwrap(),
                counter: 0,
                vtep: "192.0.2.1".parse().unwrap(),
                port: 4789,
                mtu: 1500,
                speaks: 1,
                away: None,
                unknown: BTreeMap::new(),
            };
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
