//! Serving one container's sockets on tokio.

use crate::counters::Counters;
use crate::desk::Desk;
use crate::forward::Forwarder;
use crate::limits::Limits;
use crate::scope::Scope;
use crate::socket::Sockets;
use crate::{datagrams, stream};
use std::convert::Infallible;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// After an error that would come again at once, such as no descriptor left.
pub(crate) const BACKOFF: Duration = Duration::from_millis(100);

/// What all the listeners of a host have in common; clones share counts and limits.
#[derive(Clone, Debug)]
pub struct Service {
    /// Asks the upstreams.
    pub forwarder: Forwarder,
    /// What was done.
    pub counters: Arc<Counters>,
    /// What each container may take.
    pub limits: Limits,
}

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
        service: Service,
    ) -> io::Result<Listener> {
        let Sockets { udp, tcp } = sockets;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (held, open) = mpsc::channel(1);
        let udp = Arc::new(Held { socket: UdpSocket::from_std(udp)?, held: held.clone() });
        let tcp = Held { socket: TcpListener::from_std(tcp)?, held };
        let limits = service.limits.clone();
        let desk = Desk::new(scope, service);
        let tasks = [
            tokio::spawn(datagrams::serve(udp, desk.clone())),
            tokio::spawn(stream::accept(tcp, desk, limits)),
        ];
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

#[cfg(test)]
mod namespace_tests;
#[cfg(test)]
mod tests;
