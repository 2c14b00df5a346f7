//! Networks, queries and the oracle of this crate's tests.

use crate::answer::{Outcome, Transport, answer};
use crate::name::Suffix;
use crate::records::{Facts, rtype};
use crate::scope::{Answers, Scope};
use crate::zone::{Zone, ZoneMember};
use hickory_proto::op::Message;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use rand::Rng;
use std::net::Ipv4Addr;
use std::sync::Arc;

pub(crate) const Z: &str = "private-network.internal";
/// As long as real ones: 106 bytes of wire name for the application, with `worker.` 113.
pub(crate) const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
pub(crate) const APP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

pub(crate) fn member(app: &str, process: &str, ordinal: u32, address: [u8; 4]) -> ZoneMember {
    let ordinal = (ordinal > 0).then_some(ordinal);
    ZoneMember {
        app: app.into(),
        process: process.into(),
        ordinal,
        address: address.into(),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    }
}

/// `count` containers of one type, numbered from 1, from 10.240.0.1 on.
pub(crate) fn members(process: &str, count: u16) -> Vec<ZoneMember> {
    let address = |n: u16| [10, 240, n.to_be_bytes()[0], n.to_be_bytes()[1]];
    (1..=count).map(|n| member(APP, process, n.into(), address(n))).collect()
}

pub(crate) fn zone(network: &str, serial: u32, subnet: &str, members: &[ZoneMember]) -> Arc<Zone> {
    Arc::new(Zone::build(network, Z, 30, serial, subnet.parse().unwrap(), members).unwrap())
}

pub(crate) fn scope(answers: Answers, forward: bool) -> Scope {
    Scope::new(Z, Ipv4Addr::new(127, 240, 0, 53), answers, forward).unwrap()
}

/// The scope of a container in one network with these members.
pub(crate) fn scope_of(members: &[ZoneMember]) -> Scope {
    scope(Answers::Zones(vec![zone(NETWORK, 7, "10.240.0.0/22", members)]), true)
}

/// A query as a client writes it; change what a test is about.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) name: String,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    /// Bytes 2 and 3 of the header.
    pub(crate) flags: [u8; 2],
    /// Payload size, version, DO.
    pub(crate) edns: Option<(u16, u8, bool)>,
    pub(crate) transport: Transport,
}

impl Ask {
    pub(crate) fn new(name: &str, rtype: u16) -> Ask {
        let name = name.to_owned();
        Ask { name, rtype, class: 1, flags: [1, 0], edns: None, transport: Transport::Udp }
    }

    /// Header and question, the name spelled as given.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let [f0, f1] = self.flags;
        let mut bytes = vec![0x12, 0x34, f0, f1, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())];
        let wire = Suffix::parse(&self.name).unwrap();
        let mut spelled = [".", self.name.trim_end_matches('.'), "\0"].concat().into_bytes();
        for (byte, wire) in spelled.iter_mut().zip(wire.wire()) {
            if *byte == b'.' {
                *byte = *wire;
            }
        }
        bytes.extend(spelled);
        bytes.extend([self.rtype.to_be_bytes(), self.class.to_be_bytes()].concat());
        if let Some((size, version, dnssec_ok)) = self.edns {
            bytes.extend([&[0][..], &rtype::OPT.to_be_bytes(), &size.to_be_bytes()].concat());
            bytes.extend([0, version, u8::from(dnssec_ok) << 7, 0, 0, 0]);
        }
        bytes
    }

    /// The reply, which must be one, as bytes and as hickory reads it.
    pub(crate) fn reply(&self, scope: &Scope, rng: &mut impl Rng) -> (Vec<u8>, Message) {
        let mut out = Vec::new();
        let outcome = answer(&self.bytes(), scope, self.transport, rng, &mut out);
        assert!(matches!(outcome, Outcome::Reply { .. }), "{outcome:?}");
        let message = read_whole(&out);
        (out, message)
    }
}

/// Reads a message with hickory, which must leave no byte over.
pub(crate) fn read_whole(bytes: &[u8]) -> Message {
    let mut decoder = BinDecoder::new(bytes);
    let message = Message::read(&mut decoder).unwrap_or_else(|error| panic!("{error}: {bytes:x?}"));
    assert!(decoder.is_empty(), "bytes left over: {bytes:x?}");
    message
}
