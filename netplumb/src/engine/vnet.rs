//! The header before each packet of a TUN that was opened for it: what is left for the other side to do with the
//! packet (struct virtio_net_hdr, linux/virtio_net.h; numbers in the machine's byte order). Pure.

/// Its length in bytes, which is also the kernel's default.
pub(super) const HEADER: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
/// Only the first segment has CWR.
const ECN: u8 = 0x80;

/// What a packet larger than the MTU is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp4,
    Tcp6,
    Udp,
}

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the sum of the pseudo header stands in place of a checksum.
    pub(super) partial: Option<Partial>,
    /// How the packet shall be cut.
    pub(super) large: Option<Large>,
}

/// A checksum that is still to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partial {
    /// From where to the packet's end it is made, in bytes.
    pub(super) start: usize,
    /// Where it stands, counted from `start`.
    pub(super) offset: usize,
}

/// A packet larger than the MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Large {
    pub(super) kind: Kind,
    /// Payload of each segment but the last, in bytes.
    pub(super) segment: usize,
    /// Length of all headers. Read, it is a hint at most.
    pub(super) headers: usize,
}

impl Header {
    /// None for what was never agreed on.
    pub(super) fn parse(bytes: [u8; HEADER]) -> Option<Header> {
        let number = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
        let partial = Partial { start: number(6), offset: number(8) };
        let kind = match bytes[1] & !ECN {
            0 => None,
            1 => Some(Kind::Tcp4),
            4 => Some(Kind::Tcp6),
            5 => Some(Kind::Udp),
            _ => return None,
        };
        Some(Header {
            partial: (bytes[0] & NEEDS_CHECKSUM != 0).then_some(partial),
            large: kind.map(|kind| Large { kind, segment: number(4), headers: number(2) }),
        })
    }

    /// As the kernel reads it.
    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, number: usize| {
            bytes[at..at + 2].copy_from_slice(&(number as u16).to_ne_bytes());
        };
        if let Some(Large { segment, headers, .. }) = self.large {
            put(2, headers);
            put(4, segment);
        }
        if let Some(Partial { start, offset }) = self.partial {
            put(6, start);
            put(8, offset);
        }
        bytes[0] = if self.partial.is_some() { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = self.large.map_or(0, |large| match large.kind {
            Kind::Tcp4 => 1,
            Kind::Tcp6 => 4,
            Kind::Udp => 5,
        });
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_are_written() {
        let partial = Some(Partial { start: 40, offset: 16 });
        let large = |kind| Some(Large { kind, segment: 1330, headers: 72 });
        let cases = [
            (Header::default(), 0),
            (Header { partial, large: None }, 0),
            (Header { partial, large: large(Kind::Tcp4) }, 1),
            (Header { partial, large: large(Kind::Tcp6) }, 4),
            (Header { partial, large: large(Kind::Udp) }, 5),
        ];
        for (header, kind) in cases {
            let bytes = header.bytes();
            assert_eq!((Header::parse(bytes), bytes[1]), (Some(header), kind));
        }
        let mut with_ecn = cases[2].0.bytes();
        with_ecn[1] |= ECN;
        assert_eq!(Header::parse(with_ecn), Some(cases[2].0));
        let mut fragments = cases[2].0.bytes();
        fragments[1] = 3;
        assert_eq!(Header::parse(fragments), None, "UDP to be fragmented was never agreed on");
    }
}
