//! What must never work: another network, a neighbour, a forger, an eavesdropper, a stranger.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tests::forge::{mac, send_vxlan, udp_frame, vni};
use tests::ids::{AP, AP2, PN, PN2};
use tests::lab::REGION;
use tests::sniffer::{Frame, Kind, Sniffer};
use tests::wait::{pause, timed};
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// Two containers of one network on two hosts, each with an echo server beside them in the test.
fn pair(hosts: &[Host]) -> [(Container, Attached); 2] {
    [("c1", &hosts[0]), ("c2", &hosts[1])].map(|(name, host)| {
        let container = host.container(name);
        let attached = container.join(PN, AP, "web");
        (container, attached)
    })
}

#[test]
fn another_network_does_not_exist() {
    let lab = Lab::new("other");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, one), (c2, two)] = pair(&hosts);
    let stranger = hosts[0].container("stranger");
    // An address of its own, so that the others' are free in its network.
    let mut addresses = (1..=3).map(|last| Ipv4Addr::new(10, 240, 3, last));
    let own = addresses.find(|address| ![one.address, two.address].contains(address)).unwrap();
    stranger.attach(PN2, AP2, &["--address", &own.to_string()]).ok();
    let _echoes = [c1.echo(PORT), c2.echo(PORT), stranger.echo(PORT)];
    eventually(seconds(5), "its own network has both", || {
        want(c1.addresses(&two.names[2]).len() == 2, c1.addresses(&two.names[2]))
    });
    for name in one.names.iter().chain(&two.names) {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            let answer = stranger.lookup(name, kind).unwrap();
            assert_eq!(answer.code, ResponseCode::NXDomain, "{kind} of {name}");
        }
        let dig = stranger.dig(name);
        assert!(dig.contains("status: NXDOMAIN") && dig.contains("SOA"), "{dig}");
    }
    let reverse = |a: Ipv4Addr| {
        let [a, b, c, d] = a.octets();
        format!("{d}.{c}.{b}.{a}.in-addr.arpa")
    };
    let named = stranger.lookup(&reverse(one.address), RecordType::PTR).unwrap().names;
    assert!(named.is_empty(), "{} is {named:?}", one.address);
    for to in [one.address, two.address] {
        let (refused, took) = timed(|| stranger.ask_tcp(to, PORT));
        refused.unwrap_err();
        assert!(took < seconds(1), "an address without a member is refused at once, not after {took:?}");
        stranger.ask_udp(to, PORT, 64).unwrap_err();
        assert!(!stranger.ping(to, 56));
    }
    // Nor the other way round.
    c1.ask_tcp(own, PORT).unwrap_err();
}

/// A UDP socket in `container` for what it receives on a port.
fn listen(container: &Container, port: u16) -> UdpSocket {
    let bind = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    };
    container.netns().enter(bind).unwrap()
}

/// Everything that arrived within half a second: source and text.
fn received(socket: &UdpSocket) -> Vec<(Ipv4Addr, String)> {
    pause(std::time::Duration::from_millis(500));
    let mut buffer = [0; 2048];
    let mut all = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let std::net::IpAddr::V4(from) = from.ip() else { continue };
        all.push((from, String::from_utf8_lossy(&buffer[..length]).into_owned()));
    }
    all
}

/// Sends a datagram from an address the namespace has.
fn send_from(container: &Container, from: Ipv4Addr, to: Ipv4Addr, text: &str) -> io::Result<usize> {
    container.netns().enter(|| UdpSocket::bind((from, 0))?.send_to(text.as_bytes(), (to, PORT)))
}

#[test]
fn a_forged_inner_source_is_dropped() {
    let lab = Lab::new("forged");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, one), (c2, two)] = pair(&hosts);
    let forger = hosts[0].container("forger");
    let third = forger.join(PN, AP2, "web");
    let socket = listen(&c2, PORT);
    send_from(&forger, third.address, two.address, "honest").unwrap();
    assert_eq!(received(&socket), [(third.address, "honest".into())]);
    // Inside WireGuard, a peer's key is bound to its address.
    forger.netns().run(&format!("ip address add {}/32 dev {}", one.address, third.ifname));
    send_from(&forger, one.address, two.address, "forged").unwrap();
    assert_eq!(received(&socket), []);
    // Outside of it, in VXLAN from any machine on the underlay, nothing reaches an app at all.
    let attacker = lab.host("attacker");
    let frame = udp_frame(
        (mac(&one.mac), one.address, 1234),
        (mac(&two.mac), two.address, PORT),
        b"in clear, in VXLAN",
    );
    send_vxlan(attacker.netns(), hosts[1].address(), vni(&hosts[1], PN), &frame);
    assert_eq!(received(&socket), []);
    drop(socket);
    let _echo = c2.echo(PORT);
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2", "and the honest ones go on");
}

#[test]
fn a_neighbour_on_eth0_neither_reaches_nor_forges() {
    let lab = Lab::new("neighbour");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, one), (c2, two)] = pair(&hosts);
    let neighbour = hosts[0].container("neighbour");
    neighbour.netns().run(&format!("ip route add 10.240.0.0/22 via {}", c1.docker_address()));
    c1.netns().sysctl("net/ipv4/conf/all/rp_filter", "0");
    c1.netns().sysctl("net/ipv4/conf/eth0/rp_filter", "0");

    let echo = c1.echo(PORT);
    assert_eq!(neighbour.ask_tcp(c1.docker_address(), PORT).unwrap(), "c1", "eth0 itself is the app's");
    neighbour.ask_tcp(one.address, PORT).unwrap_err();
    neighbour.ask_udp(one.address, PORT, 64).unwrap_err();
    assert!(!neighbour.ping(one.address, 56));
    let address6 = one.address6.expect("IPv6 is on");
    let links = c1.netns().run("ip -6 -o address show dev eth0 scope link");
    let local = links.split_whitespace().nth(3).and_then(|a| a.split('/').next()).expect("eth0 has one");
    neighbour.netns().run(&format!("ip -6 route add {address6}/128 via {local} dev eth0"));
    neighbour.ask_tcp(address6, PORT).unwrap_err();
    neighbour.ask_udp(address6, PORT, 64).unwrap_err();
    drop(echo);

    let socket = listen(&c1, PORT);
    neighbour.netns().run("ip link set lo up");
    neighbour.netns().run(&format!("ip address add {}/32 dev lo", two.address));
    send_from(&neighbour, two.address, c1.docker_address(), "forged, to eth0").unwrap();
    send_from(&neighbour, two.address, one.address, "forged, to the member").unwrap();
    assert_eq!(received(&socket), []);
    send_from(&neighbour, neighbour.docker_address(), c1.docker_address(), "honest").unwrap();
    assert_eq!(received(&socket), [(neighbour.docker_address(), "honest".into())]);
    drop(socket);

    let (_one, _two) = (c1.echo(PORT), c2.echo(PORT));
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
    assert_eq!(c2.ask_udp(one.address, PORT, 64).unwrap(), "c1");
    assert_eq!(c1.ask_tcp(one.address, PORT).unwrap(), "c1", "a member reaches itself");
}

/// The frames that have an address of the network outside of any encryption.
fn leaked(sniffer: Sniffer) -> Vec<Frame> {
    let subnet = |a: Ipv4Addr| a.octets()[..2] == [10, 240] && a.octets()[2] < 4;
    let private = |frame: &Frame| frame.ipv4().is_some_and(|(from, to, _)| subnet(from) || subnet(to));
    sniffer.stop().into_iter().filter(private).collect()
}

#[test]
fn while_its_agent_is_dead_nothing_leaves_in_clear() {
    let lab = Lab::new("dead");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, one), (c2, two)] = pair(&hosts);
    let _echoes = [c1.echo(PORT), c2.echo(PORT)];
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
    let sniffer = Sniffer::start(hosts[0].netns(), Some(&c1.port()));
    hosts[0].kill_agent();
    // Whether the datapath outlives the agent or not: it is the private one, or none.
    if let Ok(name) = c1.ask_udp(two.address, PORT, 64) {
        assert_eq!(name, "c2");
    }
    let neighbour = hosts[0].container("neighbour");
    neighbour.netns().run(&format!("ip route add 10.240.0.0/22 via {}", c1.docker_address()));
    neighbour.ask_udp(one.address, PORT, 64).unwrap_err();
    // The neighbour's own attempts are on this wire too; what matters is what c1 sends.
    let sent: Vec<Frame> = leaked(sniffer)
        .into_iter()
        .filter(|f| f.ipv4().is_some_and(|(_, to, _)| to != one.address))
        .collect();
    assert!(sent.is_empty(), "{sent:?}");
    hosts[0].start_agent();
    hosts[0].wait_ready();
    eventually(seconds(10), "it is a member as before", || {
        let reached = c2.ask_tcp(one.address, PORT).map_err(|e| e.to_string())?;
        want(reached == "c1", reached)
    });
}

#[test]
fn without_its_interface_nothing_leaves_and_the_agent_makes_it_anew() {
    let lab = Lab::new("closed");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, one), (c2, two)] = pair(&hosts);
    let _echo = c2.echo(PORT);
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");

    let sniffer = Sniffer::start(hosts[0].netns(), Some(&c1.port()));
    c1.netns().run(&format!("ip link del {}", one.ifname));
    let (refused, took) = timed(|| c1.ask_tcp(two.address, PORT));
    let repaired = refused.is_ok();
    if !repaired {
        assert!(took < seconds(1), "refused at once, not after {took:?}: {refused:?}");
    }
    let free = Ipv4Addr::new(10, 240, 3, 200);
    c1.ask_tcp(free, PORT).unwrap_err();
    eventually(seconds(40), "the interface is made anew within the audit", || {
        let answer = c1.ask_tcp(two.address, PORT).map_err(|e| e.to_string())?;
        want(answer == "c2", answer)
    });
    assert_eq!(c2.ask_udp(two.address, PORT, 64).unwrap(), "c2");
    let leaked = leaked(sniffer);
    assert!(leaked.is_empty(), "{leaked:?}");
    assert!(hosts[0].metric("warren_drift_total", &[]) >= 1.0, "drift is counted");
}

#[test]
fn a_forged_vxlan_source_moves_nothing() {
    let lab = Lab::new("fdb");
    let hosts = lab.region(&["a", "b"]);
    let local: Vec<(Container, Attached)> = ["c1", "c2"]
        .map(|name| {
            let container = hosts[0].container(name);
            let attached = container.join(PN, AP, "web");
            (container, attached)
        })
        .into();
    let far = hosts[1].container("far");
    let remote = far.join(PN, AP, "web");
    let _echoes = [local[0].0.echo(PORT), local[1].0.echo(PORT), far.echo(PORT)];
    let rows = |host: &Host| -> BTreeSet<String> {
        let text = host.inner(&format!("net-{PN}")).run("bridge fdb show");
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    assert_eq!(far.ask_tcp(local[1].1.address, PORT).unwrap(), "c2");
    let before = [rows(&hosts[0]), rows(&hosts[1])];
    assert!(before[0].iter().any(|row| row.contains(&remote.mac)), "{before:?}");

    let attacker = lab.host("attacker");
    for victim in [&local[1].1, &local[0].1, &remote] {
        for host in &hosts {
            let other = local[0].1.address;
            for target in [mac(&local[0].1.mac), mac(&remote.mac), [0xff; 6], [2, 0, 0, 0, 0, 9]] {
                let frame =
                    udp_frame((mac(&victim.mac), victim.address, 51820), (target, other, 51820), b"forged");
                send_vxlan(attacker.netns(), host.address(), vni(&hosts[0], PN), &frame);
            }
        }
    }
    assert_eq!(local[0].0.ask_udp(local[1].1.address, PORT, 64).unwrap(), "c2");
    assert_eq!(local[1].0.ask_tcp(local[0].1.address, PORT).unwrap(), "c1");
    assert_eq!(far.ask_tcp(local[0].1.address, PORT).unwrap(), "c1");
    assert_eq!(local[0].0.ask_tcp(remote.address, PORT).unwrap(), "far");
    assert_eq!([rows(&hosts[0]), rows(&hosts[1])], before);
}

#[test]
fn the_underlay_carries_wireguard_in_vxlan_and_gossip_and_nothing_else() {
    const SECRET: &[u8] = b"the-quick-brown-fox-jumps-over-the-lazy-dog";
    let lab = Lab::new("wire");
    let hosts = lab.region(&["a", "b"]);
    // The control: in clear it is found.
    let control = Sniffer::start(lab.underlay(), None);
    let clear = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(SECRET, (hosts[1].address(), 9));
    hosts[0].netns().enter(clear).unwrap();
    assert!(control.stop().iter().any(|frame| frame.contains(SECRET)));
    // From before the attaches: nothing in clear at the beginning either.
    let sniffer = Sniffer::start(lab.underlay(), None);
    let [(c1, _), (c2, two)] = pair(&hosts);
    let _echo = c2.echo(PORT);
    let to = std::net::SocketAddr::from((two.address, PORT));
    let payload = SECRET.repeat(200);
    let name = c1.netns().enter(|| tests::traffic::ask_tcp(to, &payload)).unwrap();
    assert_eq!(name, "c2");
    c1.netns().enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.send_to(SECRET, to).unwrap();
    });
    let frames = sniffer.stop();
    let mut kinds = BTreeSet::new();
    for frame in &frames {
        assert!(!frame.contains(SECRET), "in clear: {frame}");
        assert!(!frame.contains(two.names[0].as_bytes()), "a name in clear: {frame}");
        match frame.kind() {
            Kind::Other(what) => panic!("not ours: {what}"),
            Kind::Wireguard(kind) => drop(kinds.insert(kind)),
            Kind::Gossip => drop(kinds.insert(0)),
            Kind::Neighbours | Kind::Unreachable => {}
        }
    }
    // Gossip, a handshake's two messages, and data.
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [0, 1, 2, 4]);
}

#[test]
fn strangers_are_refused_both_ways_and_told_why() {
    let lab = Lab::new("strangers");
    let hosts = [lab.host("a"), lab.host("b")];
    let other = lab.make_region("other");
    hosts[1].issue(&other, &[]).ok();
    for (key, file) in [("ca", "ca.pem"), ("cert", "b.pem"), ("key", "b.key")] {
        hosts[1].set(&format!("tls.{key}"), &other.join(file).display().to_string());
    }
    hosts.iter().for_each(Host::start_agent);
    hosts.iter().for_each(Host::wait_serving);
    for host in &hosts {
        let (name, other) = (host.name(), hosts.iter().find(|h| h.name() != host.name()).unwrap());
        eventually(seconds(20), &format!("{name} says that it refused a stranger"), || {
            let rejected = host.metric("warren_gossip_rejected_total", &["tls"]);
            let log = host.log();
            let line = log.lines().find(|line| line.contains("TLS") && line.contains("region CA"));
            want(rejected >= 1.0 && line.is_some(), (rejected, &log))
        });
        let rows = host.warren(&["hosts", "-o", "json"]).rows();
        assert!(rows.iter().all(|row| row["host"] != other.name()), "{rows:?}");
        // Each is alone, and works.
        host.container("c1").join(PN, AP, "web");
    }
    for host in &hosts {
        assert_eq!(host.members().len(), 1, "records do not pass");
    }
}

#[test]
fn a_second_machine_with_a_hosts_name_is_fenced() {
    let lab = Lab::new("twins");
    let hosts = lab.region(&["a", "b"]);
    let [(c1, _), (c2, two)] = pair(&hosts);
    let _echo = c2.echo(PORT);
    let twin = lab.host("impostor");
    let region = lab.dir().join("region");
    for (key, value) in [("host", "b".to_owned()), ("tls.cert", region.join("b.pem").display().to_string())] {
        twin.set(key, &value);
    }
    twin.set("tls.key", &region.join("b.key").display().to_string());
    twin.start_agent();
    eventually(seconds(20), "the second says that it is not let in", || {
        let log = twin.log();
        want(log.contains("twin") && log.contains(&hosts[1].address().to_string()), log)
    });
    let refused = twin.container("c3").attach(PN, AP, &["--wait", "0"]);
    assert!([6, 7].contains(&refused.code), "{refused:?}");
    hosts[0].wait_hosts(2);
    let rows = hosts[0].warren(&["hosts", "-o", "json"]).rows();
    let b = rows.iter().find(|row| row["host"] == "b").unwrap();
    assert!(
        b["address"].as_str().unwrap().starts_with(&hosts[1].address().to_string()),
        "the first stays: {b}"
    );
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
    assert_eq!(hosts[0].members().len(), 2);
    assert_eq!(REGION, hosts[1].warren(&["status", "-o", "json"]).json()["region"]);
}
