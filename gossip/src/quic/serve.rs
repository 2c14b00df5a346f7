//! What an endpoint does for its peers: accept, read, answer, translate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use quinn::{Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio::time;

use super::hello::Ended;
use super::peer::{Established, Kind, Link, Peer};
use super::{HANDSHAKE_BOUND, Shared};
use crate::codec::{Codec, is_bad_cluster};
use crate::wire::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, Pushed, Question, Received};

/// The first byte of a bidirectional stream: a question follows.
pub(super) const ASK: u8 = 1;

/// A stream that takes longer to arrive is given up.
const READ_BOUND: Duration = Duration::from_secs(10);
/// A question that is not answered by then is not answered.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// The stream is reset with it when a question gets no answer.
const NO_ANSWER: VarInt = VarInt::from_u32(1);

/// What the codec has to do.
#[derive(Debug)]
pub(super) enum Job {
    Encode { to: SocketAddr, envelope: ChitchatEnvelope },
    Decode { from: SocketAddr, bytes: Bytes },
}

/// Runs the codec, one job at a time.
pub(super) async fn translate(shared: Arc<Shared>, mut codec: Codec) {
    while let Some(job) = shared.jobs.pop().await {
        let dropped = match job {
            Job::Encode { to, envelope } => match codec.encode(envelope).await {
                Ok(bytes) => {
                    shared.counters.message("out", "envelope", bytes.len());
                    shared.peer(to).envelopes.push(bytes.into()).is_some()
                }
                Err(error) => {
                    tracing::warn!(%to, %error, "envelope not encoded");
                    true
                }
            },
            Job::Decode { from, bytes } => match codec.decode(&bytes).await {
                Ok(envelope) => shared.envelopes.push(Received { from, envelope }).is_some(),
                Err(error) => {
                    tracing::debug!(%from, %error, "envelope not decoded");
                    true
                }
            },
        };
        if dropped {
            shared.counters.dropped("envelope");
        }
    }
}

/// Accepts connections for as long as the endpoint is open.
pub(super) async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        shared.spawn(admit(shared.clone(), incoming));
    }
}

async fn admit(shared: Arc<Shared>, incoming: Incoming) {
    let address = incoming.remote_address();
    let admitting = async {
        let connection =
            incoming.accept().map_err(Ended::from_connection)?.await.map_err(Ended::from_connection)?;
        shared.establish(connection, false).await
    };
    match time::timeout(HANDSHAKE_BOUND, admitting).await.unwrap_or(Err(Ended::Silent)) {
        Ok(established) => connection(shared, established, None).await,
        Err(ended) => shared.complain(address, &ended),
    }
}

/// Reads what comes over a connection until it ends. `alias` is the address that was dialled.
pub(super) async fn connection(shared: Arc<Shared>, established: Established, alias: Option<Arc<Peer>>) {
    let mut streams: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let ended = loop {
        tokio::select! {
            stream = established.connection.accept_uni() => match stream {
                Ok(stream) => streams.push(Box::pin(read_message(&shared, &established, stream))),
                Err(error) => break error,
            },
            stream = established.connection.accept_bi() => match stream {
                Ok((send, recv)) => streams.push(Box::pin(answer(&shared, &established, send, recv))),
                Err(error) => break error,
            },
            Some(()) = streams.next() => {}
        }
    };
    let ended = Ended::from_connection(ended);
    shared.complain(established.hello.advertise, &ended);
    for peer in alias.into_iter().chain([shared.peer(established.hello.advertise)]) {
        peer.unset(&established, || {
            ended.refusal().map_or(Link::Down, |refusal| Link::Refused(refusal.clone()))
        });
    }
}

async fn read_message(shared: &Shared, established: &Established, mut stream: RecvStream) {
    let read = time::timeout(READ_BOUND, stream.read_to_end(MESSAGE_BYTES_MAX + 1)).await;
    let Ok(Ok(message)) = read else { return shared.counters.dropped("unknown") };
    let Some(kind) = message.first().copied().and_then(Kind::of) else {
        return shared.counters.dropped("unknown");
    };
    let from = established.hello.advertise;
    let bytes = Bytes::from(message).slice(1..);
    let dropped = match kind {
        // `BadCluster` says nothing a refused connection has not said, and the codec could not tell
        // it from its sentinel.
        Kind::Envelope if is_bad_cluster(&bytes) => true,
        Kind::Frame if bytes.len() > FRAME_BYTES_MAX => true,
        Kind::Envelope => {
            shared.counters.message("in", kind.label(), bytes.len());
            shared.jobs.push(Job::Decode { from, bytes }).is_some()
        }
        Kind::Frame => {
            shared.counters.message("in", kind.label(), bytes.len());
            shared.frames.push(Pushed { from, frame: bytes }).is_some()
        }
    };
    if dropped {
        shared.counters.dropped(kind.label());
    }
}

async fn answer(shared: &Shared, established: &Established, mut send: SendStream, mut recv: RecvStream) {
    let read = time::timeout(READ_BOUND, recv.read_to_end(MESSAGE_BYTES_MAX + 1)).await;
    let Ok(Ok(mut body)) = read else { return shared.counters.dropped("ask") };
    let answer = if body.first() == Some(&ASK) {
        body.remove(0);
        shared.counters.message("in", "ask", body.len());
        let (reply, answer) = oneshot::channel();
        let (from, address) = (established.hello.host.clone(), established.hello.advertise);
        shared.questions.push(Question { from, address, body, reply });
        tokio::select! {
            answer = time::timeout(ANSWER_BOUND, answer) => answer.ok().and_then(Result::ok),
            // The asker waits no longer: whoever would answer sees that.
            _ = send.stopped() => None,
        }
    } else {
        None
    };
    let Some(answer) = answer else {
        shared.counters.dropped("ask");
        // It fails when the asker has gone, which is as good.
        _ = send.reset(NO_ANSWER);
        return;
    };
    shared.counters.message("out", "answer", answer.len());
    if send.write_all(&answer).await.is_ok() {
        // As above.
        _ = send.finish();
    }
}
