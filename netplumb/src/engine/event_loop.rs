//! A thread of the engine: one epoll for all its interfaces, level-triggered.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use tokio::time::Instant;

use super::datagrams::{Datagrams, Socket};
use super::device::{Read, Tun};
use super::segments::{PADDING, Segments};
use super::tunnels::{BUFFER, Tunnels, Turn};
use super::wires::{Buffers, Wires};
use super::{EngineError, Interface, InterfaceState, PeerConfig};
use crate::state::Key;

/// What is taken from one descriptor before the next one has its turn: a millisecond's work at most.
const READS: usize = 64;
/// The same in bytes.
const BYTES: usize = 192 << 10;

const EVENTS: usize = 64;

/// boringtun's timers are exact to this.
const TICK: Duration = Duration::from_millis(250);

/// The event of the command eventfd; the others are twice the port's number, plus one for UDP.
const WAKE: u64 = u64::MAX;

/// Something to do with the interfaces, on their thread.
pub(super) type Command = Box<dyn FnOnce(&mut Ports) + Send>;

/// The thread's state.
pub(super) struct EventLoop {
    ports: Ports,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
}

/// All interfaces of the thread.
pub(super) struct Ports {
    epoll: OwnedFd,
    ports: BTreeMap<u64, Box<Port>>,
    numbers: BTreeMap<String, u64>,
    /// Numbers are not used twice: an event of a removed port finds nobody.
    next_number: u64,
    tick_at: Instant,
    inbound: Box<[u8]>,
    buffers: Buffers,
}

/// One interface and its descriptors.
pub(super) struct Port {
    tun: Tun,
    udp: Socket,
    tunnels: Tunnels,
    dropped: u64,
}

impl EventLoop {
    pub(super) fn new(wake: Arc<OwnedFd>, commands: Receiver<Command>) -> Result<EventLoop, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let ports = Ports {
            epoll,
            ports: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: 0,
            tick_at: Instant::now(),
            inbound: vec![0; BUFFER].into(),
            buffers: Buffers::new(),
        };
        Ok(EventLoop { ports, wake, commands })
    }

    /// Serves until the handle is dropped.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let timeout = self.ports.timeout();
            match epoll::wait(&self.ports.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(error) => {
                    tracing::error!(%error, "the WireGuard engine cannot wait for packets and ends");
                    return;
                }
            }
            for epoll::Event { data, flags } in events.drain(..) {
                match data.u64() {
                    WAKE if !self.obey() => return,
                    WAKE => (),
                    event => self.ports.serve(event, flags),
                }
            }
            self.ports.run_timers();
        }
    }

    /// Carries out what the handle asked for; false when the handle is gone.
    fn obey(&mut self) -> bool {
        // Nonblocking, and only there to end the event: a failure changes nothing.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        loop {
            match self.commands.try_recv() {
                Ok(command) => command(&mut self.ports),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

impl Ports {
    /// Serves the port, or gives it back, so that another thread closes it.
    pub(super) fn add(&mut self, id: &str, port: Box<Port>) -> Result<(), (EngineError, Option<Box<Port>>)> {
        let number = self.next_number;
        self.next_number += 1;
        if let Err(error) = self.watch(number, &port) {
            return Err((EngineError::Io(error.into()), Some(port)));
        }
        self.numbers.insert(id.to_owned(), number);
        self.ports.insert(number, port);
        Ok(())
    }

    fn watch(&self, number: u64, port: &Port) -> Result<(), Errno> {
        let (tun, udp) = (epoll::EventData::new_u64(number << 1), epoll::EventData::new_u64(number << 1 | 1));
        epoll::add(&self.epoll, &port.tun.fd, tun, epoll::EventFlags::IN)?;
        let watched = epoll::add(&self.epoll, &port.udp.fd, udp, epoll::EventFlags::IN);
        if watched.is_err() {
            let _ = epoll::delete(&self.epoll, &port.tun.fd);
        }
        watched
    }

    /// Gives the port away, so that another thread closes it.
    pub(super) fn remove(&mut self, id: &str) -> Option<Box<Port>> {
        let port = self.ports.remove(&self.numbers.remove(id)?)?;
        // The agent may hold duplicates, which would keep the events coming.
        for fd in [&port.tun.fd, &port.udp.fd] {
            let _ = epoll::delete(&self.epoll, fd);
        }
        Some(port)
    }

    pub(super) fn interface(&self, id: &str) -> Option<Interface> {
        let port = self.ports.get(self.numbers.get(id)?)?;
        Some(port.tunnels.interface(port.tun.fd.clone(), port.udp.fd.clone()))
    }

    pub(super) fn set_mtu(&mut self, id: &str, mtu: u32) {
        self.with(id, |tunnels, _| tunnels.set_mtu(mtu));
    }

    pub(super) fn set_peer(&mut self, id: &str, peer: &PeerConfig) -> Result<(), EngineError> {
        let added = self.with(id, |tunnels, turn| tunnels.set_peer(peer, turn));
        match added {
            None => Err(EngineError::NoInterface(id.to_owned())),
            Some(false) => Err(EngineError::Full(id.to_owned())),
            Some(true) => Ok(()),
        }
    }

    pub(super) fn set_address(&mut self, id: &str, address: Ipv4Addr, address6: Option<Ipv6Addr>) {
        self.with(id, |tunnels, _| tunnels.set_address(address, address6));
    }

    pub(super) fn remove_peer(&mut self, id: &str, key: &Key) {
        self.with(id, |tunnels, _| tunnels.remove_peer(key));
    }

    pub(super) fn observe(&self, id: &str) -> Option<InterfaceState> {
        let port = self.ports.get(self.numbers.get(id)?)?;
        let mut state = port.tunnels.state(Instant::now());
        state.counters.dropped = port.dropped;
        Some(state)
    }

    fn with<R>(&mut self, id: &str, act: impl FnOnce(&mut Tunnels, &mut Turn<'_>) -> R) -> Option<R> {
        let port = self.ports.get_mut(self.numbers.get(id)?)?;
        Some(port.with(Instant::now(), &mut self.buffers, |_, _, tunnels, turn| act(tunnels, turn)))
    }

    fn serve(&mut self, event: u64, flags: epoll::EventFlags) {
        let Some(port) = self.ports.get_mut(&(event >> 1)) else { return };
        let is_tun = event & 1 == 0;
        let read = if is_tun { Port::read_tun } else { Port::read_udp };
        let mut dead = read(port, &mut self.inbound, &mut self.buffers);
        if is_tun {
            // Unlike a socket's, a TUN's error state is its end: the device is being destroyed.
            dead |= flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        } else {
            dead |= flags.contains(epoll::EventFlags::HUP);
            if flags.contains(epoll::EventFlags::ERR) {
                port.udp.drop_errors(&mut self.inbound);
            }
        }
        if dead {
            let fd = if is_tun { &port.tun.fd } else { &port.udp.fd };
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let retry = self.ports.values().filter_map(|port| port.tunnels.retry_due()).min();
        let tick = self.ports.values().any(|port| port.tunnels.live()).then_some(self.tick_at);
        let wait = retry.into_iter().chain(tick).min()?.saturating_duration_since(Instant::now());
        // Upwards to a whole millisecond, which is all epoll_wait knows.
        let wait_ms = wait.as_micros().div_ceil(1000) as i64;
        Some(Timespec { tv_sec: wait_ms / 1000, tv_nsec: wait_ms % 1000 * 1_000_000 })
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        let tick = now >= self.tick_at;
        if tick {
            self.tick_at = now + TICK;
        }
        for port in self.ports.values_mut() {
            if port.tunnels.retry_due().is_some_and(|due| due <= now) {
                port.with(now, &mut self.buffers, |_, _, tunnels, turn| tunnels.retry(turn));
            }
            if tick && port.tunnels.live() {
                port.with(now, &mut self.buffers, |_, _, tunnels, turn| tunnels.tick(turn));
            }
        }
    }
}

impl Port {
    pub(super) fn new(tun: Tun, udp: Socket, tunnels: Tunnels) -> Port {
        Port { tun, udp, tunnels, dropped: 0 }
    }

    /// Reads packets of this host; true when the TUN is dead.
    fn read_tun(&mut self, inbound: &mut [u8], buffers: &mut Buffers) -> bool {
        self.with(Instant::now(), buffers, |tun, _, tunnels, turn| {
            let mut bytes = 0;
            for _ in 0..READS {
                match tun.read(&mut inbound[..BUFFER - PADDING]) {
                    Read::Got((header, length)) => {
                        let cut = header.and_then(|header| Segments::new(inbound, length, &header));
                        match cut {
                            Some(mut packets) => tunnels.outbound(&mut packets, turn),
                            None => tunnels.malformed(),
                        }
                        bytes += length;
                    }
                    Read::Passing => (),
                    Read::Empty => return false,
                    Read::Dead(error) => {
                        tracing::info!(%error, "a TUN device is gone with its network namespace");
                        return true;
                    }
                }
                if bytes >= BYTES {
                    break;
                }
            }
            false
        })
    }

    /// Reads messages of the network; true when the socket is dead.
    fn read_udp(&mut self, inbound: &mut [u8], buffers: &mut Buffers) -> bool {
        self.with(Instant::now(), buffers, |_, udp, tunnels, turn| {
            let mut bytes = 0;
            for _ in 0..READS {
                match udp.receive(inbound) {
                    Read::Got(Datagrams { from: Some(from), length, each }) => {
                        inbound[..length]
                            .chunks(each)
                            .for_each(|message| tunnels.inbound(from, message, turn));
                        bytes += length;
                    }
                    Read::Got(_) | Read::Passing => (),
                    Read::Empty => return false,
                    Read::Dead(error) => {
                        tracing::warn!(%error, "a WireGuard socket failed: add the interface anew");
                        return true;
                    }
                }
                if bytes >= BYTES {
                    break;
                }
            }
            false
        })
    }

    /// Lets `act` work on the interface; then everything that came of it leaves.
    fn with<R>(
        &mut self,
        now: Instant,
        buffers: &mut Buffers,
        act: impl FnOnce(&Tun, &Socket, &mut Tunnels, &mut Turn<'_>) -> R,
    ) -> R {
        let mut out = Wires::new(&self.tun, &self.udp, buffers, now);
        let result = act(&self.tun, &self.udp, &mut self.tunnels, &mut Turn { now, out: &mut out });
        self.dropped += out.end();
        result
    }
}
