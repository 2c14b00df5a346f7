//! The kernel state of private networks as values: what should be and what is.

mod few;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use few::{Addresses, Few};

/// Bytes that VXLAN adds to an inner packet over an IPv4 underlay: inner Ethernet 14, VXLAN 8, UDP 8,
/// IPv4 20 (RFC 7348 §5).
const VXLAN_OVERHEAD_V4: u32 = 50;
/// As [`VXLAN_OVERHEAD_V4`], with an IPv6 header of 40 bytes.
const VXLAN_OVERHEAD_V6: u32 = 70;
/// Bytes that WireGuard adds between IPv4 endpoints: message 32, UDP 8, IPv4 20.
const WIREGUARD_OVERHEAD: u32 = 60;
/// No IPv6 on links below this MTU (RFC 8200 §5).
pub const IPV6_MTU_MIN: u32 = 1280;

/// MTU of bridge, VXLAN device and veths on an underlay of `underlay` bytes, whose tunnel ends have
/// IPv6 addresses or not.
pub fn fabric_mtu(underlay: u32, ipv6: bool) -> u32 {
    underlay.saturating_sub(if ipv6 { VXLAN_OVERHEAD_V6 } else { VXLAN_OVERHEAD_V4 })
}

/// MTU of a WireGuard interface inside a fabric of `fabric` bytes.
pub fn wg_mtu(fabric: u32) -> u32 {
    fabric.saturating_sub(WIREGUARD_OVERHEAD)
}

/// Everything this host should have, by network name (`pn-<uuid>`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// The networks this host has members of; one that did not change is the same one, so that
    /// nobody compares it.
    pub networks: BTreeMap<String, Arc<Network>>,
}

/// What the journal says this host made, by network and member id: a superset of [`Desired`], and
/// the only things that are ever looked at or touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ours {
    /// Members by network.
    pub networks: BTreeMap<String, BTreeMap<String, Trace>>,
}

/// Where a member's container side is. While the member is in [`Desired`] both say the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Name of the WireGuard interface there.
    pub ifname: String,
    /// Prefixes of the container's other networks: what stands for them there is of their members.
    pub beside: BTreeSet<IpNet>,
}

/// One private network on this host.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The network namespace `net-<pn>` with bridge and VXLAN device.
    pub fabric: Fabric,
    /// This host's members by member id.
    pub members: BTreeMap<String, Member>,
    /// Everybody who holds an address in the network, on whatever host, by public key: said once, however
    /// many members are here.
    pub peers: BTreeMap<Key, Peer>,
}

impl Network {
    /// The peers of one of the members: all but itself.
    pub fn peers_of<'n>(&'n self, member: &'n Member) -> impl Iterator<Item = (&'n Key, &'n Peer)> {
        self.peers.iter().filter(|(_, peer)| is_peer(member, peer))
    }

    /// Whether one of the members has this peer.
    pub fn has_peer(&self, member: &Member, key: &Key) -> bool {
        self.peers.get(key).is_some_and(|peer| is_peer(member, peer))
    }
}

fn is_peer(member: &Member, peer: &Peer) -> bool {
    !member.contested && peer.mac != member.mac
}

/// What stands in a network's own namespace: `br0`, `vxlan0` and its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Fabric {
    /// For people: alias of `lo` in every namespace of ours, `warren <region> <host> <id>`.
    pub alias: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// This host's tunnel end.
    pub local: Vtep,
    /// MTU of bridge, VXLAN device and veths, in bytes.
    pub mtu: u32,
    /// Remote members: exactly one tunnel end for each MAC.
    pub rows: BTreeMap<Mac, Vtep>,
}

/// A host's VXLAN tunnel end on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vtep {
    /// Underlay address.
    pub address: IpAddr,
    /// UDP port.
    pub port: u16,
}

/// One container's attachment on this host: its binding namespace `bind-<member>` and what stands
/// in the container's own namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Name of the WireGuard interface in the container, at most 15 bytes.
    pub ifname: String,
    /// MTU of the WireGuard interface, in bytes.
    pub mtu: u32,
    /// MAC of `eth0` in the binding namespace: [`Mac::of_key`] of the member's public key.
    pub mac: Mac,
    /// Address on `wgN` (as /32) and on `eth0` in the binding namespace (with the subnet's length).
    pub address: Ipv4Addr,
    /// The network's subnet.
    pub subnet: Ipv4Net,
    /// Address on `wgN` (as /128), where the container has IPv6.
    pub address6: Option<Ipv6Addr>,
    /// The network's ULA prefix: unreachable outside `wgN` even where the member has no address6.
    pub ula: Ipv6Net,
    /// The member's WireGuard private key.
    pub private_key: PrivateKey,
    /// UDP port of WireGuard in the binding namespace.
    pub port: u16,
    /// Another member holds its address: it keeps its interface, and has no peer until it has another one.
    pub contested: bool,
    /// Its interface waits in `netns`, which is the host's, for the container's runtime to take it; nothing else of
    /// the container's side is there.
    pub held: bool,
    /// The nft table in the container.
    pub guard: Guard,
}

/// Another member of the same network, as WireGuard and the binding namespace know it.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its address and port in the overlay.
    pub endpoint: SocketAddrV4,
    /// Its MAC: a permanent neighbour row endpoint → MAC in the binding namespace.
    pub mac: Mac,
    /// Exactly its addresses.
    pub allowed: Addresses,
    /// The peer is built and may have tried to reach members here before they knew it: send the first packet, once,
    /// when it is added to an interface that stands or when this is new of it. It is no state: nothing that is observed
    /// is compared with it.
    pub greet: bool,
}

/// What protects the private address inside a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// nft table `inet warren`: packets for our address or from our subnet only by `wgN` or `lo`;
    /// port 53 of the listener's address is rewritten to the listener's port, without conntrack.
    Table {
        /// Where the DNS listener is bound in the container's namespace.
        listener: SocketAddrV4,
    },
    /// No nf_tables here, and the operator said `unguarded`.
    None,
}

/// A container's network namespace: how to find it again, and how to know it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsRef {
    /// `/proc/<pid>/ns/net`, or the path of a mounted namespace.
    pub path: PathBuf,
    /// SO_NETNS_COOKIE: unlike the inode never used again until the next boot.
    pub cookie: u64,
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// A WireGuard public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

/// A WireGuard private key; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl Mac {
    /// The MAC of the member with this public key: `02` (unicast, locally administered) and 46 bits
    /// of a hash, so that it is new with every key and nobody has to claim it.
    pub fn of_key(key: &Key) -> Mac {
        let hash = Blake2s256::digest(key.0);
        Mac([hash[0] & 0b1111_1100 | 0b10, hash[1], hash[2], hash[3], hash[4], hash[5]])
    }
}

impl PrivateKey {
    /// A new key from the system's random numbers, clamped as `wg genkey` does: the kernel gives no other back.
    pub fn generate() -> PrivateKey {
        let mut key: [u8; 32] = rand::random();
        key[0] &= 0b1111_1000;
        key[31] = key[31] & 0b0111_1111 | 0b0100_0000;
        PrivateKey(key)
    }

    /// The public key that belongs to it (RFC 7748; clamped there, so every 32 bytes are a key).
    pub fn public(&self) -> Key {
        use boringtun::x25519::{PublicKey, StaticSecret};
        Key(PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }
}

impl fmt::Display for Key {
    /// Base64, as `wg` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for Key {
    type Err = MalformedKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).map_err(|_| MalformedKey)?;
        bytes.try_into().map(Key).map_err(|_| MalformedKey)
    }
}

/// A text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key is 32 bytes in base64")]
pub struct MalformedKey;

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}
impl TryFrom<String> for Mac {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let malformed = "a MAC is six hexadecimal bytes with colons";
        let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
        bytes.and_then(|b| b.try_into().ok()).map(Mac).ok_or(malformed)
    }
}
impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_as_the_kernel_gives_it_back() {
        for _ in 0..16 {
            let PrivateKey(key) = PrivateKey::generate();
            assert_eq!((key[0] & 0b111, key[31] >> 6), (0, 1), "clamped (RFC 7748)");
        }
    }

    #[test]
    fn mtu_of_every_underlay() {
        for (underlay, ipv6, fabric, wg) in [
            (1500, false, 1450, 1390),
            (1500, true, 1430, 1370),
            (9000, false, 8950, 8890),
            (1280, false, 1230, 1170),
            (10, true, 0, 0),
        ] {
            assert_eq!(fabric_mtu(underlay, ipv6), fabric);
            assert_eq!(wg_mtu(fabric), wg);
        }
    }

    #[test]
    fn macs_are_unicast_and_local_and_follow_the_key() {
        let macs: BTreeSet<Mac> = (0..=255).map(|byte| Mac::of_key(&Key([byte; 32]))).collect();
        assert_eq!(macs.len(), 256);
        assert!(macs.iter().all(|mac| mac.0[0] & 0b11 == 0b10));
        let text = String::from(Mac([2, 0, 0xab, 3, 4, 5]));
        assert_eq!(text, "02:00:ab:03:04:05");
        assert_eq!(Mac::try_from(text), Ok(Mac([2, 0, 0xab, 3, 4, 5])));
        assert!(Mac::try_from("02:00:ab:03:04".to_owned()).is_err());
    }

    #[test]
    fn keys_read_what_they_write() {
        let key = PrivateKey::generate().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!("AAAA".parse::<Key>(), Err(MalformedKey));
        assert_eq!(format!("{:?}", PrivateKey([7; 32])), "PrivateKey(..)");
    }
}
