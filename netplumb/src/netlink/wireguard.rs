//! `wgN`: born in the container's namespace, its UDP socket in the binding's.
//!
//! Either kind of interface carries the member's mark ([`group`]) from birth, so that an interface
//! of the same name that is somebody else's is never touched.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use blake2::{Blake2s256, Digest};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, PeerConfigBuilder};

use crate::engine::{Engine, Interface, open_tun};
use crate::error::Error;
use crate::netlink::link::Seen;
use crate::netlink::socket::Rtnl;
use crate::netns;
use crate::observed::{Device as ObservedDevice, ObservedPeer, Peers};
use crate::plan::{Link, Site};
use crate::state::{Key, Mac, Peer, PrivateKey};

/// Seconds of a keepalive that is switched off at once: setting one makes the kernel send.
const GREETING_S: u16 = 25;

/// Who does WireGuard on this host.
pub(crate) enum Wireguard {
    /// The kernel's module.
    Kernel,
    /// The engine, and what it was given.
    Userspace { engine: Engine, interfaces: Mutex<BTreeMap<String, Given>> },
}

/// Our own descriptors of an interface the engine serves, and what it does not tell.
pub(crate) struct Given {
    tun: OwnedFd,
    udp: OwnedFd,
    private_key: PrivateKey,
    port: u16,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
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

/// Whether this kernel has WireGuard, tried in a namespace that ends at once.
pub(crate) fn kernel_has_wireguard() -> bool {
    let born = netns::scratch(|| Rtnl::here()?.create_link(kernel_link("wg0"), false));
    matches!(born, Ok(Ok(())))
}

impl Wireguard {
    /// The engine, without interfaces.
    pub(crate) fn userspace() -> io::Result<Wireguard> {
        Ok(Wireguard::Userspace { engine: Engine::start()?, interfaces: Mutex::default() })
    }

    /// Makes `wgN` with key and port, down; a second time it changes nothing.
    pub(crate) fn create(
        &self,
        member: &str,
        site: &Site,
        binding: BorrowedFd<'_>,
        link: &Link,
    ) -> Result<(), Error> {
        let container = site.netns.open()?;
        let present = netns::enter(container.as_fd(), || Rtnl::here()?.link(&site.ifname));
        let present = present.and_then(|found| found).map_err(|e| refused("look for", site, e))?;
        let ours = present.as_ref().is_some_and(|seen| seen.group == group(member));
        if present.is_some() && !ours {
            return Err(Error::NameTaken { ifname: site.ifname.clone() });
        }
        match self {
            Wireguard::Kernel => create_kernel(member, site, container.as_fd(), binding, link, ours),
            Wireguard::Userspace { engine, interfaces } => {
                if ours && engine.observe(member).is_some_and(|is| is.public_key == link.private_key.public())
                {
                    return Ok(());
                }
                self.remove(member, site)?;
                let given = create_tun(member, site, container.as_fd(), binding, link)?;
                serve(engine, member, &given, link.mtu)?;
                lock(interfaces).insert(member.to_owned(), given);
                Ok(())
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

    /// Closes what this process holds of the member's interface: it would pin the binding namespace.
    pub(crate) fn forget(&self, member: &str) {
        if let Wireguard::Userspace { engine, interfaces } = self {
            engine.remove(member);
            drop(lock(interfaces).remove(member));
        }
    }

    /// Tells the engine the new MTU: it gets the same descriptors again, which ends its sessions;
    /// the link, its addresses and routes stay. The kernel reads the link's.
    pub(crate) fn set_mtu(&self, member: &str, mtu: u32) -> Result<(), Error> {
        let Wireguard::Userspace { engine, interfaces } = self else { return Ok(()) };
        let interfaces = lock(interfaces);
        let (Some(given), Some(state)) = (interfaces.get(member), engine.observe(member)) else {
            return Err(Error::Missing { what: format!("the interface of {member}") });
        };
        engine.remove(member);
        serve(engine, member, given, mtu)?;
        for (key, peer) in state.peers {
            engine.set_peer(member, key, peer.endpoint, peer.allowed, true)?;
        }
        Ok(())
    }

    /// Tells the engine where ICMP errors come from now. The kernel asks its routes.
    pub(crate) fn set_address(&self, member: &str, address: Ipv4Addr, address6: Option<Ipv6Addr>) {
        let Wireguard::Userspace { engine, interfaces } = self else { return };
        if let Some(given) = lock(interfaces).get_mut(member) {
            (given.address, given.address6) = (address, address6);
        }
        engine.set_address(member, address, address6);
    }

    /// Adds peers or changes them.
    pub(crate) fn set_peers(
        &self,
        member: &str,
        site: &Site,
        peers: &BTreeMap<Key, Peer>,
    ) -> Result<(), Error> {
        match self {
            Wireguard::Userspace { engine, .. } => {
                for (key, peer) in peers {
                    engine.set_peer(member, *key, peer.endpoint, peer.allowed.clone(), peer.greet)?;
                }
                Ok(())
            }
            Wireguard::Kernel => {
                let greeted: Vec<_> =
                    peers.iter().filter(|(_, peer)| peer.greet).map(|(key, _)| key).collect();
                update(member, site, peers.iter().map(|(key, peer)| full(key, peer)).collect())?;
                if greeted.is_empty() {
                    return Ok(());
                }
                let quiet = |key: &&Key| builder(key).unset_persistent_keepalive();
                update(member, site, greeted.iter().map(quiet).collect())
            }
        }
    }

    /// Removes peers; absent ones are as good.
    pub(crate) fn remove_peers(&self, member: &str, site: &Site, peers: &BTreeSet<Key>) -> Result<(), Error> {
        match self {
            Wireguard::Userspace { engine, .. } => {
                peers.iter().for_each(|key| engine.remove_peer(member, key));
                Ok(())
            }
            Wireguard::Kernel => {
                update(member, site, peers.iter().map(|key| builder(key).remove()).collect())
            }
        }
    }

    /// The member's interface, of which `seen` is the link; None if it is not ours. Runs in the
    /// container's namespace; addresses are for the caller to fill in.
    pub(crate) fn observe(&self, member: &str, seen: &Seen) -> io::Result<Option<ObservedDevice>> {
        if seen.group != group(member) {
            return Ok(None);
        }
        let mut device = ObservedDevice {
            mtu: seen.mtu,
            up: seen.up,
            mac: None,
            port: 0,
            addresses: BTreeSet::new(),
            peers: Peers::default(),
        };
        match self {
            Wireguard::Kernel if seen.kind == Some(InfoKind::Wireguard) => {
                let read = read_kernel(&seen.name)?;
                device.mac = read.public_key.as_ref().map(|key| Mac::of_key(&Key(key.0)));
                device.port = read.listen_port.unwrap_or_default();
                device.peers = merge(&read).into_iter().collect();
            }
            Wireguard::Kernel => return Ok(None),
            Wireguard::Userspace { engine, interfaces } => {
                let Some(state) = engine.observe(member) else { return Ok(None) };
                device.mac = Some(Mac::of_key(&state.public_key));
                device.port = lock(interfaces).get(member).map_or(0, |given| given.port);
                device.peers = state
                    .peers
                    .into_iter()
                    .map(|(key, peer)| {
                        (key, ObservedPeer { endpoint: Some(peer.endpoint), allowed: peer.allowed })
                    })
                    .collect();
            }
        }
        Ok(Some(device))
    }

    /// What the member exchanged with each of its peers.
    pub(crate) fn traffic(&self, member: &str, site: &Site) -> Vec<Exchanged> {
        match self {
            Wireguard::Userspace { engine, .. } => {
                let state = engine.observe(member);
                let peers = state.into_iter().flat_map(|state| state.peers);
                peers
                    .map(|(peer, is)| Exchanged {
                        peer,
                        handshake: is.last_handshake,
                        received: is.received,
                        sent: is.sent,
                    })
                    .collect()
            }
            Wireguard::Kernel => {
                let read = site
                    .netns
                    .enter(|| guarded(member, &site.ifname).and_then(|()| read_kernel(&site.ifname)));
                read.ok().and_then(Result::ok).map(|device| exchanged(&device)).unwrap_or_default()
            }
        }
    }
}

fn create_kernel(
    member: &str,
    site: &Site,
    container: BorrowedFd<'_>,
    binding: BorrowedFd<'_>,
    link: &Link,
    present: bool,
) -> Result<(), Error> {
    if !present {
        let mut attributes = kernel_link(&site.ifname);
        attributes.extend([
            LinkAttribute::Mtu(link.mtu),
            LinkAttribute::Group(group(member)),
            LinkAttribute::NetNsFd(container.as_raw_fd()),
        ]);
        let born = netns::enter(binding, || Rtnl::here()?.create_link(attributes, false));
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

fn create_tun(
    member: &str,
    site: &Site,
    container: BorrowedFd<'_>,
    binding: BorrowedFd<'_>,
    link: &Link,
) -> Result<Given, Error> {
    let name = format!("wr{:08x}", group(member));
    let opened = netns::enter(binding, || -> Result<(OwnedFd, OwnedFd), Error> {
        let tun = open_tun(&name).map_err(Error::NoTun)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, link.port);
        let udp = UdpSocket::bind(any).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::PortInUse { port: link.port },
            _ => refused("open the UDP socket of", site, error),
        })?;
        udp.set_nonblocking(true).map_err(|error| refused("open the UDP socket of", site, error))?;
        Ok((tun, OwnedFd::from(udp)))
    });
    let (tun, udp) = opened.map_err(|error| refused("make", site, error))??;
    let attributes = vec![
        LinkAttribute::NetNsFd(container.as_raw_fd()),
        LinkAttribute::IfName(site.ifname.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Group(group(member)),
    ];
    let moved = netns::enter(binding, || {
        let mut route = Rtnl::here()?;
        let index = route.index(&name)?;
        route.set_link(index, attributes, false)
    });
    moved.and_then(|moved| moved).map_err(|error| match error.raw_os_error() {
        Some(libc::EEXIST) => Error::NameTaken { ifname: site.ifname.clone() },
        _ => refused("move", site, error),
    })?;
    let Link { private_key, port, address, address6, .. } = link.clone();
    Ok(Given { tun, udp, private_key, port, address, address6 })
}

fn serve(engine: &Engine, member: &str, given: &Given, mtu: u32) -> Result<(), Error> {
    let duplicate = |fd: &OwnedFd| {
        fd.try_clone()
            .map_err(|error| Error::kernel("duplicate a descriptor for the WireGuard engine", error))
    };
    let (tun, udp) = (duplicate(&given.tun)?, duplicate(&given.udp)?);
    let Given { private_key, address, address6, .. } = given;
    let (private_key, address, address6) = (private_key.clone(), *address, *address6);
    Ok(engine.add(member, Interface { tun, udp, private_key, mtu, address, address6 })?)
}

fn kernel_link(name: &str) -> Vec<LinkAttribute> {
    let kind = LinkInfo::Kind(InfoKind::Wireguard);
    vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(vec![kind])]
}

fn update(member: &str, site: &Site, peers: Vec<PeerConfigBuilder>) -> Result<(), Error> {
    apply(member, site, DeviceUpdate::new().add_peers(&peers))
}

fn apply(member: &str, site: &Site, update: DeviceUpdate) -> Result<(), Error> {
    let done = site.netns.enter(move || {
        guarded(member, &site.ifname)?;
        update.apply(&site.ifname.parse::<InterfaceName>()?, Backend::Kernel)
    })?;
    done.map_err(|error| refused("configure", site, error))
}

/// `DeviceUpdate::apply` makes an interface where there is none: never let it.
fn guarded(member: &str, ifname: &str) -> io::Result<()> {
    let link = Rtnl::here()?.link(ifname)?;
    let ours = |link: &Seen| link.group == group(member) && link.kind == Some(InfoKind::Wireguard);
    if link.as_ref().is_some_and(ours) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENODEV)) }
}

pub(crate) fn read_kernel(ifname: &str) -> io::Result<Device> {
    Device::get(&ifname.parse::<InterfaceName>()?, Backend::Kernel)
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
fn merge(device: &Device) -> BTreeMap<Key, ObservedPeer> {
    let mut peers: BTreeMap<Key, ObservedPeer> = BTreeMap::new();
    for part in &device.peers {
        let fresh = ObservedPeer { endpoint: None, allowed: BTreeSet::new() };
        let peer = peers.entry(Key(part.config.public_key.0)).or_insert(fresh);
        if let Some(SocketAddr::V4(endpoint)) = part.config.endpoint {
            peer.endpoint = Some(endpoint);
        }
        peer.allowed.extend(part.config.allowed_ips.iter().map(|allowed| -> IpAddr { allowed.address }));
    }
    peers
}

fn exchanged(device: &Device) -> Vec<Exchanged> {
    let mut peers: BTreeMap<Key, Exchanged> = BTreeMap::new();
    for part in &device.peers {
        let (key, stats) = (Key(part.config.public_key.0), &part.stats);
        let peer = peers.entry(key).or_insert(Exchanged { peer: key, handshake: None, received: 0, sent: 0 });
        let since = |time: SystemTime| SystemTime::now().duration_since(time).unwrap_or_default();
        peer.handshake = peer.handshake.or(stats.last_handshake_time.map(since));
        peer.received += stats.rx_bytes;
        peer.sent += stats.tx_bytes;
    }
    peers.into_values().collect()
}

fn refused(what: &str, site: &Site, error: io::Error) -> Error {
    Error::kernel(format!("{what} {} in {}", site.ifname, site.netns.path.display()), error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
