//! Underlays: of IPv6, wide, narrow, and changing under what they carry.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tests::flow::Flow;
use tests::ids::{AP, PN};
use tests::sniffer::Sniffer;
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;
/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// IPv6 and UDP headers.
const HEADERS6: usize = 48;

/// A member on each host.
fn join(hosts: &[Host]) -> Vec<(Container, Attached)> {
    hosts.iter().map(Host::web).collect()
}

/// Everybody reaches everybody by name, with what fits and not with a byte more.
#[track_caller]
fn all_reach_all(members: &[(Container, Attached)], mtu: usize) {
    let _echoes: Vec<_> = members.iter().map(|(container, _)| container.echo(PORT)).collect();
    for (from, here) in members {
        assert_eq!(here.mtu, mtu, "MTU of {}", from.name());
        for (to, there) in members.iter().filter(|(to, _)| to.name() != from.name()) {
            eventually(seconds(5), "it has a name", || {
                let found = from.addresses(&there.names[0]);
                want(found == [IpAddr::from(there.address)], found)
            });
            assert_eq!(from.ask_tcp(there.address, PORT).unwrap(), to.name());
            assert_eq!(from.ask_udp(there.address, PORT, mtu - HEADERS).unwrap(), to.name());
            from.ask_udp(there.address, PORT, mtu - HEADERS + 1).unwrap_err();
            let aaaa = from.lookup(&there.names[0], RecordType::AAAA).unwrap().addresses;
            assert_eq!(aaaa, there.address6.into_iter().map(IpAddr::from).collect::<Vec<_>>());
            if let Some(address6) = there.address6 {
                assert_eq!(from.ask_udp(address6, PORT, mtu - HEADERS6).unwrap(), to.name());
            }
        }
    }
}

#[test]
fn of_ipv6() {
    const SECRET: &[u8] = b"the-quick-brown-fox-jumps-over-the-lazy-dog";
    let lab = Lab::on_ipv6("ipv6");
    let hosts = lab.region(&["a", "b", "c"]);
    let vteps: Vec<String> =
        hosts[0].warren(&["hosts", "-o", "json"]).rows().iter().map(|h| h["vtep"].to_string()).collect();
    assert_eq!(
        vteps,
        ["[2001:db8::1]:4789", "[2001:db8::2]:4789", "[2001:db8::3]:4789"].map(|v| format!("{v:?}"))
    );
    let sniffer = Sniffer::start(lab.underlay(), None);
    let members = join(&hosts);
    // VXLAN takes 70 there.
    all_reach_all(&members, 1500 - 70 - 60);
    let to = SocketAddr::from((members[1].1.address, PORT));
    members[0].0.netns().enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(SECRET, to).unwrap());
    let clear = || UdpSocket::bind("[::]:0")?.send_to(b"in clear", (hosts[1].address(), 9));
    hosts[0].netns().enter(clear).unwrap();
    let frames = sniffer.stop();
    assert!(frames.iter().any(|frame| frame.contains(b"in clear")), "the control is seen");
    assert!(!frames.iter().any(|frame| frame.contains(SECRET)));
    hosts[2].kill_agent();
    hosts[2].start_agent();
    hosts[2].wait_ready();
    all_reach_all(&members, 1370);
}

#[test]
fn jumbo() {
    for (lab, overhead) in [(Lab::new("jumbo"), 50), (Lab::on_ipv6("jumbo6"), 70)] {
        let hosts = [lab.host_with_mtu("a", 9000), lab.host_with_mtu("b", 9000)];
        tests::lab::start(&hosts);
        let members = join(&hosts);
        all_reach_all(&members, 9000 - overhead - 60);
        assert!(members[0].0.ping(members[1].1.address, 8000), "8,000 bytes, never fragmented");
    }
}

#[test]
fn of_1280_bytes() {
    for (lab, overhead) in [(Lab::new("narrow"), 50), (Lab::on_ipv6("narrow6"), 70)] {
        let hosts = [lab.host_with_mtu("a", 1280), lab.host_with_mtu("b", 1280)];
        tests::lab::start(&hosts);
        let members = join(&hosts);
        // Inside there is no room for IPv6 (RFC 8200), so there are no names for it.
        assert!(
            members.iter().all(|(_, attached)| attached.address6.is_none()),
            "{members:?}",
            members = members.iter().map(|m| &m.1).collect::<Vec<_>>()
        );
        all_reach_all(&members, 1280 - overhead - 60);
    }
}

/// The MTU of an interface.
fn mtu(container: &Container, ifname: &str) -> usize {
    let link = container.netns().run(&format!("ip -o link show {ifname}"));
    let mut words = link.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_narrower_host_joins_under_traffic_and_widens() {
    let lab = Lab::new("shrink");
    let mut hosts = vec![lab.host("a"), lab.host("b")];
    tests::lab::start(&hosts);
    let members = join(&hosts);
    let [(c1, one), (c2, two)] = &members[..] else { panic!("two") };
    let _echoes = [c1.echo(PORT), c2.echo(PORT)];
    let everybody_has = |expected: usize| {
        eventually(seconds(10), &format!("everybody has an MTU of {expected}"), || {
            let found = members.iter().map(|(c, m)| mtu(c, &m.ifname)).collect::<Vec<_>>();
            want(found.iter().all(|mtu| *mtu == expected), found)
        });
    };
    let flow = Flow::start(c1.netns(), (two.address, PORT).into(), 20_000, Duration::ZERO);
    let goes_on = |what: &str| {
        let before = flow.rounds();
        eventually(seconds(20), what, || want(flow.rounds() > before + 20, flow.rounds()));
    };
    let aaaa = |expected: &[IpAddr]| {
        eventually(seconds(10), &format!("AAAA is {expected:?}"), || {
            let found = c1.lookup(&two.names[0], RecordType::AAAA).map_err(|e| e.to_string())?.addresses;
            want(found == expected, found)
        });
    };
    let address6 = two.address6.expect("there is room for IPv6");
    goes_on("it flows");
    aaaa(&[address6.into()]);
    hosts.push(lab.host_with_mtu("c", 1280));
    hosts[2].start_agent();
    hosts[2].wait_ready();
    everybody_has(1170);
    goes_on("it flows with the narrower host");
    // IPv6 is gone from the interfaces, and from the names with it.
    aaaa(&[]);
    assert_eq!(c2.ask_udp(one.address, PORT, 1170 - HEADERS).unwrap(), "c-a");
    let third = hosts[2].container("c-c").join(PN, AP, "web");
    assert_eq!((third.mtu, third.address6), (1170, None));

    // Its underlay is widened: it says so when it starts again.
    lab.underlay().run("ip link set p3 mtu 1500");
    hosts[2].netns().run("ip link set eth0 mtu 1500");
    assert_eq!(hosts[2].stop_agent(), 0);
    hosts[2].start_agent();
    hosts[2].wait_ready();
    everybody_has(1390);
    goes_on("it flows with more room");
    aaaa(&[address6.into()]);
    flow.stop().expect("the connection lasts");
    eventually(seconds(5), "IPv6 is back", || {
        let reached = c1.ask_udp(address6, PORT, 1390 - HEADERS6).map_err(|e| e.to_string())?;
        want(reached == "c-b", reached)
    });
    let local = c1.netns().run(&format!("ip -6 -o address show dev {} scope link", one.ifname));
    assert!(local.is_empty(), "no other address came with it: {local}");
}

#[test]
fn a_host_moves_to_another_address() {
    for lab in [Lab::new("moves"), Lab::on_ipv6("moves6")] {
        let mut hosts = lab.region(&["a", "b", "c"]);
        let members = join(&hosts);
        let mtu = members[0].1.mtu;
        all_reach_all(&members, mtu);
        assert_eq!(hosts[2].stop_agent(), 0);
        hosts[2].renumber(77);
        hosts[2].start_agent();
        hosts[2].wait_ready();
        let moved = SocketAddr::new(hosts[2].address(), 4789).to_string();
        for host in &hosts[..2] {
            eventually(seconds(20), "the others know its new address", || {
                let rows = host.warren(&["hosts", "-o", "json"]).rows();
                want(
                    rows.iter().any(|row| row["vtep"] == moved.as_str() && row["standing"] == "answering"),
                    rows,
                )
            });
        }
        let reached = |from: &(Container, Attached), to: &(Container, Attached)| {
            let _echo = to.0.echo(PORT);
            eventually(seconds(10), &format!("{} reaches {}", from.0.name(), to.0.name()), || {
                let name = from.0.ask_tcp(to.1.address, PORT).map_err(|e| e.to_string())?;
                want(name == to.0.name(), name)
            });
        };
        for other in &members[..2] {
            reached(other, &members[2]);
            reached(&members[2], other);
        }
    }
}

#[test]
fn the_link_under_the_tunnels_is_replaced() {
    for lab in [Lab::new("relaid"), Lab::on_ipv6("relaid6")] {
        let hosts = lab.region(&["a", "b"]);
        let members = join(&hosts);
        let [(c1, one), (c2, two)] = &members[..] else { panic!("two") };
        let _echoes = [c1.echo(PORT), c2.echo(PORT)];
        let flow = Flow::start(c1.netns(), (two.address, PORT).into(), 2_000, Duration::from_millis(10));
        hosts[1].replace_cable();
        let before = flow.rounds();
        eventually(seconds(20), "it goes on", || want(flow.rounds() > before + 20, flow.rounds()));
        flow.stop().expect("the connection lasts");
        hosts.iter().for_each(|host| host.wait_hosts(2));
        assert_eq!(c2.ask_tcp(one.address, PORT).unwrap(), "c-a");
        let third = hosts[1].container("c-again").join(PN, AP, "web");
        assert_eq!((third.mtu, &third.missing), (two.mtu, &vec![]));
    }
}

#[test]
fn a_host_of_the_other_family_is_refused() {
    let lab = Lab::new("families");
    let hosts = lab.region(&["a", "b"]);
    let (warren, config) = (tests::process::warren().display().to_string(), hosts[1].write_config());
    let config = config.display().to_string();
    let check =
        |more: &[&str]| hosts[1].run(&warren, &[&["agent", "--check", "--config", &config], more].concat());
    check(&[]).ok();
    hosts[1].netns().run("ip address add 2001:db8::2/64 dev eth0 nodad");
    let moved = ["--set", "underlay.address=2001:db8::2"];
    eventually(seconds(10), "the agent has written down whom it knows", || {
        let said = check(&moved);
        want(said.code == 1 && said.stderr.contains("one address family"), said)
    });
    check(&["--set", "underlay.address=2001:db8::99"]).refused(1, &["2001:db8::99", "underlay.address"]);
    check(&["--set", "gossip.listen=[2001:db8::2]:7946"]).refused(2, &["gossip.seeds", "expected an IPv6"]);

    // At the join it is told the same, and joins when it is set right.
    let container = hosts[1].container("c1");
    assert_eq!(hosts[1].stop_agent(), 0);
    hosts[1].set("underlay.address", "2001:db8::2").start_agent();
    hosts[1].wait_serving();
    eventually(seconds(20), "it says why it is not in the region", || {
        let ready = hosts[1].get("/readyz").map_err(|e| e.to_string())?;
        want(
            ready.status == 503
                && ready.body.contains("2001:db8::2 is IPv6")
                && ready.body.contains("host a is 192.0.2.1"),
            ready.body,
        )
    });
    container.attach(PN, AP, &[]).refused(7, &["not joined", "underlay.address"]);
    assert_eq!(hosts[1].stop_agent(), 0);
    hosts[1].unset();
    hosts[1].start_agent();
    hosts[1].wait_ready();
    container.join(PN, AP, "web");
}
