//! What the agent holds for the engine: everything to make another one the same.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::super::protocol::{Config, Reply, Request};
use super::super::{EngineError, Interface, PeerConfig};
use crate::state::Key;

/// All interfaces, and the descriptors the engine only keeps.
#[derive(Default)]
pub(super) struct Held {
    pub(super) interfaces: BTreeMap<String, Served>,
    pub(super) kept: BTreeMap<String, Vec<OwnedFd>>,
    /// Over how many threads interfaces shall be spread, once that was said.
    pub(super) threads: Option<u16>,
}

/// One interface with its peers.
pub(super) struct Served {
    pub(super) interface: Interface,
    /// What `wg show` asks.
    pub(super) uapi: Option<OwnedFd>,
    pub(super) peers: BTreeMap<Key, PeerConfig>,
}

impl Held {
    /// Takes one thing of an inventory.
    pub(super) fn take(&mut self, reply: Reply, descriptors: Vec<OwnedFd>) -> Result<(), EngineError> {
        match reply {
            Reply::Interface { id, config, peers } => {
                let mut descriptors = descriptors.into_iter();
                let (Some(tun), Some(udp)) = (descriptors.next(), descriptors.next()) else {
                    return Err(super::unexpected());
                };
                let uapi = descriptors.next();
                let Config { mtu, address, address6, .. } = config;
                let (tun, udp, private_key) = (Arc::new(tun), Arc::new(udp), config.private_key());
                let interface = Interface { tun, udp, private_key, mtu, address, address6 };
                let mut served = Served { interface, uapi, peers: BTreeMap::new() };
                served.set(peers);
                self.interfaces.insert(id, served);
            }
            Reply::Kept { name } => drop(self.kept.insert(name, descriptors)),
            _ => return Err(super::unexpected()),
        }
        Ok(())
    }
}

impl Served {
    /// Adds peers or changes them. A greeting was for once.
    pub(super) fn set(&mut self, peers: Vec<PeerConfig>) {
        let silent = peers.into_iter().map(|peer| (peer.key, PeerConfig { greet: false, ..peer }));
        self.peers.extend(silent);
    }

    /// The request that has it served.
    pub(super) fn request(&self, id: &str) -> Request {
        let Interface { private_key, mtu, address, address6, .. } = &self.interface;
        let config = Config::new(private_key, *mtu, *address, *address6);
        Request::Add { id: id.to_owned(), config, peers: self.peers.values().cloned().collect() }
    }

    /// What goes with the request.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let Interface { tun, udp, .. } = &self.interface;
        [tun.as_fd(), udp.as_fd()].into_iter().chain(self.uapi.as_ref().map(OwnedFd::as_fd)).collect()
    }
}
