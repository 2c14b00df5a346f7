//! The versioned wire form of every record.
//!
//! A host writes only its own keys. A value is one JSON object with the format version `v` and the
//! owner's counter `c`; fields this version does not know are kept, so that a record read and
//! written again loses nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::id::{AppId, MemberId, NetworkId, ProcessType};

/// The record format this build writes, and the newest it reads.
pub const FORMAT: u32 = 1;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024;
/// Most members one host may publish.
pub const MEMBERS_MAX: usize = 512;
/// Counters from here on are malformed: they would poison the region's Lamport order.
pub const COUNTER_MAX: u64 = 1 << 48;

/// Where a record stands in its owner's key space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `host`: the host itself. Always the last key of a generation's initial set.
    Host,
    /// `net/<pn>`: this host's claim that the network has this VNI and subnet.
    Network(NetworkId),
    /// `mem/<pn>/<member>`: everything about one member.
    Member(NetworkId, MemberId),
}

/// A WireGuard public key; base64 in text, as `wg` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host's name in full: the gossip node id is a hash of it when it is long.
    pub name: crate::id::HostId,
    /// The owner's counter at this write.
    #[serde(rename = "c")]
    pub counter: u64,
    /// Address of the host's Vtep on the underlay.
    pub vtep: IpAddr,
    /// UDP port of the host's Vtep.
    pub port: u16,
    /// MTU of the host's underlay in bytes.
    pub mtu: u32,
    /// Newest record format this host reads.
    pub speaks: u32,
    /// Seconds for which a gracefully stopped host still counts as answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<u32>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// A host's word on a network: all hosts of a network say the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The owner's counter at the claim; copied with it from host to host.
    #[serde(rename = "c")]
    pub counter: u64,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// The network's IPv4 subnet.
    pub subnet: Ipv4Net,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// A member's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Being built: peers program it, DNS does not name it yet.
    Joining,
    /// Built: in DNS.
    Ready,
    /// Detached: holds nothing; its address rests until the record is deleted.
    Released,
}

/// Everything about a member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The owner's counter at the claim of the address.
    #[serde(rename = "c")]
    pub counter: u64,
    /// Where in its life it is.
    pub state: MemberState,
    /// The app it runs.
    pub app: AppId,
    /// Its process type.
    #[serde(rename = "type")]
    pub process: ProcessType,
    /// Its number within (app, type); none while contested or not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
    /// Whether the caller chose the ordinal, so that it is never renumbered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ordinal_chosen: bool,
    /// Its address in the network's subnet.
    pub address: Ipv4Addr,
    /// Its address in the network's ULA prefix, only when it is programmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Its WireGuard public key; its MAC follows from it.
    pub key: PublicKey,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// One record with the key it is published under.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Under [`Key::Host`].
    Host(HostRecord),
    /// Under [`Key::Network`].
    Network(NetworkId, NetworkRecord),
    /// Under [`Key::Member`].
    Member(NetworkId, MemberId, MemberRecord),
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        base64::engine::general_purpose::STANDARD.encode(key.0)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = MalformedRecord;
    fn try_from(text: String) -> Result<Self, MalformedRecord> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&text).map_err(|_| MalformedRecord::PublicKey)?;
        bytes.try_into().map(PublicKey).map_err(|_| MalformedRecord::PublicKey)
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from(*self))
    }
}

/// Why a key or value was refused; `reason` is the metric's label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecord {
    /// Not 32 bytes of base64.
    #[error("public key is not 32 bytes of base64")]
    PublicKey,
}
