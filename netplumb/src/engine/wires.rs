//! What leaves an interface in a turn: collected in buffers that all interfaces share, and gone when the turn ends.

use std::io::IoSlice;
use std::net::SocketAddrV4;

use tokio::time::Instant;

use super::datagrams::{Socket, Train};
use super::device::Tun;
use super::trains::Trains;
use super::tunnels::{BUFFER, Outlet};

/// Packets for this host that are collected before they are written.
const PACKETS: usize = 4 * BUFFER;
/// A train of messages, and the one behind it.
const MESSAGES: usize = 2 * BUFFER;

/// The buffers. Empty between turns.
pub(super) struct Buffers {
    messages: Box<[u8]>,
    packets: Box<[u8]>,
    /// How much of `packets` there is.
    filled: usize,
    trains: Trains,
}

impl Buffers {
    pub(super) fn new() -> Buffers {
        Buffers {
            messages: vec![0; MESSAGES].into(),
            packets: vec![0; PACKETS].into(),
            filled: 0,
            trains: Trains::default(),
        }
    }
}

/// The way out of one interface for one turn.
pub(super) struct Wires<'a> {
    tun: &'a Tun,
    udp: &'a Socket,
    buffers: &'a mut Buffers,
    train: Option<Train>,
    now: Instant,
    /// Packets and messages that were not taken.
    dropped: u64,
}

impl<'a> Wires<'a> {
    pub(super) fn new(tun: &'a Tun, udp: &'a Socket, buffers: &'a mut Buffers, now: Instant) -> Wires<'a> {
        Wires { tun, udp, buffers, train: None, now, dropped: 0 }
    }

    /// Ends the turn: everything leaves. How much of it was not taken.
    pub(super) fn end(mut self) -> u64 {
        self.send();
        self.write();
        self.dropped
    }

    fn send(&mut self) {
        if let Some(train) = self.train.take() {
            self.dropped += self.udp.send(&train, &self.buffers.messages[..train.length], self.now);
        }
    }

    fn write(&mut self) {
        let Buffers { packets, trains, filled, .. } = &mut *self.buffers;
        let tun = self.tun;
        if !trains.is_empty() {
            self.dropped += trains.write(packets, tun.accepts, |parts: &[IoSlice<'_>]| tun.write(parts));
        }
        *filled = 0;
    }

    fn sent(&self) -> usize {
        self.train.map_or(0, |train| train.length)
    }
}

impl Outlet for Wires<'_> {
    fn message(&mut self) -> &mut [u8] {
        let start = self.sent();
        &mut self.buffers.messages[start..]
    }

    fn network(&mut self, to: SocketAddrV4, length: usize) {
        let start = self.sent();
        self.train = self.train.and_then(|train| train.with(to, length)).or_else(|| {
            self.send();
            self.buffers.messages.copy_within(start..start + length, 0);
            Some(Train::new(to, length))
        });
    }

    fn packet(&mut self) -> &mut [u8] {
        if self.buffers.filled + BUFFER > self.buffers.packets.len() {
            self.write();
        }
        &mut self.buffers.packets[self.buffers.filled..]
    }

    fn host(&mut self, length: usize) {
        let Buffers { packets, trains, filled, .. } = &mut *self.buffers;
        trains.push(packets, *filled..*filled + length, self.tun.accepts);
        *filled += length;
    }
}
