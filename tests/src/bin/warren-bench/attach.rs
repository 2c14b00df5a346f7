//! Attach and detach: beside the bare kernel calls on one host, as whole calls in a region of three.
//!
//! Calls go over the API's Unix socket from this process: the start of a CLI process is not theirs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use serde_json::{Value, json};
use tests::ids::{AP, PN, PN2};
use tests::traffic::ask_tcp;
use tests::wait::{eventually, pause, seconds, timed};
use tests::{Attached, Container, Host, Lab, lab};

use crate::floor::{Floor, Took};
use crate::report::{Row, Samples, ms};

/// Members of the network in the first part.
const MEMBERS: usize = 50;
/// Attaches one after another in the region.
const SERIAL: usize = 30;
/// Attaches at once.
const AT_ONCE: usize = 20;
/// Containers that are spoken to as soon as they are attached.
const ECHOES: usize = 20;
/// Where their apps listen.
const PORT: u16 = 3000;
/// Gossip interval of a region that does not set one.
const INTERVAL_MS: &str = "500";

/// Everything; `dir` is on a real disk.
pub fn measure(dir: &Path) -> Vec<Row> {
    let (mut rows, floor) = building(&dir.join("one"));
    rows.extend(region(&dir.join("three"), floor));
    rows
}

/// Attach on a host alone, in turn with the bare kernel calls. Also gives back the floor's median.
fn building(dir: &Path) -> (Vec<Row>, f64) {
    let lab = Lab::new("bench");
    let host = make_host(&lab, "solo", dir);
    lab::start(std::slice::from_ref(&host));
    // A host gives out addresses five gossip intervals after it has joined, not before.
    let first = host.bare_container("first");
    attach(&host, PN2, &first);
    detach(&host, PN2, &first);
    until_calm(std::slice::from_ref(&host), &[&first]);
    let containers: Vec<Container> =
        (1..=MEMBERS).map(|n| host.bare_container(&format!("ours-{n}"))).collect();
    let bare: Vec<Container> = (1..=MEMBERS).map(|n| host.bare_container(&format!("bare-{n}"))).collect();
    let mut floor = Floor::new(lab.dir()).unwrap_or_else(|e| panic!("the floor's bridge: {e}"));

    let (mut calls, mut writes, mut took) = (Vec::new(), Vec::new(), Vec::new());
    let mut reconciled = 0.0;
    for (n, (ours, theirs)) in containers.iter().zip(&bare).enumerate() {
        if n == 1 {
            reconciled = -reconcile_ms(&host);
        }
        calls.push(attach(&host, PN, ours).1);
        let floor = floor.attach(theirs.netns().path());
        took.push(floor.unwrap_or_else(|e| panic!("the floor's attach {}: {e}", n + 1)));
        writes.push(timed(|| journal(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))).1);
    }
    reconciled += reconcile_ms(&host);
    // The first one makes the network.
    let first = ms(calls.remove(0));
    let took = took.split_off(1);
    let of = |part: fn(&Took) -> Duration| Samples::new(took.iter().map(part).collect());
    let (own, others, calls) = (of(|took| took.own), of(|took| took.others), Samples::new(calls));
    let journal = Samples::new(writes).p50();
    let rows = vec![
        Row::told("floor: the same kernel calls by a bare program, p50", own.p50()),
        Row::told("floor, p99", own.p99()),
        Row::told("beside the floor: a row at each member before it, p50", others.p50()),
        Row::told("beside the floor: the journal's two fsynced writes, p50", journal),
        Row::told("attach, 1st of a network, one host", first),
        Row::told("of attach: the agent's reconciler, mean", reconciled / (MEMBERS - 1) as f64),
        Row::told("attach, building, 2nd to 50th, p99", calls.p99()).beside("floor", own.p99()),
        Row::told("attach, building, 2nd to 50th, p50", calls.p50())
            .beside("floor", own.p50())
            .at_most(own.p50() + 8.0),
    ];
    detach_all(&host, &containers);
    (rows, own.p50())
}

/// Three hosts, each with members of the network.
fn region(dir: &Path, floor: f64) -> Vec<Row> {
    let lab = Lab::new("bench");
    let hosts = ["a", "b", "c"].map(|name| make_host(&lab, name, &dir.join(name)));
    lab::start(&hosts);
    let [a, b, c] = &hosts;
    let residents = [(b, b.bare_container("resident-b")), (c, c.bare_container("resident-c"))];
    for (host, container) in &residents {
        attach(host, PN, container);
    }

    let serial: Vec<Container> = (1..=SERIAL).map(|n| a.bare_container(&format!("s-{n}"))).collect();
    let (answers, calls): (Vec<Attached>, Vec<Duration>) = serial.iter().map(|c| attach(a, PN, c)).unzip();
    let late = answers.iter().filter(|answer| !answer.missing.is_empty()).count();
    assert_eq!(late, 0, "{late} of {SERIAL} attaches were not answered by every host in time");
    let calls = Samples::new(calls);
    let mut rows = vec![
        Row::told("attach, whole call, 3 hosts, p50", calls.p50()).beside("floor", floor).at_most(45.0),
        Row::told("attach, whole call, 3 hosts, p99", calls.p99()).at_most(250.0),
    ];
    let detached = Samples::new(detach_all(a, &serial));
    let all: Vec<&Container> = serial.iter().collect();
    let torn_down = until_calm(std::slice::from_ref(a), &all);
    rows.push(Row::told(format!("{SERIAL} detaches in turn until nothing is left"), ms(torn_down)));

    let crowd: Vec<Container> = (1..=AT_ONCE).map(|n| a.bare_container(&format!("o-{n}"))).collect();
    rows.push(
        Row::told(format!("attach, {AT_ONCE} at once, 3 hosts, the last one"), at_once(a, &crowd))
            .beside("floor", floor)
            .at_most(20.0 * floor),
    );
    detach_all(a, &crowd);

    let echoed = echoes(a, &residents[0].1);
    rows.push(Row::told("attach returned to first echo over TCP, p50", echoed.p50()).at_most(40.0));
    rows.push(Row::told("attach returned to first echo over TCP, p99", echoed.p99()).at_most(250.0));

    rows.push(Row::told("detach, p50", detached.p50()).at_most(10.0));
    rows.push(Row::told("detach, p99", detached.p99()));
    for (host, container) in &residents {
        detach(host, PN, container);
    }
    let everybody: Vec<&Container> =
        serial.iter().chain(&crowd).chain(residents.iter().map(|r| &r.1)).collect();
    let gone = until_gone(&hosts, &everybody);
    rows.push(Row::told("last detach until nothing is left", ms(gone)).at_most(1000.0));
    // Tables and routes too, which take long to list.
    lab.assert_clean();
    rows
}

/// A host with its state on disk and the product's own gossip interval.
fn make_host(lab: &Lab, name: &str, state: &Path) -> Host {
    fs::create_dir_all(state).unwrap_or_else(|e| panic!("{}: {e}", state.display()));
    let host = lab.host(name);
    host.set("state_dir", &state.display().to_string()).set("gossip.interval_ms", INTERVAL_MS);
    // What the floor makes is a TUN.
    host.set("wireguard.backend", "userspace");
    host
}

fn member_path(network: &str, container: &Container) -> String {
    format!("/v1/networks/{network}/members/{}", container.name())
}

fn attach(host: &Host, network: &str, container: &Container) -> (Attached, Duration) {
    let body = json!({ "app": AP, "netns": { "path": container.netns().path() } }).to_string();
    let path = member_path(network, container);
    let (answer, took) = timed(|| host.api("PUT", &path, "application/json", body.as_bytes()));
    let answer = answer.unwrap_or_else(|e| panic!("attach {}: {e}", container.name()));
    assert_eq!(answer.status, 200, "attach {}: {}", container.name(), answer.body);
    let answer: Value = answer.json();
    (answer.into(), took)
}

fn detach(host: &Host, network: &str, container: &Container) -> Duration {
    let (answer, took) =
        timed(|| host.api("DELETE", &member_path(network, container), "application/json", b""));
    let answer = answer.unwrap_or_else(|e| panic!("detach {}: {e}", container.name()));
    assert_eq!(answer.status, 204, "detach {}: {}", container.name(), answer.body);
    took
}

fn detach_all(host: &Host, containers: &[Container]) -> Vec<Duration> {
    containers.iter().map(|container| detach(host, PN, container)).collect()
}

/// From the start until the last one has its answer, in milliseconds.
fn at_once(host: &Host, crowd: &[Container]) -> f64 {
    let start = Barrier::new(crowd.len() + 1);
    std::thread::scope(|scope| {
        let calls: Vec<_> = crowd
            .iter()
            .map(|container| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    attach(host, PN, container).1
                })
            })
            .collect();
        start.wait();
        let took = calls.into_iter().map(|call| call.join().expect("an attach that succeeds"));
        ms(took.max().unwrap_or_default())
    })
}

/// From the answer of each attach on `host` until `client`, elsewhere, has its first echo.
fn echoes(host: &Host, client: &Container) -> Samples {
    let round = |n: usize| {
        let container = host.bare_container(&format!("e-{n}"));
        let _echo = container.echo(PORT);
        let (attached, _) = attach(host, PN, &container);
        let server = (attached.address, PORT).into();
        let (echo, took) = timed(|| client.netns().enter(|| ask_tcp(server, b"ping")));
        assert_eq!(echo.ok().as_deref(), Some(container.name()), "no echo from {}", attached.address);
        detach(host, PN, &container);
        took
    };
    Samples::new((1..=ECHOES).map(round).collect())
}

/// From now until no namespace, interface or DNS socket of the product is there any more.
fn until_gone(hosts: &[Host], containers: &[&Container]) -> Duration {
    let look = || {
        let namespaces = hosts.iter().map(|host| host.dir().join("run/netns"));
        let namespaces: usize = namespaces.map(|dir| fs::read_dir(dir).map_or(0, Iterator::count)).sum();
        let inside: usize = containers.iter().filter(|container| container.netns().enter(inhabited)).count();
        if namespaces + inside == 0 {
            Ok(())
        } else {
            Err(format!("{namespaces} namespaces, {inside} containers with something of ours"))
        }
    };
    timed(|| eventually(seconds(10), "nothing is left", look)).1
}

/// As [`until_gone`], and then until what is measured next has RTNL for itself: the kernel takes namespaces apart
/// after they are gone, and holds it meanwhile.
fn until_calm(hosts: &[Host], containers: &[&Container]) -> Duration {
    let gone = until_gone(hosts, containers);
    pause(seconds(3));
    gone
}

/// Whether the calling thread's namespace has an interface or a DNS socket of the product.
fn inhabited() -> bool {
    let read = |name: &str| fs::read_to_string(Path::new("/proc/thread-self/net").join(name));
    // 61053 as the kernel prints it.
    read("dev").is_ok_and(|text| text.contains("wg")) || read("udp").is_ok_and(|text| text.contains(":EE7D"))
}

/// How long the agent's reconciler has worked so far, in milliseconds.
fn reconcile_ms(host: &Host) -> f64 {
    host.metric("warren_reconcile_duration_seconds_sum", &[]) * 1e3
}

/// What the journal does for one attach: `joining`, then `ready`, each written beside, fsynced,
/// renamed, and the directory fsynced.
fn journal(dir: &Path) -> io::Result<()> {
    let (path, beside) = (dir.join("floor.json"), dir.join("floor.new"));
    for _ in 0..2 {
        let mut file = File::create(&beside)?;
        file.write_all(&[b'x'; 1024])?;
        file.sync_data()?;
        fs::rename(&beside, &path)?;
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
