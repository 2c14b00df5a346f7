//! Packets of one flow that follow each other, written to a TUN as one (receive offload). Pure.
//!
//! A train is what the kernel itself would have made of the packets, so that cutting it gives the same bytes again.
//! Checksums are verified first: nobody does so for a train.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum::Sum;
use super::vnet::{Header, Kind, Large, Partial};

/// Packets of a train: the kernel takes no more of UDP.
const CARS_MAX: usize = 64;
/// Bytes of a train, an IP packet's longest.
const BYTES_MAX: usize = 65_535;
/// How many of the last trains a packet may continue. Those before have been overtaken by as many other flows.
const LOOK_BACK: usize = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const ECE: u8 = 0x40;

/// What may be written to a TUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Accepts {
    /// A header before each packet, and TCP in trains.
    pub(super) trains: bool,
    /// UDP in trains (Linux 6.2).
    pub(super) udp: bool,
}

/// Packets that wait in a buffer, in trains.
#[derive(Default)]
pub(super) struct Trains {
    cars: Vec<Car>,
    trains: Vec<Train>,
}

/// A packet, or where it was one of a train, its payload alone.
struct Car {
    bytes: Range<usize>,
    next: Option<usize>,
}

struct Train {
    first: usize,
    last: usize,
    cars: usize,
    length: usize,
    /// None for what has no ports.
    shape: Option<Shape>,
    /// Nothing may follow.
    complete: bool,
    /// Whether the first packet's checksums were found right.
    verified: bool,
}

/// A packet of TCP or UDP.
#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: Kind,
    /// Whether it may be in a train.
    is_plain: bool,
    ip_header: usize,
    headers: usize,
    payload: usize,
    sequence: u32,
    /// IPv4's identification; it means nothing where `is_atomic` (RFC 6864).
    id: u16,
    is_atomic: bool,
}

impl Trains {
    pub(super) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// Takes the packet at `at` of `buffer`, which is behind those that it was given before.
    pub(super) fn push(&mut self, buffer: &[u8], at: Range<usize>, accepts: Accepts) {
        let packet = &buffer[at.clone()];
        let is_taken = |kind| if kind == Kind::Udp { accepts.udp } else { accepts.trains };
        let shape = Shape::of(packet);
        let may_join = shape.filter(|shape| shape.is_plain && is_taken(shape.kind));
        if let Some(shape) = may_join
            && self.join(buffer, at.clone(), shape)
        {
            return;
        }
        let (number, length) = (self.cars.len(), at.len());
        let complete = may_join.is_none_or(|shape| shape.is_pushed(packet));
        self.cars.push(Car { bytes: at, next: None });
        self.trains.push(Train {
            first: number,
            last: number,
            cars: 1,
            length,
            shape,
            complete,
            verified: false,
        });
    }

    /// Puts the packet behind the last train of its flow, if it fits there. It never passes a packet of its flow, nor a
    /// fragment or what else has no ports between the same addresses.
    fn join(&mut self, buffer: &[u8], at: Range<usize>, shape: Shape) -> bool {
        let packet = &buffer[at.clone()];
        for train in self.trains.iter_mut().rev().take(LOOK_BACK) {
            let first = &buffer[self.cars[train.first].bytes.clone()];
            let Some(head) = train.shape else {
                if first.get(shape.addresses()) == packet.get(shape.addresses()) {
                    return false;
                }
                continue;
            };
            if !head.is_of_flow(first, &shape, packet) {
                continue;
            }
            if train.complete || !train.is_continued_by(&head, first, &shape, packet) {
                return false;
            }
            train.verified = train.verified || head.verifies(first);
            if !train.verified || !shape.verifies(packet) {
                train.complete = true;
                return false;
            }
            train.complete = shape.payload < head.payload || shape.is_pushed(packet);
            let number = self.cars.len();
            self.cars[train.last].next = Some(number);
            (train.last, train.cars, train.length) = (number, train.cars + 1, train.length + shape.payload);
            self.cars.push(Car { bytes: at.start + shape.headers..at.end, next: None });
            return true;
        }
        false
    }

    /// Writes everything, each train by one call, and forgets it. The number of packets that were not taken.
    pub(super) fn write(
        &mut self,
        buffer: &mut [u8],
        accepts: Accepts,
        mut write: impl FnMut(&[IoSlice<'_>]) -> bool,
    ) -> u64 {
        let mut dropped = 0;
        for train in &self.trains {
            let header = train.finish(buffer, &self.cars).bytes();
            let mut parts = [IoSlice::new(&[]); CARS_MAX + 1];
            parts[0] = IoSlice::new(&header);
            let (mut count, mut next) = (1, Some(train.first));
            while let Some(car) = next {
                parts[count] = IoSlice::new(&buffer[self.cars[car].bytes.clone()]);
                (count, next) = (count + 1, self.cars[car].next);
            }
            let skipped = usize::from(!accepts.trains);
            dropped += if write(&parts[skipped..count]) { 0 } else { train.cars as u64 };
        }
        self.trains.clear();
        self.cars.clear();
        dropped
    }
}

impl Train {
    fn is_continued_by(&self, head: &Shape, first: &[u8], shape: &Shape, packet: &[u8]) -> bool {
        let number = self.cars as u32;
        let sequence = head.sequence.wrapping_add(number.wrapping_mul(head.payload as u32));
        let follows = match head.kind {
            Kind::Udp => true,
            _ => shape.sequence == sequence,
        };
        let id = head.id.wrapping_add(number as u16);
        let is_numbered = shape.id == id || (shape.is_atomic && shape.id == head.id);
        follows
            && is_numbered
            && shape.payload <= head.payload
            && self.cars < CARS_MAX
            && self.length + shape.payload <= BYTES_MAX
            && head.is_alike(first, packet)
    }

    /// Makes the first packet's headers those of the whole train.
    fn finish(&self, buffer: &mut [u8], cars: &[Car]) -> Header {
        let Some(shape) = self.shape.filter(|_| self.cars > 1) else { return Header::default() };
        let has_push = {
            let last = &cars[self.last].bytes;
            shape.kind != Kind::Udp && buffer[last.start - shape.headers + shape.ip_header + 13] & PSH != 0
        };
        let first = &mut buffer[cars[self.first].bytes.clone()];
        let transport_length = self.length - shape.ip_header;
        let (addresses, offset) = match shape.ip_header {
            20 => {
                first[2..4].copy_from_slice(&(self.length as u16).to_be_bytes());
                first[10..12].fill(0);
                let checksum = Sum::default().bytes(&first[..20]).checksum();
                first[10..12].copy_from_slice(&checksum);
                (12..20, shape.ip_header)
            }
            _ => {
                first[4..6].copy_from_slice(&(transport_length as u16).to_be_bytes());
                (8..40, shape.ip_header)
            }
        };
        let checksum_offset = if shape.kind == Kind::Udp {
            first[offset + 4..offset + 6].copy_from_slice(&(transport_length as u16).to_be_bytes());
            6
        } else {
            first[offset + 13] |= if has_push { PSH } else { 0 };
            16
        };
        let pseudo = Sum::pseudo(&first[addresses], shape.protocol(), transport_length).folded();
        first[offset + checksum_offset..offset + checksum_offset + 2].copy_from_slice(&pseudo);
        Header {
            partial: Some(Partial { start: shape.ip_header, offset: checksum_offset }),
            large: Some(Large { kind: shape.kind, segment: shape.payload, headers: shape.headers }),
        }
    }
}

impl Shape {
    /// None for what has no ports, or whose lengths contradict each other. It may be in a train if it has payload, no IP
    /// options, and of TCP's flags nothing but acknowledgement, push and ECN's echo.
    fn of(packet: &[u8]) -> Option<Shape> {
        let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (ip_header, length, protocol, id, is_atomic) = match packet.first()? >> 4 {
            4 if packet.len() >= 20 && packet[0] == 0x45 && number(6) & 0x3fff == 0 => {
                (20, usize::from(number(2)), packet[9], number(4), packet[6] & 0x40 != 0)
            }
            6 if packet.len() >= 40 => (40, usize::from(number(4)) + 40, packet[6], 0, true),
            _ => return None,
        };
        let transport = packet.get(ip_header..length).filter(|_| length == packet.len())?;
        let of = |kind, own, is_plain, sequence| {
            let payload = transport.len().checked_sub(own)?;
            let (is_plain, headers) = (is_plain && payload > 0, ip_header + own);
            Some(Shape { kind, is_plain, ip_header, headers, payload, sequence, id, is_atomic })
        };
        match protocol {
            TCP if transport.len() >= 20 => {
                let flags = transport[13];
                let own = usize::from(transport[12] >> 4) * 4;
                let is_plain = own >= 20 && flags & !(ACK | PSH | ECE) == 0 && flags & ACK != 0;
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                of(if ip_header == 20 { Kind::Tcp4 } else { Kind::Tcp6 }, own, is_plain, sequence)
            }
            UDP if transport.len() >= 8 => {
                let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
                of(Kind::Udp, 8, length == transport.len() && transport[6..8] != [0, 0], 0)
            }
            _ => None,
        }
    }

    fn protocol(&self) -> u8 {
        if self.kind == Kind::Udp { UDP } else { TCP }
    }

    fn addresses(&self) -> Range<usize> {
        if self.ip_header == 20 { 12..20 } else { 8..40 }
    }

    fn is_pushed(&self, packet: &[u8]) -> bool {
        self.kind != Kind::Udp && packet[self.ip_header + 13] & PSH != 0
    }

    /// Whether both have the same addresses and ports.
    fn is_of_flow(&self, own: &[u8], other: &Shape, packet: &[u8]) -> bool {
        let ports = self.ip_header..self.ip_header + 4;
        self.kind == other.kind
            && self.ip_header == other.ip_header
            && own[ports.clone()] == packet[ports]
            && own[self.addresses()] == packet[self.addresses()]
    }

    /// Whether the headers of two packets of a flow differ only where those of a train do.
    fn is_alike(&self, own: &[u8], packet: &[u8]) -> bool {
        let same = |range: Range<usize>| own.get(range.clone()) == packet.get(range);
        // Type of service; "don't fragment", time to live and protocol; or class, flow label and hop limit.
        let ip = match self.ip_header {
            20 => same(0..2) && same(6..10),
            _ => same(0..4) && same(6..8),
        };
        let at = self.ip_header;
        let tcp = || {
            // Acknowledgement and length; flags but PSH; window; the urgent pointer and all options.
            let flags = |packet: &[u8]| packet[at + 13] & !PSH;
            same(at + 8..at + 13)
                && flags(own) == flags(packet)
                && same(at + 14..at + 16)
                && same(at + 18..self.headers)
        };
        ip && (self.kind == Kind::Udp || tcp())
    }

    fn verifies(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.ip_header..];
        let pseudo = Sum::pseudo(&packet[self.addresses()], self.protocol(), transport.len());
        let ip = self.ip_header != 20 || Sum::default().bytes(&packet[..20]).verifies();
        ip && pseudo.bytes(transport).verifies()
    }
}

#[cfg(test)]
mod tests;
