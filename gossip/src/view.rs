//! The view: what all hosts' live records say, merged. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::{HostId, MemberId, NetworkId};
use crate::record::{HostRecord, MemberRecord, NetworkRecord};
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

/// One host as this agent sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The generation the records are of.
    pub generation: u64,
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
}
