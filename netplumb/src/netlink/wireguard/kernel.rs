//! WireGuard in the kernel, through wireguard-control, whose traps are guarded here and nowhere else.
//!
//! It would make an interface where there is none, so every call looks for ours first, in the same namespace and on the
//! same thread; its dumps split peers, so parts are put together by key; its errors print keys, so their texts go no
//! further; it cannot update a peer without making it, so each interface has one writer, the reconciler. Its userspace
//! backend is never called: without a socket to talk to it would start `wireguard-go`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::SystemTime;

use netlink_packet_route::link::InfoKind;
use rtnetlink::LinkWireguard;
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, PeerConfigBuilder, PeerInfo};

use super::{Exchanged, Seat, group, refused};
use crate::error::Error;
use crate::netlink::link::Seen;
use crate::netlink::socket::Rtnl;
use crate::netns;
use crate::observed::ObservedPeer;
use crate::plan::{Link, Site};
use crate::state::{Addresses, Key, Peer, PrivateKey};

/// Seconds of a keepalive that is switched off at once: setting one makes the kernel send.
const GREETING_S: u16 = 25;

/// Whether this kernel has WireGuard, tried in a namespace that ends at once.
pub(crate) fn kernel_has_wireguard() -> bool {
    let born = netns::scratch(|| Rtnl::here()?.create_link(LinkWireguard::new("wg0")));
    matches!(born, Ok(Ok(())))
}

/// Whether a link is a WireGuard interface of the kernel's.
pub(super) fn is_one(link: &Seen) -> bool {
    link.kind == Some(InfoKind::Wireguard)
}

/// Makes `wgN` if it is not `present`, and sets key and port.
pub(super) fn create(
    member: &str,
    site: &Site,
    container: BorrowedFd<'_>,
    binding: BorrowedFd<'_>,
    link: &Link,
    present: bool,
) -> Result<(), Error> {
    if !present {
        let wireguard = LinkWireguard::new(&site.ifname).mtu(link.mtu).link_group(group(member));
        let wireguard = wireguard.setns_by_fd(container.as_raw_fd());
        let born = netns::enter(binding, || Rtnl::here()?.create_link(wireguard));
        born.and_then(|born| born).map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Error::NoWireguard,
            Some(libc::EEXIST) => Error::NameTaken { ifname: site.ifname.clone() },
            _ => refused("make", site, error),
        })?;
    }
    let key = wireguard_control::Key(link.private_key.0);
    let update = DeviceUpdate::new().set_private_key(key).set_listen_port(link.port);
    apply(member, site, update)
}

/// Adds peers or changes them.
pub(super) fn set_peers(member: &str, site: &Site, peers: &BTreeMap<Key, Peer>) -> Result<(), Error> {
    let greeted: Vec<_> = peers.iter().filter(|(_, peer)| peer.greet).map(|(key, _)| key).collect();
    update(member, site, peers.iter().map(|(key, peer)| full(key, peer)).collect())?;
    if greeted.is_empty() {
        return Ok(());
    }
    let quiet = |key: &&Key| builder(key).unset_persistent_keepalive();
    update(member, site, greeted.iter().map(quiet).collect())
}

/// Removes peers; absent ones are as good.
pub(super) fn remove_peers(member: &str, site: &Site, peers: &BTreeSet<Key>) -> Result<(), Error> {
    update(member, site, peers.iter().map(|key| builder(key).remove()).collect())
}

/// What the kernel has of the interface. Runs in the container's namespace.
pub(super) fn observe(seen: &Seen) -> io::Result<Option<Seat>> {
    if !is_one(seen) {
        return Ok(None);
    }
    let read = read(&seen.name)?;
    Ok(Some(Seat {
        public_key: read.public_key.as_ref().map(|key| Key(key.0)),
        port: read.listen_port.unwrap_or_default(),
        peers: merge(&read.peers),
    }))
}

/// The interface's private key. Runs in the container's namespace.
pub(super) fn private_key(seen: &Seen) -> io::Result<Option<PrivateKey>> {
    if !is_one(seen) {
        return Ok(None);
    }
    Ok(read(&seen.name)?.private_key.map(|key| PrivateKey(key.0)))
}

/// What the member exchanged with each of its peers.
pub(super) fn traffic(member: &str, site: &Site) -> Vec<Exchanged> {
    let read = site.netns.enter(|| guarded(member, &site.ifname).and_then(|()| read(&site.ifname)));
    read.ok().and_then(Result::ok).map(|device| exchanged(&device.peers)).unwrap_or_default()
}

fn update(member: &str, site: &Site, peers: Vec<PeerConfigBuilder>) -> Result<(), Error> {
    apply(member, site, DeviceUpdate::new().add_peers(&peers))
}

fn apply(member: &str, site: &Site, update: DeviceUpdate) -> Result<(), Error> {
    let done = site.netns.enter(move || {
        guarded(member, &site.ifname)?;
        update.apply(&site.ifname.parse::<InterfaceName>()?, Backend::Kernel).map_err(without_keys)
    })?;
    done.map_err(|error| refused("configure", site, error))
}

/// `DeviceUpdate::apply` makes an interface where there is none: never let it.
fn guarded(member: &str, ifname: &str) -> io::Result<()> {
    let link = Rtnl::here()?.link(ifname)?;
    let ours = |link: &Seen| link.group == group(member) && is_one(link);
    if link.as_ref().is_some_and(ours) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENODEV)) }
}

fn read(ifname: &str) -> io::Result<Device> {
    Device::get(&ifname.parse::<InterfaceName>()?, Backend::Kernel).map_err(without_keys)
}

/// An error that is no errno prints the message it is about, the private key in it.
fn without_keys(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), "the exchange with the kernel failed; its text may hold keys"),
    }
}

fn builder(key: &Key) -> PeerConfigBuilder {
    PeerConfigBuilder::new(&wireguard_control::Key(key.0))
}

fn full(key: &Key, peer: &Peer) -> PeerConfigBuilder {
    let keepalive = if peer.greet { GREETING_S } else { 0 };
    let builder = builder(key)
        .set_endpoint(SocketAddr::V4(peer.endpoint))
        .set_persistent_keepalive_interval(keepalive)
        .replace_allowed_ips();
    peer.allowed.iter().fold(builder, |builder, address| {
        builder.add_allowed_ip(*address, if address.is_ipv4() { 32 } else { 128 })
    })
}

/// A dump of many peers splits one that has several addresses: put the parts together by key.
fn merge(parts: &[PeerInfo]) -> BTreeMap<Key, ObservedPeer> {
    let mut peers: BTreeMap<Key, ObservedPeer> = BTreeMap::new();
    for part in parts {
        let fresh = ObservedPeer { endpoint: None, allowed: Addresses::default() };
        let peer = peers.entry(Key(part.config.public_key.0)).or_insert(fresh);
        if let Some(SocketAddr::V4(endpoint)) = part.config.endpoint {
            peer.endpoint = Some(endpoint);
        }
        peer.allowed.extend(part.config.allowed_ips.iter().map(|allowed| -> IpAddr { allowed.address }));
    }
    peers
}

fn exchanged(parts: &[PeerInfo]) -> Vec<Exchanged> {
    let mut peers: BTreeMap<Key, Exchanged> = BTreeMap::new();
    for part in parts {
        let (key, stats) = (Key(part.config.public_key.0), &part.stats);
        let peer = peers.entry(key).or_insert(Exchanged { peer: key, handshake: None, received: 0, sent: 0 });
        let since = |time: SystemTime| SystemTime::now().duration_since(time).unwrap_or_default();
        peer.handshake = peer.handshake.or(stats.last_handshake_time.map(since));
        peer.received += stats.rx_bytes;
        peer.sent += stats.tx_bytes;
    }
    peers.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of a peer as a dump that was cut gives it: the second one has neither endpoint nor figures.
    fn part(peer: u8, endpoint: Option<&str>, allowed: &str, bytes: u64) -> PeerInfo {
        let mut part = PeerInfo::from_public_key(wireguard_control::Key([peer; 32]));
        part.config.endpoint = endpoint.map(|endpoint| endpoint.parse().unwrap());
        part.config.allowed_ips = vec![allowed.parse().unwrap()];
        (part.stats.rx_bytes, part.stats.tx_bytes) = (bytes, bytes);
        part.stats.last_handshake_time = (bytes > 0).then(SystemTime::now);
        part
    }

    #[test]
    fn a_peer_that_a_dump_cut_in_two_is_one() {
        let cut = [
            part(1, Some("10.240.0.1:51820"), "10.240.0.1/32", 7),
            part(1, None, "fd00::1/128", 0),
            part(2, Some("10.240.0.2:51820"), "10.240.0.2/32", 9),
        ];
        let peers = merge(&cut);
        assert_eq!(peers.len(), 2);
        let one = &peers[&Key([1; 32])];
        assert_eq!(one.endpoint, Some("10.240.0.1:51820".parse().unwrap()));
        assert_eq!(one.allowed, ["10.240.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into());
        let figures = exchanged(&cut);
        assert_eq!(figures.iter().map(|is| (is.received, is.sent)).collect::<Vec<_>>(), [(7, 7), (9, 9)]);
        assert!(figures.iter().all(|is| is.handshake.is_some()));
    }

    #[test]
    fn errors_name_no_key() {
        let key = "PrivateKey([7, 7, 7])";
        let spoken = without_keys(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {key}")));
        assert!(!format!("{spoken} {spoken:?}").contains("PrivateKey"), "{spoken:?}");
        assert_eq!(spoken.kind(), io::ErrorKind::InvalidData);
        let errno = without_keys(io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!(errno.raw_os_error(), Some(libc::ENODEV), "what callers tell errors apart by");
    }
}
