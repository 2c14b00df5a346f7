//! A connection to an engine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{Shutdown, SocketAddrUnix};
use tokio::time::Instant;

use super::super::EngineError;
use super::super::channel::Channel;
use super::super::process::unix_socket;
use super::super::protocol::{self, GREETING_BYTES, OLDEST, Reply, Request, VERSION};
use super::held::Held;

/// An engine that does not answer for as long has hung.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first version with [`Request::Spread`] and [`Request::SetPeersOf`].
const SPREADS: u16 = 3;

pub(super) struct Line {
    channel: Channel,
    pub(super) pid: u32,
    /// What both speak.
    pub(super) version: u16,
    /// When that engine had started.
    pub(super) since: Instant,
}

impl Line {
    /// Connects, and agrees on the protocol.
    pub(super) fn open(socket: &Path) -> Result<Line, EngineError> {
        let open = || -> io::Result<(Channel, [u8; GREETING_BYTES])> {
            let connection = unix_socket()?;
            rustix::net::connect(&connection, &SocketAddrUnix::new(socket)?)?;
            let channel = Channel::new(connection, PATIENCE)?;
            let mut greeting = [0; GREETING_BYTES];
            channel.receive_bytes(&mut greeting)?;
            Ok((channel, greeting))
        };
        let (channel, greeting) = open().map_err(EngineError::Unreachable)?;
        let (theirs, pid) = protocol::greeted(&greeting).unwrap_or_default();
        if !(OLDEST..=VERSION).contains(&theirs) {
            return Err(EngineError::Version { pid, theirs });
        }
        channel
            .send_bytes(&protocol::greeting(theirs, std::process::id()))
            .map_err(EngineError::Unreachable)?;
        Ok(Line { channel, pid, version: theirs, since: Instant::now() })
    }

    /// Asks for what has one answer.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, EngineError> {
        self.channel.send(request, descriptors).map_err(EngineError::Unreachable)?;
        match self.channel.receive().map_err(EngineError::Unreachable)? {
            (Reply::Refused(refusal), _) => Err(refusal.into()),
            (reply, _) => Ok(reply),
        }
    }

    /// Everything that this engine holds.
    pub(super) fn inventory(&mut self) -> Result<Held, EngineError> {
        let mut held = Held::default();
        self.channel.send(&Request::Inventory, &[]).map_err(EngineError::Unreachable)?;
        loop {
            let (reply, descriptors) = self.channel.receive().map_err(EngineError::Unreachable)?;
            match reply {
                Reply::All { uptime } => {
                    self.since = Instant::now() - uptime;
                    return Ok(held);
                }
                reply => held.take(reply, descriptors)?,
            }
        }
    }

    /// Gives this engine everything, and takes from it what it should not have. What an engine that was here all the
    /// time has may be old: it gets it anew.
    pub(super) fn bring_up_to_date(&mut self, held: &Held) -> Result<(), EngineError> {
        let there = self.inventory()?;
        for id in there.interfaces.into_keys() {
            self.ask(&Request::Remove { id }, &[])?;
        }
        if let Some(request) = self.spread(held) {
            self.ask(&request, &[])?;
        }
        for (id, served) in &held.interfaces {
            self.ask(&served.request(id), &served.descriptors())?;
        }
        for name in there.kept.into_keys().filter(|name| !held.kept.contains_key(name)) {
            self.ask(&Request::Release { name }, &[])?;
        }
        for (name, descriptors) in &held.kept {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            self.ask(&Request::Keep { name: name.clone() }, &descriptors)?;
        }
        Ok(())
    }

    /// The request that says over how many threads interfaces shall be spread, to an engine that understands it.
    pub(super) fn spread(&self, held: &Held) -> Option<Request> {
        held.threads.filter(|_| self.version >= SPREADS).map(|threads| Request::Spread { threads })
    }

    /// Whether this engine understands [`Request::SetPeersOf`].
    pub(super) fn takes_several(&self) -> bool {
        self.version >= SPREADS
    }

    /// The connection, to wait for its end.
    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        self.channel.as_fd().try_clone_to_owned()
    }

    /// Ends the connection, whoever holds copies of it.
    pub(super) fn hang_up(&self) {
        // It may have ended already.
        let _ = rustix::net::shutdown(&self.channel, Shutdown::Both);
    }
}
