//! WireGuard in userspace, for kernels without it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::state::{Key, PrivateKey};

/// One WireGuard interface: its descriptors and its own identity.
#[derive(Debug)]
pub struct Interface {
    /// The TUN device, from [`open_tun`]; it may have been moved to another network namespace since.
    pub tun: OwnedFd,
    /// The bound UDP socket (IPv4).
    pub udp: OwnedFd,
    /// The interface's private key.
    pub private_key: PrivateKey,
    /// MTU of the TUN device, in bytes: padding never makes a packet longer than this.
    pub mtu: u32,
    /// The interface's own address: where ICMP errors come from.
    pub address: Ipv4Addr,
    /// As `address`, in IPv6.
    pub address6: Option<Ipv6Addr>,
}

/// An interface as the engine has it.
#[derive(Debug, Clone, PartialEq)]
pub struct InterfaceState {
    /// The public key of the interface's private key.
    pub public_key: Key,
    /// Its peers by public key.
    pub peers: BTreeMap<Key, PeerState>,
}

/// A peer as the engine has it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerState {
    /// Where its messages go: always what `set_peer` said last.
    pub endpoint: SocketAddrV4,
    /// Its addresses: the only inner sources taken from it and destinations sent to it.
    pub allowed: BTreeSet<IpAddr>,
    /// Time since the last completed handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes of authenticated messages received, WireGuard's headers included.
    pub received: u64,
    /// Bytes of messages sent, WireGuard's headers included.
    pub sent: u64,
}

/// Why the engine could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// `set_peer` before `add`, or after `remove`.
    #[error("the engine has no interface {0}: add it first")]
    NoInterface(String),
    /// `add` twice.
    #[error("the engine already has an interface {0}: remove it first")]
    Exists(String),
    /// The engine's thread ended.
    #[error("the engine's thread has ended: start another engine")]
    Ended,
    /// The descriptors could not be watched.
    #[error("cannot watch the interface's descriptors: {0}")]
    Io(#[from] io::Error),
}

/// The engine: one thread that serves all interfaces of a host. It ends when this is dropped.
pub struct Engine;

impl Engine {
    /// Starts the thread.
    pub fn start() -> io::Result<Engine> {
        unimplemented!()
    }
    /// Serves `interface` under the name `id`, without peers.
    pub fn add(&self, id: &str, interface: Interface) -> Result<(), EngineError> {
        unimplemented!("{id} {interface:?}")
    }
    /// Forgets the interface and closes its descriptors, on the calling thread.
    pub fn remove(&self, id: &str) {
        unimplemented!("{id}")
    }
    /// Adds a peer, or changes its endpoint and addresses and keeps its session.
    pub fn set_peer(
        &self,
        id: &str,
        key: Key,
        endpoint: SocketAddrV4,
        allowed: BTreeSet<IpAddr>,
        greet: bool,
    ) -> Result<(), EngineError> {
        unimplemented!("{id} {key:?} {endpoint} {allowed:?} {greet}")
    }
    /// Changes the interface's own addresses.
    pub fn set_address(&self, id: &str, address: Ipv4Addr, address6: Option<Ipv6Addr>) {
        unimplemented!("{id} {address} {address6:?}")
    }
    /// Removes a peer and its session.
    pub fn remove_peer(&self, id: &str, key: &Key) {
        unimplemented!("{id} {key:?}")
    }
    /// The interface with its peers, or None without such an interface.
    pub fn observe(&self, id: &str) -> Option<InterfaceState> {
        unimplemented!("{id}")
    }
}

/// Opens a new TUN device `name` in the calling thread's network namespace, nonblocking and
/// close-on-exec.
pub fn open_tun(name: &str) -> io::Result<OwnedFd> {
    unimplemented!("{name}")
}
