//! An interface's UDP socket: messages of WireGuard, many by one call where the kernel can (UDP_SEGMENT and UDP_GRO,
//! udp(7)).

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::time::Instant;

use super::device::Read;

/// As much as passes in some milliseconds at full speed, in either direction.
const SOCKET_BUFFER: usize = 4 << 20;

/// Messages of a train: older kernels take no more.
const MESSAGES_MAX: usize = 64;
/// Bytes of a train: with all headers to come, VXLAN's over IPv6 as well, the kernel can still write down its length.
const BYTES_MAX: usize = 64_000;

/// For how long a socket that refused a train gets messages one by one: its path may change.
const ONE_BY_ONE: Duration = Duration::from_secs(10);

/// Opens a UDP socket on all addresses of the calling thread's network namespace, with room for bursts.
pub fn open_udp(port: u16) -> io::Result<OwnedFd> {
    let udp = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?.into();
    make_room(&udp);
    Ok(udp)
}

/// As much as asked for where we may, else as net.core.rmem_max and wmem_max allow. Never less than there was: the
/// agent may, the engine may not.
fn make_room(udp: &OwnedFd) {
    use rustix::net::sockopt as current;
    let has_room = |size: Result<usize, Errno>| size.is_ok_and(|size| size >= SOCKET_BUFFER);
    let size = SOCKET_BUFFER;
    if !has_room(current::socket_recv_buffer_size(udp))
        && setsockopt(udp, sockopt::RcvBufForce, &size).is_err()
    {
        // A socket with less room works, too.
        let _ = setsockopt(udp, sockopt::RcvBuf, &size);
    }
    if !has_room(current::socket_send_buffer_size(udp))
        && setsockopt(udp, sockopt::SndBufForce, &size).is_err()
    {
        let _ = setsockopt(udp, sockopt::SndBuf, &size);
    }
}

/// Room for what comes with datagrams: the length of each.
const ANCILLARY: usize = 64;

/// A UDP socket that the engine serves.
pub(super) struct Socket {
    pub(super) fd: Arc<OwnedFd>,
    /// The socket refuses trains.
    one_by_one_until: Cell<Option<Instant>>,
}

/// What one read of a socket gave.
pub(super) struct Datagrams {
    /// None for a sender that is not IPv4.
    pub(super) from: Option<SocketAddrV4>,
    pub(super) length: usize,
    /// Each datagram's length but the last one's.
    pub(super) each: usize,
}

impl Socket {
    /// Makes the descriptor nonblocking, as [`super::device::Tun::new`].
    pub(super) fn new(fd: Arc<OwnedFd>) -> io::Result<Socket> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        make_room(&fd);
        // Without it datagrams come one by one.
        let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        Ok(Socket { fd, one_by_one_until: Cell::new(None) })
    }

    /// Receives what one sender sent in a row.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Read<Datagrams> {
        let mut parts = [IoSliceMut::new(buffer)];
        let mut room = [0_u8; ANCILLARY];
        let (fd, flags) = (self.fd.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        match recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut room), flags) {
            Ok(message) => {
                let each = message.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|one| match one {
                        ControlMessageOwned::UdpGroSegments(each) => usize::try_from(each).ok(),
                        _ => None,
                    })
                });
                let length = message.bytes;
                let each = each.unwrap_or(length).max(1);
                Read::Got(Datagrams { from: message.address.map(SocketAddrV4::from), length, each })
            }
            Err(error) => failed(Errno::from_raw_os_error(error as i32)),
        }
    }

    /// Empties the error queue, which exists if the opener asked for it (IP_RECVERR, ip(7)) and would
    /// otherwise keep epoll reporting.
    pub(super) fn drop_errors(&self, buffer: &mut [u8]) {
        let flags = RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT;
        while rustix::net::recv(&self.fd, &mut *buffer, flags).is_ok() {}
    }

    /// Sends a train; like a link, it drops what cannot be sent now: how many messages.
    pub(super) fn send(&self, train: &Train, bytes: &[u8], now: Instant) -> u64 {
        let to = SockaddrIn::from(train.to);
        let send = |bytes: &[u8], each: &[ControlMessage<'_>]| {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], each, flags, Some(&to))
        };
        let in_trains = self.one_by_one_until.get().is_none_or(|until| until <= now);
        if train.messages > 1 && in_trains {
            let each = train.each as u16;
            match send(bytes, &[ControlMessage::UdpGsoSegments(&each)]) {
                Ok(_) => {
                    self.one_by_one_until.set(None);
                    return 0;
                }
                // No checksums by the device, or a message that is longer than the path's MTU.
                Err(nix::Error::EIO | nix::Error::EINVAL | nix::Error::EMSGSIZE) => {
                    self.one_by_one_until.set(Some(now + ONE_BY_ONE));
                }
                Err(_) => return train.messages as u64,
            }
        }
        bytes.chunks(train.each).filter(|message| send(message, &[]).is_err()).count() as u64
    }
}

fn failed<T>(error: Errno) -> Read<T> {
    match error {
        Errno::AGAIN => Read::Empty,
        // Interrupted, or what became of an earlier datagram: reading the error clears it (ip(7)).
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
        | Errno::OPNOTSUPP => Read::Passing,
        error => Read::Dead(error),
    }
}

/// Messages to one peer behind each other in a buffer, all of a length but the last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train {
    to: SocketAddrV4,
    each: usize,
    messages: usize,
    pub(super) length: usize,
}

impl Train {
    /// Of one message.
    pub(super) fn new(to: SocketAddrV4, length: usize) -> Train {
        Train { to, each: length, messages: 1, length }
    }

    /// With one message more, if it may be in this train.
    pub(super) fn with(&self, to: SocketAddrV4, length: usize) -> Option<Train> {
        let is_open = self.length == self.each * self.messages && self.messages < MESSAGES_MAX;
        let fits = self.to == to && length <= self.each && self.length + length <= BYTES_MAX;
        (is_open && fits).then(|| Train {
            messages: self.messages + 1,
            length: self.length + length,
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_ends_with_the_first_shorter_message() {
        let (to, other) =
            (SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2));
        let train = Train::new(to, 100).with(to, 100).unwrap();
        assert!(train.with(other, 100).is_none() && train.with(to, 101).is_none());
        let ended = train.with(to, 40).unwrap();
        assert_eq!((ended.length, ended.messages), (240, 3));
        assert!(ended.with(to, 40).is_none());
        let long = (1..MESSAGES_MAX).fold(train, |train, _| train.with(to, 100).unwrap_or(train));
        assert_eq!(long.messages, MESSAGES_MAX);
        let wide =
            (1..MESSAGES_MAX).fold(Train::new(to, 8922), |train, _| train.with(to, 8922).unwrap_or(train));
        assert!(wide.length <= BYTES_MAX && wide.length + 8922 > BYTES_MAX);
    }

    #[test]
    fn a_socket_that_refuses_trains_gets_messages_one_by_one() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let std::net::SocketAddr::V4(to) = receiver.local_addr().unwrap() else { panic!("IPv4") };
        let socket = Socket::new(Arc::new(open_udp(0).unwrap())).unwrap();
        // The kernel sends no trains without checksums (udp(7), SO_NO_CHECK).
        set_no_checksums(&socket, 1);
        let bytes: Vec<u8> = (0..250).map(|n| n as u8).collect();
        let train = Train::new(to, 100).with(to, 100).and_then(|train| train.with(to, 50)).unwrap();
        let now = Instant::now();
        assert_eq!(
            (socket.send(&train, &bytes, now), socket.one_by_one_until.get()),
            (0, Some(now + ONE_BY_ONE))
        );
        let mut buffer = [0; 300];
        let received: Vec<Vec<u8>> = (0..3)
            .map(|_| receiver.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap())
            .collect();
        assert_eq!(received, [&bytes[..100], &bytes[100..200], &bytes[200..]]);

        set_no_checksums(&socket, 0);
        assert_eq!(socket.send(&train, &bytes, now + ONE_BY_ONE), 0);
        assert_eq!(socket.one_by_one_until.get(), None, "it is tried again");
    }

    fn set_no_checksums(socket: &Socket, value: libc::c_int) {
        let length = size_of_val(&value) as libc::socklen_t;
        let (fd, value) = (socket.fd.as_raw_fd(), (&raw const value).cast());
        // SAFETY: `value` is an integer of the length given, and outlives the call.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, value, length) };
        assert_eq!(set, 0);
    }
}
