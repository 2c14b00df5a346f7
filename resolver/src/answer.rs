//! From a query and a scope to a reply: every rule of what is answered how, and no IO.

use crate::odd;
use crate::question::Question;
use crate::records::{CLASS_IN, rtype};
use crate::reply::{Reply, Section, rcode};
use crate::scope::{Authority, Content, HEADER_BYTES, Place, Scope};
use rand::Rng;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: at most 512 bytes of reply, with EDNS at most 1232.
    Udp,
    /// A stream: at most 65,535 bytes of reply.
    Tcp,
}

/// What to do with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send what was written.
    Reply {
        /// The response code, extended ones (RFC 6891 §6.1.3) included.
        rcode: u16,
        /// The zone the name belongs to, an index into [`Scope::zones`].
        zone: Option<usize>,
    },
    /// Relay the query to an upstream.
    Forward,
    /// Send nothing.
    Drop(DropReason),
}

/// Why a query got no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than a header: there is no id to answer.
    Short,
    /// A response: answering it could start a loop.
    Response,
    /// Its source cannot be answered.
    Source,
    /// The socket would not take the reply.
    Send,
}

/// Answers `query` as `scope` allows. On [`Outcome::Reply`] `out` holds the whole message (for TCP without its
/// length); otherwise its content means nothing. Never panics, whatever the bytes.
pub fn answer(
    query: &[u8],
    scope: &Scope,
    transport: Transport,
    rng: &mut impl Rng,
    out: &mut Vec<u8>,
) -> Outcome {
    match query.get(..HEADER_BYTES) {
        None => return Outcome::Drop(DropReason::Short),
        Some(header) if header[2] & 0x80 != 0 => return Outcome::Drop(DropReason::Response),
        Some(_) => {}
    }
    let question = match Question::read(query).map_or_else(|| odd::read(query), Ok) {
        Ok(question) => question,
        Err(refusal) => {
            let question = Question::read_first(query).filter(|_| refusal.has_question);
            let head = question.map_or(&query[..HEADER_BYTES], |question| question.head);
            return finish(Reply::new(head, refusal.edns, transport, out), refusal.rcode, None);
        }
    };
    let reply = Reply::new(question.head, question.edns, transport, out);
    if question.edns.is_some_and(|edns| edns.version != 0) {
        return finish(reply, rcode::BADVERS, None);
    }
    if question.class != CLASS_IN || matches!(question.rtype, rtype::AXFR | rtype::IXFR) {
        return finish(reply, rcode::REFUSED, None);
    }
    match scope.place(&question.name) {
        Place::Outside if scope.forwards() => Outcome::Forward,
        // Not REFUSED: musl ends a search list there, and glibc asks thrice and speaks of a temporary failure. No SOA
        // record, so nobody keeps it (RFC 2308 §5).
        Place::Outside if scope.is_above_ours(&question.name) => finish(reply, rcode::NOERROR, None),
        Place::Outside => finish(reply, rcode::NXDOMAIN, None),
        Place::Unknown => finish(reply, rcode::SERVFAIL, None),
        Place::Inside { authority, zone, content } => {
            let rcode = answer_inside(reply, &question, scope, authority, &content, rng);
            Outcome::Reply { rcode, zone }
        }
    }
}

/// Writes SERVFAIL for a query that [`answer`] wanted forwarded and no upstream answered.
pub(crate) fn servfail(query: &[u8], transport: Transport, out: &mut Vec<u8>) {
    if let Some(question) = Question::read(query).or_else(|| odd::read(query).ok()) {
        Reply::new(question.head, question.edns, transport, out).finish(rcode::SERVFAIL);
    }
}

fn finish(reply: Reply<'_>, rcode: u16, zone: Option<usize>) -> Outcome {
    reply.finish(rcode);
    Outcome::Reply { rcode, zone }
}

/// Answers for a name of ours and says with which code.
fn answer_inside(
    mut reply: Reply<'_>,
    question: &Question<'_>,
    scope: &Scope,
    authority: Authority,
    content: &Content<'_>,
    rng: &mut impl Rng,
) -> u16 {
    reply.set_authoritative();
    let mut code = rcode::NOERROR;
    match (content, question.rtype) {
        (Content::Apex, rtype::SOA | rtype::ANY) => reply.soa(Section::Answer, authority, scope),
        (Content::Apex, rtype::NS) => reply.ns(authority, scope),
        (Content::NameServer, rtype::A | rtype::ANY) => reply.name_server(scope.name_server()),
        // ANY gets one set of records (RFC 8482 §4.1).
        (Content::Node(zone, node), rtype::SRV | rtype::ANY) if !node.services.is_empty() => {
            reply.answer_services(&node.services, zone.ttl_s(), rng);
        }
        (Content::Node(_, node), rtype::A | rtype::ANY) if !node.a.is_empty() => reply.answer(&node.a, rng),
        (Content::Node(_, node), rtype::AAAA) if !node.aaaa.is_empty() => reply.answer(&node.aaaa, rng),
        (Content::Node(zone, node), rtype::TXT) if !node.txt.is_empty() => {
            reply.answer_one(rtype::TXT, zone.ttl_s(), |out| out.extend_from_slice(node.txt.data()));
        }
        (Content::Pointer(zone, labels), rtype::PTR | rtype::ANY) => {
            reply.answer_one(rtype::PTR, zone.ttl_s(), |out| {
                out.extend_from_slice(labels);
                out.extend_from_slice(zone.suffix().wire());
            });
        }
        _ => {
            if matches!(content, Content::Missing) {
                code = rcode::NXDOMAIN;
            }
            reply.soa(Section::Authority, denying(question, scope, authority), scope);
        }
    }
    reply.finish(code);
    code
}

/// Who denies a record: DS is the parent's, and a network's parent is the suffix (RFC 4035 §3.1.4.1).
fn denying(question: &Question<'_>, scope: &Scope, authority: Authority) -> Authority {
    match (question.rtype, authority.suffix) {
        (rtype::DS, Some(_)) if usize::from(authority.owner) == HEADER_BYTES => {
            scope.authority(&question.name)
        }
        _ => authority,
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
