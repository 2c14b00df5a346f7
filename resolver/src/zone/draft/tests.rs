use super::*;
use crate::services::Port;
use proptest::prelude::*;

const NETWORK: &str = "pn-1";

fn empty() -> Draft {
    Draft::new(NETWORK, "private-network.internal", 30, "10.240.0.0/29".parse().unwrap()).unwrap()
}

/// One of few members, so that many stand at the same names, and a few outside the subnet.
fn member() -> impl Strategy<Value = ZoneMember> {
    let ports = prop::collection::vec((0..2_usize, 80..82_u16), 0..3);
    let named = (0..2_u8, 0..3_usize, prop::option::of(1..3_u32));
    (0..10_u8, named, ports, any::<(bool, bool)>()).prop_map(|(last, named, ports, (late, six))| {
        let (app, process, ordinal) = named;
        let address = Ipv4Addr::new(10, 240, 0, last);
        let port = |(service, number): (usize, u16)| Port {
            service: ["http", "metrics"][service].into(),
            protocol: "tcp",
            number,
        };
        ZoneMember {
            app: format!("ap-{app}"),
            process: ["web", "Web", "worker"][process].into(),
            ordinal,
            address,
            address6: six.then(|| address.to_ipv6_mapped()),
            ports: ports.into_iter().map(port).collect(),
            facts: [format!("address={address}")].into_iter().collect(),
            late,
        }
    })
}

proptest! {
    /// However a network came to have its members, its names are the same.
    #[test]
    fn a_changed_draft_is_as_one_made_anew(
        steps in prop::collection::vec((member(), prop::bool::weighted(0.7), 0..6_u32), 1..40)
    ) {
        let (mut draft, mut served) = (empty(), Vec::new());
        for (member, put, ttl_s) in steps {
            let address = member.address;
            if put { draft.put(member).unwrap() } else { draft.remove(address) }
            let subnet = ["10.240.0.0/29", "10.240.0.0/28"][ttl_s as usize % 2].parse().unwrap();
            draft.set_terms(ttl_s / 2, subnet);
            if ttl_s > 0 {
                let members: Vec<ZoneMember> = draft.members().cloned().collect();
                let anew =
                    Zone::build(NETWORK, "private-network.internal", ttl_s / 2, 7, subnet, &members).unwrap();
                served.push((draft.zone(7), format!("{anew:?}")));
                // The last one is as the draft is, and those before are as they were.
                for (zone, expected) in &served {
                    prop_assert_eq!(&format!("{zone:?}"), expected);
                }
            }
        }
    }
}

/// A late host's members are put again and again: their labels stay the ones that are served.
#[test]
fn a_name_is_there_once() {
    let numbered = |late| ZoneMember {
        app: "ap-1".into(),
        process: "web".into(),
        ordinal: Some(1),
        address: Ipv4Addr::new(10, 240, 0, 1),
        address6: None,
        ports: vec![Port { service: "http".into(), protocol: "tcp", number: 80 }; 2],
        facts: Facts::default(),
        late,
    };
    let mut draft = empty();
    for late in [false, true, false] {
        draft.put(numbered(late)).unwrap();
        let zone = draft.zone(1);
        for (labels, reason) in &draft.members[&Ipv4Addr::new(10, 240, 0, 1)].places {
            let (served, _) = zone.names.get_key_value(labels).unwrap();
            let (there, _) = draft.reasons.get_key_value(labels).unwrap();
            assert!(Arc::ptr_eq(served, there) && Arc::ptr_eq(labels, there), "{reason:?}");
        }
    }
}

#[test]
fn who_has_no_name_takes_nobody_elses() {
    let member = |process: &str, last| ZoneMember {
        app: "ap-1".into(),
        process: process.into(),
        ordinal: None,
        address: Ipv4Addr::new(10, 240, 0, last),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    };
    let mut draft = empty();
    draft.put(member("web", 1)).unwrap();
    draft.put(member("web", 2)).unwrap();
    assert!(draft.put(member("w eb", 2)).is_err());
    let named: Vec<_> = draft.zone(1).names().into_iter().map(|named| named.addresses).collect();
    assert_eq!(named, [[Ipv4Addr::new(10, 240, 0, 1)], [Ipv4Addr::new(10, 240, 0, 1)]]);
}
