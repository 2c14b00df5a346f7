//! Queries of unusual shape, read by hickory-server: more records than an OPT, other opcodes, rubbish.
//!
//! It only reads: a query with a TSIG behind it may get any answer, and hickory-server's encoder (0.26.3)
//! malforms the ones it truncates and cannot hold a thousand records, so [`crate::reply`] writes these too.

use crate::question::{Edns, QUERY_BYTES_MAX, Question};
use crate::reply::rcode;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::OpCode;
use hickory_server::server::Request;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A request has a source; nothing that is read here depends on it.
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A query that gets an error whatever its name is.
pub(crate) struct Refusal {
    pub(crate) rcode: u16,
    pub(crate) edns: Option<Edns>,
    /// Whether its question can be echoed.
    pub(crate) has_question: bool,
}

/// Reads a query that [`Question::read`] did not.
pub(crate) fn read(query: &[u8]) -> Result<Question<'_>, Refusal> {
    let fits = query.len() <= QUERY_BYTES_MAX;
    let request = fits.then(|| Request::from_bytes(query.to_vec(), SOURCE, Protocol::Udp).ok()).flatten();
    let edns = request.as_ref().and_then(|request| request.edns.as_ref()).map(|edns| Edns {
        payload_bytes: edns.max_payload(),
        version: edns.version(),
        dnssec_ok: edns.flags().dnssec_ok,
    });
    let question = Question::read_first(query).filter(|_| query[4..6] == [0, 1]);
    let refusal = |rcode, has_question| Err(Refusal { rcode, edns, has_question });
    let opcode = OpCode::from_u8(query[2] >> 3 & 0xf);
    match (opcode, question) {
        // Nobody may change or announce a zone here; clients that try stop at once.
        (OpCode::Notify | OpCode::Update, question) => refusal(rcode::REFUSED, question.is_some()),
        (OpCode::Query, Some(question)) if request.is_some() => Ok(Question { edns, ..question }),
        (OpCode::Query, question) => refusal(rcode::FORMERR, question.is_some()),
        (_, question) => refusal(rcode::NOTIMP, question.is_some()),
    }
}
