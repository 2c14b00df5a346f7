//! Published ports (SRV) and facts (TXT).

use super::*;
use crate::fixture::{APP, Ask, NETWORK, Z, member, members, read_whole, scope_of};
use crate::services::Port;
use crate::zone::ZoneMember;
use hickory_proto::op::Message;
use hickory_proto::rr::{RData, Record};
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::BTreeSet;

fn publishing(mut member: ZoneMember, ports: &[(&str, &'static str, u16)]) -> ZoneMember {
    let port = |(service, protocol, number): &(&str, &'static str, u16)| Port {
        service: (*service).into(),
        protocol,
        number: *number,
    };
    member.ports = ports.iter().map(port).collect();
    member
}

fn region() -> Scope {
    let http = [("http", "tcp", 3000), ("53", "udp", 53)];
    let late = |member| ZoneMember { late: true, ..member };
    let facts =
        |member| ZoneMember { facts: ["host=host-a", &"x".repeat(300)].into_iter().collect(), ..member };
    scope_of(&[
        facts(publishing(member(APP, "web", 1, [10, 240, 0, 1]), &http)),
        late(publishing(member(APP, "web", 2, [10, 240, 0, 2]), &[("http", "tcp", 3001)])),
        member(APP, "web", 3, [10, 240, 0, 3]),
        publishing(member(APP, "worker", 0, [10, 240, 0, 4]), &[("http", "tcp", 80)]),
        late(publishing(member(APP, "worker", 0, [10, 240, 0, 5]), &[("http", "tcp", 80)])),
    ])
}

fn ask(name: &str, rtype: u16, transport: Transport, scope: &Scope) -> (Vec<u8>, Message) {
    let name = format!("{name}.{APP}.{NETWORK}.{Z}");
    Ask { transport, ..Ask::new(&name, rtype) }.reply(scope, &mut SmallRng::seed_from_u64(1))
}

fn lines(records: &[Record]) -> BTreeSet<String> {
    let end = format!(".{APP}.{NETWORK}.{Z}.");
    let line = |record: &Record| match &record.data {
        RData::SRV(srv) => {
            let target = srv.target.to_ascii().replace(&end, "");
            format!("{} {} {} {} {target}", record.ttl, srv.priority, srv.weight, srv.port)
        }
        RData::A(a) => format!("{} {} {}", record.ttl, record.name.to_ascii().replace(&end, ""), a.0),
        data => panic!("{data:?}"),
    };
    records.iter().map(line).collect()
}

#[test]
fn services_stand_below_every_name_of_their_members() {
    let scope = region();
    let both: &[&str] = &["30 0 1 3000 1.web", "30 1 1 3001 2.web"];
    let glue: &[&str] = &["30 1.web 10.240.0.1", "30 2.web 10.240.0.2"];
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("_http._tcp", both, glue),
        ("_http._tcp.web", both, glue),
        ("_HTTP._TCP.Web", both, glue),
        ("_http._tcp.2.web", &both[1..], &glue[1..]),
        ("_53._udp.web", &["30 0 1 53 1.web"], &glue[..1]),
        // Without a number of their own they are found by the type's name, which has more than one address.
        ("_http._tcp.worker", &["30 0 1 80 worker"], &[]),
    ];
    for (name, answers, additional) in cases {
        for rtype in [rtype::SRV, rtype::ANY] {
            let (_, message) = ask(name, rtype, Transport::Tcp, &scope);
            assert_eq!(
                lines(&message.answers),
                answers.iter().map(|line| (*line).into()).collect(),
                "{name}"
            );
            assert_eq!(lines(&message.additionals), additional.iter().map(|line| (*line).into()).collect());
        }
    }
}

#[test]
fn what_is_not_published_is_denied() {
    let scope = region();
    let cases = [
        ("_http._tcp.web", rtype::A, rcode::NOERROR),
        ("_tcp.web", rtype::SRV, rcode::NOERROR),
        ("web", rtype::SRV, rcode::NOERROR),
        ("web", rtype::TXT, rcode::NOERROR),
        ("3.web", rtype::TXT, rcode::NOERROR),
        ("_http._udp.web", rtype::SRV, rcode::NXDOMAIN),
        ("_http._tcp.3.web", rtype::SRV, rcode::NXDOMAIN),
        ("_https._tcp.web", rtype::SRV, rcode::NXDOMAIN),
    ];
    for (name, rtype, expected) in cases {
        let (_, message) = ask(name, rtype, Transport::Udp, &scope);
        assert_eq!(u16::from(message.metadata.response_code), expected, "{name}");
        assert!(message.answers.is_empty() && message.authorities.len() == 1, "{name}");
    }
}

#[test]
fn many_services_come_whole_or_say_so() {
    let members: Vec<_> =
        members("web", 600).into_iter().map(|member| publishing(member, &[("http", "tcp", 80)])).collect();
    let scope = scope_of(&members);
    for (transport, least, limit) in [(Transport::Udp, 2, 512), (Transport::Tcp, 400, 65_535)] {
        let (bytes, message) = ask("_http._tcp.web", rtype::SRV, transport, &scope);
        assert!(message.answers.len() >= least && bytes.len() <= limit, "{}", message.answers.len());
        assert!(message.metadata.truncation);
        assert_eq!(lines(&message.answers).len(), message.answers.len(), "each once");
    }
    // All answers fit, not all addresses: nothing is truncated that was asked for.
    let (bytes, message) = ask("_http._tcp.web", rtype::SRV, Transport::Tcp, &scope_of(&members[..440]));
    assert_eq!((message.answers.len(), message.metadata.truncation), (440, false));
    assert!(bytes.len() > 60_000 && (1..440).contains(&message.additionals.len()));
}

#[test]
fn a_member_tells_its_facts() {
    let (bytes, message) = ask("1.web", rtype::TXT, Transport::Udp, &region());
    let [Record { data: RData::TXT(txt), ttl: 30, .. }] = &message.answers[..] else { panic!("{message:?}") };
    let texts: Vec<_> = txt.txt_data.iter().map(|text| text.len()).collect();
    assert_eq!((texts, &txt.txt_data[0][..]), (vec![11, 255], &b"host=host-a"[..]));
    assert_eq!(read_whole(&bytes), message);
}

#[test]
fn facts_come_whole_or_say_so() {
    let wordy = ZoneMember {
        facts: (0..3).map(|n| n.to_string().repeat(200)).collect(),
        ..member(APP, "web", 1, [10, 240, 0, 1])
    };
    let scope = scope_of(&[wordy]);
    for (transport, answers) in [(Transport::Udp, 0), (Transport::Tcp, 1)] {
        let (_, message) = ask("1.web", rtype::TXT, transport, &scope);
        assert_eq!((message.answers.len(), message.metadata.truncation), (answers, answers == 0));
    }
}

/// An ordinal that two hold for a moment: the name tells of the one with the least address, be it nothing.
#[test]
fn facts_are_of_one_member() {
    let telling = |last, facts: &[&str]| ZoneMember {
        facts: facts.iter().collect(),
        ..member(APP, "web", 1, [10, 240, 0, last])
    };
    let told = |members: &[ZoneMember]| {
        let (_, message) = ask("1.web", rtype::TXT, Transport::Udp, &scope_of(members));
        message.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(&[telling(2, &["host=b"]), telling(1, &["host=a"])]), ["host=a"]);
    assert!(told(&[telling(2, &["host=b"]), telling(1, &[])]).is_empty());
}
