//! The engine's process: threads for the packets, and this one for the agent. A new agent is served while the old
//! one's connection is still open.
//!
//! It stores nothing and decides nothing. What it holds it gives to the next agent that asks; what nobody can ask for
//! any more it lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::time::Instant;

use super::channel::Channel;
use super::protocol::{self, Config, GREETING_BYTES, Reply, Request, VERSION};
use super::{Engine, EngineError, Interface, PeerConfig, uapi};

/// For how long descriptors are kept for an agent that has gone. A DNS socket pins its container's namespace, and no
/// stub resolver waits longer for an answer.
const KEPT: Duration = Duration::from_secs(60);
/// For how long an engine that holds nothing waits for its first agent.
const FIRST_AGENT: Duration = Duration::from_secs(60);
/// How often an engine without agent looks whether it is still of use.
const ROUND: Duration = Duration::from_secs(1);
/// An agent that is silent for as long in the middle of a frame has hung.
const PATIENCE: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 8;
/// How long an engine that was killed may take to be gone: its socket is closed before its lock.
const SUCCESSION: Duration = Duration::from_secs(1);
/// How often that is looked at.
const TRY: Duration = Duration::from_millis(1);

/// An engine that can be reached, but does not serve yet: between the two it drops its privileges.
pub struct Process {
    listener: OwnedFd,
    /// The socket's file, to know when it has been removed: without access to the file system.
    place: OwnedFd,
    /// Held as long as the engine runs.
    _lock: File,
}

impl Process {
    /// Listens on the Unix socket at `path`, for the owner of the file alone.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another engine runs there, and whatever the file system refuses.
    pub fn bind(path: &Path) -> io::Result<Process> {
        let lock = lock(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = unix_socket()?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        rustix::net::listen(&listener, BACKLOG)?;
        Process::at(path, listener, lock)
    }

    /// Serves on a socket that listens at `path` already: a service manager's.
    ///
    /// # Errors
    /// As [`Process::bind`].
    pub fn adopt(path: &Path, listener: OwnedFd) -> io::Result<Process> {
        let lock = lock(path)?;
        Process::at(path, listener, lock)
    }

    fn at(path: &Path, listener: OwnedFd, lock: File) -> io::Result<Process> {
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Process { listener, place, _lock: lock })
    }

    /// Serves until it is told to end, or is of no use to anybody: it holds nothing, or its socket was removed and
    /// no agent can find it.
    ///
    /// # Errors
    /// The data thread could not be started, or the kernel refuses to wait.
    pub fn serve(self) -> Result<(), EngineError> {
        let mut holdings = Holdings::new(Engine::start()?);
        let mut agents: Vec<Agent> = Vec::new();
        let (mut alone_since, mut attended) = (Instant::now(), false);
        loop {
            let ready = self.wait(&agents, &holdings)?;
            holdings.show(|turn| ready.contains(&(agents.len() + 1 + turn)));
            let had_agents = !agents.is_empty();
            if ready.contains(&agents.len()) {
                let accepted = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC);
                agents.extend(accepted.map_err(io::Error::from).and_then(Agent::greet).ok());
            }
            let mut turn = 0..;
            let mut end = false;
            agents.retain_mut(|agent| {
                let is_ready = turn.next().is_some_and(|turn| ready.contains(&turn));
                let heard = if is_ready { agent.hear(&mut holdings) } else { Ok(Heard::Done) };
                end |= matches!(heard, Ok(Heard::End));
                heard.inspect_err(Agent::left).is_ok()
            });
            if end {
                return Ok(());
            }
            if !agents.is_empty() {
                attended = true;
                continue;
            }
            if had_agents {
                alone_since = Instant::now();
            }
            if !self.is_of_use(&mut holdings, alone_since.elapsed(), attended)? {
                return Ok(());
            }
        }
    }

    /// Which agents have something to say; their number stands for somebody new, those behind it for interfaces that
    /// somebody wants to be shown.
    fn wait(&self, agents: &[Agent], holdings: &Holdings) -> io::Result<BTreeSet<usize>> {
        let round = Timespec { tv_sec: ROUND.as_secs() as i64, tv_nsec: 0 };
        let shown = holdings.uapi.values().map(OwnedFd::as_fd);
        let watched =
            agents.iter().map(|agent| agent.channel.as_fd()).chain([self.listener.as_fd()]).chain(shown);
        let mut watched: Vec<_> = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut watched, agents.is_empty().then_some(&round)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = watched.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(turn, _)| turn).collect())
    }

    /// Whether an engine that has been `alone` for that long shall go on.
    fn is_of_use(&self, holdings: &mut Holdings, alone: Duration, attended: bool) -> io::Result<bool> {
        if alone >= KEPT && !holdings.kept.is_empty() {
            tracing::warn!("no agent came back in {} s: its DNS sockets are closed", KEPT.as_secs());
            holdings.kept.clear();
        }
        if holdings.is_empty() && (attended || alone >= FIRST_AGENT) {
            tracing::info!("the engine has nothing to serve and nobody to serve: it ends");
            return Ok(false);
        }
        let found = rustix::fs::fstat(&self.place)?.st_nlink > 0;
        if !found {
            tracing::warn!("the engine's socket was removed, no agent can find it: it ends");
        }
        Ok(found)
    }
}

/// Waits until no other engine runs there, and keeps others out.
fn lock(path: &Path) -> io::Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(path.with_extension("lock"))?;
    let start = Instant::now();
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if start.elapsed() >= SUCCESSION {
            let text = format!("an engine runs at {} already", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::thread::park_timeout(TRY);
    }
    Ok(lock)
}

/// A stream socket that is not inherited.
pub(super) fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// An agent that is connected.
struct Agent {
    channel: Channel,
    greeted: bool,
}

/// What came of an agent's request.
enum Heard {
    Done,
    /// Everything shall end.
    End,
}

impl Agent {
    fn greet(connection: OwnedFd) -> io::Result<Agent> {
        let channel = Channel::new(connection, PATIENCE)?;
        channel.send_bytes(&protocol::greeting(VERSION, std::process::id()))?;
        Ok(Agent { channel, greeted: false })
    }

    /// Hears one request and answers it. An error ends the connection.
    fn hear(&mut self, holdings: &mut Holdings) -> io::Result<Heard> {
        if !self.greeted {
            let mut greeting = [0; GREETING_BYTES];
            self.channel.receive_bytes(&mut greeting)?;
            self.greeted = protocol::greeted(&greeting).is_some_and(|(version, _)| version == VERSION);
            let other = || io::Error::new(io::ErrorKind::InvalidData, "it speaks another protocol");
            return if self.greeted { Ok(Heard::Done) } else { Err(other()) };
        }
        match self.channel.receive()? {
            (Request::Inventory, _) => holdings.hand_back(&self.channel)?,
            (Request::End, _) => {
                self.channel.send(&Reply::Done, &[])?;
                return Ok(Heard::End);
            }
            (request, descriptors) => {
                let reply = holdings.obey(request, descriptors);
                self.channel.send(&reply.unwrap_or_else(|error| Reply::Refused(error.into())), &[])?;
            }
        }
        Ok(Heard::Done)
    }

    fn left(error: &io::Error) {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                tracing::info!("an agent has gone; its containers are served on");
            }
            _ => tracing::warn!(%error, "an agent was not understood"),
        }
    }
}

/// Everything this process holds.
struct Holdings {
    engine: Engine,
    /// Where each interface may be looked at.
    uapi: BTreeMap<String, OwnedFd>,
    kept: BTreeMap<String, Vec<OwnedFd>>,
    started: Instant,
}

impl Holdings {
    fn new(engine: Engine) -> Holdings {
        Holdings { engine, uapi: BTreeMap::new(), kept: BTreeMap::new(), started: Instant::now() }
    }

    /// Shows those interfaces that were asked for, by their turn.
    fn show(&self, is_asked: impl Fn(usize) -> bool) {
        for (id, listener) in
            self.uapi.iter().enumerate().filter(|(turn, _)| is_asked(*turn)).map(|(_, shown)| shown)
        {
            let look = || Some((self.engine.interface(id)?, self.engine.observe(id)?));
            if let Err(error) = uapi::serve(listener, look) {
                tracing::debug!(id, %error, "somebody asked for an interface and left");
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.engine.ids().next().is_none()
    }

    fn obey(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply, EngineError> {
        let engine = &mut self.engine;
        match request {
            Request::Add { id, config, peers } => self.add(id, &config, peers, descriptors)?,
            Request::Remove { id } => {
                drop(self.uapi.remove(&id));
                engine.remove(&id);
            }
            Request::SetMtu { id, mtu } => engine.set_mtu(&id, mtu),
            Request::SetAddress { id, address, address6 } => engine.set_address(&id, address, address6),
            Request::SetPeers { id, peers } => engine.set_peers(&id, peers)?,
            Request::SetPeersOf { interfaces } => engine.set_peers_of(interfaces)?,
            Request::RemovePeers { id, peers } => engine.remove_peers(&id, peers),
            Request::Observe { id } => return Ok(Reply::State(engine.observe(&id))),
            Request::Keep { name } => drop(self.kept.insert(name, descriptors)),
            Request::Release { name } => drop(self.kept.remove(&name)),
            Request::Spread { threads } => {
                if let Err(error) = engine.spread(threads.into()) {
                    tracing::warn!(threads, %error, "the engine goes on with the threads that it has");
                }
            }
            Request::Inventory | Request::End => unreachable!("answered where they arrive"),
        }
        Ok(Reply::Done)
    }

    fn add(
        &mut self,
        id: String,
        config: &Config,
        peers: Vec<PeerConfig>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), EngineError> {
        let mut descriptors = descriptors.into_iter();
        let (Some(tun), Some(udp)) = (descriptors.next(), descriptors.next()) else {
            return Err(EngineError::Io(Errno::BADF.into()));
        };
        let Config { mtu, address, address6, .. } = *config;
        let (tun, udp, private_key) = (Arc::new(tun), Arc::new(udp), config.private_key());
        self.engine.add(&id, Interface { tun, udp, private_key, mtu, address, address6 }, peers)?;
        self.uapi.extend(descriptors.next().map(|listener| (id, listener)));
        Ok(())
    }

    /// Gives everything back, in copies.
    fn hand_back(&self, channel: &Channel) -> io::Result<()> {
        for id in self.engine.ids() {
            let (Some(interface), Some(state)) = (self.engine.interface(id), self.engine.observe(id)) else {
                continue;
            };
            let Interface { tun, udp, private_key, mtu, address, address6 } = interface;
            let peers = state.peers.into_iter().map(|(key, peer)| PeerConfig {
                key,
                endpoint: peer.endpoint,
                allowed: peer.allowed,
                greet: false,
            });
            let config = Config::new(&private_key, mtu, address, address6);
            let shown = self.uapi.get(id).map(OwnedFd::as_fd);
            let descriptors: Vec<_> = [tun.as_fd(), udp.as_fd()].into_iter().chain(shown).collect();
            let (id, peers) = (id.to_owned(), peers.collect());
            channel.send(&Reply::Interface { id, config, peers }, &descriptors)?;
        }
        for (name, descriptors) in &self.kept {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|d| d.as_fd()).collect();
            channel.send(&Reply::Kept { name: name.clone() }, &descriptors)?;
        }
        channel.send(&Reply::All { uptime: self.started.elapsed() }, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_agent_comes_back_for_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::bind(&dir.path().join("engine.sock")).unwrap();
        let descriptor = || vec![OwnedFd::from(tempfile::tempfile().unwrap())];
        let kept = BTreeMap::from([("dns-7".to_owned(), descriptor())]);
        let mut holdings = Holdings { kept, ..Holdings::new(Engine::start().unwrap()) };
        for (alone, of_use) in [(Duration::ZERO, true), (KEPT - ROUND, true), (KEPT, false)] {
            assert_eq!(process.is_of_use(&mut holdings, alone, true).unwrap(), of_use, "after {alone:?}");
        }
        assert!(holdings.kept.is_empty());
        assert!(
            process.is_of_use(&mut holdings, Duration::ZERO, false).unwrap(),
            "it waits for its first agent"
        );
    }
}
