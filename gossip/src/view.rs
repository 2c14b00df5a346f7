//! The view: what all hosts' live records say, merged. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::time::Instant;

use crate::config::KnownHost;
use crate::id::{HostId, MemberId, NetworkId};
use crate::record::{HostRecord, MemberRecord, MemberState, NetworkRecord, Record};
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

/// How the newest version of a host's records came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Pushed, as soon as it was published.
    Frame,
    /// By chitchat's rounds; own records too.
    Chitchat,
    /// With the snapshot taken when this host joined.
    Snapshot,
    /// From the view persisted before this start.
    Disk,
}

/// One host as this agent sees it.
///
/// Two are equal when they say the same, since the same time: `via` is how this agent learnt it, and is
/// not compared.
#[derive(Debug, Clone)]
pub struct Host {
    /// The generation the records are of.
    pub generation: u64,
    /// The version of that generation the records are complete up to.
    pub version: u64,
    /// Where its agent gossips.
    pub address: SocketAddr,
    /// Whether it answers.
    pub standing: Standing,
    /// Since when it is out of answers; none while it is in them.
    pub silent_since: Option<Instant>,
    /// How this version of its records came here.
    pub via: Via,
    /// Its records; shared between views while they do not change.
    pub records: Arc<HostRecords>,
}

impl PartialEq for Host {
    fn eq(&self, other: &Self) -> bool {
        (self.generation, self.version, self.address, self.standing, self.silent_since)
            == (other.generation, other.version, other.address, other.standing, other.silent_since)
            && (Arc::ptr_eq(&self.records, &other.records) || self.records == other.records)
    }
}

/// A claim that vanished without being released: its host's next generation does not have it, or
/// its record was deleted. Its container may still run.
///
/// Two are equal when their records are; `since` is when this agent missed it.
#[derive(Debug, Clone)]
pub struct Vanished {
    /// The member's last record.
    pub record: MemberRecord,
    /// When it vanished.
    pub since: Instant,
}

impl PartialEq for Vanished {
    fn eq(&self, other: &Self) -> bool {
        self.record == other.record
    }
}

/// A claim whose host cannot be asked about it any more: it holds until it is forgotten.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ghost<'a> {
    /// Whose member it was.
    pub host: &'a HostId,
    /// The member's network.
    pub network: &'a NetworkId,
    /// The member.
    pub member: &'a MemberId,
    /// Its last record.
    pub record: &'a MemberRecord,
    /// Since when nothing is heard of it.
    pub since: Instant,
}

/// All hosts this agent knows, itself included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The hosts by name; views share what did not change. Hosts gone for good are not here.
    pub hosts: OrdMap<HostId, Host>,
    /// Claims that vanished less than [`Timings::ghost`](crate::Timings::ghost) ago.
    pub vanished: BTreeMap<(HostId, NetworkId, MemberId), Vanished>,
    /// Whether the region's records are known whole: a live peer's records arrived, or no host is
    /// known but this one. Deletions that follow from the view wait for it.
    pub whole: bool,
    /// Some host that is not gone is known from disk only, where its last records may be missing: what
    /// follows from them deletes nothing.
    pub stale: bool,
    /// No other host of a region of three or more answers: this host is the one cut off, and
    /// answers freeze.
    pub cut_off: bool,
    /// Where a newer agent with this host's own name is live: this one must fence itself.
    pub twin: Option<SocketAddr>,
}

/// One host before and after.
#[derive(Debug, Clone, Copy)]
pub struct HostChange<'v> {
    /// The host.
    pub host: &'v HostId,
    /// As it was; none when it is new.
    pub old: Option<&'v Host>,
    /// As it is; none when it was forgotten.
    pub new: Option<&'v Host>,
}

impl View {
    /// The hosts that are not as they were in an older view, in order. What the two share is not read.
    pub fn hosts_since<'v>(&'v self, old: &'v View) -> impl Iterator<Item = HostChange<'v>> {
        old.hosts.diff(&self.hosts).map(|item| match item {
            DiffItem::Add(host, new) => HostChange { host, old: None, new: Some(new) },
            DiffItem::Update { old: (_, old), new: (host, new) } => {
                HostChange { host, old: Some(old), new: Some(new) }
            }
            DiffItem::Remove(host, old) => HostChange { host, old: Some(old), new: None },
        })
    }

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

    /// The ghosts: live members of hosts that are gone, and claims that vanished.
    pub fn ghosts(&self) -> impl Iterator<Item = Ghost<'_>> {
        let gone = self.hosts.iter().filter(|(_, host)| host.standing == Standing::Gone);
        let of_gone = gone.filter_map(|(id, host)| Some((id, host, host.silent_since?)));
        let of_gone = of_gone.flat_map(|(id, host, since)| {
            let live =
                host.records.members.iter().filter(|(_, record)| record.state != MemberState::Released);
            live.map(move |((network, member), record)| Ghost { host: id, network, member, record, since })
        });
        let vanished = self.vanished.iter().map(|((host, network, member), vanished)| Ghost {
            host,
            network,
            member,
            record: &vanished.record,
            since: vanished.since,
        });
        of_gone.chain(vanished)
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
