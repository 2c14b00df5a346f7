//! SRV records (RFC 2782): which ports the containers behind a name publish.

use crate::records::{FIXED_BYTES, OWNER, push_record, rtype};
use rand::{Rng, RngExt};
use std::net::Ipv4Addr;

/// A port a container publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The service, such as `http`: the name's first label without its underscore.
    pub service: String,
    /// `tcp` or `udp`: the second.
    pub protocol: &'static str,
    /// The port.
    pub number: u16,
}

/// Where one service is to be had.
pub(crate) struct Target {
    /// Its host has not been heard of for a while: clients are to try the others first.
    pub(crate) late: bool,
    /// The name it is found by, whole and in wire form.
    pub(crate) name: Vec<u8>,
    pub(crate) port: u16,
    /// The one address of that name; `None` where the name has several.
    pub(crate) address: Option<Ipv4Addr>,
}

/// All that have the same chance to be chosen carry the same weight.
const WEIGHT: u16 = 1;
/// Bytes of a SRV record's data before its target: priority, weight, port.
const BEFORE_TARGET_BYTES: usize = 6;

/// The SRV records of one name.
#[derive(Debug, Default)]
pub(crate) struct Services {
    records: Box<[Record]>,
}

#[derive(Debug)]
struct Record {
    wire: Box<[u8]>,
    address: Option<Ipv4Addr>,
}

/// Where in a message the target of a record stands, and its one address.
pub(crate) type Glue = (usize, Ipv4Addr);

impl Services {
    pub(crate) fn new(ttl_s: u32, targets: impl Iterator<Item = Target>) -> Services {
        let encode = |target: Target| {
            let mut data = Vec::with_capacity(BEFORE_TARGET_BYTES + target.name.len());
            data.extend_from_slice(&u16::from(target.late).to_be_bytes());
            data.extend_from_slice(&WEIGHT.to_be_bytes());
            data.extend_from_slice(&target.port.to_be_bytes());
            // Never compressed (RFC 2782): a client need not understand a pointer here.
            data.extend_from_slice(&target.name);
            let mut wire = Vec::with_capacity(FIXED_BYTES + data.len());
            push_record(&mut wire, OWNER, rtype::SRV, ttl_s, &data);
            Record { wire: wire.into(), address: target.address }
        };
        Services { records: targets.map(encode).collect() }
    }

    /// Whether there is no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Appends as many whole records as end before `end`, beginning with any of them: clients choose by priority
    /// and weight. Says how many, and where the targets with one address stand.
    pub(crate) fn append<'s, R: Rng>(
        &'s self,
        out: &mut Vec<u8>,
        end: usize,
        rng: &mut R,
    ) -> (usize, impl Iterator<Item = Glue> + use<'s, R>) {
        let (before, from) = self.records.split_at(rng.random_range(0..self.len().max(1)));
        let records = from.iter().chain(before);
        let (mut at, mut appended) = (out.len(), 0);
        for record in records.clone() {
            if out.len() + record.wire.len() > end {
                break;
            }
            out.extend_from_slice(&record.wire);
            appended += 1;
        }
        let glue = records.take(appended).filter_map(move |record| {
            let target = at + FIXED_BYTES + BEFORE_TARGET_BYTES;
            at += record.wire.len();
            record.address.map(|address| (target, address))
        });
        (appended, glue)
    }
}
