//! IP packets as the engine needs them: addresses, padding, and the ICMP errors it answers with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEADER: usize = 8;

/// An ICMPv4 error quotes as much as fits here (RFC 1812, 4.3.2.3).
const ICMP_ERROR_MAX: usize = 576;
/// An ICMPv6 error fits the minimum MTU (RFC 4443, 2.4 c).
const ICMPV6_ERROR_MAX: usize = 1280;

/// Where an IP packet comes from and goes to, or None when it is none.
pub(super) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER => Some((ipv4(packet, 12)?.into(), ipv4(packet, 16)?.into())),
        6 if packet.len() >= IPV6_HEADER => Some((ipv6(packet, 8)?.into(), ipv6(packet, 24)?.into())),
        _ => None,
    }
}

/// The length that hides a packet's real one: the next multiple of 16, but never above the MTU
/// (WireGuard whitepaper, 5.4.6).
pub(super) fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu).max(length)
}

/// "Host unreachable" (RFC 792, type 3 code 1) or "address unreachable" (RFC 4443, type 1 code 3) in
/// answer to `packet`, or None where an ICMP error must not be sent (RFC 1122, 3.2.2; RFC 4443, 2.4).
///
/// It comes from our own address, unless the packet does: then from the unreachable address itself,
/// because the kernel drops what arrives from one of its own addresses.
pub(super) fn unreachable(packet: &[u8], own: Ipv4Addr, own6: Option<Ipv6Addr>) -> Option<Vec<u8>> {
    match addresses(packet)? {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            if !answerable4(packet, from, to) {
                return None;
            }
            Some(host_unreachable(packet, if from == own { to } else { own }, from))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            if !answerable6(packet, from, to) {
                return None;
            }
            let source = own6.filter(|own| *own != from).unwrap_or(to);
            Some(address_unreachable(packet, source, from))
        }
        _ => None,
    }
}

fn answerable4(packet: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let one_host = |a: Ipv4Addr| !(a.is_multicast() || a.is_broadcast() || a.is_unspecified());
    let first_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff == 0;
    let header = usize::from(packet[0] & 0x0f) * 4;
    let icmp_error = packet[9] == ICMP
        && packet.get(header).is_none_or(|icmp_type| matches!(icmp_type, 3 | 4 | 5 | 11 | 12));
    one_host(from) && one_host(to) && first_fragment && !icmp_error
}

fn answerable6(packet: &[u8], from: Ipv6Addr, to: Ipv6Addr) -> bool {
    let one_host = |a: Ipv6Addr| !(a.is_multicast() || a.is_unspecified());
    one_host(from) && one_host(to) && !is_icmpv6_error(packet)
}

/// Whether the packet is an ICMPv6 error, behind any extension headers. One that cannot be read to the
/// end counts as an error: silence is always allowed.
fn is_icmpv6_error(packet: &[u8]) -> bool {
    let mut next = packet[6];
    let mut at = IPV6_HEADER;
    loop {
        match next {
            // Hop-by-hop, routing, destination options: length in units of 8 bytes, less the first.
            0 | 43 | 60 => {
                let Some(&[header, length]) = packet.get(at..at + 2) else { return true };
                next = header;
                at += 8 * (usize::from(length) + 1);
            }
            44 => {
                let Some(&[header, _, high, low]) = packet.get(at..at + 4) else { return true };
                if u16::from_be_bytes([high, low]) >> 3 != 0 {
                    return true;
                }
                next = header;
                at += 8;
            }
            ICMPV6 => return packet.get(at).is_none_or(|icmp_type| *icmp_type < 128),
            _ => return false,
        }
    }
}

fn host_unreachable(packet: &[u8], source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(ICMP_ERROR_MAX - IPV4_HEADER - ICMP_HEADER)];
    let length = (IPV4_HEADER + ICMP_HEADER + quoted.len()) as u16;
    let mut error = Vec::with_capacity(usize::from(length));
    error.extend([0x45, 0xc0]);
    error.extend(length.to_be_bytes());
    error.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    error.extend(source.octets());
    error.extend(destination.octets());
    let header_checksum = Sum::default().bytes(&error).checksum();
    error[10..12].copy_from_slice(&header_checksum);

    error.extend([3, 1, 0, 0, 0, 0, 0, 0]);
    error.extend(quoted);
    let icmp_checksum = Sum::default().bytes(&error[IPV4_HEADER..]).checksum();
    error[IPV4_HEADER + 2..IPV4_HEADER + 4].copy_from_slice(&icmp_checksum);
    error
}

fn address_unreachable(packet: &[u8], source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(ICMPV6_ERROR_MAX - IPV6_HEADER - ICMP_HEADER)];
    let length = (ICMP_HEADER + quoted.len()) as u16;
    let mut error = Vec::with_capacity(IPV6_HEADER + usize::from(length));
    error.extend([0x60, 0, 0, 0]);
    error.extend(length.to_be_bytes());
    error.extend([ICMPV6, 64]);
    error.extend(source.octets());
    error.extend(destination.octets());

    error.extend([1, 3, 0, 0, 0, 0, 0, 0]);
    error.extend(quoted);
    let pseudo = Sum::pseudo(&error[8..IPV6_HEADER], ICMPV6, length.into());
    let icmp_checksum = pseudo.bytes(&error[IPV6_HEADER..]).checksum();
    error[IPV6_HEADER + 2..IPV6_HEADER + 4].copy_from_slice(&icmp_checksum);
    error
}

fn ipv4(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn ipv6(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 2);

    /// An IPv4 packet with the protocol and payload given; its checksum is left zero.
    pub(crate) fn packet4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        packet[2..4].copy_from_slice(&((IPV4_HEADER + payload.len()) as u16).to_be_bytes());
        packet.extend(from);
        packet.extend(to);
        packet.extend(payload);
        packet
    }

    /// A packet of TCP or UDP with right checksums.
    #[derive(Debug, Clone)]
    pub(crate) struct Inner {
        pub(crate) is_ipv6: bool,
        pub(crate) transport: Transport,
        pub(crate) payload: Vec<u8>,
        /// Of IPv4.
        pub(crate) id: u16,
    }

    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Transport {
        Tcp { sequence: u32, flags: u8, options: usize },
        Udp,
    }

    impl Inner {
        pub(crate) fn ip_header(&self) -> usize {
            if self.is_ipv6 { IPV6_HEADER } else { IPV4_HEADER }
        }

        pub(crate) fn transport_header(&self) -> usize {
            match self.transport {
                Transport::Tcp { options, .. } => 20 + options,
                Transport::Udp => 8,
            }
        }

        pub(crate) fn packet(&self) -> Vec<u8> {
            let mut transport = vec![0x12, 0x34, 0x00, 0x50];
            let (protocol, checksum) = match self.transport {
                Transport::Tcp { sequence, flags, options } => {
                    transport.extend(sequence.to_be_bytes());
                    transport.extend([9, 9, 9, 9, ((20 + options) / 4) as u8 * 16, flags, 2, 0, 0, 0, 0, 0]);
                    transport.extend(std::iter::repeat_n(1, options));
                    (6, 16)
                }
                Transport::Udp => {
                    transport.extend((8 + self.payload.len() as u16).to_be_bytes());
                    transport.extend([0, 0]);
                    (17, 6)
                }
            };
            transport.extend(&self.payload);
            let mut packet = match self.is_ipv6 {
                true => packet6("fd00::9", protocol, &[]),
                false => packet4([10, 240, 0, 2], [10, 240, 0, 9], protocol, &[]),
            };
            let addresses = if self.is_ipv6 { 8..40 } else { 12..20 };
            let sum = Sum::pseudo(&packet[addresses], protocol, transport.len()).bytes(&transport);
            transport[checksum..checksum + 2].copy_from_slice(&sum.nonzero_checksum());
            let length = transport.len() as u16;
            if self.is_ipv6 {
                packet[4..6].copy_from_slice(&length.to_be_bytes());
            } else {
                packet[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                packet[4..6].copy_from_slice(&self.id.to_be_bytes());
                let checksum = Sum::default().bytes(&packet).checksum();
                packet[10..12].copy_from_slice(&checksum);
            }
            packet.extend(transport);
            packet
        }
    }

    fn packet6(to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        packet.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(payload);
        packet
    }

    #[test]
    fn an_icmp_error_answers_only_where_it_may() {
        let with = |change: fn(&mut Vec<u8>)| {
            let mut packet = packet4([10, 240, 0, 2], [10, 240, 0, 9], 17, &[0; 8]);
            change(&mut packet);
            packet
        };
        let cases: [(&str, Vec<u8>, bool); 13] = [
            ("udp", with(|_| ()), true),
            ("echo request", packet4([10, 240, 0, 2], [10, 240, 0, 9], ICMP, &[8, 0, 0, 0]), true),
            ("unreachable", packet4([10, 240, 0, 2], [10, 240, 0, 9], ICMP, &[3, 1, 0, 0]), false),
            ("icmp without type", packet4([10, 240, 0, 2], [10, 240, 0, 9], ICMP, &[]), false),
            ("multicast", packet4([10, 240, 0, 2], [224, 0, 0, 251], 17, &[0; 8]), false),
            ("broadcast", packet4([10, 240, 0, 2], [255; 4], 17, &[0; 8]), false),
            ("from nowhere", packet4([0; 4], [10, 240, 0, 9], 17, &[0; 8]), false),
            ("later fragment", with(|p| p[7] = 1), false),
            ("udp over ipv6", packet6("fd00::9", 17, &[0; 8]), true),
            ("echo request over ipv6", packet6("fd00::9", ICMPV6, &[128, 0]), true),
            ("error behind an option", packet6("fd00::9", 60, &[58, 0, 0, 0, 0, 0, 0, 0, 1, 0]), false),
            ("multicast over ipv6", packet6("ff02::2", ICMPV6, &[133, 0]), false),
            ("not ip", vec![0; 64], false),
        ];
        for (name, packet, answered) in cases {
            assert_eq!(unreachable(&packet, OWN, None).is_some(), answered, "{name}");
        }
    }

    #[test]
    fn the_error_quotes_the_packet_and_has_right_checksums() {
        let packet = packet4([172, 16, 0, 1], [10, 240, 0, 9], 17, &[7; 900]);
        let error = unreachable(&packet, OWN, None).unwrap();
        assert_eq!(error.len(), ICMP_ERROR_MAX);
        assert_eq!(addresses(&error).unwrap(), (OWN.into(), Ipv4Addr::new(172, 16, 0, 1).into()));
        assert_eq!(error[20..22], [3, 1]);
        assert_eq!(error[28..], packet[..548]);
        let verifies = |bytes: &[u8]| Sum::default().bytes(bytes).verifies();
        assert!(verifies(&error[..20]) && verifies(&error[20..]));
    }

    #[test]
    fn an_answer_to_ourselves_comes_from_the_unreachable_address() {
        let packet = packet4(OWN.octets(), [10, 240, 0, 9], 6, &[0; 20]);
        let (from, to) = addresses(&unreachable(&packet, OWN, None).unwrap()).unwrap();
        assert_eq!((from, to), (Ipv4Addr::new(10, 240, 0, 9).into(), OWN.into()));
    }

    #[test]
    fn padding_stops_at_the_mtu() {
        for (length, mtu, expected) in
            [(0, 1390, 0), (1, 1390, 16), (16, 1390, 16), (1385, 1390, 1390), (1400, 1390, 1400)]
        {
            assert_eq!(padded(length, mtu), expected, "{length} of {mtu}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0x0f) };
            }
            unreachable(&bytes, OWN, Some(Ipv6Addr::LOCALHOST));
        }
    }
}
