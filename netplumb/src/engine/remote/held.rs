//! What the agent holds for the engine: everything to make another one the same.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::protocol::{Config, Reply, Request};
use super::super::{EngineError, Interface, PeerConfig};
use crate::state::Key;

/// All interfaces, and the descriptors the engine only keeps.
#[derive(Default)]
pub(super) struct Held {
    pub(super) interfaces: BTreeMap<String, Served>,
    pub(super) kept: BTreeMap<String, Vec<OwnedFd>>,
}

/// One interface with its peers.
pub(super) struct Served {
    pub(super) interface: Interface,
    pub(super) peers: BTreeMap<Key, PeerConfig>,
}

impl Held {
    /// Takes one thing of an inventory.
    pub(super) fn take(&mut self, reply: Reply, descriptors: Vec<OwnedFd>) -> Result<(), EngineError> {
        match reply {
            Reply::Interface { id, config, peers } => {
                let Ok([tun, udp]) = <[OwnedFd; 2]>::try_from(descriptors) else {
                    return Err(super::unexpected());
                };
                let Config { mtu, address, address6, .. } = config;
                let (tun, udp, private_key) = (Arc::new(tun), Arc::new(udp), config.private_key());
                let interface = Interface { tun, udp, private_key, mtu, address, address6 };
                let mut served = Served { interface, peers: BTreeMap::new() };
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
}

/// The request for an interface.
pub(super) fn add(id: &str, interface: &Interface, peers: Vec<PeerConfig>) -> Request {
    let Interface { private_key, mtu, address, address6, .. } = interface;
    Request::Add { id: id.to_owned(), config: Config::new(private_key, *mtu, *address, *address6), peers }
}
