//! The wire form of a frame: one byte for the format, a header that is read without the rest (most
//! copies are duplicates), and the keys, compressed.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::interner::{Interner, Unpacked};
use crate::packed::{pack, unpack};
use crate::stretch::{Extent, KeyValue, Stretch};

/// The frame format this build writes, and the one it reads.
const FORMAT: u8 = 1;
/// Longest body once unpacked: what its owner may push, with room for a newer version's keys.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What a frame says before its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header<'a> {
    pub(super) node_id: &'a str,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
    pub(super) extent: Extent,
}

/// A frame whose header was read.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: Header<'a>,
    rest: &'a [u8],
}

/// The bytes are no frame that this build reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of format {FORMAT}")]
pub(super) struct MalformedFrame;

/// Writes a stretch as a frame.
pub(super) fn encode(stretch: &Stretch<'_>) -> Bytes {
    let header = Header {
        node_id: &stretch.owner.node_id,
        generation: stretch.owner.generation_id,
        address: stretch.owner.gossip_advertise_addr,
        extent: stretch.extent,
    };
    let mut frame = postcard::to_extend(&header, vec![FORMAT]).expect("a vector takes what has a plain form");
    let body = postcard::to_allocvec(&stretch.key_values).expect("text and numbers have a plain form");
    pack(&body, &mut frame);
    frame.into()
}

impl<'a> Frame<'a> {
    /// Reads the header.
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, MalformedFrame> {
        let bytes = bytes.strip_prefix(&[FORMAT]).ok_or(MalformedFrame)?;
        let (header, rest) = postcard::take_from_bytes(bytes).map_err(|_| MalformedFrame)?;
        Ok(Self { header, rest })
    }

    /// Unpacks the keys, for [`key_values`].
    pub(super) fn body(&self, seen: &Interner) -> Result<Unpacked<'a>, MalformedFrame> {
        seen.unpacked(self.rest, || unpack(self.rest, BODY_BYTES_MAX)).ok_or(MalformedFrame)
    }
}

/// Reads the keys out of a frame's body.
pub(super) fn key_values(body: &[u8]) -> Result<Vec<KeyValue<'_>>, MalformedFrame> {
    match postcard::take_from_bytes(body) {
        Ok((key_values, [])) => Ok(key_values),
        _ => Err(MalformedFrame),
    }
}

#[cfg(test)]
mod tests {
    use chitchat::ChitchatId;
    use proptest::prelude::*;

    use super::*;
    use crate::stretch::Status;

    fn stretch<'a>(keys: &'a [String], value: &'a str) -> Stretch<'a> {
        let status = |version| [Status::Set, Status::Deleted, Status::Expiring][version as usize % 3];
        let kv = |(version, key)| KeyValue { key, value, version, status: status(version) };
        Stretch {
            owner: ChitchatId::new("0123456789ab", 7, "[fd00::1]:7946".parse().unwrap()),
            extent: Extent { from: 0, to: keys.len() as u64, gc: 3 },
            key_values: (1..).zip(keys.iter().map(String::as_str)).map(kv).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let keys: Vec<String> = (0..20).map(|n| format!("mem/pn-0/{n:016x}")).collect();
        for keys in [&keys[..], &keys[..1], &[]] {
            let stretch = stretch(keys, r#"{"v":1,"c":5,"state":"ready"}"#);
            let bytes = encode(&stretch);
            let frame = Frame::of(&bytes).unwrap();
            let Header { node_id, generation, address, extent } = frame.header;
            let owner = ChitchatId::new(node_id, generation, address);
            assert_eq!((&owner, extent), (&stretch.owner, stretch.extent));
            assert_eq!(key_values(&frame.body(&Interner::default()).unwrap()).unwrap(), stretch.key_values);
        }
    }

    #[test]
    fn golden_vector() {
        let keys = ["host".to_owned()];
        let bytes = encode(&stretch(&keys, "{}"));
        let expected = b"\x01\x0c0123456789ab\x07\x01\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x8a\x3e\0\x01\x03\0\0\0\0\x01\x04host\x02{}\x01\x01";
        assert_eq!(&bytes[..], &expected[..]);
    }

    #[test]
    fn another_format_is_none() {
        let mut bytes = encode(&stretch(&["host".to_owned()], "{}")).to_vec();
        bytes[0] = 2;
        assert_eq!(Frame::of(&bytes).unwrap_err(), MalformedFrame);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            for bytes in [bytes.clone(), [vec![FORMAT], bytes].concat()] {
                if let Ok(frame) = Frame::of(&bytes) && let Ok(body) = frame.body(&Interner::default()) {
                    _ = key_values(&body);
                }
            }
        }
    }
}
