//! The units, under a real systemd: this machine's own files below an overlay, booted in namespaces of their own.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tests::ids::{AP, PN, name};
use tests::process::{self, Place};
use tests::{Outcome, eventually, seconds, want};

const CONFIG: &str = r#"
region = "units"
host = "host-a"
[gossip]
listen = "127.0.0.1:7946"
[tls]
ca = "ca.pem"
cert = "host-a.pem"
key = "host-a.key"
"#;

/// A host that systemd has booted; its only network is `lo`.
struct Machine {
    dir: PathBuf,
    unshare: Child,
}

impl Machine {
    fn boot() -> Machine {
        process::need(&[
            ("systemd-nspawn", "systemd-container"),
            ("nsenter", "util-linux"),
            ("ip", "iproute2"),
            ("curl", "curl"),
        ]);
        let dir = PathBuf::from(format!("/run/warren-units-{}", std::process::id()));
        let [upper, work, root] = ["upper", "work", "root"].map(|name| dir.join(name));
        for made in [&upper.join("etc/systemd/system"), &upper.join("etc/warren"), &work, &root] {
            fs::create_dir_all(made).unwrap_or_else(|e| panic!("{}: {e}; run as root", made.display()));
        }
        // Its own identity; and nothing that the packages of this machine would start.
        fs::write(upper.join("etc/machine-id"), "").unwrap();
        configure(&upper);
        let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        // systemd-nspawn that is killed leaves what it has booted: in a process namespace of its own that ends with it.
        let mut command = process::command("unshare", Place::Here);
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "systemd-nspawn"])
            .args([
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
                "--private-network",
                "--console=pipe",
            ])
            .args(["--link-journal=no", "--bind=/dev/net/tun", "--machine=warren-units", "--directory"])
            .arg(&root)
            .arg(format!("--bind-ro={}:/usr/bin/warren", process::warren().display()))
            .args(["--", "systemd.unit=basic.target"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("boot.log")).unwrap())
            .stderr(fs::File::create(dir.join("nspawn.log")).unwrap());
        let unshare = process::spawn(command).unwrap();
        let machine = Machine { dir, unshare };
        eventually(seconds(60), "systemd has booted", || {
            let state = machine.run("systemctl is-system-running");
            let log = || fs::read_to_string(machine.dir.join("nspawn.log")).unwrap_or_default();
            want(["running", "degraded"].contains(&state.stdout.trim()), (&state, log()))
        });
        machine
    }

    /// Runs a line of shell on it.
    fn run(&self, line: &str) -> Outcome {
        // The first child of systemd-nspawn only makes the namespaces, and ends.
        let leader = child_of(&child_of(&self.unshare.id().to_string()));
        let mut command = process::command("nsenter", Place::Here);
        command.args(["-t", &leader, "-a", "--", "sh", "-c", line]);
        Outcome::of(line.to_owned(), &command.output().unwrap())
    }

    #[track_caller]
    fn main_pid(&self, unit: &str) -> u32 {
        self.run(&format!("systemctl show -P MainPID {unit}")).ok().stdout.trim().parse().unwrap()
    }

    #[track_caller]
    fn status(&self) -> Value {
        serde_json::from_str(&self.run("warren status -o json").ok().stdout).unwrap()
    }

    /// Lost pings of 200 in 2 s from one container to the other, while something happens.
    #[track_caller]
    fn lost(&self, to: &str, happens: &str) -> u32 {
        let line = format!(
            "ip netns exec c1 ping -n -i 0.01 -c 200 -W 2 {to} >/tmp/ping & sleep 0.5; {happens}; wait; cat /tmp/ping"
        );
        let outcome = self.run(&line);
        let received = outcome.stdout.lines().find_map(|line| line.split_once(" packets transmitted, "));
        let (_, received) = received.unwrap_or_else(|| panic!("{outcome:?}"));
        200 - received.split_whitespace().next().unwrap().parse::<u32>().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.run("journalctl --no-pager -n 60 -u 'warren*'").stdout);
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = unmount(self.dir.join("root"), UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn child_of(process: &str) -> String {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    children.unwrap_or_default().trim().to_owned()
}

/// What `make install` and an administrator would have put there.
fn configure(upper: &Path) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/dist");
    for unit in ["warren.service", "warren.socket", "warren-engine.service", "warren-engine.socket"] {
        fs::copy(units.join(unit), upper.join("etc/systemd/system").join(unit)).unwrap();
    }
    // Sooner than a user would want it.
    let hurry = upper.join("etc/systemd/system/warren.service.d");
    fs::create_dir_all(&hurry).unwrap();
    fs::write(hurry.join("hurry.conf"), "[Service]\nWatchdogSec=4\n").unwrap();
    let etc = upper.join("etc/warren");
    let dir = etc.display().to_string();
    tests::lab::warren(&["region", "init", "--region", "units", "--dir", &dir]).ok();
    tests::lab::warren(&["region", "issue", "--dir", &dir, "--host", "host-a", "--address", "127.0.0.1"])
        .ok();
    fs::write(etc.join("agent.toml"), CONFIG).unwrap();
}

#[test]
fn agent_and_engine_are_two_services_and_either_may_end() {
    let machine = Machine::boot();
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
    assert_eq!(machine.lost(&to, "true"), 0);

    let (agent, engine) = (machine.main_pid("warren"), machine.main_pid("warren-engine"));
    assert_eq!(machine.status()["engine"]["pid"], engine, "systemd's engine is the one");
    assert_eq!(machine.lost(&to, &format!("kill -9 {agent}")), 0);
    eventually(seconds(20), "systemd restarts the agent", || {
        let next = machine.main_pid("warren");
        want(next != 0 && next != agent, next)
    });
    // It waits in the socket until an agent is back.
    assert_eq!(machine.status()["engine"]["pid"], engine);

    let lost = machine.lost(&to, &format!("kill -9 {engine}"));
    assert!(lost < 50, "{lost} pings of 200 lost, one every 10 ms");
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
    assert_eq!(machine.lost(&to, "true"), 0, "the traffic goes on without an agent");
    machine.run("warren reset").ok();
    let left = machine.run("ls /run/warren/netns /sys/class/net; pgrep -x warren");
    assert!(!left.stdout.contains("pn-") && !left.stdout.contains("bind-"), "{left:?}");
    assert!(!left.stdout.lines().any(|line| line.parse::<u32>().is_ok()), "no process of ours: {left:?}");
}
