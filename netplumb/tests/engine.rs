//! The engine between real TUN devices and real sockets. Needs root; the interoperation test also
//! `wireguard-go` and `wg` (apt-get install wireguard-go wireguard-tools).

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

#[path = "scratch/member.rs"]
mod member;
mod scratch;
#[path = "scratch/stream.rs"]
mod stream;
#[path = "scratch/veth.rs"]
mod veth;
#[path = "scratch/wait.rs"]
mod wait;

use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use member::{MTU, Member, pair, strangers};
use netplumb::engine::{Engine, EngineError, Framing, Interface, open_tun};
use scratch::Netns;
use stream::passes;
use tokio::time::Instant;
use veth::join;
use wait::eventually;

const LARGE: [Framing; 2] = [Framing::Large; 2];

/// Two members have a thread each; in `engine_bulk` they share one.
fn sharded() -> Engine {
    let mut engine = Engine::start().unwrap();
    engine.spread(2).unwrap();
    engine
}

#[test]
fn packets_of_all_sizes_pass_both_ways() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    for (from, to) in [(&a, "10.240.0.2"), (&b, "10.240.0.1"), (&a, "fd00:0:0:1::2")] {
        assert!(from.pings(to, ""), "{to}");
        assert!(from.pings(to, "-s 8000"), "{to}, in fragments");
    }
    assert!(a.pings("10.240.0.2", "-M do -s 1362"), "exactly the MTU");

    passes(&a.app, &b.app, "10.240.0.2:80", 8_000_000);
    let peer = &a.state(&engine).peers[&b.key()];
    assert!(peer.last_handshake.unwrap() < Duration::from_secs(30));
    assert!(peer.received > 8_000_000 && peer.sent > 8_000_000);
    assert_eq!(a.state(&engine).counters.forged + a.state(&engine).counters.malformed, 0);
}

#[test]
fn a_packet_for_nobody_fails_the_connection_at_once() {
    let mut engine = sharded();
    let (a, _b) = pair(&mut engine, LARGE);
    for to in ["10.240.2.2:80", "10.240.3.255:80", "10.240.0.0:80", "[fd00:0:0:1::99]:80"] {
        let start = Instant::now();
        let error = a.app.run(move || TcpStream::connect(to)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{to}: {error}");
        assert!(start.elapsed() < Duration::from_millis(500), "{to}: {:?}", start.elapsed());
    }
}

#[test]
fn a_first_initiation_that_was_lost_costs_no_five_seconds() {
    let mut engine = sharded();
    let (a, b) = strangers(&mut engine, LARGE);
    a.knows(&engine, &b, false);
    let (udp, echo) = (
        a.app.run(|| UdpSocket::bind("10.240.0.1:0").unwrap()),
        b.app.run(|| UdpSocket::bind("10.240.0.2:7").unwrap()),
    );
    let start = Instant::now();
    udp.send_to(b"hello", "10.240.0.2:7").unwrap();
    std::thread::park_timeout(Duration::from_millis(150));
    b.knows(&engine, &a, false);
    echo.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let (_, from) = echo.recv_from(&mut [0; 16]).unwrap();
    echo.send_to(b"hello", from).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    udp.recv_from(&mut [0; 16]).unwrap();
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(b.state(&engine).counters.strangers >= 1, "the first one was lost");
}

#[test]
fn a_path_that_is_back_after_seconds_is_used_within_one() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    b.bind.sh(
        "nft add table ip cut; nft add chain ip cut in '{ type filter hook input priority 0; policy drop; }'",
    );
    let udp = a.app.run(|| UdpSocket::bind("10.240.0.1:0").unwrap());
    let echo = b.app.run(|| UdpSocket::bind("10.240.0.2:7").unwrap());
    echo.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let start = Instant::now();
    let mut healed = None;
    loop {
        udp.send_to(b"hello", "10.240.0.2:7").unwrap();
        let arrived = echo.recv_from(&mut [0; 16]).is_ok();
        assert!(!arrived || healed.is_some(), "the path was cut");
        if arrived {
            break;
        }
        // Its last quick repetition was long ago, REKEY_TIMEOUT is seconds away.
        if healed.is_none() && start.elapsed() > Duration::from_millis(1800) {
            b.bind.sh("nft delete table ip cut");
            healed = Some(Instant::now());
        }
    }
    let late = healed.unwrap().elapsed();
    assert!(late < Duration::from_secs(3), "{late:?}");
}

/// Where agent and engine are both gone nobody holds the socket, and the binding namespace says so.
#[test]
fn that_nobody_listens_is_no_news_to_a_peer() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    assert!(a.pings("10.240.0.2", ""));
    engine.remove(&b.id);
    assert!(!a.app.try_sh("ping -n -c 20 -i 0.05 -W 1 10.240.0.2").0);
    let told = a.bind.sh("cat /proc/net/snmp | grep Icmp: | tail -1");
    let unreachable = told.split_whitespace().nth(4).and_then(|count| count.parse::<u64>().ok());
    assert!(unreachable.is_some_and(|count| (1..=20).contains(&count)), "{told}");
    let state = a.state(&engine);
    assert_eq!((state.counters.dropped, state.peers[&b.key()].endpoint), (0, b.endpoint()));
    b.serve(&mut engine, Framing::Large);
    b.knows(&engine, &a, false);
    assert!(a.app.try_sh("ping -n -c 3 -i 0.5 -W 2 10.240.0.2").0, "it is asked on, and answers again");
}

#[test]
fn greeting_makes_the_session_before_any_packet() {
    let mut engine = sharded();
    let (a, b) = strangers(&mut engine, LARGE);
    b.knows(&engine, &a, false);
    a.knows(&engine, &b, true);
    eventually("both sides have a session", || {
        [(&a, &b), (&b, &a)]
            .iter()
            .all(|(of, with)| of.state(&engine).peers[&with.key()].last_handshake.is_some())
    });
}

#[test]
fn a_forged_inner_source_is_dropped_and_counted() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    assert!(a.pings("10.240.0.2", ""));
    a.app.sh("ip addr add 10.240.0.77/32 dev lo");
    let socket = b.app.run(|| UdpSocket::bind("10.240.0.2:9").unwrap());
    a.app.run(|| UdpSocket::bind("10.240.0.77:0").unwrap().send_to(b"forged", "10.240.0.2:9").unwrap());
    eventually("the forgery is counted", || b.state(&engine).counters.forged == 1);
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err());
}

#[test]
fn a_replay_from_another_address_moves_no_endpoint() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    // The attacker is on the path: b's endpoint is its socket, and it passes on what it hears.
    let attacker = Netns::new();
    b.bind.sh(&format!("ip link add eth1 type veth peer name eth0 netns {}", attacker.tid()));
    b.bind.sh("ip addr add 198.51.100.1/24 dev eth1 && ip link set eth1 up");
    attacker.sh("ip addr add 198.51.100.7/24 dev eth0 && ip link set eth0 up");
    b.bind.sh("sysctl -qw net.ipv4.ip_forward=1");
    a.bind.sh("ip route add 198.51.100.0/24 via 192.0.2.2");
    let via: SocketAddrV4 = "198.51.100.7:51820".parse().unwrap();
    let wire = attacker.run(|| UdpSocket::bind("0.0.0.0:51820").unwrap());
    engine.set_peers(&a.id, vec![b.as_peer(via, true)]).unwrap();
    let mut message = [0; 2048];
    wire.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // b answers a at its configured endpoint, and the session works although a's messages come by the
    // attacker.
    eventually("a has a session", || {
        // Initiations are repeated: an answer to one that is no longer waited for would make none.
        while let Ok(length) = wire.recv(&mut message) {
            wire.send_to(&message[..length], "198.51.100.1:51820").unwrap();
        }
        a.state(&engine).peers[&b.key()].last_handshake.is_some()
    });
    assert_eq!(b.state(&engine).peers[&a.key()].endpoint, a.endpoint());
    assert_eq!(a.state(&engine).peers[&b.key()].endpoint, via);
}

#[test]
fn a_removed_peer_is_cut_off_and_comes_back() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    assert!(a.pings("10.240.0.2", ""));
    engine.remove_peers(&b.id, vec![a.key()]);
    assert!(!a.pings("10.240.0.2", "-W 1"));
    assert_eq!(b.state(&engine).peers.len(), 0);
    b.knows(&engine, &a, false);
    eventually("traffic passes again", || a.pings("10.240.0.2", "-W 1"));
}

#[test]
fn names_are_added_once_and_unknown_ones_are_an_error() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    let udp: OwnedFd = a.bind.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).into();
    let (tun, udp) = (Arc::new(a.bind.run(|| open_tun("wg9", Framing::Large).unwrap())), Arc::new(udp));
    let again =
        Interface { tun, udp, private_key: a.private_key(), mtu: MTU, address: a.address(), address6: None };
    assert!(matches!(engine.add("m1", again, vec![]), Err(EngineError::Exists(_))));
    let unknown = engine.set_peers("m9", vec![b.as_peer(b.endpoint(), false)]);
    assert!(matches!(unknown, Err(EngineError::NoInterface(_))));
    assert!(engine.observe("m9").is_none());
    assert!(a.pings("10.240.0.2", ""));

    engine.remove("m1");
    assert!(engine.observe("m1").is_none());
    assert!(!a.app.try_sh("ip link show wg0").0, "the TUN is closed, so the device is gone");
    for name in ["", "sixteen-bytes-xx", "a\0b"] {
        assert!(open_tun(name, Framing::Large).is_err());
    }
}

#[test]
fn an_interface_stays_on_the_thread_it_was_born_on() {
    let mut engine = Engine::start().unwrap();
    let mut born = Vec::new();
    // How many threads it is told of, who goes, and where the next one is served.
    let steps: [(usize, &[u8], usize); 9] = [
        (1, &[], 0),
        (1, &[], 0),
        (2, &[], 1),
        (2, &[], 1),
        (3, &[], 2),
        (1, &[], 0),
        (0, &[], 0),
        (3, &[3, 4], 1),
        (3, &[1, 2, 6, 7], 0),
    ];
    for (number, (threads, gone, thread)) in (1..).zip(steps) {
        engine.spread(threads).unwrap();
        gone.iter().for_each(|number| engine.remove(&format!("m{number}")));
        born.retain(|(member, _): &(Member, usize)| engine.thread_of(&member.id).is_some());
        let member = Member::new(number);
        member.serve(&mut engine, Framing::Large);
        born.push((member, thread));
        for (member, thread) in &born {
            assert_eq!(engine.thread_of(&member.id), Some(*thread), "{} of {number}", member.id);
            assert!(engine.observe(&member.id).is_some());
        }
    }
}

#[test]
fn a_namespace_that_dies_takes_its_tun_but_not_the_thread() {
    let mut engine = sharded();
    let (a, b) = pair(&mut engine, LARGE);
    assert!(a.pings("10.240.0.2", ""));
    let (c, id) = (Member::new(3), "m3");
    c.serve(&mut engine, Framing::Large);
    let Member { app, bind, .. } = c;
    drop(app);
    assert!(engine.observe(id).is_some());
    eventually("the others go on", || a.pings("10.240.0.2", ""));
    engine.set_peers(id, vec![b.as_peer(b.endpoint(), true)]).unwrap();
    engine.remove(id);
    drop(bind);
    assert!(b.pings("10.240.0.1", ""));
}

#[test]
fn it_interoperates_with_wireguard_go() {
    let mut engine = sharded();
    let (a, b) = (Member::new(1), Member::new(2));
    join(&a.bind, "192.0.2.1/24", &b.bind, "192.0.2.2/24");
    a.serve(&mut engine, Framing::Large);
    a.knows(&engine, &b, false);

    let name = format!("wgo{}", std::process::id());
    let started =
        b.bind.try_sh(&format!("command -v wireguard-go wg && wireguard-go {name} >/dev/null 2>&1"));
    assert!(
        started.0,
        "wireguard-go does not start (apt-get install wireguard-go wireguard-tools): {}",
        started.1
    );
    let base64 = |key: [u8; 32]| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(key)
    };
    let (private, peer) = (base64(b.private_key().0), base64(a.key().0));
    b.bind.sh(&format!(
        "echo {private} > /tmp/{name}.key
         wg set {name} private-key /tmp/{name}.key listen-port 51820 peer {peer} \
            endpoint 192.0.2.1:51820 allowed-ips 10.240.0.1/32
         rm /tmp/{name}.key
         ip addr add 10.240.0.2/32 dev {name}; ip link set {name} mtu {MTU} up
         ip route add 10.240.0.0/22 dev {name} src 10.240.0.2"
    ));
    assert!(a.pings("10.240.0.2", ""), "they answer us");
    assert!(a.pings("10.240.0.2", "-s 8000"));
    // Trains to it are datagrams that it reads one by one, and their checksums are whole.
    passes(&b.bind, &a.app, "10.240.0.1:80", 20_000_000);
    engine.remove_peers(&a.id, vec![b.key()]);
    a.knows(&engine, &b, false);
    eventually("we answer them, after we lost the session", || {
        b.bind.try_sh("ping -n -c 1 -W 1 10.240.0.1").0
    });
    // Deleting the device ends the daemon.
    b.bind.sh(&format!("ip link del {name}"));
}
