//! Interfaces that talk through memory: no descriptors, no waiting, the time is a value.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use boringtun::x25519::{PublicKey, StaticSecret};
use proptest::prelude::*;
use tokio::time::Instant;

use super::packet::tests::packet4;
use super::segments::{PADDING, Segments};
use super::tunnels::{BUFFER, Outlet, Tunnels, Turn};
use super::vnet::Header;
use super::{Counters, PeerConfig};
use crate::state::{Addresses, Key, PrivateKey};

const INITIATION: u8 = 1;
const COOKIE: u8 = 3;
const DATA: u8 = 4;

/// One host: an interface, and everything that left it.
struct Host {
    private_key: PrivateKey,
    tunnels: Tunnels,
    sent: Sent,
    now: Instant,
}

struct Sent {
    room: Vec<u8>,
    network: Vec<(SocketAddrV4, Vec<u8>)>,
    host: Vec<Vec<u8>>,
}

impl Default for Sent {
    fn default() -> Sent {
        Sent { room: vec![0; BUFFER], network: Vec::new(), host: Vec::new() }
    }
}

impl Outlet for Sent {
    fn message(&mut self) -> &mut [u8] {
        &mut self.room
    }

    fn network(&mut self, to: SocketAddrV4, length: usize) {
        self.network.push((to, self.room[..length].to_vec()));
    }

    fn packet(&mut self) -> &mut [u8] {
        &mut self.room
    }

    fn host(&mut self, length: usize) {
        self.host.push(self.room[..length].to_vec());
    }
}

fn config<const N: usize>(key: Key, endpoint: SocketAddrV4, allowed: [IpAddr; N]) -> PeerConfig {
    PeerConfig { key, endpoint, allowed: allowed.into(), greet: false }
}

impl Host {
    fn new(number: u8) -> Host {
        let private_key = PrivateKey([number; 32]);
        let now = Instant::now();
        let tunnels = Tunnels::new(&private_key, 1390, address(number), None, now);
        Host { private_key, tunnels, sent: Sent::default(), now }
    }

    fn key(&self) -> Key {
        Key(PublicKey::from(&StaticSecret::from(self.private_key.0)).to_bytes())
    }

    fn act<R>(&mut self, act: impl FnOnce(&mut Tunnels, &mut Turn<'_>) -> R) -> R {
        act(&mut self.tunnels, &mut Turn { now: self.now, out: &mut self.sent })
    }

    fn knows(&mut self, other: &Host, number: u8, greet: bool) {
        let peer = PeerConfig { greet, ..config(other.key(), endpoint(number), [address(number).into()]) };
        assert!(self.act(|tunnels, turn| tunnels.set_peer(&peer, turn)));
    }

    fn sends(&mut self, packet: &[u8]) {
        let mut room = packet.to_vec();
        room.resize(packet.len() + PADDING, 0xff);
        self.act(|tunnels, turn| {
            let packets = Segments::new(&mut room, packet.len(), &Header::default());
            tunnels.outbound(&mut packets.unwrap(), turn);
        });
    }

    fn receives(&mut self, from: SocketAddrV4, message: &[u8]) {
        self.act(|tunnels, turn| tunnels.inbound(from, message, turn));
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.act(|tunnels, turn| tunnels.retry(turn));
    }

    fn messages(&mut self) -> Vec<Vec<u8>> {
        self.sent.network.drain(..).map(|(_, message)| message).collect()
    }

    /// How many messages of this type left since the last look.
    fn sent_of(&mut self, message_type: u8) -> usize {
        self.messages().iter().filter(|message| message[0] == message_type).count()
    }

    fn counters(&self) -> Counters {
        self.tunnels.state(self.now).counters
    }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 240, 0, number)
}

fn endpoint(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, number), 51820)
}

fn udp(from: u8, to: u8) -> Vec<u8> {
    packet4(address(from).octets(), address(to).octets(), 17, b"a datagram")
}

/// Two hosts that know each other.
fn pair() -> (Host, Host) {
    let (mut a, mut b) = (Host::new(1), Host::new(2));
    a.knows(&b, 2, false);
    b.knows(&a, 1, false);
    (a, b)
}

/// Carries messages between both until neither has more to say.
fn settle(a: &mut Host, b: &mut Host) {
    for _ in 0..20 {
        let (from_a, from_b) = (a.messages(), b.messages());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        from_a.iter().for_each(|message| b.receives(endpoint(1), message));
        from_b.iter().for_each(|message| a.receives(endpoint(2), message));
    }
    panic!("they never stop talking");
}

#[test]
fn the_first_packet_waits_for_the_session_and_arrives_unpadded() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    assert_eq!(b.sent.host, [udp(1, 2)]);
    b.sends(&udp(2, 1));
    let data = b.messages();
    assert_eq!((data.len(), data[0].len()), (1, 16 + 32 + 16), "30 bytes are padded to 32");
}

#[test]
fn both_may_start_at_once_and_nothing_queued_is_lost() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    b.sends(&udp(2, 1));
    settle(&mut a, &mut b);
    assert_eq!((a.sent.host, b.sent.host), (vec![udp(2, 1)], vec![udp(1, 2)]));
}

#[test]
fn an_unanswered_first_initiation_is_repeated_three_times() {
    let (mut a, _) = pair();
    a.sends(&udp(1, 2));
    assert_eq!(a.sent_of(INITIATION), 1);
    for (ms, initiations) in [(99, 0), (1, 1), (199, 0), (1, 1), (699, 0), (1, 1), (4000, 0)] {
        a.later(ms);
        assert_eq!(a.sent_of(INITIATION), initiations, "{ms} ms later");
    }
    assert_eq!(a.tunnels.retry_due(), None);
}

/// A path that was cut for a while must not wait for REKEY_TIMEOUT once it is there again.
#[test]
fn who_goes_on_sending_goes_on_initiating_once_a_second() {
    let (mut a, mut b) = pair();
    for ms in (0..60_000).step_by(50) {
        a.later(if ms == 0 { 0 } else { 50 });
        a.sends(&udp(1, 2));
        let expected = match ms {
            0 | 100 | 300 => 1,
            ms => usize::from(ms >= 1000 && ms % 1000 == 0),
        };
        assert_eq!(a.sent_of(INITIATION), expected, "after {ms} ms");
    }
    a.later(1000);
    assert_eq!(a.messages().len(), 0, "who has nothing to send is silent");
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    assert!(b.sent.host.len() > 1, "what waited arrives");
}

#[test]
fn an_answered_initiation_is_not_repeated() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    a.later(5000);
    assert_eq!(a.sent_of(INITIATION), 0);
}

#[test]
fn greeting_initiates_at_once_but_not_into_a_session() {
    let (mut a, mut b) = (Host::new(1), Host::new(2));
    b.knows(&a, 1, false);
    a.knows(&b, 2, true);
    settle(&mut a, &mut b);
    let state = a.tunnels.state(a.now);
    assert!(state.peers[&b.key()].last_handshake.is_some());
    a.knows(&b, 2, true);
    assert_eq!(a.messages(), Vec::<Vec<u8>>::new());
}

#[test]
fn an_inner_source_must_be_the_peers_own() {
    let (mut a, mut b) = pair();
    a.sends(&udp(9, 2));
    settle(&mut a, &mut b);
    assert_eq!((b.sent.host.len(), b.counters().forged), (0, 1));
}

#[test]
fn endpoints_never_roam_whoever_sends() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    let elsewhere = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 4242);
    for message in a.messages() {
        b.receives(elsewhere, &message);
    }
    assert_eq!(b.sent.network[0].0, endpoint(1), "the answer goes to the configured endpoint");
    settle(&mut a, &mut b);
    a.sends(&udp(1, 2));
    for message in a.messages() {
        b.receives(elsewhere, &message);
    }
    assert_eq!(b.sent.host.len(), 2, "what verifies is accepted");
    assert_eq!(b.tunnels.state(b.now).peers[&a.key()].endpoint, endpoint(1));
    b.sends(&udp(2, 1));
    assert_eq!(b.sent.network[0].0, endpoint(1));
}

#[test]
fn a_changed_endpoint_keeps_the_session() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    let moved = config(b.key(), endpoint(7), [address(2).into(), address(7).into()]);
    a.act(|tunnels, turn| tunnels.set_peer(&moved, turn));
    a.sends(&udp(1, 7));
    assert_eq!((a.sent.network[0].0, a.sent.network[0].1[0]), (endpoint(7), DATA));
}

#[test]
fn an_address_belongs_to_the_peer_that_got_it_last() {
    let (mut a, b) = pair();
    let other = Host::new(3);
    a.knows(&other, 2, false);
    let peers: BTreeMap<Key, Addresses> =
        a.tunnels.state(a.now).peers.into_iter().map(|(key, peer)| (key, peer.allowed)).collect();
    assert_eq!(
        peers,
        BTreeMap::from([(b.key(), Addresses::default()), (other.key(), [address(2).into()].into())])
    );
}

#[test]
fn packets_for_nobody_are_refused_but_not_without_limit() {
    let (mut a, b) = pair();
    a.sends(&udp(1, 9));
    assert_eq!((a.sent.host.len(), a.sent.host[0][20..22].to_vec()), (1, vec![3, 1]));
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let lost = PeerConfig { greet: true, ..config(b.key(), nowhere, [address(2).into()]) };
    a.act(|tunnels, turn| tunnels.set_peer(&lost, turn));
    a.sends(&udp(1, 2));
    assert_eq!((a.sent.host.len(), a.sent.network.len()), (2, 0), "a peer without endpoint");
    for _ in 0..1000 {
        a.sends(&udp(1, 9));
    }
    assert_eq!((a.sent.host.len(), a.counters().unreachable), (100, 1002));
    a.later(1000);
    a.sends(&udp(1, 9));
    assert_eq!(a.sent.host.len(), 101);
}

#[test]
fn data_of_a_lost_session_brings_one_initiation_a_second() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);

    let mut restarted = Host::new(2);
    restarted.knows(&a, 1, false);
    for _ in 0..50 {
        a.sends(&udp(1, 2));
    }
    for message in a.messages() {
        restarted.receives(endpoint(1), &message);
    }
    assert_eq!(restarted.messages().len(), 1);
    assert_eq!(restarted.counters().undecipherable, 50);

    restarted.now += Duration::from_secs(1);
    a.sends(&udp(1, 2));
    let lost = a.messages();
    restarted.receives(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 51820), &lost[0]);
    assert_eq!(restarted.messages().len(), 0, "a stranger's data is no reason");
    restarted.receives(endpoint(1), &lost[0]);
    settle(&mut a, &mut restarted);
    a.sends(&udp(1, 2));
    settle(&mut a, &mut restarted);
    assert_eq!(restarted.sent.host, [udp(1, 2)]);
}

#[test]
fn only_a_valid_initiation_wakes_a_peer() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    let genuine = a.messages().remove(0);
    let mut forged = genuine.clone();
    // The encrypted timestamp: what comes before needs no private key.
    forged[100] ^= 1;
    let with_mac = {
        use blake2::digest::Mac;
        use blake2::digest::consts::U16;
        use blake2::{Blake2s256, Blake2sMac, Digest};
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(b.key().0).finalize();
        let mut mac = <Blake2sMac<U16> as Mac>::new_from_slice(&key).unwrap();
        mac.update(&forged[..116]);
        forged[116..132].copy_from_slice(&mac.finalize().into_bytes());
        forged
    };
    b.receives(endpoint(1), &with_mac);
    assert!(!b.tunnels.live());
    assert_eq!((b.messages().len(), b.counters().undecipherable), (0, 1));
    b.receives(endpoint(1), &genuine);
    assert!(b.tunnels.live());
}

#[test]
fn replays_are_counted_and_strangers_ignored() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    let initiation = a.messages().remove(0);
    b.receives(endpoint(1), &initiation);
    b.messages();
    b.receives(endpoint(1), &initiation);
    assert_eq!((b.messages().len(), b.counters().replayed), (0, 1));

    let mut stranger = Host::new(3);
    stranger.knows(&b, 2, true);
    let initiation = stranger.messages().remove(0);
    b.receives(endpoint(3), &initiation);
    assert_eq!((b.messages().len(), b.counters().strangers), (0, 1));
}

#[test]
fn a_removed_peer_is_gone_with_its_session_and_timers() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    b.sends(&udp(2, 1));
    let data = b.messages().remove(0);
    a.tunnels.remove_peer(&b.key());
    assert!(!a.tunnels.live() && a.tunnels.retry_due().is_none());
    a.receives(endpoint(2), &data);
    assert_eq!((a.sent.host.len(), a.messages().len()), (0, 0));
    assert_eq!(a.tunnels.state(a.now).peers, BTreeMap::new());
}

#[test]
fn fifty_members_may_join_at_once_but_a_flood_meets_the_cookie() {
    let mut b = Host::new(200);
    let mut members: Vec<Host> = (1..=50).map(Host::new).collect();
    for (number, member) in (1..=50).zip(&mut members) {
        b.knows(member, number, false);
        member.knows(&b, 200, true);
        for ms in [100, 200, 700] {
            member.later(ms);
        }
        for message in member.messages() {
            b.receives(endpoint(number), &message);
        }
    }
    assert_eq!((b.sent_of(COOKIE), b.counters().limited), (0, 0), "200 initiations in one second");

    let flood = {
        let member = &mut members[0];
        member.knows(&Host::new(200), 200, false);
        member.tunnels.remove_peer(&b.key());
        member.knows(&Host::new(200), 200, true);
        member.messages().remove(0)
    };
    for _ in 0..600 {
        b.receives(endpoint(1), &flood);
        b.receives(endpoint(99), &flood);
    }
    assert!(b.counters().limited > 800);
    let cookies: Vec<SocketAddrV4> =
        b.sent.network.iter().filter(|(_, m)| m[0] == COOKIE).map(|(to, _)| *to).collect();
    assert!(!cookies.is_empty() && cookies.iter().all(|to| *to == endpoint(1)), "no cookie for strangers");
}

#[test]
fn a_counter_at_the_end_of_its_range_is_rejected() {
    let (mut a, mut b) = pair();
    a.sends(&udp(1, 2));
    settle(&mut a, &mut b);
    a.sends(&udp(1, 2));
    let mut data = a.messages().remove(0);
    data[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    b.receives(endpoint(1), &data);
    assert_eq!(b.counters().malformed, 1);
}

#[test]
fn a_thousand_peers_are_configuration_only() {
    let mut a = Host::new(1);
    for number in 0..1000_u32 {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let peer = config(Key(key), endpoint(2), [Ipv4Addr::from(0x0af0_0100 + number).into()]);
        a.act(|tunnels, turn| tunnels.set_peer(&peer, turn));
    }
    assert!(!a.tunnels.live() && a.tunnels.retry_due().is_none());
    assert!(size_of::<super::peer::Peer>() <= 120, "{}", size_of::<super::peer::Peer>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_message_and_no_packet_makes_it_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        message_type in 0..6_u8,
        length in prop_oneof![Just(148_usize), Just(92), Just(64), Just(32), 0..300_usize],
    ) {
        let (mut a, _) = pair();
        a.sends(&bytes);
        bytes.resize(length, message_type);
        if let Some(head) = bytes.get_mut(..4) {
            head.copy_from_slice(&[message_type, 0, 0, 0]);
        }
        a.receives(endpoint(2), &bytes);
    }

    #[test]
    fn a_damaged_genuine_message_never_gets_through(at in 0..200_usize, flip in 1..=255_u8) {
        let (mut a, mut b) = pair();
        a.sends(&udp(1, 2));
        settle(&mut a, &mut b);
        b.sent.host.clear();
        a.sends(&udp(1, 2));
        let mut data = a.messages().remove(0);
        let at = at % data.len();
        data[at] ^= flip;
        b.receives(endpoint(1), &data);
        prop_assert_eq!(b.sent.host.len(), 0);
    }
}
