//! A Docker engine of a host's own: in the host's namespace, with everything it keeps in the host's directory.
//!
//! Several run on one machine at once. Where a machine cannot run one, starting it panics with the reason: a test that
//! needs Docker fails there, it does not pass.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::Outcome;
use crate::host::Host;
use crate::netns::Netns;
use crate::process;
use crate::wait::{eventually, seconds, want};

/// The one image there is: a busybox and nothing else.
pub const IMAGE: &str = "busybox:lab";

/// An engine and its containers. They end with it.
pub struct Docker {
    netns: Netns,
    dir: PathBuf,
    driver: String,
    plugin: PathBuf,
    live_restore: Cell<bool>,
    daemon: Cell<Option<Child>>,
}

impl Docker {
    /// Starts an engine on a host, and tells the host's agent, which must not run yet, where they find each other.
    #[track_caller]
    pub fn start(host: &Host) -> Docker {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        process::need(&[("dockerd", "docker.io"), ("busybox", "busybox-static"), ("iptables", "iptables")]);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let driver = format!("warren-{}-{number}", std::process::id());
        let docker = Docker {
            netns: host.netns().clone(),
            dir: host.dir().join("docker"),
            plugin: Path::new("/run/docker/plugins").join(format!("{driver}.sock")),
            driver,
            live_restore: Cell::new(false),
            daemon: Cell::new(None),
        };
        fs::create_dir_all(&docker.dir).unwrap_or_else(|e| panic!("{}: {e}", docker.dir.display()));
        host.set("docker.plugin", &docker.plugin.display().to_string());
        host.set("docker.socket", &docker.socket().display().to_string());
        docker.start_daemon();
        docker.import();
        docker
    }

    /// The name of the driver that this host's agent serves: several agents share `/run/docker/plugins`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The agent's socket for the engine.
    pub fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// The engine's API socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// The socket of the containerd below it, an engine of its own.
    pub fn containerd(&self) -> PathBuf {
        self.dir.join("exec/containerd/containerd.sock")
    }

    /// Whether containers outlive the engine from its next start on.
    pub fn set_live_restore(&self, on: bool) {
        self.live_restore.set(on);
    }

    /// Starts the engine and waits until it answers.
    #[track_caller]
    pub fn start_daemon(&self) {
        let (dir, log) = (self.dir.display(), self.dir.join("dockerd.log"));
        let file = fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = self.netns.command("dockerd");
        command
            .arg(format!("--host=unix://{dir}/docker.sock"))
            .arg(format!("--data-root={dir}/data"))
            .arg(format!("--exec-root={dir}/exec"))
            .arg(format!("--pidfile={dir}/dockerd.pid"))
            // Its default asks for a right that not every machine gives.
            .args(["--oom-score-adjust=0", "--debug"])
            .args(self.live_restore.get().then_some("--live-restore"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let mut child = process::spawn(command).unwrap_or_else(|e| panic!("cannot start dockerd: {e}"));
        eventually(seconds(60), "dockerd answers", || {
            if let Ok(Some(status)) = child.try_wait() {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let end: Vec<&str> = text.lines().rev().take(8).collect();
                panic!("no dockerd on this machine, it ended with {status}:\n{}", end.join("\n"));
            }
            let answer = self.run(&["version", "--format", "{{.Server.Version}}"]);
            want(answer.code == 0, &answer.stderr)
        });
        self.daemon.set(Some(child));
    }

    /// SIGKILL: containers that were running are left without an engine.
    pub fn kill_daemon(&self) {
        let mut child = self.daemon.take().expect("the engine runs");
        process::signal(&child, Signal::KILL);
        child.wait().expect("a child can be waited for");
        // It goes with the engine. Where nobody waits for orphans the next engine would take it for alive.
        let file = self.dir.join("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(&file).unwrap_or_default();
        eventually(seconds(20), "containerd ends with its engine", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            want(stat.is_empty() || stat.contains(") Z "), stat)
        });
        let _ = fs::remove_file(file);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop_daemon(&self) {
        if let Some(mut child) = self.daemon.take() {
            process::signal(&child, Signal::TERM);
            eventually(seconds(60), "dockerd stops", || want(matches!(child.try_wait(), Ok(Some(_))), ""));
        }
    }

    fn import(&self) {
        let tar = image(&self.dir).display().to_string();
        self.run(&["import", "--change", "ENV PATH=/bin", &tar, IMAGE]).ok();
    }

    /// Runs `docker` against this engine.
    pub fn run(&self, args: &[&str]) -> Outcome {
        let mut command = process::command("docker", process::Place::Here);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        let output = command.args(args).output().unwrap_or_else(|e| panic!("cannot run docker: {e}"));
        Outcome::of(format!("docker {}", args.join(" ")), &output)
    }

    /// Makes a Docker network called `name` of a private one.
    #[track_caller]
    pub fn network(&self, name: &str, network: &str, more: &[&str]) {
        let option = format!("network={network}");
        let args = ["network", "create", "-d", &self.driver, "--ipam-driver", &self.driver];
        let options = ["--opt", &option, "--ipam-opt", &option];
        self.run(&[&args[..], &options, more, &[name]].concat()).ok();
    }

    /// What `docker inspect` says of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        self.run(&["inspect", container]).json()[0].clone()
    }

    /// The namespace of a running container, by its first process.
    #[track_caller]
    pub fn container(&self, name: &str) -> Netns {
        let pid = self.inspect(name)["State"]["Pid"].as_u64().filter(|pid| *pid > 0);
        let pid = pid.unwrap_or_else(|| panic!("container {name} does not run"));
        Netns::at(format!("/proc/{pid}/ns/net"))
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default()
    }

    /// Ends what a killed engine leaves behind: its containerd and the shims, by the directory in their arguments.
    fn kill_leftovers(&self) {
        let mark = self.dir.display().to_string();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let program = line.split([' ', '/']).next().map(|_| line.split(' ').next().unwrap_or_default());
            let ours = program.is_some_and(|p| p.ends_with("containerd") || p.ends_with("shim-runc-v2"));
            if ours
                && line.contains(&mark)
                && let Some(pid) = Pid::from_raw(pid)
            {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Packs an image's one layer below `dir`, a busybox and nothing else: the file for `import`.
#[track_caller]
pub fn image(dir: &Path) -> PathBuf {
    image_of(dir, &[], |_| Ok(()))
}

/// The same with files and directories of this machine, the libraries they need, and what `more` puts there.
#[track_caller]
pub fn image_of(dir: &Path, files: &[&str], more: impl FnOnce(&Path) -> io::Result<()>) -> PathBuf {
    let (root, tar) = (dir.join("image"), dir.join("image.tar"));
    let lay_out = || -> io::Result<()> {
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("tmp"))?;
        files.iter().try_for_each(|file| copy(Path::new(file), &root))?;
        more(&root)?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        fs::copy(busybox.ok_or(io::ErrorKind::NotFound)?, root.join("bin/busybox"))?;
        for applet in ["sh", "cat", "ip", "nslookup", "sleep", "usleep", "nc", "date", "grep"] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        Ok(())
    };
    lay_out().unwrap_or_else(|e| panic!("cannot lay out an image in {}: {e}", root.display()));
    let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
    assert!(packed.is_ok_and(|status| status.success()), "tar cannot pack {}", root.display());
    tar
}

/// Copies a file or a directory to its place below `root`, links as what they lead to, libraries too.
fn copy(file: &Path, root: &Path) -> io::Result<()> {
    if file.is_dir() {
        return fs::read_dir(file)?.try_for_each(|entry| copy(&entry?.path(), root));
    }
    let to = root.join(file.strip_prefix("/").unwrap_or(file));
    // A link of a package's that leads nowhere is of no use to it either.
    if to.exists() || !file.exists() {
        return Ok(());
    }
    to.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::copy(file, &to)?;
    let needed = Command::new("ldd").arg(file).stderr(Stdio::null()).output()?.stdout;
    let needed = String::from_utf8_lossy(&needed);
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    libraries.map(Path::new).try_for_each(|library| copy(library, root))
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let containers = self.run(&["ps", "-aq"]).stdout;
            let ids: Vec<&str> = containers.split_whitespace().collect();
            if !ids.is_empty() && !std::thread::panicking() {
                self.run(&[&["rm", "-f"], &ids[..]].concat());
            }
            process::signal(&child, Signal::TERM);
            let mut rounds = 0;
            crate::wait::paced(std::time::Duration::from_millis(50), || {
                rounds += 1;
                rounds < 200 && !matches!(child.try_wait(), Ok(Some(_)))
            });
            let _ = child.kill();
            let _ = child.wait();
        }
        self.kill_leftovers();
        let _ = fs::remove_file(&self.plugin);
        for mount in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().rev() {
            let at = mount.split(' ').nth(1).unwrap_or_default();
            if at.starts_with(&self.dir.display().to_string()) {
                let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}
