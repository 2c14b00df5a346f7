//! What this host has given as a judge and not seen claimed yet. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::id::{AppId, HostId, NetworkId, ProcessType};
use gossip::record::{MemberRecord, NetworkRecord};
use tokio::time::Instant;

/// One thing that one holder can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Given {
    /// An address of a network.
    Address(NetworkId, Ipv4Addr),
    /// A number of (app, type).
    Ordinal(NetworkId, AppId, ProcessType, u32),
}

/// The grants of the last T_hold: within it the claim comes back in the view, or was given up.
#[derive(Debug, Clone)]
pub struct Grants {
    hold: Duration,
    given: BTreeMap<Given, (HostId, Instant)>,
    /// A network asks as often as it has hosts, and is told the same.
    networks: BTreeMap<NetworkId, (NetworkRecord, Instant)>,
}

impl Grants {
    /// No grants; each is remembered for `hold`.
    pub fn new(hold: Duration) -> Grants {
        Grants { hold, given: BTreeMap::new(), networks: BTreeMap::new() }
    }

    /// The host a thing was given to a short while ago.
    pub fn of(&self, given: &Given, now: Instant) -> Option<&HostId> {
        let (host, at) = self.given.get(given)?;
        (now < *at + self.hold).then_some(host)
    }

    /// Notes that a thing is given now, and forgets what was given long ago.
    pub fn give(&mut self, given: Given, to: &HostId, now: Instant) {
        let hold = self.hold;
        self.given.retain(|_, (_, at)| now < *at + hold);
        self.given.insert(given, (to.clone(), now));
    }

    /// What a network was told a short while ago.
    pub fn network(&self, network: NetworkId, now: Instant) -> Option<&NetworkRecord> {
        let (record, at) = self.networks.get(&network)?;
        (now < *at + self.hold).then_some(record)
    }

    /// The network that was given a VNI a short while ago.
    pub fn holder(&self, vni: u32, now: Instant) -> Option<NetworkId> {
        let mut given = self.networks.iter().filter(|(_, (_, at))| now < *at + self.hold);
        given.find(|(_, (record, _))| record.vni == vni).map(|(network, _)| *network)
    }

    /// Notes what a network is told now.
    pub fn tell(&mut self, network: NetworkId, record: NetworkRecord, now: Instant) {
        let hold = self.hold;
        self.networks.retain(|_, (_, at)| now < *at + hold);
        self.networks.insert(network, (record, now));
    }

    /// A claim is in the view: from here on its record says how long it holds.
    pub fn claimed(&mut self, network: NetworkId, record: &MemberRecord) {
        self.given.remove(&Given::Address(network, record.address));
        if let Some(number) = record.ordinal {
            self.given.remove(&Given::Ordinal(network, record.app, record.process.clone(), number));
        }
    }
}
