//! The units, under a real systemd.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::ids::{AP, PN, name};
use tests::machine::{self, Machine};
use tests::{eventually, process, seconds, want};

/// A machine with the binary, and what `make install` and an administrator would have put there.
fn boot() -> Machine {
    let prepare = |upper: &Path| {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/dist");
        let system = upper.join("etc/systemd/system");
        // Sooner than a user would want it.
        let hurry = system.join("warren.service.d");
        fs::create_dir_all(&hurry).unwrap();
        fs::write(hurry.join("hurry.conf"), "[Service]\nWatchdogSec=4\n").unwrap();
        for unit in ["warren.service", "warren.socket", "warren-engine.service", "warren-engine.socket"] {
            fs::copy(units.join(unit), system.join(unit)).unwrap();
        }
        machine::configure(&upper.join("etc"));
    };
    Machine::boot("units", prepare, &[(&process::warren(), "/usr/bin/warren")])
}

/// Lost pings of 200 in 2 s from one container to the other, while something happens.
#[track_caller]
fn lost(machine: &Machine, to: &str, happens: &str) -> u32 {
    let line = format!(
        "ip netns exec c1 ping -n -i 0.01 -c 200 -W 2 {to} >/tmp/ping & sleep 0.5; {happens}; wait; cat /tmp/ping"
    );
    let outcome = machine.run(&line);
    let received = outcome.stdout.lines().find_map(|line| line.split_once(" packets transmitted, "));
    let (_, received) = received.unwrap_or_else(|| panic!("{outcome:?}"));
    200 - received.split_whitespace().next().unwrap().parse::<u32>().unwrap()
}

#[test]
fn agent_and_engine_are_two_services_and_either_may_end() {
    let machine = boot();
    machine.run("systemctl start warren").ok();
    let said = machine.run("systemctl show -P StatusText warren").stdout;
    assert_eq!(said.trim(), "serves host host-a of region units");
    let attach = |container: &str| {
        let line = format!(
            "ip netns add {container} && warren attach --network {PN} --app {AP} --netns /run/netns/{container} -o json"
        );
        let attached: Value = serde_json::from_str(&machine.run(&line).ok().stdout).unwrap();
        attached["address"].as_str().unwrap().to_owned()
    };
    let (_, to) = (attach("c1"), attach("c2"));
    assert_eq!(lost(&machine, &to, "true"), 0);

    let (agent, engine) = (machine.main_pid("warren"), machine.main_pid("warren-engine"));
    assert_eq!(machine.status()["engine"]["pid"], engine, "systemd's engine is the one");
    assert_eq!(lost(&machine, &to, &format!("kill -9 {agent}")), 0);
    eventually(seconds(20), "systemd restarts the agent", || {
        let next = machine.main_pid("warren");
        want(next != 0 && next != agent, next)
    });
    // It waits in the socket until an agent is back.
    assert_eq!(machine.status()["engine"]["pid"], engine);

    let missed = lost(&machine, &to, &format!("kill -9 {engine}"));
    assert!(missed < 50, "{missed} pings of 200 lost, one every 10 ms");
    eventually(seconds(10), "another engine serves", || {
        let next = machine.main_pid("warren-engine");
        want(next != 0 && next != engine && machine.status()["engine"]["pid"] == next, next)
    });

    let stuck = machine.main_pid("warren");
    machine.run(&format!("kill -STOP {stuck}")).ok();
    eventually(seconds(30), "the watchdog has a stuck agent replaced", || {
        let next = machine.main_pid("warren");
        want(next != 0 && next != stuck, next)
    });
    let names = format!("ip netns exec c1 dig +short @127.240.0.53 {}", name(AP, PN));
    eventually(seconds(20), "the containers are served", || {
        let answer = machine.run(&names);
        want(answer.stdout.lines().count() == 2, &answer)
    });

    // Docker calls while no agent runs: systemd starts one, and the call is answered.
    machine.run("systemctl stop warren.service").ok();
    let call = "curl -s --max-time 15 --unix-socket /run/docker/plugins/warren.sock -X POST http://d/Plugin.Activate";
    let answer: Value = serde_json::from_str(&machine.run(call).ok().stdout).unwrap();
    assert_eq!(answer["Implements"], serde_json::json!(["NetworkDriver", "IpamDriver"]));

    machine.run("systemctl stop warren.service warren.socket").ok();
    assert_eq!(lost(&machine, &to, "true"), 0, "the traffic goes on without an agent");
    machine.run("warren reset").ok();
    let left = machine.run("ls /run/warren/netns /sys/class/net; pgrep -x warren");
    assert!(!left.stdout.contains("pn-") && !left.stdout.contains("bind-"), "{left:?}");
    assert!(!left.stdout.lines().any(|line| line.parse::<u32>().is_ok()), "no process of ours: {left:?}");
}
