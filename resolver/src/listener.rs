//! Serving one container's sockets on tokio.

use crate::answer::{DropReason, Transport};
use crate::counters::Counters;
use crate::desk::{Desk, Next, Relay};
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
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

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
            desk.counters().count_dropped(DropReason::Source);
            continue;
        }
        match desk.answer(&query[..length], Transport::Udp, &mut reply) {
            Next::Send if socket.try_send_to(&reply, from).is_err() => {
                desk.counters().count_dropped(DropReason::Send)
            }
            Next::Send | Next::Nothing => {}
            Next::Wait(relay) => {
                relays.spawn(send_relayed(relay, Arc::clone(socket), from, Arc::clone(desk.counters())));
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
