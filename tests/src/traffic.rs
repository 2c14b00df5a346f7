//! An app's traffic: echo servers that say who they are, and their clients.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Scope};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// How often a server looks whether it should stop.
const ROUND: Duration = Duration::from_millis(50);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// An echo server, TCP and UDP on one port, both families where the namespace has them. It holds
/// its namespace until it is dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Serves in `netns`; on TCP it says `name` and a line end first, on UDP it writes them over the
    /// beginning of what it sends back.
    #[track_caller]
    pub fn serve(netns: &Netns, name: &str, port: u16) -> Echo {
        let bound = netns.enter(|| io::Result::Ok((tcp(port)?, udp(port)?)));
        let (tcp, udp) = bound.unwrap_or_else(|e| panic!("cannot serve on port {port} in {name}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, greeting) = (stop.clone(), format!("{name}\n"));
        let serve = move || std::thread::scope(|scope| serve(scope, &tcp, &udp, &greeting, &stopped));
        Echo { stop, thread: Some(std::thread::spawn(serve)) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    tcp: &TcpListener,
    udp: &UdpSocket,
    greeting: &'env str,
    stop: &'env AtomicBool,
) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(tcp, PollFlags::IN), PollFd::new(udp, PollFlags::IN)];
        let round = rustix::event::Timespec { tv_sec: 0, tv_nsec: ROUND.as_nanos() as _ };
        // Only a signal can end it early.
        let _ = poll(&mut ready, Some(&round));
        if let Ok((stream, _)) = tcp.accept() {
            scope.spawn(move || converse(stream, greeting, stop));
        }
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let over = greeting.len().min(length);
            buffer[..over].copy_from_slice(&greeting.as_bytes()[..over]);
            // A client that has gone is its own business.
            let _ = udp.send_to(&buffer[..length], from);
        }
    }
}

/// Says who serves, then echoes until either side has enough; an error ends it as well.
fn converse(mut stream: TcpStream, greeting: &str, stop: &AtomicBool) {
    let mut talk = || -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ROUND))?;
        stream.write_all(greeting.as_bytes())?;
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => stream.write_all(&buffer[..length])?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    let _ = talk();
}

/// Sends `payload` to an echo server from the calling thread's namespace and reads it back: the
/// server's name.
///
/// Errors: not connected, cut off, or another answer, each within 3 s.
pub fn ask_tcp(to: SocketAddr, payload: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => break,
            letter => name.push(letter.into()),
        }
    }
    let mut back = vec![0; payload.len()];
    stream.write_all(payload)?;
    stream.read_exact(&mut back)?;
    if back == payload { Ok(name) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Sends one datagram of `bytes` of payload that may not be fragmented, as may its echo: the
/// server's name.
///
/// Errors: no answer within 3 s, an ICMP error, or another answer.
pub fn ask_udp(to: SocketAddr, bytes: usize) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    never_fragment(&socket, to.is_ipv6())?;
    socket.connect(&to.into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    let payload: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
    socket.send(&payload)?;
    let mut back = vec![0; bytes + 1];
    let length = socket.recv(&mut back)?;
    let end = back.iter().position(|b| *b == b'\n').ok_or(io::ErrorKind::InvalidData)?;
    if length == bytes && back[end + 1..bytes] == payload[end + 1..] {
        Ok(String::from_utf8_lossy(&back[..end]).into_owned())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn tcp(port: u16) -> io::Result<TcpListener> {
    let socket = any(Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    bind(&socket, port)?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn udp(port: u16) -> io::Result<UdpSocket> {
    let socket = any(Type::DGRAM, Protocol::UDP)?;
    never_fragment(&socket, false)?;
    never_fragment(&socket, true)?;
    bind(&socket, port)?;
    Ok(socket.into())
}

/// A socket for both families.
fn any(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind(socket: &Socket, port: u16) -> io::Result<()> {
    socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into())
}

/// Sets DF, and has datagrams that are too long refused (IP_MTU_DISCOVER, ip(7)).
fn never_fragment(socket: &Socket, ipv6: bool) -> io::Result<()> {
    let (level, option, value) = match ipv6 {
        false => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        true => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an integer of the length given, and outlives the call.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
