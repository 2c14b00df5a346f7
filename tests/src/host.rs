//! A host: a network namespace on the underlay, with an agent as its only process.

mod cable;

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::{Attached, Outcome};
use crate::container::Container;
use crate::http::{self, Answer};
use crate::ids::{AP, PN};
use crate::lab::{REGION, Site, warren};
use crate::netns::Netns;
use crate::process;
use crate::wait::{eventually, patience, seconds, want};

/// The agents' gossip port.
pub const GOSSIP_PORT: u16 = 7946;
/// Where metrics and health are served, in the host's namespace.
const HTTP: &str = "127.0.0.1:9479";
/// Gossip interval of the laboratory's regions.
const INTERVAL: Duration = Duration::from_millis(200);

/// A host of the region.
pub struct Host {
    site: Arc<Site>,
    name: String,
    number: u8,
    address: IpAddr,
    dir: PathBuf,
    netns: Netns,
    settings: Mutex<Vec<(String, String)>>,
    agent: Mutex<Option<Child>>,
    containers: Mutex<u8>,
}

impl Host {
    pub(crate) fn new(site: Arc<Site>, name: &str, number: u8, mtu: u32) -> Host {
        let dir = site.dir.join(name);
        fs::create_dir_all(dir.join("containers")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let netns = Netns::make(&dir.join("netns"));
        let address = site.address(number);
        netns.run("ip link set lo up");
        cable::lay(&site.underlay, number, mtu, (&netns, address));
        netns.run("ip link add docker0 type bridge mcast_snooping 0");
        netns.run(&format!("ip address add {}/24 dev docker0", docker_address(number, 1)));
        netns.run("ip link set docker0 up");
        let host = Host {
            name: name.to_owned(),
            number,
            address,
            netns,
            settings: Mutex::default(),
            agent: Mutex::default(),
            containers: Mutex::default(),
            dir,
            site,
        };
        host.issue(&host.site.dir.join("region"), &[]).ok();
        host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its directory: `state`, `run`, `agent.toml`, `agent.log`, `containers`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its agent's API socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/warren.sock")
    }

    /// A namespace of its agent's own: `net-<network>` or `bind-<member>`.
    pub fn inner(&self, name: &str) -> Netns {
        Netns::at(self.dir.join("run/netns").join(name))
    }

    /// Sets a key of the configuration from the next start on, as `--set` takes it.
    pub fn set(&self, key: &str, value: &str) -> &Host {
        lock(&self.settings).push((key.to_owned(), value.to_owned()));
        self
    }

    /// Forgets what [`Host::set`] was told.
    pub fn unset(&self) {
        lock(&self.settings).clear();
    }

    /// Issues this host's certificate from the CA in `region`, with further arguments.
    pub fn issue(&self, region: &Path, more: &[&str]) -> Outcome {
        let (dir, address) = (region.display().to_string(), self.address().to_string());
        let mut args = vec!["region", "issue", "--dir", &dir, "--host", &self.name, "--address", &address];
        args.extend(more);
        warren(&args)
    }

    /// Starts the agent and does not wait for anything.
    pub fn start_agent(&self) {
        let mut agent = lock(&self.agent);
        assert!(agent.is_none(), "the agent of {} runs already", self.name);
        *agent = Some(self.spawn_agent(self.netns.command(&process::warren().display().to_string())));
    }

    /// Starts the agent once more, as if it had not been started a moment ago: starts are counted, and many would
    /// delay its join. Waits until it is ready.
    pub fn restart_agent(&self) {
        let _ = fs::remove_file(self.dir().join("state/starts"));
        self.start_agent();
        self.wait_ready();
    }

    /// Runs an agent that is expected to end by itself within 20 s: its outcome.
    pub fn try_agent(&self) -> Outcome {
        let started = fs::metadata(self.log_path()).map_or(0, |m| m.len()) as usize;
        self.start_agent();
        let mut child = lock(&self.agent).take().expect("it was started");
        let ended = eventually_ended(&mut child);
        let Some(status) = ended else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the agent of {} was to refuse, but runs:\n{}", self.name, &self.log()[started..]);
        };
        let stderr = self.log()[started..].to_owned();
        Outcome { command: "warren agent".into(), code: status, stdout: String::new(), stderr }
    }

    /// Runs a program in the host's namespace, to its end: `warren agent` as another user, say.
    pub fn run(&self, program: &str, args: &[&str]) -> Outcome {
        let output = self.netns.command(program).args(args).output();
        let output = output.unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
        Outcome::of(format!("{program} {}", args.join(" ")), &output)
    }

    /// Writes `agent.toml` as the next start would use it: its path.
    pub fn write_config(&self) -> PathBuf {
        let path = self.dir.join("agent.toml");
        let hosts = lock(&self.site.hosts).len().min(2) as u8;
        let seeds = (1..=hosts)
            .filter(|n| *n != self.number)
            .map(|n| format!("\"{}\"", SocketAddr::new(self.site.address(n), GOSSIP_PORT)));
        let (dir, region) = (self.dir.display(), self.site.dir.join("region"));
        let text = format!(
            "region = \"{REGION}\"\nhost = \"{name}\"\nstate_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\n\
             [gossip]\nlisten = \"{address}\"\nseeds = [{seeds}]\ninterval_ms = {interval}\n\
             [tls]\nca = \"{region}/ca.pem\"\ncert = \"{region}/{name}.pem\"\nkey = \"{region}/{name}.key\"\n\
             [http]\nlisten = \"{HTTP}\"\n[docker]\nplugin = \"{dir}/run/docker.sock\"\n\
             [watch]\nsockets = []\n[cdi]\nfile = \"{dir}/cdi/warren.json\"\n",
            interval = patience(INTERVAL).as_millis(),
            name = self.name,
            address = SocketAddr::new(self.address(), GOSSIP_PORT),
            seeds = seeds.collect::<Vec<_>>().join(", "),
            region = region.display(),
        );
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    fn spawn_agent(&self, mut command: std::process::Command) -> Child {
        let config = self.write_config();
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        command.arg("agent").arg("--config").arg(config);
        for (key, value) in lock(&self.settings).iter() {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        process::spawn(command).unwrap_or_else(|e| panic!("cannot start the agent of {}: {e}", self.name))
    }

    /// SIGKILL: the agent learns nothing, its kernel objects stay.
    pub fn kill_agent(&self) {
        let mut child = lock(&self.agent).take().unwrap_or_else(|| panic!("no agent on {}", self.name));
        process::signal(&child, Signal::KILL);
        child.wait().expect("a child can be waited for");
    }

    /// The process that holds the containers' descriptors, if there is one.
    pub fn engine_pid(&self) -> Option<i32> {
        let connection = UnixStream::connect(self.dir.join("run/engine.sock")).ok()?;
        let credentials = rustix::net::sockopt::socket_peercred(&connection).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }

    /// SIGKILL for the engine, and waits until it has ended: its pid.
    #[track_caller]
    pub fn kill_engine(&self) -> i32 {
        let raw = self.engine_pid().unwrap_or_else(|| panic!("no engine on {}", self.name));
        let pid = Pid::from_raw(raw).expect("a process has a pid");
        kill_process(pid, Signal::KILL).unwrap_or_else(|e| panic!("kill the engine of {}: {e}", self.name));
        eventually(seconds(10), "the engine has ended", || {
            // Whoever adopted it may not have waited for it yet.
            let stat = fs::read_to_string(format!("/proc/{raw}/stat")).unwrap_or_default();
            want(stat.is_empty() || stat.contains(") Z "), stat)
        });
        raw
    }

    /// SIGTERM, and waits for the end: its exit code.
    pub fn stop_agent(&self) -> i32 {
        let mut child = lock(&self.agent).take().unwrap_or_else(|| panic!("no agent on {}", self.name));
        process::signal(&child, Signal::TERM);
        eventually_ended(&mut child).unwrap_or_else(|| panic!("the agent of {} does not stop", self.name))
    }

    /// Sends the running agent a signal, such as SIGSTOP.
    pub fn signal_agent(&self, signal: Signal) {
        let agent = lock(&self.agent);
        process::signal(agent.as_ref().unwrap_or_else(|| panic!("no agent on {}", self.name)), signal);
    }

    /// Waits until the agent says that it is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        eventually(seconds(30), &format!("the agent of {} is ready", self.name), || {
            if let Some(status) = self.agent_ended() {
                panic!("the agent of {} ended with {status}:\n{}", self.name, self.log());
            }
            let answer = self.get("/readyz").map_err(|e| e.to_string())?;
            want(answer.status == 200, &answer.body)
        });
    }

    /// Waits until the agent serves its socket, joined or not.
    #[track_caller]
    pub fn wait_serving(&self) {
        eventually(seconds(20), &format!("the agent of {} serves", self.name), || {
            self.get("/healthz").map_err(|e| e.to_string()).and_then(|a| want(a.status == 200, &a.body))
        });
    }

    /// Waits until the agent sees exactly `n` hosts answering, itself included.
    #[track_caller]
    pub fn wait_hosts(&self, n: usize) {
        eventually(seconds(20), &format!("{} sees {n} hosts answering", self.name), || {
            let hosts = self.warren(&["hosts", "-o", "json"]);
            want(hosts.code == 0, &hosts)?;
            let rows = hosts.rows();
            want(rows.iter().filter(|row| row["standing"] == "answering").count() == n, &rows)
        });
    }

    fn agent_ended(&self) -> Option<std::process::ExitStatus> {
        lock(&self.agent).as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// The pid of the running agent.
    pub fn agent_pid(&self) -> u32 {
        lock(&self.agent).as_ref().unwrap_or_else(|| panic!("no agent on {}", self.name)).id()
    }

    /// Runs `warren` against this host's agent.
    pub fn warren(&self, args: &[&str]) -> Outcome {
        let socket = self.socket().display().to_string();
        warren(&[&["--socket", &socket], args].concat())
    }

    /// Reads a path of the agent's TCP listener.
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        let address: SocketAddr = HTTP.parse().expect("an address");
        self.netns.try_enter(|| {
            let stream = TcpStream::connect_timeout(&address, seconds(2))?;
            stream.set_read_timeout(Some(seconds(5)))?;
            http::ask(stream, "GET", path, "text/plain", b"")
        })?
    }

    /// Asks the agent's API; `body` need not be what it expects.
    pub fn api(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> io::Result<Answer> {
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(seconds(30)))?;
        http::ask(stream, method, path, kind, body)
    }

    /// The sum of a metric's samples whose line has each of `labels`; 0 when there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/metrics").unwrap_or_else(|e| panic!("metrics of {}: {e}", self.name)).body;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let lines =
            text.lines().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Since its start, the agent has found its kernel as it should be.
    #[track_caller]
    pub fn assert_nothing_written(&self) {
        let written = self.metric("warren_reconcile_ops_total", &["outcome=\"done\""]);
        assert_eq!(written, 0.0, "{}: something was written", self.name());
    }

    /// The agent's log so far, over all starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// A container with an `eth0` on the host's bridge, a default route there, and `lo` down.
    pub fn container(&self, name: &str) -> Container {
        let container = self.bare_container(name);
        self.plug(&container);
        container
    }

    /// A container `c-<host>`, a member of [`PN`] as `web` of [`AP`].
    #[track_caller]
    pub fn web(&self) -> (Container, Attached) {
        let container = self.container(&format!("c-{}", self.name()));
        let attached = container.join(PN, AP, "web");
        (container, attached)
    }

    /// A container with nothing but a `lo` that is down.
    pub fn bare_container(&self, name: &str) -> Container {
        let netns = Netns::make(&self.dir.join("containers").join(name));
        lock(&self.site.containers).push((self.name.clone(), netns.clone()));
        Container::mounted(self.site.clone(), self, name, netns)
    }

    /// As [`Host::container`], with IPv6 off as Docker has it.
    pub fn container_without_ipv6(&self, name: &str) -> Container {
        let container = self.bare_container(name);
        container.netns().sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        container.netns().sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        self.plug(&container);
        container
    }

    /// As [`Host::container`], held by a process instead of a mount.
    pub fn container_of_process(&self, name: &str) -> Container {
        let container = Container::of_process(self.site.clone(), self, name);
        self.plug(&container);
        container
    }

    /// Gives a container an `eth0` whose other end, `to-<container>`, is a port of the host's bridge.
    fn plug(&self, container: &Container) {
        let last = {
            let mut containers = lock(&self.containers);
            *containers += 1;
            *containers + 1
        };
        let (netns, port) = (container.netns(), container.port());
        self.netns
            .run(&format!("ip link add {port} type veth peer name eth0 netns {}", netns.path().display()));
        self.netns.run(&format!("ip link set {port} master docker0 up"));
        netns.run("ip link set eth0 up");
        netns.run(&format!("ip address add {}/24 dev eth0", docker_address(self.number, last)));
        netns.run(&format!("ip route add default via {}", docker_address(self.number, 1)));
        container.set_docker_address(docker_address(self.number, last));
    }

    /// What the agent says of its members in `ps`, of all hosts.
    #[track_caller]
    pub fn members(&self) -> Vec<Value> {
        self.warren(&["ps", "--all", "-o", "json"]).rows()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = lock(&self.agent).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(pid) = self.engine_pid().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        let members = fs::read_dir(self.dir.join("state/members")).into_iter().flatten().flatten();
        for member in members {
            let _ = fs::remove_file(wg_socket(&member.file_name().to_string_lossy()));
        }
    }
}

/// Where `wg show` finds the interface of a member.
pub fn wg_socket(member: &str) -> PathBuf {
    Path::new("/run/wireguard").join(format!("wr{}.sock", &member[..12.min(member.len())]))
}

/// An address on the bridge of the host with this number.
fn docker_address(host: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, host, last)
}

/// The exit code of a child that ends within 20 s.
fn eventually_ended(child: &mut Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt as _;
    let mut ended = None;
    let mut rounds = 0;
    crate::wait::paced(std::time::Duration::from_millis(20), || {
        ended = child.try_wait().ok().flatten();
        rounds += 1;
        ended.is_none() && rounds < 1000
    });
    ended.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
