//! A host that lies: chitchat alone, with a valid certificate and no agent above it.
//!
//! It writes what no agent would, answers questions with noise, pushes frames that are none or that were turned
//! in somebody's mouth, and can write into its copy of other hosts' states, which chitchat then spreads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport};
use chitchat::{
    ChitchatConfig, ChitchatEnvelope, ChitchatHandle, ChitchatId, DeletionStatus, FailureDetectorConfig,
    ProtocolVersion, VersionedValue,
};
use gossip::Wire as _;
use gossip::memory::MemoryWire;
use gossip::record::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use rand::RngExt as _;
use tokio::task::JoinSet;

use crate::cluster::GRACE;

/// Between two frames of noise.
const BETWEEN: Duration = Duration::from_millis(50);
/// How far a forged state is ahead of the real one.
const AHEAD: u64 = 1_000;

/// A lying host; dropping it silences it.
pub struct Liar {
    chitchat: ChitchatHandle,
    wire: Arc<MemoryWire>,
    tasks: JoinSet<()>,
    peers: Vec<SocketAddr>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.chitchat.abort();
    }
}

/// Between two of its own rounds.
const INTERVAL: Duration = Duration::from_millis(500);

impl Liar {
    /// Joins the region as `name`.
    pub async fn begin(
        wire: MemoryWire,
        region: &str,
        name: &str,
        peers: Vec<SocketAddr>,
    ) -> anyhow::Result<Liar> {
        let wire = Arc::new(wire);
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(name, 1, wire.advertise()),
            cluster_id: region.to_owned(),
            gossip_interval: INTERVAL,
            listen_addr: wire.advertise(),
            seed_nodes: peers.iter().map(SocketAddr::to_string).collect(),
            failure_detector_config: FailureDetectorConfig {
                dead_node_grace_period: GRACE,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let chitchat = chitchat::spawn_chitchat(config, Vec::new(), &Mouth(wire.clone())).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(answer_noise(wire.clone()));
        Ok(Liar { chitchat, wire, tasks, peers })
    }

    /// Publishes what no agent would, and pushes noise for frames.
    pub async fn talk_nonsense(&mut self) {
        let network = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
        let host = r#"{"v":1,"name":"NAME","c":1,"vtep":"10.99.0.1","port":4789,"mtu":1500,"speaks":1}"#;
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let name = chitchat.self_chitchat_id().node_id.clone();
        let state = chitchat.self_node_state();
        state.set("host", host.replace("NAME", &name));
        state.set("host/more", "{}");
        state.set("", "{}");
        state
            .set(format!("net/{network}"), r#"{"v":1,"c":281474976710656,"vni":7,"subnet":"10.240.0.0/22"}"#);
        state.set(format!("mem/{network}/00000000000000aa"), r#"{"v":99,"c":1}"#);
        state.set(format!("mem/{network}/00000000000000ab"), "x".repeat(VALUE_BYTES_MAX * 4));
        state.set("k".repeat(KEY_BYTES_MAX * 4), "{}");
        for number in 0..600 {
            state.set(format!("mem/{network}/{number:016x}"), "[]");
        }
        drop(chitchat);
        self.tasks.spawn(push(self.wire.clone(), self.peers.clone(), |_| noise(300).into()));
    }

    /// Pushes on every frame that arrives, turned in its mouth.
    pub fn turn_frames(&mut self) {
        self.tasks.spawn(push(self.wire.clone(), self.peers.clone(), turn));
    }

    /// Writes into its copies of other hosts' states, far ahead of what they have written themselves: they have
    /// nothing any more.
    pub async fn forge(&self) {
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let own = chitchat.self_chitchat_id().clone();
        let others: Vec<(ChitchatId, u64, u64)> = chitchat
            .node_states()
            .iter()
            .filter(|(id, _)| **id != own)
            .map(|(id, state)| (id.clone(), state.max_version(), state.last_gc_version()))
            .collect();
        for (id, version, gc) in others {
            let version = version + AHEAD;
            let value = VersionedValue { value: "{}".into(), version, status: DeletionStatus::Set };
            let key_values = std::iter::once(("host".to_owned(), value));
            chitchat.reset_node_state_if_update(&id, key_values, version, gc + 1);
        }
    }

    /// Tells of so many hosts that do not exist.
    pub async fn crowd(&self, count: u64) {
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        for number in 0..count {
            let address = SocketAddr::from(([10, 200, (number / 250) as u8, (number % 250) as u8], 7946));
            let id = ChitchatId::new(format!("crowd-{number:06}"), 1, address);
            let value = VersionedValue { value: "{}".into(), version: 1, status: DeletionStatus::Set };
            chitchat.reset_node_state_if_update(&id, std::iter::once(("k".to_owned(), value)), 1, 0);
        }
    }
}

/// Whoever asks is answered with noise.
async fn answer_noise(wire: Arc<MemoryWire>) {
    while let Some(question) = wire.asked().await {
        // An asker that is not there any more needs no answer.
        _ = question.reply.send(noise(64));
    }
}

/// Pushes what it makes of the last frame that arrived, again and again.
async fn push(wire: Arc<MemoryWire>, peers: Vec<SocketAddr>, make: fn(&Bytes) -> Bytes) {
    let mut heard = Bytes::new();
    loop {
        tokio::select! {
            pushed = wire.pushed() => match pushed {
                Some(pushed) => heard = pushed.frame,
                None => return,
            },
            () = tokio::time::sleep(BETWEEN) => {
                let Some(to) = peers.get(rand::rng().random_range(0..peers.len().max(1))) else { return };
                wire.push(*to, make(&heard));
            }
        }
    }
}

/// A frame with one byte changed, or cut short.
fn turn(frame: &Bytes) -> Bytes {
    let mut rng = rand::rng();
    let at = rng.random_range(0..frame.len().max(1));
    if rng.random_bool(0.3) {
        return frame.slice(..at.min(frame.len()));
    }
    let mut bytes = frame.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte = rng.random();
    }
    bytes.into()
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|_| rand::rng().random()).collect()
}

/// chitchat on a wire, as it is.
struct Mouth(Arc<MemoryWire>);

#[async_trait]
impl Transport for Mouth {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(Mouth(self.0.clone())))
    }
}

#[async_trait]
impl Socket for Mouth {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.0.advertise())
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        self.0.send(to, envelope);
        Ok(SendOutcome { num_bytes_sent: 0 })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        let received = self.0.recv().await.context("the wire is closed")?;
        Ok(RecvOutcome { from_addr: received.from, envelope: received.envelope, num_bytes_received: 0 })
    }
}
