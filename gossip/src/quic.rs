//! The wire on QUIC (RFC 9000): one endpoint per agent, mutual TLS 1.3, a stream per message.
//!
//! A connection serves both directions, whoever made it. Its first stream each way is a hello; then
//! one unidirectional stream carries one message, its first byte telling the kind, and one
//! bidirectional stream carries a question and its answer.

mod hello;
mod peer;
mod serve;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use quinn::{ConnectionError, Endpoint, TokioRuntime};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::codec::Codec;
use crate::counters::Counters;
use crate::identity::{Identity, SERVER_NAME};
use crate::queue::Queue;
use crate::wire::{
    ANSWER_BYTES_MAX, AskError, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, Pushed, Question, Received, Refusal, Wire,
};
use hello::{DONE, Ended, Hello, REFUSED};
use peer::{Established, Link, Peer};
use serve::Job;

/// Handshake and hello take a few round trips.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(3);
/// Envelopes that may wait for the codec, or for chitchat.
const ENVELOPES_WAITING_MAX: usize = 256;
/// Frames that may wait to be applied: 256 are at most 10 MB.
const FRAMES_WAITING_MAX: usize = 256;
const QUESTIONS_WAITING_MAX: usize = 256;
/// A refusal is told to the log once in this time per address and reason.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// Of two connections between the same two agents one is closed, after what is on it has passed.
const DUPLICATE_PAUSE: Duration = Duration::from_secs(2);
/// What was sent last gets this long to arrive before the endpoint closes.
const FLUSH_PAUSE: Duration = Duration::from_millis(100);

/// The wire on QUIC. Dropping it closes all connections.
#[derive(Debug)]
pub struct Quic {
    shared: Arc<Shared>,
}

/// Why the endpoint was not opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be bound.
    #[error(
        "{address}/UDP cannot be bound for gossip: {error}; is another agent running, is the address this machine's?"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// rustls does not take the certificate.
    #[error("the identity cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The codec's sockets on loopback cannot be opened.
    #[error("no UDP socket on 127.0.0.1: {0}; is the loopback interface up?")]
    Loopback(String),
}

struct Shared {
    own: Hello,
    endpoint: Endpoint,
    peers: Mutex<BTreeMap<SocketAddr, Arc<Peer>>>,
    jobs: Queue<Job>,
    envelopes: Queue<Received>,
    frames: Queue<Pushed>,
    questions: Queue<Question>,
    counters: Arc<Counters>,
    complaints: Mutex<BTreeMap<(SocketAddr, &'static str), Instant>>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quic").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Quic {
    /// Opens the endpoint; peers know it by `advertise`, with port 0 by the port it got.
    pub async fn bind(
        listen: SocketAddr,
        advertise: SocketAddr,
        identity: &Identity,
    ) -> Result<Self, QuicError> {
        let bind = |error| QuicError::Bind { address: listen, error };
        let (server, client) = (tls::server(identity)?, tls::client(identity)?);
        let codec = Codec::open().await.map_err(|error| QuicError::Loopback(error.to_string()))?;
        let socket = std::net::UdpSocket::bind(listen).map_err(bind)?;
        let runtime = Arc::new(TokioRuntime);
        let mut endpoint =
            Endpoint::new(tls::endpoint(identity), Some(server), socket, runtime).map_err(bind)?;
        endpoint.set_default_client_config(client);
        let mut own = Hello {
            region: identity.region.clone(),
            host: identity.host.clone(),
            advertise,
            incarnation: rand::random(),
        };
        if advertise.port() == 0 {
            own.advertise.set_port(endpoint.local_addr().map_err(bind)?.port());
        }
        let shared = Arc::new(Shared {
            own,
            endpoint,
            peers: Mutex::default(),
            jobs: Queue::new(ENVELOPES_WAITING_MAX),
            envelopes: Queue::new(ENVELOPES_WAITING_MAX),
            frames: Queue::patient(FRAMES_WAITING_MAX),
            questions: Queue::new(QUESTIONS_WAITING_MAX),
            counters: Arc::default(),
            complaints: Mutex::default(),
            tasks: Mutex::default(),
        });
        shared.spawn(serve::translate(shared.clone(), codec));
        shared.spawn(serve::accept(shared.clone()));
        Ok(Self { shared })
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.shared.endpoint.close(DONE, b"dropped");
        // The tasks hold what is shared, so that only this ends them.
        lock(&self.shared.tasks).abort_all();
    }
}

#[async_trait]
impl Wire for Quic {
    fn advertise(&self) -> SocketAddr {
        self.shared.own.advertise
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        if self.shared.jobs.push(Job::Encode { to, envelope }).is_some() {
            self.shared.counters.dropped("envelope");
        }
    }

    async fn recv(&self) -> Option<Received> {
        self.shared.envelopes.pop().await
    }

    fn push(&self, to: SocketAddr, frame: Bytes) {
        let length = frame.len();
        if length > FRAME_BYTES_MAX || self.shared.peer(to).frames.push(frame).is_some() {
            return self.shared.counters.dropped("frame");
        }
        self.shared.counters.message("out", "frame", length);
    }

    async fn pushed(&self) -> Option<Pushed> {
        self.shared.frames.pop().await
    }

    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(AskError::TooLong(body.len()));
        }
        let peer = self.shared.peer(to);
        match self.ask_over(&peer.connected().await?, &body).await {
            // The peer has started anew and knows nothing of the question: it may have it again.
            Err(Ended::Lost(ConnectionError::Reset)) => self.ask_over(&peer.connected().await?, &body).await,
            outcome => outcome,
        }
        .map_err(|ended| match ended {
            Ended::ByUs(refusal) | Ended::ByPeer(refusal) => refusal.into(),
            ended => AskError::Unanswered(ended.to_string()),
        })
    }

    async fn asked(&self) -> Option<Question> {
        self.shared.questions.pop().await
    }

    async fn close(&self) {
        time::sleep(FLUSH_PAUSE).await;
        self.shared.endpoint.close(DONE, b"left");
        self.shared.endpoint.wait_idle().await;
        self.shared.envelopes.close();
        self.shared.frames.close();
        self.shared.questions.close();
        self.shared.jobs.close();
    }

    fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }
}

impl Quic {
    async fn ask_over(&self, established: &Established, body: &[u8]) -> Result<Vec<u8>, Ended> {
        let (mut send, mut recv) = established.connection.open_bi().await.map_err(Ended::from_connection)?;
        send.write_all(&[serve::ASK]).await?;
        send.write_all(body).await?;
        // It fails when the connection is gone, which the read tells.
        _ = send.finish();
        self.shared.counters.message("out", "ask", body.len());
        let answer = recv.read_to_end(ANSWER_BYTES_MAX).await?;
        self.shared.counters.message("in", "answer", answer.len());
        Ok(answer)
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// The peer at an address, with a task that serves it.
    fn peer(self: &Arc<Self>, address: SocketAddr) -> Arc<Peer> {
        let mut new = None;
        let peer = lock(&self.peers)
            .entry(address)
            .or_insert_with(|| new.insert(Arc::new(Peer::new(address))).clone())
            .clone();
        if let Some(new) = new {
            self.spawn(peer::serve(self.clone(), new));
        }
        peer
    }

    /// Drops a peer that nobody holds but the table and its own task.
    fn forget(&self, peer: &Arc<Peer>) -> bool {
        let mut peers = lock(&self.peers);
        let unused = Arc::strong_count(peer) <= 2;
        if unused {
            peers.remove(&peer.address);
        }
        unused
    }

    /// Connects to a peer and serves the connection.
    async fn dial(self: &Arc<Self>, peer: &Arc<Peer>) -> Result<(), Ended> {
        let dialling = async {
            let connecting = self.endpoint.connect(peer.address, SERVER_NAME).map_err(|error| {
                tracing::debug!(address = %peer.address, %error, "cannot be dialled");
                Ended::Silent
            })?;
            let connection = connecting.await.map_err(Ended::from_connection)?;
            let established = self.establish(connection, true).await?;
            // An address that leads elsewhere, as a seed's may, is served by where it leads.
            if peer.address != established.hello.advertise {
                peer.set(Link::Up(established.clone()));
            }
            Ok(established)
        };
        let outcome = time::timeout(HANDSHAKE_BOUND, dialling).await.unwrap_or(Err(Ended::Silent));
        match outcome {
            Ok(established) => self.spawn(serve::connection(self.clone(), established, Some(peer.clone()))),
            Err(ended) => {
                self.complain(peer.address, &ended);
                return Err(ended);
            }
        }
        Ok(())
    }

    /// Exchanges hellos, and tells the peer when it is refused.
    async fn establish(
        self: &Arc<Self>,
        connection: quinn::Connection,
        dialled: bool,
    ) -> Result<Established, Ended> {
        let outcome = match hello::exchange(&connection, &self.own).await {
            Ok(hello) => self
                .register(Established { connection: connection.clone(), hello, dialled })
                .map_err(Ended::ByUs),
            Err(ended) => Err(ended),
        };
        if let Err(Ended::ByUs(refusal)) = &outcome {
            connection.close(REFUSED, &self.told(refusal));
        }
        outcome
    }

    /// What the refused one is told: of its twin here it learns our address, not its own.
    fn told(&self, refusal: &Refusal) -> Vec<u8> {
        let refusal = match refusal {
            Refusal::Twin { host, .. } if *host == self.own.host => {
                Refusal::Twin { host: host.clone(), address: self.own.advertise }
            }
            refusal => refusal.clone(),
        };
        serde_json::to_vec(&refusal).expect("a refusal has a JSON form")
    }

    /// Makes a connection the one to use for its peer, unless there is a better one.
    fn register(self: &Arc<Self>, new: Established) -> Result<Established, Refusal> {
        let address = new.hello.advertise;
        let elsewhere =
            |other: &Established| other.hello.host == new.hello.host && other.hello.advertise != address;
        let twin = lock(&self.peers).values().filter_map(|peer| peer.established()).find(elsewhere);
        if let Some(twin) = twin {
            return Err(Refusal::Twin { host: twin.hello.host, address: twin.hello.advertise });
        }
        let peer = self.peer(address);
        let old = peer.established().filter(|old| old.hello.incarnation == new.hello.incarnation);
        let (kept, spare) = match old {
            Some(old) if self.prefers(&old, &new) => (old, Some(new.clone())),
            old => (new.clone(), old),
        };
        peer.set(Link::Up(kept));
        if let Some(spare) = spare.filter(|spare| spare.dialled) {
            self.spawn(async move {
                time::sleep(DUPLICATE_PAUSE).await;
                spare.connection.close(DONE, b"duplicate");
            });
        }
        Ok(new)
    }

    /// Two agents that call each other at once must keep the same one of the two connections: the
    /// one that the lower address made.
    fn prefers(&self, old: &Established, new: &Established) -> bool {
        let own_is_lower = self.own.advertise < new.hello.advertise;
        old.dialled != new.dialled && old.dialled == own_is_lower
    }

    /// Counts a refusal, and logs it if that was not done a short while ago.
    fn complain(&self, address: SocketAddr, ended: &Ended) {
        let Some(refusal) = ended.refusal() else { return };
        let reason = refusal.reason();
        self.counters.rejected(reason);
        let now = Instant::now();
        let mut complaints = lock(&self.complaints);
        complaints.retain(|_, at| now < *at + COMPLAINT_PAUSE);
        complaints.entry((address, reason)).or_insert_with(|| {
            tracing::warn!(host = %self.own.host, %address, reason, "gossip connection {ended}");
            now
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
