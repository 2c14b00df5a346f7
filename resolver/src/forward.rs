//! Names outside the zone: the query's bytes go to an upstream, the reply's come back.
//!
//! Relaying bytes keeps what we do not understand, such as the client's EDNS options.

use crate::answer::Transport;
use crate::question::Question;
use crate::scope::HEADER_BYTES;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// How long one upstream may take.
const SERVER_PATIENCE: Duration = Duration::from_millis(1500);
/// How long all may take: less than the 5 s after which a stub resolver gives up on us.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often each upstream is tried: a datagram may be lost.
const ROUNDS: usize = 2;
/// Relayed queries in flight on this host; each holds a socket.
const IN_FLIGHT_MAX: usize = 4096;

/// Relays queries to upstream name servers, from the namespace the agent runs in. Clones share one limit.
#[derive(Clone, Debug)]
pub struct Forwarder {
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    in_flight: Arc<Semaphore>,
}

impl Forwarder {
    /// Asks `upstreams` in their order, whichever they are at the time of the query.
    pub fn new(upstreams: watch::Receiver<Vec<SocketAddr>>) -> Forwarder {
        Forwarder { upstreams, in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) }
    }

    /// Has no upstream: every relayed query is SERVFAIL.
    pub fn none() -> Forwarder {
        Forwarder::new(watch::channel(Vec::new()).1)
    }

    /// Whether an upstream answers at all: they are asked for the root's name servers.
    pub async fn answers(&self) -> bool {
        // RFC 1035 §4.1: recursion desired, one question, the root, NS, IN.
        let query = [0x57, 0x52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        self.relay(&query, Transport::Udp).await.is_some()
    }

    /// Room for one query; `None` if too many are in flight.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// The reply to `query`, ready to be sent; `None` if no upstream gave one in time.
    pub(crate) async fn relay(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let upstreams = self.upstreams.borrow().clone();
        let mut failure = None;
        let asked = timeout(PATIENCE, ask_all(&upstreams, query, transport, &mut failure)).await;
        let mut reply = asked.ok().flatten().or(failure)?;
        reply.get_mut(..2)?.copy_from_slice(query.get(..2)?);
        Some(reply)
    }
}

/// Asks one upstream after another. A failure is kept and passed on if nobody knows better.
async fn ask_all(
    upstreams: &[SocketAddr],
    query: &[u8],
    transport: Transport,
    failure: &mut Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    for _ in 0..ROUNDS {
        for upstream in upstreams {
            match timeout(SERVER_PATIENCE, ask(*upstream, query, transport)).await {
                Ok(Ok(reply)) if !is_failure(&reply) => return Some(reply),
                Ok(Ok(reply)) => *failure = Some(reply),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream cannot be asked"),
                Err(_) => tracing::debug!(%upstream, "upstream does not answer"),
            }
        }
        if failure.is_some() {
            return None;
        }
    }
    None
}

async fn ask(upstream: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let mut sent = query.to_vec();
    // With the socket's random port, all that keeps others from answering in the upstream's place (RFC 5452 §4).
    let id: [u8; 2] = rand::random();
    sent.get_mut(..2).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&id);
    match transport {
        Transport::Udp => ask_by_datagram(upstream, &sent).await,
        Transport::Tcp => ask_by_stream(upstream, &sent).await,
    }
}

async fn ask_by_datagram(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut reply = Vec::with_capacity(usize::from(u16::MAX));
    loop {
        reply.clear();
        socket.recv_buf(&mut reply).await?;
        if answers(&reply, query) {
            reply.shrink_to_fit();
            return Ok(reply);
        }
    }
}

async fn ask_by_stream(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    match answers(&reply, query) {
        true => Ok(reply),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether `reply` answers `query`: a response with its id, opcode and question. Servers that could not read the
/// question may leave it out of an error.
fn answers(reply: &[u8], query: &[u8]) -> bool {
    let (Some(header), Some(question)) = (reply.get(..HEADER_BYTES), Question::read_first(query)) else {
        return false;
    };
    let same_exchange = header[..2] == query[..2] && header[2] & 0xf8 == 0x80 | query[2] & 0x78;
    let same_question = match header[4..6] {
        [0, 1] => reply.get(HEADER_BYTES..question.head.len()) == Some(&question.head[HEADER_BYTES..]),
        [0, 0] => reply.len() == HEADER_BYTES && !matches!(header[3] & 0xf, 0 | 3),
        _ => false,
    };
    same_exchange && same_question
}

/// Whether another upstream may know better: FORMERR, SERVFAIL, NOTIMP or REFUSED.
fn is_failure(reply: &[u8]) -> bool {
    matches!(reply[3] & 0xf, 1 | 2 | 4 | 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01A\0\0\x01\0\x01";

    #[test]
    fn only_the_reply_to_this_query_is_taken() {
        let check = |change: &[(usize, u8)], cut: usize, expected: bool| {
            let mut reply = QUERY[..QUERY.len() - cut].to_vec();
            reply[2] |= 0x80;
            change.iter().for_each(|(index, byte)| reply[*index] = *byte);
            assert_eq!(answers(&reply, QUERY), expected, "{reply:?}");
        };
        check(&[], 0, true);
        check(&[(3, 0x83)], 0, true);
        check(&[(0, 0x13)], 0, false);
        check(&[(2, 0x01)], 0, false);
        check(&[(2, 0x91)], 0, false);
        check(&[(13, b'a')], 0, false);
        check(&[(16, 28)], 0, false);
        check(&[], 1, false);
        check(&[(5, 2)], 0, false);
        check(&[(5, 0), (3, 0x81)], 7, true);
        check(&[(5, 0), (3, 0x80)], 7, false);
        check(&[(5, 0), (3, 0x81)], 6, false);
        check(&[], 8, false);
    }
}
