//! What holds for any bytes at all.

use super::*;
use crate::fixture::{APP, Ask, NETWORK, Z, members, read_whole, scope, scope_of};
use crate::scope::Answers;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

/// A query that makes sense, for names in and around the zone.
fn query() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(format!("{APP}.{NETWORK}.{Z}")),
        Just(format!("worker.{APP}.{NETWORK}.{Z}")),
        Just(format!("{NETWORK}.{Z}")),
        Just(Z.to_owned()),
        "([a-zA-Z0-9]{1,20}\\.){1,6}",
        "[0-9]{1,3}\\.[0-3]\\.240\\.10\\.in-addr\\.arpa",
        "[a-z0-9]{1,63}\\.[a-z]{1,63}".prop_map(|labels| format!("{labels}.{APP}.{Z}")),
    ];
    let rtype = prop_oneof![Just(1u16), Just(2), Just(6), Just(12), Just(28), Just(255), any::<u16>()];
    let class = prop_oneof![9 => Just(1u16), 1 => any::<u16>()];
    let edns = prop::option::of((any::<u16>(), prop_oneof![9 => Just(0u8), 1 => any::<u8>()], any::<bool>()));
    (name, rtype, class, any::<[u8; 2]>(), edns).prop_map(|(name, rtype, class, flags, edns)| {
        Ask { class, edns, flags: [flags[0] & 1, flags[1]], ..Ask::new(&name, rtype) }.bytes()
    })
}

/// A query with some of its bytes changed, cut or grown.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (query(), changes, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(
        |(mut query, changes, cut, more)| {
            for (index, byte) in changes {
                *index.get_mut(&mut query) = byte;
            }
            if more.len() % 2 == 0 {
                query.truncate(cut.index(query.len()));
            }
            query.extend(more);
            query
        },
    )
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![query(), damaged(), prop::collection::vec(any::<u8>(), 0..600)]
}

/// The most a reply may take.
fn limit(query: &[u8], transport: Transport) -> usize {
    let edns = Question::read(query).map(|question| question.edns);
    match (transport, edns) {
        (Transport::Tcp, _) => 65_535,
        (Transport::Udp, Some(None)) => 512,
        (Transport::Udp, Some(Some(edns))) => usize::from(edns.payload_bytes.clamp(512, 1232)),
        (Transport::Udp, None) => 1232,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_query_gets_a_reply_that_can_be_read(
        query in any_bytes(),
        tcp in any::<bool>(),
        scope_index in 0usize..4,
        seed in any::<u64>(),
    ) {
        let scopes = [
            scope_of(&members("worker", 100)),
            scope_of(&members("web", 24)),
            scope(Answers::NotReady, true),
            scope(Answers::Zones(Vec::new()), false),
        ];
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let mut out = Vec::new();
        let rng = &mut SmallRng::seed_from_u64(seed);
        match answer(&query, &scopes[scope_index], transport, rng, &mut out) {
            Outcome::Drop(DropReason::Short) => prop_assert!(query.len() < 12),
            Outcome::Drop(reason) => prop_assert!(reason == DropReason::Response && query[2] >= 0x80),
            Outcome::Forward => {
                servfail(&query, transport, &mut out);
                prop_assert_eq!(u16::from(read_whole(&out).metadata.response_code), rcode::SERVFAIL);
            }
            Outcome::Reply { rcode, .. } => {
                let message = read_whole(&out);
                prop_assert_eq!(u16::from(message.metadata.response_code), rcode);
                prop_assert_eq!(&out[..2], &query[..2]);
                prop_assert_eq!(out[2] & 0xf8, 0x80 | query[2] & 0x78);
                prop_assert!(out.len() <= limit(&query, transport));
                if let [question] = &message.queries[..] {
                    let end = 12 + Question::read_first(&query).unwrap().name.len() + 4;
                    prop_assert_eq!(&out[12..end], &query[12..end]);
                    prop_assert!(message.answers.iter().all(|record| record.name == question.name));
                }
            }
        }
    }
}
