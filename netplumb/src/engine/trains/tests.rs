//! Which packets are written as one, and in which order.

use proptest::prelude::*;

use super::super::packet::tests::{Inner, Transport};
use super::super::segments::{PADDING, Segments};
use super::super::vnet::HEADER;
use super::*;

const ALL: Accepts = Accepts { trains: true, udp: true };

fn tcp(sequence: u32, flags: u8, payload: usize) -> Inner {
    let transport = Transport::Tcp { sequence, flags, options: 12 };
    Inner { is_ipv6: true, transport, payload: vec![sequence as u8; payload], id: 0 }
}

fn udp(payload: usize) -> Inner {
    Inner { is_ipv6: true, transport: Transport::Udp, payload: vec![payload as u8; payload], id: 0 }
}

/// How many packets each write has, and their bytes.
fn written(packets: &[Vec<u8>], accepts: Accepts) -> Vec<(usize, Option<Header>, Vec<u8>)> {
    let mut buffer = packets.concat();
    let (mut trains, mut start) = (Trains::default(), 0);
    for packet in packets {
        trains.push(&buffer, start..start + packet.len(), accepts);
        start += packet.len();
    }
    let mut written = Vec::new();
    let dropped = trains.write(&mut buffer, accepts, |parts| {
        let (header, packets) = match accepts.trains {
            true => (<[u8; HEADER]>::try_from(&parts[0][..]).ok().and_then(Header::parse), &parts[1..]),
            false => (None, parts),
        };
        written.push((packets.len(), header, packets.iter().flat_map(|part| part.to_vec()).collect()));
        true
    });
    assert_eq!((dropped, trains.is_empty()), (0, true));
    written
}

fn sizes(packets: &[Inner]) -> Vec<usize> {
    let packets: Vec<Vec<u8>> = packets.iter().map(Inner::packet).collect();
    written(&packets, ALL).into_iter().map(|(packets, ..)| packets).collect()
}

#[test]
fn only_what_follows_is_put_behind() {
    let ack = 0x10;
    let cases: [(&str, Vec<Inner>, &[usize]); 12] = [
        ("in a row", vec![tcp(0, ack, 100), tcp(100, ack, 100), tcp(200, ack, 100)], &[3]),
        ("the last is shorter", vec![tcp(0, ack, 100), tcp(100, ack, 40), tcp(140, ack, 100)], &[2, 1]),
        ("a longer one", vec![tcp(0, ack, 40), tcp(40, ack, 100)], &[1, 1]),
        ("a gap", vec![tcp(0, ack, 100), tcp(200, ack, 100), tcp(300, ack, 100)], &[1, 2]),
        ("one twice", vec![tcp(0, ack, 100), tcp(0, ack, 100)], &[1, 1]),
        ("over the end of numbers", vec![tcp(u32::MAX - 49, ack, 100), tcp(50, ack, 100)], &[2]),
        ("a push ends it", vec![tcp(0, ack, 9), tcp(9, 0x18, 9), tcp(18, ack, 9), tcp(27, ack, 9)], &[2, 2]),
        ("an echo of congestion begins", vec![tcp(0, ack, 9), tcp(9, 0x50, 9), tcp(18, 0x50, 9)], &[1, 2]),
        ("the end of a stream", vec![tcp(0, ack, 9), tcp(9, 0x11, 9)], &[1, 1]),
        ("bare acknowledgements", vec![tcp(0, ack, 0), tcp(0, ack, 0)], &[1, 1]),
        ("one between", vec![tcp(0, ack, 9), tcp(9, ack, 0), tcp(9, ack, 9)], &[1, 1, 1]),
        ("datagrams", vec![udp(9), udp(9), udp(0), udp(9), udp(7), udp(9)], &[2, 1, 2, 1]),
    ];
    for (name, packets, expected) in cases {
        assert_eq!(sizes(&packets), expected, "{name}");
    }
}

#[test]
fn what_differs_elsewhere_stays_alone() {
    let packets = [tcp(0, 0x10, 100).packet(), tcp(100, 0x10, 100).packet()];
    // Bytes of IPv6 and of TCP behind it, with what repairs the checksum.
    let cases = [
        ("traffic class", 0, 0x01, false),
        ("congestion experienced", 1, 0x30, false),
        ("hop limit", 7, 1, false),
        ("another source", 23, 1, true),
        ("another port", 41, 1, true),
        ("acknowledges more", 51, 1, true),
        ("another window", 55, 1, true),
        ("urgent", 59, 1, true),
        ("an option", 63, 1, true),
        ("a wrong checksum", 57, 1, false),
        ("damaged payload", 90, 1, false),
    ];
    for (name, at, flip, repair) in cases {
        let mut other = packets[1].clone();
        other[at] ^= flip;
        if repair {
            other[56..58].fill(0);
            let sum = Sum::pseudo(&other[8..40], TCP, other.len() - 40).bytes(&other[40..]);
            other[56..58].copy_from_slice(&sum.checksum());
        }
        let found: Vec<_> = written(&[packets[0].clone(), other.clone()], ALL)
            .into_iter()
            .map(|(n, _, bytes)| (n, bytes))
            .collect();
        assert_eq!(found, [(1, packets[0].clone()), (1, other)], "{name}");
    }
    assert_eq!(written(&packets, ALL).len(), 1);
}

#[test]
fn a_device_gets_what_it_takes() {
    let packets = [udp(9).packet(), udp(9).packet(), tcp(0, 0x10, 9).packet(), tcp(9, 0x10, 9).packet()];
    let counts = |accepts| written(&packets, accepts).iter().map(|(n, ..)| *n).collect::<Vec<_>>();
    assert_eq!(counts(ALL), [2, 2]);
    assert_eq!(counts(Accepts { udp: false, ..ALL }), [1, 1, 2]);
    let plain = written(&packets, Accepts::default());
    let expected: Vec<_> = packets.iter().map(|packet| (1, None, packet.clone())).collect();
    assert_eq!(plain, expected);
}

#[test]
fn numbers_of_ipv4_count_up_or_mean_nothing() {
    let with = |id: u16, fragments: u8| {
        let mut packet = Inner { is_ipv6: false, id, ..udp(50) }.packet();
        packet[6] = fragments;
        packet[10..12].fill(0);
        let checksum = Sum::default().bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&checksum);
        packet
    };
    let cases = [
        ("one by one", [with(0xffff, 0), with(0, 0)], 1),
        ("all the same, not to be fragmented", [with(0, 0x40), with(0, 0x40)], 1),
        ("all the same, to be fragmented", [with(5, 0), with(5, 0)], 2),
        ("fragments", [with(5, 0x20), with(6, 0x20)], 2),
    ];
    for (name, packets, writes) in cases {
        assert_eq!(written(&packets, ALL).len(), writes, "{name}");
    }
}

#[test]
fn trains_end_at_their_longest() {
    assert_eq!(sizes(&(0..130).map(|n| tcp(n * 10, 0x10, 10)).collect::<Vec<_>>()), [64, 64, 2]);
    let jumbo: Vec<Inner> = (0..9).map(|n| tcp(n * 8800, 0x10, 8800)).collect();
    assert_eq!(sizes(&jumbo), [7, 2], "no IP packet is longer than 65,535 bytes");
}

/// The packets of a host that reads what was written.
fn read(written: Vec<(usize, Option<Header>, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (_, header, mut bytes) in written {
        let length = bytes.len();
        bytes.resize(length + PADDING, 0);
        let mut segments = Segments::new(&mut bytes, length, &header.unwrap()).unwrap();
        while let Some(packet) = segments.next_packet() {
            packets.push(packet.to_vec());
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Several flows, interleaved, with everything that ends a train: each flow arrives byte for byte, in its order.
    #[test]
    fn every_flow_arrives_as_it_was_sent(
        steps in proptest::collection::vec((0..6_usize, 0..4_usize, 0..5_u8), 1..150),
    ) {
        let mut sequences = [0_u32; 6];
        let mut packets = Vec::new();
        for (flow, size, kind) in steps {
            let payload = [0, 30, 60, 60][size];
            let flags = [0x10, 0x10, 0x18, 0x50, 0x11][usize::from(kind)];
            let transport = match flow {
                0 | 1 => Transport::Udp,
                _ => Transport::Tcp { sequence: sequences[flow], flags, options: 0 },
            };
            let id = packets.len() as u16;
            sequences[flow] = sequences[flow].wrapping_add(payload as u32);
            let inner = Inner { is_ipv6: flow % 2 == 1, transport, payload: vec![id as u8; payload], id };
            let mut packet = inner.packet();
            let port = inner.ip_header() + 1;
            packet[port] = packet[port].wrapping_add(flow as u8);
            let checksum = inner.ip_header() + if flow < 2 { 6 } else { 16 };
            packet[checksum..checksum + 2].fill(0);
            let (addresses, protocol) = (if flow % 2 == 1 { 8..40 } else { 12..20 }, if flow < 2 { UDP } else { TCP });
            let transport = &packet[inner.ip_header()..];
            let sum = Sum::pseudo(&packet[addresses], protocol, transport.len()).bytes(transport).nonzero_checksum();
            packet[checksum..checksum + 2].copy_from_slice(&sum);
            packets.push(packet);
        }
        let arrived = read(written(&packets, ALL));
        prop_assert_eq!(arrived.len(), packets.len());
        let key = |packet: &Vec<u8>| {
            let (ip_header, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
            (ip_header, protocol, packet[ip_header + 1])
        };
        let sorted = |mut packets: Vec<Vec<u8>>| { packets.sort_by_key(key); packets };
        prop_assert_eq!(sorted(arrived), sorted(packets));
    }
}
