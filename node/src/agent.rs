//! The agent: wiring and the one select loop. Local intent becomes this host's records; the view
//! becomes what the kernel should hold and what names resolve. Nothing downstream writes upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{HostRecord, Key, MemberState, Record};
use gossip::{Ask, Change, Gossip, JoinError, KnownHost, View};
use netplumb::kernel::{Container, Kernel};
use netplumb::plan::Prune;
use netplumb::state::{Desired, Ours, Vtep};
use netplumb::{Reconciler, Report};
use resolver::Zone;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::attach::{Call, Claimed, Context, Refusal, RefusalKind, interface, overlap};
use crate::claims::{DEFAULT_SUBNET, Ledger, MemberKey};
use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::names::{Listen, Names};
use crate::project::{self, Here};
use crate::store::{Entry, Store, Stored};

/// A record younger than this makes its readers send the first packet.
const YOUNG: Duration = Duration::from_secs(10);
/// How often the containers of own members are looked at, and quarantines end.
const TICK: Duration = Duration::from_secs(1);
/// How often the kernel is compared whole with what it should hold.
const AUDIT: Duration = Duration::from_secs(30);
/// How often the other hosts are written down.
const REMEMBER: Duration = Duration::from_secs(5);
/// Most own members re-addressed in one second.
const READDRESS_PER_TICK: usize = 10;

/// What a node stands on: the simulation swaps these and nothing else.
pub struct Seams<K, S, W> {
    /// Gossip's messages.
    pub wire: W,
    /// The kernel's network.
    pub kernel: K,
    /// Stable storage.
    pub store: S,
    /// Wall clock in nanoseconds since 1970: for generations and start counts alone.
    pub clock: fn() -> u64,
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
    /// When claims can be made.
    pub judging: bool,
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

/// What has been built: the reconciler's answer to a revision.
#[derive(Debug, Clone, Default)]
pub struct Built {
    /// The last revision the kernel was made to follow.
    pub revision: u64,
    /// Members of which something could not be built or removed.
    pub failed: BTreeMap<MemberId, Refusal>,
    /// Members whose container refused the IPv6 address.
    pub without_ipv6: BTreeSet<MemberId>,
    /// Operations that failed, in words, whatever they belong to.
    pub errors: Vec<String>,
}

/// What the kernel should be made to follow.
#[derive(Clone)]
struct Wanted {
    revision: u64,
    desired: Arc<Desired>,
    ours: Arc<Ours>,
    prune: Prune,
}

/// What one host asks another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    /// Do you have this member in your kernel?
    Applied { network: NetworkId, member: MemberId, counter: u64 },
}

/// A question waiting for the kernel.
struct Pending {
    from: HostId,
    network: NetworkId,
    member: MemberId,
    counter: u64,
    deadline: Instant,
    revision: Option<u64>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// A running agent.
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
        let _ = self.task.await;
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
    let timings = gossip::Timings::of(interval(&config, known.len()));
    let quarantine = Duration::from_secs(u64::from(config.dns.ttl_s) + 5);
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
        judging: false,
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
    let join = Join {
        config: gossip::Config {
            region: config.region.clone(),
            host: config.host.clone(),
            listen: config.gossip.listen,
            advertise: config.gossip.advertise,
            seeds: config.gossip.seeds.clone(),
            interval: interval(&config, known.len()),
            known,
            generation_floor: generation + 1,
            timings,
            now_ns: Arc::new(seams.clock),
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
        watching: None,
        remembered: Vec::new(),
        tasks,
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(agent.run(join, step_queue, built, stopped));
    Ok(Handle { context, snapshot: snapshots, metrics, stop: Some(stop), task })
}

fn interval(config: &Config, known: usize) -> Duration {
    let by_size = if known > 500 { Duration::from_secs(1) } else { Duration::from_millis(500) };
    config.gossip.interval.unwrap_or(by_size)
}

/// Three starts within a minute delay the next join by 5 s, 10 s … 60 s: every start is a new
/// generation in everybody's digest. `starts` are the last ones in wall-clock seconds; this one is
/// added.
fn start_delay(now_s: u64, starts: &mut Vec<u64>) -> Duration {
    starts.retain(|s| s.abs_diff(now_s) <= 60);
    starts.push(now_s);
    let kept = starts.len().saturating_sub(16);
    starts.drain(..kept);
    Duration::from_secs((starts.len().saturating_sub(2) as u64 * 5).min(60))
}

/// Entries of another boot, of an unfinished attach or of a namespace that is gone are released:
/// what is left of them is torn down from the journal.
async fn settle<K: Kernel, S: Store>(
    mut entries: Vec<Entry>,
    boot: &str,
    kernel: &K,
    store: &S,
) -> io::Result<Vec<Entry>> {
    for entry in &mut entries {
        let alive = entry.boot == boot && kernel.alive(&entry.netns, entry.inode).await;
        if entry.state == MemberState::Released || (entry.state == MemberState::Ready && alive) {
            continue;
        }
        tracing::info!(member = %entry.member, container = %entry.container, alive, "member did not outlive the agent");
        entry.state = MemberState::Released;
        store.put(entry).await?;
    }
    Ok(entries)
}

/// Makes the kernel follow what is wanted: at once when that changes, again with backoff after an
/// error, and one network at a time for drift.
async fn reconcile<K: Kernel>(
    kernel: Arc<K>,
    mut wants: watch::Receiver<Wanted>,
    build: watch::Sender<Arc<Built>>,
    metrics: Arc<Metrics>,
) {
    const BACKOFF_MIN: Duration = Duration::from_millis(500);
    const BACKOFF_MAX: Duration = Duration::from_secs(30);
    let mut reconciler = Reconciler::new(kernel);
    let mut backoff = BACKOFF_MIN;
    let mut retry: Option<Instant> = None;
    let mut audit = Instant::now() + AUDIT;
    loop {
        let audited = tokio::select! {
            changed = wants.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => false,
            () = tokio::time::sleep_until(audit) => true,
        };
        let wanted = wants.borrow_and_update().clone();
        if wanted.revision == 0 {
            audit = Instant::now() + AUDIT;
            continue;
        }
        let started = Instant::now();
        let report = if audited {
            // One network at a time, all of them within the period.
            audit = started + AUDIT / wanted.ours.networks.len().max(1) as u32;
            reconciler.audit(&wanted.desired, &wanted.ours, wanted.prune).await
        } else {
            reconciler.reconcile(&wanted.desired, &wanted.ours, wanted.prune).await
        };
        metrics.reconciled(&report, started.elapsed());
        let answer = answer(&wanted, &report);
        for error in &answer.errors {
            tracing::warn!(revision = wanted.revision, "{error}");
        }
        (retry, backoff) = if answer.errors.is_empty() {
            (None, BACKOFF_MIN)
        } else {
            (Some(Instant::now() + backoff), (backoff * 2).min(BACKOFF_MAX))
        };
        build.send_replace(Arc::new(answer));
    }
}

fn answer(wanted: &Wanted, report: &Report) -> Built {
    let mut built = Built { revision: wanted.revision, ..Built::default() };
    for (network, members) in &wanted.ours.networks {
        for id in members.keys() {
            if let (Some(error), Ok(member)) = (report.failed(network, id), id.parse()) {
                built.failed.insert(member, Refusal::from(error));
            }
            if report.without_ipv6(network, id) {
                built.without_ipv6.extend(id.parse::<MemberId>());
            }
        }
    }
    let unseen = report.unseen.iter().map(|(network, error)| format!("{network}: {error}"));
    built.errors =
        unseen.chain(report.errors().map(|(op, error)| format!("{}: {error}", op.network()))).collect();
    built
}

/// What joining the region takes.
struct Join<S, W> {
    config: gossip::Config,
    wire: W,
    store: S,
    delay: Duration,
}

enum Joined {
    In(Gossip, mpsc::Receiver<Ask>),
    Not(JoinError),
}

impl<S: Store + Clone, W: gossip::Wire + Clone> Join<S, W> {
    async fn once(&self, records: Vec<Record>, delay: Duration) -> Joined {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let store = self.store.clone();
        let persist = move |generation| store.set_generation(generation);
        match Gossip::join(self.config.clone(), self.wire.clone(), records, persist).await {
            Ok((gossip, asks)) => Joined::In(gossip, asks),
            Err(error) => Joined::Not(error),
        }
    }
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
        let mut records = self.journal.initial();
        records.push(Record::Host(HostRecord {
            name: self.here.host.clone(),
            counter: self.ledger.counter_max,
            vtep: self.here.vtep.address,
            port: self.here.vtep.port,
            mtu: self.here.underlay_mtu,
            speaks: gossip::record::FORMAT,
            away: None,
            unknown: BTreeMap::new(),
        }));
        records
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
        let view = if self.yield_contested(&ledger) {
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
        let mut host = None;
        let mut networks = BTreeMap::new();
        for record in self.initial() {
            match record {
                Record::Host(record) => host = Some(record),
                Record::Network(pn, record) => {
                    networks.insert(pn, record);
                }
                Record::Member(..) => {}
            }
        }
        let members = self.journal.records().into_iter().map(|(pn, member, record)| ((pn, member), record));
        let host = host.unwrap_or_else(|| unreachable!("the initial records hold the host's"));
        let records = gossip::view::HostRecords { host, networks, members: members.collect() };
        let own = view.hosts.get(&self.here.host);
        let own = gossip::view::Host {
            generation: own.map_or(0, |h| h.generation),
            version: own.map_or(0, |h| h.version),
            address: self.advertise,
            standing: gossip::Standing::Answering,
            records: Arc::new(records),
        };
        view.hosts.insert(self.here.host.clone(), own);
        view
    }

    /// Own members follow their network's claim, and take new things for contested ones. Whether
    /// anything changed.
    fn yield_contested(&mut self, ledger: &Ledger) -> bool {
        if self.gossip.is_none() {
            return false;
        }
        let mut changed = Vec::new();
        let mut readdressed = 0;
        let hosts: Vec<HostId> = self.view.hosts.keys().cloned().collect();
        let live: Vec<Entry> = self.journal.live().cloned().collect();
        for mut entry in live {
            let before = entry.clone();
            if let Some(claim) = ledger.networks.get(&entry.network) {
                entry.claim = claim.clone();
            }
            let key = (self.here.host.clone(), entry.network, entry.member.clone());
            let outside = !entry.claim.subnet.contains(&entry.address);
            let lost = ledger.contested_addresses.contains(&key) || outside;
            if lost && readdressed < READDRESS_PER_TICK {
                let subnet = entry.claim.subnet;
                match ledger.address(entry.network, subnet, &self.here.host, &hosts, &mut rand::rng()) {
                    Ok(address) => {
                        readdressed += 1;
                        tracing::warn!(member = %entry.member, old = %entry.address, new = %address, "address was contested: re-addressed");
                        entry.address = address;
                        entry.address6 = entry.address6.map(|_| project::address6(entry.network, address));
                        entry.counter = ledger.next_counter();
                        self.metrics.conflict("address");
                    }
                    Err(full) => tracing::error!(member = %entry.member, "contested, and {full}"),
                }
            }
            if ledger.contested_ordinals.contains(&key) {
                // A chosen number is never changed behind its caller's back: the member goes
                // without a numbered name until it is free.
                if !entry.ordinal_chosen {
                    entry.ordinal = Some(ledger.ordinal(entry.network, entry.app, &entry.process));
                    self.metrics.conflict("ordinal");
                }
            }
            if entry != before {
                changed.push(entry);
            }
        }
        for entry in &changed {
            self.journal.change(&entry.member, |e| *e = entry.clone());
            self.write(entry.clone());
        }
        !changed.is_empty()
    }

    /// Writes a changed entry of a member that is promised already; a failure is retried by the
    /// next change and loses no more than the change.
    fn write(&mut self, entry: Entry) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.put(&entry).await {
                tracing::error!(member = %entry.member, "journal: {error}");
            }
        });
    }

    /// Tells gossip what differs from what it was told.
    async fn publish(&mut self) {
        let Some(gossip) = self.gossip.clone() else { return };
        let target: BTreeMap<Key, Record> =
            self.journal.initial().into_iter().map(|record| (record.key(), record)).collect();
        // Networks before members, ends before beginnings: readers never see a member of a network
        // nobody has a word on.
        let gone = self.published.keys().filter(|k| !target.contains_key(k)).cloned().map(Change::Delete);
        let new = target.iter().filter(|(k, r)| self.published.get(k) != Some(r));
        let changes: Vec<Change> = new.map(|(_, r)| Change::Put(r.clone())).chain(gone).collect();
        if changes.is_empty() {
            return;
        }
        match gossip.publish(changes).await {
            Ok(()) => {
                self.published = target;
                self.view = gossip.view().borrow().clone();
            }
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
            judging: self.judging_from().is_ok_and(|from| from <= Instant::now()),
        });
    }

    /// From when on this host may judge who gets a thing; or why it may not.
    fn judging_from(&self) -> Result<Instant, &'static str> {
        let joined = self.joined_at.ok_or("this host has not joined the region yet; see `warren status`")?;
        if !self.view.whole {
            return Err("the region's records are not known whole yet; are the seeds reachable?");
        }
        Ok(joined + self.timings.hold)
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

    /// A built member becomes ready: it is listened for, and its record names only what is programmed.
    fn ready(&mut self, member: &MemberId) -> Result<Entry, Refusal> {
        let gone = || Refusal::new(RefusalKind::Conflict, "the member was detached while it was attached");
        let refused = self.context.built.borrow().without_ipv6.contains(member);
        let entry = self.journal.change(member, |e| {
            e.state = MemberState::Ready;
            e.address6 = e.address6.filter(|_| !refused);
        });
        let entry = entry.cloned().ok_or_else(gone)?;
        // Not before it is built: a socket bound while lo is down answers from another address.
        self.names.listen(&entry)?;
        Ok(entry)
    }

    fn claim(&mut self, call: Call, container: Container) -> Result<Claimed, Refusal> {
        let Call { network, container: id, request } = call;
        let same = |e: &&Entry| e.netns.cookie == container.netns.cookie && e.boot == self.boot;
        if let Some(entry) = self.journal.live().filter(|e| e.network == network).find(same) {
            return Ok(match entry.state {
                MemberState::Ready => Claimed::Existing(entry.clone()),
                _ => Claimed::Later(Instant::now() + AGAIN, "another call is attaching this container"),
            });
        }
        if let Some(entry) = self.journal.find(network, &id) {
            let detail =
                format!("container {id} is member {} of {network} with another namespace", entry.member);
            return Err(
                Refusal::new(RefusalKind::Conflict, detail).hint("detach it first, or give another --id")
            );
        }
        if let Some(twin) = self.view.twin {
            let detail =
                format!("another machine at {twin} runs as host {}: this one is fenced", self.here.host);
            return Err(
                Refusal::new(RefusalKind::Conflict, detail).hint("give one of the two its own certificate")
            );
        }
        match self.judging_from() {
            Ok(from) if from <= Instant::now() => {}
            Ok(from) => return Ok(Claimed::Later(from, "this host has only just joined the region")),
            Err(why) => return Ok(Claimed::Later(Instant::now() + AGAIN, why)),
        }
        if self.journal.live().count() >= gossip::record::MEMBERS_MAX {
            let detail =
                format!("this host has {} members, the most one host may have", gossip::record::MEMBERS_MAX);
            return Err(Refusal::new(RefusalKind::Conflict, detail));
        }
        let claim = self.ledger.network(network, DEFAULT_SUBNET);
        overlap(&container, network, claim.subnet)?;
        let promised = |name: &str| self.journal.live().filter(same).any(|e| e.ifname == name);
        let ifname = interface(request.ifname.as_deref(), &container, promised)?;
        let ordinal = self.ordinal(network, &request)?;
        let hosts: Vec<HostId> = self.view.hosts.keys().cloned().collect();
        let address = match request.address {
            Some(asked) => self.ledger.chosen_address(network, claim.subnet, asked).map_err(conflict)?,
            None => self
                .ledger
                .address(network, claim.subnet, &self.here.host, &hosts, &mut rand::rng())
                .map_err(conflict)?,
        };
        let mtu = project::wireguard_mtu(&self.view, &self.here);
        let entry = Entry {
            member: MemberId::random(),
            container: id,
            network,
            claim,
            app: request.app,
            process: request.process,
            ordinal: Some(ordinal),
            ordinal_chosen: request.ordinal.is_some(),
            netns: container.netns,
            inode: container.inode,
            boot: self.boot.clone(),
            ifname,
            address,
            address6: (container.ipv6 && mtu >= project::IPV6_MTU_MIN)
                .then(|| project::address6(network, address)),
            private_key: netplumb::state::PrivateKey::generate(),
            state: MemberState::Joining,
            counter: self.ledger.next_counter(),
        };
        self.journal.insert(entry.clone());
        Ok(Claimed::New(Box::new(entry), self.hosts_of(network)))
    }

    fn ordinal(&self, network: NetworkId, request: &crate::attach::Request) -> Result<u32, Refusal> {
        let Some(asked) = request.ordinal else {
            return Ok(self.ledger.ordinal(network, request.app, &request.process));
        };
        match self.ledger.ordinals.get(&(network, request.app, request.process.clone(), asked)) {
            None => Ok(asked),
            Some((host, _, member)) => Err(Refusal::new(
                RefusalKind::Conflict,
                format!("{asked}.{} is held by member {member} on host {host}", request.process),
            )
            .hint("leave --ordinal out for the next free one")),
        }
    }

    /// Other answering hosts with members of a network.
    fn hosts_of(&self, network: NetworkId) -> Vec<HostId> {
        let has = |h: &gossip::view::Host| {
            h.records.members.iter().any(|((pn, _), r)| *pn == network && r.state != MemberState::Released)
        };
        let answers = |h: &gossip::view::Host| {
            matches!(h.standing, gossip::standing::Standing::Answering | gossip::standing::Standing::Late)
        };
        let others = self.view.hosts.iter().filter(|(host, _)| **host != self.here.host);
        others.filter(|(_, h)| answers(h) && has(h)).map(|(host, _)| host.clone()).collect()
    }

    /// Another host's question: answered when the kernel has followed the record asked about.
    async fn hear(&mut self, ask: Ask) {
        let Ok(Question::Applied { network, member, counter }) = serde_json::from_slice(&ask.body) else {
            // Dropping the reply refuses: a newer version asks what this one does not know.
            tracing::debug!(from = %ask.from, "a question of an unknown kind");
            return;
        };
        let deadline = Instant::now() + APPLIED_BOUND;
        self.pending.push(Pending {
            from: ask.from,
            network,
            member,
            counter,
            deadline,
            revision: None,
            reply: ask.reply,
        });
        self.answer_pending();
        let unknown = self.pending.iter().filter(|p| p.revision.is_none()).map(|p| p.from.clone()).last();
        if let (Some(gossip), Some(from)) = (&self.gossip, unknown) {
            gossip.pull(&from);
        }
    }

    fn answer_pending(&mut self) {
        let built = self.context.built.borrow().revision;
        let now = Instant::now();
        for mut pending in std::mem::take(&mut self.pending) {
            let concerned = self.journal.durable().any(|e| e.network == pending.network);
            let known = self.view.hosts.get(&pending.from).is_some_and(|h| {
                let record = h.records.members.get(&(pending.network, pending.member.clone()));
                record.is_some_and(|r| r.counter >= pending.counter)
            });
            if known && pending.revision.is_none() {
                pending.revision = Some(self.revision);
            }
            if !concerned || pending.revision.is_some_and(|revision| built >= revision) {
                let _ = pending.reply.send(b"true".to_vec());
            } else if now < pending.deadline {
                self.pending.push(pending);
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
        // Whether claims can be made depends on the time.
        self.tell();
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

/// How long a question about a record waits for the kernel.
const APPLIED_BOUND: Duration = Duration::from_secs(2);
/// How soon a claim that cannot be made yet is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long after a refused join the next is tried.
const JOIN_RETRY: Duration = Duration::from_secs(5);

fn conflict(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Conflict, error.to_string())
}

/// The view of a host that has just started: the others as it last saw them.
fn known_view(known: &[KnownHost]) -> View {
    let mut view = View::default();
    for host in known {
        let decode = |(key, value): (&String, &String)| Record::decode(host.host.as_str(), key, value).ok();
        let (mut networks, mut members, mut own) = (BTreeMap::new(), BTreeMap::new(), None);
        for record in host.key_values.iter().filter_map(decode) {
            match record {
                Record::Host(record) => own = Some(record),
                Record::Network(pn, record) => drop(networks.insert(pn, record)),
                Record::Member(pn, member, record) => drop(members.insert((pn, member), record)),
            }
        }
        let Some(own) = own else { continue };
        let records = gossip::view::HostRecords { host: own, networks, members };
        view.hosts.insert(
            host.host.clone(),
            gossip::view::Host {
                generation: host.generation,
                version: host.version,
                address: host.address,
                standing: gossip::Standing::Answering,
                records: Arc::new(records),
            },
        );
    }
    view
}

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
