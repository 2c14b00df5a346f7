//! Serving one container's sockets on tokio.

use crate::answer::{DropReason, Outcome, Transport, answer, servfail};
use crate::counters::{Counters, Forwarded, NetworkCounters};
use crate::forward::Forwarder;
use crate::question::QUERY_BYTES_MAX;
use crate::scope::Scope;
use crate::socket::Sockets;
use crate::stream;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Relayed queries in flight for one container.
const IN_FLIGHT_MAX: usize = 128;
/// Datagrams answered before others get their turn on this thread.
const BATCH: usize = 64;
/// After an error that would come again at once, such as no descriptor left.
pub(crate) const BACKOFF: Duration = Duration::from_millis(100);

/// Serves one container's queries until it is dropped or closed.
#[derive(Debug)]
pub struct Listener {
    tasks: [JoinHandle<()>; 2],
    /// Ends when the last socket is closed.
    open: mpsc::Receiver<Infallible>,
}

impl Listener {
    /// Serves `sockets` with whatever `scope` holds at the time of each query. Call it within a tokio runtime.
    ///
    /// # Errors
    /// A socket cannot be registered with the runtime.
    pub fn serve(
        sockets: Sockets,
        scope: watch::Receiver<Arc<Scope>>,
        forwarder: Forwarder,
        counters: Arc<Counters>,
    ) -> io::Result<Listener> {
        let Sockets { udp, tcp } = sockets;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (held, open) = mpsc::channel(1);
        let udp = Arc::new(Held { socket: UdpSocket::from_std(udp)?, held: held.clone() });
        let tcp = Held { socket: TcpListener::from_std(tcp)?, held };
        let desk = Desk::new(scope, forwarder, counters);
        let tasks =
            [tokio::spawn(serve_datagrams(udp, desk.clone())), tokio::spawn(stream::accept(tcp, desk))];
        Ok(Listener { tasks, open })
    }

    /// Closes every socket, those of accepted connections included, and waits until they are closed: only then
    /// can the container's namespace go. Dropping does the same without waiting.
    pub async fn close(mut self) {
        self.abort();
        while self.open.recv().await.is_some() {}
    }

    fn abort(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A socket, and the proof that it is open: dropped after it.
#[derive(Debug)]
pub(crate) struct Held<S> {
    pub(crate) socket: S,
    held: mpsc::Sender<Infallible>,
}

impl<S> Held<S> {
    /// Another socket of the same listener.
    pub(crate) fn with<T>(&self, socket: T) -> Held<T> {
        Held { socket, held: self.held.clone() }
    }
}

impl<S> Deref for Held<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.socket
    }
}

/// What a listener's sockets share to answer a query; each task has its own clone.
#[derive(Clone)]
pub(crate) struct Desk {
    scope: watch::Receiver<Arc<Scope>>,
    /// Of the scope's zones.
    zone_counters: Vec<Arc<NetworkCounters>>,
    /// Of the first zone, for names in none.
    own_counters: Arc<NetworkCounters>,
    counters: Arc<Counters>,
    forwarder: Forwarder,
    in_flight: Arc<Semaphore>,
}

/// What follows from a query.
pub(crate) enum Next {
    /// Send what was written.
    Send,
    /// Wait for an upstream.
    Wait(Relay),
    /// Nothing.
    Nothing,
}

impl Desk {
    fn new(scope: watch::Receiver<Arc<Scope>>, forwarder: Forwarder, counters: Arc<Counters>) -> Desk {
        let mut desk = Desk {
            zone_counters: Vec::new(),
            own_counters: counters.network(""),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            scope,
            counters,
            forwarder,
        };
        desk.scope.mark_changed();
        desk
    }

    /// Answers one query into `out`.
    pub(crate) fn answer(&mut self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Next {
        let started = Instant::now();
        let scope = self.scope.borrow_and_update();
        if scope.has_changed() {
            let networks = scope.zones().iter().map(|zone| zone.network());
            self.own_counters = self.counters.network(networks.clone().next().unwrap_or(""));
            self.zone_counters = networks.map(|network| self.counters.network(network)).collect();
        }
        let outcome = answer(query, &scope, transport, &mut rand::rng(), out);
        drop(scope);
        match outcome {
            Outcome::Reply { rcode, zone } => {
                let counters =
                    zone.and_then(|zone| self.zone_counters.get(zone)).unwrap_or(&self.own_counters);
                counters.count(transport, rcode);
                self.counters.count_duration(started.elapsed());
                Next::Send
            }
            Outcome::Forward => self.relay(query, transport, started, out),
            Outcome::Drop(reason) => {
                self.counters.count_dropped(reason);
                Next::Nothing
            }
        }
    }

    fn relay(&self, query: &[u8], transport: Transport, started: Instant, out: &mut Vec<u8>) -> Next {
        let permits = Arc::clone(&self.in_flight).try_acquire_owned().ok().zip(self.forwarder.permit());
        let Some(permits) = permits else {
            servfail(query, transport, out);
            self.counters.count_forwarded(Forwarded::Busy);
            self.own_counters.count(transport, rcode(out));
            self.counters.count_duration(started.elapsed());
            return Next::Send;
        };
        Next::Wait(Relay {
            query: query.to_vec(),
            transport,
            started,
            counters: Arc::clone(&self.counters),
            own_counters: Arc::clone(&self.own_counters),
            forwarder: self.forwarder.clone(),
            permits,
        })
    }
}

/// A query on its way to an upstream.
pub(crate) struct Relay {
    query: Vec<u8>,
    transport: Transport,
    started: Instant,
    counters: Arc<Counters>,
    own_counters: Arc<NetworkCounters>,
    forwarder: Forwarder,
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// A reply to be sent; counts as in flight until then.
pub(crate) struct Relayed {
    pub(crate) reply: Vec<u8>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Relay {
    /// The upstream's reply, or SERVFAIL.
    pub(crate) async fn run(self) -> Relayed {
        let (outcome, reply) = match self.forwarder.relay(&self.query, self.transport).await {
            Some(reply) => (Forwarded::Answered, reply),
            None => {
                let mut reply = Vec::new();
                servfail(&self.query, self.transport, &mut reply);
                (Forwarded::Failed, reply)
            }
        };
        self.counters.count_forwarded(outcome);
        self.own_counters.count(self.transport, rcode(&reply));
        self.counters.count_duration(self.started.elapsed());
        Relayed { reply, _permits: self.permits }
    }
}

/// The response code in a reply's header.
fn rcode(reply: &[u8]) -> u16 {
    reply.get(3).map_or(0, |flags| u16::from(flags & 0xf))
}

async fn serve_datagrams(socket: Arc<Held<UdpSocket>>, mut desk: Desk) {
    let mut relays = JoinSet::new();
    while socket.readable().await.is_ok() {
        while relays.try_join_next().is_some() {}
        match answer_datagrams(&socket, &mut desk, &mut relays) {
            Ok(Left::Nothing) => {}
            Ok(Left::Perhaps) => tokio::task::yield_now().await,
            Err(error) => {
                tracing::warn!(%error, "DNS socket fails");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

/// Whether more datagrams wait after a batch.
enum Left {
    Nothing,
    Perhaps,
}

/// Answers what has arrived, at most a batch. Its buffers live on the stack only while there is something to answer: a thousand
/// idle containers cost nothing.
fn answer_datagrams(
    socket: &Arc<Held<UdpSocket>>,
    desk: &mut Desk,
    relays: &mut JoinSet<()>,
) -> io::Result<Left> {
    // One byte more than is read, so that a longer query is not taken for its beginning.
    let mut query = [0; QUERY_BYTES_MAX + 1];
    let mut reply = Vec::new();
    for _ in 0..BATCH {
        let (length, from) = match socket.try_recv_from(&mut query) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Left::Nothing),
            Err(error) => return Err(error),
        };
        if !can_be_answered(from) {
            desk.counters.count_dropped(DropReason::Source);
            continue;
        }
        match desk.answer(&query[..length], Transport::Udp, &mut reply) {
            Next::Send if socket.try_send_to(&reply, from).is_err() => {
                desk.counters.count_dropped(DropReason::Send)
            }
            Next::Send | Next::Nothing => {}
            Next::Wait(relay) => {
                relays.spawn(send_relayed(relay, Arc::clone(socket), from, Arc::clone(&desk.counters)));
            }
        }
    }
    Ok(Left::Perhaps)
}

async fn send_relayed(relay: Relay, socket: Arc<Held<UdpSocket>>, to: SocketAddr, counters: Arc<Counters>) {
    let relayed = relay.run().await;
    if socket.send_to(&relayed.reply, to).await.is_err() {
        counters.count_dropped(DropReason::Send);
    }
}

/// Whether a source can be sent to without reaching anybody else.
fn can_be_answered(from: SocketAddr) -> bool {
    let IpAddr::V4(address) = from.ip() else { return false };
    from.port() != 0 && !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
}

#[cfg(test)]
mod namespace_tests;
#[cfg(test)]
mod tests;
