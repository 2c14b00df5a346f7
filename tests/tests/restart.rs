//! Agents stop, die and come back; hosts are lost and found. Containers of others do not notice.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rustix::process::Signal;
use tests::dns::{Answer, Poll};
use tests::ids::{AP, AP2, PN, name};
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// Fewest lookups a poll of a second and more at 25 a second must have made to mean anything.
const LOOKUPS_MIN: usize = 25;

/// A container on each host: `web` members of one app.
fn webs(hosts: &[Host]) -> Vec<(Container, Attached)> {
    let webs: Vec<_> = hosts.iter().map(Host::web).collect();
    let all = name(AP, PN);
    for (container, _) in &webs {
        eventually(seconds(5), "all are in the names", || {
            let found = container.addresses(&all);
            want(found.len() == webs.len(), found)
        });
    }
    webs
}

fn address(attached: &Attached) -> IpAddr {
    attached.address.into()
}

/// Panics unless every lookup was answered, with `address` in it.
#[track_caller]
fn never_missing(answers: &[Result<Answer, String>], address: IpAddr) {
    assert!(answers.len() >= LOOKUPS_MIN, "only {} lookups were made", answers.len());
    for (i, answer) in answers.iter().enumerate() {
        let good =
            answer.as_ref().is_ok_and(|a| a.code == ResponseCode::NoError && a.addresses.contains(&address));
        assert!(good, "lookup {i} of {}: {answer:?}", answers.len());
    }
}

/// What happens to the agent of the first host in [`names_stay`].
enum Restart {
    Killed,
    Stopped,
}

/// The first host's agent restarts while containers of the two others look its member up.
fn names_stay(restart: Restart) {
    let lab = Lab::new("names-stay");
    let hosts = ["a", "b", "c"].map(|name| lab.host(name));
    // The interval users have: a host that is silent for 5 s is dead.
    for host in &hosts {
        host.set("gossip.interval_ms", "500");
    }
    tests::lab::start(&hosts);
    let webs = webs(&hosts);
    let polled = webs[0].1.names[0].clone();
    let polls: Vec<Poll> = webs[1..].iter().map(|(c, _)| Poll::start(c.netns(), &polled)).collect();
    let (generation, echo) = (generation(&hosts[1], "a"), webs[0].0.echo(PORT));
    match restart {
        Restart::Killed => hosts[0].kill_agent(),
        Restart::Stopped => assert_eq!(hosts[0].stop_agent(), 0),
    }
    // Down for longer than a crash takes to be noticed by a supervisor.
    tests::wait::pause(seconds(2));
    hosts[0].start_agent();
    hosts[0].wait_ready();
    eventually(seconds(10), "the others have the new generation", || {
        let now = self::generation(&hosts[1], "a");
        want(now > generation, (generation, now))
    });
    tests::wait::pause(seconds(1));
    for poll in polls {
        never_missing(&poll.stop(), address(&webs[0].1));
    }
    serves_its_own(&hosts[0], &webs);
    drop(echo);
}

/// The host's own container resolves everybody and is reached as before, under the same names and
/// address.
#[track_caller]
fn serves_its_own(host: &Host, webs: &[(Container, Attached)]) {
    let (own, attached) = &webs[0];
    let mut all: Vec<IpAddr> = webs.iter().map(|(_, a)| address(a)).collect();
    all.sort();
    eventually(seconds(10), "its own container resolves all names", || {
        let found = own.addresses(&name(AP, PN));
        want(found == all, found)
    });
    let row = host.members().into_iter().find(|row| row["member"] == attached.member.as_str());
    let row = row.unwrap_or_else(|| panic!("{} is no member any more", attached.member));
    assert_eq!(row["address"], attached.address.to_string());
    assert_eq!(row["state"], "ready");
    let again = own.attach(PN, AP, &[]).json();
    assert_eq!(again["member"], attached.member.as_str(), "an attach finds the membership there");
    for (peer, theirs) in &webs[1..] {
        eventually(seconds(10), &format!("{} reaches {}", peer.name(), own.name()), || {
            let reached = peer.ask_tcp(attached.address, PORT).map_err(|e| e.to_string())?;
            want(reached == own.name(), reached)
        });
        let _echo = peer.echo(PORT);
        assert_eq!(own.ask_tcp(theirs.address, PORT).unwrap(), peer.name());
    }
}

/// The generation of `of` as `host` sees it.
fn generation(host: &Host, of: &str) -> u64 {
    let rows = host.warren(&["hosts", "-o", "json"]).rows();
    rows.iter().find(|row| row["host"] == of).and_then(|row| row["generation"].as_u64()).unwrap_or(0)
}

#[test]
fn a_killed_agents_names_are_never_missing() {
    names_stay(Restart::Killed);
}

#[test]
fn a_stopped_agents_names_are_never_missing() {
    names_stay(Restart::Stopped);
}

#[test]
fn an_agent_that_stood_still_forgets_nobody() {
    let lab = Lab::new("still");
    let hosts = lab.region(&["a", "b", "c"]);
    let webs = webs(&hosts);
    let echo = webs[0].0.echo(PORT);
    hosts[0].signal_agent(Signal::STOP);
    eventually(seconds(20), "the others find it dead", || {
        let found = webs[1].0.addresses(&name(AP, PN));
        want(found.len() == 2, found)
    });
    tests::wait::pause(seconds(1));
    hosts[0].signal_agent(Signal::CONT);
    // Nobody else was silent: it was the agent that did not listen.
    let poll = Poll::start(webs[0].0.netns(), &webs[1].1.names[0]);
    eventually(seconds(20), "the others have it again", || {
        let found = webs[1].0.addresses(&name(AP, PN));
        want(found.len() == 3, found)
    });
    tests::wait::pause(seconds(1));
    never_missing(&poll.stop(), address(&webs[1].1));
    serves_its_own(&hosts[0], &webs);
    drop(echo);
}

#[test]
fn a_lost_hosts_names_go_and_come_back_with_it() {
    let lab = Lab::new("loss");
    let hosts = lab.region(&["a", "b", "c"]);
    let webs = webs(&hosts);
    let all = name(AP, PN);
    let (lost, kept) = (&webs[0], &webs[1..]);
    let witness = Poll::start(kept[0].0.netns(), &kept[1].1.names[0]);

    hosts[0].cut();
    hosts[0].kill_agent();
    for (container, _) in kept {
        eventually(seconds(10), "the lost host's names go", || {
            let numbered = container.addresses(&lost.1.names[0]);
            want(numbered.is_empty() && container.addresses(&all).len() == 2, numbered)
        });
        assert_eq!(
            container.lookup(&lost.1.names[0], hickory_proto::rr::RecordType::A).unwrap().code,
            ResponseCode::NXDomain
        );
    }
    let echo = kept[1].0.echo(PORT);
    assert_eq!(kept[0].0.ask_tcp(kept[1].1.address, PORT).unwrap(), kept[1].0.name());
    drop(echo);
    never_missing(&witness.stop(), address(&kept[1].1));

    hosts[0].heal();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    for (container, _) in kept {
        eventually(seconds(15), "its names come back", || {
            let found = container.addresses(&lost.1.names[0]);
            want(found == [address(&lost.1)], found)
        });
    }
    let _echo = lost.0.echo(PORT);
    serves_its_own(&hosts[0], &webs);
}

#[test]
fn a_cut_that_heals_leaves_one_region() {
    let lab = Lab::new("cut");
    let hosts = lab.region(&["a", "b", "c"]);
    let webs = webs(&hosts);
    hosts[0].cut();
    eventually(seconds(10), "the others miss it", || {
        let found = webs[1].0.addresses(&name(AP, PN));
        want(found.len() == 2, found)
    });
    eventually(seconds(10), "the one cut off says so", || {
        let answer = hosts[0].get("/readyz").map_err(|e| e.to_string())?;
        want(answer.status == 503 && answer.body.contains("cut off"), &answer)
    });
    eventually(seconds(2), "it keeps its answers: it is the one that may be wrong", || {
        let found = webs[0].0.addresses(&name(AP, PN));
        want(found.len() == 3, found)
    });
    // Both sides go on attaching.
    let there = hosts[1].container("there");
    let there_joined = there.join(PN, AP2, "web");

    hosts[0].heal();
    for host in &hosts {
        host.wait_hosts(3);
        host.wait_ready();
    }
    eventually(seconds(10), "what was attached meanwhile is known", || {
        let found = webs[0].0.addresses(&there_joined.names[0]);
        want(found == [address(&there_joined)], found)
    });
    let _echo = webs[0].0.echo(PORT);
    serves_its_own(&hosts[0], &webs);
}

#[test]
fn a_container_that_went_while_the_agent_was_down_is_cleaned_up() {
    let lab = Lab::new("missed");
    let hosts = lab.region(&["a", "b"]);
    let webs = webs(&hosts);
    let kept = hosts[0].container("kept");
    let kept_joined = kept.join(PN, AP2, "web");
    hosts[0].kill_agent();
    webs[0].0.destroy();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    eventually(seconds(10), "its names are gone everywhere", || {
        let found = webs[1].0.addresses(&name(AP, PN));
        want(found == [address(&webs[1].1)], found)
    });
    eventually(seconds(5), "nothing of it is left on its host", || {
        let binding = hosts[0].inner(&format!("bind-{}", webs[0].1.member));
        want(!binding.path().exists(), binding.path())
    });
    let _echo = kept.echo(PORT);
    eventually(seconds(5), "the other container goes on", || {
        let reached = webs[1].0.ask_tcp(kept_joined.address, PORT).map_err(|e| e.to_string())?;
        want(reached == "kept", reached)
    });
}

#[test]
fn an_agent_killed_amid_an_attach_leaves_nothing_and_can_be_asked_again() {
    let lab = Lab::new("amid");
    let hosts = lab.region(&["a", "b"]);
    let far = hosts[1].container("far");
    let far_member = far.join(PN, AP2, "web");
    let echo = far.echo(PORT);
    for delay_ms in [0, 4, 8, 12, 16, 20, 30, 45, 70, 120] {
        let container = hosts[0].container(&format!("c{delay_ms}"));
        std::thread::scope(|scope| {
            let attach = scope.spawn(|| container.attach(PN, AP, &[]));
            tests::wait::pause(Duration::from_millis(delay_ms));
            hosts[0].kill_agent();
            let outcome = attach.join().unwrap();
            assert!([0, 1, 3].contains(&outcome.code), "{delay_ms} ms: {outcome:?}");
        });
        // Starts are counted, and their number would delay the next join: not what is asked here.
        std::fs::remove_file(hosts[0].dir().join("state/starts")).unwrap();
        hosts[0].start_agent();
        hosts[0].wait_ready();
        let member = container.join(PN, AP, "web");
        assert_eq!(member.ifname, "wg0", "{delay_ms} ms: nothing of the first attempt is in the way");
        eventually(seconds(5), &format!("{delay_ms} ms: the second attempt is a member"), || {
            let reached = container.ask_tcp(far_member.address, PORT).map_err(|e| e.to_string())?;
            want(reached == "far", reached)
        });
        container.detach(PN).ok();
        eventually(seconds(5), &format!("{delay_ms} ms: nothing is left"), || {
            let left: Vec<String> = lab
                .left()
                .into_iter()
                .filter(|what| !what.contains("/b/") && !what.starts_with("b "))
                .collect();
            want(left.is_empty(), left)
        });
    }
    drop(echo);
    far.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn a_namespace_half_made_is_cleaned_up() {
    let lab = Lab::new("half");
    let hosts = lab.region(&["a"]);
    let container = hosts[0].container("c1");
    let member = container.join(PN, AP, "web");
    hosts[0].kill_agent();
    container.destroy();
    // As if the agent had died between making the file and mounting the namespace on it.
    hosts[0].inner(&format!("bind-{}", member.member)).unmount();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    lab.assert_clean();
}
