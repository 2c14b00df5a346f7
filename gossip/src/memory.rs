//! The wire's twin in memory: agents of one process, with delays, losses and cuts.
//!
//! Envelopes travel as values. All waiting is on tokio's timers, all chance is `rand`'s, so that
//! under a paused clock and a seeded `getrandom` one seed is one history.

mod lane;
mod link;
mod meter;
mod pump;

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{self, Instant};

use crate::counters::Counters;
use crate::id::{HostId, Region};
use crate::queue::Queue;
use crate::wire::{
    ANSWER_BYTES_MAX, AskError, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, Pushed, Question, Received, Refusal, Wire,
};
use lane::{Lane, relay};
use link::{Arrivals, Journey, Links};
pub use link::{Delay, Link};
use meter::Meter;

/// Envelopes or questions one agent lets wait; the oldest is dropped beyond.
const WAITING_MAX: usize = 1024;
/// Frames one agent lets wait; the newest is dropped beyond.
const FRAMES_WAITING_MAX: usize = 256;
/// An envelope or a frame that its sender's network card takes no sooner is dropped, as on QUIC.
const WRITE_BOUND: Duration = Duration::from_secs(5);

/// A network on which any number of [`MemoryWire`]s meet.
#[derive(Debug, Clone)]
pub struct MemoryNetwork {
    network: Arc<Network>,
    /// Where its next agents run.
    lane: usize,
}

#[derive(Debug)]
struct Network {
    shared: Mutex<Shared>,
    /// The first is the runtime of whoever made the network.
    lanes: Vec<Lane>,
}

#[derive(Debug, Default)]
struct Shared {
    agents: BTreeMap<SocketAddr, Arc<Agent>>,
    /// In which lane the agents of an address run.
    homes: BTreeMap<SocketAddr, usize>,
    links: Links,
}

impl Default for MemoryNetwork {
    fn default() -> Self {
        Self::of_lanes([])
    }
}

impl MemoryNetwork {
    /// A network without agents, whose links are [`Link::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// A network with more lanes beside the first: runtimes whose threads run side by side, one millisecond of their
    /// paused clocks after the other. tokio's timers round what travels faster up to one, so that what goes from lane to lane can wait until the
    /// millisecond is over in all of them: see [`exchange`](Self::exchange). All clocks begin at one moment, no task
    /// of a lane wakes one of another, and no link has a [`bandwidth`](Link::bandwidth), for whose cards lanes would
    /// race.
    pub fn of_lanes(runtimes: impl IntoIterator<Item = Handle>) -> Self {
        let lanes = [None].into_iter().chain(runtimes.into_iter().map(Some)).map(Lane::new).collect();
        Self { network: Arc::new(Network { shared: Mutex::default(), lanes }), lane: 0 }
    }

    /// The same network, whose next agents run in lane `lane`, 0 being the first.
    pub fn lane(&self, lane: usize) -> Self {
        Self { network: self.network.clone(), lane }
    }

    /// Hands over what goes from lane to lane. Nothing may run in any of them meanwhile.
    pub fn exchange(&self) {
        for lane in &self.network.lanes {
            lane.parcels().into_iter().for_each(|parcel| parcel(&self.network));
        }
    }

    /// An agent at an address; it replaces an older one there.
    pub fn wire(&self, region: &Region, host: &HostId, address: SocketAddr) -> MemoryWire {
        let agent = Arc::new(Agent {
            region: region.clone(),
            host: host.clone(),
            address,
            lane: self.lane,
            envelopes: Queue::new(WAITING_MAX),
            frames: Queue::patient(FRAMES_WAITING_MAX),
            questions: Queue::new(WAITING_MAX),
            meter: Mutex::default(),
            counters: Arc::default(),
        });
        let mut shared = lock(&self.network.shared);
        shared.agents.insert(address, agent.clone());
        shared.homes.insert(address, self.lane);
        drop(shared);
        MemoryWire { network: self.network.clone(), agent }
    }

    /// What all links are like from now on, but for those of [`set_link`](Self::set_link).
    pub fn set_links(&self, link: Link) {
        self.assert_fair(&link);
        self.links(|links| links.default = link);
    }

    /// What the link from one address to another is like from now on.
    pub fn set_link(&self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.assert_fair(&link);
        self.links(|links| links.special.insert((from, to), link));
    }

    /// Makes all links alike again.
    pub fn reset_links(&self) {
        self.links(|links| links.special.clear());
    }

    /// Lets nothing that is sent from now on pass from one address to another.
    pub fn cut(&self, from: SocketAddr, to: SocketAddr) {
        self.links(|links| links.cuts.insert((from, to)));
    }

    /// Undoes a [`cut`](Self::cut).
    pub fn mend(&self, from: SocketAddr, to: SocketAddr) {
        self.links(|links| links.cuts.remove(&(from, to)));
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        self.links(|links| links.cuts.clear());
    }

    /// Starves a host of CPU: all it sends and all it is sent is so much later. Its own timers are not,
    /// for all hosts share one clock.
    pub fn set_slow(&self, host: SocketAddr, late: Option<Duration>) {
        self.links(|links| match late {
            Some(late) => links.slow.insert(host, late),
            None => links.slow.remove(&host),
        });
    }

    fn assert_fair(&self, link: &Link) {
        assert!(
            self.network.lanes.len() == 1 || link.bandwidth.is_none(),
            "lanes would race for network cards"
        );
    }

    fn links<T>(&self, change: impl FnOnce(&mut Links) -> T) {
        change(&mut lock(&self.network.shared).links);
    }
}

impl Network {
    fn agent(&self, at: SocketAddr) -> Option<Arc<Agent>> {
        lock(&self.shared).agents.get(&at).cloned()
    }

    fn travel(&self, journey: Journey) -> Arrivals {
        lock(&self.shared).links.travel(Instant::now(), journey, &mut rand::rng())
    }

    /// Has a message carried to its receiver.
    fn fly(self: &Arc<Self>, at: Instant, from: &Arc<Agent>, to: SocketAddr, mut message: Message) {
        let (here, there) = (from.lane, self.home(to).unwrap_or(from.lane));
        let from = from.clone();
        self.across(here, there, move |network| {
            if let (true, Message::Question { heard, .. }) = (here != there, &mut message) {
                relay(network, there, here, heard);
            }
            network.take_off(there, at, from, to, message);
        });
    }

    fn home(&self, of: SocketAddr) -> Option<usize> {
        if self.lanes.len() == 1 { Some(0) } else { lock(&self.shared).homes.get(&of).copied() }
    }
}

/// What goes from agent to agent.
#[derive(Debug)]
enum Message {
    Envelope { envelope: ChitchatEnvelope, bytes: usize },
    Frame(Bytes),
    Question { body: Vec<u8>, heard: oneshot::Sender<Heard> },
}

/// Where the answer to a question comes, when it is taken.
type Heard = Result<oneshot::Receiver<Vec<u8>>, Refusal>;

#[derive(Debug)]
struct Agent {
    region: Region,
    host: HostId,
    address: SocketAddr,
    lane: usize,
    envelopes: Queue<Received>,
    frames: Queue<Pushed>,
    questions: Queue<Question>,
    meter: Mutex<Meter>,
    counters: Arc<Counters>,
}

impl Agent {
    fn close(&self) {
        self.envelopes.close();
        self.frames.close();
        self.questions.close();
    }

    fn receive(&self, sender: &Agent, message: Message) {
        let refusal = self.refusal(sender);
        let from = sender.address;
        match message {
            Message::Question { body, heard } => {
                // It fails when the asker has given up.
                _ = heard.send(refusal.map_or_else(|| Ok(self.hear(sender, body)), Err));
            }
            _ if refusal.is_some() => {}
            Message::Envelope { envelope, bytes } => {
                self.counters.message("in", "envelope", bytes);
                if self.envelopes.push(Received { from, envelope }).is_some() {
                    self.counters.dropped("envelope");
                }
            }
            Message::Frame(frame) => {
                self.counters.message("in", "frame", frame.len());
                if self.frames.push(Pushed { from, frame }).is_some() {
                    self.counters.dropped("frame");
                }
            }
        }
    }

    /// Takes a question; the answer comes where this returns.
    fn hear(&self, sender: &Agent, body: Vec<u8>) -> oneshot::Receiver<Vec<u8>> {
        self.counters.message("in", "ask", body.len());
        let (reply, answer) = oneshot::channel();
        self.questions.push(Question { from: sender.host.clone(), address: sender.address, body, reply });
        answer
    }

    /// What the hello of two agents settles on the real wire. Both count a refusal.
    fn refusal(&self, peer: &Agent) -> Option<Refusal> {
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
    network: Arc<Network>,
    agent: Arc<Agent>,
}

impl Drop for MemoryWire {
    fn drop(&mut self) {
        self.agent.close();
        let agent = self.agent.clone();
        // Who is there is the same for all lanes.
        self.network.between(agent.lane, move |network| {
            let agents = &mut lock(&network.shared).agents;
            if agents.get(&agent.address).is_some_and(|there| Arc::ptr_eq(there, &agent)) {
                agents.remove(&agent.address);
            }
        });
    }
}

#[async_trait]
impl Wire for MemoryWire {
    fn advertise(&self) -> SocketAddr {
        self.agent.address
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        let (envelope, bytes) = lock(&self.agent.meter).measure(envelope);
        let Some((at, again)) = self.depart(to, "envelope", bytes) else { return };
        if let Some(again) = again
            && let Some(envelope) = meter::copy(&envelope)
        {
            self.fly(again, to, Message::Envelope { envelope, bytes });
        }
        self.fly(at, to, Message::Envelope { envelope, bytes });
    }

    async fn recv(&self) -> Option<Received> {
        self.agent.envelopes.pop().await
    }

    fn push(&self, to: SocketAddr, frame: Bytes) {
        if frame.len() > FRAME_BYTES_MAX {
            return self.agent.counters.dropped("frame");
        }
        let Some((at, again)) = self.depart(to, "frame", frame.len()) else { return };
        for at in again.into_iter().chain([at]) {
            self.fly(at, to, Message::Frame(frame.clone()));
        }
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
        let bytes = body.len();
        let arrivals = self.network.travel(Journey { from, to, bytes, patience: Duration::MAX });
        let Some(at) = arrivals.first else { return pending().await };
        let (heard, hears) = oneshot::channel();
        self.fly(at, to, Message::Question { body, heard });
        // Nobody there, or a crash on the way, is silence.
        let Ok(heard) = hears.await else { return pending().await };
        let answer = heard?.await;
        self.receive_answer(to, answer.ok()).await
    }

    async fn asked(&self) -> Option<Question> {
        self.agent.questions.pop().await
    }

    async fn close(&self) {
        self.agent.close();
    }

    fn counters(&self) -> Arc<Counters> {
        self.agent.counters.clone()
    }
}

impl MemoryWire {
    /// Counts a message that leaves now; when it arrives, and when once more.
    fn depart(&self, to: SocketAddr, kind: &'static str, bytes: usize) -> Option<(Instant, Option<Instant>)> {
        self.agent.counters.message("out", kind, bytes);
        let from = self.agent.address;
        let arrivals = self.network.travel(Journey { from, to, bytes, patience: WRITE_BOUND });
        arrivals.first.map(|at| (at, arrivals.second))
    }

    fn fly(&self, at: Instant, to: SocketAddr, message: Message) {
        self.network.fly(at, &self.agent, to, message);
    }

    /// Waits for an answer, or the news that there is none, to come back: for ever, when it is lost.
    async fn receive_answer(&self, from: SocketAddr, answer: Option<Vec<u8>>) -> Result<Vec<u8>, AskError> {
        let (to, bytes) = (self.agent.address, answer.as_ref().map_or(0, Vec::len));
        let arrivals = self.network.travel(Journey { from, to, bytes, patience: Duration::MAX });
        // The crashed say nothing, not even that there is no answer.
        let Some((at, answering)) = arrivals.first.zip(self.network.agent(from)) else {
            return pending().await;
        };
        let Some(answer) = answer else {
            time::sleep_until(at).await;
            return Err(AskError::Unanswered("it dropped the question".into()));
        };
        answering.counters.message("out", "answer", bytes);
        time::sleep_until(at).await;
        if bytes > ANSWER_BYTES_MAX {
            return Err(AskError::Unanswered(format!("its answer has {bytes} bytes")));
        }
        self.agent.counters.message("in", "answer", bytes);
        Ok(answer)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
