//! The container's nft table in the kernel, and what it does to packets. Needs root and `nft`
//! (apt-get install nftables).

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

mod scratch;
#[path = "scratch/veth.rs"]
mod veth;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netplumb::engine::{Framing, open_tun};
use netplumb::netlink::nft::{self, NftError, Rules};
use scratch::Netns;
use veth::join;

const LISTENER: &str = "127.240.0.53:61053";

fn rules() -> Rules {
    Rules {
        ifname: "wg0".to_owned(),
        address: "10.240.0.2".parse().unwrap(),
        subnet: "10.240.0.0/22".parse().unwrap(),
        address6: Some("fd00:0:0:1::2".parse().unwrap()),
        ula: Some("fd00:0:0:1::/64".parse().unwrap()),
        listener: LISTENER.parse().unwrap(),
    }
}

fn second() -> Rules {
    let address = "10.250.0.2".parse().unwrap();
    let subnet = "10.250.0.0/22".parse().unwrap();
    Rules { ifname: "wg1".to_owned(), address, subnet, address6: None, ula: None, ..rules() }
}

fn install(netns: &Netns, member: &'static str, rules: Rules) {
    netns.run(move || nft::install(member, &rules)).unwrap();
}

fn observe(netns: &Netns) -> BTreeMap<String, Rules> {
    netns.run(nft::observe).unwrap()
}

fn expected(members: &[(&str, Rules)]) -> BTreeMap<String, Rules> {
    members.iter().map(|(member, rules)| ((*member).to_owned(), rules.clone())).collect()
}

#[test]
fn nft_shows_the_rules() {
    let netns = Netns::new();
    install(&netns, "m1", rules());
    let listing = netns.sh("nft list table inet warren");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = r#"table inet warren {
        chain member-m1 {
            type filter hook prerouting priority raw; policy accept;
            iifname != "lo" iifname != "wg0" ip daddr 10.240.0.2 drop
            iifname != "lo" iifname != "wg0" ip saddr 10.240.0.0/22 drop
            iifname != "lo" iifname != "wg0" ip6 daddr fd00:0:0:1::2 drop
            iifname != "lo" iifname != "wg0" ip6 saddr fd00:0:0:1::/64 drop
        }
        chain dns {
            type filter hook output priority raw; policy accept;
            ip daddr 127.240.0.53 udp dport 53 udp dport set 61053 notrack
            ip daddr 127.240.0.53 tcp dport 53 tcp dport set 61053 notrack
            ip saddr 127.240.0.53 udp sport 61053 udp sport set 53 notrack
            ip saddr 127.240.0.53 tcp sport 61053 tcp sport set 53 notrack
        }
    }"#;
    assert_eq!(words(&listing), words(expected), "{listing}");
}

#[test]
fn members_come_and_go_and_the_last_one_takes_the_table() {
    let netns = Netns::new();
    assert!(netns.run(nft::supported));
    assert_eq!(netns.sh("nft list tables"), "", "trying leaves nothing");
    assert_eq!(observe(&netns), BTreeMap::new());
    netns.run(|| nft::remove("m1")).unwrap();

    install(&netns, "m1", rules());
    let once = netns.sh("nft list ruleset");
    install(&netns, "m1", rules());
    assert_eq!(netns.sh("nft list ruleset"), once);

    install(&netns, "m2", second());
    assert_eq!(observe(&netns), expected(&[("m1", rules()), ("m2", second())]));

    let moved = Rules { address: "10.240.0.9".parse().unwrap(), address6: None, ..rules() };
    install(&netns, "m1", moved.clone());
    assert_eq!(observe(&netns), expected(&[("m1", moved), ("m2", second())]));

    netns.run(|| nft::remove("m1")).unwrap();
    assert_eq!(observe(&netns), expected(&[("m2", second())]));
    netns.run(|| nft::remove("m1")).unwrap();
    netns.run(|| nft::remove("m2")).unwrap();
    assert_eq!(netns.sh("nft list ruleset"), "");
    netns.run(|| nft::remove("m2")).unwrap();
}

#[test]
fn whatever_somebody_edits_is_seen_and_repaired() {
    let edits = [
        "nft flush ruleset",
        "nft flush chain inet warren member-m1",
        "nft flush chain inet warren dns",
        "nft insert rule inet warren member-m1 accept",
        "nft add rule inet warren dns udp dport 53 drop",
        "nft delete rule inet warren member-m1 handle $(nft -a list chain inet warren member-m1 | \
         sed -n 's/.*saddr 10.*handle //p')",
        "nft 'chain inet warren member-m1 { policy drop; }'",
        "nft 'flush chain inet warren dns; delete chain inet warren dns; add chain inet warren dns'",
        "nft 'flush chain inet warren member-m1; delete chain inet warren member-m1; \
         add chain inet warren member-m1 { type filter hook prerouting priority 10; }'",
        "nft 'add table inet warren { flags dormant; }'",
    ];
    for edit in edits {
        let netns = Netns::new();
        netns.sh("nft add table inet app");
        install(&netns, "m1", rules());
        assert_eq!(observe(&netns), expected(&[("m1", rules())]));

        netns.sh(edit);
        assert_eq!(observe(&netns), BTreeMap::new(), "{edit}");

        install(&netns, "m1", rules());
        assert_eq!(observe(&netns), expected(&[("m1", rules())]), "{edit}");
    }
}

#[test]
fn names_the_kernel_cannot_hold_are_refused() {
    let netns = Netns::new();
    let long = Rules { ifname: "sixteen-bytes-xx".to_owned(), ..rules() };
    assert!(matches!(netns.run(move || nft::install("m1", &long)), Err(NftError::Name(_))));
    for member in [String::new(), "m".repeat(101), "m\0".to_owned()] {
        assert!(matches!(netns.run(move || nft::install(&member, &rules())), Err(NftError::Name(_))));
    }
}

#[test]
fn other_rules_of_the_container_stay_and_do_not_confuse() {
    let netns = Netns::new();
    netns.sh("nft 'table netdev app { chain in { type filter hook ingress device lo priority 0; }; }'");
    netns.sh("nft 'table inet app { set s { type ipv4_addr; }; chain in { \
              type filter hook input priority raw; ip saddr @s meta mark set 7 counter; }; }'");
    netns.sh("nft 'table ip warren { chain member-m9 { }; }'");
    let before = netns.sh("nft list ruleset");
    install(&netns, "m1", rules());
    assert_eq!(observe(&netns), expected(&[("m1", rules())]));
    netns.run(|| nft::remove("m1")).unwrap();
    assert_eq!(netns.sh("nft list ruleset"), before);
}

/// Whether one datagram from `from`, sent in `sender`, arrives at `to`, bound in `receiver`.
fn arrives(sender: &Netns, from: &str, receiver: &Netns, to: &str) -> bool {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let socket = receiver.run(move || UdpSocket::bind((to, 7777)).unwrap());
    sender.run(move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"attack", (to, 7777)).unwrap();
    });
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.recv(&mut [0; 16]).is_ok()
}

#[test]
fn a_neighbour_neither_reaches_the_private_address_nor_forges_its_subnet() {
    let (container, neighbour) = (Netns::new(), Netns::new());
    join(&container, "172.31.9.1/24", &neighbour, "172.31.9.2/24");
    let _tun = container.run(|| open_tun("wg0", Framing::Plain).unwrap());
    container.sh("ip addr add 10.240.0.2/32 dev wg0; ip addr add fd00:0:0:1::2/128 dev wg0 nodad");
    container.sh("ip link set wg0 up; ip -6 addr add fd99::1/64 dev eth0 nodad");
    neighbour.sh("ip route add 10.240.0.2 via 172.31.9.1; ip -6 addr add fd99::2/64 dev eth0 nodad");
    neighbour.sh("ip -6 route add fd00:0:0:1::2 via fd99::1");
    neighbour.sh("ip addr add 10.240.0.12/32 dev lo; ip -6 addr add fd00:0:0:1::12/128 dev lo nodad");
    container.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");

    let attacks = [
        ("weak host", "172.31.9.2", "10.240.0.2"),
        ("forged source", "10.240.0.12", "172.31.9.1"),
        ("weak host, IPv6", "fd99::2", "fd00:0:0:1::2"),
        ("forged source, IPv6", "fd00:0:0:1::12", "fd99::1"),
    ];
    for (name, from, to) in attacks {
        assert!(arrives(&neighbour, from, &container, to), "{name} must work without the rules");
    }
    install(&container, "m1", rules());
    for (name, from, to) in attacks {
        assert!(!arrives(&neighbour, from, &container, to), "{name}");
    }
    for (name, from, to) in [
        ("the container itself", "10.240.0.2", "10.240.0.2"),
        ("the container itself, IPv6", "fd00:0:0:1::2", "fd00:0:0:1::2"),
    ] {
        assert!(arrives(&container, from, &container, to), "{name}");
    }
    for (name, from, to) in [("IPv4", "172.31.9.2", "172.31.9.1"), ("IPv6", "fd99::2", "fd99::1")] {
        assert!(arrives(&neighbour, from, &container, to), "the other network stays reachable by {name}");
    }
}

/// Who answers a UDP lookup at `server`.
fn lookup_udp(server: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.connect(server).unwrap();
    socket.send(b"?").unwrap();
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Who answers a TCP lookup at `server`.
fn lookup_tcp(server: &str) -> String {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Answers one UDP and one TCP lookup at a time with `name`, until the test ends.
fn serve(at: &str, name: &'static str) {
    let at: SocketAddr = at.parse().unwrap();
    let (udp, tcp) = (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        while let Ok((_, client)) = udp.recv_from(&mut [0; 64]) {
            udp.send_to(name.as_bytes(), client).unwrap();
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            stream.read_exact(&mut [0; 1]).unwrap();
            stream.write_all(name.as_bytes()).unwrap();
        }
    });
}

#[test]
fn the_listener_answers_at_port_53_and_the_app_keeps_its_own() {
    let netns = Netns::new();
    // Makes the kernel track connections here, so that their absence means something.
    netns.sh(
        "nft 'table inet app { chain out { type filter hook output priority 0; ct state new counter; }; }'",
    );
    netns.run(|| {
        serve(LISTENER, "warren");
        serve("0.0.0.0:53", "app");
    });
    install(&netns, "m1", rules());

    let tracked = || netns.sh("cat /proc/sys/net/netfilter/nf_conntrack_count");
    for _ in 0..20 {
        let answers = netns.run(|| (lookup_udp("127.240.0.53:53"), lookup_tcp("127.240.0.53:53")));
        assert_eq!(answers, ("warren".to_owned(), "warren".to_owned()));
    }
    assert_eq!(tracked().trim(), "0");
    let answers = netns.run(|| (lookup_udp("127.0.0.1:53"), lookup_tcp("127.0.0.1:53")));
    assert_eq!(answers, ("app".to_owned(), "app".to_owned()));
    assert_ne!(tracked().trim(), "0", "tracking works here, so 0 above means something");
}
