//! Steady traffic that notices every loss and every pause: a numbered datagram every 10 ms, echoed.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::wait::{clock, paced, seconds};

/// Between two datagrams.
const PERIOD: Duration = Duration::from_millis(10);
/// How long the last ones are waited for.
const PATIENCE: Duration = seconds(5);
/// The echo server writes its name over the beginning; the number is behind it.
const BYTES: usize = 64;

/// Datagrams to an [`crate::Echo`] until stopped.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<(Beat, Vec<Range<Instant>>)>>,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Beat {
    /// Datagrams sent.
    pub sent: usize,
    /// Those that no echo came of.
    pub lost: usize,
    /// The longest time between two echoes.
    pub gap: Duration,
}

impl Pulse {
    /// Sends from `netns` to the echo server at `to`.
    pub fn start(netns: &Netns, to: SocketAddr) -> Pulse {
        Pulse::every(PERIOD, netns, to)
    }

    /// As [`Pulse::start`], in another rhythm.
    pub fn every(period: Duration, netns: &Netns, to: SocketAddr) -> Pulse {
        let (netns, stop) = (netns.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            netns.enter_for_good()?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            beat(period, &socket, &stopped)
        });
        Pulse { stop, thread }
    }

    /// Stops, and waits for what is still on its way.
    #[track_caller]
    pub fn stop(self) -> Beat {
        self.pauses().0
    }

    /// As [`Pulse::stop`], with all times between two echoes that lasted a second or longer.
    #[track_caller]
    pub fn pauses(self) -> (Beat, Vec<Range<Instant>>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic").expect("the socket works")
    }
}

fn beat(
    period: Duration,
    socket: &UdpSocket,
    stopped: &AtomicBool,
) -> io::Result<(Beat, Vec<Range<Instant>>)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(socket, &done));
        let mut sent = 0_u64;
        paced(period, || {
            let mut datagram = [0; BYTES];
            datagram[BYTES - 8..].copy_from_slice(&sent.to_be_bytes());
            // What an interface that is gone refuses is lost, too.
            let _ = socket.send(&datagram);
            sent += 1;
            !stopped.load(Ordering::Relaxed)
        });
        done.store(true, Ordering::Relaxed);
        let (heard, gap, pauses) = listener.join().expect("it does not panic")?;
        let sent = sent as usize;
        Ok((Beat { sent, lost: sent - heard, gap }, pauses))
    })
}

/// How many different numbers came back, the longest pause between two, and all long ones, until nothing more is to
/// come.
fn listen(socket: &UdpSocket, done: &AtomicBool) -> io::Result<(usize, Duration, Vec<Range<Instant>>)> {
    socket.set_read_timeout(Some(PERIOD))?;
    let (mut numbers, mut gap, mut pauses) = (BTreeSet::new(), Duration::ZERO, Vec::new());
    let (mut last, mut ended) = (clock(), None);
    loop {
        let mut datagram = [0; BYTES];
        match socket.recv(&mut datagram) {
            Ok(BYTES)
                if numbers.insert(u64::from_be_bytes(*datagram.last_chunk().expect("it is long enough"))) =>
            {
                let now = clock();
                gap = gap.max(now - last);
                if now - last >= seconds(1) {
                    pauses.push(last..now);
                }
                last = now;
            }
            // An ICMP error, a repetition, or nothing yet.
            _ => {}
        }
        let all = |ended: &Instant| ended.elapsed() >= PATIENCE || last.elapsed() > seconds(1);
        if ended.as_ref().is_some_and(all) {
            return Ok((numbers.len(), gap, pauses));
        }
        if done.load(Ordering::Relaxed) {
            ended.get_or_insert_with(clock);
        }
    }
}
