//! Podman: containers join by an annotation, before their first process runs.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;

use hickory_proto::rr::RecordType;
use tests::docker::IMAGE;
use tests::ids::{AP, AP2, PN, name};
use tests::podman::Podman;
use tests::traffic::{Echo, ask_tcp};
use tests::{Lab, Outcome, dns, eventually, process, seconds, want};

const PORT: u16 = 3000;

/// A container that joins and runs `command`.
fn start(podman: &Podman, container: &str, app: &str, more: &[&str], command: &[&str]) -> Outcome {
    let (network, app) = (format!("warren.network={PN}"), format!("warren.app={app}"));
    let args = ["run", "--name", container, "--network", "none"];
    let annotations = ["--annotation", &network, "--annotation", &app];
    podman.run(&[&args[..], &annotations, more, &[IMAGE], command].concat())
}

#[test]
fn containers_join_before_their_first_process() {
    let lab = Lab::new("podman");
    let hosts = lab.region(&["a", "b"]);
    let podmans: Vec<Podman> = hosts.iter().map(Podman::new).collect();
    let [a, b] = &podmans[..] else { unreachable!() };
    start(b, "back", AP2, &["-d", "--annotation", "warren.type=worker"], &["sleep", "100000"]).ok();
    let _echo = Echo::serve(&b.netns("back"), "back", PORT);
    let full_name = name(&format!("1.worker.{AP2}"), PN);

    // The very first process finds the interface, the guard's route, and the name.
    let once = start(
        a,
        "front",
        AP,
        &["--rm"],
        &["sh", "-c", &format!("ip -o -4 address show dev wg0; ip route; nslookup {full_name} 127.240.0.53")],
    );
    let said = once.ok().stdout.clone();
    assert!(said.contains("10.240.") && said.contains("unreachable"), "{said}");
    assert!(said.contains(&format!("Name:\t{full_name}")), "{said}");

    start(a, "stays", AP, &["-d"], &["sleep", "100000"]).ok();
    let netns = a.netns("stays");
    let answer = netns.enter(|| dns::lookup(&full_name, RecordType::A, seconds(2))).unwrap();
    let echoed = netns.enter(|| ask_tcp((answer.addresses[0], PORT).into(), b"ping")).unwrap();
    assert_eq!(echoed, "back");

    // Who cannot be attached does not start, and its user is told why.
    let refused = start(a, "wrong", "shop", &["--rm"], &["sleep", "1"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("warren.app"), "{}", refused.stderr);
    hosts[0].stop_agent();
    let refused = start(a, "early", AP, &["--rm"], &["sleep", "1"]);
    assert!(refused.code != 0 && refused.stderr.contains("no agent"), "{}", refused.stderr);
    hosts[0].start_agent();
    hosts[0].wait_ready();

    a.run(&["rm", "-f", "-t", "0", "stays"]).ok();
    b.run(&["rm", "-f", "-t", "0", "back"]).ok();
    lab.assert_clean();
}

/// The device of a network is there as long as the network is.
#[test]
fn containers_join_by_a_device() {
    let lab = Lab::new("podman-device");
    let hosts = ["a", "b"].map(|name| lab.host(name));
    // A network is there until the last address has rested for the TTL and 5 s.
    hosts.iter().for_each(|host| _ = host.set("dns.ttl_s", "1"));
    tests::lab::start(&hosts);
    let podman = Podman::new(&hosts[0]);
    let file = hosts[0].dir().join("cdi/warren.json");
    assert!(!file.exists(), "a file without devices is malformed");
    let peer = hosts[1].container("peer");
    peer.attach(PN, AP2, &["--type", "worker"]).ok();
    eventually(seconds(10), "the network is a device", || {
        let devices = fs::read_to_string(&file).unwrap_or_default();
        want(devices.contains(PN), devices)
    });

    let run = |app: &str, command: &str| {
        let device = format!("warren.dev/network={PN}");
        let args = ["run", "--rm", "--network", "none", "--device", &device];
        let app = format!("WARREN_APP_ID={app}");
        podman.run_with_devices(&[&args[..], &["-e", &app, IMAGE, "sh", "-c", command]].concat())
    };
    let full_name = name(&format!("1.worker.{AP2}"), PN);
    let ask = "ip -o -4 address show dev wg0; ip route; echo $WARREN_NETWORK_ID; nslookup";
    let said = run(AP, &format!("{ask} {full_name} 127.240.0.53")).ok().stdout.clone();
    for expected in ["10.240.", "unreachable", PN, &format!("Name:\t{full_name}")] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let refused = run("shop", "true");
    assert!(refused.code != 0 && refused.stderr.contains("warren.app"), "{}", refused.stderr);

    peer.detach(PN).ok();
    eventually(seconds(60), "the device is gone with its network", || want(!file.exists(), &file));
    lab.assert_clean();
}

#[test]
fn a_container_that_runs_already_is_attached_by_name() {
    let lab = Lab::new("podman-attach");
    let hosts = lab.region(&["a"]);
    let podman = Podman::new(&hosts[0]);
    podman.run(&["run", "-d", "--name", "one", "--network", "none", IMAGE, "sleep", "100000"]).ok();
    // The command finds this laboratory's containers only when told where they are kept.
    let bin = podman.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let at = |name: &str| podman.dir().join(name).display().to_string();
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/podman --root {} --runroot {} --tmpdir {} --cgroup-manager=cgroupfs \"$@\"\n",
        at("root"),
        at("run"),
        at("tmp")
    );
    fs::write(bin.join("podman"), script).unwrap();
    fs::set_permissions(bin.join("podman"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut warren = process::command(&process::warren().display().to_string(), process::Place::Here);
    warren.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
    warren.arg("--socket").arg(hosts[0].socket());
    let output = warren.args(["attach", "--network", PN, "--app", AP, "--podman", "one"]).output().unwrap();
    Outcome::of("warren attach --podman".into(), &output).ok();
    eventually(seconds(5), "it is a member", || {
        let members = hosts[0].members();
        want(members.iter().any(|m| m["container"] == "one" && m["state"] == "ready"), members)
    });
    drop(podman);
    lab.assert_clean();
}
