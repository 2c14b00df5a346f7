//! Much data over one connection, and whether it arrives as it was sent: `sha256sum` is asked at both ends.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use socket2::{SockRef, TcpKeepalive};

use crate::netns::Netns;
use crate::process::{self, Place};
use crate::wait::seconds;

/// What is written at once.
const CHUNK: usize = 1 << 16;

/// The digests of what was sent from one namespace, noise that follows from the seed, and of what arrived at `at` in
/// the other one.
///
/// # Errors
/// Not connected, or 20 s without progress.
pub fn send(
    from: &Netns,
    (to, at): (&Netns, SocketAddr),
    bytes: usize,
    seed: u64,
) -> io::Result<[String; 2]> {
    process::need(&[("sha256sum", "coreutils")]);
    let listener = to.enter(|| TcpListener::bind(at))?;
    let outgoing = from.enter(|| TcpStream::connect_timeout(&at, seconds(10)))?;
    let (incoming, _) = listener.accept()?;
    // Who is cut off in silence ends, too.
    SockRef::from(&incoming)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(seconds(10)).with_interval(seconds(5)))?;
    outgoing.set_write_timeout(Some(seconds(20)))?;
    let received = sha256sum(OwnedFd::from(incoming).into())?;
    let sent = noise(outgoing, bytes, seed)?;
    Ok([digest(sent)?, digest(received)?])
}

/// Writes noise into the connection and into the `sha256sum` that is returned.
fn noise(mut connection: TcpStream, bytes: usize, seed: u64) -> io::Result<Child> {
    let mut child = sha256sum(Stdio::piped())?;
    let mut pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (mut chance, mut chunk) = (StdRng::seed_from_u64(seed), vec![0; CHUNK]);
    for start in (0..bytes).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(bytes - start)];
        chance.fill_bytes(chunk);
        connection.write_all(chunk)?;
        pipe.write_all(chunk)?;
    }
    Ok(child)
}

fn sha256sum(input: Stdio) -> io::Result<Child> {
    let mut command: Command = process::command("sha256sum", Place::Here);
    command.stdin(input).stdout(Stdio::piped()).spawn()
}

fn digest(child: Child) -> io::Result<String> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
