//! One read of a TUN as IP packets: one, or a large one that the kernel left us to cut (segmentation offload).
//!
//! They are cut in place and one after another: a packet's headers are written over the end of the one before, which
//! has been encrypted into another buffer by then. Pure.

use std::ops::Range;

use super::checksum::Sum;
use super::packet;
use super::vnet::{Header, Kind, Large, Partial};

/// Room that is needed behind what was read.
pub(super) const PADDING: usize = 16;

/// No IP and TCP headers are longer, extension headers of a sane packet included.
const HEADERS_MAX: usize = 256;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const TCP_HEADER: usize = 20;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;

/// The packets, lent one by one.
pub(super) struct Segments<'a> {
    /// With [`PADDING`] bytes behind `length`.
    buffer: &'a mut [u8],
    length: usize,
    cut: Option<Cut>,
    done: usize,
    /// What padding was written over.
    covered: (Range<usize>, [u8; PADDING]),
}

struct Cut {
    headers: [u8; HEADERS_MAX],
    /// How much of `headers` there is.
    length: usize,
    transport: usize,
    is_tcp: bool,
    segment: usize,
    /// The pseudo header's sum without the length.
    pseudo: Sum,
}

impl<'a> Segments<'a> {
    /// The first `length` bytes of `buffer`. None if the header asks for something that cannot be done with them.
    pub(super) fn new(buffer: &'a mut [u8], length: usize, header: &Header) -> Option<Segments<'a>> {
        if length + PADDING > buffer.len() {
            return None;
        }
        let packet = &mut buffer[..length];
        let cut = match (header.large, header.partial) {
            (None, None) => None,
            (None, Some(partial)) => {
                complete(packet, partial)?;
                None
            }
            (Some(large), Some(partial)) => Some(Cut::new(packet, large, partial)?),
            (Some(_), None) => return None,
        };
        Some(Segments { buffer, length, cut, done: 0, covered: (0..0, [0; PADDING]) })
    }

    /// Everything that was read, uncut: for a look at the addresses.
    pub(super) fn whole(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// The next packet, padded for interfaces of this MTU.
    pub(super) fn next_padded(&mut self, mtu: usize) -> Option<&[u8]> {
        let range = self.next_range()?;
        let padded = range.start + packet::padded(range.len(), mtu);
        self.cover(range.end..padded);
        Some(&self.buffer[range.start..padded])
    }

    /// The next packet.
    pub(super) fn next_packet(&mut self) -> Option<&[u8]> {
        let range = self.next_range()?;
        Some(&self.buffer[range])
    }

    fn next_range(&mut self) -> Option<Range<usize>> {
        self.uncover();
        let number = self.done;
        self.done += 1;
        let Some(cut) = &self.cut else { return (number == 0).then_some(0..self.length) };
        let start = number * cut.segment;
        let end = (start + cut.length + cut.segment).min(self.length);
        if start + cut.length >= end {
            return None;
        }
        cut.write(&mut self.buffer[start..end], number, end == self.length);
        Some(start..end)
    }

    fn cover(&mut self, range: Range<usize>) {
        let bytes = &mut self.buffer[range.clone()];
        self.covered.1[..bytes.len()].copy_from_slice(bytes);
        bytes.fill(0);
        self.covered.0 = range;
    }

    fn uncover(&mut self) {
        let range = std::mem::replace(&mut self.covered.0, 0..0);
        let bytes = &self.covered.1[..range.len()];
        self.buffer[range].copy_from_slice(bytes);
    }
}

/// Makes the checksum of a packet that is none too large.
fn complete(packet: &mut [u8], partial: Partial) -> Option<()> {
    let at = partial.start.checked_add(partial.offset)?;
    packet.get(at..at + 2)?;
    let checksum = Sum::default().bytes(&packet[partial.start..]).nonzero_checksum();
    packet[at..at + 2].copy_from_slice(&checksum);
    Some(())
}

impl Cut {
    /// None unless the packet has payload behind the headers that `large` and `partial` speak of.
    fn new(packet: &[u8], large: Large, partial: Partial) -> Option<Cut> {
        let transport = partial.start;
        let is_tcp = large.kind != Kind::Udp;
        let version = packet.first()? >> 4;
        let (fits, least) = match (version, large.kind) {
            (4, Kind::Tcp4 | Kind::Udp) => (true, 20),
            (6, Kind::Tcp6 | Kind::Udp) => (true, 40),
            _ => (false, 0),
        };
        let offset = if is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if !fits || transport < least || partial.offset != offset || large.segment == 0 {
            return None;
        }
        let own = match is_tcp {
            true => usize::from(packet.get(transport + 12)? >> 4) * 4,
            false => UDP_HEADER,
        };
        let length = transport + own;
        if own < if is_tcp { TCP_HEADER } else { UDP_HEADER }
            || length > HEADERS_MAX
            || length >= packet.len()
        {
            return None;
        }
        let mut headers = [0; HEADERS_MAX];
        headers[..length].copy_from_slice(&packet[..length]);
        let at = transport + offset;
        let pseudo = Sum::default().bytes(&packet[at..at + 2]).number(!((packet.len() - transport) as u16));
        Some(Cut { headers, length, transport, is_tcp, segment: large.segment, pseudo })
    }

    /// Writes headers over the beginning of a segment, as the kernel would have (RFC 9293, 3.8.1; RFC 3168, 6.1.2).
    fn write(&self, segment: &mut [u8], number: usize, is_last: bool) {
        let length = segment.len();
        segment[..self.length].copy_from_slice(&self.headers[..self.length]);
        if segment[0] >> 4 == 4 {
            segment[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(number as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
            segment[10..12].fill(0);
            let header = usize::from(segment[0] & 0x0f) * 4;
            let checksum = Sum::default().bytes(&segment[..header.min(self.transport)]).checksum();
            segment[10..12].copy_from_slice(&checksum);
        } else {
            segment[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
        let transport = &mut segment[self.transport..];
        let at = if self.is_tcp {
            let sequence = &mut transport[TCP_SEQUENCE..TCP_SEQUENCE + 4];
            let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
            sequence.copy_from_slice(&first.wrapping_add((number * self.segment) as u32).to_be_bytes());
            let flags = &mut transport[TCP_FLAGS];
            *flags &= if is_last { 0xff } else { !FIN_PSH };
            *flags &= if number == 0 { 0xff } else { !CWR };
            TCP_CHECKSUM
        } else {
            let own = (transport.len() as u16).to_be_bytes();
            transport[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&own);
            UDP_CHECKSUM
        };
        transport[at..at + 2].fill(0);
        let sum = self.pseudo.number(transport.len() as u16).bytes(transport);
        transport[at..at + 2].copy_from_slice(&sum.nonzero_checksum());
    }
}

#[cfg(test)]
mod tests;
