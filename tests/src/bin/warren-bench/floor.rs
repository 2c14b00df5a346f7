//! The floor: what an attach asks of the kernel, asked by a bare program.
//!
//! No agent, no journal, no plan, nothing is looked at first; blocking netlink, messages to one
//! socket in one write where their order allows it, and one thread for each namespace entered. Two
//! calls are the product's own: the nft transaction (which reads the table before it writes) and
//! the opening of a TUN.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use netplumb::engine::{Framing, open_tun};
use netplumb::netlink::nft::{self, Rules};
use rustix::mount::mount_bind;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tests::Netns;
use tests::wait::timed;

/// Interface index of `lo`, which is the first link of every namespace.
const LO: u32 = 1;
/// Interface index asked for `eth0`.
const ETH0: u32 = 2;
/// As the product has it on an underlay of 1500 bytes.
const FABRIC_MTU: u32 = 1450;
/// As the product has it on an underlay of 1500 bytes.
const MTU: u32 = 1390;
const SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 22);
const ULA: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0), 64);
/// What the product sets in a binding namespace before a link is there, below `/proc/sys/net`.
const SYSCTLS: [(&str, &str); 10] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/promote_secondaries", "1"),
    ("ipv4/conf/default/promote_secondaries", "1"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

/// A network on one host, with as many members as were attached.
pub struct Floor {
    dir: PathBuf,
    fabric: Route,
    bridge: u32,
    members: Vec<Member>,
}

/// What one attach took.
pub struct Took {
    /// Everything of the member itself.
    pub own: Duration,
    /// The new member's row in the binding namespaces of the members before it.
    pub others: Duration,
}

struct Member {
    address: Ipv4Addr,
    mac: [u8; 6],
    binding: Route,
    /// Held as the agent holds them: closing one takes the link along.
    _open: (OwnedFd, UdpSocket),
}

impl Floor {
    /// A bridge in a namespace of its own; mounts go into `dir`.
    pub fn new(dir: &Path) -> io::Result<Floor> {
        let fabric = Netns::make(&dir.join("floor"));
        fabric.run("ip link add br0 mtu 1450 type bridge mcast_snooping 0");
        fabric.run("ip link set br0 up");
        let (fabric, bridge) = fabric.try_enter(|| io::Result::Ok((Route::here()?, index("br0")?)))??;
        Ok(Floor { dir: dir.to_owned(), fabric, bridge, members: Vec::new() })
    }

    /// Attaches the container of which `path` is the namespace, `lo` down and without links.
    pub fn attach(&mut self, path: &Path) -> io::Result<Took> {
        let number = self.members.len() as u8 + 1;
        let address = Ipv4Addr::new(10, 240, 0, number);
        let mac = [2, 0, 0, 0, 1, number];
        let (member, own) = timed(|| self.attach_own(number, address, mac, path));
        let member = member?;
        let (told, others) = timed(|| {
            let row = || (neighbour(address, mac), NLM_F_CREATE | NLM_F_REPLACE);
            self.members.iter_mut().try_for_each(|member| member.binding.send(vec![row()]))
        });
        told?;
        self.members.push(member);
        Ok(Took { own, others })
    }

    fn attach_own(&mut self, number: u8, address: Ipv4Addr, mac: [u8; 6], path: &Path) -> io::Result<Member> {
        let container = File::open(path)?;
        let mut member = on_thread(|| self.bind(number, address, mac))?;
        on_thread(|| {
            move_into_link_name_space(rustix::fd::AsFd::as_fd(&container), Some(LinkNameSpaceType::Network))?;
            inside(&mut member.binding, &container, number, address)
        })?;
        Ok(member)
    }

    /// The binding namespace and what is in it; on a thread that ends.
    fn bind(&mut self, number: u8, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<Member> {
        let path = self.dir.join(format!("floor-{number}"));
        File::create(&path)?;
        // SAFETY: NEWNET unshares no memory and no descriptors, and the thread runs nothing else.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        mount_bind("/proc/thread-self/ns/net", &path)?;
        SYSCTLS.iter().try_for_each(|(name, value)| sysctl(name, value))?;
        let binding = File::open(&path)?;
        let port = 100 + u32::from(number);
        self.fabric.send(vec![(veth(port, rustix::fd::AsFd::as_fd(&binding), mac), CREATE)])?;
        let row = (local_row(port, mac), NLM_F_CREATE | NLM_F_REPLACE);
        let [enslave, flags, up] = ports(port, self.bridge);
        self.fabric.send(vec![enslave, flags, up, row])?;
        let mut route = Route::here()?;
        let neighbours = self.members.iter().map(|other| neighbour(other.address, other.mac));
        let ethernet = [
            (link(LO, vec![], true), 0),
            (new_address(ETH0, IpNet::new_assert(address.into(), SUBNET.prefix_len())), CREATE),
            (link(ETH0, vec![], true), 0),
        ];
        let rows = neighbours.map(|row| (row, NLM_F_CREATE | NLM_F_REPLACE));
        route.send(ethernet.into_iter().chain(rows).collect())?;
        let tun = open_tun(&tun_name(number), Framing::Large)?;
        let udp = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 51820))?;
        let found = index(&tun_name(number))?;
        route.tun = found;
        Ok(Member { address, mac, binding: route, _open: (tun, udp) })
    }
}

/// The container's side, in the product's order; on a thread in its namespace that ends.
fn inside(binding: &mut Route, container: &File, number: u8, address: Ipv4Addr) -> io::Result<()> {
    let address6 = Ipv6Addr::from(u128::from(ULA.network()) | u128::from(u32::from(address)));
    let mut route = Route::here()?;
    route.send(vec![
        (link(LO, vec![], true), 0),
        (unreachable(SUBNET.into()), CREATE),
        (unreachable(ULA.into()), CREATE),
    ])?;
    let rules = Rules {
        ifname: "wg0".to_owned(),
        address,
        subnet: SUBNET,
        address6: Some(address6),
        ula: Some(ULA),
        listener: SocketAddrV4::new(Ipv4Addr::new(127, 240, 0, 53), 61053),
    };
    nft::install(&format!("floor{number}"), &rules).map_err(io::Error::other)?;
    let moved = vec![
        LinkAttribute::NetNsFd(container.as_raw_fd()),
        LinkAttribute::IfName("wg0".to_owned()),
        LinkAttribute::Mtu(MTU),
    ];
    binding.send(vec![(link(binding.tun, moved, false), 0)])?;
    sysctl("ipv6/conf/wg0/addr_gen_mode", "1")?;
    sysctl("ipv6/conf/wg0/disable_ipv6", "0")?;
    let wg0 = index("wg0")?;
    route.send(vec![
        (new_address(wg0, IpNet::from(IpAddr::from(address))), CREATE),
        (new_address(wg0, IpNet::from(IpAddr::from(address6))), CREATE),
        (link(wg0, vec![], true), 0),
        (through(wg0, SUBNET.into(), address.into()), CREATE),
        (through(wg0, ULA.into(), address6.into()), CREATE),
    ])
}

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A blocking route netlink socket of the namespace it was opened in.
struct Route {
    socket: Socket,
    sequence: u32,
    /// Index of a TUN opened in this namespace; 0 before.
    tun: u32,
}

impl Route {
    fn here() -> io::Result<Route> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Route { socket, sequence: 0, tun: 0 })
    }

    /// Sends requests in one write and reads all their acknowledgements.
    fn send(&mut self, requests: Vec<(Message, u16)>) -> io::Result<()> {
        let mut missing = requests.len();
        let mut bytes = Vec::new();
        for (request, flags) in requests {
            self.sequence += 1;
            let mut message = NetlinkMessage::from(request);
            message.header.flags = flags | NLM_F_REQUEST | NLM_F_ACK;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.socket.send(&bytes, 0)?;
        while missing > 0 {
            let (answers, _) = self.socket.recv_from_full()?;
            let mut rest = answers.as_slice();
            while let Some(length) = rest.first_chunk().map(|b| u32::from_ne_bytes(*b) as usize) {
                let message = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
                if let NetlinkPayload::Error(answer) = message.payload {
                    if answer.code.is_some() {
                        return Err(answer.to_io());
                    }
                    missing -= 1;
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// In the calling thread's namespace; a file that is missing is of something this kernel lacks.
fn sysctl(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys/net").join(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

fn index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket, name)?)
}

fn tun_name(number: u8) -> String {
    format!("wrfloor{number}")
}

fn link(index: u32, attributes: Vec<LinkAttribute>, up: bool) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes = attributes;
    Message::SetLink(message)
}

/// Both ends born in one message: the port here, `eth0` in `binding`.
fn veth(port: u32, binding: BorrowedFd<'_>, mac: [u8; 6]) -> Message {
    let mut peer = LinkMessage::default();
    peer.header.index = ETH0;
    peer.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Mtu(FABRIC_MTU),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::NetNsFd(binding.as_raw_fd()),
    ];
    let kind = LinkInfo::Kind(InfoKind::Veth);
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    let mut message = LinkMessage::default();
    message.header.index = port;
    message.attributes = vec![
        LinkAttribute::IfName(format!("port{port}")),
        LinkAttribute::Mtu(FABRIC_MTU),
        LinkAttribute::LinkInfo(vec![kind, data]),
    ];
    Message::NewLink(message)
}

/// A port of the bridge: enslaved, its flags, up.
fn ports(port: u32, bridge: u32) -> [(Message, u16); 3] {
    let flags = vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
    ];
    let mut message = LinkMessage::default();
    message.header.index = port;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(flags)),
    ])];
    [
        (link(port, vec![LinkAttribute::Controller(bridge)], false), 0),
        (Message::NewLink(message), 0),
        (link(port, vec![], true), 0),
    ]
}

fn local_row(port: u32, mac: [u8; 6]) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    Message::NewNeighbour(message)
}

fn neighbour(address: Ipv4Addr, mac: [u8; 6]) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ETH0;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    Message::NewNeighbour(message)
}

fn new_address(index: u32, address: IpNet) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    Message::NewAddress(message)
}

fn unreachable(destination: IpNet) -> Message {
    let mut message = route(destination, RouteType::Unreachable);
    message.attributes.push(RouteAttribute::Priority(u32::MAX - 1));
    Message::NewRoute(message)
}

fn through(index: u32, destination: IpNet, source: IpAddr) -> Message {
    let mut message = route(destination, RouteType::Unicast);
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::PrefSource(source.into()));
    if source.is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    Message::NewRoute(message)
}

fn route(destination: IpNet, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(destination.network().into())];
    message
}

fn family(net: IpNet) -> AddressFamily {
    if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
