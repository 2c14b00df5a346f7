//! Members reach each other by every name and address, whatever host they are on.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tests::bulk;
use tests::ids::{AP, AP2, PN, PN2, name};
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;
/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// IPv6 and UDP headers.
const HEADERS6: usize = 48;

/// A member and where it runs.
struct Member<'a> {
    container: &'a Container,
    attached: Attached,
}

/// Waits until `name` resolves to exactly these members for `from`.
#[track_caller]
fn resolves(from: &Container, name: &str, to: &[&Member]) {
    let mut expected: Vec<IpAddr> = to.iter().map(|m| m.attached.address.into()).collect();
    expected.sort();
    eventually(seconds(5), &format!("{name} is {expected:?} for {}", from.name()), || {
        let found = from.addresses(name);
        want(found == expected, &found)
    });
}

/// `from` reaches `to` by TCP, and by datagrams as large as the interface allows, both ways.
#[track_caller]
fn reaches(from: &Member, to: &Member) {
    let (server, mtu) = (to.container.name(), from.attached.mtu);
    let address = to.attached.address;
    let what = format!("{} to {server} at {address}", from.container.name());
    let tcp = from.container.ask_tcp(address, PORT).unwrap_or_else(|e| panic!("TCP, {what}: {e}"));
    assert_eq!(tcp, server, "TCP, {what}");
    for bytes in [64, mtu - HEADERS] {
        let udp = from.container.ask_udp(address, PORT, bytes);
        assert_eq!(udp.unwrap_or_else(|e| panic!("{bytes} bytes by UDP, {what}: {e}")), server, "{what}");
    }
    // To itself a container sends by lo, which is wider.
    if from.attached.member != to.attached.member {
        let too_long = from.container.ask_udp(address, PORT, mtu - HEADERS + 1);
        let emsgsize = rustix::io::Errno::MSGSIZE.raw_os_error();
        assert_eq!(too_long.unwrap_err().raw_os_error(), Some(emsgsize), "{what}");
    }
    if let (Some(_), Some(address)) = (from.attached.address6, to.attached.address6) {
        let udp = from.container.ask_udp(address, PORT, mtu - HEADERS6);
        assert_eq!(udp.unwrap_or_else(|e| panic!("IPv6, {what} {address}: {e}")), server, "IPv6, {what}");
        let tcp = from.container.ask_tcp(address, PORT);
        assert_eq!(tcp.unwrap_or_else(|e| panic!("TCP on IPv6, {what}: {e}")), server, "IPv6, {what}");
    }
}

/// Two types of two apps, spread over `hosts`, reach each other by every form of every name.
fn everybody_reaches_everybody(hosts: &[Host]) {
    // One member of each host, web and worker by turns, and a second web on the first host.
    let kinds = ["web", "worker"];
    let containers: Vec<(Container, &str, &str)> = hosts
        .iter()
        .enumerate()
        .map(|(i, host)| (host.container(&format!("c{i}")), AP, kinds[i % 2]))
        .chain([(hosts[0].container("c-again"), AP, "web"), (hosts[1].container("c-other"), AP2, "web")])
        .collect();
    let _echoes: Vec<_> = containers.iter().map(|(c, ..)| c.echo(PORT)).collect();
    let members: Vec<Member> = containers
        .iter()
        .map(|(container, app, kind)| Member { container, attached: container.join(PN, app, kind) })
        .collect();

    // The five forms: app, type.app, n.type.app, for web and for another type.
    let mut names: BTreeMap<String, Vec<&Member>> = BTreeMap::new();
    for (member, (_, app, kind)) in members.iter().zip(&containers) {
        let ordinal = member.attached.ordinal.expect("a number was free");
        let numbered = name(&format!("{ordinal}.{kind}.{app}"), PN);
        let typed = name(&format!("{kind}.{app}"), PN);
        let bare = (*kind == "web").then(|| name(app, PN));
        let mut expected = vec![numbered, typed];
        expected.extend(bare);
        assert_eq!(member.attached.names, expected);
        expected.into_iter().for_each(|name| names.entry(name).or_default().push(member));
    }
    let webs = names[&name(&format!("web.{AP}"), PN)].len();
    assert_eq!(webs, hosts.len().div_ceil(2) + 1);
    for number in 1..=webs {
        assert_eq!(names[&name(&format!("{number}.web.{AP}"), PN)].len(), 1, "numbers are given in order");
    }

    for from in &members {
        for (name, to) in &names {
            resolves(from.container, name, to);
        }
        for to in &members {
            reaches(from, to);
            let aaaa = from.container.lookup(&to.attached.names[0], RecordType::AAAA).unwrap();
            let expected: Vec<IpAddr> = to.attached.address6.into_iter().map(IpAddr::from).collect();
            assert_eq!(aaaa.addresses, expected, "AAAA of {}", to.attached.names[0]);
            let reverse = from.container.lookup(&reverse(to.attached.address), RecordType::PTR).unwrap();
            assert_eq!(reverse.names, [to.attached.names[0].clone()], "PTR of {}", to.attached.address);
        }
    }
}

/// The name under which an address has its PTR record.
fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

#[test]
fn three_hosts() {
    let lab = Lab::new("three");
    let hosts = lab.region(&["a", "b", "c"]);
    everybody_reaches_everybody(&hosts);
}

#[test]
fn five_hosts() {
    let lab = Lab::new("five");
    let hosts = lab.region(&["a", "b", "c", "d", "e"]);
    everybody_reaches_everybody(&hosts);
}

#[test]
fn overlapping_networks_on_the_same_hosts() {
    let lab = Lab::new("overlap");
    let hosts = lab.region(&["a", "b"]);
    let addresses = ["10.240.0.10", "10.240.0.11"];
    let make = |network: &'static str, app: &'static str, prefix: &str| -> Vec<Container> {
        let join = |(host, address): (&Host, &&str)| {
            let container = host.container(&format!("{prefix}-{}", host.name()));
            container.attach(network, app, &["--address", address]).ok();
            container
        };
        hosts.iter().zip(&addresses).map(join).collect()
    };
    let networks = [make(PN, AP, "one"), make(PN2, AP2, "two")];
    let _echoes: Vec<_> = networks.iter().flatten().map(|c| c.echo(PORT)).collect();
    for containers in &networks {
        for from in containers {
            for (to, address) in containers.iter().zip(&addresses) {
                let address: Ipv4Addr = address.parse().unwrap();
                assert_eq!(from.ask_tcp(address, PORT).unwrap(), to.name());
                assert_eq!(from.ask_udp(address, PORT, 64).unwrap(), to.name());
            }
        }
    }
    let vnis: Vec<_> =
        hosts[0].warren(&["networks", "-o", "json"]).rows().iter().map(|n| n["vni"].clone()).collect();
    assert_eq!(vnis.len(), 2);
    assert_ne!(vnis[0], vnis[1]);
}

#[test]
fn the_smallest_underlay_sets_the_mtu_of_all() {
    let lab = Lab::new("mtu");
    let hosts = [lab.host("a"), lab.host_with_mtu("b", 1400)];
    tests::lab::start(&hosts);
    let containers: Vec<Container> = hosts.iter().map(|h| h.container(h.name())).collect();
    let _echoes: Vec<_> = containers.iter().map(|c| c.echo(PORT)).collect();
    let members: Vec<Member> = containers
        .iter()
        .map(|container| Member { container, attached: container.join(PN, AP, "web") })
        .collect();
    for member in &members {
        assert_eq!(member.attached.mtu, 1400 - 50 - 60, "VXLAN takes 50, WireGuard 60");
    }
    reaches(&members[0], &members[1]);
    reaches(&members[1], &members[0]);
}

#[test]
fn without_ipv6_there_is_no_aaaa_and_ipv4_works() {
    let lab = Lab::new("ipv4");
    let hosts = lab.region(&["a", "b"]);
    let (off, on) = (hosts[0].container_without_ipv6("off"), hosts[1].container("on"));
    let _echoes = [off.echo(PORT), on.echo(PORT)];
    let (off_member, on_member) = (off.join(PN, AP, "web"), on.join(PN, AP, "web"));
    // The interface's own switch is ours to turn: the address is there, or it is not in the names.
    assert!(on_member.address6.is_some(), "IPv6 is on there");
    for member in [&off_member, &on_member] {
        let expected: Vec<IpAddr> = member.address6.into_iter().map(IpAddr::from).collect();
        eventually(seconds(5), &format!("AAAA of {} is {expected:?}", member.names[0]), || {
            let answer = on.lookup(&member.names[0], RecordType::AAAA).map_err(|e| e.to_string())?;
            want(answer.code == ResponseCode::NoError && answer.addresses == expected, answer)
        });
    }
    let members = [&off, &on].into_iter().zip([off_member, on_member]);
    let members: Vec<Member> = members.map(|(container, attached)| Member { container, attached }).collect();
    reaches(&members[0], &members[1]);
    reaches(&members[1], &members[0]);
}

#[test]
fn much_arrives_as_it_was_sent_both_ways_at_once() {
    const BYTES: usize = 300_000_000;
    let lab = Lab::new("bulk");
    let hosts = lab.region(&["a", "b"]);
    let members: Vec<(Container, Attached)> = hosts
        .iter()
        .map(|host| host.container(host.name()))
        .map(|container| {
            let attached = container.join(PN, AP, "web");
            (container, attached)
        })
        .collect();
    let [(c1, one), (c2, two)] = &members[..] else { panic!("two") };
    let send = |(from, to, address): (&Container, &Container, Ipv4Addr), seed| {
        bulk::send(from.netns(), (to.netns(), (address, PORT).into()), BYTES, seed).unwrap()
    };
    let digests = std::thread::scope(|scope| {
        [(c1, c2, two.address), (c2, c1, one.address)]
            .map(|way| scope.spawn(move || send(way, u64::from(way.2.to_bits()))))
            .map(|sending| sending.join().unwrap())
    });
    for [sent, received] in &digests {
        assert_eq!((sent.len(), sent), (64, received));
    }
    assert_ne!(digests[0], digests[1]);
    // In pieces, which are put together again behind WireGuard.
    for (from, to) in [(c1, two), (c2, one)] {
        let ping = format!("ping -n -q -c 3 -i 0.2 -W 2 -M dont -s 8000 {}", to.address);
        let shown = from.netns().run(&ping);
        assert!(shown.contains(" 0% packet loss"), "{shown}");
    }
}
