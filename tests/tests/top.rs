//! `warren top` beside real traffic.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tests::dns::Poll;
use tests::flow::Flow;
use tests::ids::PN;
use tests::process::{self, Place};
use tests::{Lab, eventually, seconds, want};

const PORT: u16 = 8080;

#[test]
fn what_passes_is_shown() {
    let lab = Lab::new("top");
    let hosts = lab.region(&["a", "b"]);
    let ((here, one), (there, two)) = (hosts[0].web(), hosts[1].web());
    let idle = hosts[0].container("idle");
    idle.join(PN, tests::ids::AP, "worker");
    let _echo = there.echo(PORT);
    // 100 kB a second, both ways.
    let address = SocketAddr::new(two.address.into(), PORT);
    let flow = Flow::start(here.netns(), address, 5_000, Duration::from_millis(50));
    let poll = Poll::start(here.netns(), &one.names[0]);

    let seen = eventually(seconds(20), "top shows it", || {
        let seen = hosts[0].warren(&["top", "--once", "-o", "json"]).json();
        let busiest = &seen["members"][0];
        let moves = |key: &str| busiest[key].as_u64().is_some_and(|rate| (20_000..1_000_000).contains(&rate));
        let asks = seen["queries_per_s"][PN].as_f64().is_some_and(|rate| rate > 1.0);
        want(moves("received_per_s") && moves("sent_per_s") && asks, &seen)?;
        Ok(seen)
    });
    let busiest = &seen["members"][0];
    assert_eq!((&busiest["member"], &busiest["container"]), (&one.json["member"], &one.json["container"]));
    assert_eq!((&busiest["peers"], &busiest["sessions"]), (&2.into(), &1.into()), "{busiest}");
    assert!(busiest["handshake_s"].as_u64().is_some_and(|age| age < 180), "{busiest}");
    assert_eq!(seen["members"][1]["container"], "idle");

    // For people, as long as they read: no terminal, no escapes.
    let mut command = process::command(&process::warren().display().to_string(), Place::Here);
    command.args(["--socket", &hosts[0].socket().display().to_string(), "top", "--interval", "0.1"]);
    let mut top = process::spawn({
        command.stdout(Stdio::piped());
        command
    })
    .unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines().map(Result::unwrap);
    for _ in 0..2 {
        let summary = lines.find(|line| line.starts_with("a: 2 members, in ")).unwrap();
        assert!(!summary.contains('\x1b'), "{summary}");
        assert!(lines.next().unwrap().is_empty());
        assert!(lines.next().unwrap().starts_with("MEMBER"));
        let busiest = lines.next().unwrap();
        assert!(busiest.starts_with(one.member.as_str()) && busiest.ends_with(here.name()), "{busiest}");
    }
    drop(lines);
    eventually(seconds(10), "it ends with its reader", || {
        let ended = top.try_wait().map_err(|e| e.to_string())?;
        want(ended.is_some_and(|status| status.success()), ended)
    });
    drop(poll.stop());
    flow.stop().unwrap();
}
