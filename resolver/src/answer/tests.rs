use super::*;
use crate::fixture::{APP, Ask, NETWORK, Z, member, members, read_whole, scope, scope_of, zone};
use crate::scope::Answers;
use crate::zone::{ZoneError, ZoneMember};
use hickory_proto::op::Message;
use hickory_proto::rr::{RData, Record};
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const HTTPS: u16 = 65;

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(1)
}

/// `CODE flags | answers | authorities`, sorted, with the zone's name as `Z`.
fn summary(message: &Message) -> String {
    let metadata = &message.metadata;
    let flags = [(metadata.authoritative, " aa"), (metadata.truncation, " tc")];
    let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let code = u16::from(metadata.response_code);
    let section = |records: &[Record]| {
        let mut lines: Vec<_> = records.iter().map(record_summary).collect();
        lines.sort();
        lines.join(", ")
    };
    let text = format!("{code}{flags} | {} | {}", section(&message.answers), section(&message.authorities));
    text.replace(&format!("{Z}."), "Z")
}

fn record_summary(record: &Record) -> String {
    let (owner, ttl) = (&record.name, record.ttl);
    match &record.data {
        RData::A(a) => format!("A {ttl} {}", a.0),
        RData::AAAA(a) => format!("AAAA {ttl} {}", a.0),
        RData::PTR(name) => format!("PTR {ttl} {}", name.0),
        RData::NS(name) => format!("{owner} NS {ttl} {}", name.0),
        RData::SOA(soa) => {
            assert_eq!((soa.minimum, soa.rname.to_ascii()), (5, format!("hostmaster.{Z}.")), "{soa:?}");
            format!("{owner} SOA {ttl} {} {}", soa.mname, soa.serial)
        }
        data => panic!("{data:?}"),
    }
}

/// A container in two networks, the first with IPv6.
fn two_networks() -> Scope {
    let six = |mut member: ZoneMember| {
        member.address6 = Some(format!("fd00::{}", member.address.octets()[3]).parse().unwrap());
        member
    };
    let first = [
        six(member("ap-1", "web", 1, [10, 240, 0, 1])),
        member("ap-1", "web", 2, [10, 240, 0, 2]),
        member("ap-1", "worker", 0, [10, 240, 0, 3]),
        member("ap-2", "worker", 10, [10, 240, 1, 4]),
    ];
    let second = [member("ap-1", "web", 1, [10, 250, 0, 1])];
    scope(
        Answers::Zones(vec![
            zone("pn-1", 7, "10.240.0.0/22", &first),
            zone("pn-2", 9, "10.250.0.0/16", &second),
        ]),
        true,
    )
}

#[test]
fn every_name_and_type_has_its_answer() {
    const PN1: &str = "0 aa |  | pn-1.Z SOA 5 ns.Z 7";
    const GONE1: &str = "3 aa |  | pn-1.Z SOA 5 ns.Z 7";
    const GONE: &str = "3 aa |  | Z SOA 5 ns.Z 9";
    let web = "0 aa | A 30 10.240.0.1, A 30 10.240.0.2 | ";
    let cases = [
        ("ap-1.pn-1.Z", rtype::A, web),
        ("web.ap-1.pn-1.Z", rtype::A, web),
        ("1.web.ap-1.pn-1.Z", rtype::A, "0 aa | A 30 10.240.0.1 | "),
        ("2.web.ap-1.pn-1.Z", rtype::A, "0 aa | A 30 10.240.0.2 | "),
        ("10.worker.ap-2.pn-1.Z", rtype::A, "0 aa | A 30 10.240.1.4 | "),
        ("worker.ap-1.pn-1.Z", rtype::A, "0 aa | A 30 10.240.0.3 | "),
        ("ap-1.pn-2.Z", rtype::A, "0 aa | A 30 10.250.0.1 | "),
        // The spelling does not matter.
        ("wEB.aP-1.Pn-1.private-NETWORK.internal", rtype::A, web),
        // One set is enough for ANY.
        ("ap-1.pn-1.Z", rtype::ANY, web),
        ("ap-1.pn-1.Z", rtype::AAAA, "0 aa | AAAA 30 fd00::1 | "),
        ("2.web.ap-1.pn-1.Z", rtype::AAAA, PN1),
        ("ap-1.pn-1.Z", HTTPS, PN1),
        ("ap-1.pn-1.Z", rtype::SOA, PN1),
        ("ap-1.pn-1.Z", rtype::PTR, PN1),
        // Numbers are written without leading zeros and start at 1.
        ("0.web.ap-1.pn-1.Z", rtype::A, GONE1),
        ("01.web.ap-1.pn-1.Z", rtype::A, GONE1),
        ("3.web.ap-1.pn-1.Z", rtype::A, GONE1),
        ("1.worker.ap-1.pn-1.Z", rtype::A, GONE1),
        ("x.1.web.ap-1.pn-1.Z", rtype::A, GONE1),
        ("ap-3.pn-1.Z", HTTPS, GONE1),
        // Nothing at it, names below it.
        ("ap-2.pn-1.Z", rtype::A, PN1),
        ("ap-2.pn-1.Z", rtype::ANY, PN1),
        ("pn-1.Z", rtype::A, PN1),
        ("pn-1.Z", rtype::SOA, "0 aa | pn-1.Z SOA 5 ns.Z 7 | "),
        ("pn-1.Z", rtype::ANY, "0 aa | pn-1.Z SOA 5 ns.Z 7 | "),
        ("pn-2.Z", rtype::NS, "0 aa | pn-2.Z NS 5 ns.Z | "),
        ("pn-1.Z", rtype::DS, "0 aa |  | Z SOA 5 ns.Z 9"),
        ("ap-1.pn-1.Z", rtype::DS, PN1),
        ("Z", rtype::SOA, "0 aa | Z SOA 5 ns.Z 9 | "),
        ("Z", rtype::NS, "0 aa | Z NS 5 ns.Z | "),
        ("Z", rtype::A, "0 aa |  | Z SOA 5 ns.Z 9"),
        ("ns.Z", rtype::A, "0 aa | A 5 127.240.0.53 | "),
        ("ns.Z", rtype::AAAA, "0 aa |  | Z SOA 5 ns.Z 9"),
        // Another network's name is as missing as any other.
        ("ap-1.pn-3.Z", rtype::A, GONE),
        ("pn-3.Z", rtype::SOA, GONE),
        ("pn-11.Z", rtype::A, GONE),
        ("ap-1.xpn-1.Z", rtype::A, GONE),
        ("x.Z", rtype::A, GONE),
        ("x.ns.Z", rtype::A, GONE),
        ("1.0.240.10.in-addr.arpa", rtype::PTR, "0 aa | PTR 30 1.web.ap-1.pn-1.Z | "),
        ("1.0.240.10.IN-addr.arpa", rtype::ANY, "0 aa | PTR 30 1.web.ap-1.pn-1.Z | "),
        ("3.0.240.10.in-addr.arpa", rtype::PTR, "0 aa | PTR 30 worker.ap-1.pn-1.Z | "),
        ("1.0.250.10.in-addr.arpa", rtype::PTR, "0 aa | PTR 30 1.web.ap-1.pn-2.Z | "),
        ("1.0.240.10.in-addr.arpa", rtype::A, "0 aa |  | 0.240.10.in-addr.arpa. SOA 5 ns.Z 7"),
        ("9.3.240.10.in-addr.arpa", rtype::PTR, "3 aa |  | 3.240.10.in-addr.arpa. SOA 5 ns.Z 7"),
        ("0.250.10.in-addr.arpa", rtype::PTR, "0 aa |  | 250.10.in-addr.arpa. SOA 5 ns.Z 9"),
        ("9.250.10.in-addr.arpa", rtype::PTR, "3 aa |  | 250.10.in-addr.arpa. SOA 5 ns.Z 9"),
        ("250.10.in-addr.arpa", rtype::NS, "0 aa | 250.10.in-addr.arpa. NS 5 ns.Z | "),
    ];
    let scope = two_networks();
    for (name, asked, expected) in cases {
        for edns in [None, Some((1232, 0, false))] {
            let ask = Ask { edns, ..Ask::new(&name.replace('Z', Z), asked) };
            let (_, message) = ask.reply(&scope, &mut rng());
            assert_eq!(summary(&message), expected, "{name} {asked}");
        }
    }
}

#[test]
fn zones_are_told_apart_in_counts() {
    let scope = two_networks();
    let cases = [
        ("ap-1.pn-1.Z", rtype::A, 0, Some(0)),
        ("ap-9.pn-2.Z", rtype::A, 3, Some(1)),
        ("1.0.250.10.in-addr.arpa", rtype::PTR, 0, Some(1)),
        ("ap-1.pn-3.Z", rtype::A, 3, None),
        ("Z", rtype::AXFR, 5, None),
    ];
    for (name, asked, rcode, zone) in cases {
        let query = Ask::new(&name.replace('Z', Z), asked).bytes();
        let outcome = answer(&query, &scope, Transport::Tcp, &mut rng(), &mut Vec::new());
        assert_eq!(outcome, Outcome::Reply { rcode, zone }, "{name}");
    }
}

#[test]
fn other_names_are_forwarded_or_missing() {
    let names = [
        "example.org",
        "internal",
        "ternal",
        "x.internal",
        "xprivate-network.internal",
        "pn-1.private-network.internal.example",
        "1.4.240.10.in-addr.arpa",
        "240.10.in-addr.arpa",
    ];
    let (open, zones) = (two_networks(), two_networks().zones().to_vec());
    let closed = scope(Answers::Zones(zones), false);
    for name in names {
        let ask = Ask { edns: Some((4096, 0, true)), ..Ask::new(name, rtype::A) };
        let outcome = answer(&ask.bytes(), &open, Transport::Udp, &mut rng(), &mut Vec::new());
        assert_eq!(outcome, Outcome::Forward, "{name}");
        let code = if name == "internal" { 0 } else { 3 };
        assert_eq!(summary(&ask.reply(&closed, &mut rng()).1), format!("{code} |  | "), "{name}");
    }
    // Nothing of ours is asked elsewhere, and what no relay can carry is refused everywhere.
    let root = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";
    assert_eq!(answer(root, &open, Transport::Udp, &mut rng(), &mut Vec::new()), Outcome::Forward);
    let there = Outcome::Reply { rcode: 0, zone: None };
    assert_eq!(answer(root, &closed, Transport::Udp, &mut rng(), &mut Vec::new()), there);
    for asked in [rtype::AXFR, rtype::IXFR] {
        let (_, message) = Ask::new("example.org", asked).reply(&open, &mut rng());
        assert_eq!(summary(&message), "5 |  | ");
    }
}

#[test]
fn before_the_view_is_whole_nothing_is_denied() {
    let unknown = scope(Answers::NotReady, true);
    for name in [format!("{APP}.{NETWORK}.{Z}"), Z.to_owned(), format!("x.{Z}")] {
        let (_, message) = Ask::new(&name, rtype::A).reply(&unknown, &mut rng());
        assert_eq!(summary(&message), "2 |  | ", "{name}");
    }
    let elsewhere = Ask::new("example.org", rtype::A).bytes();
    assert_eq!(answer(&elsewhere, &unknown, Transport::Udp, &mut rng(), &mut Vec::new()), Outcome::Forward);
}

#[test]
fn a_zone_outside_the_suffix_is_no_part_of_a_scope() {
    let zones = |network: &str, z: &str| {
        let subnet = "10.240.0.0/22".parse().unwrap();
        Answers::Zones(vec![crate::Zone::build(network, z, 30, 1, subnet, &[]).unwrap().into()])
    };
    let build = |answers| Scope::new(Z, Ipv4Addr::LOCALHOST, answers, true).map(drop);
    assert_eq!(build(zones("pn-1", Z)), Ok(()));
    let elsewhere = ZoneError::Elsewhere { network: "pn-1".into(), suffix: Z.into() };
    assert_eq!(build(zones("pn-1", "internal")), Err(elsewhere));
    assert_eq!(build(zones("private-network", "internal")).map_err(|_| ()), Err(()));
}

#[test]
fn headers_follow_the_query() {
    let scope = scope_of(&members("web", 1));
    let name = format!("{APP}.{NETWORK}.{Z}");
    // Flags of the query, flags of the reply: RD and CD are copied; AA, RA and QR set; AD, RA and Z are not ours
    // to repeat.
    for (asked, replied) in
        [([0, 0], [0x84, 0x80]), ([1, 0], [0x85, 0x80]), ([1, 0x10], [0x85, 0x90]), ([7, 0xff], [0x85, 0x90])]
    {
        let ask = Ask { flags: asked, ..Ask::new(&name, rtype::A) };
        let (bytes, _) = ask.reply(&scope, &mut rng());
        assert_eq!((&bytes[..2], &bytes[2..4]), (&[0x12, 0x34][..], &replied[..]), "{asked:?}");
    }
    let upper = Ask::new(&name.to_uppercase(), rtype::A);
    let (bytes, _) = upper.reply(&scope, &mut rng());
    let question = upper.bytes()[12..].to_vec();
    assert_eq!(bytes[12..12 + question.len()], question, "the case of the question comes back");
    for class in [2, 3, 4, 254, 255] {
        let (_, message) = Ask { class, ..Ask::new(&name, rtype::A) }.reply(&scope, &mut rng());
        assert_eq!(summary(&message), "5 |  | ", "class {class}");
    }
}

#[test]
fn edns_is_answered_as_asked() {
    let scope = scope_of(&members("web", 1));
    let name = format!("{APP}.{NETWORK}.{Z}");
    for asked in [rtype::A, rtype::AAAA] {
        let (_, message) = Ask::new(&name, asked).reply(&scope, &mut rng());
        assert!(message.edns.is_none());
        for dnssec_ok in [false, true] {
            let ask = Ask { edns: Some((4096, 0, dnssec_ok)), ..Ask::new(&name, asked) };
            let edns = ask.reply(&scope, &mut rng()).1.edns.unwrap();
            assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, dnssec_ok));
            assert!(edns.options().as_ref().is_empty());
        }
    }
    // A version we do not speak, wherever the name lies.
    for name in [&name, "example.org"] {
        let ask = Ask { edns: Some((4096, 1, false)), ..Ask::new(name, rtype::A) };
        let (_, message) = ask.reply(&scope, &mut rng());
        assert_eq!(u16::from(message.metadata.response_code), rcode::BADVERS);
        assert_eq!(message.edns.as_ref().map(|edns| edns.version()), Some(0));
        assert_eq!(message.answers.len(), 0);
    }
    // Options are not ours to read, as long as they end with the message.
    let mut query = Ask { edns: Some((4096, 0, false)), ..Ask::new(&name, rtype::A) }.bytes();
    let length_byte = query.len() - 1;
    query.extend([0, 10, 0, 2, 7, 7]);
    for (length, expected) in [(6, 0), (7, 1)] {
        query[length_byte] = length;
        let outcome = answer(&query, &scope, Transport::Udp, &mut rng(), &mut Vec::new());
        assert!(
            matches!(outcome, Outcome::Reply { rcode, .. } if rcode == expected),
            "{length}: {outcome:?}"
        );
    }
}

#[test]
fn replies_are_cut_at_whole_records() {
    // With 113-byte names 23 records fit 512 bytes and 68 fit 1232 with an OPT record; with 110-byte names it is
    // the OPT record's room that decides.
    let cases = [
        ("worker", 23, None, 23, false),
        ("worker", 24, None, 23, true),
        ("worker", 24, Some(512), 23, true),
        ("worker", 24, Some(100), 23, true),
        ("worker", 68, Some(1232), 68, false),
        ("worker", 69, Some(1232), 68, true),
        ("worker", 69, Some(u16::MAX), 68, true),
        ("worker", 69, None, 23, true),
        ("worker", 1022, Some(1232), 68, true),
        ("web", 24, None, 24, false),
        ("web", 24, Some(512), 23, true),
        ("web", 69, Some(1232), 68, true),
    ];
    for (process, count, size, expected, truncated) in cases {
        let scope = scope_of(&members(process, count));
        let name = format!("{process}.{APP}.{NETWORK}.{Z}");
        let ask = Ask { edns: size.map(|size| (size, 0, false)), ..Ask::new(&name, rtype::A) };
        assert_eq!(ask.bytes().len(), 12 + 107 + process.len() + 4 + size.map_or(0, |_| 11));
        let (bytes, message) = ask.reply(&scope, &mut rng());
        let limit = usize::from(size.unwrap_or(512).clamp(512, 1232));
        assert!(bytes.len() <= limit, "{} of {limit} bytes", bytes.len());
        let kept = (message.answers.len(), message.metadata.truncation, message.edns.is_some());
        assert_eq!(kept, (expected, truncated, size.is_some()), "{count} {process}, size {size:?}");
        let distinct: BTreeSet<_> = message.answers.iter().map(record_summary).collect();
        assert_eq!(distinct.len(), expected);
    }
}

#[test]
fn a_stream_carries_a_whole_network() {
    let scope = scope_of(&members("web", 1022));
    let name = format!("{APP}.{NETWORK}.{Z}");
    let (bytes, message) =
        Ask { transport: Transport::Tcp, ..Ask::new(&name, rtype::A) }.reply(&scope, &mut rng());
    assert!(!message.metadata.truncation);
    let distinct: BTreeSet<_> = message.answers.iter().map(record_summary).collect();
    assert_eq!((distinct.len(), bytes.len()), (1022, 12 + 106 + 4 + 1022 * 16));
    // More than a message can hold is cut there too.
    let crowd: Vec<_> = (0..5000u16)
        .map(|n| member(APP, "web", 0, [10, 240, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
        .collect();
    let ask = Ask { transport: Transport::Tcp, edns: Some((1232, 0, false)), ..Ask::new(&name, rtype::A) };
    let (bytes, message) = ask.reply(&scope_of(&crowd), &mut rng());
    assert!(message.metadata.truncation && bytes.len() > 65_535 - 16);
}

#[test]
fn late_members_come_last() {
    let mut all = members("web", 20);
    all.iter_mut().take(5).for_each(|member| member.late = true);
    let scope = scope_of(&all);
    let rng = &mut rng();
    for _ in 0..50 {
        let (_, message) = Ask::new(&format!("{APP}.{NETWORK}.{Z}"), rtype::A).reply(&scope, rng);
        let late: Vec<_> = message
            .answers
            .iter()
            .map(|record| matches!(&record.data, RData::A(a) if a.0.octets()[3] <= 5))
            .collect();
        assert_eq!(late, [[false; 15].as_slice(), &[true; 5]].concat());
    }
}

#[test]
fn odd_queries_get_their_error() {
    let scope = scope_of(&members("web", 1));
    let plain = Ask::new(&format!("{APP}.{NETWORK}.{Z}"), rtype::A).bytes();
    let with_edns =
        Ask { edns: Some((1232, 0, true)), ..Ask::new(&format!("{APP}.{NETWORK}.{Z}"), rtype::A) };
    let with_edns = with_edns.bytes();
    let opt = &with_edns[plain.len()..];
    let change = |bytes: &[u8], changes: &[(usize, u8)], more: &[u8]| {
        let mut bytes = [bytes, more].concat();
        changes.iter().for_each(|(index, byte)| bytes[*index] = *byte);
        bytes
    };
    let a_record = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04";
    // Code, whether the question and an OPT record come back.
    let cases = [
        ("header only", plain[..12].to_vec(), 1, 0, false),
        ("no question", change(&plain[..12], &[(5, 0)], &[]), 1, 0, false),
        ("two questions", change(&plain, &[(5, 2)], b"\0\0\x01\0\x01"), 1, 0, false),
        ("no question, with OPT", change(&plain[..12], &[(5, 0), (11, 1)], opt), 1, 0, true),
        ("compressed question", change(&plain[..12], &[], b"\xc0\x0c\0\x01\0\x01"), 1, 0, false),
        ("cut question", plain[..plain.len() - 1].to_vec(), 1, 0, false),
        ("OPT is missing", change(&plain, &[(11, 1)], &[]), 1, 1, false),
        ("OPT is cut", with_edns[..with_edns.len() - 1].to_vec(), 1, 1, false),
        ("two OPT", change(&with_edns, &[(11, 2)], opt), 1, 1, false),
        ("longer than any query", change(&plain, &[], &[0; 4096]), 1, 1, false),
        ("NOTIFY", change(&with_edns, &[(2, 4 << 3)], &[]), 5, 1, true),
        ("UPDATE", change(&plain, &[(2, 5 << 3)], &[]), 5, 1, false),
        ("IQUERY", change(&plain, &[(2, 1 << 3)], &[]), 4, 1, false),
        ("STATUS", change(&with_edns, &[(2, 2 << 3)], &[]), 4, 1, true),
        ("opcode 15", change(&plain, &[(2, 15 << 3)], &[]), 4, 1, false),
        ("an answer in a query", change(&plain, &[(7, 1)], a_record), 0, 1, false),
        ("OPT is not alone", change(&with_edns, &[(11, 2)], a_record), 0, 1, true),
    ];
    for (what, query, code, questions, has_opt) in cases {
        let mut out = Vec::new();
        let outcome = answer(&query, &scope, Transport::Udp, &mut rng(), &mut out);
        assert!(matches!(outcome, Outcome::Reply { rcode, .. } if rcode == code), "{what}: {outcome:?}");
        let message = read_whole(&out);
        let came_back = (message.queries.len(), message.edns.is_some());
        assert_eq!(came_back, (questions, has_opt), "{what}");
        assert_eq!(u16::from(message.metadata.response_code), code, "{what}");
        assert_eq!((&out[..2], out[2] & 0xf8), (&query[..2], 0x80 | query[2] & 0x78), "{what}");
    }
}

#[test]
fn what_cannot_be_answered_is_dropped() {
    let scope = two_networks();
    let response = [&[0, 1, 0x80][..], &[0; 20]].concat();
    for (query, reason) in
        [(&b""[..], DropReason::Short), (&[0; 11], DropReason::Short), (&response, DropReason::Response)]
    {
        assert_eq!(answer(query, &scope, Transport::Udp, &mut rng(), &mut Vec::new()), Outcome::Drop(reason));
    }
}

#[test]
fn a_failed_relay_is_servfail() {
    let ask = Ask { edns: Some((4096, 0, true)), ..Ask::new("Example.org", rtype::A) };
    let mut out = b"left over".to_vec();
    servfail(&ask.bytes(), Transport::Udp, &mut out);
    let message = read_whole(&out);
    assert_eq!(summary(&message), "2 |  | ");
    assert!(message.edns.is_some_and(|edns| edns.flags().dnssec_ok));
    assert_eq!(out[12..20], ask.bytes()[12..20]);
}
