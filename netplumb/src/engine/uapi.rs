//! What `wg show` asks a userspace WireGuard (wireguard.com/xplatform): one request, one answer. Read-only: whatever
//! else is asked for would change the interface behind the reconciler's back.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::SocketAddrUnix;

use super::channel::Channel;
use super::process::unix_socket;
use super::{Interface, InterfaceState};

/// Where `wg` looks.
pub const DIRECTORY: &str = "/run/wireguard";
/// Whoever takes longer for a request or an answer has to ask again: others wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);
/// A request is an operation and an empty line.
const REQUEST_BYTES_MAX: usize = 64;
const BACKLOG: i32 = 4;

/// The socket of the interface `id` in `directory`: no other interface of the machine has the name, while many are
/// called wg0.
pub(super) fn path(directory: &Path, id: &str) -> PathBuf {
    let short = id.get(..12).unwrap_or(id);
    directory.join(format!("wr{short}.sock"))
}

/// Listens at `path`, for root alone, in place of whatever an earlier agent left there.
pub(super) fn listen(path: &Path) -> io::Result<OwnedFd> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    remove(path);
    let listener = unix_socket()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Removes the socket's file; one that is not there is as good.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Answers whoever is first in the listener's queue.
pub(super) fn serve(
    listener: impl AsFd,
    look: impl FnOnce() -> Option<(Interface, InterfaceState)>,
) -> io::Result<()> {
    let asking = rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)?;
    let channel = Channel::new(asking, PATIENCE)?;
    let mut request = Vec::new();
    while !request.ends_with(b"\n\n") && request.len() < REQUEST_BYTES_MAX {
        let mut byte = [0];
        channel.receive_bytes(&mut byte)?;
        request.push(byte[0]);
    }
    let answer = match request.as_slice() {
        b"get=1\n\n" => look().map_or_else(|| refused(libc::ENODEV), |(is, state)| text(&is, &state)),
        _ => refused(libc::EPERM),
    };
    channel.send_bytes(answer.as_bytes())
}

/// Errnos are negative in this protocol.
fn refused(errno: i32) -> String {
    format!("errno={}\n\n", -errno)
}

/// The interface as text. Its private key is in it, from which `wg` derives the public one.
fn text(interface: &Interface, state: &InterfaceState) -> String {
    let port = rustix::net::getsockname(&*interface.udp).ok();
    let port = port.and_then(|address| std::net::SocketAddr::try_from(address).ok()).map_or(0, |a| a.port());
    let mut text = format!("private_key={}\nlisten_port={port}\n", hex(&interface.private_key.0));
    for (key, peer) in &state.peers {
        let handshake = peer.last_handshake.and_then(|age| SystemTime::now().checked_sub(age));
        let since = handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "public_key={}\nprotocol_version=1\nendpoint={}\nlast_handshake_time_sec={}\n\
             last_handshake_time_nsec={}\ntx_bytes={}\nrx_bytes={}\npersistent_keepalive_interval=0\n",
            hex(&key.0),
            peer.endpoint,
            since.as_secs(),
            since.subsec_nanos(),
            peer.sent,
            peer.received,
        );
        for address in &peer.allowed {
            let _ = writeln!(text, "allowed_ip={address}/{}", if address.is_ipv4() { 32 } else { 128 });
        }
    }
    text + &refused(0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
