//! WireGuard in userspace, for kernels without it: one thread serves all interfaces of a host, or several do, each its
//! own.
//!
//! The protocol is `boringtun::noise::Tunn`, which does no IO. gotatun's is as good and better kept,
//! but boringtun has the simpler licence (BSD-3-Clause), takes and gives plain slices, and was 5 %
//! faster here. What it lacks is added around it: which peer a message belongs to, the cryptokey check,
//! quick repetition of a first initiation, padding, ICMP errors, and limits its code only assumes.
//!
//! It never reads routes or addresses of the kernel, and never moves an endpoint.
//!
//! [`Engine`] is the threads with their interfaces. It lives in a process of its own ([`Process`]) that outlives the
//! agent; [`Remote`] is the agent's end of it. Each of the two holds every descriptor and gives them back to the
//! other's successor, so that either may die or be upgraded; nothing is stored. DNS sockets are held the same way.

mod channel;
mod checksum;
mod datagrams;
mod device;
mod event_loop;
mod packet;
mod peer;
pub mod privileges;
mod process;
mod protocol;
mod remote;
mod segments;
mod shard;
#[cfg(test)]
mod tests;
mod trains;
mod tunnels;
mod uapi;
mod vnet;
mod wires;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::datagrams::Socket;
pub use self::datagrams::open_udp;
use self::device::Tun;
pub use self::device::{Framing, netns_of, open_tun};
use self::event_loop::{Port, Ports};
pub use self::process::Process;
pub use self::protocol::PeerConfig;
use self::protocol::{OLDEST, VERSION};
pub use self::remote::{Facts, Remote};
use self::shard::Shard;
use self::tunnels::Tunnels;
pub use self::uapi::DIRECTORY as UAPI_DIRECTORY;
use crate::state::{Addresses, Key, PrivateKey};

/// One WireGuard interface: its descriptors and its own identity.
#[derive(Debug, Clone)]
pub struct Interface {
    /// The TUN device, from [`open_tun`]; it may have been moved to another network namespace since.
    pub tun: Arc<OwnedFd>,
    /// The bound UDP socket (IPv4), from [`open_udp`] or another one.
    pub udp: Arc<OwnedFd>,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterfaceState {
    /// The public key of the interface's private key.
    pub public_key: Key,
    /// Its peers by public key.
    pub peers: BTreeMap<Key, PeerState>,
    /// What was not delivered, and why.
    pub counters: Counters,
}

/// A peer as the engine has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerState {
    /// Where its messages go: always what `set_peer` said last.
    pub endpoint: SocketAddrV4,
    /// Its addresses: the only inner sources taken from it and destinations sent to it.
    pub allowed: Addresses,
    /// Time since the last completed handshake.
    pub last_handshake: Option<Duration>,
    /// Bytes of authenticated messages received, WireGuard's headers included.
    pub received: u64,
    /// Bytes of messages sent, WireGuard's headers included.
    pub sent: u64,
}

/// Packets and messages that were not delivered, since the interface was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Neither an IP packet nor a WireGuard message, or with a wrong first MAC.
    pub malformed: u64,
    /// Initiations by nobody we know.
    pub strangers: u64,
    /// Messages for which there is no session or handshake here.
    pub undecipherable: u64,
    /// Messages seen before.
    pub replayed: u64,
    /// Inner packets from an address that is not their peer's.
    pub forged: u64,
    /// Handshake messages beyond the limit, answered by a cookie at most.
    pub limited: u64,
    /// Packets for an address without peer, or for a peer without endpoint.
    pub unreachable: u64,
    /// Packets and messages that TUN or socket did not take.
    pub dropped: u64,
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
    /// More peers than boringtun's 24-bit index can name.
    #[error("the interface {0} has 2^24 peers already: remove some first")]
    Full(String),
    /// A thread ended, which it does only by a failure of epoll or a bug.
    #[error("a thread of the engine has ended: start another engine")]
    Ended,
    /// The process that holds our descriptors is of a build too far from this one.
    #[error(
        "the engine (process {pid}) speaks version {theirs} of its protocol, this agent {OLDEST} to {VERSION}: \
         install an agent of the engine's version, or end the engine with `kill {pid}` (the traffic of this \
         host's containers stops until the agent has started)"
    )]
    Version {
        /// The engine's process.
        pid: u32,
        /// What it speaks.
        theirs: u16,
    },
    /// The engine's process cannot be reached, or not be started.
    #[error("the engine's process does not answer: {0}")]
    Unreachable(io::Error),
    /// The descriptors could not be watched.
    #[error("cannot watch the interface's descriptors, are they a TUN and a UDP socket? {0}")]
    Io(#[from] io::Error),
}

/// The handle of the engine's threads, which end when this is dropped. Calls wait for a thread to answer, well under a
/// millisecond.
///
/// An interface stays on the thread it was born on, and threads share nothing: what passes between two interfaces of one
/// host goes through the kernel, as between hosts.
pub struct Engine {
    /// One at least.
    shards: Vec<Shard>,
    /// How many of them new interfaces are spread over.
    threads: usize,
    /// On which of them each interface is.
    places: BTreeMap<String, usize>,
}

impl Engine {
    /// Starts one thread.
    pub fn start() -> io::Result<Engine> {
        Ok(Engine { shards: vec![Shard::start(0)?], threads: 1, places: BTreeMap::new() })
    }

    /// Spreads new interfaces over so many threads, one at least. Those that are there stay where they are.
    ///
    /// # Errors
    /// A thread could not be started: it is as if as many had been asked for as there are.
    pub fn spread(&mut self, threads: usize) -> io::Result<()> {
        self.threads = threads.clamp(1, self.shards.len());
        while self.threads < threads {
            self.shards.push(Shard::start(self.threads)?);
            self.threads += 1;
        }
        Ok(())
    }

    /// Serves `interface` under the name `id`. No packet is taken before all `peers` are known.
    pub fn add(&mut self, id: &str, interface: Interface, peers: Vec<PeerConfig>) -> Result<(), EngineError> {
        if self.places.contains_key(id) {
            return Err(EngineError::Exists(id.to_owned()));
        }
        let Interface { tun, udp, private_key, mtu, address, address6 } = interface;
        let tunnels = Tunnels::new(&private_key, mtu, address, address6, Instant::now());
        let port = Box::new(Port::new(Tun::new(tun)?, Socket::new(udp)?, tunnels));
        let (place, name) = (self.emptiest(), id.to_owned());
        self.places.insert(id.to_owned(), place);
        let added = self.shards[place].call(move |ports| {
            ports.add(&name, port)?;
            peers.iter().try_for_each(|peer| ports.set_peer(&name, peer)).map_err(|error| (error, None))
        });
        let added = added.ok_or(EngineError::Ended).and_then(|added| added.map_err(|(error, _port)| error));
        added.inspect_err(|_| self.remove(id))
    }

    /// The thread with the fewest interfaces, the first of several.
    fn emptiest(&self) -> usize {
        let served = |place: &usize| self.places.values().filter(|other| *other == place).count();
        (0..self.threads).min_by_key(served).unwrap_or_default()
    }

    /// Forgets the interface and closes its descriptors here, on the calling thread: closing a TUN's
    /// last one holds RTNL for about 16 ms, which no other interface shall wait for.
    pub fn remove(&mut self, id: &str) {
        if let Some(place) = self.places.remove(id) {
            let id = id.to_owned();
            drop(self.shards[place].call(move |ports| ports.remove(&id)));
        }
    }

    /// Adds peers, or changes their endpoints and addresses and keeps their sessions. An allowed address that
    /// another peer had moves to this one, as in the kernel.
    pub fn set_peers(&self, id: &str, peers: Vec<PeerConfig>) -> Result<(), EngineError> {
        if !self.places.contains_key(id) {
            return Err(EngineError::NoInterface(id.to_owned()));
        }
        self.call(id, move |ports, id| peers.iter().try_for_each(|peer| ports.set_peer(id, peer)))
            .unwrap_or(Err(EngineError::Ended))
    }

    /// As [`Engine::set_peers`], for several interfaces: each thread is asked once. An error is the first one's, and the
    /// others are set all the same.
    pub fn set_peers_of(&self, interfaces: Vec<(String, Vec<PeerConfig>)>) -> Result<(), EngineError> {
        let mut result = Ok(());
        let mut by_place: BTreeMap<usize, Vec<(String, Vec<PeerConfig>)>> = BTreeMap::new();
        for (id, peers) in interfaces {
            match self.places.get(&id) {
                Some(place) => by_place.entry(*place).or_default().push((id, peers)),
                None => result = result.and(Err(EngineError::NoInterface(id))),
            }
        }
        for (place, interfaces) in by_place {
            let set = self.shards[place].call(move |ports| {
                let each = interfaces.iter();
                each.map(|(id, peers)| peers.iter().try_for_each(|peer| ports.set_peer(id, peer)))
                    .fold(Ok(()), Result::and)
            });
            result = result.and(set.unwrap_or(Err(EngineError::Ended)));
        }
        result
    }

    /// Changes how long a padded packet may be.
    pub fn set_mtu(&self, id: &str, mtu: u32) {
        self.call(id, move |ports, id| ports.set_mtu(id, mtu));
    }

    /// Changes the interface's own addresses, from which ICMP errors come.
    pub fn set_address(&self, id: &str, address: Ipv4Addr, address6: Option<Ipv6Addr>) {
        self.call(id, move |ports, id| ports.set_address(id, address, address6));
    }

    /// Removes peers and their sessions.
    pub fn remove_peers(&self, id: &str, peers: Vec<Key>) {
        self.call(id, move |ports, id| peers.iter().for_each(|key| ports.remove_peer(id, key)));
    }

    /// The names of all interfaces.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The number of the thread that serves the interface.
    pub fn thread_of(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    /// The interface as it was added, with what has changed since.
    pub fn interface(&self, id: &str) -> Option<Interface> {
        self.call(id, |ports, id| ports.interface(id))?
    }

    /// The interface with its peers, or None without such an interface.
    pub fn observe(&self, id: &str) -> Option<InterfaceState> {
        self.call(id, |ports, id| ports.observe(id))?
    }

    /// Runs `work` on the interface's thread; None without such an interface, or when the thread has ended.
    fn call<R: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Ports, &str) -> R + Send + 'static,
    ) -> Option<R> {
        let (shard, id) = (&self.shards[*self.places.get(id)?], id.to_owned());
        shard.call(move |ports| work(ports, &id))
    }
}
