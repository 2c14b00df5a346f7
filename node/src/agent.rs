//! The agent: wiring and the one select loop. Local intent becomes this host's records; the view
//! becomes what the kernel should hold and what names resolve. Nothing downstream writes upstream.

mod building;
mod claim;
mod contested;
mod drain;
mod endpoint;
mod event;
mod explain;
mod follow;
mod forwarding;
mod join;
mod network;
mod question;
mod reconcile;
mod start;
mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{Key, NetworkRecord, Record};
use gossip::view::HostRecords;
use gossip::{Ask, Gossip, View};
use ipnet::Ipv4Net;
use netplumb::kernel::{Container, Kernel};
use netplumb::state::{Desired, Ours};
use resolver::Zone;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};

pub use event::{Event, EventKind};
pub use explain::ping;
pub use question::{Inquiry, Remembered};
pub use reconcile::Built;
pub use start::start;

use crate::attach::{Binding, Call, Claimed, Context, Naming, Refusal, Reservation, Round};
use crate::claims::{Answer, Bench, Grants, Ledger, MemberKey, Question, Told};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::names::{Listen, Names};
use crate::project::Here;
use crate::store::{Entry, Store};
use building::Building;
use event::Events;
use join::{Join, Joined};
use question::Pending;
use reconcile::Wanted;

/// How often the containers of own members are looked at, and quarantines end.
const TICK: Duration = Duration::from_secs(1);
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
    /// Where containers' queries arrive.
    pub listen: Arc<dyn Listen>,
}

/// What everybody may read of a running agent.
#[derive(Clone)]
pub struct Snapshot {
    /// The region as seen from here.
    pub view: Arc<View>,
    /// Own members.
    pub journal: Arc<Journal>,
    /// Names by network, of the networks with members here.
    pub zones: Arc<BTreeMap<NetworkId, Arc<Zone>>>,
    /// This host's generation; 0 before it has joined.
    pub generation: u64,
    /// Why this host has not joined the region, when it has not.
    pub unjoined: Option<String>,
    /// What happened here that is worth telling, oldest first; the last few hundred.
    pub events: Arc<VecDeque<Event>>,
    /// MTU of every member's interface, in bytes.
    pub mtu: u32,
}

impl Snapshot {
    /// Who holds what in the view.
    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.view)
    }
}

/// A message of a task to the loop.
pub enum Step {
    /// Claim what a new member needs and publish it as joining, given what judges have said so far.
    Claim(Box<(Call, Container)>, Box<Told>, oneshot::Sender<Round<Claimed>>),
    /// Claim an address for a member that will be named later, given what judges have said so far.
    Reserve(Box<Reservation>, Box<Told>, oneshot::Sender<Round<Entry>>),
    /// Say whose a reserved address is.
    Bind(Box<Binding>, Box<Told>, oneshot::Sender<Round<Bound>>),
    /// Say who a member is that was bound without it.
    Name(Box<(MemberId, Naming)>, Box<Told>, oneshot::Sender<Round<Entry>>),
    /// A runtime has taken a held member into its container, which has IPv6 or not.
    Take(Box<Entry>, bool, oneshot::Sender<()>),
    /// Give a contested member what it needs instead.
    Move(MemberId, Box<Told>, oneshot::Sender<Round<()>>),
    /// Another host has said which members it remembers of this one.
    TakeOver(Vec<Remembered>),
    /// Ask a host what it has or what comes back of what it sends; a reason when it does not answer.
    Inquire {
        /// The host; this one too.
        host: HostId,
        /// What is asked.
        inquiry: Inquiry,
        /// How long to wait.
        bound: Duration,
        /// Its answer in JSON.
        reply: oneshot::Sender<Result<Vec<u8>, String>>,
    },
    /// Ask a judge; nothing comes back when it does not answer in time.
    Ask(HostId, Question, oneshot::Sender<Option<Answer>>),
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
    /// Nothing but an answer, which says that the loop turns.
    Turn(oneshot::Sender<()>),
    /// Make a network here, given what judges have said so far.
    Create(NetworkId, Option<Ipv4Net>, Box<Told>, oneshot::Sender<Round<NetworkRecord>>),
    /// Forget a network made here. Answers whether there was one.
    Forget(NetworkId, oneshot::Sender<Result<bool, Refusal>>),
    /// Whether other names are passed on for a network's containers.
    Forward(NetworkId, bool, oneshot::Sender<Result<Option<NetworkRecord>, Refusal>>),
    /// Take no new members, and lead names to those here no more; or take that back.
    Drain(bool, oneshot::Sender<Result<(), Refusal>>),
    /// The member ends. Answers the revision to wait for.
    Release(MemberId, oneshot::Sender<u64>),
}

/// A member that was bound, and the hosts that have members of its network.
type Bound = (Entry, Vec<HostId>);

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

/// The loop's state.
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
    /// The view as gossip has it.
    view: Arc<View>,
    own: Own,
    /// The view with this host's intent in it, as followed last.
    followed: Arc<View>,
    /// Who holds what in it.
    ledger: Ledger,
    /// Who judges, by it.
    bench: Bench,
    grants: Grants,
    /// Networks without members here that were asked about lately: their books stay open.
    asked: BTreeSet<NetworkId>,
    journal: Arc<Journal>,
    /// The journal whose records gossip was last told.
    published: Option<(Arc<Journal>, BTreeMap<Key, Record>)>,
    /// When members were first seen, as long as that is a short while ago and their hosts have not heard in time that
    /// they are here.
    young: BTreeMap<MemberKey, Instant>,
    pending: Vec<Pending>,
    building: Building,
    /// What the kernel was last wanted to hold, and the MTU it was projected with.
    desired: Desired,
    mtu: u32,
    /// Networks that can only be projected whole.
    tangled: BTreeSet<NetworkId>,
    revision: u64,
    want: watch::Sender<Wanted>,
    snapshot: watch::Sender<Snapshot>,
    /// The journal is whole, or the members whose entries were lost have been looked for.
    taken_over: bool,
    /// Members that were detached before anybody could say whether they are here.
    disowned: BTreeSet<MemberId>,
    /// Own members that are being given other things.
    moving: BTreeSet<MemberId>,
    /// What a runtime asked for and has not used yet, and since when.
    unused: BTreeMap<MemberId, Instant>,
    /// How many own members may be re-addressed until the next tick.
    readdresses_left: usize,
    events: Events,
    /// When it was last said that no seed answers.
    lonely_told: Option<Instant>,
    seeds: Vec<String>,
    watching: Option<tokio::task::AbortHandle>,
    /// Generations and versions of the hosts as last written down, and when they may be again.
    remembered: Vec<(u64, u64)>,
    remember_from: Option<Instant>,
    tasks: JoinSet<()>,
}

/// What follows from the journal alone.
#[derive(Default)]
struct Own {
    journal: Option<Arc<Journal>>,
    /// This host's own records.
    records: Option<Arc<HostRecords>>,
    /// What is this host's in the kernel.
    ours: Arc<Ours>,
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
        // Often enough to find out that the loop had stalled before it judges.
        let mut beat = interval_of(self.timings.hold / 2);
        self.follow().await;
        loop {
            // Before anything else: the kernel is what others wait for.
            self.build_next().await;
            let pull = self.next_pull();
            tokio::select! {
                _ = &mut stopped => break,
                Some(answer) = joined.recv() => {
                    self.bench.beat(Instant::now());
                    match answer {
                        Joined::Arrived(arrival) => self.arrive(*arrival, &join, &joins).await,
                        Joined::In(gossip, inbox) => {
                            views = Some(gossip.view());
                            asks = Some(inbox);
                            self.enter(gossip).await;
                        }
                        Joined::Not(error) => {
                            tracing::error!("not joined: {error}; trying again in {} s", JOIN_RETRY.as_secs());
                            self.unjoined = Some(error);
                            self.tell();
                            self.try_join(&join, &joins, JOIN_RETRY);
                        }
                    }
                }
                Some(view) = changed(&mut views) => {
                    self.bench.beat(Instant::now());
                    self.view = view;
                    self.follow().await;
                }
                Some(ask) = next(&mut asks) => {
                    self.bench.beat(Instant::now());
                    self.hear(ask);
                }
                Some(step) = steps.recv() => {
                    self.bench.beat(Instant::now());
                    self.step(step).await;
                }
                Ok(()) = built.changed() => {
                    let built = built.borrow_and_update().clone();
                    self.on_built(&built).await;
                }
                _ = beat.tick() => self.bench.beat(Instant::now()),
                () = sleep_until(pull.unwrap_or_else(Instant::now)), if pull.is_some() => self.pull_missed(),
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

    async fn enter(&mut self, gossip: Gossip) {
        let now = Instant::now();
        let generation = gossip.generation();
        tracing::info!(region = %self.here.region, host = %self.here.host, generation, "joined");
        self.events
            .note(EventKind::Joined, format!("joined {} as generation {generation}", self.here.region));
        self.view = gossip.view().borrow().clone();
        // What was published at the join may be older than the journal: told again, same values
        // are not sent.
        self.published = None;
        // What was there before this host is not young.
        self.follow().await;
        self.gossip = Some(gossip);
        self.joined_at = Some(now);
        self.bench.publish(now);
        self.unjoined = None;
        self.follow().await;
    }
}

/// How long after a refused join the next is tried.
const JOIN_RETRY: Duration = Duration::from_secs(5);

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
