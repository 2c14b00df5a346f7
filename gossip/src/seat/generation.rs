//! Generations of this host: the first one, and the next when the present one is spoilt.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, ProtocolVersion,
};
use tokio::time::Instant;

use super::Seat;
use crate::config::Config;
use crate::id::HostId;
use crate::own::OwnRecords;
use crate::record::Record;
use crate::transport::{Gate, WireTransport};
use crate::wire::Wire;

impl Seat {
    /// A generation has begun in chitchat: it is seen here, and told to others at once.
    pub(super) async fn begin(&mut self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        let now = Instant::now();
        self.builder.publishes(generation, self.stay.config.advertise, now);
        self.eager.begin(now);
        self.look().await;
        self.push_own().await;
    }

    /// Whether a newer generation of this host is known in which nobody lives: others follow it and
    /// do not see ours. Nobody follows one without its `host` record.
    pub(super) fn is_superseded(&self, chitchat: &Chitchat, generation: u64) -> bool {
        let node_id = self.stay.config.host.node_id();
        let counts = |state: &NodeState| {
            state.get("host").is_some_and(|value| Record::decode(&node_id, "host", value).is_ok())
        };
        let first =
            ChitchatId::new(&*node_id, generation.saturating_add(1), (Ipv4Addr::UNSPECIFIED, 0).into());
        let newer = chitchat.node_states().range(first..).take_while(|(id, _)| *id.node_id == *node_id);
        newer
            .filter(|(_, state)| counts(state))
            .max_by_key(|(id, _)| id.generation_id)
            .is_some_and(|(id, _)| chitchat.failure_detection_timeout(id).is_none())
    }

    /// Publishes everything anew in a higher generation; once per detection bound at most.
    pub(super) async fn restart(&mut self) -> bool {
        let now = Instant::now();
        if self.last_restart.is_some_and(|last| now < last + self.stay.config.timings.detection) {
            return false;
        }
        self.last_restart = Some(now);
        let previous = self.generation.load(Ordering::Relaxed);
        let own = self.stay.config.host.clone();
        let seen = self.highest_seen(&own).await.unwrap_or(0).max(previous);
        let generation = (self.stay.config.now_ns)().max(seen.saturating_add(1));
        tracing::warn!(
            previous,
            generation,
            ended = self.ended,
            "own gossip state is not what was published; starting a new generation"
        );
        if let Err(error) = (self.stay.persist)(generation) {
            tracing::error!(%error, "the new generation cannot be persisted; trying again");
            return false;
        }
        self.chitchat.abort();
        match start(&self.stay.config, &self.stay.wire, &self.gate, generation, &self.own).await {
            Ok(chitchat) => self.chitchat = chitchat,
            Err(error) => {
                tracing::error!(%error, "gossip did not start; trying again");
                self.ended = true;
                return false;
            }
        }
        self.own.begin();
        (self.ended, self.superseded) = (false, None);
        self.begin(generation).await;
        true
    }

    pub(super) async fn highest_seen(&mut self, host: &HostId) -> Option<u64> {
        let node_id = host.node_id();
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let states = chitchat.node_states().keys().filter(|id| *id.node_id == *node_id);
        states.map(|id| id.generation_id).max().max(self.builder.generation(&node_id))
    }
}

pub(super) async fn start(
    config: &Config,
    wire: &Arc<dyn Wire>,
    gate: &Arc<Gate>,
    generation: u64,
    own: &OwnRecords,
) -> anyhow::Result<ChitchatHandle> {
    let node_id = config.parsed.text(&config.host.node_id());
    let chitchat_id = ChitchatId::new(node_id, generation, config.advertise);
    let failure_detector_config = FailureDetectorConfig {
        phi_threshold: 8.0,
        // A small window forgets soon, so that detection is as quick after a day as after a minute.
        sampling_window_size: 100,
        max_interval: Duration::from_secs(10),
        initial_interval: Duration::from_secs(1).min(2 * config.interval),
        dead_node_grace_period: config.timings.grace,
    };
    let protocol_version = if config.plain_digests { ProtocolVersion::V0 } else { ProtocolVersion::V1 };
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
        protocol_version,
    };
    let transport = WireTransport { wire: wire.clone(), gate: gate.clone() };
    chitchat::spawn_chitchat(config, own.initial(), &transport).await
}
