//! Who can write to the underlay, or into a host's tables, still cannot write into a container.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use tests::forge::{mac, send_vxlan, udp_frame, vni};
use tests::ids::{AP, PN};
use tests::sabotage::Saboteur;
use tests::sniffer::{Frame, Kind, Sniffer};
use tests::wait::pause;
use tests::{Attached, Container, Host, Lab, Netns, eventually, seconds, want};

const PORT: u16 = 8080;
const WIREGUARD: u16 = 51820;
/// In every forged frame.
const FORGED: &[u8] = b"nobody with a key has written this";
/// In a datagram that was sent by a member, once.
const ONCE: &[u8] = b"this is to arrive one single time";
/// In a datagram of a member's that proves that the sniffer works.
const HONEST: &[u8] = b"this one was sent by a member";

/// A member of the network on this host.
fn join(host: &Host, name: &str) -> (Container, Attached) {
    let container = host.container(name);
    let attached = container.join(PN, AP, "web");
    (container, attached)
}

/// Sends a datagram from a container, whatever becomes of it.
fn say(from: &Container, to: Ipv4Addr, text: &[u8]) {
    from.netns().enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(text, (to, PORT)).unwrap());
}

/// The Ethernet frame that is in a VXLAN message of the underlay.
fn inner(frame: &Frame) -> Vec<u8> {
    const OUTER: usize = 14 + 20 + 8 + 8;
    frame.0[OUTER..].to_vec()
}

fn has(frames: &[Frame], text: &[u8]) -> bool {
    frames.iter().any(|frame| frame.contains(text))
}

/// A handshake, and messages, as they were on the wire while one member spoke to another.
fn recorded(lab: &Lab, from: &Container, to: Ipv4Addr) -> Vec<Vec<u8>> {
    let wire = Sniffer::start(lab.underlay(), None);
    eventually(seconds(5), "it is reached", || want(from.ping(to, 56), "no answer"));
    say(from, to, ONCE);
    pause(std::time::Duration::from_millis(200));
    let frames = wire.stop();
    let messages: Vec<Vec<u8>> =
        frames.iter().filter(|f| matches!(f.kind(), Kind::Wireguard(_))).map(inner).collect();
    assert!(messages.len() >= 4, "{frames:?}");
    messages
}

/// Frames from somebody who knows every address and every MAC, and no key.
fn forged(one: &Attached, two: &Attached) -> Vec<Vec<u8>> {
    let header = |kind: u8| [&[kind, 0, 0, 0], [7; 12].as_slice(), FORGED, &[0; 200]].concat();
    let payloads = [FORGED.to_vec(), header(1)[..148].to_vec(), header(2)[..92].to_vec(), header(4)];
    let macs = [mac(&two.mac), [0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 9]];
    let frames = macs.iter().flat_map(|to| {
        [PORT, WIREGUARD].into_iter().flat_map(|port| {
            let from = (mac(&one.mac), one.address, WIREGUARD);
            payloads.each_ref().map(|payload| udp_frame(from, (*to, two.address, port), payload))
        })
    });
    let arp = [&mac(&two.mac)[..], &mac(&one.mac), &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2], FORGED].concat();
    frames.chain([arp]).collect()
}

#[test]
fn forged_frames_never_appear_on_a_containers_interface() {
    let lab = Lab::new("forgery");
    let hosts = lab.region(&["a", "b"]);
    let ((c1, one), (c2, two)) = (join(&hosts[0], "c1"), join(&hosts[1], "c2"));
    let (rogue, neighbour) = (lab.host("rogue"), hosts[1].container("neighbour"));
    let frames = [forged(&one, &two), recorded(&lab, &c1, two.address)].concat();

    let inside = Sniffer::start(c2.netns(), Some(&two.ifname));
    let before_it = Sniffer::start(&hosts[1].inner(&format!("bind-{}", two.member)), Some("eth0"));
    let bridge = "172.18.2.1".parse::<IpAddr>().unwrap();
    for (from, to) in [
        (rogue.netns(), hosts[1].address()),
        (neighbour.netns(), hosts[1].address()),
        (neighbour.netns(), bridge),
    ] {
        for frame in &frames {
            send_vxlan(from, to, vni(&hosts[1], PN), frame);
        }
    }
    say(&c1, two.address, HONEST);
    pause(std::time::Duration::from_millis(500));
    assert!(has(&before_it.stop(), FORGED), "as far as the binding they come: VXLAN asks nobody");
    let seen = inside.stop();
    assert!(has(&seen, HONEST), "what a member sends is seen: {seen:?}");
    assert!(!has(&seen, FORGED), "{seen:?}");
    assert!(!has(&seen, ONCE), "what was recorded does not arrive again: {seen:?}");
    let _echo = c2.echo(PORT);
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
}

/// The bridge port behind which this host has a member.
fn port(netns: &Netns, member: &Attached) -> String {
    let rows = netns.run("bridge fdb show br br0");
    let row = rows.lines().find(|row| row.starts_with(&member.mac) && row.contains("static"));
    row.and_then(|row| row.split_whitespace().nth(2)).unwrap_or_else(|| panic!("{rows}")).to_owned()
}

#[test]
fn a_wrong_row_never_delivers_to_a_wrong_container() {
    let lab = Lab::new("wrong-row");
    let hosts = lab.region(&["a", "b", "c"]);
    let ((c1, one), (c2, two)) = (join(&hosts[0], "c1"), join(&hosts[1], "c2"));
    let ((far, third), (near, fourth)) = (join(&hosts[2], "far"), join(&hosts[1], "near"));
    let _echo = c2.echo(PORT);
    let is_itself = |what: &str| {
        eventually(seconds(45), what, || {
            let name = c1.ask_tcp(two.address, PORT).map_err(|e| e.to_string())?;
            want(name == "c2", name)
        })
    };
    is_itself("it is reached");

    let (here, there, beside) = (
        hosts[0].inner(&format!("net-{PN}")),
        hosts[2].inner(&format!("net-{PN}")),
        hosts[1].inner(&format!("net-{PN}")),
    );
    let bind = |host: &Host, member: &Attached| host.inner(&format!("bind-{}", member.member));
    let inside = [(&far, &third), (&near, &fourth)].map(|(c, m)| Sniffer::start(c.netns(), Some(&m.ifname)));
    let before = [(&hosts[2], &third), (&hosts[1], &fourth)]
        .map(|(host, member)| Sniffer::start(&bind(host, member), Some("eth0")));
    let speak = || {
        for _ in 0..40 {
            say(&c1, two.address, FORGED);
            pause(std::time::Duration::from_millis(20));
        }
    };
    {
        // On its own host to the one beside it.
        let near_port = port(&beside, &fourth);
        let _local = Saboteur::repeat(
            &beside,
            &format!("bridge fdb replace {} dev {near_port} master static", two.mac),
        );
        speak();
    }
    is_itself("its own row is put right");
    {
        // To another host, and there to another container's port, by whose MAC it may be called.
        let far_port = port(&there, &third);
        let _row = Saboteur::repeat(
            &here,
            &format!("bridge fdb replace {} dev vxlan0 self permanent dst {}", two.mac, hosts[2].address()),
        );
        let _local =
            Saboteur::repeat(&there, &format!("bridge fdb replace {} dev {far_port} master static", two.mac));
        speak();
        let _called = Saboteur::repeat(
            &bind(&hosts[0], &one),
            &format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", two.address, third.mac),
        );
        speak();
    }
    for (who, before) in ["far", "near"].into_iter().zip(before.map(Sniffer::stop)) {
        let strayed = before.iter().filter(|f| f.ipv4().is_some_and(|(_, to, _)| to == two.address)).count();
        assert!(strayed > 0, "messages for c2 came as far as the binding of {who}");
    }
    for (who, inside) in ["far", "near"].into_iter().zip(inside.map(Sniffer::stop)) {
        assert!(!has(&inside, FORGED), "on the interface of {who}: {inside:?}");
    }
    // The audit would put the neighbour right, within 30 s.
    let called = format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", two.address, two.mac);
    bind(&hosts[0], &one).run(&called);
    is_itself("the row is put right");
}
