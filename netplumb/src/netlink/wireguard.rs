//! `wgN`: born in the container's namespace, its UDP socket in the binding's.
//!
//! Either kind of interface carries the member's mark ([`group`]) from birth, so that an interface
//! of the same name that is somebody else's is never touched.

mod kernel;
mod userspace;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use blake2::{Blake2s256, Digest};

pub(crate) use self::kernel::kernel_has_wireguard;
use crate::engine::Remote;
use crate::error::Error;
use crate::netlink::apply::check_ifname;
use crate::netlink::link::Seen;
use crate::netlink::socket::Rtnl;
use crate::netns;
use crate::observed::{Device, ObservedPeer};
use crate::plan::{Link, Site};
use crate::state::{Key, Mac, Peer, PrivateKey};

/// Who does WireGuard on this host.
pub(crate) enum Wireguard {
    /// The kernel's module.
    Kernel,
    /// The engine.
    Userspace(Arc<Remote>),
}

/// An interface of ours as whoever does WireGuard has it.
struct Seat {
    public_key: Option<Key>,
    port: u16,
    peers: BTreeMap<Key, ObservedPeer>,
}

/// Peers that a member shall have.
#[derive(Clone, Copy)]
pub(crate) struct Introduction<'a> {
    pub(crate) member: &'a str,
    pub(crate) site: &'a Site,
    pub(crate) peers: &'a BTreeMap<Key, Peer>,
}

/// Statistics of one peer.
pub(crate) struct Exchanged {
    pub(crate) peer: Key,
    pub(crate) handshake: Option<Duration>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// The member's mark on its interface: IFLA_GROUP, never zero (the default).
pub(crate) fn group(member: &str) -> u32 {
    let hash = Blake2s256::digest(member);
    u32::from_le_bytes([hash[8], hash[9], hash[10], hash[11]]) | 1
}

impl Wireguard {
    /// Makes `wgN` with key and port, down; a second time it changes nothing.
    pub(crate) fn create(
        &self,
        member: &str,
        site: &Site,
        binding: BorrowedFd<'_>,
        link: &Link,
    ) -> Result<(), Error> {
        let look = || io::Result::Ok((netns::current()?, Rtnl::here()?.link(&site.ifname)?));
        let (container, present) = site.netns.enter(look)?.map_err(|e| refused("look for", site, e))?;
        let ours = present.as_ref().is_some_and(|seen| seen.group == group(member));
        if present.is_some() && !ours {
            return Err(Error::NameTaken { ifname: site.ifname.clone() });
        }
        match self {
            Wireguard::Kernel => {
                let stands = present.is_some_and(|seen| kernel::is_one(&seen));
                if ours && !stands {
                    // The engine's, of an agent that used it: it goes with its descriptors, but not at once.
                    self.remove(member, site)?;
                }
                kernel::create(member, site, container.as_fd(), binding, link, stands)
            }
            Wireguard::Userspace(engine) => {
                // No more than the key: the descriptors are to be closed.
                let held = engine.interface(member).map(|is| is.private_key);
                if ours && held.as_ref() == Some(&link.private_key) {
                    return Ok(());
                }
                if ours || held.is_some() {
                    self.remove(member, site)?;
                }
                let interface = userspace::create(member, site, container.as_fd(), binding, link)?;
                Ok(engine.add(member, interface)?)
            }
        }
    }

    /// Removes `wgN`; a namespace that is gone took it along.
    pub(crate) fn remove(&self, member: &str, site: &Site) -> Result<(), Error> {
        self.forget(member);
        let delete = || {
            let mut route = Rtnl::here()?;
            match route.link(&site.ifname)? {
                Some(link) if link.group == group(member) => route.delete_link(&site.ifname),
                _ => Ok(()),
            }
        };
        match site.netns.enter(delete) {
            Ok(deleted) => deleted.map_err(|error| refused("remove", site, error)),
            Err(Error::NetnsGone(_) | Error::NetnsRecycled(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Closes the descriptors of the member's interface: they would pin the binding namespace.
    pub(crate) fn forget(&self, member: &str) {
        if let Wireguard::Userspace(engine) = self {
            engine.remove(member);
        }
    }

    /// Closes the descriptors of all members but these.
    pub(crate) fn retain(&self, members: &BTreeSet<&str>) {
        if let Wireguard::Userspace(engine) = self {
            engine.retain(members);
        }
    }

    /// Tells the engine the new MTU; the kernel reads the link's.
    pub(crate) fn set_mtu(&self, member: &str, mtu: u32) -> Result<(), Error> {
        match self {
            Wireguard::Kernel => Ok(()),
            Wireguard::Userspace(engine) => Ok(engine.set_mtu(member, mtu)?),
        }
    }

    /// Tells the engine where ICMP errors come from now. The kernel asks its routes.
    pub(crate) fn set_address(
        &self,
        member: &str,
        address: Ipv4Addr,
        address6: Option<Ipv6Addr>,
    ) -> Result<(), Error> {
        match self {
            Wireguard::Kernel => Ok(()),
            Wireguard::Userspace(engine) => Ok(engine.set_address(member, address, address6)?),
        }
    }

    /// Adds peers or changes them, for each of these members.
    pub(crate) fn introduce(&self, introductions: &[Introduction<'_>]) -> Vec<Result<(), Error>> {
        match self {
            Wireguard::Kernel => {
                let set = |of: &Introduction<'_>| {
                    check_ifname(&of.site.ifname)?;
                    kernel::set_peers(of.member, of.site, of.peers)
                };
                introductions.iter().map(set).collect()
            }
            Wireguard::Userspace(engine) => userspace::introduce(engine, introductions),
        }
    }

    /// Removes peers; absent ones are as good.
    pub(crate) fn remove_peers(&self, member: &str, site: &Site, peers: &BTreeSet<Key>) -> Result<(), Error> {
        match self {
            Wireguard::Kernel => kernel::remove_peers(member, site, peers),
            Wireguard::Userspace(engine) => Ok(engine.remove_peers(member, peers.iter().copied().collect())?),
        }
    }

    /// The member's interface, of which `seen` is the link; None if it is not ours. Runs in the
    /// container's namespace; addresses are for the caller to fill in.
    pub(crate) fn observe(&self, member: &str, seen: &Seen) -> io::Result<Option<Device>> {
        if seen.group != group(member) {
            return Ok(None);
        }
        let seat = match self {
            Wireguard::Kernel => kernel::observe(seen)?,
            Wireguard::Userspace(engine) => userspace::observe(engine, member)?,
        };
        Ok(seat.map(|Seat { public_key, port, peers }| Device {
            mtu: seen.mtu,
            up: seen.up,
            mac: public_key.as_ref().map(Mac::of_key),
            port,
            addresses: BTreeSet::new(),
            peers: peers.into_iter().collect(),
        }))
    }

    /// The private key of the member's interface, of which `seen` is the link. Runs in the container's namespace.
    pub(crate) fn private_key(&self, member: &str, seen: &Seen) -> io::Result<Option<PrivateKey>> {
        match self {
            Wireguard::Kernel => kernel::private_key(seen),
            Wireguard::Userspace(engine) => userspace::private_key(engine, member),
        }
    }

    /// What the member exchanged with each of its peers.
    pub(crate) fn traffic(&self, member: &str, site: &Site) -> Vec<Exchanged> {
        match self {
            Wireguard::Userspace(engine) => userspace::traffic(engine, member),
            Wireguard::Kernel => kernel::traffic(member, site),
        }
    }
}

fn refused(what: &str, site: &Site, error: io::Error) -> Error {
    Error::kernel(format!("{what} {} in {}", site.ifname, site.netns.path.display()), error)
}
