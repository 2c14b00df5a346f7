use super::*;
use crate::fixtures::{NETWORK, host, member};

const HOST: &str = r#"{"v":1,"name":"a","c":1,"vtep":"192.0.2.1","port":4789,"mtu":1500,"speaks":1}"#;
const AWAY: &str =
    r#"{"v":1,"name":"a","c":1,"vtep":"192.0.2.1","port":4789,"mtu":1500,"speaks":1,"away":120}"#;
const DRAINING: &str =
    r#"{"v":1,"name":"a","c":1,"vtep":"192.0.2.1","port":4789,"mtu":1500,"speaks":1,"draining":true}"#;
const NET: &str = r#"{"v":1,"c":3,"vni":1234567,"subnet":"10.240.0.0/22"}"#;
const NET_OFF: &str =
    r#"{"v":1,"c":3,"vni":1234567,"subnet":"10.240.0.0/22","forwarding":{"c":9,"off":true}}"#;
const MEM: &str = r#"{"v":1,"c":5,"state":"ready","app":"ap-0f2bd1c4-5a4e-4a43-9d7e-6f6a3b2c1d0e","type":"web","ordinal":5,"address":"10.240.0.5","key":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#;

fn network() -> Record {
    let subnet = "10.240.0.0/22".parse().unwrap();
    let record =
        NetworkRecord { counter: 3, vni: 1_234_567, subnet, forwarding: None, unknown: BTreeMap::new() };
    Record::Network(NETWORK.parse().unwrap(), record)
}

fn closed() -> Record {
    match network() {
        Record::Network(id, record) => {
            let forwarding = Some(Forwarding { counter: 9, off: true });
            Record::Network(id, NetworkRecord { forwarding, ..record })
        }
        other => other,
    }
}

fn away() -> Record {
    match host("a") {
        Record::Host(record) => Record::Host(HostRecord { away: Some(120), ..record }),
        other => other,
    }
}

fn draining() -> Record {
    match host("a") {
        Record::Host(record) => Record::Host(HostRecord { draining: true, ..record }),
        other => other,
    }
}

#[test]
fn golden_vectors() {
    let net = format!("net/{NETWORK}");
    let mem = format!("mem/{NETWORK}/0000000000000005");
    let cases = [
        (host("a"), "host", HOST),
        (away(), "host", AWAY),
        (draining(), "host", DRAINING),
        (network(), &*net, NET),
        (closed(), &*net, NET_OFF),
        (member(5), &*mem, MEM),
    ];
    for (record, key, value) in cases {
        assert_eq!(record.key().to_string(), key);
        assert_eq!(record.encode(), value);
        assert_eq!(Record::decode("a", key, value), Ok(record));
        assert!(key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX);
    }
}

#[test]
fn other_names_are_passed_on_until_somebody_says_no() {
    let forwards = |value: &str| match Record::decode("a", &format!("net/{NETWORK}"), value) {
        Ok(Record::Network(_, record)) => record.forwards(),
        other => panic!("{other:?}"),
    };
    assert!(forwards(NET) && !forwards(NET_OFF) && forwards(&NET_OFF.replace("true", "false")));
    let said = |counter, off| Forwarding { counter, off };
    assert!(said(2, false) > said(1, true) && said(2, true) > said(2, false));
}

#[test]
fn a_port_of_a_newer_version_is_passed_on_and_left_out() {
    let value = MEM.replace("\"}", r#"","ports":["tcp/3000:http","sctp/9"]}"#);
    let key = format!("mem/{NETWORK}/0000000000000005");
    let record = Record::decode("a", &key, &value).unwrap();
    assert_eq!(record.encode(), value);
    let Record::Member(_, _, record) = record else { panic!("{record:?}") };
    assert_eq!(record.ports().map(|port| port.to_string()).collect::<Vec<_>>(), ["tcp/3000:http"]);
}

#[test]
fn the_longest_member_fits() {
    let Record::Member(network, id, mut record) = member(5) else { panic!("a member") };
    record.ports = vec!["udp/65535:abcdefghijklmno".into(); crate::port::PORTS_MAX];
    record.counter = COUNTER_MAX - 1;
    record.ordinal = Some(1_000_000);
    record.ordinal_chosen = true;
    record.process = "p".repeat(63).parse().unwrap();
    record.address6 = Some("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
    let bytes = Record::Member(network, id, record).encode().len();
    assert!(bytes <= VALUE_BYTES_MAX, "{bytes}");
}

#[test]
fn unknown_fields_survive() {
    let value = r#"{"v":1,"c":3,"vni":7,"subnet":"10.240.0.0/22","future":{"deep":[1,2]},"sig":"x"}"#;
    let record = Record::decode("a", &format!("net/{NETWORK}"), value).unwrap();
    assert_eq!(record.encode(), value);
}

#[test]
fn what_is_malformed_is_refused_with_its_reason() {
    let net = format!("net/{NETWORK}");
    let mem = format!("mem/{NETWORK}/0000000000000005");
    let long = format!(r#"{{"v":1,"c":1,"vni":7,"subnet":"10.240.0.0/22","x":"{}"}}"#, "y".repeat(1024));
    let cases: [(&str, &str, &str); 24] = [
        ("", HOST, "key"),
        ("h\u{f6}st", HOST, "key"),
        ("host/", HOST, "key"),
        ("net/", NET, "key"),
        ("net/pn-1", NET, "key"),
        (&format!("{net}/"), NET, "key"),
        (&format!("mem/{NETWORK}"), MEM, "key"),
        (&format!("mem/{NETWORK}/xyz"), MEM, "key"),
        (&format!("{mem}/more"), MEM, "key"),
        (&"k".repeat(70_000), MEM, "key"),
        ("host", "", "value"),
        ("host", "[]", "value"),
        ("host", r#"{"v":1}"#, "value"),
        ("host", r#"{"name":"a"}"#, "version"),
        ("host", &HOST.replace(r#""v":1"#, r#""v":2"#), "version"),
        ("host", &HOST.replace(r#""name":"a""#, r#""name":"b""#), "foreign"),
        ("host", &HOST.replace(r#""c":1"#, r#""c":281474976710656"#), "counter"),
        (&net, &NET_OFF.replace(r#""c":9"#, r#""c":281474976710656"#), "counter"),
        (&net, &NET.replace("1234567", "16777216"), "vni"),
        (&net, &NET.replace("0.0/22", "0.0/15"), "subnet"),
        (&net, &NET.replace("0.0/22", "0.0/30"), "subnet"),
        (&net, &NET.replace("0.0/22", "0.1/22"), "subnet"),
        (&net, &long, "oversized"),
        (&mem, &MEM.replace("BwcH", "****"), "value"),
    ];
    for (key, value, reason) in cases {
        let error = Record::decode("a", key, value).expect_err(key);
        assert_eq!(error.reason(), reason, "{key}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(key in "\\PC{0,80}", value in "\\PC{0,200}") {
        // Only that it returns is checked: random text is a record with no probability worth a test.
        let refused = Record::decode("a", &key, &value).is_err();
        proptest::prop_assert!(refused);
    }
}
