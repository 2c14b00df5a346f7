//! The one task around chitchat: what is published, what is seen, and whether both still hold.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, ProtocolVersion,
};
use rand::seq::IteratorRandom as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::config::Config;
use crate::greeting::Greeting;
use crate::id::HostId;
use crate::merge::{Sighting, ViewBuilder};
use crate::own::OwnRecords;
use crate::record::{HostRecord, Record};
use crate::seeds::Seeds;
use crate::standing::Standing;
use crate::transport::{ADMISSION_BYTES_MAX, Gate, WireTransport, digest_bytes};
use crate::view::View;
use crate::wire::Wire;
use crate::{Change, JoinError, PublishError};

/// Longest pause between two looks at chitchat.
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(100);
/// One in so many intervals a seed is gossiped with even when all is well: two halves of a region
/// that never knew each other meet there.
const SEED_PERIOD: u64 = 10;
/// How long a leaving agent waits for its goodbye to be sent, and for the wire to close.
const GOODBYE_BOUND: Duration = Duration::from_millis(500);
const CLOSE_BOUND: Duration = Duration::from_millis(400);

/// Stores a generation before it is used.
pub(crate) type Persist = Box<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// What the handles ask of the task.
pub(crate) enum Command {
    Publish { changes: Vec<Change>, done: oneshot::Sender<Result<(), PublishError>> },
    Pull(SocketAddr),
    Greet { from: HostId, address: SocketAddr, reply: oneshot::Sender<Vec<u8>> },
    Leave { away: Option<u32>, done: oneshot::Sender<()> },
}

/// Everything the task owns.
pub(crate) struct Seat {
    config: Config,
    wire: Arc<dyn Wire>,
    gate: Arc<Gate>,
    persist: Persist,
    seeds: watch::Receiver<Seeds>,
    chitchat: ChitchatHandle,
    /// Shared with the handles, which only read it.
    generation: Arc<AtomicU64>,
    own: OwnRecords,
    builder: ViewBuilder,
    views: watch::Sender<Arc<View>>,
    /// Since when chitchat knows a newer generation of this host that nobody lives in.
    superseded: Option<Instant>,
    ended: bool,
    last_restart: Option<Instant>,
    intervals: u64,
}

impl Seat {
    /// Publishes the records in a first generation, above every one seen of this host.
    pub(crate) async fn take(
        config: Config,
        wire: Arc<dyn Wire>,
        own: OwnRecords,
        persist: Persist,
        seeds: watch::Receiver<Seeds>,
        seen: Option<u64>,
    ) -> Result<Self, JoinError> {
        let generation =
            (config.now_ns)().max(config.generation_floor).max(seen.map_or(0, |seen| seen.saturating_add(1)));
        persist(generation).map_err(JoinError::Persist)?;
        let gate = Gate::new();
        let chitchat = start(&config, &wire, &gate, generation, &own).await.map_err(JoinError::Start)?;
        let builder =
            ViewBuilder::new(&config.host, &config.known, config.timings, wire.counters(), Instant::now());
        let mut seat = Self {
            config,
            wire,
            gate,
            persist,
            seeds,
            chitchat,
            generation: Arc::new(AtomicU64::new(generation)),
            own,
            builder,
            views: watch::Sender::default(),
            superseded: None,
            ended: false,
            last_restart: None,
            intervals: 0,
        };
        seat.look().await;
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
        let mut looks = ticks(LOOK_PAUSE_MAX.min(self.config.interval / 4));
        let mut news = self.gate.news();
        let mut intervals = ticks(self.config.interval);
        let mut ended = Box::pin(self.chitchat.termination_watcher());
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => if self.obey(command).await.is_break() { return },
                    None => return,
                },
                // At once when something may have changed; by the clock for what only time changes.
                _ = async { tokio::select! { _ = looks.tick() => {} Ok(()) = news.changed() => {} } } => {
                    let whole_own = self.look().await;
                    if !whole_own && self.restart().await {
                        ended = Box::pin(self.chitchat.termination_watcher());
                    }
                }
                _ = intervals.tick() => self.reach_out(),
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
            Command::Pull(address) => self.gossip(address),
            Command::Greet { from, address, reply } => {
                let greeting = self.greeting(&from, address).await;
                _ = reply.send(greeting.encode());
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
        {
            let chitchat = self.chitchat.chitchat();
            let mut chitchat = chitchat.lock().await;
            let state = chitchat.self_node_state();
            // Into a state that somebody else has written nothing is set: the next generation will
            // hold the change.
            let intact = self.own.holds(state);
            self.own.change(changes, intact.then_some(state))?;
        }
        self.look().await;
        self.spread();
        Ok(())
    }

    /// Looks at what chitchat holds and publishes the view when it changed. Returns whether our own
    /// state in it is as we set it.
    async fn look(&mut self) -> bool {
        let now = Instant::now();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let intact = self.own.holds(chitchat.self_node_state());
        let generation = self.generation.load(Ordering::Relaxed);
        let own = (generation, self.config.advertise);
        let changed = self.builder.look(own, sightings(&chitchat), now);
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
        if let Some(view) = changed {
            self.views.send_replace(view);
        }
        let settled = self.superseded.is_none_or(|since| now < since + self.config.timings.detection);
        intact && settled && !self.ended
    }

    /// Whether a newer generation of this host is known in which nobody lives: others follow it and
    /// do not see ours.
    fn is_superseded(&self, chitchat: &Chitchat, generation: u64) -> bool {
        let node_id = self.config.host.node_id();
        let newest = chitchat
            .node_states()
            .keys()
            .filter(|id| *id.node_id == *node_id)
            .max_by_key(|id| id.generation_id);
        newest.is_some_and(|id| {
            id.generation_id > generation && chitchat.failure_detection_timeout(id).is_none()
        })
    }

    /// Publishes everything anew in a higher generation; once per detection bound at most.
    async fn restart(&mut self) -> bool {
        let now = Instant::now();
        if self.last_restart.is_some_and(|last| now < last + self.config.timings.detection) {
            return false;
        }
        self.last_restart = Some(now);
        let previous = self.generation.load(Ordering::Relaxed);
        let seen = self.highest_seen(&self.config.host).await.unwrap_or(0).max(previous);
        let generation = (self.config.now_ns)().max(seen.saturating_add(1));
        tracing::warn!(
            previous,
            generation,
            ended = self.ended,
            "own gossip state is not what was published; starting a new generation"
        );
        if let Err(error) = (self.persist)(generation) {
            tracing::error!(%error, "the new generation cannot be persisted; trying again");
            return false;
        }
        self.chitchat.abort();
        match start(&self.config, &self.wire, &self.gate, generation, &self.own).await {
            Ok(chitchat) => self.chitchat = chitchat,
            Err(error) => {
                tracing::error!(%error, "gossip did not start; trying again");
                self.ended = true;
                return false;
            }
        }
        self.own.begin();
        self.generation.store(generation, Ordering::Relaxed);
        (self.ended, self.superseded) = (false, None);
        self.look().await;
        self.spread();
        true
    }

    async fn highest_seen(&self, host: &HostId) -> Option<u64> {
        let node_id = host.node_id();
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let states = chitchat.node_states().keys().filter(|id| *id.node_id == *node_id);
        states.map(|id| id.generation_id).max().max(self.builder.generation(&node_id))
    }

    async fn greeting(&self, from: &HostId, address: SocketAddr) -> Greeting {
        let generation = self.highest_seen(from).await;
        let node_id = from.node_id();
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let twin = chitchat.node_states().keys().find(|id| {
            *id.node_id == *node_id
                && id.gossip_advertise_addr != address
                && chitchat.failure_detection_timeout(id).is_some()
        });
        let twin = twin.map(|id| id.gossip_advertise_addr);
        let bytes = digest_bytes(chitchat.node_states().keys());
        let full = (generation.is_none() && bytes > ADMISSION_BYTES_MAX).then_some(bytes);
        Greeting { generation, twin, full }
    }

    /// Gossips beyond what chitchat picks: it never calls hosts whose grace is over, so that a long
    /// partition would not heal, and it knows no seeds.
    fn reach_out(&mut self) {
        self.intervals += 1;
        let view = self.builder.view().clone();
        let silent = view.hosts.values().filter(|host| !host.standing.answers()).map(|host| host.address);
        if let Some(address) = silent.choose(&mut rand::rng()) {
            self.gossip(address);
        }
        let alone = self.others_answering().next().is_none();
        if alone || !view.whole || self.intervals.is_multiple_of(SEED_PERIOD) {
            let seeds = self.seeds.borrow().addresses.clone();
            let known = view.hosts.values().map(|host| host.address).filter(|_| !view.whole);
            if let Some(address) = seeds.into_iter().chain(known).choose(&mut rand::rng()) {
                self.gossip(address);
            }
        }
    }

    /// Gossips at once with so many random hosts that the rest hears of it within few intervals.
    fn spread(&self) {
        let hosts = self.others_answering().count() + 1;
        let fan_out = (hosts as f64).ln().ceil() as usize + 3;
        let chosen = self.others_answering().sample(&mut rand::rng(), fan_out);
        for address in chosen {
            self.gossip(address);
        }
    }

    fn others_answering(&self) -> impl Iterator<Item = SocketAddr> {
        let others = self.builder.view().hosts.iter().filter(|(id, _)| **id != self.config.host);
        others
            .filter(|(_, host)| matches!(host.standing, Standing::Answering | Standing::Late))
            .map(|(_, host)| host.address)
    }

    fn gossip(&self, address: SocketAddr) {
        if address != self.config.advertise && self.chitchat.gossip(address).is_err() {
            tracing::debug!(%address, "gossip has ended; the next look starts it anew");
        }
    }

    async fn leave(&mut self, away: Option<u32>) {
        if let Some(host) = self.own.host() {
            let mut acks = self.gate.acks();
            let sent = *acks.borrow_and_update();
            let goodbye = HostRecord { away: Some(away.unwrap_or(0)), ..host };
            if let Err(error) = self.publish(vec![Change::Put(Record::Host(goodbye))]).await {
                tracing::warn!(%error, "no goodbye could be published");
            }
            let told = self.others_answering().count().min(3) as u64;
            // Without it the others find out by themselves.
            _ = time::timeout(GOODBYE_BOUND, acks.wait_for(|acks| *acks >= sent + told)).await;
        }
        self.chitchat.abort();
        if time::timeout(CLOSE_BOUND, self.wire.close()).await.is_err() {
            tracing::debug!("some peers did not take the goodbye in time");
        }
    }
}

fn ticks(period: Duration) -> time::Interval {
    let mut ticks = time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn sightings(chitchat: &Chitchat) -> impl Iterator<Item = Sighting<'_, impl Iterator<Item = (&str, &str)>>> {
    chitchat.node_states().iter().map(|(id, state): (&ChitchatId, &NodeState)| Sighting {
        node_id: &id.node_id,
        generation: id.generation_id,
        address: id.gossip_advertise_addr,
        max_version: state.max_version(),
        heartbeat: state.heartbeat().into(),
        // chitchat forgets the samples of those it finds dead, so that having a timeout is being
        // live; this costs one look-up where its set of live hosts would have to be copied.
        timeout: chitchat.failure_detection_timeout(id),
        key_values: state.key_values(),
    })
}

async fn start(
    config: &Config,
    wire: &Arc<dyn Wire>,
    gate: &Arc<Gate>,
    generation: u64,
    own: &OwnRecords,
) -> anyhow::Result<ChitchatHandle> {
    let chitchat_id = ChitchatId::new(config.host.node_id(), generation, config.advertise);
    let failure_detector_config = FailureDetectorConfig {
        phi_threshold: 8.0,
        // A small window forgets soon, so that detection is as quick after a day as after a minute.
        sampling_window_size: 100,
        max_interval: Duration::from_secs(10),
        initial_interval: Duration::from_secs(1).min(2 * config.interval),
        dead_node_grace_period: config.timings.grace,
    };
    let config = ChitchatConfig {
        chitchat_id,
        cluster_id: config.region.to_string(),
        gossip_interval: config.interval,
        listen_addr: config.listen,
        // Seeds are ours to call: chitchat would wait for their names before it starts.
        seed_nodes: Vec::new(),
        failure_detector_config,
        marked_for_deletion_grace_period: Duration::from_secs(15 * 60),
        catchup_callback: None,
        // Nobody watches chitchat's live nodes, and each change of them would copy all states.
        extra_liveness_predicate: Some(Box::new(|_| false)),
        protocol_version: ProtocolVersion::V1,
    };
    let transport = WireTransport { wire: wire.clone(), gate: gate.clone() };
    chitchat::spawn_chitchat(config, own.initial(), &transport).await
}

#[cfg(test)]
mod tests;
