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
use crate::state::{Addresses, Key};

/// After a first initiation without an answer the next ones follow at 0.1, 0.3 and 1 s: the other side
/// may have learned of us only just now. Then [`INITIATION_INTERVAL`] holds for who has something to send, and
/// boringtun's REKEY_TIMEOUT of 5 s for who has not.
const RETRY_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(700)];

/// What gives a reason to initiate does so at most this often: a packet without a session, since a path that was cut may
/// be there again, and data that nobody here can decrypt.
const INITIATION_INTERVAL: Duration = Duration::from_secs(1);

const INITIATION: u8 = 1;
const DATA: u8 = 4;

/// A peer is lazy: until its first packet or valid initiation it is configuration only, because a
/// [`Tunn`] takes 11 kB and two X25519 operations.
pub(super) struct Peer {
    pub(super) key: Key,
    pub(super) endpoint: SocketAddrV4,
    pub(super) allowed: Addresses,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) last_handshake: Option<Instant>,
    session: Option<Box<Session>>,
}

/// What there is of a peer that is not asleep.
struct Session {
    tunn: Tunn,
    /// Packets wait inside the Tunn for a session.
    queued: bool,
    /// We answered an initiation; the first packet will confirm the session.
    unconfirmed: bool,
    retry: Option<Retry>,
    /// When we initiated last, whatever the reason.
    initiated: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Retry {
    step: usize,
    due: Instant,
}

/// What an authenticated message carried.
pub(super) enum Received {
    Nothing,
    /// An inner packet, which went to this host.
    Packet,
    /// An inner packet whose source is not the peer's.
    Forged,
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
            allowed: Addresses::default(),
            received: 0,
            sent: 0,
            last_handshake: None,
            session: None,
        }
    }

    pub(super) fn reachable(&self) -> bool {
        is_somewhere(self.endpoint)
    }

    pub(super) fn live(&self) -> bool {
        self.session.is_some()
    }

    /// When the next repeated initiation is due.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        self.session.as_ref()?.retry.map(|retry| retry.due)
    }

    fn has_session(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_made())
    }

    fn wake(&mut self, identity: &Identity, index: u32) -> &mut Session {
        let key = &self.key;
        self.session.get_or_insert_with(|| {
            let (private, public) = (identity.private_key.clone(), PublicKey::from(key.0));
            let limiter = Some(identity.uncounted.clone());
            let tunn = Tunn::new(private, public, None, None, index, limiter);
            Box::new(Session { tunn, queued: false, unconfirmed: false, retry: None, initiated: None })
        })
    }

    /// Sends an inner packet, or queues it behind a handshake.
    pub(super) fn encapsulate(
        &mut self,
        packet: &[u8],
        identity: &Identity,
        index: u32,
        turn: &mut Turn<'_>,
    ) {
        let session = self.wake(identity, index);
        match session.tunn.encapsulate(packet, turn.out.message()) {
            TunnResult::WriteToNetwork(message) => {
                let (length, message_type) = (message.len(), message[0]);
                if message_type == INITIATION {
                    session.queued = true;
                    session.initiated = Some(turn.now);
                    session.arm_retry(turn.now);
                }
                self.transmit(length, turn.out);
            }
            _ => {
                session.queued = true;
                if session.retry.is_none() && !session.initiated_lately(turn.now) {
                    self.initiate(turn);
                }
            }
        }
    }

    /// Sends an initiation now, unless there is a session.
    pub(super) fn greet(&mut self, identity: &Identity, index: u32, turn: &mut Turn<'_>) {
        if self.reachable() && !self.has_session() {
            self.wake(identity, index).arm_retry(turn.now);
            self.initiate(turn);
        }
    }

    /// Initiates because the peer uses a session that we no longer have.
    pub(super) fn revive(&mut self, identity: &Identity, index: u32, turn: &mut Turn<'_>) {
        let lately = self.session.as_ref().is_some_and(|session| session.initiated_lately(turn.now));
        if self.reachable() && !lately {
            self.wake(identity, index).arm_retry(turn.now);
            self.initiate(turn);
        }
    }

    /// Repeats an initiation that nobody answered.
    pub(super) fn retry(&mut self, turn: &mut Turn<'_>) {
        let Some(session) = &mut self.session else { return };
        let Some(Retry { step, .. }) = session.retry.take() else { return };
        if session.is_made() || !is_somewhere(self.endpoint) {
            return;
        }
        session.retry =
            RETRY_AFTER.get(step + 1).map(|after| Retry { step: step + 1, due: turn.now + *after });
        self.initiate(turn);
    }

    fn initiate(&mut self, turn: &mut Turn<'_>) {
        let Some(session) = &mut self.session else { return };
        session.initiated = Some(turn.now);
        let made = session.tunn.format_handshake_initiation(turn.out.message(), true);
        if let TunnResult::WriteToNetwork(message) = made {
            let length = message.len();
            self.transmit(length, turn.out);
        }
    }

    /// Sends the message of this many bytes that was just made.
    fn transmit(&mut self, length: usize, out: &mut dyn Outlet) {
        if self.reachable() {
            out.network(self.endpoint, length);
            self.sent += length as u64;
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
        let taken = self.decapsulate(message, turn);
        match &mut self.session {
            Some(session) if taken.is_ok() => session.unconfirmed = true,
            session if asleep => *session = None,
            _ => {}
        }
        taken.map(drop)
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
        let unconfirmed =
            self.session.as_mut().is_some_and(|session| std::mem::take(&mut session.unconfirmed));
        if unconfirmed {
            self.last_handshake = Some(turn.now);
        }
        Ok(received)
    }

    /// Sends what waited for the session that now exists. boringtun does this only after a response,
    /// so a responder's own queue would wait for its next packet.
    pub(super) fn flush(&mut self, turn: &mut Turn<'_>) {
        let Some(session) = &mut self.session else { return };
        if !(session.queued || session.retry.is_some()) || !session.is_made() {
            return;
        }
        session.retry = None;
        session.queued = false;
        while let Some(session) = &mut self.session
            && let TunnResult::WriteToNetwork(message) =
                session.tunn.decapsulate(None, &[], turn.out.message())
        {
            let length = message.len();
            self.transmit(length, turn.out);
        }
    }

    fn decapsulate(&mut self, message: &[u8], turn: &mut Turn<'_>) -> Result<Received, WireGuardError> {
        let Some(session) = &mut self.session else { return Err(WireGuardError::NoCurrentSession) };
        let is_data = message.first() == Some(&DATA);
        let room = if is_data { turn.out.packet() } else { turn.out.message() };
        let received = match session.tunn.decapsulate(None, message, room) {
            TunnResult::Err(error) => return Err(error),
            TunnResult::WriteToNetwork(answer) => {
                let length = answer.len();
                self.transmit(length, turn.out);
                Received::Nothing
            }
            TunnResult::WriteToTunnelV4(packet, source) => {
                let length = packet.len();
                self.deliver(length, source.into(), turn.out)
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                let length = packet.len();
                self.deliver(length, source.into(), turn.out)
            }
            TunnResult::Done => Received::Nothing,
        };
        self.received += message.len() as u64;
        Ok(received)
    }

    /// Gives this host the packet that was just decrypted, if the peer may send it (whitepaper, 2).
    fn deliver(&self, length: usize, source: IpAddr, out: &mut dyn Outlet) -> Received {
        if !self.allowed.contains(&source) {
            return Received::Forged;
        }
        out.host(length);
        Received::Packet
    }

    /// Runs boringtun's timers; a peer whose keys have all expired falls asleep again.
    pub(super) fn tick(&mut self, turn: &mut Turn<'_>) {
        let Some(session) = &mut self.session else { return };
        match session.tunn.update_timers(turn.out.message()) {
            TunnResult::WriteToNetwork(message) => {
                let length = message.len();
                if message[0] == INITIATION {
                    session.initiated = Some(turn.now);
                }
                self.transmit(length, turn.out);
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => self.session = None,
            _ => (),
        }
    }
}

impl Session {
    fn is_made(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn initiated_lately(&self, now: Instant) -> bool {
        self.initiated.is_some_and(|at| now.duration_since(at) < INITIATION_INTERVAL)
    }

    fn arm_retry(&mut self, now: Instant) {
        if self.retry.is_none() && !self.is_made() {
            self.retry = Some(Retry { step: 0, due: now + RETRY_AFTER[0] });
        }
    }
}

/// Address or port zero means nowhere.
fn is_somewhere(endpoint: SocketAddrV4) -> bool {
    !endpoint.ip().is_unspecified() && endpoint.port() != 0
}
