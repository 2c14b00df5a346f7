//! A host that systemd has booted: this machine's own files below an overlay, in namespaces of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use crate::cli::Outcome;
use crate::process::{self, Place};
use crate::wait::{eventually, seconds, want};

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

/// A host that systemd has booted; its only network is `lo`. It ends when dropped.
pub struct Machine {
    dir: PathBuf,
    unshare: Child,
}

impl Machine {
    /// Boots one. `prepare` changes its files before, given the directory above this machine's; `binds` are files of
    /// this machine and where they stand in the other.
    #[track_caller]
    pub fn boot(name: &str, prepare: impl FnOnce(&Path), binds: &[(&Path, &str)]) -> Machine {
        process::need(&[
            ("systemd-nspawn", "systemd-container"),
            ("nsenter", "util-linux"),
            ("ip", "iproute2"),
            ("curl", "curl"),
        ]);
        let name = format!("warren-{name}-{}", std::process::id());
        let dir = PathBuf::from("/run").join(&name);
        let [upper, work, root] = ["upper", "work", "root"].map(|name| dir.join(name));
        for made in [&upper.join("etc"), &work, &root] {
            fs::create_dir_all(made).unwrap_or_else(|e| panic!("{}: {e}; run as root", made.display()));
        }
        // Its own identity.
        fs::write(upper.join("etc/machine-id"), "").expect("the overlay is ours");
        // This machine may have an agent of its own: below the overlay its state is not there.
        fs::create_dir_all(upper.join("var/lib")).expect("the overlay is ours");
        let whiteout = process::command("mknod", Place::Here)
            .arg(upper.join("var/lib/warren"))
            .args(["c", "0", "0"])
            .status();
        assert!(whiteout.is_ok_and(|status| status.success()), "mknod in {}; run as root", upper.display());
        prepare(&upper);
        let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
        let options = std::ffi::CString::new(options).expect("paths have no zero");
        mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())
            .unwrap_or_else(|e| panic!("no overlay at {}: {e}", root.display()));
        // systemd-nspawn that is killed leaves what it has booted: in a process namespace of its own that ends with it.
        let mut command = process::command("unshare", Place::Here);
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "systemd-nspawn"])
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"])
            .args(["--console=pipe", "--link-journal=no", "--bind=/dev/net/tun", "--machine", &name])
            .arg("--directory")
            .arg(&root)
            .args(binds.iter().map(|(from, to)| format!("--bind-ro={}:{to}", from.display())))
            .args(["--", "systemd.unit=basic.target"])
            .stdin(Stdio::null())
            .stdout(fs::File::create(dir.join("boot.log")).expect("a log file"))
            .stderr(fs::File::create(dir.join("nspawn.log")).expect("a log file"));
        let unshare = process::spawn(command).unwrap_or_else(|e| panic!("unshare: {e}"));
        let machine = Machine { dir, unshare };
        eventually(seconds(60), "systemd has booted", || {
            let state = machine.run("systemctl is-system-running");
            let log = || fs::read_to_string(machine.dir.join("nspawn.log")).unwrap_or_default();
            want(["running", "degraded"].contains(&state.stdout.trim()), (&state, log()))
        });
        machine
    }

    /// Runs a line of shell on it.
    pub fn run(&self, line: &str) -> Outcome {
        // The first child of systemd-nspawn only makes the namespaces, and ends.
        let leader = child_of(&child_of(&self.unshare.id().to_string()));
        let mut command = process::command("nsenter", Place::Here);
        command.args(["-t", &leader, "-a", "--", "sh", "-c", line]);
        Outcome::of(line.to_owned(), &command.output().expect("nsenter runs"))
    }

    /// The process of a unit; 0 when it does not run.
    #[track_caller]
    pub fn main_pid(&self, unit: &str) -> u32 {
        let said = self.run(&format!("systemctl show -P MainPID {unit}"));
        said.ok().stdout.trim().parse().expect("a process id")
    }

    /// What its agent says of itself.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.run("warren status -o json").json()
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

/// A region of one host, as an administrator would put it below `etc`.
#[track_caller]
pub fn configure(etc: &Path) {
    let warren = etc.join("warren");
    fs::create_dir_all(&warren).unwrap_or_else(|e| panic!("{}: {e}", warren.display()));
    let dir = warren.display().to_string();
    crate::lab::warren(&["region", "init", "--region", "units", "--dir", &dir]).ok();
    let issue = ["region", "issue", "--dir", &dir, "--host", "host-a", "--address", "127.0.0.1"];
    crate::lab::warren(&issue).ok();
    fs::write(warren.join("agent.toml"), CONFIG).expect("the overlay is ours");
}
