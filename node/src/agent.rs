//! The agent: wiring and the one select loop. Local intent becomes this host's records; the view
//! becomes what the kernel should hold and what names resolve. Nothing downstream writes upstream.

mod claim;
mod join;
mod question;
mod reconcile;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{HostRecord, Key, Record};
use gossip::{Ask, Change, Gossip, KnownHost, View};
use netplumb::kernel::{Container, Kernel};
use netplumb::plan::Prune;
use netplumb::state::Vtep;
use resolver::Zone;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

pub use reconcile::Built;

use crate::attach::{Call, Claimed, Context, Refusal};
use crate::claims::{Ledger, MemberKey};
use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::names::{Listen, Names};
use crate::project::{self, Here};
use crate::store::{Entry, Store, Stored};
use claim::READDRESS_PER_TICK;
use join::{Join, Joined, known_view, settle, start_delay};
use question::{Pending, Question};
use reconcile::{Wanted, reconcile};

/// A record younger than this makes its readers send the first packet.
const YOUNG: Duration = Duration::from_secs(10);
/// How often the containers of own members are looked at, and quarantines end.
const TICK: Duration = Duration::from_secs(1);
/// How often it is said that no seed answers.
const LONELY: Duration = Duration::from_secs(60);
/// How often the other hosts are written down.
const REMEMBER: Duration = Duration::from_secs(5);

/// What a node stands on: the simulation swaps these and nothing else.
pub struct Seams<K, S, W> {
    /// Gossip's messages.
    pub wire: W,
    /// The kernel's network.
    pub kernel: K,
    /// Stable storage.
    pub store: S,
    /// Wall clock in nanoseconds since 1970: for generations and start counts alone.
    pub clock: gossip::config::WallClock,
    /// Which boot this is: namespaces of another boot are gone.
    pub boot: String,
    /// Opens the DNS sockets in a container's namespace; none where names are not served.
    pub listen: Listen,
}

/// What everybody may read of a running agent.
#[derive(Clone)]
pub struct Snapshot {
    /// The region as seen from here.
    pub view: Arc<View>,
    /// Who holds what in it.
    pub ledger: Arc<Ledger>,
    /// Own members.
    pub journal: Arc<Journal>,
    /// Names by network, of the networks with members here.
    pub zones: Arc<BTreeMap<NetworkId, Arc<Zone>>>,
    /// This host's generation; 0 before it has joined.
    pub generation: u64,
    /// Why this host has not joined the region, when it has not.
    pub unjoined: Option<String>,
}

/// A message of a task to the loop.
pub enum Step {
    /// Claim what a new member needs and publish it as joining.
    Claim(Box<(Call, Container)>, oneshot::Sender<Result<Claimed, Refusal>>),
    /// The member's journal entry is on disk: build it. Answers the revision to wait for.
    Build(MemberId, oneshot::Sender<u64>),
    /// Ask a host whether it has a member in its kernel.
    AskApplied {
        /// The host.
        host: HostId,
        /// The member's network.
        network: NetworkId,
        /// The member.
        member: MemberId,
        /// Its counter.
        counter: u64,
        /// How long to wait.
        wait: Duration,
        /// Whether it has.
        reply: oneshot::Sender<bool>,
    },
    /// The member is built: publish it as ready.
    Ready(MemberId, oneshot::Sender<Result<Entry, Refusal>>),
    /// The member ends. Answers the revision to wait for.
    Release(MemberId, oneshot::Sender<u64>),
}

/// A running agent. Dropping it is a crash: its tasks end at once and nobody is told.
pub struct Handle<K, S> {
    /// To attach and detach by.
    pub context: Context<K, S>,
    /// To read from.
    pub snapshot: watch::Receiver<Snapshot>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl<K, S> Handle<K, S> {
    /// Stops gracefully: the region is told that this host is away, containers go on.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl<K, S> Drop for Handle<K, S> {
    fn drop(&mut self) {
        // Without it the loop would outlive its handle, or take the lost one for the word to leave.
        self.task.abort();
    }
}

/// Starts an agent; it serves its own containers at once and joins the region beside that.
///
/// # Errors
/// The store cannot be read, or the underlay address is not on this host.
pub async fn start<K, S, W>(config: Config, seams: Seams<K, S, W>) -> anyhow::Result<Handle<K, S>>
where
    K: Kernel,
    S: Store + Clone,
    W: gossip::Wire + Clone,
{
    let Stored { generation, mut starts, entries, known, damaged } = seams.store.load()?;
    for path in damaged {
        tracing::error!(path = %path.display(), "a file of the store was damaged and is set aside");
    }
    let underlay_mtu = seams.kernel.underlay_mtu(config.underlay.address).await?;
    let delay = start_delay((seams.clock)() / 1_000_000_000, &mut starts);
    seams.store.set_starts(&starts)?;
    let kernel = Arc::new(seams.kernel);
    let entries = settle(entries, &seams.boot, &*kernel, &seams.store).await?;
    kernel.sweep(&project::ours(&entries)).await?;
    let here = Here {
        region: config.region.clone(),
        host: config.host.clone(),
        vtep: Vtep { address: config.underlay.address, port: config.underlay.vxlan_port },
        underlay_mtu,
        guard: if config.unguarded {
            netplumb::state::Guard::None
        } else {
            netplumb::state::Guard::Table { listener: config.dns.listener() }
        },
    };
    let interval = config.interval(known.len());
    let timings = config.thresholds.timings.unwrap_or_else(|| gossip::Timings::of(interval));
    let quarantine = config.quarantine();
    let journal = Journal::restore(entries, Instant::now() + quarantine);
    let metrics = Arc::new(Metrics::default());
    metrics.set_gossip(seams.wire.counters());
    let names = Names::new(&config, seams.listen);
    metrics.set_resolver(names.counters());

    let view = Arc::new(known_view(&known));
    // What was known before this start is not young.
    let seen = member_keys(&view).map(|key| (key, None)).collect();
    let (snapshot, snapshots) = watch::channel(Snapshot {
        view: view.clone(),
        ledger: Arc::default(),
        journal: Arc::new(journal.clone()),
        zones: Arc::default(),
        generation: 0,
        unjoined: Some("not joined yet".into()),
    });
    let (steps, step_queue) = mpsc::channel(256);
    let wanted =
        Wanted { revision: 0, desired: Arc::default(), ours: Arc::default(), prune: Prune::HoldRemote };
    let (want, wants) = watch::channel(wanted);
    let (build, built) = watch::channel(Arc::new(Built::default()));
    let context = Context {
        kernel: kernel.clone(),
        store: seams.store.clone(),
        steps,
        built: built.clone(),
        unguarded: config.unguarded,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(reconcile(kernel.clone(), wants, build, metrics.clone()));
    let own = config.gossip.advertise.to_string();
    let seeds = config.gossip.seeds.iter().filter(|seed| **seed != own).cloned().collect();
    let join = Join {
        config: gossip::Config {
            region: config.region.clone(),
            host: config.host.clone(),
            listen: config.gossip.listen,
            advertise: config.gossip.advertise,
            seeds: config.gossip.seeds.clone(),
            interval,
            known,
            generation_floor: generation + 1,
            timings,
            eager: true,
            parsed: Default::default(),
            now_ns: seams.clock,
        },
        wire: seams.wire,
        store: seams.store.clone(),
        delay,
    };
    let agent = Agent {
        here,
        timings,
        quarantine,
        boot: seams.boot,
        advertise: config.gossip.advertise,
        kernel,
        store: seams.store,
        context: context.clone(),
        metrics: metrics.clone(),
        names,
        gossip: None,
        joined_at: None,
        unjoined: Some("not joined yet".into()),
        view,
        ledger: Arc::default(),
        journal,
        published: BTreeMap::new(),
        seen,
        pending: Vec::new(),
        revision: 0,
        want,
        snapshot,
        readdresses_left: READDRESS_PER_TICK,
        lonely_told: None,
        seeds,
        watching: None,
        remembered: Vec::new(),
        tasks,
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(agent.run(join, step_queue, built, stopped));
    Ok(Handle { context, snapshot: snapshots, metrics, stop: Some(stop), task })
}

/// The loop's state. INVARIANT: `published` is what gossip was last told of this host's own keys.
struct Agent<K, S> {
    here: Here,
    timings: gossip::Timings,
    quarantine: Duration,
    boot: String,
    advertise: SocketAddr,
    kernel: Arc<K>,
    store: S,
    context: Context<K, S>,
    metrics: Arc<Metrics>,
    names: Names,
    gossip: Option<Gossip>,
    joined_at: Option<Instant>,
    unjoined: Option<String>,
    view: Arc<View>,
    ledger: Arc<Ledger>,
    journal: Journal,
    published: BTreeMap<Key, Record>,
    seen: BTreeMap<MemberKey, Option<Instant>>,
    pending: Vec<Pending>,
    revision: u64,
    want: watch::Sender<Wanted>,
    snapshot: watch::Sender<Snapshot>,
    /// How many own members may be re-addressed until the next tick.
    readdresses_left: usize,
    /// When it was last said that no seed answers.
    lonely_told: Option<Instant>,
    seeds: Vec<String>,
    watching: Option<tokio::task::AbortHandle>,
    remembered: Vec<KnownHost>,
    tasks: JoinSet<()>,
}

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    async fn run<W: gossip::Wire + Clone>(
        mut self,
        join: Join<S, W>,
        mut steps: mpsc::Receiver<Step>,
        mut built: watch::Receiver<Arc<Built>>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let join = Arc::new(join);
        let (joins, mut joined) = mpsc::channel(1);
        self.try_join(&join, &joins, join.delay);
        let mut views: Option<watch::Receiver<Arc<View>>> = None;
        let mut asks: Option<mpsc::Receiver<Ask>> = None;
        let mut tick = interval_of(TICK);
        let mut remember = interval_of(REMEMBER);
        self.follow().await;
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                Some(answer) = joined.recv() => match answer {
                    Joined::In(gossip, inbox) => {
                        views = Some(gossip.view());
                        asks = Some(inbox);
                        self.enter(gossip).await;
                    }
                    Joined::Not(error) => {
                        tracing::error!("not joined: {error}; trying again in {} s", JOIN_RETRY.as_secs());
                        self.unjoined = Some(error.to_string());
                        self.tell();
                        self.try_join(&join, &joins, JOIN_RETRY);
                    }
                },
                Some(view) = changed(&mut views) => {
                    self.view = view;
                    self.follow().await;
                }
                Some(ask) = next(&mut asks) => self.hear(ask).await,
                Some(step) = steps.recv() => self.step(step).await,
                Ok(()) = built.changed() => {
                    let built = built.borrow_and_update().clone();
                    self.on_built(&built).await;
                }
                _ = tick.tick() => self.on_tick().await,
                _ = remember.tick() => self.remember(),
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
        if let Some(gossip) = self.gossip.take() {
            gossip.leave(Some(self.timings.away_max.as_secs() as u32)).await;
        }
        self.tasks.shutdown().await;
    }

    fn try_join<W: gossip::Wire + Clone>(
        &mut self,
        join: &Arc<Join<S, W>>,
        answer: &mpsc::Sender<Joined>,
        delay: Duration,
    ) {
        if delay > JOIN_RETRY {
            tracing::warn!(
                delay_s = delay.as_secs(),
                "started often within a minute: joining later, serving locally"
            );
        }
        let (join, answer, records) = (join.clone(), answer.clone(), self.initial());
        self.tasks.spawn(async move {
            let joined = join.once(records, delay).await;
            // The receiver ends with the loop only.
            let _ = answer.send(joined).await;
        });
    }

    /// This host's first records; `host` is put last by gossip.
    fn initial(&self) -> Vec<Record> {
        self.journal.initial().into_iter().chain([Record::Host(self.host_record())]).collect()
    }

    fn host_record(&self) -> HostRecord {
        HostRecord {
            name: self.here.host.clone(),
            counter: self.ledger.counter_max,
            vtep: self.here.vtep.address,
            port: self.here.vtep.port,
            mtu: self.here.underlay_mtu,
            speaks: gossip::record::FORMAT,
            away: None,
            unknown: BTreeMap::new(),
        }
    }

    async fn enter(&mut self, gossip: Gossip) {
        tracing::info!(region = %self.here.region, host = %self.here.host, generation = gossip.generation(), "joined");
        self.view = gossip.view().borrow().clone();
        self.gossip = Some(gossip);
        self.joined_at = Some(Instant::now());
        self.unjoined = None;
        // What was published at the join may be older than the journal: told again, same values
        // are not sent.
        self.published.clear();
        self.follow().await;
    }

    /// Everything that follows from the view and the journal: own records, the kernel, names.
    async fn follow(&mut self) {
        let view = self.with_own(&self.view);
        let mut ledger = Ledger::of(&view);
        let view = if self.yield_contested(&mut ledger) {
            let view = self.with_own(&self.view);
            ledger = Ledger::of(&view);
            view
        } else {
            view
        };
        self.ledger = Arc::new(ledger);
        self.publish().await;
        self.note_young(&view);
        self.want(&view);
        self.names.follow(&view, &self.ledger, &self.journal);
        self.answer_pending();
        self.tell_of(view);
    }

    /// The view with this host's intent in place of what it has published.
    fn with_own(&self, view: &View) -> View {
        let mut view = view.clone();
        let members = self.journal.records().into_iter().map(|(pn, member, record)| ((pn, member), record));
        let records = gossip::view::HostRecords {
            host: self.host_record(),
            networks: self.journal.claims(),
            members: members.collect(),
        };
        let own = view.hosts.get(&self.here.host);
        let own = gossip::view::Host {
            generation: own.map_or(0, |h| h.generation),
            version: own.map_or(0, |h| h.version),
            address: self.advertise,
            standing: gossip::Standing::Answering,
            silent_since: None,
            via: gossip::view::Via::Chitchat,
            records: Arc::new(records),
        };
        view.hosts.insert(self.here.host.clone(), own);
        view
    }

    /// Tells gossip what differs from what it was told.
    async fn publish(&mut self) {
        let Some(gossip) = self.gossip.clone() else { return };
        let target: BTreeMap<Key, Record> =
            self.journal.initial().into_iter().map(|record| (record.key(), record)).collect();
        // Networks come before members (the order of keys), what goes comes last: readers never see a
        // member of a network nobody has a word on.
        let gone = self.published.keys().filter(|k| !target.contains_key(k)).cloned().map(Change::Delete);
        let new = target.iter().filter(|(k, r)| self.published.get(k) != Some(r));
        let changes: Vec<Change> = new.map(|(_, r)| Change::Put(r.clone())).chain(gone).collect();
        if changes.is_empty() {
            return;
        }
        match gossip.publish(changes).await {
            Ok(()) => self.published = target,
            Err(error) => tracing::error!("own records were refused: {error}"),
        }
    }

    fn note_young(&mut self, view: &View) {
        let now = Instant::now();
        let keys: Vec<MemberKey> = member_keys(view).collect();
        let mut seen = std::mem::take(&mut self.seen);
        self.seen = keys
            .into_iter()
            .map(|key| {
                let first = seen.remove(&key).unwrap_or(Some(now));
                (key, first.filter(|at| now - *at < YOUNG))
            })
            .collect();
    }

    /// Asks the reconciler to make the kernel follow, when that is something new.
    fn want(&mut self, view: &View) {
        let seen = &self.seen;
        let young = |key: &MemberKey| seen.get(key).is_some_and(Option::is_some);
        let desired = project::desired(view, &self.ledger, &self.here, self.journal.durable(), young);
        let ours = project::ours(self.journal.in_kernel());
        let prune = if self.view.whole && !self.view.cut_off { Prune::All } else { Prune::HoldRemote };
        let same = {
            let last = self.want.borrow();
            last.revision > 0 && *last.desired == desired && *last.ours == ours && last.prune == prune
        };
        if !same {
            self.revision += 1;
            let wanted =
                Wanted { revision: self.revision, desired: Arc::new(desired), ours: Arc::new(ours), prune };
            self.want.send_replace(wanted);
        }
    }

    fn tell(&self) {
        self.tell_of(self.with_own(&self.view));
    }

    fn tell_of(&self, view: View) {
        self.snapshot.send_replace(Snapshot {
            view: Arc::new(view),
            ledger: self.ledger.clone(),
            journal: Arc::new(self.journal.clone()),
            zones: self.names.zones(),
            generation: self.gossip.as_ref().map_or(0, |g| g.generation()),
            unjoined: self.unjoined.clone(),
        });
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Claim(call, reply) => {
                let (call, container) = *call;
                let claimed = self.claim(call, container);
                let new = matches!(claimed, Ok(Claimed::New(..)));
                // Answered before it is published: the journal is written meanwhile.
                let _ = reply.send(claimed);
                if new {
                    self.follow().await;
                }
            }
            Step::Build(member, reply) => {
                self.journal.mark_durable(&member);
                self.follow().await;
                let _ = reply.send(self.revision);
            }
            Step::AskApplied { host, network, member, counter, wait, reply } => {
                let Some(gossip) = self.gossip.clone() else { return };
                let Ok(body) = serde_json::to_vec(&Question::Applied { network, member, counter }) else {
                    return;
                };
                let (started, metrics) = (Instant::now(), self.metrics.clone());
                self.tasks.spawn(async move {
                    let said = gossip.ask(&host, body, wait).await.is_ok_and(|answer| answer == b"true");
                    if said {
                        metrics.converged(started.elapsed());
                    }
                    let _ = reply.send(said);
                });
            }
            Step::Ready(member, reply) => {
                let ready = self.ready(&member);
                self.follow().await;
                let _ = reply.send(ready);
            }
            Step::Release(member, reply) => {
                self.journal.release(&member, Instant::now() + self.quarantine);
                self.follow().await;
                let _ = reply.send(self.revision);
            }
        }
    }

    async fn on_built(&mut self, built: &Built) {
        if built.revision >= self.revision {
            let gone: Vec<MemberId> =
                self.journal.to_tear_down().into_iter().filter(|m| !built.failed.contains_key(m)).collect();
            if !gone.is_empty() {
                for member in &gone {
                    self.journal.mark_torn_down(member);
                }
                self.follow().await;
            }
        }
        self.answer_pending();
    }

    async fn on_tick(&mut self) {
        self.tell_lonely();
        self.readdresses_left = READDRESS_PER_TICK;
        if !self.ledger.contested_addresses.is_empty() {
            self.follow().await;
        }
        let expired = self.journal.expire(Instant::now());
        if !expired.is_empty() {
            for entry in expired {
                let store = self.store.clone();
                self.tasks.spawn(async move {
                    if let Err(error) = store.remove(&entry.member).await {
                        tracing::error!(member = %entry.member, "journal: {error}");
                    }
                });
            }
            self.follow().await;
        }
        if self.watching.as_ref().is_none_or(tokio::task::AbortHandle::is_finished) {
            let live: Vec<Entry> = self.journal.durable().cloned().collect();
            let (context, kernel) = (self.context.clone(), self.kernel.clone());
            self.watching = Some(self.tasks.spawn(async move {
                for entry in live {
                    if !kernel.alive(&entry.netns, entry.inode).await {
                        tracing::info!(member = %entry.member, container = %entry.container, "container is gone: detaching");
                        if let Err(error) = context.clone().detach(entry).await {
                            tracing::warn!("detach of a gone container: {error}");
                        }
                    }
                }
            }));
        }
    }

    /// Says once a minute that no seed answers: the host serves its own containers meanwhile.
    fn tell_lonely(&mut self) {
        let now = Instant::now();
        let answered = self.view.answering().any(|(host, _)| *host != self.here.host);
        let early = self.joined_at.is_none_or(|joined| now - joined < self.timings.hold);
        if answered || early || self.seeds.is_empty() {
            self.lonely_told = None;
        } else if self.lonely_told.is_none_or(|told| now - told >= LONELY) {
            self.lonely_told = Some(now);
            let seeds = self.seeds.join(", ");
            tracing::warn!(
                "no other host answers: trying the seeds ({seeds}) for ever, serving this host's containers"
            );
        }
    }

    fn remember(&mut self) {
        let Some(gossip) = &self.gossip else { return };
        let known = gossip.known();
        if known == self.remembered {
            return;
        }
        self.remembered = known.clone();
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.set_known(&known).await {
                tracing::warn!("the last view was not kept: {error}");
            }
        });
    }
}

/// How long after a refused join the next is tried.
const JOIN_RETRY: Duration = Duration::from_secs(5);

fn member_keys(view: &View) -> impl Iterator<Item = MemberKey> {
    view.hosts.iter().flat_map(|(host, h)| {
        h.records.members.keys().map(move |(pn, member)| (host.clone(), *pn, member.clone()))
    })
}

fn interval_of(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The next view; pending for ever before the join.
async fn changed(views: &mut Option<watch::Receiver<Arc<View>>>) -> Option<Arc<View>> {
    match views {
        Some(views) => {
            views.changed().await.ok()?;
            Some(views.borrow_and_update().clone())
        }
        None => std::future::pending().await,
    }
}

/// The next question; pending for ever before the join.
async fn next(asks: &mut Option<mpsc::Receiver<Ask>>) -> Option<Ask> {
    match asks {
        Some(asks) => asks.recv().await,
        None => std::future::pending().await,
    }
}
