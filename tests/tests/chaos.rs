//! Whatever befalls agents, engines and the paths between hosts: connections last, and nothing is left over.
//!
//! `make test` runs a short form; `make chaos MINUTES=10 [SEED=7]` the long one.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use tests::chaos::Chaos;
use tests::flow::{Flow, MARK, PAUSE};
use tests::footprint::Footprint;
use tests::ids::{AP, PN};
use tests::pulse::Pulse;
use tests::sniffer::{Frame, Kind, Sniffer};
use tests::wait::patience;
use tests::{Attached, Container, Lab, eventually, seconds, want};

const PORT: u16 = 8080;
const FLOWS: usize = 20;
/// Of each flow, and between two blocks of it.
const BLOCK: usize = 2_000;
const PERIOD: Duration = Duration::from_millis(50);
/// How long after the last thing that could keep packets from arriving they do again, on a machine as busy as this test
/// makes it: a session is asked for once a second. REKEY_TIMEOUT of WireGuard would be more than 5 s.
const BACK: Duration = seconds(5);
/// The short form's.
const SHORT: Duration = seconds(10);

fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// No such frame may be on the underlay.
fn is_clear(frame: &Frame) -> bool {
    frame.contains(MARK) || matches!(frame.kind(), Kind::Other(_))
}

/// A connection from one member to another, by their numbers.
type Pair = (usize, usize);

/// Waits until a few more blocks have passed on each; a path that works may have to wait for TCP's next attempt.
#[track_caller]
fn all_move_on(flows: &[(Pair, Flow)], what: &str) {
    let before: Vec<usize> = flows.iter().map(|(_, flow)| flow.rounds()).collect();
    eventually(PAUSE, what, || {
        let all = flows.iter().zip(&before);
        // What broke says why when it is stopped.
        let stuck: Vec<&Pair> = all
            .filter(|((_, flow), before)| flow.rounds() < *before + 3 && !flow.broke())
            .map(|((pair, _), _)| pair)
            .collect();
        want(stuck.is_empty(), stuck)
    });
}

#[test]
fn connections_outlive_what_chance_does_to_agents_engines_and_paths() {
    let today = UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = setting("WARREN_CHAOS_SEED").unwrap_or(today);
    let duration = setting("WARREN_CHAOS_MINUTES").map_or(SHORT, |minutes: u64| seconds(60 * minutes));
    eprintln!("chaos: seed {seed}, {} s", duration.as_secs());

    let lab = Lab::new("chaos");
    let hosts = lab.region(&["a", "b", "c"]);
    let members: Vec<(Container, Attached)> = hosts
        .iter()
        .flat_map(|host| ["c1", "c2"].map(|name| host.container(&format!("{name}-{}", host.name()))))
        .map(|container| {
            let attached = container.join(PN, AP, "web");
            (container, attached)
        })
        .collect();
    let containers: Vec<&Container> = members.iter().map(|(container, _)| container).collect();
    let echoes: Vec<_> = containers.iter().map(|container| container.echo(PORT)).collect();
    let to = |n: usize| SocketAddr::from((members[n].1.address, PORT));

    let sniffer = Sniffer::keep(lab.underlay(), None, is_clear);
    let pairs = (0..members.len()).flat_map(|from| (0..members.len()).map(move |to| (from, to)));
    let pairs = pairs.filter(|(from, to)| from != to).sample(&mut StdRng::seed_from_u64(seed), FLOWS);
    let flow = |(from, other): Pair| Flow::start(containers[from].netns(), to(other), BLOCK, PERIOD);
    let flows: Vec<(Pair, Flow)> = pairs.iter().map(|pair| (*pair, flow(*pair))).collect();
    let pulses = [(0, 2), (2, 4), (4, 0)].map(|(from, other)| {
        // Two members stand on each host.
        ([from / 2, other / 2], Pulse::every(PERIOD, containers[from].netns(), to(other)))
    });
    all_move_on(&flows, "all flow");
    let before = Footprint::of(&hosts, &containers);

    let mut chaos = Chaos::new(&hosts, seed);
    chaos.rage(duration);
    let (told, troubles) = chaos.calm();
    // First that the paths are there, for whoever asks now.
    for (from, other) in &pairs {
        eventually(seconds(10), "a new connection comes about", || {
            let name = containers[*from].ask_tcp(to(*other).ip(), PORT).map_err(|e| e.to_string())?;
            want(name == containers[*other].name(), name)
        });
    }
    all_move_on(&flows, "all flow after it");
    let after = before.is_back(&hosts, &containers);

    let beats = pulses.map(|(hosts, pulse)| (hosts, pulse.pauses()));
    let rounds: usize = flows.iter().map(|(_, flow)| flow.rounds()).sum();
    let longest = flows
        .into_iter()
        .map(|(pair, flow)| flow.stop().unwrap_or_else(|e| panic!("seed {seed}: connection {pair:?}: {e}")));
    eprintln!("chaos: {told:?}; {rounds} blocks, the slowest took {:?}", longest.max().unwrap());
    eprintln!("chaos: before: {before}\nchaos: after: {after}");
    let clear = sniffer.stop();
    assert!(clear.is_empty(), "seed {seed}: {} frames in clear, the first: {}", clear.len(), clear[0]);
    for (hosts, (beat, pauses)) in beats {
        let idle = pauses.iter().map(|pause| troubles.calm(hosts, pause)).max().unwrap_or_default();
        eprintln!("chaos: {beat:?}, {idle:?} of a gap without reason");
        assert!(
            beat.lost < beat.sent && idle < patience(BACK),
            "seed {seed}: {beat:?}, {idle:?} without reason"
        );
    }

    drop(echoes);
    for container in containers {
        container.detach(PN).ok();
    }
    lab.assert_clean();
}
