//! A host that is drained: nothing new comes, names lead elsewhere, and what is there goes on.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tests::flow::Flow;
use tests::ids::{AP, PN};
use tests::{Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// Waits until `name` resolves to exactly these containers for `from`.
#[track_caller]
fn finds(from: &Container, name: &str, expected: &[std::net::IpAddr]) {
    let mut expected = expected.to_vec();
    expected.sort();
    eventually(seconds(10), &format!("{name} is {expected:?} for {}", from.name()), || {
        let found = from.addresses(name);
        want(found == expected, found)
    });
}

/// What `asked` knows of a host's draining: its row of `warren hosts`, and the state of its member.
fn known(asked: &Host, host: &Host) -> (bool, Vec<String>) {
    let rows = asked.warren(&["hosts", "-o", "json"]).rows();
    let row = rows.iter().find(|row| row["host"] == host.name()).unwrap();
    let table = asked.warren(&["ps", "--all"]).ok().stdout.clone();
    let of_host = table.lines().filter(|line| line.split_whitespace().nth(5) == Some(host.name()));
    let states = of_host.filter_map(|line| line.split_whitespace().nth(4)).map(str::to_owned).collect();
    (row["draining"] == true, states)
}

#[test]
fn a_drained_host_takes_nobody_and_ends_nothing() {
    let lab = Lab::new("drain");
    let hosts = lab.region(&["a", "b"]);
    let [a, b] = &hosts[..] else { unreachable!() };
    let (here, one) = a.web();
    let (there, two) = b.web();
    let name = &one.names[one.names.len() - 1];
    let (first, second) = (one.address.into(), two.address.into());
    let _echoes = [here.echo(PORT), there.echo(PORT)];
    for from in [&here, &there] {
        finds(from, name, &[first, second]);
    }
    let flow = Flow::start(here.netns(), SocketAddr::new(second, PORT), 500, Duration::from_millis(50));

    let drained = b.warren(&["drain", "-o", "json"]).json();
    assert_eq!(drained, json!({"draining": true, "members": 1, "ttl_s": 30}));
    assert_eq!(b.warren(&["drain", "-o", "name"]).ok().stdout, "draining\n", "once more changes nothing");
    for from in [&here, &there] {
        finds(from, name, &[first]);
        finds(from, &two.names[0], &[]);
    }
    for asked in &hosts {
        eventually(seconds(10), "both know", || {
            let known = known(asked, b);
            want(known == (true, vec!["draining".to_owned()]), known)
        });
        assert_eq!(known(asked, a), (false, vec!["ready".to_owned()]));
    }
    let status = b.warren(&["status", "--check"]).ok().stdout.clone();
    assert!(status.contains("ready, draining") && status.contains("warren drain --off"), "{status}");
    assert_eq!((a.metric("warren_draining", &[]), b.metric("warren_draining", &[])), (0.0, 1.0));

    // Nobody new; who is there already is there.
    let late = b.container("late");
    late.attach(PN, AP, &[]).refused(6, &["host b is being drained", "warren drain --off"]);
    assert_eq!(there.join(PN, AP, "web").member, two.member);
    assert_eq!(here.ask_tcp(second, PORT).unwrap(), there.name(), "its address is reached");

    // It is a fact of the host, not of the agent's life.
    b.kill_agent();
    b.restart_agent();
    finds(&here, name, &[first]);
    late.attach(PN, AP, &[]).refused(6, &["being drained"]);
    assert_eq!(b.stop_agent(), 0);
    b.restart_agent();
    b.wait_hosts(2);
    finds(&there, name, &[first]);

    let taking = b.warren(&["drain", "--off"]).ok().stdout.clone();
    assert!(taking.starts_with("not draining"), "{taking}");
    let third = late.join(PN, AP, "web").address.into();
    for from in [&here, &there, &late] {
        finds(from, name, &[first, second, third]);
    }
    assert_eq!(known(a, b), (false, vec!["ready".to_owned(); 2]));
    let events = b.warren(&["events", "-o", "json"]).rows();
    let told = events.iter().filter(|event| event["kind"] == "draining").count();
    assert_eq!(told, 1, "since its last start: {events:?}");
    let rounds = flow.rounds();
    eventually(seconds(10), "the connection goes on", || want(flow.rounds() > rounds + 5, flow.rounds()));
    flow.stop().unwrap();

    // It ends with everything else of the agent.
    b.warren(&["drain"]).ok();
    b.stop_agent();
    let config = b.dir().join("agent.toml").display().to_string();
    b.run(&tests::process::warren().display().to_string(), &["reset", "--config", &config]).ok();
    b.restart_agent();
    late.join(PN, AP, "web");
}
