//! Resource records (RFC 1035 §3.2.1): addresses encoded once, to be copied behind any question that names their
//! owner, and the data of the others.

use rand::{Rng, RngExt};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Address record types and the others we serve (IANA "Resource Record (RR) TYPEs").
pub(crate) mod rtype {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const DS: u16 = 43;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// The Internet class.
pub(crate) const CLASS_IN: u16 = 1;
/// A compression pointer (RFC 1035 §4.1.4) to the question's name, which follows the 12-byte header.
pub(crate) const OWNER: [u8; 2] = [0xc0, 0x0c];
/// Bytes of a record before its data: owner pointer, type, class, TTL, length.
pub(crate) const FIXED_BYTES: usize = 12;
/// Up to here every order of the records is equally likely; above, only where the sequence starts is random:
/// shuffling 1,022 records costs more than all the rest of a reply.
const SHUFFLED_MAX: usize = 64;

/// The records of one name and type. All have the same length; the first `prompt` come before the others in
/// every reply (the rest belong to hosts that are late).
#[derive(Debug, Default)]
pub(crate) struct RecordSet {
    wire: Box<[u8]>,
    record_bytes: usize,
    prompt: usize,
}

impl RecordSet {
    /// IPv4 addresses, each with whether its host is late.
    pub(crate) fn a(ttl_s: u32, addresses: &BTreeMap<Ipv4Addr, bool>) -> RecordSet {
        RecordSet::new(rtype::A, ttl_s, addresses.iter().map(|(a, late)| (a.octets(), *late)))
    }

    /// IPv6 addresses, each with whether its host is late.
    pub(crate) fn aaaa(ttl_s: u32, addresses: &BTreeMap<Ipv6Addr, bool>) -> RecordSet {
        RecordSet::new(rtype::AAAA, ttl_s, addresses.iter().map(|(a, late)| (a.octets(), *late)))
    }

    fn new<const N: usize>(
        rtype: u16,
        ttl_s: u32,
        addresses: impl ExactSizeIterator<Item = ([u8; N], bool)> + Clone,
    ) -> RecordSet {
        let mut wire = Vec::with_capacity(addresses.len() * (FIXED_BYTES + N));
        let prompt = addresses.clone().filter(|(_, late)| !late);
        let late = addresses.filter(|(_, late)| *late);
        for (address, _) in prompt.clone().chain(late) {
            push_record(&mut wire, OWNER, rtype, ttl_s, &address);
        }
        RecordSet { wire: wire.into_boxed_slice(), record_bytes: FIXED_BYTES + N, prompt: prompt.count() }
    }

    /// Whether there is no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.wire.len().checked_div(self.record_bytes).unwrap_or(0)
    }

    /// The data of each record, in the order of the addresses, prompt ones first.
    pub(crate) fn data(&self) -> impl Iterator<Item = &[u8]> {
        self.wire.chunks_exact(self.record_bytes.max(1)).map(|record| &record[FIXED_BYTES..])
    }

    /// Appends as many whole records as `room_bytes` holds, in random order, and says how many.
    pub(crate) fn append(&self, out: &mut Vec<u8>, room_bytes: usize, rng: &mut impl Rng) -> usize {
        let fitting = room_bytes.checked_div(self.record_bytes).unwrap_or(0).min(self.len());
        let (prompt, late) = self.wire.split_at(self.prompt * self.record_bytes);
        let from_prompt = fitting.min(self.prompt);
        self.append_part(prompt, from_prompt, out, rng);
        self.append_part(late, fitting - from_prompt, out, rng);
        fitting
    }

    /// Appends `count` records of `part`, chosen and ordered at random.
    fn append_part(&self, part: &[u8], count: usize, out: &mut Vec<u8>, rng: &mut impl Rng) {
        let bytes = self.record_bytes;
        let records = part.len().checked_div(bytes).unwrap_or(0);
        if count == 0 {
            return;
        }
        let wanted = count * bytes;
        if records <= SHUFFLED_MAX {
            let start = out.len();
            out.extend_from_slice(part);
            shuffle(&mut out[start..], bytes, rng);
            out.truncate(start + wanted);
        } else {
            let (before, from) = part.split_at(rng.random_range(0..records) * bytes);
            let first = wanted.min(from.len());
            out.extend_from_slice(&from[..first]);
            out.extend_from_slice(&before[..wanted - first]);
        }
    }
}

/// The texts of one TXT record, ready to be sent: character-strings (RFC 1035 §3.3.14), each text cut to its first
/// 255 bytes. Copies share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(Arc<[u8]>);

impl<T: AsRef<str>> FromIterator<T> for Facts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Facts {
        let mut data = Vec::new();
        for text in texts {
            let text = text.as_ref().as_bytes();
            let text = &text[..text.len().min(usize::from(u8::MAX))];
            data.push(text.len() as u8);
            data.extend_from_slice(text);
        }
        Facts(data.into())
    }
}

impl Facts {
    /// The texts, as far as they are sent.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.data();
        std::iter::from_fn(move || {
            let (&length, data) = rest.split_first()?;
            let (text, after) = data.split_at_checked(length.into())?;
            rest = after;
            Some(text)
        })
    }

    /// Whether there is no text.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record's data.
    pub(crate) fn data(&self) -> &[u8] {
        &self.0
    }
}

/// Appends one record.
pub(crate) fn push_record(out: &mut Vec<u8>, owner: [u8; 2], rtype: u16, ttl_s: u32, data: &[u8]) {
    out.extend_from_slice(&owner);
    out.extend_from_slice(&rtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl_s.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// Fisher-Yates over blocks of `bytes` bytes.
fn shuffle(records: &mut [u8], bytes: usize, rng: &mut impl Rng) {
    for last in (1..records.len() / bytes).rev() {
        let chosen = rng.random_range(0..=last);
        if chosen != last {
            let (head, tail) = records.split_at_mut(last * bytes);
            head[chosen * bytes..(chosen + 1) * bytes].swap_with_slice(&mut tail[..bytes]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    fn addresses(count: u8, late_from: u8) -> BTreeMap<Ipv4Addr, bool> {
        (0..count).map(|n| (Ipv4Addr::new(10, 240, 0, n), n >= late_from)).collect()
    }

    fn last_bytes(wire: &[u8]) -> Vec<u8> {
        wire.chunks_exact(16).map(|record| record[15]).collect()
    }

    #[test]
    fn a_record_is_encoded_as_rfc_1035_says() {
        let set = RecordSet::a(30, &addresses(1, 9));
        let expected = b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\xf0\0\0";
        let mut out = Vec::new();
        assert_eq!(set.append(&mut out, 16, &mut SmallRng::seed_from_u64(1)), 1);
        assert_eq!(out, expected);
        assert_eq!(set.data().collect::<Vec<_>>(), [[10, 240, 0, 0]]);
    }

    #[test]
    fn facts_are_read_as_they_are_sent() {
        let (long, wide) = ("x".repeat(256), format!("{}é", "x".repeat(254)));
        let facts: Facts = ["", "a=b", &long[..255], &long, &wide].into_iter().collect();
        let texts: Vec<_> = facts.iter().collect();
        assert_eq!(
            texts,
            [
                b"",
                b"a=b".as_slice(),
                &long.as_bytes()[..255],
                &long.as_bytes()[..255],
                &wide.as_bytes()[..255]
            ]
        );
        assert!(Facts::default().is_empty() && !facts.is_empty());
        assert_eq!([""; 0].into_iter().collect::<Facts>(), Facts::default());
    }

    #[test]
    fn late_records_stay_last_and_are_cut_first() {
        let rng = &mut SmallRng::seed_from_u64(2);
        for (count, late_from, room) in [(10, 7, 160), (10, 7, 159), (10, 7, 16 * 7), (200, 150, 3200)] {
            let set = RecordSet::a(30, &addresses(count, late_from));
            let mut out = Vec::new();
            let appended = set.append(&mut out, room, rng);
            assert_eq!(appended, (room / 16).min(usize::from(count)));
            let order = last_bytes(&out);
            let (prompt, late) = order.split_at(usize::from(late_from).min(appended));
            assert!(prompt.iter().all(|n| *n < late_from) && late.iter().all(|n| *n >= late_from));
        }
    }

    #[test]
    fn every_address_is_as_often_at_every_place() {
        const ROUNDS: u32 = 20_000;
        let rng = &mut SmallRng::seed_from_u64(3);
        let set = RecordSet::a(30, &addresses(20, 20));
        let mut seen = [[0u32; 20]; 20];
        for _ in 0..ROUNDS {
            let mut out = Vec::new();
            set.append(&mut out, 320, rng);
            for (place, n) in last_bytes(&out).into_iter().enumerate() {
                seen[place][usize::from(n)] += 1;
            }
        }
        let expected = f64::from(ROUNDS) / 20.0;
        for (place, row) in seen.iter().enumerate() {
            let chi_square: f64 = row.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            // 43.8 is the 0.1 % point of chi-square with 19 degrees of freedom.
            assert!(chi_square < 43.8, "place {place}: {chi_square} {row:?}");
        }
    }

    #[test]
    fn a_cut_window_starts_anywhere() {
        let rng = &mut SmallRng::seed_from_u64(4);
        let set = RecordSet::a(30, &addresses(200, 200));
        let mut first = [0u32; 200];
        for _ in 0..20_000 {
            let mut out = Vec::new();
            assert_eq!(set.append(&mut out, 16 * 23 + 5, rng), 23);
            let order = last_bytes(&out);
            assert!(order.windows(2).all(|w| w[1] == (w[0] + 1) % 200), "one window: {order:?}");
            first[usize::from(order[0])] += 1;
        }
        assert!(first.iter().all(|n| (50..=160).contains(n)), "{first:?}");
    }
}
