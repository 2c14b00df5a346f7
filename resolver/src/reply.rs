//! Writing a reply behind the header and question it answers.

use crate::answer::Transport;
use crate::question::{Edns, OPT_BYTES};
use crate::records::{RecordSet, push_record, rtype};
use crate::scope::{Authority, HEADER_BYTES, NAME_SERVER_LABEL, Scope};
use crate::services::Services;
use rand::Rng;
use std::net::Ipv4Addr;

/// Response codes (IANA "DNS RCODEs").
pub(crate) mod rcode {
    pub(crate) const NOERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const SERVFAIL: u16 = 2;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const BADVERS: u16 = 16;
}

/// How long a name is believed missing (RFC 2308 §5), and the TTL of what describes the zone itself. 30 s would
/// hide a new container from whoever asked too early, 0 makes dual-stack clients ask for AAAA at every connect.
const NEGATIVE_TTL_S: u32 = 5;
/// The SOA's timers for secondaries, of which there are none: refresh, retry, expire, then the negative TTL.
const SOA_TIMERS_S: [u32; 4] = [3600, 600, 86_400, NEGATIVE_TTL_S];
/// The SOA's mailbox, below the scope's suffix.
const MAILBOX_LABEL: &[u8] = b"\x0ahostmaster";

/// Our and the largest honoured UDP payload: fits every path without fragments (RFC 9715).
const UDP_BYTES_MAX: u16 = 1232;
/// UDP payload without EDNS (RFC 1035 §4.2.1); smaller ones count as this (RFC 6891 §6.2.3).
const UDP_BYTES_MIN: u16 = 512;

/// Compression pointers have 14 bits.
const POINTED_MAX: usize = 1 << 14;

/// A section of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer,
    Authority,
    Additional,
}

/// A reply being written: sections in their order, then [`Reply::finish`].
pub(crate) struct Reply<'o> {
    out: &'o mut Vec<u8>,
    edns: Option<Edns>,
    /// Where records must end: the limit less the OPT record.
    end: usize,
    authoritative: bool,
    truncated: bool,
    /// Records so far, by section.
    counts: [u16; 3],
}

impl<'o> Reply<'o> {
    /// Starts a reply in `out` with `head`: the query's header and, unless it made no sense, its question.
    pub(crate) fn new(
        head: &[u8],
        edns: Option<Edns>,
        transport: Transport,
        out: &'o mut Vec<u8>,
    ) -> Reply<'o> {
        out.clear();
        out.extend_from_slice(head);
        let limit = match (transport, edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => UDP_BYTES_MIN,
            (Transport::Udp, Some(edns)) => edns.payload_bytes.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
        };
        let end = usize::from(limit) - edns.map_or(0, |_| OPT_BYTES);
        Reply { out, edns, end, authoritative: false, truncated: false, counts: [0; 3] }
    }

    /// Says that the reply comes from our own zone.
    pub(crate) fn set_authoritative(&mut self) {
        self.authoritative = true;
    }

    /// Answers with `records`, as many as fit: clients that ignore TC live with a part of them, not with none.
    pub(crate) fn answer(&mut self, records: &RecordSet, rng: &mut impl Rng) {
        let room = self.end.saturating_sub(self.out.len());
        let appended = records.append(self.out, room, rng);
        self.counts[Section::Answer as usize] += appended as u16;
        self.truncated |= appended < records.len();
    }

    /// Answers with SRV records, and with their targets' addresses as far as there is room (RFC 2782).
    /// `ttl_s` is how long the addresses may be kept, in seconds.
    pub(crate) fn answer_services(&mut self, services: &Services, ttl_s: u32, rng: &mut impl Rng) {
        let (appended, glue) = services.append(self.out, self.end, rng);
        self.counts[Section::Answer as usize] += appended as u16;
        self.truncated |= appended < services.len();
        for (target, address) in glue {
            // Beyond, no pointer reaches it (RFC 1035 §4.1.4).
            if target < POINTED_MAX {
                self.push(Section::Additional, |out| {
                    let owner = pointer(target as u16);
                    push_record(out, owner, rtype::A, ttl_s, &address.octets());
                });
            }
        }
    }

    /// Answers with the address of the name server itself.
    pub(crate) fn name_server(&mut self, address: Ipv4Addr) {
        self.answer_one(rtype::A, NEGATIVE_TTL_S, |out| out.extend_from_slice(&address.octets()));
    }

    /// Answers with one record owned by the question's name, its data written by `data`.
    pub(crate) fn answer_one(&mut self, rtype: u16, ttl_s: u32, data: impl FnOnce(&mut Vec<u8>)) {
        self.record(Section::Answer, HEADER_BYTES as u16, rtype, ttl_s, data);
    }

    /// Adds the authority's SOA record.
    pub(crate) fn soa(&mut self, section: Section, authority: Authority, scope: &Scope) {
        self.record(section, authority.owner, rtype::SOA, NEGATIVE_TTL_S, |out| {
            let suffix = push_name_server(out, authority, scope);
            out.extend_from_slice(MAILBOX_LABEL);
            out.extend_from_slice(&pointer(suffix));
            out.extend_from_slice(&authority.serial.to_be_bytes());
            out.extend(SOA_TIMERS_S.iter().flat_map(|timer| timer.to_be_bytes()));
        });
    }

    /// Answers with the authority's NS record.
    pub(crate) fn ns(&mut self, authority: Authority, scope: &Scope) {
        self.record(Section::Answer, authority.owner, rtype::NS, NEGATIVE_TTL_S, |out| {
            push_name_server(out, authority, scope);
        });
    }

    /// Completes header and OPT record.
    pub(crate) fn finish(self, rcode: u16) {
        let echoed_question = u16::from(self.out.len() > HEADER_BYTES);
        let [answers, authorities, additional] = self.counts;
        let counts = [echoed_question, answers, authorities, additional + u16::from(self.edns.is_some())];
        if let Some(edns) = self.edns {
            // The extended response code, version 0, DO as it came (RFC 3225 §3).
            let ttl = u32::from(rcode >> 4) << 24 | u32::from(edns.dnssec_ok) << 15;
            self.out.push(0);
            self.out.extend_from_slice(&rtype::OPT.to_be_bytes());
            self.out.extend_from_slice(&UDP_BYTES_MAX.to_be_bytes());
            self.out.extend_from_slice(&ttl.to_be_bytes());
            self.out.extend_from_slice(&[0, 0]);
        }
        let [_, _, flags, more, tail @ ..] = &mut self.out[..HEADER_BYTES] else {
            unreachable!("a reply starts with the query's header");
        };
        // QR, the opcode and RD as they came, AA and TC.
        *flags = 0x80 | *flags & 0x79 | u8::from(self.authoritative) << 2 | u8::from(self.truncated) << 1;
        // RA always: Go's resolver calls a server lame that neither answers nor recurses. CD as it came.
        *more = 0x80 | *more & 0x10 | (rcode & 0xf) as u8;
        for (place, count) in tail.chunks_exact_mut(2).zip(counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
    }

    /// Adds a record whose owner's name stands at an offset of the message, its data written by `data`.
    fn record(
        &mut self,
        section: Section,
        owner: u16,
        rtype: u16,
        ttl_s: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) {
        self.push(section, |out| {
            push_record(out, pointer(owner), rtype, ttl_s, &[]);
            let start = out.len();
            data(out);
            let length = (out.len() - start) as u16;
            out[start - 2..start].copy_from_slice(&length.to_be_bytes());
        });
    }

    /// Adds a record that is left out whole if it does not fit.
    fn push(&mut self, section: Section, record: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        record(self.out);
        if self.out.len() > self.end {
            self.out.truncate(start);
            // What is only additional is not missed (RFC 2181 §9).
            self.truncated |= section != Section::Additional;
        } else {
            self.counts[section as usize] += 1;
        }
    }
}

/// A compression pointer to an offset in the message (RFC 1035 §4.1.4).
fn pointer(offset: u16) -> [u8; 2] {
    (0xc000 | offset).to_be_bytes()
}

/// Appends the name server's name and says where the scope's suffix now stands in the message.
fn push_name_server(out: &mut Vec<u8>, authority: Authority, scope: &Scope) -> u16 {
    out.extend_from_slice(NAME_SERVER_LABEL);
    match authority.suffix {
        Some(suffix) => {
            out.extend_from_slice(&pointer(suffix));
            suffix
        }
        None => {
            let suffix = out.len() as u16;
            out.extend_from_slice(scope.suffix().wire());
            suffix
        }
    }
}
