//! Hosts of one process: the node as it is, on a network, kernels, stores and wall clocks in memory.

mod books;
mod follower;
mod host;
mod weather;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType, Region};
use gossip::memory::MemoryWire;
use gossip::{Timings, Wire};
use node::agent::{self, Seams, Snapshot};
use node::config::Thresholds;
use node::names::NotListening;
use tokio::time::Instant;

#[cfg(test)]
pub use books::lock;
pub use books::{Answered, Attempt, Books, End, Promise};
pub use host::{Choice, Host, Life, Role, SEEDS};
pub use weather::Weather;

use crate::history::History;
use crate::lanes::{self, Lanes};
use crate::laws::SMALL;
use host::Running;

/// Gossip rounds, and with them everything that is bounded by their number: as agents choose them that were told
/// nothing.
fn interval(hosts: u16) -> Duration {
    Duration::from_millis(if hosts > 500 { 1000 } else { 500 })
}

/// How long the address of a detached member rests here; a minute and a half would outlast most runs.
pub const QUARANTINE: Duration = Duration::from_secs(10);
/// How long a host is dead before it is gone; a quarter of an hour elsewhere.
pub const GONE: Duration = Duration::from_secs(40);
/// How long a gone host's claims are remembered; a day elsewhere.
pub const FORGET: Duration = Duration::from_secs(60);
/// How long a graceful stop is honoured; two minutes elsewhere.
pub const AWAY: Duration = Duration::from_secs(30);

/// How long a claim that vanished without a release is remembered; two minutes elsewhere.
pub const GHOST: Duration = Duration::from_secs(20);
/// How long chitchat remembers a dead host; four minutes elsewhere.
pub const GRACE: Duration = Duration::from_secs(30);

/// Between two attempts of an agent to join under a name that is in use.
const JOIN_RETRY: Duration = Duration::from_secs(5);

/// The bounds of every simulated host: forgetting happens within a run.
fn timings(interval: Duration) -> Timings {
    Timings {
        gone: GONE,
        forget: FORGET,
        away_max: AWAY,
        ghost: GHOST,
        grace: GRACE,
        ..Timings::of(interval)
    }
}

/// A region of simulated hosts, and the oracle's own books on it.
pub struct Cluster {
    /// What happened.
    pub history: History,
    /// The machines, running or not.
    pub hosts: Vec<Host>,
    /// What was promised to whom.
    pub books: Books,
    /// What the network does to messages.
    pub weather: Weather,
    /// Somebody in the region lies.
    pub lied_to: bool,
    /// When an observer, by its number, last heard another one for so long that it must believe it lives.
    pub heard: BTreeMap<(usize, usize), Instant>,
    /// What each agent, by its number, showed when its zones were last held against its view.
    pub looked_at: BTreeMap<usize, Snapshot>,
    /// Between two gossip rounds of a host.
    pub interval: Duration,
    /// The bounds of every host.
    pub timings: Timings,
    region: Region,
    thresholds: Thresholds,
    epoch_ns: u64,
    lanes: Lanes,
}

impl Cluster {
    /// A region of so many machines, without agents; its wall clocks begin at `epoch_ns` (nanoseconds since
    /// 1970). The first two are everybody's seeds.
    pub fn new(hosts: u16, epoch_ns: u64, history: History) -> anyhow::Result<Cluster> {
        let interval = interval(hosts);
        let timings = timings(interval);
        let threads = if usize::from(hosts) > SMALL { lanes::MANY } else { 0 };
        let lanes = Lanes::start(threads, &history)?;
        let mut cluster = Cluster {
            interval,
            timings,
            history,
            hosts: Vec::new(),
            books: Books::new(),
            weather: Weather::new(lanes.network.clone()),
            lied_to: false,
            heard: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            region: "simulated".parse()?,
            thresholds: thresholds(timings),
            epoch_ns,
            lanes,
        };
        for number in 0..hosts {
            cluster.add(format!("host-{number}").parse()?)?;
        }
        Ok(cluster)
    }

    /// Puts another machine there, with a name of its own or somebody else's, and returns its number.
    pub fn add(&mut self, id: HostId) -> anyhow::Result<usize> {
        let number = self.hosts.len();
        let thresholds = self.thresholds.clone();
        let config = host::config(u16::try_from(number)?, id, &self.region, thresholds, self.interval);
        self.hosts.push(Host::new(u16::try_from(number)?, config, self.epoch_ns));
        Ok(number)
    }

    /// Digests are compressed from the start on, as elsewhere: where they are not, the region may not have more than
    /// a thousand hosts.
    pub fn compress_digests(&mut self) {
        self.thresholds.plain_digests = false;
        for host in &mut self.hosts {
            host.config.thresholds.plain_digests = false;
        }
    }

    /// Starts a host's agent: the first time, or again with what its store and kernel hold.
    pub async fn start(&mut self, host: usize) -> anyhow::Result<()> {
        let region = self.region.clone();
        let lane = self.lanes.of(host);
        let network = self.weather.network.lane(lane.number);
        let host = &mut self.hosts[host];
        ensure!(host.agent.is_none(), "{} runs already", host.id);
        let wire = Arc::new(network.wire(&region, &host.id, host.address));
        let counters = wire.counters();
        let wire: Arc<dyn Wire> = host.role.dress(wire);
        let seams = Seams {
            wire,
            kernel: host.kernel.clone(),
            store: host.store.clone(),
            clock: host.clock.wall(),
            boot: host.boot(),
            listen: Arc::new(NotListening),
        };
        self.history.note(format_args!("{} starts", host.label()));
        self.books.starts(&host.label());
        let starting = agent::start(host.config.clone(), seams);
        let handle = lane.within(starting).await.with_context(|| host.label())?;
        let followed = follower::follow(
            host.label(),
            handle.snapshot.clone(),
            lane.history.clone(),
            self.books.shared.clone(),
        );
        let follower = lane.runtime.spawn(followed).abort_handle();
        let again = !host.starts.is_empty() || host.copy;
        host.began(Running::new(handle, counters, follower));
        // While the seeds start too, hosts that join may be islands of their own.
        let founded = self.hosts.iter().take(SEEDS.into()).all(|seed| seed.introduced);
        if again || !founded {
            self.weather.stir();
        }
        Ok(())
    }

    /// Ends a host's agent without a word to anybody, with all its tasks and calls; kernel and store stay.
    pub fn crash(&mut self, host: usize) {
        self.history.note(format_args!("{} crashes", self.hosts[host].label()));
        self.hosts[host].ended(Life::Crashed(Instant::now()));
        self.books.calls_ended(host);
        self.weather.stir();
    }

    /// Stops a host's agent: the region is told that it is away.
    pub async fn stop(&mut self, host: usize) {
        self.history.note(format_args!("{} stops", self.hosts[host].label()));
        self.books.calls_ended(host);
        if let Some(running) = self.hosts[host].take_running() {
            running.stop().await;
        }
        self.hosts[host].ended(Life::Away(Instant::now()));
        self.hosts[host].goodbye = Some(Instant::now());
        self.weather.stir();
    }

    /// Takes a machine away for ever, with its containers.
    pub fn scrap(&mut self, host: usize) {
        if self.hosts[host].is_up() {
            self.crash(host);
        }
        self.history.note(format_args!("{} is scrapped", self.hosts[host].label()));
        self.hosts[host].ended(Life::Scrapped(Instant::now()));
        self.books.host_ended(host, End::Scrapped);
        self.weather.stir();
    }

    /// Puts another machine there with the name and a copy of the disk of a first one; returns its number.
    pub fn clone_machine(&mut self, host: usize) -> anyhow::Result<usize> {
        let copy = self.add(self.hosts[host].id.clone())?;
        self.hosts[copy].store.copy_from(&self.hosts[host].store);
        self.hosts[copy].copy = true;
        self.hosts[copy].draining = self.hosts[host].draining;
        self.history.note(format_args!(
            "{} is a copy of {}",
            self.hosts[copy].label(),
            self.hosts[host].label()
        ));
        Ok(copy)
    }

    /// Everything on a machine that is down ends but its disk: its containers with it.
    pub fn reboot(&mut self, host: usize) {
        self.history.note(format_args!("{} boots", self.hosts[host].label()));
        self.hosts[host].reboot();
        self.books.host_ended(host, End::Died);
    }

    /// The state directory of a machine that is down is lost.
    pub fn wipe(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        self.history.note(format_args!("{} loses its state directory", host.label()));
        host.store.wipe();
        host.wiped = Some(Instant::now());
        host.draining = false;
    }

    /// The machine that this one is a copy of, while both exist.
    pub fn original(&self, copy: usize) -> Option<usize> {
        let exists = |host: &Host| !matches!(host.life, Life::Scrapped(_));
        let host = self.hosts.get(copy).filter(|host| exists(host) && host.copy)?;
        self.hosts.iter().position(|other| other.id == host.id && exists(other) && !other.copy)
    }

    /// How long a host that starts now may be kept out of the region: by its many starts, and for as long as
    /// another machine that had its name is believed to live.
    pub fn join_delay_max(&self, host: &Host) -> Duration {
        let lately =
            |at: Instant| host.starts.last().is_some_and(|start| *start < at + self.timings.detection);
        let believed = self
            .hosts
            .iter()
            .filter(|other| other.id == host.id && !std::ptr::eq(*other, host))
            .any(|other| matches!(other.life, Life::Crashed(at) | Life::Scrapped(at) if lately(at)));
        let refused = if believed { self.timings.detection + JOIN_RETRY } else { Duration::ZERO };
        host.start_delay_max() + refused
    }

    /// An end of the network for somebody who is no host of the cluster.
    pub fn stranger(&self, name: &str) -> anyhow::Result<MemoryWire> {
        let address = SocketAddr::from(([10, 99, 0, 1], 7946));
        Ok(self.weather.network.wire(&self.region, &name.parse()?, address))
    }

    /// The region's name.
    pub fn region(&self) -> &str {
        self.region.as_str()
    }

    /// Lets nothing pass from one host to another.
    pub fn cut(&mut self, from: usize, to: usize) {
        let at = |host: usize| (host, self.hosts[host].address);
        let (from, to) = (at(from), at(to));
        self.weather.cut(from, to);
    }

    /// Makes all messages from and to a host take so much longer; not at zero.
    pub fn slow(&mut self, host: usize, longer: Duration) {
        self.weather.set_slow((host, self.hosts[host].address), longer);
    }

    /// From now on a host's kernel refuses every so-manieth operation; none at 0.
    pub fn refuse(&mut self, host: usize, every: usize) {
        self.hosts[host].refuse(every);
    }

    /// Starts a container on a host and begins to attach it so long from now; the outcome goes into the books.
    pub fn attach(
        &mut self,
        host: usize,
        network: NetworkId,
        app: AppId,
        process: ProcessType,
        choice: Choice,
        then: Duration,
    ) -> anyhow::Result<()> {
        let (call, path) = self.hosts[host].start_container(network, app, process, choice);
        self.begin(host, Attempt { host, call, path, began: Instant::now() + then })
    }

    fn begin(&mut self, host: usize, attempt: Attempt) -> anyhow::Result<()> {
        let lane = self.lanes.of(host);
        let outcome = self.books.begin(&attempt, lane.number);
        let running = self.hosts[host].agent.as_mut();
        let running = running.with_context(|| format!("host {host} is not running"))?;
        let context = running.handle.context.clone();
        let attaching = async move {
            tokio::time::sleep_until(attempt.began).await;
            let result = context.attach(attempt.call).await;
            outcome.attached(result.map(|(entry, _)| entry));
        };
        running.calls.spawn_on(attaching, &lane.runtime);
        Ok(())
    }

    /// Drains a host, or takes that back.
    pub async fn drain(&mut self, host: usize, draining: bool) -> anyhow::Result<()> {
        let running =
            self.hosts[host].agent.as_ref().with_context(|| format!("host {host} is not running"))?;
        running.handle.context.clone().drain(draining).await?;
        self.hosts[host].draining = draining;
        Ok(())
    }

    /// Begins to detach a member that was promised; the outcome goes into the books.
    pub fn detach(&mut self, member: &MemberId) -> anyhow::Result<()> {
        let Some(promise) = self.books.promises.get(member) else { bail!("{member} was never attached") };
        let (host, promised) = (promise.host, promise.entry.clone());
        let running =
            self.hosts[host].agent.as_mut().with_context(|| format!("host {host} is not running"))?;
        // As its own agent knows it: its address may have changed.
        let entry = running.handle.snapshot.borrow().journal.get(member).cloned();
        let context = running.handle.context.clone();
        let lane = self.lanes.of(host);
        let outcome = self.books.begin_detach(member, lane.number);
        let detaching = async move {
            let result = context.detach(entry.unwrap_or(promised)).await;
            outcome.detached(result);
        };
        running.calls.spawn_on(detaching, &lane.runtime);
        Ok(())
    }

    /// A member's container dies.
    pub fn kill_container(&mut self, member: &MemberId) {
        let Some(promise) = self.books.promises.get(member) else { return };
        let (host, path) = (promise.host, promise.path.clone());
        self.history.note(format_args!("the container of {member} on {} dies", self.hosts[host].label()));
        self.hosts[host].kernel.stop_container(path);
        self.books.end(member, End::Died);
    }

    /// Takes what calls have come to into the books.
    pub fn collect(&mut self) -> anyhow::Result<()> {
        self.books.collect(&self.history, &self.hosts)
    }

    /// Whether an agent runs that has never heard of judges, and answers none of their questions.
    pub fn veterans(&self) -> bool {
        self.hosts.iter().any(|host| host.is_up() && host.runs == Role::Veteran)
    }

    /// The hosts whose agent runs, with their numbers and what each shows.
    pub fn live(&self) -> impl Iterator<Item = (usize, &Host, Snapshot)> {
        self.hosts.iter().enumerate().filter_map(|(number, host)| Some((number, host, host.snapshot()?)))
    }

    /// Notes how much each host has sent: one message more or less is another history.
    pub fn note_traffic(&self) {
        for host in &self.hosts {
            let sent = host.agent.as_ref().map_or(0, |running| {
                let labels = [("direction", "out"), ("kind", "envelope")];
                running.counters.get("gossip_messages_total", &labels)
            });
            self.history.weigh(format_args!("{} has sent {sent}", host.label()));
        }
    }
}

/// What every simulated node is told beside its file: one value for all, so that they share what they parse.
fn thresholds(timings: Timings) -> Thresholds {
    let quarantine = Some(QUARANTINE);
    let parsed = gossip::Interner::shared();
    Thresholds { timings: Some(timings), quarantine, plain_digests: true, parsed, ..Thresholds::default() }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    fn two() -> Cluster {
        Cluster::new(2, 42, History::begin(0)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_leaves_no_task_behind() {
        let mut cluster = two();
        for host in 0..2 {
            cluster.start(host).await.unwrap();
        }
        let attach = |cluster: &mut Cluster| {
            let web = "web".parse().unwrap();
            cluster
                .attach(1, NetworkId::random(), AppId::random(), web, Choice::None, Duration::ZERO)
                .unwrap();
        };
        attach(&mut cluster);
        while cluster.books.in_flight() > 0 {
            sleep(Duration::from_millis(50)).await;
            cluster.collect().unwrap();
        }
        assert_eq!(cluster.books.promises.len(), 1);
        attach(&mut cluster);
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert!(tasks() > 2, "two agents have tasks");
        cluster.crash(0);
        cluster.crash(1);
        assert_eq!(cluster.books.in_flight(), 0, "a crash takes its calls along");
        // What is on its way arrives nowhere.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn every_machine_has_its_own_wall_clock() {
        let cluster = two();
        sleep(Duration::from_secs(3)).await;
        cluster.hosts[1].clock.jump(-2);
        let read = |host: usize| (cluster.hosts[host].clock.wall())();
        assert_eq!(read(0), 42 + 3_000_000_000);
        assert_eq!(read(1), 42 + 1_000_000_000);
    }
}
