//! The datapath between two hosts: how much passes, at what cost, and for how long nothing does when the engine dies.
//!
//! Everybody takes the same path, in turn, round by round: a container's `wg0`, the binding namespace, `br0` and
//! `vxlan0` of the network, and the underlay. Ours is made by two agents. The others are daemons that people know; each
//! pair of them stands in the binding namespaces of two more members, with containers of its own. The ceiling is the
//! same path without WireGuard. A figure is the median of its rounds.

mod flow;
mod idle;
mod outage;
mod peers;
mod threads;

use std::env;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use flow::Flow;
use peers::Daemons;
use tests::ids::{AP, PN};
use tests::process::need;
use tests::{Attached, Container, Host, Lab, Netns, lab};

pub use peers::install;

use crate::report::Row;

/// Rounds where `ROUNDS` in the environment says nothing.
const ROUNDS: usize = 5;
/// How many times what wireguard-go of Debian 12 and boringtun-cli pass.
const TARGETS: [(&str, f64); 2] = [(peers::GO, 10.0), (peers::BORINGTUN, 8.0)];
/// The same beside boringtun-cli where the underlay's card cuts no packets.
const TARGET_UNCUT: f64 = 4.0;
const ENGINE: &str = "warren";
const CEILING: &str = "no WireGuard";
/// Payload of small datagrams: a voice call's.
const SMALL: usize = 160;
const SMALL_TIME: Duration = Duration::from_secs(2);
/// How long a stream lasts.
const ROUND_S: u64 = 5;

/// A way from one container to another.
struct Way {
    name: &'static str,
    from: Netns,
    to: Netns,
    address: IpAddr,
    /// Whose CPU time is spent on it, on both hosts.
    processes: Vec<i32>,
}

/// Everything; what is installed for the bench is below `target`.
pub fn measure(target: &Path) -> io::Result<Vec<Row>> {
    need(&[
        ("iperf3", "iperf3"),
        ("ethtool", "ethtool"),
        ("wireguard-go", "wireguard-go"),
        ("wg", "wireguard-tools"),
    ]);
    let rounds = env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let mut rows = idle::measure()?;
    let lab = Lab::new("bench");
    let hosts = [lab.host("a"), lab.host("b")];
    lab::start(&hosts);
    let ours = join(&hosts, "ours");
    let mut pairs = vec![Daemons::start(peers::GO, "wireguard-go", &hosts, &join(&hosts, "go"))?];
    if let Some(program) = peers::boringtun(target) {
        pairs.push(Daemons::start(peers::BORINGTUN, &program, &hosts, &join(&hosts, "bt"))?);
    }
    let bindings = ours.each_ref().map(|(container, attached)| binding(&hosts, container, attached));
    let processes = hosts.iter().filter_map(Host::engine_pid).collect();
    let mut ways = vec![
        way(
            ENGINE,
            ours.each_ref().map(|(container, _)| container.netns().clone()),
            ours[1].1.address,
            processes,
        ),
        way(CEILING, bindings, ours[1].1.address, Vec::new()),
    ];
    ways.extend(pairs.iter().map(Daemons::way));

    rows.extend(streams(&ways, rounds)?);
    rows.extend(small(&ways, rounds)?);
    rows.extend(outage::measure(&hosts[1], &ours)?);
    rows.extend(threads::measure(&hosts, &ours, rounds)?);
    ways[0].processes = hosts.iter().filter_map(Host::engine_pid).collect();
    cut_in_software(&hosts);
    rows.extend(uncut(&ways, rounds)?);
    Ok(rows)
}

/// A member on each host.
fn join(hosts: &[Host; 2], name: &str) -> [(Container, Attached); 2] {
    hosts.each_ref().map(|host| {
        let container = host.bare_container(&format!("{name}-{}", host.name()));
        let attached = container.join(PN, AP, "web");
        (container, attached)
    })
}

/// The binding namespace of a member.
fn binding(hosts: &[Host; 2], container: &Container, attached: &Attached) -> Netns {
    let host = hosts.iter().find(|host| container.name().ends_with(host.name()));
    let host = host.unwrap_or_else(|| panic!("{} is on a host", container.name()));
    host.inner(&format!("bind-{}", attached.member))
}

fn way(name: &'static str, [from, to]: [Netns; 2], address: Ipv4Addr, processes: Vec<i32>) -> Way {
    Way { name, from, to, address: address.into(), processes }
}

/// TCP, latency and CPU time.
fn streams(ways: &[Way], rounds: usize) -> io::Result<Vec<Row>> {
    let flows = in_turn("TCP", ways, rounds, |way| flow::stream(way, ROUND_S))?;
    let ours = flows[0].clone();
    let mut rows = Vec::new();
    let mbits = |flows: &[Flow]| median(flows.iter().map(|flow| flow.mbits));
    let costs =
        |flows: &[Flow]| median(flows.iter().map(|flow| flow.cpu_s / (flow.mbits * flow.seconds / 1e3)));
    for (way, flows) in ways.iter().zip(&flows).skip(1) {
        let metric = format!("TCP, 1 stream, {ENGINE} beside {}", way.name);
        let row = Row::figure(metric, "Mbit/s", mbits(&ours)).beside(way.name, mbits(flows));
        let target = TARGETS.iter().find(|(name, _)| *name == way.name);
        rows.push(match target {
            Some((_, times)) => row.at_least(times * mbits(flows)),
            None => row,
        });
    }
    for (way, flows) in ways.iter().zip(&flows).skip(2) {
        let metric = format!("CPU of both engines, {ENGINE} beside {}", way.name);
        rows.push(Row::figure(metric, "s/Gbit", costs(&ours)).beside(way.name, costs(flows)));
    }
    let pings: Vec<f64> =
        ways.iter().map(|way| flow::ping_ms(&way.from, way.address)).collect::<io::Result<_>>()?;
    for (way, ping) in ways.iter().zip(&pings).skip(1) {
        rows.push(
            Row::told(format!("ping, mean of 100, {ENGINE} beside {}", way.name), pings[0])
                .beside(way.name, *ping),
        );
    }
    Ok(rows)
}

/// Datagrams that arrive.
fn small(ways: &[Way], rounds: usize) -> io::Result<Vec<Row>> {
    let flows = in_turn("UDP", ways, rounds, |way| flow::datagrams(way, SMALL_TIME, SMALL))?;
    let arrived = |figures: &[f64]| median(figures.iter().copied());
    let rows = ways.iter().zip(&flows).skip(1).map(|(way, flow)| {
        let metric = format!("UDP, {SMALL} bytes, arrived, {ENGINE} beside {}", way.name);
        Row::figure(metric, "k/s", arrived(&flows[0])).beside(way.name, arrived(flow))
    });
    Ok(rows.collect())
}

/// TCP where the underlay takes no packet longer than its MTU.
fn uncut(ways: &[Way], rounds: usize) -> io::Result<Vec<Row>> {
    let flows = in_turn("TCP", ways, rounds, |way| flow::stream(way, ROUND_S))?;
    let mbits = |flows: &[Flow]| median(flows.iter().map(|flow| flow.mbits));
    let rows = ways.iter().zip(&flows).skip(1).map(|(way, flow)| {
        let metric = format!("TCP, underlay without segmentation, {ENGINE} beside {}", way.name);
        let row = Row::figure(metric, "Mbit/s", mbits(&flows[0])).beside(way.name, mbits(flow));
        if way.name == peers::BORINGTUN { row.at_least(TARGET_UNCUT * mbits(flow)) } else { row }
    });
    Ok(rows.collect())
}

/// Every way once in each round.
fn in_turn<T: Clone>(
    what: &str,
    ways: &[Way],
    rounds: usize,
    run: impl Fn(&Way) -> io::Result<T>,
) -> io::Result<Vec<Vec<T>>> {
    let mut flows = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        eprint!("\r{what}: round {} of {rounds}  ", round + 1);
        for (way, flows) in ways.iter().zip(&mut flows) {
            flows.push(run(way)?);
        }
    }
    eprintln!();
    Ok(flows)
}

/// Has the hosts' underlay devices take no packet longer than their MTU, as a card without offloads.
fn cut_in_software(hosts: &[Host; 2]) {
    const OFFLOADS: [&str; 5] =
        ["tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
    for host in hosts {
        for offload in OFFLOADS {
            host.netns().run(&format!("ethtool -K eth0 {offload} off"));
        }
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
