//! Hosts of one process: the node as it is, on a network, kernels, stores and a wall clock in memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use gossip::id::{AppId, HostId, MemberId, NetworkId, Region};
use gossip::memory::{MemoryNetwork, MemoryWire};
use gossip::{Counters, Wire as _};
use netplumb::MemoryKernel;
use netplumb::state::{Guard, Vtep};
use node::agent::{self, Handle, Seams, Snapshot};
use node::attach::{Call, Netns, Request};
use node::config::{Config, Dns, Gossip, Thresholds, Tls, Underlay};
use node::project::Here;
use node::store::{Entry, MemoryStore};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::history::{History, hash_of};

/// Gossip rounds, and with them everything that is bounded by their number.
pub const INTERVAL: Duration = Duration::from_millis(500);
const UNDERLAY_MTU: u32 = 1500;
/// Nothing happens for so long: then all has happened that was to follow. Longer than every pause of the node
/// but those of audits and quarantines.
const QUIET: Duration = Duration::from_secs(2);
const QUIET_WITHIN: Duration = Duration::from_secs(30);

/// A region of simulated hosts.
pub struct Cluster {
    /// What happened.
    pub history: History,
    /// The hosts, running or not.
    pub hosts: Vec<Host>,
    /// The members whose attach was acknowledged, until they are detached: with their entries as acknowledged.
    pub promised: BTreeMap<MemberId, (HostId, Entry)>,
    network: MemoryNetwork,
    region: Region,
}

/// One machine: its kernel and its disk outlive its agent.
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// Its kernel.
    pub kernel: MemoryKernel,
    config: Config,
    store: MemoryStore,
    agent: Option<Running>,
    containers: usize,
}

struct Running {
    handle: Handle<MemoryKernel, MemoryStore>,
    counters: Arc<Counters>,
    /// The task that notes what this agent sees.
    follower: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Cluster {
    /// A region of so many machines, without agents; its wall clock begins at `epoch_ns` (nanoseconds since
    /// 1970). One for each thread.
    pub fn new(hosts: u16, epoch_ns: u64) -> anyhow::Result<Cluster> {
        WALL_CLOCK.set(Some((Instant::now(), epoch_ns)));
        let region: Region = "simulated".parse()?;
        let seeds = vec![address(0).to_string()];
        let hosts = (0..hosts).map(|n| Host::new(n, &region, &seeds)).collect::<anyhow::Result<_>>()?;
        Ok(Cluster {
            history: History::begin(),
            hosts,
            promised: BTreeMap::new(),
            network: MemoryNetwork::new(),
            region,
        })
    }

    /// Starts a host's agent: the first time, or after a crash with what its store and kernel hold.
    pub async fn start(&mut self, host: usize) -> anyhow::Result<()> {
        let host = &mut self.hosts[host];
        let wire = Arc::new(self.network.wire(&self.region, &host.id, host.config.gossip.advertise));
        let counters = wire.counters();
        let seams: Seams<MemoryKernel, MemoryStore, Arc<MemoryWire>> = Seams {
            wire,
            kernel: host.kernel.clone(),
            store: host.store.clone(),
            clock: Arc::new(wall_clock_ns),
            boot: "the only one".into(),
            listen: |_, _| Ok(None),
        };
        self.history.note(format_args!("{} starts", host.id));
        let handle = agent::start(host.config.clone(), seams).await.with_context(|| host.id.to_string())?;
        let follower = tokio::spawn(follow(host.id.clone(), handle.snapshot.clone(), self.history.clone()))
            .abort_handle();
        host.agent = Some(Running { handle, counters, follower });
        Ok(())
    }

    /// Ends a host's agent without a word to anybody; kernel and store stay as they are.
    pub fn crash(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        self.history.note(format_args!("{} crashes", host.id));
        host.agent = None;
    }

    /// Notes an acknowledged attach: a promise until it is detached.
    pub fn promise(&mut self, host: HostId, entry: Entry) {
        let Entry { member, address, ordinal, .. } = &entry;
        self.history.note(format_args!("{host} attached {member}: {address}, ordinal {ordinal:?}"));
        self.promised.insert(member.clone(), (host, entry));
    }

    /// Detaches a member that was promised.
    pub async fn detach(&mut self, member: &MemberId) -> anyhow::Result<()> {
        let Some((host, entry)) = self.promised.remove(member) else { bail!("{member} was never attached") };
        let running = self.hosts.iter().find(|h| h.id == host).and_then(|h| h.agent.as_ref());
        let running = running.with_context(|| format!("{host} is not running"))?;
        let detached = running.handle.context.clone().detach(entry).await;
        detached.with_context(|| format!("law broken: {host} can detach {member}"))?;
        self.history.note(format_args!("{host} detached {member}"));
        Ok(())
    }

    /// The hosts whose agent runs, with what it shows.
    pub fn live(&self) -> impl Iterator<Item = (&Host, Snapshot)> {
        self.hosts.iter().filter_map(|host| Some((host, host.snapshot()?)))
    }

    /// Waits until nothing happens any more.
    pub async fn quiet(&self) -> anyhow::Result<()> {
        let silence = async {
            while self.history.silence() < QUIET {
                sleep(QUIET - self.history.silence()).await;
            }
        };
        timeout(QUIET_WITHIN, silence).await.with_context(|| {
            format!("law broken: without a fault a region is quiet within {} s", QUIET_WITHIN.as_secs())
        })
    }

    /// Notes how much each host has sent: one message more or less is another history.
    pub fn note_traffic(&self) {
        for host in &self.hosts {
            let sent = host.agent.as_ref().map_or(0, |running| {
                let labels = [("direction", "out"), ("kind", "envelope")];
                running.counters.get("gossip_messages_total", &labels)
            });
            self.history.note(format_args!("{} has sent {sent} messages since its start", host.id));
        }
    }
}

impl Host {
    fn new(number: u16, region: &Region, seeds: &[String]) -> anyhow::Result<Host> {
        let address = address(number);
        let config = Config {
            region: region.clone(),
            host: format!("host-{number}").parse()?,
            state_dir: "/nowhere".into(),
            run_dir: "/nowhere".into(),
            gossip: Gossip {
                listen: address,
                advertise: address,
                seeds: seeds.to_vec(),
                interval: Some(INTERVAL),
            },
            tls: Tls { ca: "/nowhere".into(), cert: "/nowhere".into(), key: "/nowhere".into() },
            underlay: Underlay { address: address.ip(), vxlan_port: 4789 },
            dns: Dns {
                zone: "private-network.internal".into(),
                ttl_s: 30,
                listen: Ipv4Addr::new(127, 240, 0, 53),
                port: 61053,
                upstreams: None,
                forward: false,
            },
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            backend: netplumb::Backend::Auto,
            unguarded: false,
            thresholds: Thresholds::default(),
        };
        Ok(Host {
            id: config.host.clone(),
            kernel: MemoryKernel::new(address.ip(), UNDERLAY_MTU),
            config,
            store: MemoryStore::default(),
            agent: None,
            containers: 0,
        })
    }

    /// Starts a container and begins to attach it, for a task of its own.
    pub fn attach(
        &mut self,
        network: NetworkId,
        app: AppId,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<Entry>> + Send + 'static> {
        let running = self.agent.as_ref().with_context(|| format!("{} is not running", self.id))?;
        let context = running.handle.context.clone();
        self.containers += 1;
        let container = format!("c{}", self.containers);
        let netns = self.kernel.start_container(format!("/run/netns/{container}"), None);
        let request = Request {
            app,
            process: "web".parse()?,
            ordinal: None,
            ifname: None,
            address: None,
            netns: Netns::Path(netns.path),
            wait_ms: None,
        };
        let call = Call { network, container, request };
        Ok(async move { Ok(context.attach(call).await.map(|(entry, _)| entry)?) })
    }

    /// What its agent shows; none while none runs.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.agent.as_ref().map(|running| running.handle.snapshot.borrow().clone())
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
}

fn address(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), 7946))
}

/// Notes what an agent sees whenever that changes.
async fn follow(host: HostId, mut snapshots: watch::Receiver<Snapshot>, history: History) {
    let mut last = String::new();
    loop {
        let seen = describe(&snapshots.borrow_and_update());
        if seen != last {
            history.note(format_args!("{host} sees {seen}"));
            last = seen;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn describe(snapshot: &Snapshot) -> String {
    let view = &snapshot.view;
    let hosts: Vec<_> = view.hosts.iter().map(|(id, h)| (id, h.generation, h.version, h.standing)).collect();
    let names: Vec<_> = snapshot.zones.iter().map(|(network, zone)| (network, zone.names())).collect();
    let counted: usize = names.iter().map(|(_, names)| names.len()).sum();
    format!(
        "{} of {} hosts answer, {} members, {counted} names{}{} ({:016x})",
        view.answering().count(),
        hosts.len(),
        view.members().count(),
        if view.whole { "" } else { ", not whole" },
        if view.cut_off { ", cut off" } else { "" },
        hash_of(&format!("{hosts:?} {names:?}")),
    )
}

thread_local!(static WALL_CLOCK: Cell<Option<(Instant, u64)>> = const { Cell::new(None) });

/// The wall clock of the region on this thread.
fn wall_clock_ns() -> u64 {
    let (began, epoch_ns) = WALL_CLOCK.get().expect("a cluster sets its thread's clock before it has hosts");
    epoch_ns + began.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_crash_leaves_no_task_behind() {
        let mut cluster = Cluster::new(2, 1_700_000_000_000_000_000).unwrap();
        for host in 0..2 {
            cluster.start(host).await.unwrap();
        }
        cluster.quiet().await.unwrap();
        cluster.hosts[1].attach(NetworkId::random(), AppId::random()).unwrap().await.unwrap();
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert!(tasks() > 2, "two agents have tasks");
        cluster.crash(0);
        cluster.crash(1);
        // What is on its way arrives nowhere.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_goes_with_virtual_time() {
        let _cluster = Cluster::new(1, 42).unwrap();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(wall_clock_ns(), 42 + 3_000_000_000);
    }
}
