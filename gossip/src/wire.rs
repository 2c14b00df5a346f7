//! The seam between gossip and the network: envelopes and frames one way, questions with an answer.
//!
//! [`quic`](crate::quic) is the real one; [`memory`](crate::memory) is its twin for tests and the
//! simulation. Both hold the contract in `tests/wire.rs`.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::counters::Counters;
use crate::id::HostId;

/// Longest envelope or question in bytes: chitchat's own bound is 65,507.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Longest frame in bytes.
pub const FRAME_BYTES_MAX: usize = 40_000;
/// Longest answer in bytes: a page of a snapshot.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// An envelope that arrived.
#[derive(Debug)]
pub struct Received {
    /// The sender's *advertised* address: chitchat replies to it.
    pub from: SocketAddr,
    /// What it sent.
    pub envelope: ChitchatEnvelope,
}

/// A frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The sender's advertised address.
    pub from: SocketAddr,
    /// What it pushed; opaque to the wire.
    pub frame: Bytes,
}

/// A question that arrived. Dropping `reply` tells the asker that nobody answers.
#[derive(Debug)]
pub struct Question {
    /// Who asks, as its certificate says.
    pub from: HostId,
    /// The asker's advertised address.
    pub address: SocketAddr,
    /// What it asks.
    pub body: Vec<u8>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// Why a peer was refused; both ends of a refusal get the same one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// The certificate is from another CA, unsigned, expired, or missing.
    #[error("TLS: {0}; both hosts need certificates of the same region CA that are valid now")]
    Tls(String),
    /// The peer belongs to another region.
    #[error("region: {0}")]
    Region(String),
    /// The peer's certificate has another name than the host it claims to be.
    #[error("name: {0}")]
    Name(String),
    /// Another agent uses this host name already.
    #[error(
        "twin: {host} is live at {address}; stop one of the two agents, or issue a certificate of its own"
    )]
    Twin {
        /// The name in use.
        host: HostId,
        /// Where its other agent gossips.
        address: SocketAddr,
    },
    /// The peer does not speak our protocol.
    #[error("protocol: {0}")]
    Protocol(String),
}

impl Refusal {
    /// The metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Tls(_) => "tls",
            Refusal::Region(_) => "region",
            Refusal::Name(_) => "name",
            Refusal::Twin { .. } => "twin",
            Refusal::Protocol(_) => "protocol",
        }
    }
}

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The view has no such host.
    #[error("host {0} is not known in this region")]
    Unknown(HostId),
    /// No answer within the bound, connecting included.
    #[error("no answer in time")]
    Timeout,
    /// The peer got the question and gave no answer, or the connection broke.
    #[error("the peer gave no answer: {0}")]
    Unanswered(String),
    /// The peer refused us, or we refused it.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The question is longer than [`MESSAGE_BYTES_MAX`].
    #[error("question of {0} bytes is longer than {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
}

/// How an agent reaches others.
///
/// `send` and `push` never wait: chitchat's one task calls them. `recv`, `pushed` and `asked` are
/// cancel-safe and have one reader each. Nothing is promised about order.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    /// The address peers know this agent by.
    fn advertise(&self) -> SocketAddr;

    /// Queues an envelope. When the queue is full its oldest envelope is dropped and counted; an
    /// unreachable peer is no error.
    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope);

    /// The next envelope; `None` once the wire is closed.
    async fn recv(&self) -> Option<Received>;

    /// Queues a frame of at most [`FRAME_BYTES_MAX`]. When the queue is full this newest frame is
    /// dropped and counted; an unreachable peer is no error.
    fn push(&self, to: SocketAddr, frame: Bytes);

    /// The next frame; `None` once the wire is closed.
    async fn pushed(&self) -> Option<Pushed>;

    /// Asks the agent at an address. The caller bounds the time; an answer is at most
    /// [`ANSWER_BYTES_MAX`] long.
    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError>;

    /// The next question; `None` once the wire is closed.
    async fn asked(&self) -> Option<Question>;

    /// Says goodbye to all peers, so that they need not wait for a timeout.
    async fn close(&self);

    /// What was counted so far.
    fn counters(&self) -> Arc<Counters>;
}

#[async_trait]
impl<W: Wire + ?Sized> Wire for Arc<W> {
    fn advertise(&self) -> SocketAddr {
        (**self).advertise()
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        (**self).send(to, envelope);
    }

    async fn recv(&self) -> Option<Received> {
        (**self).recv().await
    }

    fn push(&self, to: SocketAddr, frame: Bytes) {
        (**self).push(to, frame);
    }

    async fn pushed(&self) -> Option<Pushed> {
        (**self).pushed().await
    }

    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        (**self).ask(to, body).await
    }

    async fn asked(&self) -> Option<Question> {
        (**self).asked().await
    }

    async fn close(&self) {
        (**self).close().await;
    }

    fn counters(&self) -> Arc<Counters> {
        (**self).counters()
    }
}
