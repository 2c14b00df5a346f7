//! The wire's twin in memory: agents of one process, with delays, losses and cuts.
//!
//! Envelopes travel as values. All waiting is on tokio's timers, all chance is `rand`'s, so that
//! under a paused clock and a seeded `getrandom` one seed is one history.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio::time;

use crate::counters::Counters;
use crate::id::{HostId, Region};
use crate::queue::Queue;
use crate::wire::{
    ANSWER_BYTES_MAX, AskError, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, Pushed, Question, Received, Refusal, Wire,
};

/// Envelopes one agent lets wait; the oldest is dropped beyond.
const WAITING_MAX: usize = 1024;
/// Frames one agent lets wait; the newest is dropped beyond.
const FRAMES_WAITING_MAX: usize = 256;

/// A network on which any number of [`MemoryWire`]s meet.
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    agents: BTreeMap<SocketAddr, Weak<Agent>>,
    delay: RangeInclusive<Duration>,
    loss: f64,
    /// Directed links over which nothing passes.
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl Default for Shared {
    fn default() -> Self {
        let delay = Duration::from_micros(300)..=Duration::from_micros(1500);
        Self { agents: BTreeMap::new(), delay, loss: 0.0, cuts: BTreeSet::new() }
    }
}

impl MemoryNetwork {
    /// A network without agents; links take 0.3 to 1.5 ms and lose nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// An agent at an address; it replaces an older one there.
    pub fn wire(&self, region: &Region, host: &HostId, address: SocketAddr) -> MemoryWire {
        let agent = Arc::new(Agent {
            region: region.clone(),
            host: host.clone(),
            address,
            envelopes: Queue::new(WAITING_MAX),
            frames: Queue::patient(FRAMES_WAITING_MAX),
            questions: Queue::new(WAITING_MAX),
            counters: Arc::default(),
        });
        self.lock().agents.insert(address, Arc::downgrade(&agent));
        MemoryWire { network: self.clone(), agent }
    }

    /// How long messages travel from now on.
    pub fn set_delay(&self, delay: RangeInclusive<Duration>) {
        self.lock().delay = delay;
    }

    /// Which share of the messages is lost from now on, 0 to 1.
    pub fn set_loss(&self, loss: f64) {
        self.lock().loss = loss;
    }

    /// Lets nothing pass from one address to another, until [`heal`](Self::heal).
    pub fn cut(&self, from: SocketAddr, to: SocketAddr) {
        self.lock().cuts.insert((from, to));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.lock().cuts.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the next message on a link travels; `None` when it is lost.
    fn travel(&self, from: SocketAddr, to: SocketAddr) -> Option<Duration> {
        let shared = self.lock();
        let lost =
            shared.cuts.contains(&(from, to)) || (shared.loss > 0.0 && rand::rng().random_bool(shared.loss));
        (!lost).then(|| rand::rng().random_range(shared.delay.clone()))
    }

    fn agent(&self, at: SocketAddr) -> Option<Arc<Agent>> {
        self.lock().agents.get(&at).and_then(Weak::upgrade)
    }
}

#[derive(Debug)]
struct Agent {
    region: Region,
    host: HostId,
    address: SocketAddr,
    envelopes: Queue<Received>,
    frames: Queue<Pushed>,
    questions: Queue<Question>,
    counters: Arc<Counters>,
}

impl Agent {
    /// What the hello of two agents settles on the real wire. Both count a refusal.
    fn refuses(&self, peer: &Agent) -> Option<Refusal> {
        let refusal = if peer.region != self.region {
            Refusal::Region(format!("{} is in {}, not in {}", peer.host, peer.region, self.region))
        } else if peer.host == self.host {
            Refusal::Twin { host: self.host.clone(), address: self.address }
        } else {
            return None;
        };
        self.counters.rejected(refusal.reason());
        peer.counters.rejected(refusal.reason());
        Some(refusal)
    }
}

/// One agent's end of a [`MemoryNetwork`]. Dropping it is a crash: nothing is said to anybody.
#[derive(Debug)]
pub struct MemoryWire {
    network: MemoryNetwork,
    agent: Arc<Agent>,
}

impl Drop for MemoryWire {
    fn drop(&mut self) {
        self.agent.envelopes.close();
        self.agent.frames.close();
        self.agent.questions.close();
    }
}

#[async_trait]
impl Wire for MemoryWire {
    fn advertise(&self) -> SocketAddr {
        self.agent.address
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        self.agent.counters.message("out", "envelope", 0);
        let from = self.agent.address;
        let Some(travel) = self.network.travel(from, to) else { return };
        let (network, sender) = (self.network.clone(), self.agent.clone());
        tokio::spawn(async move {
            time::sleep(travel).await;
            let Some(receiver) = network.agent(to) else { return };
            if receiver.refuses(&sender).is_some() {
                return;
            }
            receiver.counters.message("in", "envelope", 0);
            if receiver.envelopes.push(Received { from, envelope }).is_some() {
                receiver.counters.dropped("envelope");
            }
        });
    }

    async fn recv(&self) -> Option<Received> {
        self.agent.envelopes.pop().await
    }

    fn push(&self, to: SocketAddr, frame: Bytes) {
        if frame.len() > FRAME_BYTES_MAX {
            return self.agent.counters.dropped("frame");
        }
        self.agent.counters.message("out", "frame", frame.len());
        let from = self.agent.address;
        let Some(travel) = self.network.travel(from, to) else { return };
        let (network, sender) = (self.network.clone(), self.agent.clone());
        tokio::spawn(async move {
            time::sleep(travel).await;
            let Some(receiver) = network.agent(to) else { return };
            if receiver.refuses(&sender).is_some() {
                return;
            }
            receiver.counters.message("in", "frame", frame.len());
            if receiver.frames.push(Pushed { from, frame }).is_some() {
                receiver.counters.dropped("frame");
            }
        });
    }

    async fn pushed(&self) -> Option<Pushed> {
        self.agent.frames.pop().await
    }

    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(AskError::TooLong(body.len()));
        }
        let from = self.agent.address;
        self.agent.counters.message("out", "ask", body.len());
        self.pass(from, to).await;
        let Some(receiver) = self.network.agent(to) else { return std::future::pending().await };
        if let Some(refusal) = receiver.refuses(&self.agent) {
            return Err(refusal.into());
        }
        receiver.counters.message("in", "ask", body.len());
        let (reply, answer) = oneshot::channel();
        receiver.questions.push(Question { from: self.agent.host.clone(), address: from, body, reply });
        let answer = answer.await.map_err(|_| AskError::Unanswered("it dropped the question".into()))?;
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(AskError::Unanswered(format!("its answer has {} bytes", answer.len())));
        }
        self.pass(to, from).await;
        self.agent.counters.message("in", "answer", answer.len());
        Ok(answer)
    }

    async fn asked(&self) -> Option<Question> {
        self.agent.questions.pop().await
    }

    async fn close(&self) {
        self.agent.envelopes.close();
        self.agent.frames.close();
        self.agent.questions.close();
    }

    fn counters(&self) -> Arc<Counters> {
        self.agent.counters.clone()
    }
}

impl MemoryWire {
    /// Waits for a message to arrive: for ever, when it is lost.
    async fn pass(&self, from: SocketAddr, to: SocketAddr) {
        match self.network.travel(from, to) {
            Some(travel) => time::sleep(travel).await,
            None => std::future::pending().await,
        }
    }
}
