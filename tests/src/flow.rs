//! A TCP connection that must last: blocks of its own, echoed and compared.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Netns;
use crate::wait::{clock, paced, seconds};

/// What every block begins with: whoever sees it on the underlay has seen through the encryption.
pub const MARK: &[u8] = b"a-block-of-a-flow-in-clear";
/// How long one block may be on its way: while nothing passes TCP doubles its pauses, and tries again at their end only.
const PATIENCE: Duration = seconds(900);
/// The longest of those pauses (TCP_RTO_MAX), and a little.
pub const PAUSE: Duration = seconds(130);

/// Blocks to an [`crate::traffic::Echo`] over one connection until it is stopped.
pub struct Flow {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Flow {
    /// Connects from `netns`, and sends a block of so many bytes every `period`, the next one once it is back.
    #[track_caller]
    pub fn start(netns: &Netns, to: SocketAddr, bytes: usize, period: Duration) -> Flow {
        let connected = netns.enter(|| TcpStream::connect_timeout(&to, seconds(10)).and_then(greeted));
        let stream = connected.unwrap_or_else(|e| panic!("{} to {to}: {e}", netns.path().display()));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || flow(stream, bytes, period, &stopped, &counted));
        Flow { stop, rounds, thread }
    }

    /// How many blocks have come back.
    pub fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    /// It broke.
    pub fn broke(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it: the longest time that a block took.
    ///
    /// # Errors
    /// The connection broke, before or now, or brought back something else.
    pub fn stop(self) -> io::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// The stream behind the server's name and line end, which come first.
fn greeted(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

fn flow(
    mut stream: TcpStream,
    bytes: usize,
    period: Duration,
    stop: &AtomicBool,
    rounds: &AtomicUsize,
) -> io::Result<Duration> {
    let (mut block, mut back) = (MARK.repeat(bytes / MARK.len() + 1), vec![0; bytes]);
    block.truncate(bytes);
    let (mut longest, mut result) = (Duration::ZERO, Ok(()));
    paced(period, || {
        let started = clock();
        let number = rounds.load(Ordering::Relaxed).to_be_bytes();
        block[bytes - number.len()..].copy_from_slice(&number);
        result = stream.write_all(&block).and_then(|()| stream.read_exact(&mut back));
        if result.is_ok() && back != block {
            result = Err(io::ErrorKind::InvalidData.into());
        }
        longest = longest.max(started.elapsed());
        rounds.fetch_add(1, Ordering::Relaxed);
        result.is_ok() && !stop.load(Ordering::Relaxed)
    });
    result.map(|()| longest)
}
