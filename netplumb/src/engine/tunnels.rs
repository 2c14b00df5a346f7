//! One interface as a state machine: packets and messages in, packets and messages out, no IO.
//!
//! Who is who: a message finds its peer by the receiver index it carries (upper 24 bits: the peer) or,
//! an initiation, by the static key inside; a packet by its destination, exactly. Outer addresses
//! decide nothing: endpoints never roam, since no NAT lies between members and the record says where
//! each one is; whatever verifies is accepted, wherever it came from, and answered to the endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{HandshakeInit, Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use tokio::time::Instant;

use super::packet;
use super::peer::{Identity, Peer, Received};
use super::segments::Segments;
use super::{Counters, Interface, InterfaceState, PeerConfig, PeerState};
use crate::state::{Key, PrivateKey};

/// Room for the largest packet and WireGuard's 32 bytes around it: boringtun panics on less.
pub(super) const BUFFER: usize = 65_536 + 64;

/// Handshake messages per second that are served without a cookie. Each costs about 0.3 ms; 50 members
/// that join at once send 200 (an initiation and its repetitions), a whole network of 1,022 is spread
/// over a few seconds by cookies.
const HANDSHAKES_PER_SECOND: u64 = 512;

/// The whitepaper's Reject-After-Messages, 2^64 - 2^13 - 1: boringtun does not check it, and overflows.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// ICMP errors per second, and at once.
const ERRORS_PER_SECOND: u32 = 100;

const INDEX_BITS: u32 = 24;

/// Where a turn's output is made and goes: nothing is copied on its way.
pub(super) trait Outlet {
    /// Room for the next message, at least [`BUFFER`] bytes.
    fn message(&mut self) -> &mut [u8];
    /// The first `length` bytes of that are a WireGuard message to a peer.
    fn network(&mut self, to: SocketAddrV4, length: usize);
    /// Room for the next packet, at least [`BUFFER`] bytes.
    fn packet(&mut self) -> &mut [u8];
    /// The first `length` bytes of that are an IP packet to this host.
    fn host(&mut self, length: usize);
}

/// What every step needs: the time and the way out.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) out: &'a mut dyn Outlet,
}

/// One interface's peers and their sessions.
pub(super) struct Tunnels {
    identity: Identity,
    mtu: usize,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    /// A peer's slot, xor `salt`, is its index on the wire: after a restart an old index means nobody.
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
    salt: u32,
    /// Slots in the order of their peers' keys: those stand in the peers alone.
    by_key: Vec<u32>,
    addresses: BTreeMap<IpAddr, u32>,
    endpoints: BTreeMap<SocketAddrV4, u32>,
    /// Slots of peers with a Tunn: only these have timers.
    live: BTreeSet<u32>,
    retries: BTreeSet<(Instant, u32)>,
    limiter: RateLimiter,
    errors: ErrorBudget,
    counters: Counters,
}

impl Tunnels {
    pub(super) fn new(
        private_key: &PrivateKey,
        mtu: u32,
        address: Ipv4Addr,
        address6: Option<Ipv6Addr>,
        now: Instant,
    ) -> Tunnels {
        let private_key = StaticSecret::from(private_key.0);
        let public_key = PublicKey::from(&private_key);
        let uncounted = Arc::new(RateLimiter::new(&public_key, u64::MAX));
        Tunnels {
            limiter: RateLimiter::new(&public_key, HANDSHAKES_PER_SECOND),
            identity: Identity { private_key, public_key, uncounted },
            mtu: mtu as usize,
            address,
            address6,
            peers: Vec::new(),
            free: Vec::new(),
            salt: rand::random::<u32>() >> (32 - INDEX_BITS),
            by_key: Vec::new(),
            addresses: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            live: BTreeSet::new(),
            retries: BTreeSet::new(),
            errors: ErrorBudget { left: ERRORS_PER_SECOND, since: now },
            counters: Counters::default(),
        }
    }

    pub(super) fn set_address(&mut self, address: Ipv4Addr, address6: Option<Ipv6Addr>) {
        (self.address, self.address6) = (address, address6);
    }

    pub(super) fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu as usize;
    }

    /// The interface as it would be added anew, with these descriptors.
    pub(super) fn interface(&self, tun: Arc<OwnedFd>, udp: Arc<OwnedFd>) -> Interface {
        Interface {
            tun,
            udp,
            private_key: PrivateKey(self.identity.private_key.to_bytes()),
            mtu: self.mtu as u32,
            address: self.address,
            address6: self.address6,
        }
    }

    /// Adds the peer or changes it in place; an address that another peer had moves to this one, as in
    /// the kernel. False when there are 2^24 peers already.
    pub(super) fn set_peer(&mut self, config: &PeerConfig, turn: &mut Turn<'_>) -> bool {
        let PeerConfig { key, endpoint, ref allowed, greet } = *config;
        let Some(slot) = self.slot_of(key, endpoint) else { return false };
        self.forget_rows(slot);
        self.endpoints.insert(endpoint, slot);
        for address in allowed {
            if let Some(loser) = self.addresses.insert(*address, slot)
                && let Some(peer) = self.peers[loser as usize].as_mut()
            {
                peer.allowed.remove(address);
            }
        }
        self.with(slot, turn, |peer, identity, index, turn| {
            peer.endpoint = endpoint;
            peer.allowed = allowed.clone();
            if greet {
                peer.greet(identity, index, turn);
            }
        });
        true
    }

    pub(super) fn remove_peer(&mut self, key: &Key) {
        if let Ok(place) = self.place_of(key) {
            let slot = self.by_key.remove(place);
            self.forget_rows(slot);
            self.live.remove(&slot);
            if let Some(due) = self.peers[slot as usize].take().and_then(|peer| peer.retry_due()) {
                self.retries.remove(&(due, slot));
            }
            self.free.push(slot);
        }
    }

    pub(super) fn state(&self, now: Instant) -> InterfaceState {
        let peers = self.peers.iter().flatten().map(|peer| {
            let state = PeerState {
                endpoint: peer.endpoint,
                allowed: peer.allowed.clone(),
                last_handshake: peer.last_handshake.map(|at| now.duration_since(at)),
                received: peer.received,
                sent: peer.sent,
            };
            (peer.key, state)
        });
        InterfaceState {
            public_key: Key(self.identity.public_key.to_bytes()),
            peers: peers.collect(),
            counters: self.counters,
        }
    }

    /// Takes what was read of this host at once: packets to the same address.
    pub(super) fn outbound(&mut self, packets: &mut Segments<'_>, turn: &mut Turn<'_>) {
        let Some((_, to)) = packet::addresses(packets.whole()) else {
            self.malformed();
            return;
        };
        let peer = self.addresses.get(&to).copied();
        let Some(slot) = peer.filter(|slot| self.peer(*slot).is_some_and(Peer::reachable)) else {
            while let Some(packet) = packets.next_packet() {
                self.refuse(packet, turn);
            }
            return;
        };
        let mtu = self.mtu;
        self.with(slot, turn, |peer, identity, index, turn| {
            while let Some(packet) = packets.next_padded(mtu) {
                peer.encapsulate(packet, identity, index, turn);
            }
        });
    }

    /// Counts what could not even be read as packets of this host.
    pub(super) fn malformed(&mut self) {
        self.counters.malformed += 1;
    }

    /// Takes a message of the network.
    pub(super) fn inbound(&mut self, from: SocketAddrV4, message: &[u8], turn: &mut Turn<'_>) {
        match Tunn::parse_incoming_packet(message) {
            Err(_) => self.counters.malformed += 1,
            Ok(Packet::HandshakeInit(initiation)) => {
                if self.admits(from, message, turn) {
                    self.initiation(&initiation, message, turn);
                }
            }
            Ok(Packet::HandshakeResponse(response)) => {
                if self.admits(from, message, turn) {
                    self.answered(response.receiver_idx, turn, |peer, turn| peer.response(message, turn));
                }
            }
            Ok(Packet::PacketCookieReply(cookie)) => {
                self.answered(cookie.receiver_idx, turn, |peer, turn| peer.cookie(message, turn));
            }
            Ok(Packet::PacketData(data)) => self.data(data.receiver_idx, from, message, turn),
        }
    }

    /// When [`Tunnels::retry`] has something to do.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        self.retries.first().map(|(due, _)| *due)
    }

    /// Repeats the first initiations that are due.
    pub(super) fn retry(&mut self, turn: &mut Turn<'_>) {
        while let Some(&(due, slot)) = self.retries.first()
            && due <= turn.now
        {
            self.with(slot, turn, |peer, _, _, turn| peer.retry(turn));
        }
    }

    /// Whether [`Tunnels::tick`] has something to do.
    pub(super) fn live(&self) -> bool {
        !self.live.is_empty()
    }

    /// Runs the timers of live peers; to be called four times a second.
    pub(super) fn tick(&mut self, turn: &mut Turn<'_>) {
        for slot in self.live.clone() {
            self.with(slot, turn, |peer, _, _, turn| peer.tick(turn));
        }
    }

    /// Whether a handshake message is genuine enough, and few enough came, to spend X25519 on it. Beyond
    /// the limit it must carry the cookie that proves its address (whitepaper, 5.4.7), and only a
    /// configured endpoint is offered one: strangers get no answer.
    fn admits(&mut self, from: SocketAddrV4, message: &[u8], turn: &mut Turn<'_>) -> bool {
        self.limiter.reset_count();
        match self.limiter.verify_packet(Some(IpAddr::V4(*from.ip())), message, turn.out.message()) {
            Ok(_) => true,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                self.counters.limited += 1;
                if self.endpoints.contains_key(&from) {
                    let length = cookie.len();
                    turn.out.network(from, length);
                }
                false
            }
            Err(_) => {
                self.counters.malformed += 1;
                false
            }
        }
    }

    fn initiation(&mut self, initiation: &HandshakeInit<'_>, message: &[u8], turn: &mut Turn<'_>) {
        let Identity { private_key, public_key, .. } = &self.identity;
        let sender = parse_handshake_anon(private_key, public_key, initiation)
            .ok()
            .and_then(|half| self.place_of(&Key(half.peer_static_public)).ok())
            .map(|place| self.by_key[place]);
        let Some(slot) = sender else {
            self.counters.strangers += 1;
            return;
        };
        let taken = self
            .with(slot, turn, |peer, identity, index, turn| peer.initiation(message, identity, index, turn));
        self.count(taken);
    }

    /// A message that answers one of ours, for the peer with this index.
    fn answered(
        &mut self,
        index: u32,
        turn: &mut Turn<'_>,
        take: impl FnOnce(&mut Peer, &mut Turn<'_>) -> Result<(), WireGuardError>,
    ) {
        let slot = self.slot_by_index(index);
        let taken = self.with(slot, turn, |peer, _, _, turn| take(peer, turn));
        self.count(taken);
    }

    fn data(&mut self, index: u32, from: SocketAddrV4, message: &[u8], turn: &mut Turn<'_>) {
        if counter(message) >= REJECT_AFTER_MESSAGES {
            self.counters.malformed += 1;
            return;
        }
        let slot = self.slot_by_index(index);
        let received = self.with(slot, turn, |peer, _, _, turn| {
            let received = peer.data(message, turn)?;
            peer.flush(turn);
            Ok(received)
        });
        match received {
            Some(Ok(Received::Nothing | Received::Packet)) => {}
            Some(Ok(Received::Forged)) => self.counters.forged += 1,
            Some(Err(WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter)) => {
                self.counters.replayed += 1;
            }
            Some(Err(WireGuardError::InvalidPacket)) => self.counters.malformed += 1,
            _ => self.undecipherable(from, turn),
        }
    }

    /// Nobody here has the session: after a restart of ours the peer keeps using the old one for 15 s,
    /// unless we initiate.
    fn undecipherable(&mut self, from: SocketAddrV4, turn: &mut Turn<'_>) {
        self.counters.undecipherable += 1;
        if let Some(slot) = self.endpoints.get(&from).copied() {
            self.with(slot, turn, |peer, identity, index, turn| peer.revive(identity, index, turn));
        }
    }

    fn refuse(&mut self, packet: &[u8], turn: &mut Turn<'_>) {
        self.counters.unreachable += 1;
        if let Some(error) = packet::unreachable(packet, self.address, self.address6)
            && self.errors.spend(turn.now)
        {
            turn.out.packet()[..error.len()].copy_from_slice(&error);
            turn.out.host(error.len());
        }
    }

    fn count(&mut self, taken: Option<Result<(), WireGuardError>>) {
        match taken {
            Some(Ok(())) => (),
            Some(Err(WireGuardError::WrongTai64nTimestamp)) => self.counters.replayed += 1,
            _ => self.counters.undecipherable += 1,
        }
    }

    /// Lets `act` work on a peer, then brings the timers in line with what it did.
    fn with<R>(
        &mut self,
        slot: u32,
        turn: &mut Turn<'_>,
        act: impl FnOnce(&mut Peer, &Identity, u32, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let peer = self.peers.get_mut(slot as usize)?.as_mut()?;
        let (was_live, was_due) = (peer.live(), peer.retry_due());
        let result = act(peer, &self.identity, slot ^ self.salt, turn);
        let (live, due) = (peer.live(), peer.retry_due());
        if was_due != due {
            was_due.map(|due| self.retries.remove(&(due, slot)));
            due.map(|due| self.retries.insert((due, slot)));
        }
        if was_live != live {
            if live {
                self.live.insert(slot)
            } else {
                self.live.remove(&slot)
            };
        }
        Some(result)
    }

    fn peer(&self, slot: u32) -> Option<&Peer> {
        self.peers.get(slot as usize)?.as_ref()
    }

    fn slot_by_index(&self, index: u32) -> u32 {
        (index >> (32 - INDEX_BITS)) ^ self.salt
    }

    fn slot_of(&mut self, key: Key, endpoint: SocketAddrV4) -> Option<u32> {
        let place = match self.place_of(&key) {
            Ok(place) => return Some(self.by_key[place]),
            Err(place) => place,
        };
        let slot = self.free.pop().unwrap_or(self.peers.len() as u32);
        if slot >> INDEX_BITS != 0 {
            return None;
        }
        if slot as usize == self.peers.len() {
            self.peers.push(None);
        }
        self.peers[slot as usize] = Some(Peer::new(key, endpoint));
        self.by_key.insert(place, slot);
        Some(slot)
    }

    /// Where the key's slot stands in `by_key`, or would.
    fn place_of(&self, key: &Key) -> Result<usize, usize> {
        self.by_key.binary_search_by(|slot| self.peer(*slot).map(|peer| &peer.key).cmp(&Some(key)))
    }

    /// Forgets which addresses and which endpoint lead to the peer.
    fn forget_rows(&mut self, slot: u32) {
        let Some(peer) = self.peers[slot as usize].as_ref() else { return };
        for address in &peer.allowed {
            self.addresses.remove(address);
        }
        if self.endpoints.get(&peer.endpoint) == Some(&slot) {
            self.endpoints.remove(&peer.endpoint);
        }
    }
}

/// The counter of a data message, whose length has been checked (whitepaper, 5.4.6).
fn counter(message: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[8..16]);
    u64::from_le_bytes(bytes)
}

struct ErrorBudget {
    left: u32,
    since: Instant,
}

impl ErrorBudget {
    fn spend(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = ErrorBudget { left: ERRORS_PER_SECOND, since: now };
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}
