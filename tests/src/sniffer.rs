//! Every frame that passes a namespace, and what it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::host::GOSSIP_PORT;
use crate::netns::Netns;

/// The product's VXLAN port.
const VXLAN_PORT: u16 = 4789;
/// WireGuard's port in the binding namespaces.
const WIREGUARD_PORT: u16 = 51820;
/// Lengths of the headers in front of what VXLAN carries.
const ETHERNET: usize = 14;
const UDP: usize = 8;
const VXLAN: usize = 8;

/// Listens until it is stopped.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Frame>>,
}

/// A frame from its Ethernet header on.
#[derive(Clone)]
pub struct Frame(pub Vec<u8>);

/// What a frame on the underlay is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Address resolution and neighbour discovery of the hosts themselves.
    Neighbours,
    /// A "port unreachable" for the VXLAN or the gossip port, or in VXLAN for WireGuard's: the tunnel end does not stand
    /// yet, the agent does not run, the engine is gone. What it quotes is as encrypted as the frame it answers.
    Unreachable,
    /// UDP from or to a gossip port.
    Gossip,
    /// WireGuard's message of this type, in VXLAN.
    Wireguard(u8),
    /// Anything else: a leak.
    Other(String),
}

impl Sniffer {
    /// Listens on one link of a namespace, or on all of them.
    pub fn start(netns: &Netns, link: Option<&str>) -> Sniffer {
        Sniffer::keep(netns, link, |_| true)
    }

    /// As [`Sniffer::start`], for frames that are worth keeping.
    pub fn keep(
        netns: &Netns,
        link: Option<&str>,
        wanted: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> Sniffer {
        let socket = netns.enter(|| open(link)).unwrap_or_else(|e| panic!("cannot listen to frames: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut frames = Vec::new();
            let mut buffer = vec![0; 1 << 17];
            // The last round after the stop takes what is queued.
            loop {
                let last = stopped.load(Ordering::Relaxed);
                while let Ok(length) = io::Read::read(&mut &socket, &mut buffer) {
                    frames.extend(Some(Frame(buffer[..length].to_vec())).filter(&wanted));
                }
                if last {
                    return frames;
                }
            }
        });
        Sniffer { stop, thread }
    }

    /// The frames that passed until now.
    pub fn stop(self) -> Vec<Frame> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a sniffer does not panic")
    }
}

fn open(link: Option<&str>) -> io::Result<Socket> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every))))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    // Best effort: in a user namespace the limit stands.
    let _ = socket.set_recv_buffer_size(8 << 20);
    if let Some(link) = link {
        socket.bind(&link_address(link, every)?)?;
    }
    Ok(socket)
}

/// The packet(7) address of a link of the calling thread's namespace.
pub(crate) fn link_address(link: &str, protocol: u16) -> io::Result<SockAddr> {
    let name = std::ffi::CString::new(link)?;
    // SAFETY: `name` is a string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is larger than, and aligned for, every kind of address.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    // SAFETY: the storage holds a whole sockaddr_ll.
    Ok(unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) })
}

impl Frame {
    /// Whether the bytes occur anywhere in it.
    pub fn contains(&self, pattern: &[u8]) -> bool {
        self.0.windows(pattern.len()).any(|window| window == pattern)
    }

    /// Source and destination of the IPv4 packet in it, and its protocol.
    pub fn ipv4(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr, u8)> {
        let (source, destination, protocol, _) = ipv4(&self.0)?;
        Some((source.into(), destination.into(), protocol))
    }

    /// What it is, on the underlay.
    pub fn kind(&self) -> Kind {
        kind(&self.0).unwrap_or_else(|| Kind::Other(self.to_string()))
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())?;
        self.0.iter().take(80).try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// The destination port of the datagram that an ICMP "port unreachable" quotes (RFC 792).
fn unreachable(frame: &[u8]) -> Option<u16> {
    const IPV4: usize = 20;
    const ICMP: usize = 8;
    let icmp =
        (frame.get(12..14)? == [0x08, 0x00] && *frame.get(ETHERNET + 9)? == 1).then_some(ETHERNET + IPV4)?;
    let port = icmp + ICMP + IPV4 + 2;
    (frame.get(icmp..icmp + 2)? == [3, 3])
        .then(|| Some(u16::from_be_bytes(frame.get(port..port + 2)?.try_into().ok()?)))?
}

fn kind(frame: &[u8]) -> Option<Kind> {
    const ICMPV6: u8 = 58;
    const HOP_BY_HOP: u8 = 0;
    match frame.get(12..14)? {
        // ARP; and ND and MLD, the latter behind a hop-by-hop header.
        [0x08, 0x06] => return Some(Kind::Neighbours),
        [0x86, 0xdd] => {
            let next = *frame.get(ETHERNET + 6)?;
            return matches!(next, ICMPV6 | HOP_BY_HOP).then_some(Kind::Neighbours);
        }
        _ => {}
    }
    if let Some(quoted) = unreachable(frame) {
        return [VXLAN_PORT, GOSSIP_PORT].contains(&quoted).then_some(Kind::Unreachable);
    }
    let (source, destination, payload) = udp(frame)?;
    if [source, destination].contains(&GOSSIP_PORT) {
        return Some(Kind::Gossip);
    }
    if destination != VXLAN_PORT {
        return None;
    }
    let inner = payload.get(VXLAN..)?;
    if unreachable(inner) == Some(WIREGUARD_PORT) {
        return Some(Kind::Unreachable);
    }
    let (source, destination, message) = udp(inner)?;
    match message {
        [kind @ 1..=4, 0, 0, 0, ..] if [source, destination] == [WIREGUARD_PORT; 2] => {
            Some(Kind::Wireguard(*kind))
        }
        _ => None,
    }
}

/// Ports and payload of the UDP datagram in a frame.
fn udp(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (_, _, protocol, packet) = ipv4(frame)?;
    let port = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    (protocol == 17).then_some((port(0)?, port(2)?, packet.get(UDP..)?))
}

type Ipv4<'a> = ([u8; 4], [u8; 4], u8, &'a [u8]);

/// Source, destination, protocol and payload of the IPv4 packet in a frame.
fn ipv4(frame: &[u8]) -> Option<Ipv4<'_>> {
    let packet = frame.get(ETHERNET..).filter(|_| frame[12..14] == [0x08, 0x00])?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let address = |at: usize| packet.get(at..at + 4)?.try_into().ok();
    Some((address(12)?, address(16)?, *packet.get(9)?, packet.get(header..)?))
}
