//! A network's members as this crate's tables need them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use gossip::View;
use gossip::id::NetworkId;
use gossip::record::{HostRecord, MemberState, NetworkRecord};
use gossip::standing::Standing;
use gossip::view::{Host, HostRecords};
use netplumb::state::{NetnsRef, PrivateKey};

use super::record;
use crate::claims::DEFAULT_SUBNET;
use crate::store::Entry;

/// The network.
pub fn pn() -> NetworkId {
    "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap()
}

/// What every host says of the network.
fn claim() -> NetworkRecord {
    NetworkRecord { counter: 1, vni: 42, subnet: DEFAULT_SUBNET, forwarding: None, unknown: BTreeMap::new() }
}

/// Container number `last` of the app's `web`.
pub fn entry(last: u8, state: MemberState) -> Entry {
    Entry {
        member: format!("{last:016x}").parse().unwrap(),
        container: format!("c{last}"),
        network: pn(),
        claim: claim(),
        app: "ap-a71da13f-7c70-4c00-a644-eee8558d8053".parse().unwrap(),
        process: "web".parse().unwrap(),
        ordinal: Some(u32::from(last)),
        ordinal_chosen: false,
        netns: NetnsRef { path: "/run/netns/c".into(), cookie: 1 },
        inode: 1,
        boot: "b".into(),
        ifname: "wg0".into(),
        address: Ipv4Addr::new(10, 240, 0, last),
        address6: None,
        ipv6: false,
        private_key: PrivateKey([last; 32]),
        public_key: gossip::record::PublicKey(PrivateKey([last; 32]).public().0),
        ports: Vec::new(),
        state,
        counter: u64::from(last),
        endpoint: None,
    }
}

/// Hosts `a` (me), `b`, `c`, each with the given members.
pub fn view(hosts: &[(&str, Standing, &[Entry])]) -> View {
    let mut view = View::default();
    for (i, (name, standing, entries)) in hosts.iter().enumerate() {
        let vtep = SocketAddr::from(([192, 0, 2, i as u8 + 1], 4789));
        let mtu = if *name == "c" { 1400 } else { 1500 };
        let records = HostRecords {
            host: HostRecord::new(name.parse().unwrap(), vtep, mtu),
            networks: BTreeMap::from([(pn(), claim())]),
            members: entries.iter().map(|e| ((e.network, e.member.clone()), record(e))).collect(),
        };
        let host = Host {
            generation: 1,
            version: 1,
            address: "192.0.2.1:1".parse().unwrap(),
            standing: *standing,
            silent_since: (!standing.answers()).then(tokio::time::Instant::now),
            via: gossip::view::Via::Chitchat,
            records: Arc::new(records),
        };
        view.hosts.insert(name.parse().unwrap(), host);
    }
    view
}
