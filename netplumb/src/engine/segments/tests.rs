//! Large packets, cut, and put together again.

use proptest::prelude::*;

use super::super::packet::tests::{Inner, Transport};
use super::super::trains::{Accepts, Trains};
use super::super::vnet::HEADER;
use super::*;

const ALL: Accepts = Accepts { trains: true, udp: true };

/// A packet as the kernel hands it over for cutting, with its header.
fn large(inner: &Inner, segment: usize) -> (Header, Vec<u8>) {
    let mut packet = inner.packet();
    let kind = match (inner.is_ipv6, inner.transport) {
        (false, Transport::Tcp { .. }) => Kind::Tcp4,
        (true, Transport::Tcp { .. }) => Kind::Tcp6,
        (_, Transport::Udp) => Kind::Udp,
    };
    let (start, offset) = (inner.ip_header(), if kind == Kind::Udp { 6 } else { 16 });
    let addresses = if inner.is_ipv6 { 8..40 } else { 12..20 };
    let protocol = if kind == Kind::Udp { 17 } else { 6 };
    let pseudo = Sum::pseudo(&packet[addresses], protocol, packet.len() - start).folded();
    packet[start + offset..start + offset + 2].copy_from_slice(&pseudo);
    let large = Large { kind, segment, headers: start + inner.transport_header() };
    (Header { partial: Some(Partial { start, offset }), large: Some(large) }, packet)
}

fn cut(header: &Header, packet: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + PADDING, 0xee);
    let mut segments = Segments::new(&mut buffer, packet.len(), header)?;
    let mut cut = Vec::new();
    while let Some(segment) = segments.next_padded(mtu) {
        cut.push(segment.to_vec());
    }
    Some(cut)
}

/// What would be written of these packets: each with its header.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut buffer = packets.concat();
    let (mut trains, mut start) = (Trains::default(), 0);
    for packet in packets {
        trains.push(&buffer, start..start + packet.len(), ALL);
        start += packet.len();
    }
    let mut written = Vec::new();
    trains.write(&mut buffer, ALL, |parts| {
        let (header, packet) = parts.split_first().unwrap();
        let header: [u8; HEADER] = header[..].try_into().unwrap();
        written
            .push((Header::parse(header).unwrap(), packet.iter().flat_map(|part| part.to_vec()).collect()));
        true
    });
    written
}

#[test]
fn a_large_packet_becomes_what_tcp_would_have_sent() {
    let tcp = Transport::Tcp { sequence: u32::MAX - 1000, flags: 0x80 | 0x10 | 0x09, options: 12 };
    for is_ipv6 in [false, true] {
        let inner =
            Inner { is_ipv6, transport: tcp, payload: (0..3000).map(|n| n as u8).collect(), id: 0xffff };
        let (header, packet) = large(&inner, 1200);
        let segments = cut(&header, &packet, 1390).unwrap();
        let sizes: Vec<usize> = segments.iter().map(Vec::len).collect();
        let headers = inner.ip_header() + 32;
        let padded = (600 + headers).next_multiple_of(16);
        assert_eq!(
            sizes,
            [(1200 + headers).next_multiple_of(16), (1200 + headers).next_multiple_of(16), padded]
        );
        let flags: Vec<u8> = segments.iter().map(|segment| segment[inner.ip_header() + 13]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19], "CWR first, PSH and FIN last");
        for (number, (segment, part)) in segments.iter().zip(inner.payload.chunks(1200)).enumerate() {
            let expected = Inner {
                transport: Transport::Tcp {
                    sequence: (u32::MAX - 1000).wrapping_add(number as u32 * 1200),
                    flags: flags[number],
                    options: 12,
                },
                payload: part.to_vec(),
                id: 0xffff_u16.wrapping_add(number as u16),
                is_ipv6,
            };
            let expected = expected.packet();
            assert!(segment[..expected.len()] == expected, "segment {number}");
            assert!(segment[expected.len()..].iter().all(|byte| *byte == 0), "padding of {number}");
        }
    }
}

#[test]
fn a_checksum_that_was_left_to_us_is_made() {
    for transport in [Transport::Udp, Transport::Tcp { sequence: 1, flags: 0x10, options: 0 }] {
        let inner = Inner { is_ipv6: false, transport, payload: b"odd".to_vec(), id: 7 };
        let (header, packet) = large(&inner, 1000);
        let partial = Header { large: None, ..header };
        let segments = cut(&partial, &packet, packet.len()).unwrap();
        assert_eq!(segments, [inner.packet()]);
    }
}

#[test]
fn headers_that_do_not_fit_the_packet_are_refused() {
    let inner = Inner {
        is_ipv6: false,
        transport: Transport::Tcp { sequence: 1, flags: 0x10, options: 0 },
        payload: vec![7; 3000],
        id: 7,
    };
    let (header, packet) = large(&inner, 1000);
    let (Some(partial), Some(is)) = (header.partial, header.large) else { panic!("both are there") };
    let with = |partial, large| Header { partial, large };
    let cases = [
        ("no checksum to be made", with(None, Some(is))),
        ("empty segments", with(Some(partial), Some(Large { segment: 0, ..is }))),
        ("IPv6", with(Some(partial), Some(Large { kind: Kind::Tcp6, ..is }))),
        ("UDP", with(Some(partial), Some(Large { kind: Kind::Udp, ..is }))),
        ("in the IP header", with(Some(Partial { start: 4, ..partial }), Some(is))),
        ("at the end", with(Some(Partial { start: packet.len(), ..partial }), Some(is))),
        ("behind the end", with(Some(Partial { start: 65_535, offset: 65_535 }), None)),
        ("a checksum across the end", with(Some(Partial { start: packet.len() - 1, offset: 0 }), None)),
    ];
    for (name, header) in cases {
        assert!(cut(&header, &packet, 1390).is_none(), "{name}");
    }
    assert!(cut(&header, &packet[..40], 1390).is_none(), "no payload");
    assert!(cut(&header, &[], 1390).is_none(), "nothing");
}

fn transports() -> impl Strategy<Value = Transport> {
    prop_oneof![
        Just(Transport::Udp),
        (any::<u32>(), 0..=10_u8, prop_oneof![Just(0x10_u8), Just(0x18), Just(0x50)]).prop_map(
            |(sequence, words, flags)| Transport::Tcp { sequence, flags, options: usize::from(words) * 4 }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn what_was_cut_is_put_together_as_it_was(
        is_ipv6: bool,
        transport in transports(),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment in 400..9_000_usize,
        id: u16,
    ) {
        let inner = Inner { is_ipv6, transport, payload, id };
        let (header, packet) = large(&inner, segment);
        let segments = cut(&header, &packet, 1).unwrap();
        prop_assert_eq!(segments.len(), inner.payload.len().div_ceil(segment));
        let written = coalesce(&segments);
        if segments.len() == 1 {
            prop_assert_eq!(written, [(Header::default(), inner.packet())]);
        } else {
            prop_assert_eq!(written, [(header, packet)]);
        }
    }

    #[test]
    fn no_header_and_no_packet_makes_it_panic(
        header: [u8; HEADER],
        few in proptest::collection::vec(0..64_u8, HEADER),
        is_small: bool,
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        is_ipv6: bool,
    ) {
        let mut header = if is_small { few.try_into().unwrap() } else { header };
        header[0] &= 1;
        header[1] %= 6;
        if let Some(first) = bytes.first_mut() {
            *first = if is_ipv6 { 0x60 } else { 0x45 };
        }
        if let Some(header) = Header::parse(header) {
            cut(&header, &bytes, 1390);
        }
        coalesce(&[bytes.clone(), bytes]);
    }
}
