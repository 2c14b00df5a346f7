//! The versioned wire form of every record.
//!
//! A host writes only its own keys. A value is one JSON object with the format version `v` and the
//! owner's counter `c`; fields this version does not know are kept, so that a record read and
//! written again loses nothing.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use crate::port::Port;

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
/// Prefix lengths of a network's subnet: 65,534 members at most, every address of which a judge looks at,
/// and six at least.
pub const SUBNET_PREFIXES: std::ops::RangeInclusive<u8> = 16..=29;

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
    pub name: HostId,
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
    /// Whether it takes no new members, and names lead to those it has no more: somebody wants it empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
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
    /// What was said last of names outside the zone; nothing, and they are passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Forwarding>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl NetworkRecord {
    /// Whether names outside the zone are passed on for the network's containers.
    pub fn forwards(&self) -> bool {
        self.forwarding.is_none_or(|said| !said.off)
    }

    /// The highest counter in it.
    pub fn counter_max(&self) -> u64 {
        self.forwarding.map_or(0, |said| said.counter).max(self.counter)
    }
}

/// What somebody said of the names outside the zone that a network's containers ask for.
///
/// In order: what is said later holds, and of two words as late as each other "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Forwarding {
    /// The counter of the host that was told.
    #[serde(rename = "c")]
    pub counter: u64,
    /// They are not passed on.
    pub off: bool,
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
    /// The ports it publishes, as [`Port`]s are written; text, so that one a newer version invents does not take
    /// the member with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl HostRecord {
    /// A host of today's version with nothing more to say: neither away nor draining, at counter 0.
    pub fn new(name: HostId, vtep: SocketAddr, mtu: u32) -> HostRecord {
        HostRecord {
            name,
            counter: 0,
            vtep: vtep.ip(),
            port: vtep.port(),
            mtu,
            speaks: FORMAT,
            away: None,
            draining: false,
            unknown: BTreeMap::new(),
        }
    }
}

impl MemberRecord {
    /// The published ports that this version can read.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.ports.iter().filter_map(|port| port.parse().ok())
    }
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
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&text)
            .map_err(|_| MalformedRecord::PublicKey)?;
        bytes.try_into().map(PublicKey).map_err(|_| MalformedRecord::PublicKey)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

/// Why a key or value was refused; [`reason`](Self::reason) is the metric's label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecord {
    /// Not 32 bytes of base64.
    #[error("public key is not 32 bytes of base64")]
    PublicKey,
    /// Neither `host` nor `net/<pn>` nor `mem/<pn>/<member>`.
    #[error("key {0:?} is none of host, net/<pn>, mem/<pn>/<member>")]
    Key(String),
    /// Longer than [`VALUE_BYTES_MAX`].
    #[error("value of {key} has {bytes} bytes, at most {VALUE_BYTES_MAX} fit")]
    Oversized {
        /// The record's key.
        key: Key,
        /// Its length.
        bytes: usize,
    },
    /// Not a JSON object with the fields this record needs.
    #[error("value of {key}: {error}")]
    Value {
        /// The record's key.
        key: Key,
        /// What the parser says.
        error: String,
    },
    /// A format this build does not read.
    #[error("value of {key} has format {version}, this build reads {FORMAT}")]
    Version {
        /// The record's key.
        key: Key,
        /// Its format; 0 when it has none.
        version: u64,
    },
    /// The counter is [`COUNTER_MAX`] or more.
    #[error("counter {counter} of {key} is not below 2^48")]
    Counter {
        /// The record's key.
        key: Key,
        /// The counter.
        counter: u64,
    },
    /// The VNI is 0 or longer than 24 bits (RFC 7348, section 5).
    #[error("VNI {0} is not in 1..2^24")]
    Vni(u32),
    /// The subnet is larger or smaller than [`SUBNET_PREFIXES`] allow, or is no subnet's first address.
    #[error("subnet {0} is not the first address of 16 to 29 bits of prefix")]
    Subnet(Ipv4Net),
    /// A host record with the name of another host than its owner.
    #[error("host record of {name} is published by {owner}")]
    Foreign {
        /// The gossip node id it was found under.
        owner: String,
        /// The name in it.
        name: HostId,
    },
}

impl MalformedRecord {
    /// The metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            MalformedRecord::PublicKey | MalformedRecord::Value { .. } => "value",
            MalformedRecord::Key(_) => "key",
            MalformedRecord::Oversized { .. } => "oversized",
            MalformedRecord::Version { .. } => "version",
            MalformedRecord::Counter { .. } => "counter",
            MalformedRecord::Vni(_) => "vni",
            MalformedRecord::Subnet(_) => "subnet",
            MalformedRecord::Foreign { .. } => "foreign",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Host => f.write_str("host"),
            Key::Network(network) => write!(f, "net/{network}"),
            Key::Member(network, member) => write!(f, "mem/{network}/{member}"),
        }
    }
}

impl FromStr for Key {
    type Err = MalformedRecord;
    fn from_str(text: &str) -> Result<Self, MalformedRecord> {
        let malformed = || MalformedRecord::Key(text.chars().take(KEY_BYTES_MAX).collect());
        let mut parts = text.split('/');
        let key = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("host"), None, _, _) => Some(Key::Host),
            (Some("net"), Some(network), None, _) => network.parse().ok().map(Key::Network),
            (Some("mem"), Some(network), Some(member), None) => network
                .parse()
                .ok()
                .zip(member.parse().ok())
                .map(|(network, member)| Key::Member(network, member)),
            _ => None,
        };
        key.ok_or_else(malformed)
    }
}

impl Record {
    /// The key it is published under.
    pub fn key(&self) -> Key {
        match self {
            Record::Host(_) => Key::Host,
            Record::Network(network, _) => Key::Network(*network),
            Record::Member(network, member, _) => Key::Member(*network, member.clone()),
        }
    }

    /// The wire form: one compact JSON object.
    pub fn encode(&self) -> String {
        match self {
            Record::Host(record) => encode(record),
            Record::Network(_, record) => encode(record),
            Record::Member(_, _, record) => encode(record),
        }
    }

    /// Reads what `owner`, a gossip node id, has published under `key`.
    pub fn decode(owner: &str, key: &str, value: &str) -> Result<Self, MalformedRecord> {
        let key: Key = key.parse()?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(MalformedRecord::Oversized { key, bytes: value.len() });
        }
        let record = match key {
            Key::Host => Record::Host(decode(&key, value)?),
            Key::Network(network) => Record::Network(network, decode(&key, value)?),
            Key::Member(network, ref member) => Record::Member(network, member.clone(), decode(&key, value)?),
        };
        record.check(owner)?;
        Ok(record)
    }

    /// Holds the record to the bounds that every reader will hold it to: `owner` is the gossip
    /// node id of the host that publishes it.
    pub fn check(&self, owner: &str) -> Result<(), MalformedRecord> {
        let counter = match self {
            Record::Host(record) => record.counter,
            Record::Network(_, record) => record.counter_max(),
            Record::Member(_, _, record) => record.counter,
        };
        if counter >= COUNTER_MAX {
            return Err(MalformedRecord::Counter { key: self.key(), counter });
        }
        match self {
            Record::Host(record) if record.name.node_id() != owner => {
                Err(MalformedRecord::Foreign { owner: owner.to_owned(), name: record.name.clone() })
            }
            Record::Network(_, record) if record.vni == 0 || record.vni >= 1 << 24 => {
                Err(MalformedRecord::Vni(record.vni))
            }
            Record::Network(_, record)
                if record.subnet.trunc() != record.subnet
                    || !SUBNET_PREFIXES.contains(&record.subnet.prefix_len()) =>
            {
                Err(MalformedRecord::Subnet(record.subnet))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    record: &'a T,
}

fn encode<T: Serialize>(record: &T) -> String {
    serde_json::to_string(&Versioned { v: FORMAT, record })
        .expect("records have text keys and no failing fields")
}

fn decode<T: DeserializeOwned>(key: &Key, value: &str) -> Result<T, MalformedRecord> {
    let malformed =
        |error: serde_json::Error| MalformedRecord::Value { key: key.clone(), error: error.to_string() };
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(value).map_err(malformed)?;
    // The format is the envelope's, not the record's: it must not end among the unknown fields.
    let version = fields.remove("v").and_then(|v| v.as_u64()).unwrap_or(0);
    if version != u64::from(FORMAT) {
        return Err(MalformedRecord::Version { key: key.clone(), version });
    }
    serde_json::from_value(fields.into()).map_err(malformed)
}
