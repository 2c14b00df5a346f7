//! What an engine costs that has much to know and nothing to do.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use netplumb::engine::{Framing, Interface, PeerConfig, Remote, open_tun, open_udp};
use netplumb::state::{Addresses, Key, PrivateKey};
use tests::process;
use tests::wait::{eventually, pause, seconds, want};

use crate::cost::{cpu_s, resident_mb};
use crate::report::Row;

const INTERFACES: usize = 50;
const PEERS: usize = 1000;
/// So many interfaces are peers of each other: 32 × 31 sessions.
const ACTIVE: usize = 32;
const WATCHED: Duration = seconds(10);
const TARGET_MB: f64 = 20.0;
const TARGET_CPU: f64 = 0.5;

/// One engine with 50 interfaces of 1,000 peers each, first asleep, then a thousand of them with sessions.
pub fn measure() -> io::Result<Vec<Row>> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    assert!(up.success(), "`ip link set lo up` failed");
    let directory = Path::new("/run/warren-bench-engine");
    fs::create_dir_all(directory)?;
    let socket = directory.join("engine.sock");
    let launch = {
        let socket = socket.clone();
        move || {
            let mut engine = process::command(&process::warren().display().to_string(), process::Place::Here);
            engine.arg("engine").arg("--socket").arg(&socket).stdout(Stdio::null());
            process::spawn(engine).map(drop)
        }
    };
    let engine = Remote::open(socket, None, Box::new(launch)).map_err(io::Error::other)?;
    let ports = (0..INTERFACES).map(|n| add(&engine, n)).collect::<io::Result<Vec<_>>>()?;
    let mut rows = look(&engine, "50 interfaces × 1,000 peers, none active", true)?;
    wake(&engine, &ports)?;
    rows.extend(look(&engine, "the same with 992 peers active", false)?);
    engine.end().map_err(io::Error::other)?;
    Ok(rows)
}

fn id(n: usize) -> String {
    format!("idle{n}")
}

fn private_key(n: usize) -> PrivateKey {
    PrivateKey([n as u8 + 1; 32])
}

fn address(n: usize, peer: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0af0_0000 + (n as u32) * 0x1000 + peer as u32)
}

/// An interface with peers that nobody is; gives its port.
fn add(engine: &Remote, n: usize) -> io::Result<u16> {
    let tun = open_tun(&id(n), Framing::Large)?;
    let udp = open_udp(0)?;
    let bound = SocketAddrV4::try_from(rustix::net::getsockname(&udp)?)?;
    let (tun, udp) = (Arc::new(tun), Arc::new(udp));
    let interface = Interface {
        tun,
        udp,
        private_key: private_key(n),
        mtu: 1390,
        address: address(n, 0),
        address6: None,
    };
    engine.add(&id(n), interface).map_err(io::Error::other)?;
    let peers = (1..=PEERS).map(|peer| {
        let mut key = [n as u8; 32];
        key[..4].copy_from_slice(&(peer as u32).to_le_bytes());
        let endpoint = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        config(Key(key), endpoint, address(n, peer), false)
    });
    engine.set_peers(&id(n), peers.collect()).map_err(io::Error::other)?;
    Ok(bound.port())
}

fn config(key: Key, endpoint: SocketAddrV4, address: Ipv4Addr, greet: bool) -> PeerConfig {
    PeerConfig { key, endpoint, allowed: Addresses::from([IpAddr::V4(address)]), greet }
}

/// Makes some interfaces peers of each other, and waits for their sessions.
fn wake(engine: &Remote, ports: &[u16]) -> io::Result<()> {
    let keys: Vec<Key> = (0..ACTIVE)
        .map(|n| engine.observe(&id(n)).ok().flatten().map(|state| state.public_key))
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other("the engine has lost an interface"))?;
    for n in 0..ACTIVE {
        let others = (0..ACTIVE).filter(|other| *other != n).map(|other| {
            let endpoint = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports[other]);
            config(keys[other], endpoint, address(n, PEERS + 1 + other), n < other)
        });
        engine.set_peers(&id(n), others.collect()).map_err(io::Error::other)?;
    }
    eventually(seconds(60), "all have sessions", || {
        let sessions = (0..ACTIVE).filter_map(|n| engine.observe(&id(n)).ok().flatten()).map(|state| {
            keys.iter()
                .filter(|key| state.peers.get(key).is_some_and(|peer| peer.last_handshake.is_some()))
                .count()
        });
        let sessions: usize = sessions.sum();
        want(sessions == ACTIVE * (ACTIVE - 1), sessions)
    });
    Ok(())
}

fn look(engine: &Remote, what: &str, bound: bool) -> io::Result<Vec<Row>> {
    let Some((pid, _)) = engine.facts().process else { return Err(io::Error::other("no engine")) };
    let pid = pid as i32;
    let before = cpu_s(pid)?;
    pause(WATCHED);
    let percent = (cpu_s(pid)? - before) / WATCHED.as_secs_f64() * 100.0;
    let memory = Row::figure(format!("engine, {what}: memory"), "MB", resident_mb(pid)?);
    let cpu = Row::figure(format!("engine, {what}: CPU"), "%", percent);
    Ok(match bound {
        true => vec![memory.at_most(TARGET_MB), cpu.at_most(TARGET_CPU)],
        false => vec![memory, cpu],
    })
}
