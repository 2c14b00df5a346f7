//! WireGuard by the engine: the agent opens the descriptors, the engine's process serves them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use netlink_packet_route::link::LinkAttribute;

use super::{Exchanged, Introduction, Seat, group, refused};
use crate::engine::{Framing, Interface, PeerConfig, Remote, netns_of, open_tun, open_udp};
use crate::error::Error;
use crate::netlink::socket::Rtnl;
use crate::netns;
use crate::observed::ObservedPeer;
use crate::plan::{Link, Site};
use crate::state::{Key, Peer, PrivateKey};

/// As many as one Op has.
const PEERS_AT_ONCE: usize = 256;

/// Opens TUN and UDP socket in the binding namespace and moves the TUN into the container's.
pub(super) fn create(
    member: &str,
    site: &Site,
    container: BorrowedFd<'_>,
    binding: BorrowedFd<'_>,
    link: &Link,
) -> Result<Interface, Error> {
    let name = format!("wr{:08x}", group(member));
    let attributes = vec![
        LinkAttribute::NetNsFd(container.as_raw_fd()),
        LinkAttribute::IfName(site.ifname.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Group(group(member)),
    ];
    let moved = || -> io::Result<()> {
        let mut route = Rtnl::here()?;
        let index = route.index(&name)?;
        route.set_link(index, attributes, false)
    };
    let made = netns::enter(binding, || -> Result<(OwnedFd, OwnedFd), Error> {
        let tun = open_tun(&name, Framing::Large).map_err(Error::NoTun)?;
        let udp = open_udp(link.port).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::PortInUse { port: link.port },
            _ => refused("open the UDP socket of", site, error),
        })?;
        moved().map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => Error::NameTaken { ifname: site.ifname.clone() },
            _ => refused("move", site, error),
        })?;
        Ok((tun, udp))
    });
    let (tun, udp) = made.map_err(|error| refused("make", site, error))??;
    let Link { private_key, mtu, address, address6, .. } = link.clone();
    Ok(Interface { tun: Arc::new(tun), udp: Arc::new(udp), private_key, mtu, address, address6 })
}

/// Adds peers or changes them, for as many members at once as the engine's thread may be held up for.
pub(super) fn introduce(engine: &Remote, introductions: &[Introduction<'_>]) -> Vec<Result<(), Error>> {
    let mut results = Vec::with_capacity(introductions.len());
    while let Some(first) = introductions.get(results.len()) {
        let mut peers = first.peers.len();
        let fits = |of: &&Introduction<'_>| {
            peers += of.peers.len();
            peers <= PEERS_AT_ONCE
        };
        let others = introductions[results.len() + 1..].iter().take_while(fits);
        let told = [first].into_iter().chain(others).map(|of| (of.member.to_owned(), configs(of.peers)));
        results.extend(engine.set_peers_of(told.collect()).into_iter().map(|set| Ok(set?)));
    }
    results
}

/// Peers as the engine takes them.
fn configs(peers: &BTreeMap<Key, Peer>) -> Vec<PeerConfig> {
    let config = |(key, peer): (&Key, &Peer)| PeerConfig {
        key: *key,
        endpoint: peer.endpoint,
        allowed: peer.allowed.clone(),
        greet: peer.greet,
    };
    peers.iter().map(config).collect()
}

/// What the engine has of the member's interface.
pub(super) fn observe(engine: &Remote, member: &str) -> io::Result<Option<Seat>> {
    let Some(state) = engine.observe(member).map_err(io::Error::other)? else { return Ok(None) };
    let address = engine.interface(member).map(|is| rustix::net::getsockname(&*is.udp)).transpose()?;
    let address = address.and_then(|address| SocketAddrV4::try_from(address).ok());
    let peers = state
        .peers
        .into_iter()
        .map(|(key, peer)| (key, ObservedPeer { endpoint: Some(peer.endpoint), allowed: peer.allowed }));
    Ok(Some(Seat {
        public_key: Some(state.public_key),
        port: address.map_or(0, |address| address.port()),
        peers: peers.collect(),
    }))
}

/// The interface's private key, if its device stands in the calling thread's namespace.
pub(super) fn private_key(engine: &Remote, member: &str) -> io::Result<Option<PrivateKey>> {
    let Some(interface) = engine.interface(member) else { return Ok(None) };
    let inode = |netns| io::Result::Ok(rustix::fs::fstat(netns)?.st_ino);
    // A device that went with its namespace stands nowhere.
    let Ok(netns) = netns_of(&interface.tun) else { return Ok(None) };
    Ok((inode(netns)? == inode(netns::current()?)?).then_some(interface.private_key))
}

/// What the member exchanged with each of its peers.
pub(super) fn traffic(engine: &Remote, member: &str) -> Vec<Exchanged> {
    let state = engine.observe(member).ok().flatten();
    let peers = state.into_iter().flat_map(|state| state.peers);
    let exchanged = peers.map(|(peer, is)| Exchanged {
        peer,
        handshake: is.last_handshake,
        received: is.received,
        sent: is.sent,
    });
    exchanged.collect()
}
