//! One peer: its configuration, and the session with it while there is one.

use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use tokio::time::Instant;

use super::tunnels::{Outlet, Turn};
use crate::state::Key;

/// After a first initiation without an answer the next ones follow at 0.1, 0.3 and 1 s: the other side
/// may have learned of us only just now. Then boringtun's REKEY_TIMEOUT of 5 s takes over.
const RETRY_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(700)];

/// Data that nobody here can decrypt makes us initiate at most this often.
const REVIVE_INTERVAL: Duration = Duration::from_secs(1);

const INITIATION: u8 = 1;

/// A peer is lazy: until its first packet or valid initiation it is configuration only, because a
/// [`Tunn`] takes 11 kB and two X25519 operations.
pub(super) struct Peer {
    pub(super) key: Key,
    pub(super) endpoint: SocketAddrV4,
    /// Sorted, without duplicates.
    pub(super) allowed: Box<[IpAddr]>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) last_handshake: Option<Instant>,
    tunn: Option<Box<Tunn>>,
    /// Packets wait inside the Tunn for a session.
    queued: bool,
    /// We answered an initiation; the first packet will confirm the session.
    unconfirmed: bool,
    retry: Option<Retry>,
    revived: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Retry {
    step: usize,
    due: Instant,
}

/// What an authenticated message carried.
pub(super) enum Received {
    Nothing,
    /// An inner packet of this many bytes, now at the start of the turn's buffer, and its source.
    Packet(usize, IpAddr),
}

/// What a peer's Tunn is made of, the same for all peers of an interface.
pub(super) struct Identity {
    pub(super) private_key: StaticSecret,
    pub(super) public_key: PublicKey,
    /// Verifies without counting: the interface's own limiter has counted each handshake message once.
    pub(super) uncounted: Arc<RateLimiter>,
}

impl Peer {
    pub(super) fn new(key: Key, endpoint: SocketAddrV4) -> Peer {
        Peer {
            key,
            endpoint,
            allowed: Box::default(),
            received: 0,
            sent: 0,
            last_handshake: None,
            tunn: None,
            queued: false,
            unconfirmed: false,
            retry: None,
            revived: None,
        }
    }

    pub(super) fn reachable(&self) -> bool {
        !self.endpoint.ip().is_unspecified() && self.endpoint.port() != 0
    }

    pub(super) fn live(&self) -> bool {
        self.tunn.is_some()
    }

    /// When the next repeated initiation is due.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        self.retry.map(|retry| retry.due)
    }

    fn has_session(&self) -> bool {
        self.tunn.as_ref().is_some_and(|tunn| tunn.time_since_last_handshake().is_some())
    }

    fn wake(&mut self, identity: &Identity, index: u32) {
        if self.tunn.is_none() {
            let (private, public) = (identity.private_key.clone(), PublicKey::from(self.key.0));
            let limiter = Some(identity.uncounted.clone());
            self.tunn = Some(Box::new(Tunn::new(private, public, None, None, index, limiter)));
        }
    }

    /// Sends an inner packet, or queues it behind a handshake.
    pub(super) fn encapsulate(
        &mut self,
        packet: &[u8],
        identity: &Identity,
        index: u32,
        turn: &mut Turn<'_>,
    ) {
        self.wake(identity, index);
        let Some(tunn) = &mut self.tunn else { return };
        match tunn.encapsulate(packet, turn.buffer) {
            TunnResult::WriteToNetwork(message) => {
                self.transmit(message, turn.out);
                if message[0] == INITIATION {
                    self.queued = true;
                    self.arm_retry(turn.now);
                }
            }
            _ => self.queued = true,
        }
    }

    /// Sends an initiation now, unless there is a session.
    pub(super) fn greet(&mut self, identity: &Identity, index: u32, turn: &mut Turn<'_>) {
        if self.reachable() && !self.has_session() {
            self.wake(identity, index);
            self.initiate(turn);
            self.arm_retry(turn.now);
        }
    }

    /// Initiates because the peer uses a session that we no longer have.
    pub(super) fn revive(&mut self, identity: &Identity, index: u32, turn: &mut Turn<'_>) {
        let lately = self.revived.is_some_and(|at| turn.now.duration_since(at) < REVIVE_INTERVAL);
        if self.reachable() && !lately {
            self.revived = Some(turn.now);
            self.wake(identity, index);
            self.initiate(turn);
            self.arm_retry(turn.now);
        }
    }

    /// Repeats an initiation that nobody answered.
    pub(super) fn retry(&mut self, turn: &mut Turn<'_>) {
        let Some(Retry { step, .. }) = self.retry.take() else { return };
        if !self.has_session() && self.reachable() {
            self.initiate(turn);
            self.retry =
                RETRY_AFTER.get(step + 1).map(|after| Retry { step: step + 1, due: turn.now + *after });
        }
    }

    fn arm_retry(&mut self, now: Instant) {
        if self.retry.is_none() && !self.has_session() {
            self.retry = Some(Retry { step: 0, due: now + RETRY_AFTER[0] });
        }
    }

    fn initiate(&mut self, turn: &mut Turn<'_>) {
        let Some(tunn) = &mut self.tunn else { return };
        if let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(turn.buffer, true) {
            self.transmit(message, turn.out);
        }
    }

    fn transmit(&mut self, message: &[u8], out: &mut dyn Outlet) {
        if self.reachable() {
            out.network(self.endpoint, message);
            self.sent += message.len() as u64;
        }
    }

    /// Takes an initiation, which is the only message that may wake a lazy peer. One that does not
    /// verify leaves it asleep: our public key is all that is needed to forge it up to that point.
    ///
    /// A peer that slept forgets the timestamp of its last initiation, so an old one may be replayed;
    /// it gets an answer sent to the real endpoint and no session that anybody could use.
    pub(super) fn initiation(
        &mut self,
        message: &[u8],
        identity: &Identity,
        index: u32,
        turn: &mut Turn<'_>,
    ) -> Result<(), WireGuardError> {
        let asleep = !self.live();
        self.wake(identity, index);
        match self.decapsulate(message, turn) {
            Ok(_) => {
                self.unconfirmed = true;
                Ok(())
            }
            Err(error) => {
                if asleep {
                    self.tunn = None;
                }
                Err(error)
            }
        }
    }

    /// Takes the answer to our initiation.
    pub(super) fn response(&mut self, message: &[u8], turn: &mut Turn<'_>) -> Result<(), WireGuardError> {
        self.decapsulate(message, turn)?;
        self.last_handshake = Some(turn.now);
        self.flush(turn);
        Ok(())
    }

    /// Takes a cookie: the next initiation will carry it.
    pub(super) fn cookie(&mut self, message: &[u8], turn: &mut Turn<'_>) -> Result<(), WireGuardError> {
        self.decapsulate(message, turn).map(drop)
    }

    /// Takes a data message.
    pub(super) fn data(&mut self, message: &[u8], turn: &mut Turn<'_>) -> Result<Received, WireGuardError> {
        let received = self.decapsulate(message, turn)?;
        if std::mem::take(&mut self.unconfirmed) {
            self.last_handshake = Some(turn.now);
        }
        Ok(received)
    }

    /// Sends what waited for the session that now exists. boringtun does this only after a response,
    /// so a responder's own queue would wait for its next packet.
    pub(super) fn flush(&mut self, turn: &mut Turn<'_>) {
        if !(self.queued || self.retry.is_some()) || !self.has_session() {
            return;
        }
        self.retry = None;
        self.queued = false;
        while let Some(tunn) = &mut self.tunn
            && let TunnResult::WriteToNetwork(message) = tunn.decapsulate(None, &[], turn.buffer)
        {
            self.transmit(message, turn.out);
        }
    }

    fn decapsulate(&mut self, message: &[u8], turn: &mut Turn<'_>) -> Result<Received, WireGuardError> {
        let Some(tunn) = &mut self.tunn else { return Err(WireGuardError::NoCurrentSession) };
        let received = match tunn.decapsulate(None, message, turn.buffer) {
            TunnResult::Err(error) => return Err(error),
            TunnResult::WriteToNetwork(answer) => {
                self.transmit(answer, turn.out);
                Received::Nothing
            }
            TunnResult::WriteToTunnelV4(packet, source) => Received::Packet(packet.len(), source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => Received::Packet(packet.len(), source.into()),
            TunnResult::Done => Received::Nothing,
        };
        self.received += message.len() as u64;
        Ok(received)
    }

    /// Runs boringtun's timers; a peer whose keys have all expired falls asleep again.
    pub(super) fn tick(&mut self, turn: &mut Turn<'_>) {
        let Some(tunn) = &mut self.tunn else { return };
        match tunn.update_timers(turn.buffer) {
            TunnResult::WriteToNetwork(message) => self.transmit(message, turn.out),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.tunn = None;
                self.retry = None;
                self.queued = false;
                self.unconfirmed = false;
            }
            _ => (),
        }
    }
}
