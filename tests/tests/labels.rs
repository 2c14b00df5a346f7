//! Containers that join by a label alone: those that run when the agent starts, those that are started later, and what
//! has ended meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use tests::docker::{Docker, IMAGE};
use tests::ids::{AP, PN, PN2};
use tests::podman::Podman;
use tests::{Host, Lab, Netns, eventually, seconds, want};

/// `docker run` and `podman run` take the same.
fn run_args<'a>(container: &'a str, labels: &[&'a str]) -> Vec<&'a str> {
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    let args = ["run", "-d", "--name", container, "--network", "none"].into_iter().chain(labels);
    args.chain([IMAGE, "sleep", "1000000"]).collect()
}

/// The host's members, as container and interface, once they are these.
#[track_caller]
fn has_members(host: &Host, containers: &[&str]) {
    eventually(seconds(20), &format!("members are {containers:?}"), || {
        let members = host.members();
        let live = members.iter().filter(|m| m["state"] == "ready");
        let mut found: Vec<&str> = live.filter_map(|m| m["container"].as_str()).collect();
        found.sort_unstable();
        want(found == containers, &members)
    });
}

#[track_caller]
fn has_interface(netns: &Netns) {
    assert!(netns.run("ip -o -4 address show dev wg0").contains("10.240."));
}

#[test]
fn labelled_containers_of_docker_are_adopted_and_followed() {
    let lab = Lab::new("labels");
    let host = lab.host("a");
    let docker = Docker::start(&host);
    docker.set_live_restore(true);
    host.set("watch.sockets", &docker.socket().display().to_string());
    let (network, app) = (format!("warren.network={PN}"), format!("warren.app={AP}"));
    let labels = [network.as_str(), app.as_str()];
    docker.run(&run_args("early", &[&labels[..], &["warren.type=worker"]].concat())).ok();
    docker.run(&run_args("other", &[])).ok();
    docker.run(&run_args("unsaid", &[&network])).ok();

    // It was there before the agent.
    host.start_agent();
    host.wait_ready();
    has_members(&host, &["early"]);
    has_interface(&docker.container("early"));
    assert_eq!(host.members()[0]["type"], "worker");
    eventually(seconds(5), "the log says who cannot join, and why", || {
        want(host.log().contains("container unsaid does not say which app"), "")
    });

    // It is started later; and again, with another namespace under the same name.
    docker.run(&run_args("late", &labels)).ok();
    has_members(&host, &["early", "late"]);
    docker.run(&["restart", "-t", "0", "late"]).ok();
    eventually(seconds(20), "it has its interface again", || {
        let shown = docker.container("late").try_run("ip -o -4 address show dev wg0");
        want(String::from_utf8_lossy(&shown.stdout).contains("10.240."), &shown)
    });
    has_members(&host, &["early", "late"]);

    // What ends while the agent is away is cleaned up, and what was started is found.
    host.kill_agent();
    docker.run(&["rm", "-f", "early"]).ok();
    docker.run(&run_args("meanwhile", &labels)).ok();
    host.start_agent();
    host.wait_ready();
    has_members(&host, &["late", "meanwhile"]);

    // The engine is away; then its events are followed again.
    docker.kill_daemon();
    docker.start_daemon();
    let second = format!("warren.network={PN2}");
    docker.run(&run_args("after", &[&second, &app])).ok();
    has_members(&host, &["after", "late", "meanwhile"]);

    docker.run(&["rm", "-f", "late", "meanwhile", "after", "other", "unsaid"]).ok();
    has_members(&host, &[]);
    lab.assert_clean();
}

#[test]
fn labelled_containers_of_podman_are_adopted() {
    let lab = Lab::new("labels-podman");
    let host = lab.host("a");
    let podman = Podman::new(&host);
    let _service = podman.serve();
    host.set("watch.sockets", &podman.socket().display().to_string());
    let (network, app) = (format!("warren.network={PN}"), format!("warren.app={AP}"));
    podman.run(&run_args("early", &[&network, &app])).ok();
    host.start_agent();
    host.wait_ready();
    has_members(&host, &["early"]);
    podman.run(&run_args("late", &[&network, &app])).ok();
    has_members(&host, &["early", "late"]);
    has_interface(&podman.netns("late"));
    podman.run(&["rm", "-f", "-t", "0", "early", "late"]).ok();
    has_members(&host, &[]);
    drop(podman);
    lab.assert_clean();
}
