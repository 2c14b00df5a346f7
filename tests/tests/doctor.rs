//! `warren doctor` on hosts that are well and hosts that are not.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::UdpSocket;

use serde_json::Value;
use tests::ids::{AP, PN};
use tests::process;
use tests::{Host, Lab, Outcome, eventually, seconds, want};

/// Runs `warren doctor` on the host, as root would there.
fn doctor(host: &Host, more: &[&str]) -> Outcome {
    let (socket, config) = (host.socket(), host.dir().join("agent.toml"));
    let mut command = host.netns().command(&process::warren().display().to_string());
    command.arg("--socket").arg(socket).args(["-o", "json", "doctor", "--config"]).arg(config);
    command.args(["--set", "dns.forward=false"]).args(more);
    Outcome::of("warren doctor".into(), &command.output().unwrap())
}

/// The findings that are not `ok`, by their check.
fn wrong(outcome: &Outcome) -> Vec<(String, String, String)> {
    let findings: Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = findings.as_array().unwrap().iter().filter(|finding| finding["state"] != "ok");
    all.map(|f| (text(f, "check"), text(f, "state"), text(f, "detail") + " | " + &text(f, "hint"))).collect()
}

#[track_caller]
fn finds(host: &Host, more: &[&str], check: &str, state: &str, words: &str) {
    eventually(seconds(20), &format!("{check} is found {state}"), || {
        let outcome = doctor(host, more);
        let found = wrong(&outcome);
        let is = found.iter().any(|(c, s, d)| c == check && s == state && d.contains(words));
        want(is && outcome.code == if state == "unknown" { 0 } else { 7 }, (outcome.code, &found))
    });
}

#[test]
fn a_host_is_well_until_something_is_wrong() {
    let lab = Lab::new("doctor");
    let hosts = lab.region(&["a", "b"]);
    finds(&hosts[0], &[], "vxlan", "unknown", "no network has members both here and on b");
    let containers = [hosts[0].container("c-a"), hosts[1].container("c-b")];
    containers.iter().for_each(|container| _ = container.join(PN, AP, "web"));
    eventually(seconds(20), "all is well", || {
        let outcome = doctor(&hosts[0], &[]);
        want(outcome.code == 0 && wrong(&outcome).is_empty(), wrong(&outcome))
    });
    let text =
        hosts[0].warren(&["doctor", "--config", &hosts[0].dir().join("agent.toml").display().to_string()]);
    assert!(text.stdout.contains("CHECK") && text.stdout.contains("what to do"), "{text:?}");

    let netns = hosts[1].netns();
    netns.run("nft add table inet wall");
    netns.run("nft add chain inet wall input { type filter hook input priority 0 ; }");
    netns.run("nft add rule inet wall input udp dport 4789 drop");
    finds(&hosts[0], &[], "vxlan", "broken", "to b: nothing comes back | let UDP 4789 pass");
    netns.run("nft delete table inet wall");

    // The agent of the other host is gone: who it was is known, what time it has there is not.
    hosts[1].kill_agent();
    finds(&hosts[0], &[], "clock", "unknown", "b does not answer");
}

#[test]
fn without_an_agent_it_says_what_can_be_said() {
    let lab = Lab::new("doctor-alone");
    let host = lab.host("a");
    host.start_agent();
    host.wait_ready();
    assert_eq!(host.stop_agent(), 0);
    let found = wrong(&doctor(&host, &[]));
    assert_eq!(found.len(), 1, "{found:?}");
    finds(&host, &[], "agent", "broken", "start it with `warren agent`");

    let held = host.netns().enter(|| UdpSocket::bind("0.0.0.0:4789").unwrap());
    finds(&host, &[], "vxlan port", "broken", "set underlay.vxlan_port");
    drop(held);
    let held = host.netns().enter(|| UdpSocket::bind("192.0.2.1:7946").unwrap());
    finds(&host, &[], "gossip port", "broken", "set gossip.listen");
    drop(held);
    finds(&host, &["--set", "host=other"], "certificate", "broken", "host other");
    finds(&host, &["--set", "underlay.address=198.51.100.7"], "underlay", "broken", "198.51.100.7");
    finds(
        &host,
        &["--set", "dns.forward=true", "--set", "dns.upstreams=192.0.2.77"],
        "resolver",
        "warning",
        "none of 1",
    );
    host.netns().run("ip link set eth0 mtu 1300");
    finds(&host, &[], "underlay", "warning", "MTU 1300");
}
