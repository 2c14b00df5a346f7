//! chitchat's transport on a [`Wire`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport};
use chitchat::{ChitchatEnvelope, ChitchatId, ChitchatMessage};
use tokio::sync::watch;

use crate::wire::Wire;

/// chitchat answers a SYN with its whole digest and panics when that outgrows a datagram of 65,507
/// bytes: from here on it gets no SYN to answer.
pub(crate) const DIGEST_BYTES_MAX: usize = 56 * 1024;

/// What the transport and the task around chitchat tell each other.
#[derive(Debug)]
pub(crate) struct Gate {
    digest_bytes: AtomicUsize,
    /// How many ACKs, which carry our news, were sent.
    acks: watch::Sender<u64>,
    /// Changes when chitchat has taken in a message with news.
    news: watch::Sender<()>,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            digest_bytes: AtomicUsize::new(0),
            acks: watch::Sender::new(0),
            news: watch::Sender::new(()),
        })
    }

    /// Notes the size of our digest; returns whether SYNs are handed to chitchat.
    pub(crate) fn admit(&self, digest_bytes: usize) -> bool {
        self.digest_bytes.store(digest_bytes, Ordering::Relaxed);
        self.is_open()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.digest_bytes.load(Ordering::Relaxed) <= DIGEST_BYTES_MAX
    }

    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    pub(crate) fn acks(&self) -> watch::Receiver<u64> {
        self.acks.subscribe()
    }
}

/// From this digest on no new host is let in, so that the wall is not reached by growing.
pub(crate) const ADMISSION_BYTES_MAX: usize = 40_000;

/// An upper estimate of the digest's length for these hosts: uncompressed it is id, generation,
/// address, heartbeat and two versions each, and chitchat's V1 was measured to need 0.27 to 0.53 of
/// that.
pub(crate) fn digest_bytes<'a>(ids: impl Iterator<Item = &'a ChitchatId>) -> usize {
    let plain = |id: &ChitchatId| {
        2 + id.node_id.len() + 8 + if id.gossip_advertise_addr.is_ipv4() { 7 } else { 19 } + 24
    };
    ids.map(plain).sum::<usize>() * 55 / 100
}

/// Hands chitchat's messages to the wire and back.
pub(crate) struct WireTransport {
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) gate: Arc<Gate>,
}

struct WireSocket {
    wire: Arc<dyn Wire>,
    gate: Arc<Gate>,
    /// The last message handed to chitchat carries news; by the next call it has taken it in.
    brought_news: bool,
}

/// Whether a message carries records. Most carry a digest and no more: a quiet region's always.
fn brings_news(message: &ChitchatMessage) -> bool {
    match message {
        ChitchatMessage::SynAck { delta, .. } | ChitchatMessage::Ack { delta } => {
            *delta != Default::default()
        }
        _ => false,
    }
}

#[async_trait]
impl Transport for WireTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(WireSocket { wire: self.wire.clone(), gate: self.gate.clone(), brought_news: false }))
    }
}

#[async_trait]
impl Socket for WireSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.wire.advertise())
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        // Older generations of this host stand under its own address in chitchat's books.
        if to != self.wire.advertise() {
            let is_ack = matches!(envelope.message, ChitchatMessage::Ack { .. });
            self.wire.send(to, envelope);
            if is_ack {
                self.gate.acks.send_modify(|acks| *acks += 1);
            }
        }
        // The length is the wire's to count, after encoding; chitchat does not look at it.
        Ok(SendOutcome { num_bytes_sent: 0 })
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        if std::mem::take(&mut self.brought_news) {
            self.gate.news.send_replace(());
        }
        loop {
            let Some(received) = self.wire.recv().await else { anyhow::bail!("the wire is closed") };
            let refused = match received.envelope.message {
                ChitchatMessage::Syn { .. } => !self.gate.is_open(),
                ChitchatMessage::BadCluster => true,
                _ => false,
            };
            if refused {
                self.wire.counters().dropped("envelope");
                continue;
            }
            self.brought_news = brings_news(&received.envelope.message);
            return Ok(RecvOutcome {
                from_addr: received.from,
                envelope: received.envelope,
                num_bytes_received: 0,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_wall_is_seen_before_it_is_hit() {
        let ids = |count: u64, node_id: &str, address: &str| -> Vec<ChitchatId> {
            let address: SocketAddr = address.parse().unwrap();
            (0..count).map(|generation| ChitchatId::new(node_id, generation, address)).collect()
        };
        // Where chitchat's V1 was measured to panic, the estimate must be above the bound.
        for (count, node_id, address) in [
            (3603, "n123", "10.0.0.1:7946"),
            (2592, "0123456789ab", "10.0.0.1:7946"),
            (2114, "0123456789ab", "[fd00::1]:7946"),
        ] {
            let bytes = digest_bytes(ids(count, node_id, address).iter());
            assert!(bytes > DIGEST_BYTES_MAX, "{count} x {node_id}: {bytes}");
        }
        let gate = Gate::new();
        assert!(gate.admit(digest_bytes(ids(1000, "0123456789ab", "[fd00::1]:7946").iter())));
        assert!(!gate.admit(DIGEST_BYTES_MAX + 1));
    }
}
