//! What users install: the files of `make install`, and the Debian package under a real systemd and dpkg.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::ids::{AP, PN};
use tests::machine::{self, Machine};
use tests::process::{self, Place};
use tests::{Outcome, eventually, seconds, want};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file and link below a directory, seen from it.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found
}

/// `node/dist/install` with the binary of these tests.
fn install(dest: &Path, prefix: &str, more: &[&str]) -> Outcome {
    let mut command = process::command(&root().join("node/dist/install").display().to_string(), Place::Here);
    command.env("DESTDIR", dest).env("PREFIX", prefix).env("BINARY", process::warren()).args(more);
    Outcome::of(format!("install {}", more.join(" ")), &command.output().unwrap())
}

#[test]
fn what_is_installed_is_found_by_its_users_and_uninstalled() {
    for (prefix, units, hooks) in [
        ("/usr/local", "etc/systemd/system", "etc/containers/oci/hooks.d"),
        ("/usr", "usr/lib/systemd/system", "usr/share/containers/oci/hooks.d"),
    ] {
        let dest = tempfile::tempdir().unwrap();
        install(dest.path(), prefix, &[]).ok();
        let binary = format!("{prefix}/bin/warren");
        let netavark = format!("{}/lib/netavark/warren", &prefix[1..]);
        for link in ["opt/cni/bin/warren", "usr/lib/cni/warren", &netavark] {
            assert_eq!(fs::read_link(dest.path().join(link)).unwrap(), Path::new(&binary), "{link}");
        }
        let text = |path: String| fs::read_to_string(dest.path().join(path)).unwrap();
        assert!(text(format!("{units}/warren.service")).contains(&format!("ExecStart={binary} agent")));
        let hook: Value = serde_json::from_str(&text(format!("{hooks}/warren.json"))).unwrap();
        assert_eq!(hook["hook"]["path"], binary);
        let installed = files(dest.path());
        assert!(installed.contains(&format!("{}/share/man/man1/warren.1", &prefix[1..])), "{installed:?}");

        install(dest.path(), prefix, &["--remove"]).ok();
        assert_eq!(files(dest.path()), BTreeSet::new());
        // Who wrote a configuration keeps it.
        install(dest.path(), prefix, &[]).ok();
        fs::write(dest.path().join("etc/warren/agent.toml"), "region = \"r\"").unwrap();
        install(dest.path(), prefix, &["--remove"]).ok();
        assert_eq!(files(dest.path()), BTreeSet::from(["etc/warren/agent.toml".to_owned()]));
    }
}

#[test]
#[ignore = "needs a package: `make deb-check` builds it and runs this"]
fn the_package_is_installed_upgraded_and_purged() {
    let packages = files(&root().join("target/debian"));
    let [package] = &packages.iter().collect::<Vec<_>>()[..] else { panic!("one package, not {packages:?}") };
    let package = root().join("target/debian").join(package).canonicalize().unwrap();
    // Where the tests run in a container its image may forbid packages to start anything.
    let permit = |upper: &Path| {
        fs::create_dir_all(upper.join("usr/sbin")).unwrap();
        fs::write(upper.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(upper.join("usr/sbin/policy-rc.d"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let machine = Machine::boot("package", permit, &[(&package, "/srv/warren.deb")]);
    machine.run("rm -rf /etc/warren").ok();
    // But for what changes by itself, this project's build among it.
    let ours = format!(
        "find / -xdev -iname '*warren*' -not -path '/proc/*' -not -path '/srv/*' -not -path '{}/*' \
         -not -path '/root/*' -not -path '/tmp/*' -not -path '/var/log/*' | sort",
        root().canonicalize().unwrap().display()
    );
    let before = machine.run(&ours).ok().stdout.clone();
    let install = "DEBIAN_FRONTEND=noninteractive dpkg -i /srv/warren.deb";
    machine.run(install).ok();
    assert_eq!(machine.main_pid("warren"), 0, "it is not started before it is configured");
    let etc = tempfile::tempdir().unwrap();
    machine::configure(etc.path());
    for file in ["ca.pem", "host-a.pem", "host-a.key", "agent.toml"] {
        let text = fs::read_to_string(etc.path().join("warren").join(file)).unwrap();
        machine.run(&format!("cat >/etc/warren/{file} <<'EOT'\n{text}\nEOT")).ok();
    }
    machine.run("warren agent --check && systemctl enable --now warren").ok();
    let attach = format!("warren attach --network {PN} --app {AP} --netns /run/netns/c1 -o json");
    let attached = machine.run(&format!("ip netns add c1 && {attach}")).json();
    assert_eq!(attached["ifname"], "wg0");
    let (agent, engine) = (machine.main_pid("warren"), machine.main_pid("warren-engine"));
    assert!(agent != 0 && engine != 0);

    machine.run(&format!("{install} </dev/null")).ok();
    eventually(seconds(20), "the upgrade restarts the agent", || {
        let next = machine.main_pid("warren");
        want(next != 0 && next != agent, next)
    });
    assert_eq!(machine.main_pid("warren-engine"), engine, "and not the engine");
    assert!(machine.run("ip netns exec c1 ip link show wg0").code == 0);
    assert!(machine.run("warren ps").ok().stdout.contains("ready"));

    machine.run("dpkg --remove warren").ok();
    let left = machine.run("ip netns exec c1 ip link; ls /run/warren/netns; pgrep -x warren");
    assert!(!left.stdout.contains("wg0") && !left.stdout.contains("pn-"), "{left:?}");
    assert!(!left.stdout.lines().any(|line| line.parse::<u32>().is_ok()), "no process of ours: {left:?}");
    machine.run("dpkg --purge warren && rm -r /etc/warren").ok();
    assert_eq!(machine.run(&ours).ok().stdout, before, "nothing is left");
}
