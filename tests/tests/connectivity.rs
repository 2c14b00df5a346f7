//! Members reach each other by every name and address, whatever host they are on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::rr::RecordType;
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
    let too_long = from.container.ask_udp(address, PORT, mtu - HEADERS + 1);
    assert_eq!(too_long.unwrap_err().raw_os_error(), Some(libc_emsgsize()), "{what}");
    if let (Some(_), Some(address)) = (from.attached.address6, to.attached.address6) {
        let udp = from.container.ask_udp(address, PORT, mtu - HEADERS6);
        assert_eq!(udp.unwrap_or_else(|e| panic!("IPv6, {what} {address}: {e}")), server, "IPv6, {what}");
        let tcp = from.container.ask_tcp(address, PORT);
        assert_eq!(tcp.unwrap_or_else(|e| panic!("TCP on IPv6, {what}: {e}")), server, "IPv6, {what}");
    }
}

fn libc_emsgsize() -> i32 {
    rustix::io::Errno::MSGSIZE.raw_os_error()
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
            let reverse = from.container.lookup(&reverse(to.attached.address.into()), RecordType::PTR).unwrap();
            assert_eq!(reverse.names, [to.attached.names[0].clone()], "PTR of {}", to.attached.address);
        }
    }
}

/// The name under which an address has its PTR record.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(_) => unreachable!("only IPv4 is asked for"),
    }
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
