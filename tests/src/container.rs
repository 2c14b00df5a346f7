//! A container: a network namespace a runtime would have made, and an app's view from inside it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hickory_proto::rr::RecordType;

use crate::cli::{Attached, Outcome};
use crate::dns::{self, Answer};
use crate::host::Host;
use crate::lab::{Site, warren};
use crate::netns::Netns;
use crate::process::{self, Place};
use crate::traffic::{self, Echo};
use crate::wait::seconds;

/// A container on a host.
pub struct Container {
    site: Arc<Site>,
    name: String,
    netns: Netns,
    socket: PathBuf,
    docker_address: OnceLock<Ipv4Addr>,
    /// The process that holds the namespace, where no mount does.
    process: Mutex<Option<Child>>,
}

impl Container {
    pub(crate) fn mounted(site: Arc<Site>, host: &Host, name: &str, netns: Netns) -> Container {
        Container {
            site,
            name: name.to_owned(),
            netns,
            socket: host.socket(),
            docker_address: OnceLock::new(),
            process: Mutex::default(),
        }
    }

    pub(crate) fn of_process(site: Arc<Site>, host: &Host, name: &str) -> Container {
        let mut command = process::command("sleep", Place::New);
        command.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
        let child = process::spawn(command).unwrap_or_else(|e| panic!("cannot run sleep: {e}"));
        let netns = Netns::at(format!("/proc/{}/ns/net", child.id()));
        let container = Container::mounted(site, host, name, netns);
        *container.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        container
    }

    /// Its name, which is its `--id` too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The host's end of its `eth0`.
    pub fn port(&self) -> String {
        format!("to-{}", self.name)
    }

    /// Its address on the host's bridge.
    pub fn docker_address(&self) -> Ipv4Addr {
        *self.docker_address.get().unwrap_or_else(|| panic!("{} has no eth0", self.name))
    }

    pub(crate) fn set_docker_address(&self, address: Ipv4Addr) {
        self.docker_address.set(address).expect("a container is plugged in once");
    }

    /// The pid of the process that holds it.
    pub fn pid(&self) -> u32 {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.as_ref().unwrap_or_else(|| panic!("{} is held by no process", self.name)).id()
    }

    /// Runs `warren attach` for this container with further arguments; JSON is asked for.
    pub fn attach(&self, network: &str, app: &str, more: &[&str]) -> Outcome {
        let socket = self.socket.display().to_string();
        let held = match &*self.process.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(child) => ["--pid".to_owned(), child.id().to_string()],
            None => ["--netns".to_owned(), self.netns.path().display().to_string()],
        };
        let mut args = vec!["--socket", &socket, "attach", "--network", network, "--app", app, "-o", "json"];
        args.extend(held.iter().map(String::as_str));
        if !more.contains(&"--id") {
            args.extend(["--id", &self.name]);
        }
        args.extend(more);
        warren(&args)
    }

    /// Attaches it as a member of a process type, which has to succeed.
    #[track_caller]
    pub fn join(&self, network: &str, app: &str, process: &str) -> Attached {
        self.attach(network, app, &["--type", process]).json().into()
    }

    /// Runs `warren detach` for this container.
    pub fn detach(&self, network: &str) -> Outcome {
        let socket = self.socket.display().to_string();
        warren(&["--socket", &socket, "detach", "--network", network, &self.name])
    }

    /// An echo server in it, TCP and UDP, that answers by the container's name.
    #[track_caller]
    pub fn echo(&self, port: u16) -> Echo {
        Echo::serve(&self.netns, &self.name, port)
    }

    /// Connects to an echo server by TCP: the server's name.
    pub fn ask_tcp(&self, to: impl Into<IpAddr>, port: u16) -> io::Result<String> {
        let to = SocketAddr::new(to.into(), port);
        self.netns.try_enter(|| traffic::ask_tcp(to, b"ping"))?
    }

    /// Sends a datagram of `bytes` of payload, never fragmented, to an echo server: its name.
    pub fn ask_udp(&self, to: impl Into<IpAddr>, port: u16, bytes: usize) -> io::Result<String> {
        let to = SocketAddr::new(to.into(), port);
        self.netns.try_enter(|| traffic::ask_udp(to, bytes))?
    }

    /// Asks the name server of its resolv.conf, by UDP.
    pub fn lookup(&self, name: &str, kind: RecordType) -> io::Result<Answer> {
        self.netns.try_enter(|| dns::lookup(name, kind, seconds(2)))?
    }

    /// The IPv4 addresses of a name, in order; none for an error.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let mut addresses = self.lookup(name, RecordType::A).map(|a| a.addresses).unwrap_or_default();
        addresses.sort();
        addresses
    }

    /// Runs the real `dig` in it: what it prints.
    #[track_caller]
    pub fn dig(&self, args: &str) -> String {
        process::need(&[("dig", "bind9-dnsutils")]);
        let line = format!("dig @{} +tries=1 +time=2 {args}", dns::SERVER.ip());
        let output = self.netns.try_run(&line);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Whether one ping with `bytes` of payload, never fragmented, is answered within a second.
    pub fn ping(&self, to: impl Into<IpAddr>, bytes: usize) -> bool {
        process::need(&[("ping", "iputils-ping")]);
        let line = format!("ping -n -q -c 1 -W 1 -M do -s {bytes} {}", to.into());
        self.netns.try_run(&line).status.success()
    }

    /// Ends the container as a runtime does: its mount goes, or its process.
    pub fn destroy(&self) {
        match self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                self.netns.unmount();
                let mut containers = self.site.containers.lock().unwrap_or_else(PoisonError::into_inner);
                containers.retain(|(_, netns)| netns.path() != self.netns.path());
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(child) = self.process.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
