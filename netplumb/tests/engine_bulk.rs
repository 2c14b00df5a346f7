//! Packets in trains: cut, sent, received and put together by the engine, between real TUN devices. Needs root.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

#[path = "scratch/member.rs"]
mod member;
mod scratch;
#[path = "scratch/stream.rs"]
mod stream;
#[path = "scratch/veth.rs"]
mod veth;

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use member::{Member, pair};
use netplumb::engine::{Engine, Framing};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use stream::{noise, passes};

const BYTES: usize = 24_000_000;

/// Nothing was lost inside the engine: neither unreadable nor forged, by neither side.
fn assert_unharmed(engine: &Engine, members: [&Member; 2]) {
    for member in members {
        let counters = member.state(engine).counters;
        assert_eq!(
            (counters.malformed, counters.forged, counters.undecipherable),
            (0, 0, 0),
            "{}",
            member.id
        );
    }
}

#[test]
fn streams_pass_whole_between_all_framings_and_threads() {
    let framings = [
        [Framing::Large, Framing::Large],
        [Framing::Large, Framing::Plain],
        [Framing::Plain, Framing::Large],
    ];
    for (threads, framings) in [(1, framings[0]), (1, framings[1]), (1, framings[2]), (2, framings[0])] {
        let mut engine = Engine::start().unwrap();
        engine.spread(threads).unwrap();
        let (a, b) = pair(&mut engine, framings);
        assert_eq!(engine.thread_of(&b.id), Some(threads - 1));
        // ECN, whose CWR only the first segment may have.
        for member in [&a, &b] {
            member.app.sh("sysctl -qw net.ipv4.tcp_ecn=1");
        }
        passes(&a.app, &b.app, "10.240.0.2:80", BYTES);
        passes(&b.app, &a.app, "[fd00:0:0:1::1]:80", BYTES);
        assert_unharmed(&engine, [&a, &b]);
    }
}

#[test]
fn trains_of_datagrams_arrive_one_by_one_as_they_were_sent() {
    let mut engine = Engine::start().unwrap();
    let (a, b) = pair(&mut engine, [Framing::Large; 2]);
    let receiver = b.app.run(|| UdpSocket::bind("10.240.0.2:9").unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    setsockopt(&receiver, sockopt::IpRecvTos, &true).unwrap();
    let sender = a.app.run(|| UdpSocket::bind("10.240.0.1:0").unwrap());
    sender.connect("10.240.0.2:9").unwrap();
    // Expedited forwarding, and that the path may mark congestion.
    setsockopt(&sender, sockopt::Ipv4Tos, &TOS).unwrap();
    sender.send(b"wakes the peer").unwrap();
    assert_eq!(receive(&receiver).0, b"wakes the peer");
    let bytes: Vec<u8> = noise().take(20_000).collect();
    for (each, length) in [(1, 20), (7, 333), (333, 5000), (1000, 20_000), (1361, 17_777), (1362, 13_620)] {
        let train = ControlMessage::UdpGsoSegments(&each);
        let flags = MsgFlags::empty();
        let sent = sendmsg::<SockaddrIn>(
            sender.as_raw_fd(),
            &[IoSlice::new(&bytes[..length])],
            &[train],
            flags,
            None,
        );
        assert_eq!(sent, Ok(length), "{each}");
        for (number, expected) in bytes[..length].chunks(each.into()).enumerate() {
            let (datagram, tos) = receive(&receiver);
            assert!(datagram == expected, "number {number} of {each} bytes each");
            assert_eq!(tos, Some(TOS as u8), "number {number} of {each} bytes each");
        }
    }
    for length in [0, 1, 15, 16, 17, 1361, 1362, 1363, 4000, 20_000] {
        sender.send(&bytes[..length]).unwrap();
        assert!(receive(&receiver).0 == bytes[..length], "{length}");
    }
    assert_unharmed(&engine, [&a, &b]);
}

const TOS: i32 = 0xb8 | 0x02;

/// A datagram, and the type of service it came with.
fn receive(socket: &UdpSocket) -> (Vec<u8>, Option<u8>) {
    let (mut buffer, mut room) = (vec![0; 65_536], nix::cmsg_space!(u8));
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty()).unwrap();
    let tos = message.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
        _ => None,
    });
    let length = message.bytes;
    buffer.truncate(length);
    (buffer, tos)
}

#[test]
fn a_path_that_takes_no_trains_gets_messages_one_by_one() {
    let mut engine = Engine::start().unwrap();
    let (a, b) = pair(&mut engine, [Framing::Large; 2]);
    assert!(a.pings("10.240.0.2", ""));
    // Shorter than a message: none of a train may be longer than the MTU.
    for member in [&a, &b] {
        member.bind.sh("ip link set eth0 mtu 1200");
    }
    assert!(a.pings("10.240.0.2", "-s 8000"));
    passes(&a.app, &b.app, "10.240.0.2:80", 2_000_000);
    for member in [&a, &b] {
        member.bind.sh("ip link set eth0 mtu 9000; ip link set eth0 mtu 1500");
    }
    passes(&a.app, &b.app, "10.240.0.2:80", 2_000_000);
    assert_unharmed(&engine, [&a, &b]);
}

#[test]
fn a_jumbo_path_carries_jumbo_packets() {
    let mut engine = Engine::start().unwrap();
    let (a, b) = pair(&mut engine, [Framing::Large; 2]);
    for member in [&a, &b] {
        member.bind.sh("ip link set eth0 mtu 9000");
        member.app.sh("ip link set wg0 mtu 8890");
        engine.set_mtu(&member.id, 8890);
    }
    assert!(a.pings("10.240.0.2", "-M do -s 8862"));
    assert!(!a.pings("10.240.0.2", "-M do -s 8863"));
    passes(&a.app, &b.app, "10.240.0.2:80", BYTES);
    assert_unharmed(&engine, [&a, &b]);
}
