//! Sockets inside a container's network namespace.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::thread;

/// Queries waiting while the agent is busy or restarting; more are dropped by the kernel.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;

/// Where one container's queries arrive. As long as either socket is open, its namespace lives on.
///
/// The fields are open so that another process may hold copies and give them back: both stay bound then, and
/// queries wait instead of failing.
#[derive(Debug)]
pub struct Sockets {
    /// Datagrams.
    pub udp: UdpSocket,
    /// Streams, listening.
    pub tcp: TcpListener,
}

impl Sockets {
    /// Opens both at `listen` inside the namespace `netns` is open on. Takes about 15 µs.
    ///
    /// A thread enters, binds and ends: no other thread ever sees a foreign namespace, see setns(2).
    ///
    /// # Errors
    /// The namespace cannot be entered (EPERM without CAP_SYS_ADMIN), its loopback is down (EADDRNOTAVAIL), or
    /// something else is bound there (EADDRINUSE).
    pub fn open(netns: BorrowedFd<'_>, listen: SocketAddrV4) -> io::Result<Sockets> {
        thread::scope(|scope| {
            let opener = thread::Builder::new().name("dns-open".to_owned()).spawn_scoped(scope, || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
                bind(listen)
            })?;
            opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn bind(listen: SocketAddrV4) -> io::Result<Sockets> {
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    udp.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    udp.set_nonblocking(true)?;
    udp.bind(&listen.into())?;
    let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier agent may still be in TIME_WAIT.
    tcp.set_reuse_address(true)?;
    tcp.set_nonblocking(true)?;
    // The port that was chosen for UDP, when `listen` left the choice to the kernel.
    tcp.bind(&udp.local_addr()?)?;
    tcp.listen(BACKLOG)?;
    Ok(Sockets { udp: udp.into(), tcp: tcp.into() })
}
