//! One peer address: what waits for it, and the connection it goes over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time;

use super::Shared;
use super::hello::{Ended, Hello};
use crate::counters::Counters;
use crate::queue::Queue;
use crate::wire::{AskError, Refusal};

/// Envelopes that may wait for one peer; the oldest is dropped beyond.
const ENVELOPES_WAITING_MAX: usize = 16;
/// Frames that may wait for one peer; the newest is dropped beyond.
const FRAMES_WAITING_MAX: usize = 64;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A peer that takes a message no sooner does not get it.
const WRITE_BOUND: Duration = Duration::from_secs(5);
/// How long an unused address without a connection is kept.
const UNUSED_BOUND: Duration = Duration::from_secs(60);

/// A connection whose hellos were exchanged.
#[derive(Debug, Clone)]
pub(super) struct Established {
    pub(super) connection: Connection,
    pub(super) hello: Hello,
    /// This agent made it, not the peer.
    pub(super) dialled: bool,
}

impl Established {
    pub(super) fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

#[derive(Debug, Default)]
pub(super) enum Link {
    #[default]
    Down,
    Up(Established),
    /// The last attempt ended so.
    Refused(Refusal),
}

/// What a unidirectional stream after the hello carries, told by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Envelope = 1,
    Frame = 2,
}

impl Kind {
    pub(super) fn of(byte: u8) -> Option<Self> {
        [Kind::Envelope, Kind::Frame].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::Envelope => "envelope",
            Kind::Frame => "frame",
        }
    }
}

#[derive(Debug)]
struct Message {
    kind: Kind,
    body: Bytes,
}

/// One address that is or was gossiped with. A task of its own connects it when needed.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) envelopes: Queue<Bytes>,
    pub(super) frames: Queue<Bytes>,
    link: watch::Sender<Link>,
    wanted: Notify,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            envelopes: Queue::new(ENVELOPES_WAITING_MAX),
            frames: Queue::patient(FRAMES_WAITING_MAX),
            link: watch::Sender::default(),
            wanted: Notify::new(),
        }
    }

    /// The next message to write; frames are news, so they go first.
    async fn next(&self) -> Option<Message> {
        tokio::select! {
            biased;
            frame = self.frames.pop() => frame.map(|body| Message { kind: Kind::Frame, body }),
            envelope = self.envelopes.pop() => envelope.map(|body| Message { kind: Kind::Envelope, body }),
        }
    }

    /// Drops what waits: it is stale when the peer is back.
    fn clear(&self, counters: &Counters) {
        for (queue, kind) in [(&self.envelopes, Kind::Envelope), (&self.frames, Kind::Frame)] {
            for _ in 0..queue.clear() {
                counters.dropped(kind.label());
            }
        }
    }

    pub(super) fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// An attempt has failed; a connection that the peer has made meanwhile stays.
    fn fail(&self, refusal: Option<Refusal>) {
        self.link.send_if_modified(|link| {
            let is_up = matches!(link, Link::Up(established) if established.is_alive());
            if !is_up {
                *link = refusal.map_or(Link::Down, Link::Refused);
            }
            !is_up
        });
    }

    /// A connection has ended: what it was the link of is down, or refused.
    pub(super) fn unset(&self, ended: &Established, link: impl FnOnce() -> Link) {
        self.link.send_if_modified(|current| {
            let is_current =
                matches!(current, Link::Up(up) if up.connection.stable_id() == ended.connection.stable_id());
            if is_current {
                *current = link();
            }
            is_current
        });
    }

    /// The connection to use now.
    pub(super) fn established(&self) -> Option<Established> {
        match &*self.link.borrow() {
            Link::Up(established) if established.is_alive() => Some(established.clone()),
            _ => None,
        }
    }

    /// Waits for a connection, and has one made.
    pub(super) async fn connected(&self) -> Result<Established, AskError> {
        // A refusal of long ago is no answer to this attempt: only what comes from now on counts.
        let mut link = self.link.subscribe();
        if let Some(established) = self.established() {
            return Ok(established);
        }
        self.wanted.notify_one();
        loop {
            // The sender lives in self.
            _ = link.changed().await;
            match &*link.borrow_and_update() {
                Link::Up(established) if established.is_alive() => return Ok(established.clone()),
                Link::Refused(refusal) => return Err(refusal.clone().into()),
                _ => {}
            }
        }
    }

    /// Waits until the peer has called us.
    async fn up(&self) {
        let up = |link: &Link| matches!(link, Link::Up(established) if established.is_alive());
        // It cannot end before self does.
        _ = self.link.subscribe().wait_for(up).await;
    }

    fn is_waited_for(&self) -> bool {
        self.link.receiver_count() > 0
    }
}

/// Sends what waits for a peer, connecting first when it must; ends when nobody needs it.
pub(super) async fn serve(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let message = tokio::select! {
            message = peer.next() => match message {
                Some(message) => Some(message),
                None => return,
            },
            () = peer.wanted.notified() => None,
            () = time::sleep(UNUSED_BOUND), if peer.established().is_none() => {
                if shared.forget(&peer) {
                    return;
                }
                continue;
            }
        };
        if let Some(established) = connect(&shared, &peer).await {
            backoff = BACKOFF_MIN;
            if let Some(message) = message {
                write(&shared, &established, message).await;
            }
            continue;
        }
        if let Some(message) = message {
            shared.counters.dropped(message.kind.label());
        }
        peer.clear(&shared.counters);
        tokio::select! {
            () = time::sleep(backoff) => backoff = (2 * backoff).min(BACKOFF_MAX),
            () = peer.up() => {}
        }
        if peer.is_waited_for() {
            peer.wanted.notify_one();
        }
    }
}

/// The peer's connection; made if there is none, unless the peer is quicker.
///
/// A handshake once begun is finished all the same: when two agents call each other at once and
/// each let its own attempt go for the other's, none would be left.
async fn connect(shared: &Arc<Shared>, peer: &Arc<Peer>) -> Option<Established> {
    if let Some(established) = peer.established() {
        return Some(established);
    }
    let (done, dialled) = oneshot::channel();
    let (dialling, callee) = (shared.clone(), peer.clone());
    shared.spawn(async move {
        if let Err(ended) = dialling.dial(&callee).await {
            tracing::debug!(address = %callee.address, %ended, "no connection");
            callee.fail(ended.refusal().cloned());
        }
        // Whoever waited may have been called meanwhile.
        _ = done.send(());
    });
    tokio::select! {
        _ = dialled => {}
        () = peer.up() => {}
    }
    peer.established()
}

async fn write(shared: &Shared, established: &Established, message: Message) {
    let Message { kind, body } = message;
    let writing = async {
        let mut stream = established.connection.open_uni().await.map_err(Ended::from_connection)?;
        stream.write_all(&[kind as u8]).await?;
        stream.write_chunk(body).await?;
        // It fails when the connection is gone; then the message is too.
        _ = stream.finish();
        Ok::<(), Ended>(())
    };
    if !matches!(time::timeout(WRITE_BOUND, writing).await, Ok(Ok(()))) {
        shared.counters.dropped(kind.label());
    }
}
