//! DNS over TCP (RFC 7766): length-framed messages, pipelined, answered as they become ready.

use crate::answer::Transport;
use crate::desk::{Desk, Next, Relayed};
use crate::limits::Limits;
use crate::listener::{BACKOFF, Held};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Connections of one container at a time; one more replaces the one that is idle longest.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may stay without a query, or not take a reply.
const IDLE: Duration = Duration::from_secs(10);
/// How long a query may take to arrive once begun.
const PARTIAL: Duration = Duration::from_secs(2);
/// Replies gathered before they are written.
const WRITE_BYTES: usize = 16 * 1024;
/// Room for a few queries; grows with a longer one.
const READ_BYTES: usize = 512;

/// Accepts connections for ever.
pub(crate) async fn accept(listener: Held<TcpListener>, desk: Desk, limits: Limits) {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => listener.with(stream),
            Err(error) => {
                tracing::warn!(%error, "DNS connection not accepted");
                sleep(BACKOFF).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() >= CONNECTIONS_MAX {
            evict(&mut connections);
        }
        // Where the whole host has no room the connection ends here, and its client asks again.
        let Ok(room) = Arc::clone(&limits.connections).try_acquire_owned() else { continue };
        let activity = Activity { started, last_ms: Arc::default() };
        activity.mark();
        let task = tasks.spawn(serve(stream, desk.clone(), activity.clone(), room));
        connections.push(Connection { task, activity });
    }
}

/// An accepted connection, as the acceptor sees it.
struct Connection {
    task: AbortHandle,
    activity: Activity,
}

/// When a connection last read or wrote.
#[derive(Clone)]
struct Activity {
    started: Instant,
    /// Milliseconds after `started`.
    last_ms: Arc<AtomicU64>,
}

impl Activity {
    fn mark(&self) {
        self.last_ms.store(self.started.elapsed().as_millis() as u64, Relaxed);
    }
}

/// Ends the connection that is idle longest: a client that opens many and says nothing hurts only itself.
fn evict(connections: &mut Vec<Connection>) {
    let last_ms = |connection: &Connection| connection.activity.last_ms.load(Relaxed);
    let idlest = connections.iter().enumerate().min_by_key(|(_, connection)| last_ms(connection));
    if let Some((index, _)) = idlest {
        connections.remove(index).task.abort();
    }
}

/// Answers one connection's queries until it ends, errs or idles.
async fn serve(stream: Held<TcpStream>, desk: Desk, activity: Activity, _room: OwnedSemaphorePermit) {
    let mut exchange =
        Exchange { stream, desk, activity, received: Vec::with_capacity(READ_BYTES), relays: JoinSet::new() };
    if let Err(error) = exchange.run().await {
        tracing::trace!(%error, "DNS connection ended");
    }
}

/// One connection's queries and replies.
struct Exchange {
    stream: Held<TcpStream>,
    desk: Desk,
    activity: Activity,
    /// What was read and holds no whole query yet.
    received: Vec<u8>,
    relays: JoinSet<Relayed>,
}

impl Exchange {
    async fn run(&mut self) -> io::Result<()> {
        let mut finished = false;
        let mut deadline = Instant::now() + IDLE;
        while !finished || !self.relays.is_empty() {
            let awaited = finished || (self.received.is_empty() && !self.relays.is_empty());
            tokio::select! {
                read = self.stream.socket.read_buf(&mut self.received), if !finished => {
                    let read = read?;
                    finished = read == 0;
                    deadline = self.answer_received(read, deadline).await?;
                }
                Some(relayed) = self.relays.join_next() => {
                    if let Ok(relayed) = relayed {
                        self.write(&framed(&relayed.reply)).await?;
                    }
                    if self.received.is_empty() {
                        deadline = Instant::now() + IDLE;
                    }
                }
                () = sleep_until(deadline), if !awaited => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }

    /// Answers the whole queries received, the last `read` bytes of which are new. Says until when the next has to
    /// be complete; the time for one that has begun does not grow with each byte.
    async fn answer_received(&mut self, read: usize, deadline: Instant) -> io::Result<Instant> {
        self.activity.mark();
        let had_begun = self.received.len() > read;
        let received = std::mem::take(&mut self.received);
        let (mut rest, mut ready) = (&received[..], Vec::new());
        while split_frame(rest).is_some() {
            self.desk.keep_pace().await;
            rest = self.answer_some(rest, &mut ready);
            self.write(&ready).await?;
            ready.clear();
        }
        let answered_any = rest.len() < received.len();
        self.received.reserve(READ_BYTES.max(rest.len()));
        self.received.extend_from_slice(rest);
        Ok(match (self.received.is_empty(), had_begun && !answered_any) {
            (true, _) => Instant::now() + IDLE,
            (false, true) => deadline,
            (false, false) => Instant::now() + PARTIAL,
        })
    }

    /// Answers as many of the queries `received` begins with as make one write, and says what follows them.
    fn answer_some<'r>(&mut self, received: &'r [u8], ready: &mut Vec<u8>) -> &'r [u8] {
        let began = self.desk.begin();
        let (mut rest, mut reply, mut queries, mut replies) = (received, Vec::new(), 0, 0);
        while let Some((query, after)) = split_frame(rest).filter(|_| ready.len() < WRITE_BYTES) {
            match self.desk.answer(query, Transport::Tcp, &mut reply) {
                Next::Send => {
                    ready.extend(framed(&reply));
                    replies += 1;
                }
                Next::Wait(relay) => drop(self.relays.spawn(relay.run())),
                Next::Nothing => {}
            }
            queries += 1;
            rest = after;
        }
        self.desk.end(began, queries, replies);
        rest
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(IDLE, self.stream.socket.write_all(bytes)).await??;
        self.activity.mark();
        Ok(())
    }
}

/// The first whole message and what follows it.
fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// `message` behind its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}
