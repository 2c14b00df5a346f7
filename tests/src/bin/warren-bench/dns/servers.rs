//! Name servers as processes, each with one worker, pinned away from the client.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use resolver::{Answers, Counters, Forwarder, Limits, Listener, Scope, Service, Sockets};
use std::sync::Arc;
use tests::process::{self, Place};

use super::hickory::Names;
use super::names::{ORIGIN, SUFFIX, zone};

/// What is measured; the first is ours, the second what ours stands beside.
pub const NAMES: [&str; 6] = ["warren", "NSD", "Knot", "Unbound", "dnsmasq", "hickory-server"];
/// Debian packages of the programs.
pub const PROGRAMS: [(&str, &str); 4] =
    [("nsd", "nsd"), ("knotd", "knot"), ("unbound", "unbound"), ("dnsmasq", "dnsmasq-base")];

/// A running name server; killed when dropped.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts the `index`th of [`NAMES`], its files in `dir`, which holds the zone.
    pub fn start(index: usize, dir: &Path) -> io::Result<Server> {
        let (name, port) = (NAMES[index], 5300 + index as u16);
        let mut command = match name {
            "warren" | "hickory-server" => {
                let mut command = process::command(&std::env::current_exe()?.to_string_lossy(), Place::Here);
                command.args([super::SERVE, name, &port.to_string()]);
                command
            }
            _ => peer(name, port, dir)?,
        };
        let log = fs::File::create(dir.join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = process::spawn(command)?;
        Ok(Server { name, address: (Ipv4Addr::LOCALHOST, port).into(), child })
    }

    /// Puts every thread of it on `cpu`, whatever it chose itself.
    pub fn pin(&self, cpu: usize) -> io::Result<()> {
        for thread in self.threads() {
            pin(Some(thread), cpu)?;
        }
        Ok(())
    }

    /// CPU time so far of all its threads and children, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        let spent = |thread: u32| {
            let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
        };
        self.threads().into_iter().map(spent).sum()
    }

    fn threads(&self) -> Vec<u32> {
        let mut processes = vec![self.child.id()];
        let mut next = 0;
        while let Some(process) = processes.get(next).copied() {
            next += 1;
            let tasks = numbers(&format!("/proc/{process}/task"));
            for task in tasks {
                let children = fs::read_to_string(format!("/proc/{process}/task/{task}/children"));
                processes.extend(
                    children.unwrap_or_default().split(' ').filter_map(|pid| pid.parse::<u32>().ok()),
                );
            }
        }
        processes.iter().flat_map(|process| numbers(&format!("/proc/{process}/task"))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Their children die with the namespace at the latest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts a thread, or the calling one, on one CPU.
pub fn pin(thread: Option<u32>, cpu: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let pid = thread.and_then(|thread| rustix::process::Pid::from_raw(thread as i32));
    Ok(rustix::thread::sched_setaffinity(pid, &set)?)
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A peer's command, with its configuration written.
fn peer(name: &str, port: u16, dir: &Path) -> io::Result<Command> {
    let at = dir.display();
    let (program, config, arguments): (&str, String, Vec<String>) = match name {
        "NSD" => (
            "nsd",
            format!(
                "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n \
                 zonesdir: \"{at}\"\n database: \"\"\n pidfile: \"{at}/nsd.pid\"\n xfrdfile: \"{at}/xfrd\"\n \
                 zonelistfile: \"{at}/zonelist\"\n rrl-ratelimit: 0\n\
                 remote-control:\n control-enable: no\n\
                 zone:\n name: {ORIGIN}\n zonefile: {at}/zone\n"
            ),
            vec!["-d".into(), "-c".into()],
        ),
        "Knot" => (
            "knotd",
            format!(
                "server:\n  rundir: {at}/knot\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
                 background-workers: 1\ndatabase:\n  storage: {at}/knot\nzone:\n  - domain: {ORIGIN}\n    \
                 file: {at}/zone\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n"
            ),
            vec!["-c".into()],
        ),
        "Unbound" => (
            "unbound",
            format!(
                "server:\n interface: 127.0.0.1@{port}\n num-threads: 1\n username: \"\"\n chroot: \"\"\n \
                 pidfile: \"\"\n do-daemonize: no\n use-syslog: no\n access-control: 127.0.0.0/8 allow\n \
                 minimal-responses: yes\n include: \"{at}/local-data\"\nremote-control:\n control-enable: no\n"
            ),
            vec!["-d".into(), "-c".into()],
        ),
        _ => (
            "dnsmasq",
            format!(
                "port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nno-poll\nuser=root\n\
                 addn-hosts={at}/hosts\nlocal=/{SUFFIX}/\nkeep-in-foreground\ncache-size=0\nno-negcache\n\
                 pid-file=\n"
            ),
            vec!["-C".into()],
        ),
    };
    fs::create_dir_all(dir.join("knot"))?;
    let file = dir.join(format!("{program}.conf"));
    fs::write(&file, config)?;
    let mut command = process::command(program, Place::Here);
    command.args(arguments).arg(file);
    Ok(command)
}

/// Runs one of the servers that are libraries, in this process and on one thread, for ever.
pub fn serve(name: &str, port: u16) -> io::Result<()> {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match name {
            "warren" => {
                let _listener = warren(Sockets { udp, tcp })?;
                std::future::pending().await
            }
            _ => {
                udp.set_nonblocking(true)?;
                let mut server = hickory_server::Server::new(Names::new()?);
                server.register_socket(tokio::net::UdpSocket::from_std(udp)?);
                server.block_until_done().await.map_err(io::Error::other)
            }
        }
    })
}

fn warren(sockets: Sockets) -> io::Result<Listener> {
    let answers = Answers::Zones(vec![Arc::new(zone())]);
    let scope = Scope::new(SUFFIX, Ipv4Addr::LOCALHOST, answers, false).map_err(io::Error::other)?;
    let service = Service {
        forwarder: Forwarder::none(),
        counters: Arc::new(Counters::default()),
        limits: Limits::per_container(0),
    };
    // The sender is gone at once: the scope stays as it is.
    Listener::serve(sockets, tokio::sync::watch::channel(Arc::new(scope)).1, service)
}
