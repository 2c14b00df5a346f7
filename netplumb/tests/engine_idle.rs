//! What an idle engine costs. One test in a process of its own, because it measures the process.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

mod scratch;
#[path = "scratch/wait.rs"]
mod wait;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use netplumb::engine::{Engine, Framing, Interface, PeerConfig, open_tun};
use netplumb::state::{Key, PrivateKey};
use scratch::Netns;
use wait::eventually;

/// Processor time of this process in ticks of 10 ms (proc(5), /proc/pid/stat: utime and stime).
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn add(engine: &mut Engine, bind: &Netns, id: &str) {
    let name = id.to_owned();
    let (tun, udp) = bind.run(move || {
        (open_tun(&name, Framing::Large).unwrap(), OwnedFd::from(UdpSocket::bind("0.0.0.0:0").unwrap()))
    });
    let interface = Interface {
        tun: tun.into(),
        udp: udp.into(),
        private_key: PrivateKey([9; 32]),
        mtu: 1390,
        address: Ipv4Addr::new(10, 240, 0, 1),
        address6: None,
    };
    engine.add(id, interface, vec![]).unwrap();
}

#[test]
fn lazy_peers_cost_nothing_and_a_dead_tun_does_not_spin() {
    let mut engine = Engine::start().unwrap();
    let (bind, app) = (Netns::new(), Netns::new());
    let before = cpu_ticks();
    for number in 0..50 {
        let id = format!("many{number}");
        add(&mut engine, &bind, &id);
        for number in 0..200_u32 {
            let mut key = [5; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let allowed = [IpAddr::V4(Ipv4Addr::from(0x0af0_0100 + number))].into();
            let endpoint = "192.0.2.9:51820".parse().unwrap();
            engine
                .set_peers(&id, vec![PeerConfig { key: Key(key), endpoint, allowed, greet: false }])
                .unwrap();
        }
    }
    // Two X25519 operations for each of the 10,000 would take a second of the thread alone.
    let spent = cpu_ticks() - before;
    assert!(spent < 100, "{spent} ticks of 10 ms");
    assert_eq!(engine.observe("many7").unwrap().peers.len(), 200);

    add(&mut engine, &bind, "doomed");
    bind.sh(&format!("ip link set doomed netns {}", app.tid()));
    app.sh("ip link set doomed up");
    drop(app);
    eventually("the engine has dropped the dead TUN", || watched_tuns() == 50);

    let before = cpu_ticks();
    std::thread::park_timeout(Duration::from_secs(2));
    let spent = cpu_ticks() - before;
    assert!(spent <= 2, "{spent} ticks of 10 ms in 2 s");
}

/// How many TUN devices the engine's epoll watches: the even event numbers (proc(5), fdinfo).
fn watched_tuns() -> usize {
    let watched = std::fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|entry| {
        let text = std::fs::read_to_string(entry.unwrap().path()).ok()?;
        let events = text.lines().filter(|line| line.starts_with("tfd:"));
        let even = events.filter(|line| {
            let number = line.split("data:").nth(1).and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| u64::from_str_radix(number, 16).ok()).is_some_and(|n| n % 2 == 0)
        });
        Some(even.count())
    });
    watched.max().unwrap_or(0)
}
