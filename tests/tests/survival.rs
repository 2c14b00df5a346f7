//! Agent and engine die, one after the other and together: what containers notice of it.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tests::dns::Poll;
use tests::ids::{AP, PN, name};
use tests::pulse::{Beat, Pulse};
use tests::traffic::Echo;
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// Two hosts with a container on each, both serving.
struct Scene {
    // Before the hosts: an echo server holds its container's namespace.
    echoes: Vec<Echo>,
    webs: Vec<(Container, Attached)>,
    hosts: Vec<Host>,
    lab: Lab,
}

impl Scene {
    fn new(lab: &str) -> Scene {
        let lab = Lab::new(lab);
        let hosts = lab.region(&["a", "b"]);
        let webs: Vec<_> = hosts.iter().map(Host::web).collect();
        for (container, _) in &webs {
            eventually(seconds(5), "all are in the names", || {
                let found = container.addresses(&name(AP, PN));
                want(found.len() == webs.len(), found)
            });
        }
        let echoes = webs.iter().map(|(container, _)| container.echo(PORT)).collect();
        let scene = Scene { echoes, webs, hosts, lab };
        scene.reaches(0);
        scene.reaches(1);
        scene
    }

    fn to(&self, i: usize) -> SocketAddr {
        SocketAddr::new(self.webs[i].1.address.into(), PORT)
    }

    /// Datagrams from this one to the other.
    fn pulse(&self, from: usize) -> Pulse {
        Pulse::start(self.webs[from].0.netns(), self.to(1 - from))
    }

    #[track_caller]
    fn reaches(&self, from: usize) {
        let (to, container) = (self.webs[1 - from].1.address, &self.webs[from].0);
        eventually(seconds(10), "the other is reached", || {
            let reached = container.ask_tcp(to, PORT).map_err(|e| e.to_string())?;
            want(reached == self.webs[1 - from].0.name(), reached)
        });
    }

    /// Everything there is to see of the first container's interface.
    fn link(&self) -> String {
        let show = |what: &str| self.webs[0].0.netns().run(&format!("ip -o {what}"));
        show("link show wg0") + &show("address show dev wg0") + &show("route show table all dev wg0")
    }
}

#[track_caller]
fn nothing_lost(beat: Beat) {
    assert!(beat.sent >= 30, "{beat:?}");
    assert_eq!(beat.lost, 0, "{beat:?}");
}

/// Every lookup was answered, with both members in it.
#[track_caller]
fn nothing_failed(poll: Poll, webs: &[(Container, Attached)]) -> usize {
    let answers = poll.stop();
    let mut all: Vec<IpAddr> = webs.iter().map(|(_, attached)| attached.address.into()).collect();
    all.sort();
    for (i, answer) in answers.iter().enumerate() {
        let mut answer = answer.clone().unwrap_or_else(|e| panic!("lookup {i} of {}: {e}", answers.len()));
        answer.addresses.sort();
        assert_eq!((answer.code, &answer.addresses), (ResponseCode::NoError, &all), "lookup {i}");
    }
    answers.len()
}

#[test]
fn an_agent_that_is_killed_or_stopped_is_not_noticed() {
    let scene = Scene::new("agent-dies");
    let (host, engine, link) = (&scene.hosts[0], scene.hosts[0].engine_pid().unwrap(), scene.link());
    let pulses = [scene.pulse(0), scene.pulse(1)];
    let poll = Poll::dense(scene.webs[0].0.netns(), &name(AP, PN));
    for round in 0..3 {
        tests::wait::pause(Duration::from_millis(300));
        if round == 2 {
            assert_eq!(host.stop_agent(), 0);
        } else {
            host.kill_agent();
        }
        tests::wait::pause(Duration::from_millis(300));
        // The engine that runs is told; what it serves already stays where it is.
        host.set("wireguard.threads", &(round + 1).to_string());
        host.restart_agent();
        host.assert_nothing_written();
    }
    let lookups = nothing_failed(poll, &scene.webs);
    assert!(lookups >= 50, "only {lookups} lookups were made");
    pulses.into_iter().for_each(|pulse| nothing_lost(pulse.stop()));
    assert_eq!((host.engine_pid(), scene.link()), (Some(engine), link));
    let status = host.warren(&["status", "-o", "json"]).json();
    assert_eq!(status["engine"]["pid"], engine);
    assert_eq!((&status["engine"]["listeners"], &status["engine"]["threads"]), (&1.into(), &3.into()));
    assert_eq!(host.metric("warren_engine_up", &[]), 1.0);
}

#[test]
fn an_engine_that_is_killed_is_replaced_at_once() {
    let scene = Scene::new("engine-dies");
    let (host, link) = (&scene.hosts[0], scene.link());
    let pulses = [scene.pulse(0), scene.pulse(1)];
    let poll = Poll::dense(scene.webs[0].0.netns(), &name(AP, PN));
    for round in 1..=3 {
        tests::wait::pause(Duration::from_millis(700));
        let killed = host.kill_engine();
        eventually(seconds(10), "another one serves", || {
            let status = host.warren(&["status", "-o", "json"]).json();
            let engine = &status["engine"];
            want(engine["pid"].is_i64() && engine["pid"] != killed && engine["replaced"] == round, engine)
        });
    }
    tests::wait::pause(Duration::from_millis(700));
    nothing_failed(poll, &scene.webs);
    for beat in pulses.map(Pulse::stop) {
        eprintln!("engine killed three times: {beat:?}");
        // A packet that was encrypted for the session that ended is lost; the rest waited.
        assert!(beat.gap < seconds(2) && beat.lost < beat.sent / 4, "{beat:?}");
    }
    assert_eq!(scene.link(), link, "the same interface, address and routes");
    assert_eq!(
        host.metric("warren_reconcile_ops_total", &["kind=\"link\""]),
        1.0,
        "made once, at the attach"
    );

    // What the new engine holds is as good: the agent may die now.
    let pulse = scene.pulse(1);
    let poll = Poll::dense(scene.webs[0].0.netns(), &name(AP, PN));
    tests::wait::pause(Duration::from_millis(300));
    host.kill_agent();
    scene.hosts[0].restart_agent();
    nothing_failed(poll, &scene.webs);
    nothing_lost(pulse.stop());
}

#[test]
fn both_at_once_fail_closed_and_are_rebuilt() {
    let scene = Scene::new("both-die");
    let (container, other) = (&scene.webs[0].0, scene.webs[1].1.address);
    scene.hosts[0].kill_agent();
    scene.hosts[0].kill_engine();
    eventually(seconds(5), "the interface went with its descriptors", || {
        want(!container.netns().try_run("ip link show wg0").status.success(), "wg0 is there")
    });
    let error = container.ask_tcp(other, PORT).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(libc::EHOSTUNREACH),
        "nothing leaves by another interface: {error}"
    );
    scene.hosts[0].restart_agent();
    scene.reaches(0);
    scene.reaches(1);
    eventually(seconds(10), "names are served again", || {
        let found = container.addresses(&name(AP, PN));
        want(found.len() == 2, found)
    });
    assert_eq!(scene.echoes.len(), 2);
}

#[test]
fn a_container_that_went_unseen_is_let_go_by_both_processes() {
    let mut scene = Scene::new("went-unseen");
    let host = &scene.hosts[0];
    let there = || host.netns().try_run("ip link show to-c-a").status.success();
    host.kill_agent();
    scene.echoes.clear();
    scene.webs[0].0.destroy();
    tests::wait::pause(Duration::from_millis(500));
    assert!(there(), "the engine holds its DNS sockets, in case the container lives on");
    scene.hosts[0].restart_agent();
    eventually(seconds(10), "the namespace is gone, with its end of eth0", || want(!there(), "it is there"));
    let status = host.warren(&["status", "-o", "json"]).json();
    assert_eq!((&status["engine"]["interfaces"], &status["engine"]["listeners"]), (&0.into(), &0.into()));
}

#[test]
fn a_reset_leaves_no_trace_and_no_engine() {
    let scene = Scene::new("reset");
    let host = &scene.hosts[0];
    let config = host.write_config().display().to_string();
    let reset = || host.run(&tests::process::warren().display().to_string(), &["reset", "--config", &config]);
    reset().refused(6, &["stop the agent"]);
    scene.reaches(0);

    assert_eq!(host.stop_agent(), 0);
    scene.reaches(0);
    let engine = host.engine_pid().unwrap();
    reset().ok();
    eventually(seconds(5), "the engine has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{engine}/stat")).unwrap_or_default();
        want(stat.is_empty() || stat.contains(") Z "), stat)
    });
    let left: Vec<String> =
        scene.lab.left().into_iter().filter(|w| !w.contains("/b/") && !w.starts_with("b ")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!host.dir().join("run").exists());

    scene.hosts[0].restart_agent();
    let again = scene.webs[0].0.join(PN, AP, "web");
    assert_eq!(scene.webs[1].0.ask_tcp(again.address, PORT).unwrap(), scene.webs[0].0.name());
}

#[test]
fn wg_shows_an_interface_and_sets_nothing() {
    let scene = Scene::new("wg-shows");
    tests::process::need(&[("wg", "wireguard-tools")]);
    let (own, other) = (&scene.webs[0].1, &scene.webs[1].1);
    let key = |attached: &Attached| attached.json["public_key"].as_str().unwrap().to_owned();
    let name = format!("wr{}", &own.member[..12]);
    // Not from the container: the interface is called wg0 there, as in many others.
    let shown = scene.hosts[0].run("wg", &["show", &name, "dump"]).ok().stdout.clone();
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((lines.len(), lines[0][1], lines[0][2]), (2, key(own).as_str(), "51820"), "{shown}");
    let (endpoint, allowed) = (format!("{}:51820", other.address), format!("{}/32", other.address));
    assert_eq!((lines[1][0], lines[1][2]), (key(other).as_str(), endpoint.as_str()), "{shown}");
    assert!(lines[1][3].split(',').any(|address| address == allowed) && lines[1][4] != "0", "{shown}");
    let set = scene.hosts[0].run("wg", &["set", &name, "listen-port", "7"]);
    assert!(set.code != 0 && set.stderr.contains("not permitted"), "{set:?}");
    scene.reaches(0);
    scene.webs[0].0.detach(PN).ok();
    eventually(seconds(5), "its socket is gone", || {
        want(!tests::host::wg_socket(&own.member).exists(), "it is there")
    });
}
