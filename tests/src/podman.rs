//! Podman with everything it keeps in a host's own directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::cli::Outcome;
use crate::docker::{IMAGE, image};
use crate::host::Host;
use crate::netns::Netns;
use crate::process;
use crate::wait::{eventually, seconds, want};

/// Podman on a host. Its containers end with it.
pub struct Podman {
    netns: Netns,
    dir: PathBuf,
    agent: PathBuf,
    devices: PathBuf,
}

/// Podman's API, served until it is dropped.
pub struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Podman {
    /// Sets it up, with the hook that is shipped and the one image there is.
    #[track_caller]
    pub fn new(host: &Host) -> Podman {
        process::need(&[("podman", "podman"), ("runc", "runc"), ("conmon", "conmon")]);
        let (dir, devices) = (host.dir().join("podman"), host.dir().join("cdi"));
        let podman = Podman { netns: host.netns().clone(), dir, agent: host.socket(), devices };
        podman.lay_out(host).unwrap_or_else(|e| panic!("{}: {e}", podman.dir.display()));
        let tar = image(&podman.dir).display().to_string();
        podman.run(&["import", "-q", "--change", "ENV PATH=/bin", &tar, IMAGE]).ok();
        podman
    }

    fn lay_out(&self, host: &Host) -> std::io::Result<()> {
        fs::create_dir_all(self.dir.join("hooks.d"))?;
        // Its defaults ask for rights that not every machine gives.
        let limits = "[containers]\ndefault_ulimits=[\"nofile=1024:4096\",\"nproc=4096:4096\"]\n";
        let plugins = self.dir.join("netavark");
        let network = format!("[network]\nnetavark_plugin_dirs=[\"{}\"]\n", plugins.display());
        fs::write(self.dir.join("containers.conf"), format!("{limits}{network}"))?;
        fs::create_dir_all(&plugins)?;
        symlink(process::warren(), plugins.join("warren"))?;
        let mut hook: Value = serde_json::from_str(include_str!("../../node/dist/hooks.d/warren.json"))?;
        let socket = host.socket().display().to_string();
        hook["hook"] = json!({ "path": process::warren(), "args": ["warren", "--socket", socket, "hook"] });
        fs::write(self.dir.join("hooks.d/warren.json"), hook.to_string())
    }

    /// Whether its networks may be of plugins, which came with netavark 1.6; why not, otherwise.
    ///
    /// # Errors
    /// What it has instead.
    pub fn has_plugins(&self) -> Result<(), String> {
        let backend = &self.run(&["info", "--format", "json"]).json()["host"]["networkBackendInfo"];
        let version = backend["version"].as_str().unwrap_or_default();
        let version = version.trim_start_matches("netavark ").to_owned();
        let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
        let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if found >= (1, 6) {
            return Ok(());
        }
        let podman = self.run(&["--version"]).stdout;
        Err(format!("{} has no network plugins: they need netavark 1.6 (Debian 13)", podman.trim()))
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket of its API, which nobody serves before [`Podman::serve`].
    pub fn socket(&self) -> PathBuf {
        self.dir.join("podman.sock")
    }

    /// Serves its API.
    #[track_caller]
    pub fn serve(&self) -> Service {
        let log = fs::File::create(self.dir.join("service.log")).expect("a log file");
        let mut command = self.command();
        command.args(["system", "service", "--time=0"]).arg(format!("unix://{}", self.socket().display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let service = Service(process::spawn(command).unwrap_or_else(|e| panic!("cannot start podman: {e}")));
        eventually(seconds(30), "podman serves its API", || {
            let log = || fs::read_to_string(self.dir.join("service.log"));
            want(UnixStream::connect(self.socket()).is_ok(), log())
        });
        service
    }

    fn command(&self) -> Command {
        self.with_arguments(self.netns.command("podman"))
    }

    fn with_arguments(&self, mut command: Command) -> Command {
        let at = |name: &str| self.dir.join(name).display().to_string();
        command.env("CONTAINERS_CONF", at("containers.conf")).env("WARREN_SOCKET", &self.agent);
        for (option, place) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
            ("--hooks-dir", "hooks.d"),
            ("--network-config-dir", "networks"),
        ] {
            command.args([option, &at(place)]);
        }
        command.args(["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=file"]);
        command
    }

    /// Runs `podman`.
    pub fn run(&self, args: &[&str]) -> Outcome {
        let output = self.command().args(args).output().unwrap_or_else(|e| panic!("cannot run podman: {e}"));
        Outcome::of(format!("podman {}", args.join(" ")), &output)
    }

    /// Runs `podman` with the devices of this host's agent: it looks for them in one place, which the hosts of one
    /// machine would share.
    pub fn run_with_devices(&self, args: &[&str]) -> Outcome {
        let own = "mkdir -p /run/cdi $0; mount --bind $0 /run/cdi && exec podman \"$@\"";
        let mut command = self.netns.command("unshare");
        command.args(["--mount", "sh", "-c", own]).arg(&self.devices);
        let output = self.with_arguments(command).args(args).output();
        let output = output.unwrap_or_else(|e| panic!("cannot run podman: {e}"));
        Outcome::of(format!("podman {}", args.join(" ")), &output)
    }

    /// The namespace of a running container, by its first process.
    #[track_caller]
    pub fn netns(&self, container: &str) -> Netns {
        let found = self.run(&["container", "inspect", "--format", "json", container]).json();
        Netns::at(format!("/proc/{}/ns/net", found[0]["State"]["Pid"]))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "-af", "-t", "0"]);
    }
}
