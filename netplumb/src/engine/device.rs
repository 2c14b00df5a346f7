//! The two descriptors of an interface: TUN and UDP. One packet per call; offloads will change this
//! file and the buffers of the event loop only.

use std::ffi::{c_char, c_short};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// About 450 full packets as the kernel accounts for them.
const SOCKET_BUFFER: usize = 1 << 20;

/// Opens a new TUN device `name` (at most 15 bytes) in the calling thread's network namespace, without
/// packet information, nonblocking and close-on-exec; Documentation/networking/tuntap.rst.
///
/// Open it in the binding namespace and move it: a TUN pins the namespace it was opened in.
pub fn open_tun(name: &str) -> io::Result<OwnedFd> {
    let mut request = libc::ifreq {
        ifr_name: interface_name(name)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as c_short,
        },
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tun) }
}

/// `_IO('T', 227)` of linux/if_tun.h (Linux 5.2).
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// The network namespace that the device of `tun` stands in now.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, EBADFD when the device went with its namespace.
pub fn netns_of(tun: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and gives a new descriptor, which nobody else owns.
    unsafe {
        let netns = libc::ioctl(tun.as_raw_fd(), TUNGETDEVNETNS as _);
        if netns < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(netns)) }
    }
}

fn interface_name(name: &str) -> io::Result<[c_char; libc::IFNAMSIZ]> {
    let mut bytes: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= bytes.len() || name.bytes().any(|b| b == 0) {
        let message = format!("{name:?} is no interface name: use 1 to 15 bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(bytes)
}

/// What a read had to offer.
pub(super) enum Read<T> {
    Got(T),
    /// Nothing more for now.
    Empty,
    /// A passing error; there may be more.
    Passing,
    /// The descriptor will never work again.
    Dead(Errno),
}

/// Makes both descriptors nonblocking, whoever opened them: a blocking one would stop all interfaces.
/// The socket gets room for a burst, as far as net.core.rmem_max allows.
pub(super) fn prepare(tun: &OwnedFd, udp: &OwnedFd) -> io::Result<()> {
    for fd in [tun, udp] {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    }
    Ok(rustix::net::sockopt::set_socket_recv_buffer_size(udp, SOCKET_BUFFER)?)
}

/// Reads one packet of this host. Dead with EBADFD is a device whose namespace died.
pub(super) fn read_packet(tun: &OwnedFd, buffer: &mut [u8]) -> Read<usize> {
    match rustix::io::read(tun, buffer) {
        Ok(length) => Read::Got(length),
        Err(Errno::AGAIN) => Read::Empty,
        Err(Errno::INTR) => Read::Passing,
        Err(error) => Read::Dead(error),
    }
}

/// Writes one packet to this host; like a link, it drops what cannot be taken now.
pub(super) fn write_packet(tun: &OwnedFd, packet: &[u8]) -> bool {
    rustix::io::write(tun, packet).is_ok()
}

/// Receives one datagram and its sender; None for a sender that is not IPv4.
pub(super) fn receive(udp: &OwnedFd, buffer: &mut [u8]) -> Read<(usize, Option<SocketAddrV4>)> {
    match rustix::net::recvfrom(udp, buffer, RecvFlags::DONTWAIT) {
        Ok((_, length, from)) => Read::Got((length, from.and_then(|from| from.try_into().ok()))),
        Err(Errno::AGAIN) => Read::Empty,
        // Interrupted, or what became of an earlier datagram: reading the error clears it (ip(7)).
        Err(
            Errno::INTR
            | Errno::CONNREFUSED
            | Errno::HOSTUNREACH
            | Errno::HOSTDOWN
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::MSGSIZE
            | Errno::ACCESS
            | Errno::PERM
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP,
        ) => Read::Passing,
        Err(error) => Read::Dead(error),
    }
}

/// Empties the error queue, which exists if the opener asked for it (IP_RECVERR, ip(7)) and would
/// otherwise keep epoll reporting.
pub(super) fn drop_errors(udp: &OwnedFd, buffer: &mut [u8]) {
    while rustix::net::recv(udp, &mut *buffer, RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT).is_ok() {}
}

/// Sends one datagram; like a link, it drops what cannot be sent now.
pub(super) fn send(udp: &OwnedFd, to: SocketAddrV4, message: &[u8]) -> bool {
    rustix::net::sendto(udp, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &to).is_ok()
}
