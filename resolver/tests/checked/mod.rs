//! What must hold of the reply to any bytes at all: the fuzzer and the corpus test hold `answer()` to it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use resolver::{Answers, Outcome, Port, Scope, Transport, Zone, ZoneMember, answer};

pub const SUFFIX: &str = "private-network.internal";
pub const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
pub const APP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

/// Scopes of every kind: full, small, empty, not ready.
pub struct Scopes([Scope; 4]);

impl Scopes {
    pub fn new() -> Scopes {
        let scope =
            |answers, forward| Scope::new(SUFFIX, Ipv4Addr::new(127, 240, 0, 53), answers, forward).unwrap();
        Scopes([
            scope(Answers::Zones(vec![zone(1022)]), true),
            scope(Answers::Zones(vec![zone(3)]), false),
            scope(Answers::Zones(Vec::new()), false),
            scope(Answers::NotReady, true),
        ])
    }

    /// Answers `input` and checks the reply. Its first byte chooses scope and transport, the rest is the query.
    pub fn check(&self, input: &[u8]) {
        let Some((choice, query)) = input.split_first() else { return };
        let transport = if choice & 4 == 0 { Transport::Udp } else { Transport::Tcp };
        let mut reply = Vec::new();
        let rng = &mut SmallRng::seed_from_u64(u64::from(*choice));
        match answer(query, &self.0[usize::from(choice & 3)], transport, rng, &mut reply) {
            Outcome::Drop(_) => {
                assert!(query.len() < 12 || query[2] & 0x80 != 0, "only what cannot be answered")
            }
            Outcome::Forward => assert!(query.len() >= 12),
            Outcome::Reply { rcode, .. } => check_reply(query, &reply, rcode, transport),
        }
    }
}

fn check_reply(query: &[u8], reply: &[u8], rcode: u16, transport: Transport) {
    let mut decoder = BinDecoder::new(reply);
    let message = Message::read(&mut decoder).unwrap_or_else(|error| panic!("{error}: {reply:x?}"));
    assert!(decoder.is_empty(), "bytes left over: {reply:x?}");
    assert_eq!(u16::from(message.metadata.response_code), rcode);
    assert_eq!((&reply[..2], reply[2] & 0xf8), (&query[..2], 0x80 | query[2] & 0x78), "id, QR and opcode");
    let most = if matches!(transport, Transport::Udp) { 1232 } else { 65_535 };
    assert!(
        reply.len() <= most && (message.edns.is_some() || transport != Transport::Udp || reply.len() <= 512)
    );
    if let [question] = &message.queries[..] {
        assert!(query.len() > 16 && reply[12..].starts_with(&query[12..17]), "the question as it came");
        assert!(
            message.answers.iter().all(|record| record.name == question.name),
            "its owner is the name asked"
        );
    }
}

fn zone(members: u16) -> Arc<Zone> {
    let member = |n: u16| ZoneMember {
        app: APP.into(),
        process: if n.is_multiple_of(3) { "worker" } else { "web" }.into(),
        ordinal: (!n.is_multiple_of(5)).then_some(u32::from(n)),
        address: Ipv4Addr::from(0x0af0_0000 + u32::from(n)),
        address6: n.is_multiple_of(2).then(|| Ipv6Addr::from(u128::from(n))),
        ports: vec![Port { service: "http".into(), protocol: "tcp", number: 80 }],
        facts: [format!("member={n}")].into_iter().collect(),
        late: n.is_multiple_of(7),
    };
    let members: Vec<_> = (1..=members).map(member).collect();
    Arc::new(Zone::build(NETWORK, SUFFIX, 30, 7, "10.240.0.0/22".parse().unwrap(), &members).unwrap())
}
