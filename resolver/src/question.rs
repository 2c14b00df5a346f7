//! Reading a query of the one shape nearly all have; [`crate::odd`] reads the others.

use crate::name::QuestionName;
use crate::records::rtype;
use crate::scope::HEADER_BYTES;

/// Longest query we read; none that makes sense comes near.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// Type and class behind the question's name.
const TYPE_AND_CLASS_BYTES: usize = 4;
/// An OPT record without options: root name, type, size, flags, length (RFC 6891 §6.1.2).
pub(crate) const OPT_BYTES: usize = 11;

/// A query with one question.
pub(crate) struct Question<'q> {
    /// Header and question as they came, to be echoed: the case of the name is the client's (0x20).
    pub(crate) head: &'q [u8],
    pub(crate) name: QuestionName,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// What an OPT record says (RFC 6891 §6.1.3); its options are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The client's UDP payload size in bytes.
    pub(crate) payload_bytes: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
}

impl<'q> Question<'q> {
    /// Reads a standard query with one question and at most an OPT record behind it. `None` for any other shape.
    pub(crate) fn read(query: &'q [u8]) -> Option<Question<'q>> {
        let opts = match query.get(..HEADER_BYTES)? {
            [_, _, flags, _, 0, 1, 0, 0, 0, 0, 0, opts @ (0 | 1)] if flags & 0xf8 == 0 => *opts,
            _ => return None,
        };
        let mut question = Question::read_first(query).filter(|_| query.len() <= QUERY_BYTES_MAX)?;
        match (opts, &query[question.head.len()..]) {
            (0, []) => {}
            (1, opt) => question.edns = Some(read_opt(opt)?),
            _ => return None,
        }
        Some(question)
    }

    /// Reads the first question, whatever follows it.
    pub(crate) fn read_first(query: &'q [u8]) -> Option<Question<'q>> {
        let name = QuestionName::read(query.get(HEADER_BYTES..)?)?;
        let name_end = HEADER_BYTES + name.len();
        let end = name_end + TYPE_AND_CLASS_BYTES;
        let [t0, t1, c0, c1] = *query.get(name_end..end)?.first_chunk()?;
        let (rtype, class) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
        Some(Question { head: &query[..end], name, rtype, class, edns: None })
    }
}

/// Reads an OPT record that ends the message; `None` for anything else.
fn read_opt(record: &[u8]) -> Option<Edns> {
    let (fixed, options) = record.split_first_chunk::<OPT_BYTES>()?;
    let [root, t0, t1, s0, s1, _, version, flags, _, l0, l1] = *fixed;
    let fits = options.len() == usize::from(u16::from_be_bytes([l0, l1]));
    if root != 0 || u16::from_be_bytes([t0, t1]) != rtype::OPT || !fits {
        return None;
    }
    Some(Edns { payload_bytes: u16::from_be_bytes([s0, s1]), version, dnssec_ok: flags & 0x80 != 0 })
}
