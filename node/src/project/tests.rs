use gossip::record::MemberState;
use gossip::standing::Standing;
use resolver::ZoneMember;

use super::fixtures::{entry, pn, view};
use super::*;
use crate::claims::{Changes, Extent};

fn here() -> Here {
    Here {
        region: "r".parse().unwrap(),
        host: "a".parse().unwrap(),
        vtep: Vtep { address: "192.0.2.1".parse().unwrap(), port: 4789 },
        underlay_mtu: 1500,
        guard: Guard::None,
    }
}

fn project(view: &View, own: &[Entry]) -> (Desired, Ledger) {
    let here = here();
    let ledger = Ledger::of(view);
    (desired(view, &ledger, &here, own, |_| false), ledger)
}

fn zone_members(view: &View, ledger: &Ledger, network: NetworkId) -> Vec<ZoneMember> {
    let claimed = ledger.claims(network).addresses();
    claimed.filter_map(|(address, _)| zone_member(view, ledger, network, address)).collect()
}

#[test]
fn members_see_all_others_and_rows_are_for_remote_ones() {
    use MemberState::*;
    let own = [entry(1, Ready), entry(2, Joining)];
    let remote = [entry(3, Joining), entry(4, Released)];
    let view = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
    let (desired, _) = project(&view, &own);
    let network = &desired.networks[&pn().to_string()];
    assert_eq!(network.fabric.rows.len(), 1, "one remote live member");
    assert_eq!(network.members.len(), 2);
    for member in network.members.values() {
        assert_eq!(network.peers_of(member).count(), 2, "the other local one and the remote one");
        assert_eq!(member.mtu, 1390);
    }
}

#[test]
fn an_own_member_that_is_not_on_disk_is_nowhere() {
    let own = [entry(1, MemberState::Ready), entry(2, MemberState::Joining)];
    let view = view(&[("a", Standing::Answering, &own)]);
    let (desired, _) = project(&view, &own[..1]);
    let network = &desired.networks[&pn().to_string()];
    assert_eq!(network.members.len(), 1);
    assert!(network.members.values().all(|member| network.peers_of(member).next().is_none()));
}

#[test]
fn a_network_without_own_members_is_not_built() {
    let view = view(&[("b", Standing::Answering, &[entry(3, MemberState::Ready)])]);
    assert_eq!(project(&view, &[]).0, Desired::default());
}

#[test]
fn standing_decides_names_and_datapath_apart() {
    let cases = [
        // (standing, in names, in datapath)
        (Standing::Answering, true, true),
        (Standing::Late, true, true),
        (Standing::Away, true, true),
        (Standing::Dead, false, true),
        (Standing::Gone, false, false),
    ];
    for (standing, named, routed) in cases {
        let own = [entry(1, MemberState::Ready)];
        let remote = [entry(3, MemberState::Ready)];
        let view = view(&[("a", Standing::Answering, &own), ("b", standing, &remote)]);
        let (desired, ledger) = project(&view, &own);
        let zone = zone_members(&view, &ledger, pn());
        assert_eq!(zone.iter().any(|m| m.address == remote[0].address), named, "{standing:?}");
        assert_eq!(
            desired.networks[&pn().to_string()].fabric.rows.len(),
            usize::from(routed),
            "{standing:?}"
        );
    }
}

#[test]
fn names_do_not_lead_to_a_host_that_is_drained_and_packets_do() {
    let own = [entry(1, MemberState::Ready)];
    let remote = [entry(3, MemberState::Ready)];
    for drained in ["a", "b"] {
        let before = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
        let mut after = before.clone();
        let host = after.hosts.get_mut(&drained.parse::<HostId>().unwrap()).unwrap();
        Arc::make_mut(&mut host.records).host.draining = true;
        let (desired, ledger) = project(&after, &own);
        assert_eq!(desired, project(&before, &own).0);
        let named: Vec<_> = zone_members(&after, &ledger, pn()).iter().map(|m| m.address).collect();
        assert_eq!(named, [if drained == "a" { remote[0].address } else { own[0].address }]);
        // Who follows by what changed is told of its members.
        let mut followed = Ledger::default();
        followed.open(pn(), &View::default());
        followed.follow(&Changes::between(&View::default(), &before));
        let news = followed.follow(&Changes::between(&before, &after));
        let members = if drained == "a" { &own } else { &remote };
        let expected = Extent::Addresses(members.iter().map(|e| e.address).collect());
        assert_eq!(news.touched.of(&pn()), Some(&expected));
    }
}

#[test]
fn the_one_cut_off_keeps_its_names() {
    let own = [entry(1, MemberState::Ready)];
    let remote = [entry(3, MemberState::Ready)];
    let mut view = view(&[("a", Standing::Answering, &own), ("b", Standing::Dead, &remote)]);
    view.cut_off = true;
    let (_, ledger) = project(&view, &own);
    assert_eq!(zone_members(&view, &ledger, pn()).len(), 2);
}

#[test]
fn a_joining_member_is_programmed_but_not_named() {
    let own = [entry(1, MemberState::Ready)];
    let remote = [entry(3, MemberState::Joining)];
    let view = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
    let (desired, ledger) = project(&view, &own);
    assert_eq!(desired.networks[&pn().to_string()].fabric.rows.len(), 1);
    assert_eq!(zone_members(&view, &ledger, pn()).len(), 1);
}

/// A kernel whose first initiation is lost, because the other's interface is not there yet, tries again after 5 s only.
#[test]
fn the_young_are_greeted_once_they_can_answer() {
    let own = [entry(1, MemberState::Ready)];
    let remote = [entry(3, MemberState::Joining), entry(4, MemberState::Ready)];
    let view = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
    let ledger = Ledger::of(&view);
    for young in [true, false] {
        let desired = desired(&view, &ledger, &here(), &own, |_| young);
        let peers = &desired.networks[&pn().to_string()].peers;
        let greeted: Vec<_> =
            peers.values().filter(|peer| peer.greet).map(|peer| *peer.endpoint.ip()).collect();
        assert_eq!(greeted, if young { vec![remote[1].address] } else { vec![] });
    }
}

#[test]
fn a_contested_address_has_one_key() {
    let own = [entry(1, MemberState::Ready)];
    let mut twin = entry(9, MemberState::Ready);
    twin.address = own[0].address;
    let witness = [entry(5, MemberState::Ready)];
    let view = view(&[
        ("a", Standing::Answering, &own),
        ("b", Standing::Answering, &[twin]),
        ("c", Standing::Answering, &witness),
    ]);
    let (desired, ledger) = project(&view, &own);
    let network = &desired.networks[&pn().to_string()];
    let peers: Vec<_> = network.peers_of(&network.members[own[0].member.as_str()]).collect();
    assert_eq!(peers.len(), 1, "the twin is in nobody's datapath");
    assert_eq!(zone_members(&view, &ledger, pn()).len(), 2);
    assert_eq!(peers[0].1.endpoint.port(), WIREGUARD_PORT);
}

#[test]
fn the_smallest_underlay_sets_the_mtu() {
    let own = [entry(1, MemberState::Ready)];
    let view = view(&[("a", Standing::Answering, &own), ("c", Standing::Answering, &[])]);
    let (desired, _) = project(&view, &own);
    let network = &desired.networks[&pn().to_string()];
    assert_eq!((network.fabric.mtu, network.members[own[0].member.as_str()].mtu), (1350, 1290));
}

#[test]
fn ulas_are_stable_unique_and_hold_the_address() {
    let other: NetworkId = "pn-bd0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap();
    assert_ne!(ula(pn()), ula(other));
    let address = address6(pn(), Ipv4Addr::new(10, 240, 0, 1));
    assert!(ula(pn()).contains(&address));
    assert!(address.to_string().ends_with("af0:1"), "{address}");
    assert_eq!(ula(pn()).network().octets()[0], 0xfd);
}

#[test]
fn names_by_type_and_number() {
    let z = "private-network.internal";
    assert_eq!(names("ap", "web", Some(1), pn(), z).len(), 3);
    assert_eq!(names("ap", "worker", Some(1), pn(), z).len(), 2);
    assert_eq!(names("ap", "worker", None, pn(), z)[0], format!("worker.ap.{}.{z}", pn()));
}
