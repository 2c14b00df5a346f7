//! Hosts whose kernel has WireGuard, among themselves and with others. Needs that module: `make e2e-kernel`.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::ids::{AP, PN, name};
use tests::pulse::{Beat, Pulse};
use tests::traffic::Echo;
use tests::wait::timed;
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;
/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Some key.
const STRANGER: &str = "YSBzdHJhbmdlciB0byB0aGlzIG5ldHdvcmssIGhlcmU=";
/// An audit comes round every 30 s.
const AUDIT: Duration = seconds(45);

/// Two hosts, each with its backend, and a container on each, both serving.
struct Scene {
    // Before the hosts: an echo server holds its container's namespace.
    _echoes: Vec<Echo>,
    webs: Vec<(Container, Attached)>,
    hosts: Vec<Host>,
    lab: Lab,
}

impl Scene {
    fn new(lab: &str, backends: [&str; 2]) -> Scene {
        let lab = Lab::new(lab);
        let hosts: Vec<Host> = ["a", "b"].map(|name| lab.host(name)).into();
        for (host, backend) in hosts.iter().zip(backends) {
            host.set("wireguard.backend", backend);
        }
        tests::lab::start(&hosts);
        let webs: Vec<_> = hosts.iter().map(Host::web).collect();
        let echoes = webs.iter().map(|(container, _)| container.echo(PORT)).collect();
        let scene = Scene { _echoes: echoes, webs, hosts, lab };
        scene.both_reach();
        scene
    }

    fn pulse(&self, from: usize) -> Pulse {
        let to = SocketAddr::new(self.webs[1 - from].1.address.into(), PORT);
        Pulse::start(self.webs[from].0.netns(), to)
    }

    /// Each reaches the other by TCP and by datagrams as large as the interface allows.
    #[track_caller]
    fn both_reach(&self) {
        for from in [0, 1] {
            let ((container, attached), (other, theirs)) = (&self.webs[from], &self.webs[1 - from]);
            eventually(seconds(20), "the other is reached", || {
                let reached = container.ask_tcp(theirs.address, PORT).map_err(|e| e.to_string())?;
                want(reached == other.name(), reached)
            });
            let full = attached.mtu - HEADERS;
            assert_eq!(container.ask_udp(theirs.address, PORT, full).unwrap(), other.name());
            let to = theirs.address6.expect("IPv6 is on");
            assert_eq!(container.ask_udp(to, PORT, 64).unwrap(), other.name());
        }
    }

    /// A command in the first container.
    fn inside(&self, command: &str) -> String {
        self.webs[0].0.netns().run(command)
    }

    /// What `wg` shows of the other's peer at the first: endpoint, allowed addresses, handshake.
    fn peer(&self) -> Vec<String> {
        let shown = self.inside("wg show wg0 dump");
        let line = shown.lines().nth(1).unwrap_or_default();
        line.split('\t').skip(2).take(3).map(str::to_owned).collect()
    }

    fn endpoint(&self) -> String {
        format!("{}:51820", self.webs[1].1.address)
    }

    #[track_caller]
    fn is_clean_after_detach(&self) {
        for (container, _) in &self.webs {
            container.detach(PN).ok();
        }
        self.lab.assert_clean();
    }
}

/// On an emulated machine echo server and sender stall by turns, and bursts overflow their sockets.
#[track_caller]
fn carried_on(beat: Beat) {
    assert!(beat.sent >= 30 && beat.lost <= beat.sent / 10, "{beat:?}");
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn a_host_whose_kernel_has_it_uses_it() {
    let scene = Scene::new("chosen", ["auto", "kernel"]);
    for (host, (container, attached)) in scene.hosts.iter().zip(&scene.webs) {
        assert!(container.netns().run("ip -d link show wg0").contains("wireguard"));
        let status = host.warren(&["status", "-o", "json"]).json();
        assert_eq!(status["wireguard"], "kernel");
        // The engine holds DNS sockets alone.
        assert_eq!((&status["engine"]["interfaces"], &status["engine"]["listeners"]), (&0.into(), &1.into()));
        assert!(!tests::host::wg_socket(&attached.member).exists());
        assert!(!container.netns().run("ss -Hlnu").contains(":51820"));
        let binding = host.inner(&format!("bind-{}", attached.member));
        assert!(binding.run("ss -Hlnu").contains(":51820"), "its socket stays where it was born");
        assert!(!binding.run("ip -o link").contains("wg0"));
    }
    let own = scene.inside("wg show wg0 dump");
    let own: Vec<&str> = own.lines().next().unwrap().split('\t').collect();
    assert_eq!((own[1], own[2]), (scene.webs[0].1.json["public_key"].as_str().unwrap(), "51820"));
    let peer = scene.peer();
    assert_eq!(peer[0], scene.endpoint());
    let addresses: Vec<&str> = peer[1].split(',').collect();
    assert!(addresses.contains(&format!("{}/32", scene.webs[1].1.address).as_str()), "{peer:?}");
    assert_ne!(peer[2], "0", "a handshake was made");
    assert!(scene.inside("wg show wg0 persistent-keepalive").trim().ends_with("off"));
    let sent = scene.hosts[0].metric("warren_wireguard_transmit_bytes_total", &[]);
    assert!(sent > 0.0, "{sent}");
    scene.is_clean_after_detach();
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn a_host_with_the_module_and_one_without_reach_each_other() {
    for (lab, backends) in [("mixed", ["kernel", "userspace"]), ("mixed-back", ["userspace", "kernel"])] {
        let scene = Scene::new(lab, backends);
        let kind = |i: usize| scene.webs[i].0.netns().run("ip -d link show wg0").contains("wireguard");
        assert_eq!([kind(0), kind(1)], backends.map(|backend| backend == "kernel"));
        for (container, _) in &scene.webs {
            eventually(seconds(5), "both are in the names", || {
                let found = container.addresses(&name(AP, PN));
                want(found.len() == 2, found)
            });
        }
        // The first of the two attached while the second was not there: who comes later is met at once, too.
        let late = scene.hosts[0].container("late");
        late.join(PN, AP, "worker");
        assert_eq!(late.ask_tcp(scene.webs[1].1.address, PORT).unwrap(), scene.webs[1].0.name());
        late.detach(PN).ok();
        scene.is_clean_after_detach();
    }
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn agent_and_engine_may_both_die() {
    let scene = Scene::new("outlived", ["kernel", "kernel"]);
    let show = || {
        let of = ["link show wg0", "address show dev wg0", "route show table all dev wg0"];
        of.map(|what| scene.inside(&format!("ip -o {what}")))
    };
    let (link, host) = (show(), &scene.hosts[0]);
    let pulses = [scene.pulse(0), scene.pulse(1)];
    for both in [false, true] {
        tests::wait::pause(Duration::from_millis(300));
        host.kill_agent();
        if both {
            host.kill_engine();
        }
        tests::wait::pause(Duration::from_millis(300));
        scene.hosts[0].restart_agent();
        host.assert_nothing_written();
    }
    for beat in pulses.map(Pulse::stop) {
        carried_on(beat);
    }
    assert_eq!(show(), link);
    // The listeners went with the engine; the agent opened others.
    eventually(seconds(10), "names are served", || {
        let found = scene.webs[0].0.addresses(&name(AP, PN));
        want(found.len() == 2, found)
    });
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn what_somebody_changed_is_put_right_by_the_audit() {
    let scene = Scene::new("drifted", ["kernel", "kernel"]);
    let key = scene.webs[1].1.json["public_key"].as_str().unwrap().to_owned();
    let as_it_was = scene.peer()[..2].to_vec();
    scene.inside(&format!("wg set wg0 peer {key} endpoint 10.240.3.99:7 allowed-ips 10.240.3.99/32"));
    scene.inside(&format!("wg set wg0 peer {STRANGER} allowed-ips 10.240.3.98/32"));
    eventually(AUDIT, "peers are as before", || {
        let shown = scene.inside("wg show wg0 dump");
        want(scene.peer()[..2] == as_it_was && !shown.contains(STRANGER), shown)
    });
    scene.both_reach();

    let drift = |kind: &str| scene.hosts[0].metric("warren_drift_total", &[&format!("kind=\"{kind}\"")]);
    assert_eq!((drift("peers"), drift("drop-peers")), (1.0, 1.0), "counted");
    scene.is_clean_after_detach();
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn a_host_that_lost_its_state_and_its_engine_asks_the_kernel() {
    let scene = Scene::new("asked", ["kernel", "kernel"]);
    let host = &scene.hosts[0];
    let (container, lost) = &scene.webs[0];
    let (pulse, link) = (scene.pulse(1), scene.inside("ip -o link show wg0"));
    host.kill_agent();
    host.kill_engine();
    std::fs::remove_dir_all(host.dir().join("state")).unwrap();
    scene.hosts[0].restart_agent();
    eventually(seconds(10), "it is a member as before", || {
        let found = container.addresses(&lost.names[0]);
        want(found == [IpAddr::from(lost.address)], found)
    });
    let again = container.join(PN, AP, "web");
    assert_eq!((&again.member, again.address), (&lost.member, lost.address));
    carried_on(pulse.stop());
    assert_eq!(scene.inside("ip -o link show wg0"), link);
    // Its name for the container is lost: the member's stands in.
    host.warren(&["detach", "--network", PN, &lost.member]).ok();
    scene.webs[1].0.detach(PN).ok();
    scene.lab.assert_clean();
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn a_host_goes_from_one_backend_to_the_other_and_back() {
    let scene = Scene::new("switched", ["userspace", "kernel"]);
    let host = &scene.hosts[0];
    for (backend, kind) in [("kernel", "wireguard"), ("userspace", "tun")] {
        assert_eq!(host.stop_agent(), 0);
        host.set("wireguard.backend", backend);
        scene.hosts[0].restart_agent();
        eventually(seconds(10), "the interface is of the other kind", || {
            // For a moment there is none.
            let link = scene.webs[0].0.netns().try_run("ip -d link show wg0").stdout;
            let link = String::from_utf8_lossy(&link).into_owned();
            want(link.contains(kind), link)
        });
        scene.both_reach();
    }
    scene.is_clean_after_detach();
}

#[test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
fn a_reset_leaves_no_trace_of_kernel_interfaces() {
    let scene = Scene::new("kernel-reset", ["kernel", "kernel"]);
    let host = &scene.hosts[0];
    let config = host.write_config().display().to_string();
    assert_eq!(host.stop_agent(), 0);
    scene.both_reach();
    host.run(&tests::process::warren().display().to_string(), &["reset", "--config", &config]).ok();
    let left: Vec<String> =
        scene.lab.left().into_iter().filter(|w| !w.contains("/b/") && !w.starts_with("b ")).collect();
    assert!(left.is_empty(), "{left:?}");
    scene.hosts[0].restart_agent();
    let again = scene.webs[0].0.join(PN, AP, "web");
    // The first packet is the other's: whose greeting was lost would wait for WireGuard's retry, 5 s.
    let (_, took) = timed(|| {
        eventually(seconds(10), "who has just joined is reached", || {
            let reached = scene.webs[1].0.ask_tcp(again.address, PORT).map_err(|e| e.to_string())?;
            want(reached == scene.webs[0].0.name(), reached)
        })
    });
    assert!(took < seconds(4), "{took:?}");
}
