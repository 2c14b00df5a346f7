//! The agent's end of the engine's process.
//!
//! It holds a copy of every descriptor and the whole configuration, so that an engine that ends is followed by another
//! one with the same: carrier, addresses, routes and queues stay. After a start of the agent it is the other way
//! round: the engine that is there gives everything back.

mod held;
mod line;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::time::Instant;

use self::held::{Held, Served};
use self::line::Line;
use super::protocol::{Reply, Request};
use super::{EngineError, Interface, InterfaceState, PeerConfig, uapi};
use crate::state::Key;

/// How long a call waits for another engine to take over. The agent's loop may be the one that waits.
const NEXT: Duration = Duration::from_secs(1);
/// How long a started engine may take until it answers.
const START: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const TRY: Duration = Duration::from_millis(2);
/// An engine that was started and does not answer after this has ended again: another one is started.
const RELAUNCH: Duration = Duration::from_secs(2);
/// Between attempts to have an engine again, the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Starts an engine that will listen on the socket, and does not wait for it.
pub type Launch = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// An engine in another process, whichever it is at the moment. Calls block, for about 0.1 ms.
pub struct Remote {
    shared: Arc<Shared>,
    stop: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

/// What there is to know of the engine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The process that answers now, if one does, and for how long it has been running.
    pub process: Option<(u32, Duration)>,
    /// Engines that had to be replaced since this agent started.
    pub replaced: u64,
    /// WireGuard interfaces it serves.
    pub interfaces: usize,
    /// Containers whose DNS sockets it holds.
    pub kept: usize,
    /// Threads that it spreads new interfaces over.
    pub threads: u16,
}

struct Shared {
    socket: PathBuf,
    uapi: Option<PathBuf>,
    launch: Launch,
    state: Mutex<State>,
    /// Another engine has everything now.
    taken_over: Condvar,
}

#[derive(Default)]
struct State {
    line: Option<Line>,
    held: Held,
    replaced: u64,
}

impl Remote {
    /// Finds the engine that listens on `socket` and takes back what it holds; without one `launch` starts it. In the
    /// directory `uapi` each interface has a socket for `wg show`.
    ///
    /// # Errors
    /// [`EngineError::Version`], [`EngineError::Unreachable`].
    pub fn open(socket: PathBuf, uapi: Option<PathBuf>, launch: Launch) -> Result<Remote, EngineError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let shared = Shared { socket, uapi, launch, state: Mutex::default(), taken_over: Condvar::new() };
        let mut line = shared.connect(&stop)?.ok_or(EngineError::Ended)?;
        let held = line.inventory()?;
        *shared.lock() = State { line: Some(line), held, replaced: 0 };
        let (shared, until) = (Arc::new(shared), stop.try_clone()?);
        let watched = shared.clone();
        let watcher = std::thread::Builder::new()
            .name("engine-watch".to_owned())
            .spawn(move || watched.watch(&until))?;
        Ok(Remote { shared, stop, watcher: Some(watcher) })
    }

    /// Has an interface served under the name `id`, without peers.
    ///
    /// # Errors
    /// As [`super::Engine::add`], and [`EngineError::Unreachable`], as all the others.
    pub fn add(&self, id: &str, interface: Interface) -> Result<(), EngineError> {
        let served = Served { interface, uapi: self.listen(id), peers: BTreeMap::new() };
        let mut state = self.shared.done(&served.request(id), &served.descriptors())?;
        state.held.interfaces.insert(id.to_owned(), served);
        Ok(())
    }

    /// Has the interface forgotten, here and there. Closing the last descriptor of a TUN holds RTNL for about 16 ms:
    /// it is done on the calling thread.
    pub fn remove(&self, id: &str) {
        // First here: an engine that takes over meanwhile is not told of it.
        let last = self.shared.lock().held.interfaces.remove(id);
        drop(self.shared.done(&Request::Remove { id: id.to_owned() }, &[]));
        drop(last);
        if let Some(directory) = &self.shared.uapi {
            uapi::remove(&uapi::path(directory, id));
        }
    }

    /// The interface works without it.
    fn listen(&self, id: &str) -> Option<OwnedFd> {
        let path = uapi::path(self.shared.uapi.as_ref()?, id);
        let listening = uapi::listen(&path);
        listening.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no `wg show`")).ok()
    }

    /// Forgets the interfaces that `ours` does not name: those of members whose journal entries are gone, or whose
    /// WireGuard is the kernel's now.
    pub fn retain(&self, ours: &BTreeSet<&str>) {
        let ids: Vec<String> = self.shared.lock().held.interfaces.keys().cloned().collect();
        for id in ids.iter().filter(|id| !ours.contains(id.as_str())) {
            tracing::info!(member = id, "an interface of the engine's that nobody wants any more: removed");
            self.remove(id);
        }
    }

    /// Adds peers, or changes their endpoints and addresses and keeps their sessions.
    pub fn set_peers(&self, id: &str, peers: Vec<PeerConfig>) -> Result<(), EngineError> {
        let request = Request::SetPeers { id: id.to_owned(), peers };
        let mut state = self.shared.done(&request, &[])?;
        if let (Request::SetPeers { peers, .. }, Some(served)) = (request, state.held.interfaces.get_mut(id))
        {
            served.set(peers);
        }
        Ok(())
    }

    /// As [`Remote::set_peers`], for each of several interfaces, in one exchange where the engine can.
    pub fn set_peers_of(&self, interfaces: Vec<(String, Vec<PeerConfig>)>) -> Vec<Result<(), EngineError>> {
        match self.shared.set_at_once(interfaces) {
            Ok(set) => (0..set).map(|_| Ok(())).collect(),
            // Each for itself, to tell which it is that cannot be set.
            Err(interfaces) => interfaces.into_iter().map(|(id, peers)| self.set_peers(&id, peers)).collect(),
        }
    }

    /// Removes peers and their sessions.
    pub fn remove_peers(&self, id: &str, peers: Vec<Key>) -> Result<(), EngineError> {
        let request = Request::RemovePeers { id: id.to_owned(), peers };
        let mut state = self.shared.done(&request, &[])?;
        if let (Request::RemovePeers { peers, .. }, Some(served)) =
            (request, state.held.interfaces.get_mut(id))
        {
            served.peers.retain(|key, _| !peers.contains(key));
        }
        Ok(())
    }

    /// Changes how long a padded packet may be.
    pub fn set_mtu(&self, id: &str, mtu: u32) -> Result<(), EngineError> {
        let mut state = self.shared.done(&Request::SetMtu { id: id.to_owned(), mtu }, &[])?;
        if let Some(served) = state.held.interfaces.get_mut(id) {
            served.interface.mtu = mtu;
        }
        Ok(())
    }

    /// Changes the interface's own addresses, from which ICMP errors come.
    pub fn set_address(
        &self,
        id: &str,
        address: Ipv4Addr,
        address6: Option<Ipv6Addr>,
    ) -> Result<(), EngineError> {
        let mut state =
            self.shared.done(&Request::SetAddress { id: id.to_owned(), address, address6 }, &[])?;
        if let Some(served) = state.held.interfaces.get_mut(id) {
            (served.interface.address, served.interface.address6) = (address, address6);
        }
        Ok(())
    }

    /// The interface with its peers as the engine has it; None without such an interface.
    pub fn observe(&self, id: &str) -> Result<Option<InterfaceState>, EngineError> {
        match self.shared.ask(&Request::Observe { id: id.to_owned() }, &[])? {
            (_, Reply::State(state)) => Ok(state),
            _ => Err(unexpected()),
        }
    }

    /// The interface as it was added, with what has changed since.
    pub fn interface(&self, id: &str) -> Option<Interface> {
        self.shared.lock().held.interfaces.get(id).map(|served| served.interface.clone())
    }

    /// Has copies of descriptors held that are none of the engine's business.
    pub fn keep(&self, name: &str, descriptors: Vec<OwnedFd>) -> Result<(), EngineError> {
        let copies: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut state = self.shared.done(&Request::Keep { name: name.to_owned() }, &copies)?;
        state.held.kept.insert(name.to_owned(), descriptors);
        Ok(())
    }

    /// What is held under the name, in copies.
    pub fn kept(&self, name: &str) -> io::Result<Option<Vec<OwnedFd>>> {
        let state = self.shared.lock();
        let copies = |descriptors: &Vec<OwnedFd>| descriptors.iter().map(OwnedFd::try_clone).collect();
        state.held.kept.get(name).map(copies).transpose()
    }

    /// The names under which something is held.
    pub fn kept_names(&self) -> Vec<String> {
        self.shared.lock().held.kept.keys().cloned().collect()
    }

    /// Closes what is held under the name, here and there.
    pub fn release(&self, name: &str) {
        drop(self.shared.lock().held.kept.remove(name));
        drop(self.shared.done(&Request::Release { name: name.to_owned() }, &[]));
    }

    /// Has interfaces that are added from now on spread over so many threads, here and in engines to come; those that
    /// are there stay where they are.
    pub fn spread(&self, threads: u16) {
        let mut state = self.shared.attended();
        state.held.threads = Some(threads);
        let request = state.line.as_ref().and_then(|line| line.spread(&state.held));
        if let Some(Err(error)) = request.map(|request| state.ask(&request, &[])) {
            // Its successor is told with everything else.
            tracing::info!(%error, "the engine was not told of its threads");
        }
    }

    /// What there is to know of the engine's process.
    pub fn facts(&self) -> Facts {
        let state = self.shared.lock();
        Facts {
            process: state.line.as_ref().map(|line| (line.pid, line.since.elapsed())),
            replaced: state.replaced,
            interfaces: state.held.interfaces.len(),
            kept: state.held.kept.len(),
            threads: state.threads(),
        }
    }

    /// Ends the engine and everything it holds; this end, too, lets go.
    pub fn end(mut self) -> Result<(), EngineError> {
        self.stop_watching();
        let mut state = self.shared.done(&Request::End, &[])?;
        state.held = Held::default();
        Ok(())
    }

    fn stop_watching(&mut self) {
        // An eventfd takes its first number.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop_watching();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once there is an engine; after a moment without it.
    fn attended(&self) -> MutexGuard<'_, State> {
        let waited = self.taken_over.wait_timeout_while(self.lock(), NEXT, |state| state.line.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Asks the engine, and if that has just ended, the next one. Whatever else follows from the answer happens
    /// before anybody asks again.
    fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(MutexGuard<'_, State>, Reply), EngineError> {
        let mut state = self.attended();
        let reply = match state.ask(request, descriptors) {
            Err(EngineError::Unreachable(error)) if !timed_out(&error) => {
                drop(state);
                state = self.attended();
                state.ask(request, descriptors)
            }
            reply => reply,
        };
        reply.map(|reply| (state, reply))
    }

    /// Asks for what is answered by [`Reply::Done`].
    fn done(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<MutexGuard<'_, State>, EngineError> {
        match self.ask(request, descriptors)? {
            (state, Reply::Done) => Ok(state),
            _ => Err(unexpected()),
        }
    }

    /// Sets the peers of so many interfaces; gives them back when that was not done for all.
    fn set_at_once(
        &self,
        interfaces: Vec<(String, Vec<PeerConfig>)>,
    ) -> Result<usize, Vec<(String, Vec<PeerConfig>)>> {
        let mut state = self.attended();
        if interfaces.len() < 2 || !state.line.as_ref().is_some_and(Line::takes_several) {
            return Err(interfaces);
        }
        let request = Request::SetPeersOf { interfaces };
        let done = matches!(state.ask(&request, &[]), Ok(Reply::Done));
        let Request::SetPeersOf { interfaces } = request else { unreachable!("as it was made") };
        if !done {
            return Err(interfaces);
        }
        let set = interfaces.len();
        for (id, peers) in interfaces {
            if let Some(served) = state.held.interfaces.get_mut(&id) {
                served.set(peers);
            }
        }
        Ok(set)
    }

    /// Connects to the engine that listens, or starts one; None when `stop` came first.
    fn connect(&self, stop: &OwnedFd) -> Result<Option<Line>, EngineError> {
        let start = Instant::now();
        let mut launched: Option<Instant> = None;
        loop {
            match Line::open(&self.socket) {
                Err(EngineError::Unreachable(error)) if start.elapsed() >= START => {
                    return Err(EngineError::Unreachable(error));
                }
                Err(EngineError::Unreachable(_)) => {}
                result => return result.map(Some),
            }
            if launched.is_none_or(|at| at.elapsed() >= RELAUNCH) {
                (self.launch)().map_err(EngineError::Unreachable)?;
                launched = Some(Instant::now());
            }
            if wait(stop, None, Some(TRY)) {
                return Ok(None);
            }
        }
    }

    /// Sees the end of engines until `stop`, and has others take their places.
    fn watch(&self, stop: &OwnedFd) {
        let mut backoff = BACKOFF.0;
        loop {
            let socket = self.lock().line.as_ref().map(Line::socket).transpose();
            let replaced = match socket {
                Ok(Some(socket)) => {
                    if wait(stop, Some(socket.as_fd()), None) {
                        return;
                    }
                    self.lock().hang_up();
                    backoff = BACKOFF.0;
                    self.replace(stop)
                }
                Ok(None) => self.replace(stop),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = replaced {
                tracing::error!(%error, "no WireGuard engine");
                if wait(stop, None, Some(backoff)) {
                    return;
                }
                backoff = (backoff * 2).min(BACKOFF.1);
            } else if wait(stop, None, Some(Duration::ZERO)) {
                return;
            }
        }
    }

    /// Has another engine take the place of one that ended.
    fn replace(&self, stop: &OwnedFd) -> Result<(), EngineError> {
        let Some(mut line) = self.connect(stop)? else { return Ok(()) };
        let mut state = self.lock();
        line.bring_up_to_date(&state.held)?;
        let (pid, interfaces) = (line.pid, state.held.interfaces.len());
        tracing::warn!(pid, interfaces, "the WireGuard engine had ended: another one took over");
        state.replaced += 1;
        state.line = Some(line);
        drop(state);
        self.taken_over.notify_all();
        Ok(())
    }
}

/// Waits until the other end of `socket` is closed or `time` is over; true when it is time to stop.
fn wait(stop: &OwnedFd, socket: Option<BorrowedFd<'_>>, time: Option<Duration>) -> bool {
    let time =
        time.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
    let mut watched = vec![PollFd::new(stop, PollFlags::IN)];
    watched.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)));
    while poll(&mut watched, time.as_ref()) == Err(Errno::INTR) {}
    watched[0].revents().contains(PollFlags::IN)
}

impl State {
    fn ask(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, EngineError> {
        let Some(line) = &mut self.line else {
            return Err(EngineError::Unreachable(io::ErrorKind::TimedOut.into()));
        };
        let reply = line.ask(request, descriptors);
        if matches!(reply, Err(EngineError::Unreachable(_))) {
            // What is answered late would be taken for the answer to something else.
            self.hang_up();
        }
        reply
    }

    /// What the engine was told, or one.
    fn threads(&self) -> u16 {
        let told = self.line.as_ref().and_then(|line| line.spread(&self.held));
        told.and(self.held.threads).unwrap_or(1)
    }

    /// Ends the connection, which the watcher sees.
    fn hang_up(&mut self) {
        if let Some(line) = self.line.take() {
            line.hang_up();
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn unexpected() -> EngineError {
    EngineError::Unreachable(io::Error::new(io::ErrorKind::InvalidData, "it answered something else"))
}
