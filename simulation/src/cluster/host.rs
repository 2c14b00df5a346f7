//! One machine: its kernel, its disk and its clock outlive its agent.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use gossip::config::WallClock;
use gossip::id::{AppId, HostId, NetworkId, ProcessType, Region};
use gossip::memory::MemoryWire;
use gossip::{Counters, Wire};
use netplumb::MemoryKernel;
use netplumb::error::Error;
use netplumb::state::{Guard, Vtep};
use node::agent::{Handle, Snapshot};
use node::attach::{Call, Netns, Request};
use node::config::{Config, Dns, Docker, Gossip, Thresholds, Tls, Underlay};
use node::project::Here;
use node::store::MemoryStore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::{FORGET, GONE};
use crate::veteran::Veteran;

/// MTU of every underlay, in bytes.
pub const UNDERLAY_MTU: u32 = 1500;
/// How long a repair may take: an audit of all networks, and the longest pause after an error.
pub const REPAIRED_WITHIN: Duration = Duration::from_secs(65);
/// Everybody's seeds are the first so many machines.
pub const SEEDS: u16 = 2;

/// One machine.
pub struct Host {
    /// The name it answers to. Two machines may have the same.
    pub id: HostId,
    /// Where its agent gossips; its tunnel end has the same address.
    pub address: SocketAddr,
    /// Its kernel.
    pub kernel: MemoryKernel,
    /// Its disk.
    pub store: MemoryStore,
    /// Its wall clock.
    pub clock: Clock,
    /// Which agent runs there.
    pub role: Role,
    /// What its agent does.
    pub life: Life,
    /// When its agent was started, each time.
    pub starts: Vec<Instant>,
    /// Whether its agent has had the time to meet everybody since its start.
    pub introduced: bool,
    /// Since when its agent, that runs, is in the region.
    pub joined: Option<Instant>,
    /// Whether another machine has its name: then one of the two is not let in.
    pub twin: bool,
    /// When its last agent to be in the region said goodbye; none since another one of its name is in.
    pub goodbye: Option<Instant>,
    /// When somebody last changed its kernel behind its back, or its kernel last refused something.
    pub meddled: Option<Instant>,
    /// How long its disk takes for an entry, and when it last took so long and does not any more.
    pub(super) disk: Vec<(Duration, Option<Instant>)>,
    /// When its state directory was last emptied.
    pub wiped: Option<Instant>,
    /// Whether a part of its journal may be damaged: it is as if it were lost.
    pub torn: bool,
    /// Whether it is being drained.
    pub draining: bool,
    /// Whether it has the name and the disk of another machine.
    pub copy: bool,
    /// Which agent runs there, or ran last.
    pub runs: Role,
    refuses: bool,
    pub(super) config: Config,
    pub(super) agent: Option<Running>,
    pub(super) boots: usize,
    number: u16,
    containers: usize,
}

/// What a machine's agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It was never started.
    New,
    /// It runs, since then.
    Up(Instant),
    /// It stopped with a goodbye.
    Away(Instant),
    /// It ended without a word.
    Crashed(Instant),
    /// The machine is no more.
    Scrapped(Instant),
}

/// Which agent a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This version's.
    Current,
    /// One that knows neither frames nor snapshots nor judges.
    Veteran,
}

impl Role {
    /// What an agent of this kind makes of a wire.
    pub(super) fn dress(self, wire: Arc<MemoryWire>) -> Arc<dyn Wire> {
        match self {
            Role::Current => wire,
            Role::Veteran => Arc::new(Veteran(wire)),
        }
    }
}

/// What a caller of attach may choose itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Nothing.
    None,
    /// The number within app and type.
    Number(u32),
    /// The address, by its last byte.
    Address(u8),
}

/// A wall clock that can jump; virtual time moves it otherwise.
#[derive(Clone)]
pub struct Clock {
    began: Instant,
    epoch_ns: u64,
    ahead_s: Arc<AtomicI64>,
}

impl Clock {
    /// Moves it by so many seconds.
    pub fn jump(&self, seconds: i64) {
        self.ahead_s.fetch_add(seconds, Ordering::Relaxed);
    }

    /// It as a node reads it.
    pub fn wall(&self) -> WallClock {
        let clock = self.clone();
        Arc::new(move || {
            let true_ns = clock.epoch_ns + clock.began.elapsed().as_nanos() as u64;
            true_ns.saturating_add_signed(clock.ahead_s.load(Ordering::Relaxed) * 1_000_000_000)
        })
    }
}

/// An agent that runs.
pub struct Running {
    pub(super) handle: Handle<MemoryKernel, MemoryStore>,
    pub(super) counters: Arc<Counters>,
    /// What is asked of it: ends with it.
    pub(super) calls: JoinSet<()>,
    _follower: Follower,
}

/// The task that notes what an agent sees: ends with it.
struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    pub(super) fn new(
        handle: Handle<MemoryKernel, MemoryStore>,
        counters: Arc<Counters>,
        follower: AbortHandle,
    ) -> Running {
        Running { handle, counters, calls: JoinSet::new(), _follower: Follower(follower) }
    }

    /// Stops it with a goodbye; its calls end before.
    pub(super) async fn stop(self) {
        let Running { handle, mut calls, .. } = self;
        calls.shutdown().await;
        handle.stop().await;
    }
}

impl Host {
    /// Bytes its agent has sent since its start, of all kinds of messages.
    pub fn sent(&self) -> u64 {
        let of_kind = |counters: &Counters, kind| {
            counters.get("gossip_bytes_total", &[("direction", "out"), ("kind", kind)])
        };
        let counters = self.agent.as_ref().map(|running| running.counters.clone());
        let kinds = ["envelope", "frame", "ask", "answer"];
        counters.map_or(0, |counters| kinds.map(|kind| of_kind(&counters, kind)).iter().sum())
    }

    pub(super) fn new(number: u16, config: Config, epoch_ns: u64) -> Host {
        let address = config.gossip.advertise;
        Host {
            id: config.host.clone(),
            address,
            kernel: MemoryKernel::new(address.ip(), UNDERLAY_MTU),
            store: MemoryStore::default(),
            clock: Clock { began: Instant::now(), epoch_ns, ahead_s: Arc::default() },
            role: Role::Current,
            life: Life::New,
            starts: Vec::new(),
            introduced: false,
            joined: None,
            goodbye: None,
            twin: false,
            meddled: None,
            disk: Vec::new(),
            wiped: None,
            torn: false,
            draining: false,
            copy: false,
            runs: Role::Current,
            refuses: false,
            config,
            agent: None,
            boots: 0,
            number,
            containers: 0,
        }
    }

    /// Which boot of which machine this is.
    pub(super) fn boot(&self) -> String {
        format!("boot {} of machine {}", self.boots, self.number)
    }

    /// Its name, with its number where another machine has the same name.
    pub fn label(&self) -> String {
        let plain = format!("host-{}", self.number);
        if self.id.as_str() == plain { plain } else { format!("{} (machine {})", self.id, self.number) }
    }

    /// Whether its agent runs.
    pub fn is_up(&self) -> bool {
        matches!(self.life, Life::Up(_))
    }

    /// Whether it is down for so long that nobody has to remember it.
    pub fn is_forgotten(&self) -> bool {
        let detection = self.config.thresholds.timings.map_or(Duration::ZERO, |timings| timings.detection);
        let bound = detection + GONE + FORGET;
        matches!(self.life, Life::Crashed(at) | Life::Scrapped(at) if at.elapsed() > bound)
    }

    /// What its agent shows; none while none runs.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.agent.as_ref().map(|running| running.handle.snapshot.borrow().clone())
    }

    /// How long a start now may be held back: three within a minute delay the join by 5 s, 10 s … 60 s. Clocks
    /// jump, so all starts are taken to be within the minute.
    pub fn start_delay_max(&self) -> Duration {
        Duration::from_secs((self.starts.len().saturating_sub(2) as u64 * 5).min(60))
    }

    /// What of the host enters the projection of its view.
    pub fn here(&self) -> Here {
        Here {
            region: self.config.region.clone(),
            host: self.id.clone(),
            vtep: Vtep { address: self.config.underlay.address, port: self.config.underlay.vxlan_port },
            underlay_mtu: UNDERLAY_MTU,
            guard: Guard::Table { listener: self.config.dns.listener() },
        }
    }

    /// From now on its kernel refuses every so-manieth operation; none at 0.
    pub(super) fn refuse(&mut self, every: usize) {
        let refused = std::mem::replace(&mut self.refuses, every > 0);
        if refused || self.refuses {
            self.meddled = Some(Instant::now());
        }
        if every == 0 {
            self.kernel.clear_fault();
            return;
        }
        let turn = AtomicUsize::new(0);
        self.kernel.set_fault(move |_| {
            let refused = turn.fetch_add(1, Ordering::Relaxed) % every == every - 1;
            refused
                .then(|| Error::Netlink { what: "do as asked".into(), source: io::ErrorKind::Other.into() })
        });
    }

    /// From now on its disk takes so long for a journal entry.
    pub fn slow_writes(&mut self, slow: Duration) {
        self.store.slow_writes(slow);
        if let Some((_, until @ None)) = self.disk.last_mut() {
            *until = Some(Instant::now());
        }
        if !slow.is_zero() {
            self.disk.push((slow, None));
        }
    }

    /// The longest its disk has taken for a journal entry since then.
    pub fn slowest_write(&self, since: Instant) -> Duration {
        let slow = self.disk.iter().filter(|(_, until)| until.is_none_or(|until| until >= since));
        slow.map(|(slow, _)| *slow).max().unwrap_or_default()
    }

    /// Whether its kernel was meddled with, or refused something, so shortly before then that it may not have
    /// been repaired.
    pub fn is_meddled(&self, then: Instant) -> bool {
        self.refuses || self.meddled.is_some_and(|at| at + REPAIRED_WITHIN > then)
    }

    pub(super) fn began(&mut self, running: Running) {
        self.runs = self.role;
        if std::mem::take(&mut self.torn) {
            self.wiped = Some(Instant::now());
        }
        self.agent = Some(running);
        self.introduced = false;
        self.life = Life::Up(Instant::now());
        self.starts.push(Instant::now());
    }

    pub(super) fn take_running(&mut self) -> Option<Running> {
        self.agent.take()
    }

    pub(super) fn ended(&mut self, life: Life) {
        (self.agent, self.joined) = (None, None);
        self.life = life;
    }

    pub(super) fn reboot(&mut self) {
        self.boots += 1;
        self.kernel = MemoryKernel::new(self.address.ip(), UNDERLAY_MTU);
    }

    pub(super) fn start_container(
        &mut self,
        network: NetworkId,
        app: AppId,
        process: ProcessType,
        choice: Choice,
    ) -> (Call, PathBuf) {
        self.containers += 1;
        let container = format!("c{}", self.containers);
        let netns = self.kernel.start_container(format!("/run/netns/{container}"), None);
        let path = netns.path.clone();
        let netns = Netns::Path(netns.path);
        let (ordinal, address) = match choice {
            Choice::None => (None, None),
            Choice::Number(number) => (Some(number), None),
            Choice::Address(last) => (None, Some(Ipv4Addr::new(10, 240, 0, last))),
        };
        let ports = Vec::new();
        let request = Request {
            app,
            process,
            ordinal,
            ifname: None,
            address,
            ports,
            forward: None,
            netns,
            wait_ms: None,
        };
        (Call { network, container, request }, path)
    }
}

/// What the agent of machine `number` is told.
pub(super) fn config(
    number: u16,
    id: HostId,
    region: &Region,
    thresholds: Thresholds,
    interval: Duration,
) -> Config {
    let address = address_of(number);
    let seeds = (0..SEEDS).map(|seed| address_of(seed).to_string()).collect();
    Config {
        region: region.clone(),
        host: id,
        state_dir: "/nowhere".into(),
        run_dir: "/nowhere".into(),
        gossip: Gossip { listen: address, advertise: address, seeds, interval: Some(interval) },
        tls: Tls { ca: "/nowhere".into(), cert: "/nowhere".into(), key: "/nowhere".into() },
        underlay: Underlay { address: address.ip(), vxlan_port: 4789 },
        dns: Dns { forward: false, ..Dns::default() },
        docker: Docker { plugin: None, socket: "/nowhere".into() },
        watch: Vec::new(),
        cdi: None,
        http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        backend: netplumb::Backend::Auto,
        threads: 1,
        unguarded: false,
        thresholds,
    }
}

fn address_of(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), 7946))
}
