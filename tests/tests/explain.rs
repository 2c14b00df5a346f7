//! `warren explain` and `ping` on real hosts: every step is broken for real, and it is the one that is named.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use rustix::process::Signal;
use serde_json::Value;
use tests::ids::{AP, PN, PN2, name};
use tests::sabotage::Saboteur;
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

/// Two hosts with a container on each.
struct Scene {
    webs: Vec<(Container, Attached)>,
    hosts: Vec<Host>,
    lab: Lab,
}

impl Scene {
    fn new(lab: &str) -> Scene {
        let lab = Lab::new(lab);
        let hosts = lab.region(&["a", "b"]);
        let webs: Vec<_> = hosts.iter().map(Host::web).collect();
        let scene = Scene { webs, hosts, lab };
        scene.is_whole();
        scene
    }

    /// From the container on the first host to that on the second.
    fn explain(&self) -> Value {
        let to = self.webs[1].1.address.to_string();
        let outcome = self.hosts[0].warren(&["explain", "c-a", &to, "-o", "json"]);
        assert!(matches!(outcome.code, 0 | 7), "{outcome:?}");
        let explanation: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(explanation["ok"], outcome.code == 0, "{outcome:?}");
        explanation
    }

    #[track_caller]
    fn is_whole(&self) {
        eventually(seconds(20), "nothing is broken", || {
            let explanation = self.explain();
            want(explanation["ok"] == true, broken(&explanation))
        });
    }

    /// Waits until this step is the first broken one, with these words, and a hint.
    #[track_caller]
    fn breaks_at(&self, step: &str, host: Option<&str>, words: &[&str]) {
        eventually(seconds(30), &format!("{step} is found broken"), || {
            let explanation = self.explain();
            let first = broken(&explanation);
            let detail = first["detail"].as_str().unwrap_or_default();
            let named =
                explanation["broken"] == step && first["host"] == host.map_or(Value::Null, Value::from);
            let said = words.iter().all(|word| detail.contains(word));
            want(named && said && first["hint"].is_string(), &first)
        });
    }

    fn network(&self, host: usize) -> tests::Netns {
        self.hosts[host].inner(&format!("net-{PN}"))
    }

    fn binding(&self, host: usize) -> tests::Netns {
        self.hosts[host].inner(&format!("bind-{}", self.webs[host].1.member))
    }
}

/// The first broken step.
fn broken(explanation: &Value) -> Value {
    let steps = explanation["steps"].as_array().unwrap();
    steps.iter().find(|step| step["state"] == "broken").cloned().unwrap_or(Value::Null)
}

#[test]
fn the_whole_way_is_walked_by_whatever_one_is_called() {
    let scene = Scene::new("explain-whole");
    let (a, b) = (&scene.webs[0].1, &scene.webs[1].1);
    let second = name(&format!("2.web.{AP}"), PN);
    for (from, to) in [
        ("c-a", b.address.to_string()),
        (a.member.as_str(), b.member.clone()),
        (&a.address.to_string(), second.clone()),
    ] {
        let explanation = scene.hosts[0].warren(&["explain", from, &to, "-o", "json"]).json();
        assert_eq!(
            (&explanation["ok"], &explanation["broken"]),
            (&true.into(), &Value::Null),
            "{explanation}"
        );
        assert_eq!(explanation["to"]["member"], b.member, "{explanation}");
        let steps = explanation["steps"].as_array().unwrap();
        assert!(steps.iter().all(|step| step["state"] == "ok"), "{explanation}");
        assert_eq!(steps.len(), 1 + 2 * 8 + 4);
    }
    // Asked at a host that has neither: both are asked.
    let other = scene.lab.host("c");
    other.start_agent();
    other.wait_ready();
    other.wait_hosts(3);
    let (from, to) = (b.address.to_string(), a.address.to_string());
    eventually(seconds(20), "a third host explains", || {
        let outcome = other.warren(&["explain", &from, &to]);
        want(outcome.code == 0 && outcome.stdout.contains("nothing is broken"), &outcome)
    });

    let ping = scene.hosts[0].warren(&["ping", "c-a", &second, "-c", "3", "-i", "0.05", "-o", "json"]).json();
    assert_eq!((&ping["sent"], &ping["received"]), (&3.into(), &3.into()), "{ping}");
    assert!(ping["median_us"].as_u64().unwrap() > 0, "{ping}");
    let full = a.mtu.to_string();
    scene.hosts[0].warren(&["ping", &second, "-c", "1", "-s", &full]).ok();
    let long = (a.mtu + 1).to_string();
    let refused = scene.hosts[0].warren(&["ping", &second, "-c", "1", "-s", &long]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stdout.contains("too long"), "{refused:?}");
}

#[test]
fn who_is_nobody_is_said_to_be() {
    let scene = Scene::new("explain-nobody");
    let host = &scene.hosts[0];
    host.warren(&["explain", "c-a", "c-z"]).refused(4, &["c-z", "warren ps -a"]);
    host.warren(&["explain", "c-a", "c-a"]).refused(4, &["the same container"]);
    host.container("c-o").join(PN2, AP, "web");
    host.warren(&["explain", "c-a", "c-o"]).refused(4, &[PN, PN2]);
    host.warren(&["ping", "c-b", "c-a"]).refused(4, &["c-b"]);
    let (a, b) = (&scene.webs[0].1.address.to_string(), &scene.webs[1].1.address.to_string());
    host.warren(&["ping", b, a]).refused(4, &["on host b"]);
    host.warren(&["ping", "c-a", "10.240.3.254"]).refused(4, &["10.240.3.254"]);
}

#[test]
fn what_is_removed_from_the_kernel_is_named() {
    let scene = Scene::new("explain-kernel");
    let b = &scene.webs[1].1;
    let row = format!("bridge fdb del {} dev vxlan0 self", b.mac);
    let sabotage = Saboteur::repeat(&scene.network(0), &row);
    scene.breaks_at("row", Some("a"), &["vxlan0", "192.0.2.2:4789"]);
    drop(sabotage);
    scene.is_whole();

    let other_row =
        format!("bridge fdb replace {} dev vxlan0 self permanent dst 192.0.2.99", scene.webs[0].1.mac);
    let sabotage = Saboteur::repeat(&scene.network(1), &other_row);
    scene.breaks_at("row", Some("b"), &["192.0.2.99", "should be 192.0.2.1:4789"]);
    drop(sabotage);
    scene.is_whole();

    let neighbour = format!("ip neigh del {} dev eth0", b.address);
    let sabotage = Saboteur::repeat(&scene.binding(0), &neighbour);
    scene.breaks_at("neighbour", Some("a"), &["nothing, should be"]);
    drop(sabotage);

    let sabotage = Saboteur::repeat(scene.webs[1].0.netns(), "ip link set wg0 down");
    scene.breaks_at("interface", Some("b"), &["down"]);
    drop(sabotage);

    let _sabotage = Saboteur::repeat(&scene.network(0), "ip link set vxlan0 down");
    scene.breaks_at("fabric", Some("a"), &["vxlan0"]);
}

#[test]
fn what_the_underlay_drops_is_named() {
    let scene = Scene::new("explain-underlay");
    let netns = scene.hosts[1].netns();
    netns.run("nft add table inet wall");
    netns.run("nft add chain inet wall input { type filter hook input priority 0 ; }");
    netns.run("nft add rule inet wall input udp dport 4789 drop");
    scene.breaks_at("underlay", None, &["packets of b arrive at a, those of a do not arrive at b"]);
    netns.run("nft delete table inet wall");
    scene.is_whole();

    netns.run("ip link set eth0 mtu 1400");
    scene.breaks_at(
        "mtu",
        None,
        &["packets of 1450 bytes do not pass", "b's underlay has 1400 now, 1500 when"],
    );
    netns.run("ip link set eth0 mtu 1500");
    scene.is_whole();

    scene.hosts[1].signal_agent(Signal::STOP);
    scene.breaks_at("agent", Some("b"), &["does not answer"]);
    scene.hosts[1].signal_agent(Signal::CONT);
    scene.is_whole();
}

#[test]
fn a_handshake_that_does_not_come_about_is_named() {
    let lab = Lab::new("explain-handshake");
    let hosts = lab.region(&["a", "b"]);
    let containers = [hosts[0].container("c-a"), hosts[1].container("c-b")];
    let a = containers[0].join(PN, AP, "web");
    let binding = hosts[0].inner(&format!("bind-{}", a.member));
    binding.run("nft add table inet wall");
    binding.run("nft add chain inet wall input { type filter hook input priority 0 ; }");
    binding.run("nft add rule inet wall input udp dport 51820 drop");
    let b = containers[1].join(PN, AP, "web");
    let scene = Scene { webs: containers.into_iter().zip([a, b]).collect(), hosts, lab };
    scene.breaks_at("handshake", Some("a"), &["never had a session"]);
    binding.run("nft delete table inet wall");
    scene.is_whole();
}
