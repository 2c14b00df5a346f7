//! An interface's TUN device: opened by the agent, read and written here, packets of many segments included
//! (Documentation/networking/tuntap.rst).

use std::ffi::{c_char, c_int, c_short, c_uint};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::trains::Accepts;
use super::vnet::{HEADER, Header};

/// What we can do with packets of this host: complete their checksums and cut them.
const OFFLOADS: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// The same with UDP, which Linux knows since 6.2.
const OFFLOADS_UDP: c_uint = OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// How packets are read from a TUN and written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One by one.
    Plain,
    /// Each with a header (IFF_VNET_HDR), large ones to be cut.
    Large,
}

/// Opens a new TUN device `name` (at most 15 bytes) in the calling thread's network namespace, without
/// packet information, nonblocking and close-on-exec.
///
/// Open it in the binding namespace and move it: a TUN pins the namespace it was opened in.
pub fn open_tun(name: &str, framing: Framing) -> io::Result<OwnedFd> {
    let header = if framing == Framing::Large { libc::IFF_VNET_HDR } else { 0 };
    let mut request = libc::ifreq {
        ifr_name: interface_name(name)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL | header) as c_short,
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

/// A TUN that the engine serves.
pub(super) struct Tun {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) accepts: Accepts,
}

impl Tun {
    /// Makes the descriptor nonblocking, whoever opened it: a blocking one would stop all interfaces. Which framing it
    /// was opened with is asked of the kernel; a device that is dead already will say so when it is read.
    pub(super) fn new(fd: Arc<OwnedFd>) -> io::Result<Tun> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let accepts = accept(&fd);
        Ok(Tun { fd, accepts })
    }

    /// Reads a packet of this host into `buffer` and gives what is left to do with it, None if that is nothing we know,
    /// and its length. Dead with EBADFD is a device whose namespace died.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Read<(Option<Header>, usize)> {
        let mut header = [0; HEADER];
        let skipped = usize::from(!self.accepts.trains);
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
        match rustix::io::readv(&self.fd, &mut parts[skipped..]) {
            Ok(length) if skipped == 1 => Read::Got((Some(Header::default()), length)),
            Ok(length) => Read::Got((Header::parse(header), length.saturating_sub(HEADER))),
            Err(Errno::AGAIN) => Read::Empty,
            Err(Errno::INTR) => Read::Passing,
            Err(error) => Read::Dead(error),
        }
    }

    /// Writes a packet to this host; like a link, it drops what cannot be taken now.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> bool {
        rustix::io::writev(&self.fd, parts).is_ok()
    }
}

/// Finds out how the TUN was opened, and has it do what that allows.
fn accept(tun: &OwnedFd) -> Accepts {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    let header_bytes: c_int = HEADER as c_int;
    let fd = tun.as_raw_fd();
    // SAFETY: TUNGETIFF writes one ifreq, TUNSETVNETHDRSZ reads one integer, and TUNSETOFFLOAD takes a number; both
    // values live until the calls return, and the flags are plain numbers whoever wrote them.
    unsafe {
        let is_tun = libc::ioctl(fd, libc::TUNGETIFF as _, &raw mut request) == 0;
        let has_header = is_tun && c_int::from(request.ifr_ifru.ifru_flags) & libc::IFF_VNET_HDR != 0;
        if !has_header || libc::ioctl(fd, libc::TUNSETVNETHDRSZ as _, &raw const header_bytes) != 0 {
            return Accepts::default();
        }
        let udp = libc::ioctl(fd, libc::TUNSETOFFLOAD as _, OFFLOADS_UDP) == 0;
        if !udp {
            // Refused, it sends us no packets but such that need nothing.
            libc::ioctl(fd, libc::TUNSETOFFLOAD as _, OFFLOADS);
        }
        Accepts { trains: true, udp }
    }
}
