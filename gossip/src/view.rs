//! The view: what all hosts' live records say, merged. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::KnownHost;
use crate::id::{HostId, MemberId, NetworkId};
use crate::record::{HostRecord, MemberRecord, NetworkRecord, Record};
use crate::standing::Standing;

/// Every record of one host's current generation.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRecords {
    /// What the host says of itself.
    pub host: HostRecord,
    /// Its word on the networks it has members of.
    pub networks: BTreeMap<NetworkId, NetworkRecord>,
    /// Its members, released ones included.
    pub members: BTreeMap<(NetworkId, MemberId), MemberRecord>,
}

impl HostRecords {
    /// The records one by one, `host` last.
    pub fn iter(&self) -> impl Iterator<Item = Record> + '_ {
        let networks =
            self.networks.iter().map(|(network, record)| Record::Network(*network, record.clone()));
        let members = self
            .members
            .iter()
            .map(|((network, member), record)| Record::Member(*network, member.clone(), record.clone()));
        networks.chain(members).chain(std::iter::once_with(|| Record::Host(self.host.clone())))
    }
}

/// One host as this agent sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The generation the records are of.
    pub generation: u64,
    /// The version of that generation the records are complete up to.
    pub version: u64,
    /// Where its agent gossips.
    pub address: SocketAddr,
    /// Whether it answers.
    pub standing: Standing,
    /// Its records; shared between views while they do not change.
    pub records: Arc<HostRecords>,
}

/// All hosts this agent knows, itself included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The hosts by name. Hosts gone for good are not here.
    pub hosts: BTreeMap<HostId, Host>,
    /// Whether the region's records are known whole: a live peer's records arrived, or no host is
    /// known but this one. Deletions that follow from the view wait for it.
    pub whole: bool,
    /// No other host of a region of three or more answers: this host is the one cut off, and
    /// answers freeze.
    pub cut_off: bool,
    /// Where a newer agent with this host's own name is live: this one must fence itself.
    pub twin: Option<SocketAddr>,
}

impl View {
    /// The hosts whose members are in answers.
    pub fn answering(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter().filter(|(_, host)| host.standing.answers())
    }

    /// The members of every host that is not gone, released ones included.
    pub fn members(&self) -> impl Iterator<Item = (&HostId, Standing, &NetworkId, &MemberId, &MemberRecord)> {
        self.hosts.iter().filter(|(_, host)| host.standing != Standing::Gone).flat_map(|(id, host)| {
            host.records
                .members
                .iter()
                .map(move |((network, member), record)| (id, host.standing, network, member, record))
        })
    }

    /// What to persist of the hosts other than `own`.
    pub fn known(&self, own: &HostId) -> Vec<KnownHost> {
        let others = self.hosts.iter().filter(|(id, _)| *id != own);
        others
            .map(|(id, host)| KnownHost {
                host: id.clone(),
                address: host.address,
                generation: host.generation,
                version: host.version,
                key_values: host
                    .records
                    .iter()
                    .map(|record| (record.key().to_string(), record.encode()))
                    .collect(),
            })
            .collect()
    }
}
