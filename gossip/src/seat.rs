//! The one task around chitchat: what is published, what is seen, and whether both still hold.

mod generation;
mod peers;
mod pull;
mod push;

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatHandle};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::config::Config;
use crate::eager::Eager;
use crate::id::HostId;
use crate::merge::{Beat, ViewBuilder};
use crate::own::OwnRecords;
use crate::record::{HostRecord, Record};
use crate::seeds::Seeds;
use crate::snapshot::{Served, Snapshot};
use crate::transport::{Gate, digest_bytes};
use crate::view::{Via, View};
use crate::wire::Wire;
use crate::{Change, JoinError, PublishError};
use pull::Pulled;

/// Pause between two looks at how the hosts live; longer where there are many of them.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
const LOOK_PAUSE_PER_HOST: Duration = Duration::from_millis(1);
/// Least time between two views for their readers, per host: where changes come in hundreds, many are followed at once.
const VIEW_PAUSE_PER_HOST: Duration = Duration::from_micros(30);
/// How long a leaving agent waits for its goodbye to be sent, and for the wire to close.
const GOODBYE_BOUND: Duration = Duration::from_millis(500);
const CLOSE_BOUND: Duration = Duration::from_millis(400);

/// Stores a generation before it is used.
pub(crate) type Persist = Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// What the handles ask of the task.
pub(crate) enum Command {
    Publish { changes: Vec<Change>, done: oneshot::Sender<Result<(), PublishError>> },
    Pull { node_id: String, address: SocketAddr },
    Tell { body: Vec<u8>, reply: oneshot::Sender<Vec<u8>> },
    Greet { from: HostId, address: SocketAddr, reply: oneshot::Sender<Vec<u8>> },
    Serve { to: SocketAddr, body: Vec<u8>, reply: oneshot::Sender<Vec<u8>> },
    Leave { away: Option<u32>, done: oneshot::Sender<()> },
}

/// What does not change while this host is in the region.
pub(crate) struct Stay {
    pub(crate) config: Config,
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) persist: Persist,
    pub(crate) seeds: watch::Receiver<Seeds>,
}

/// Everything the task owns.
pub(crate) struct Seat {
    stay: Stay,
    gate: Arc<Gate>,
    chitchat: ChitchatHandle,
    /// Shared with the handles, which only read it.
    generation: Arc<AtomicU64>,
    own: OwnRecords,
    eager: Eager,
    builder: ViewBuilder,
    views: watch::Sender<Arc<View>>,
    /// When the readers got the last view, and whether another waits for them.
    told: Instant,
    untold: bool,
    /// When it was last looked at how the hosts live.
    looked: Instant,
    served: Served,
    /// Asking for a snapshot, while the region is not known whole.
    asking: Option<BoxFuture<'static, Option<Snapshot>>>,
    /// Asking for what is missing of one host.
    pulls: FuturesUnordered<BoxFuture<'static, Pulled>>,
    /// Since when chitchat knows a newer generation of this host that nobody lives in.
    superseded: Option<Instant>,
    ended: bool,
    last_restart: Option<Instant>,
    intervals: u64,
}

impl Seat {
    /// Publishes the records in a first generation, above every one seen of this host.
    pub(crate) async fn take(
        stay: Stay,
        own: OwnRecords,
        builder: ViewBuilder,
        snapshot: Option<Snapshot>,
        seen: Option<u64>,
    ) -> Result<Self, JoinError> {
        let config = &stay.config;
        let generation =
            (config.now_ns)().max(config.generation_floor).max(seen.map_or(0, |seen| seen.saturating_add(1)));
        (stay.persist)(generation).map_err(JoinError::Persist)?;
        let gate = Gate::new();
        let chitchat =
            generation::start(config, &stay.wire, &gate, generation, &own).await.map_err(JoinError::Start)?;
        let eager = Eager::new(config.parsed.clone());
        let mut seat = Self {
            stay,
            gate,
            chitchat,
            generation: Arc::new(AtomicU64::new(generation)),
            own,
            eager,
            builder,
            views: watch::Sender::default(),
            told: Instant::now(),
            untold: false,
            looked: Instant::now(),
            served: Served::default(),
            asking: None,
            pulls: FuturesUnordered::new(),
            superseded: None,
            ended: false,
            last_restart: None,
            intervals: 0,
        };
        if let Some(snapshot) = snapshot {
            let names = seat.stay.config.parsed.clone();
            seat.chitchat.with_chitchat(|chitchat| snapshot.apply(chitchat, &names)).await;
        }
        seat.begin(generation).await;
        Ok(seat)
    }

    pub(crate) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    pub(crate) fn generation(&self) -> Arc<AtomicU64> {
        self.generation.clone()
    }

    /// Runs until the region is left, or every handle is dropped.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let wire = self.stay.wire.clone();
        let mut news = self.gate.news();
        let mut look = Box::pin(time::sleep_until(Instant::now()));
        let mut intervals = ticks(self.stay.config.interval);
        let mut ended = Box::pin(self.chitchat.termination_watcher());
        loop {
            let (flush, tell) = (self.eager.due(), self.untold.then(|| self.tell_at()));
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => if self.obey(command).await.is_break() { return },
                    None => return,
                },
                Some(pushed) = wire.pushed(), if self.stay.config.eager => self.hear_frames(pushed).await,
                () = at(flush) => self.push_own().await,
                () = at(tell) => self.tell(),
                Ok(()) = news.changed() => self.read().await,
                () = &mut look => {
                    let whole_own = self.look().await;
                    if !whole_own && self.restart().await {
                        ended = Box::pin(self.chitchat.termination_watcher());
                    }
                    look.as_mut().reset(Instant::now() + self.look_pause());
                }
                _ = intervals.tick() => self.reach_out(),
                Some(snapshot) = asked(&mut self.asking) => self.land(snapshot).await,
                Some(pulled) = self.pulls.next() => self.take_pulled(pulled).await,
                result = &mut ended, if !self.ended => {
                    tracing::error!(?result, "the gossip task ended");
                    self.ended = true;
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) -> ControlFlow<()> {
        // Whoever waits for an outcome may have given up; what was done stands.
        match command {
            Command::Publish { changes, done } => {
                let published = self.publish(changes).await;
                _ = done.send(published);
            }
            Command::Pull { node_id, address } => self.pull(&node_id, address),
            Command::Tell { body, reply } => {
                // Dropping the reply leaves it to chitchat.
                if let Some(answer) = self.tell_missing(&body).await {
                    _ = reply.send(answer);
                }
            }
            Command::Greet { from, address, reply } => {
                let greeting = self.greeting(&from, address).await;
                _ = reply.send(greeting.encode());
            }
            Command::Serve { to, body, reply } => {
                let answer = self.serve(to, &body).await;
                _ = reply.send(answer);
            }
            Command::Leave { away, done } => {
                self.leave(away).await;
                _ = done.send(());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    async fn publish(&mut self, changes: Vec<Change>) -> Result<(), PublishError> {
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        // Into a state that somebody else has written nothing is set: the next generation will hold
        // the change.
        let intact = self.own.holds(state);
        let before = self.own.version();
        self.own.change(changes, intact.then_some(state))?;
        if self.own.version() > before {
            self.eager.changed(before, Instant::now());
        }
        self.read_held(&chitchat);
        self.tell();
        Ok(())
    }

    /// Looks at how the hosts live, besides reading what is new. Returns whether our own state is as
    /// we set it.
    async fn look(&mut self) -> bool {
        let now = Instant::now();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let intact = self.own.holds(chitchat.self_node_state());
        let generation = self.generation.load(Ordering::Relaxed);
        self.read_held(&chitchat);
        let still = now - std::mem::replace(&mut self.looked, now);
        if still > self.stay.config.timings.hold {
            // Nobody was silent: it was this host that did not listen.
            tracing::warn!(?still, "this agent stood still: suspended, or starved of CPU");
            self.builder.renew(now);
        }
        self.builder.hear(beats(&chitchat), now);
        self.superseded = match self.is_superseded(&chitchat, generation) {
            true => self.superseded.or(Some(now)),
            false => None,
        };
        let was_open = self.gate.is_open();
        let bytes = digest_bytes(chitchat.node_states().keys());
        if !self.gate.admit(bytes) && was_open {
            tracing::error!(
                bytes,
                "the region's digest is near what gossip can carry; no SYN is answered until hosts leave"
            );
        }
        self.tell();
        let settled = self.superseded.is_none_or(|since| now < since + self.stay.config.timings.detection);
        intact && settled && !self.ended
    }

    /// Reads what chitchat has taken in.
    async fn read(&mut self) {
        let chitchat = self.chitchat.chitchat();
        self.read_held(&*chitchat.lock().await);
        self.tell_soon();
    }

    fn read_held(&mut self, chitchat: &Chitchat) {
        let now = Instant::now();
        for (owner, state) in self.builder.moved(chitchat.node_states().iter()) {
            self.builder.see(owner, state, Via::Chitchat, now);
        }
    }

    /// Gives the readers the view, at once after a quiet while, else when it is time.
    fn tell_soon(&mut self) {
        self.untold = true;
        if Instant::now() >= self.tell_at() {
            self.tell();
        }
    }

    fn tell_at(&self) -> Instant {
        self.told + VIEW_PAUSE_PER_HOST * self.hosts()
    }

    fn tell(&mut self) {
        self.untold = false;
        if let Some(view) = self.builder.build() {
            self.told = Instant::now();
            self.views.send_replace(view);
        }
    }

    fn look_pause(&self) -> Duration {
        let interval = self.stay.config.interval;
        LOOK_PAUSE.min(interval / 4).max(LOOK_PAUSE_PER_HOST * self.hosts()).min(interval)
    }

    fn hosts(&self) -> u32 {
        u32::try_from(self.builder.view().hosts.len()).unwrap_or(u32::MAX)
    }

    async fn leave(&mut self, away: Option<u32>) {
        if let Some(host) = self.own.host() {
            let mut acks = self.gate.acks();
            let sent = *acks.borrow_and_update();
            let goodbye = HostRecord { away: Some(away.unwrap_or(0)), ..host };
            if let Err(error) = self.publish(vec![Change::Put(Record::Host(goodbye))]).await {
                tracing::warn!(%error, "no goodbye could be published");
            }
            self.push_own().await;
            // A frame's arrival is not heard of; that of an ACK, which carries the goodbye too, is.
            let told = self.gossip_around() as u64;
            // Without it the others find out by themselves.
            _ = time::timeout(GOODBYE_BOUND, acks.wait_for(|acks| *acks >= sent + told)).await;
        }
        self.chitchat.abort();
        if time::timeout(CLOSE_BOUND, self.stay.wire.close()).await.is_err() {
            tracing::debug!("some peers did not take the goodbye in time");
        }
    }
}

fn ticks(period: Duration) -> time::Interval {
    let mut ticks = time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Never, while there is no such moment.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What was asked for, once; never, while nothing is asked.
async fn asked(asking: &mut Option<BoxFuture<'static, Option<Snapshot>>>) -> Option<Snapshot> {
    let Some(answer) = asking else { return std::future::pending().await };
    let snapshot = answer.await;
    *asking = None;
    snapshot
}

fn beats(chitchat: &Chitchat) -> impl Iterator<Item = Beat<'_>> {
    chitchat.node_states().iter().map(|(owner, state)| Beat {
        owner,
        heartbeat: state.heartbeat().into(),
        version: state.max_version(),
        // chitchat forgets the samples of those it finds dead, so that having a timeout is being
        // live; this costs one look-up where its set of live hosts would have to be copied.
        timeout: chitchat.failure_detection_timeout(owner),
    })
}

#[cfg(test)]
mod tests;
