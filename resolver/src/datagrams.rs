//! DNS over UDP: a batch of datagrams for each pair of system calls (recvmmsg(2), sendmmsg(2)), because nearly all
//! of what a query costs is the kernel's.

use crate::answer::{DropReason, Transport};
use crate::desk::{Desk, Next, Relay};
use crate::listener::{BACKOFF, Held};
use crate::question::QUERY_BYTES_MAX;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use std::array;
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Datagrams answered before others get their turn on this thread.
const BATCH: usize = 32;

thread_local! {
    /// One for all the sockets a thread serves: a thousand idle containers cost nothing.
    static ARENA: RefCell<Arena> = RefCell::new(Arena::new());
}

/// Answers a socket's datagrams for ever.
pub(crate) async fn serve(socket: Arc<Held<UdpSocket>>, mut desk: Desk) {
    let mut relays = JoinSet::new();
    while socket.readable().await.is_ok() {
        desk.keep_pace().await;
        while relays.try_join_next().is_some() {}
        match answer_batch(&socket, &mut desk, &mut relays) {
            Ok(BATCH) => tokio::task::yield_now().await,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "DNS socket fails");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

/// Answers what has arrived, at most a batch, and says how many datagrams that were.
fn answer_batch(
    socket: &Arc<Held<UdpSocket>>,
    desk: &mut Desk,
    relays: &mut JoinSet<()>,
) -> io::Result<usize> {
    ARENA.with_borrow_mut(|arena| {
        let received = arena.receive(socket)?;
        let batch = desk.begin();
        let mut ready = 0;
        for (query, from) in arena.queries.iter().zip(&arena.from).take(received) {
            let Some((length, from)) = from.filter(|(_, from)| can_be_answered(*from)) else {
                desk.counters().count_dropped(DropReason::Source);
                continue;
            };
            match desk.answer(&query[..length], Transport::Udp, &mut arena.replies[ready]) {
                Next::Send => {
                    arena.to[ready] = Some(from.into());
                    ready += 1;
                }
                Next::Nothing => {}
                Next::Wait(relay) => drop(relays.spawn(send_relayed(relay, Arc::clone(socket), from))),
            }
        }
        for _ in 0..arena.send(socket.as_raw_fd(), ready) {
            desk.counters().count_dropped(DropReason::Send);
        }
        desk.end(batch, received, ready);
        Ok(received)
    })
}

async fn send_relayed(relay: Relay, socket: Arc<Held<UdpSocket>>, to: SocketAddrV4) {
    let relayed = relay.run().await;
    if socket.send_to(&relayed.reply, to).await.is_err() {
        relayed.counters.count_dropped(DropReason::Send);
    }
}

/// Whether a source can be sent to without reaching anybody else.
fn can_be_answered(from: SocketAddrV4) -> bool {
    let address = from.ip();
    from.port() != 0 && !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
}

/// Where a batch is read to and written from.
struct Arena {
    /// One byte more than is read, so that a longer query is not taken for its beginning.
    queries: Box<[[u8; QUERY_BYTES_MAX + 1]]>,
    /// How long each query is and whence it came.
    from: [Option<(usize, SocketAddrV4)>; BATCH],
    replies: [Vec<u8>; BATCH],
    to: [Option<SockaddrIn>; BATCH],
    receiving: MultiHeaders<SockaddrIn>,
    sending: MultiHeaders<SockaddrIn>,
}

impl Arena {
    fn new() -> Arena {
        Arena {
            queries: vec![[0; QUERY_BYTES_MAX + 1]; BATCH].into_boxed_slice(),
            from: [None; BATCH],
            replies: array::from_fn(|_| Vec::new()),
            to: [None; BATCH],
            receiving: MultiHeaders::preallocate(BATCH, None),
            sending: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// Reads what waits, at most a batch, and says how many datagrams that were.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut received = 0;
        let drained = socket.try_io(Interest::READABLE, || {
            let mut queries =
                self.queries.iter_mut().map(|query| [IoSliceMut::new(query)]).collect::<Vec<_>>();
            let flags = MsgFlags::MSG_DONTWAIT;
            let messages =
                recvmmsg(socket.as_raw_fd(), &mut self.receiving, queries.iter_mut(), flags, None)?;
            for (message, from) in messages.zip(&mut self.from) {
                *from = message.address.map(|address| (message.bytes, address.into()));
                received += 1;
            }
            // Nothing is left: it is the next arrival that wakes us, not another look.
            if received < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match drained {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(received),
        }
    }

    /// Sends the first `ready` replies and says how many the socket did not take.
    fn send(&mut self, socket: RawFd, ready: usize) -> usize {
        let replies: [_; BATCH] = array::from_fn(|n| [IoSlice::new(&self.replies[n])]);
        let (mut next, mut lost) = (0, 0);
        while next < ready {
            let (slices, to) = (&replies[next..ready], &self.to[next..ready]);
            match sendmmsg(socket, &mut self.sending, slices, to, [], MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => next += sent.count().max(1),
                Err(_) => (next, lost) = (next + 1, lost + 1),
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_that_would_reach_others_are_not_answered() {
        for (source, expected) in [
            ("127.0.0.1:1", true),
            ("10.240.0.1:53", true),
            ("127.0.0.1:0", false),
            ("0.0.0.0:9", false),
            ("255.255.255.255:9", false),
            ("224.0.0.1:9", false),
        ] {
            assert_eq!(can_be_answered(source.parse().unwrap()), expected, "{source}");
        }
    }
}
