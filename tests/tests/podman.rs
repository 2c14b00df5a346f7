//! Podman: containers join by an annotation, before their first process runs.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::path::PathBuf;

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tests::docker::{IMAGE, image};
use tests::ids::{AP, AP2, PN, name};
use tests::traffic::{Echo, ask_tcp};
use tests::{Host, Lab, Netns, Outcome, dns, eventually, process, seconds, want};

const PORT: u16 = 3000;

/// Podman with everything it keeps in a host's directory.
struct Podman {
    netns: Netns,
    dir: PathBuf,
}

impl Podman {
    #[track_caller]
    fn new(host: &Host) -> Podman {
        process::need(&[("podman", "podman"), ("runc", "runc"), ("conmon", "conmon")]);
        let podman = Podman { netns: host.netns().clone(), dir: host.dir().join("podman") };
        fs::create_dir_all(podman.dir.join("hooks.d")).unwrap();
        // Its defaults ask for rights that not every machine gives.
        let limits = "[containers]\ndefault_ulimits=[\"nofile=1024:4096\",\"nproc=4096:4096\"]\n";
        fs::write(podman.dir.join("containers.conf"), limits).unwrap();
        let shipped = include_str!("../../node/dist/hooks.d/warren.json");
        let mut hook: Value = serde_json::from_str(shipped).unwrap();
        let socket = host.socket().display().to_string();
        hook["hook"] = json!({ "path": process::warren(), "args": ["warren", "--socket", socket, "hook"] });
        fs::write(podman.dir.join("hooks.d/warren.json"), hook.to_string()).unwrap();
        let tar = image(&podman.dir).display().to_string();
        podman.run(&["import", "-q", "--change", "ENV PATH=/bin", &tar, IMAGE]).ok();
        podman
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut command = self.netns.command("podman");
        command.env("CONTAINERS_CONF", at("containers.conf"));
        for (option, place) in
            [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp"), ("--hooks-dir", "hooks.d")]
        {
            command.args([option, &at(place)]);
        }
        command.args(["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=file"]);
        let output = command.args(args).output().unwrap();
        Outcome::of(format!("podman {}", args.join(" ")), &output)
    }

    /// A container that joins and runs `command`.
    fn start(&self, container: &str, app: &str, more: &[&str], command: &[&str]) -> Outcome {
        let (network, app) = (format!("warren.network={PN}"), format!("warren.app={app}"));
        let args = ["run", "--name", container, "--network", "none"];
        let annotations = ["--annotation", &network, "--annotation", &app];
        self.run(&[&args[..], &annotations, more, &[IMAGE], command].concat())
    }

    #[track_caller]
    fn netns(&self, container: &str) -> Netns {
        let found = self.run(&["container", "inspect", "--format", "json", container]).json();
        Netns::at(format!("/proc/{}/ns/net", found[0]["State"]["Pid"]))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "-af", "-t", "0"]);
    }
}

#[test]
fn containers_join_before_their_first_process() {
    let lab = Lab::new("podman");
    let hosts = lab.region(&["a", "b"]);
    let podmans: Vec<Podman> = hosts.iter().map(Podman::new).collect();
    let [a, b] = &podmans[..] else { unreachable!() };
    b.start("back", AP2, &["-d", "--annotation", "warren.type=worker"], &["sleep", "100000"]).ok();
    let _echo = Echo::serve(&b.netns("back"), "back", PORT);
    let full_name = name(&format!("1.worker.{AP2}"), PN);

    // The very first process finds the interface, the guard's route, and the name.
    let once = a.start(
        "front",
        AP,
        &["--rm"],
        &["sh", "-c", &format!("ip -o -4 address show dev wg0; ip route; nslookup {full_name} 127.240.0.53")],
    );
    let said = once.ok().stdout.clone();
    assert!(said.contains("10.240.") && said.contains("unreachable"), "{said}");
    assert!(said.contains(&format!("Name:\t{full_name}")), "{said}");

    a.start("stays", AP, &["-d"], &["sleep", "100000"]).ok();
    let netns = a.netns("stays");
    let answer = netns.enter(|| dns::lookup(&full_name, RecordType::A, seconds(2))).unwrap();
    let echoed = netns.enter(|| ask_tcp((answer.addresses[0], PORT).into(), b"ping")).unwrap();
    assert_eq!(echoed, "back");

    // Who cannot be attached does not start, and its user is told why.
    let refused = a.start("wrong", "shop", &["--rm"], &["sleep", "1"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("warren.app"), "{}", refused.stderr);
    hosts[0].stop_agent();
    let refused = a.start("early", AP, &["--rm"], &["sleep", "1"]);
    assert!(refused.code != 0 && refused.stderr.contains("no agent"), "{}", refused.stderr);
    hosts[0].start_agent();
    hosts[0].wait_ready();

    a.run(&["rm", "-f", "-t", "0", "stays"]).ok();
    b.run(&["rm", "-f", "-t", "0", "back"]).ok();
    lab.assert_clean();
}

#[test]
fn a_container_that_runs_already_is_attached_by_name() {
    let lab = Lab::new("podman-attach");
    let hosts = lab.region(&["a"]);
    let podman = Podman::new(&hosts[0]);
    podman.run(&["run", "-d", "--name", "one", "--network", "none", IMAGE, "sleep", "100000"]).ok();
    // The command finds this laboratory's containers only when told where they are kept.
    let bin = podman.dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let at = |name: &str| podman.dir.join(name).display().to_string();
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
