//! A client that is never the bottleneck: many datagrams for each system call, and a check of every reply.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use tests::wait::clock;

use super::names::Kind;

/// Queries on their way at a time.
const OUTSTANDING: u64 = 256;
const BATCH: usize = 32;
/// After which what is outstanding counts as lost.
const SILENCE: Duration = Duration::from_millis(200);
const REPLY_BYTES: usize = 2048;

/// What came of a run.
#[derive(Default)]
pub struct Came {
    /// Right replies.
    pub answered: u64,
    /// Replies with another code or count than the question has.
    pub wrong: u64,
    /// Queries without a reply.
    pub lost: u64,
    /// How long each reply took, where that was asked for.
    pub took: Vec<Duration>,
}

/// A client of one server.
pub struct Client {
    socket: UdpSocket,
    sending: MultiHeaders<SockaddrIn>,
    receiving: MultiHeaders<SockaddrIn>,
    replies: Box<[[u8; REPLY_BYTES]]>,
}

impl Client {
    /// A client on a port of its own.
    pub fn of(server: SocketAddr) -> io::Result<Client> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(server)?;
        Ok(Client {
            socket,
            sending: MultiHeaders::preallocate(BATCH, None),
            receiving: MultiHeaders::preallocate(BATCH, None),
            replies: vec![[0; REPLY_BYTES]; BATCH].into_boxed_slice(),
        })
    }

    /// Asks as fast as the server answers, for as long as `time`.
    pub fn flood(&mut self, kind: Kind, questions: &[Vec<u8>], time: Duration) -> io::Result<Came> {
        let mut came = Came::default();
        let started = clock();
        let (mut asked, mut heard) = (0, started);
        loop {
            let now = clock();
            let ended = now - started >= time;
            let outstanding = asked - came.answered - came.wrong - came.lost;
            if ended && outstanding == 0 {
                return Ok(came);
            }
            let room = (OUTSTANDING - outstanding).min(BATCH as u64);
            if !ended && room > 0 {
                asked += self.ask(questions, asked, room as usize)?;
            }
            match self.hear(kind, &mut came, &mut |_| ())? {
                0 if now - heard > SILENCE => came.lost += asked - came.answered - came.wrong - came.lost,
                0 => {}
                _ => heard = now,
            }
        }
    }

    /// Asks at a steady rate, whatever the server does, for as long as `time`.
    pub fn pace(
        &mut self,
        kind: Kind,
        questions: &[Vec<u8>],
        per_s: u32,
        time: Duration,
    ) -> io::Result<Came> {
        let gap = Duration::from_secs(1) / per_s;
        let mut sent = Vec::with_capacity((time.as_nanos() / gap.as_nanos()) as usize + 1);
        let (mut came, mut took) = (Came::default(), Vec::with_capacity(sent.capacity()));
        let started = clock();
        loop {
            let now = clock();
            if now - started >= time + SILENCE {
                break;
            }
            if now - started < time && now - started >= gap * sent.len() as u32 {
                self.ask(questions, sent.len() as u64, 1)?;
                sent.push(now);
            }
            self.hear(kind, &mut came, &mut |id| {
                took.extend(sent.get(usize::from(id)).map(|at| clock() - *at))
            })?;
        }
        came.lost = sent.len() as u64 - came.answered - came.wrong;
        came.took = took;
        Ok(came)
    }

    /// Sends the questions from the `first` on; their ids are their numbers' lower 16 bits.
    fn ask(&mut self, questions: &[Vec<u8>], first: u64, count: usize) -> io::Result<u64> {
        let numbers = first..first + count as u64;
        let ids: Vec<[u8; 2]> = numbers.clone().map(|n| (n as u16).to_be_bytes()).collect();
        let slices: Vec<[IoSlice<'_>; 2]> = numbers
            .zip(&ids)
            .map(|(n, id)| [IoSlice::new(id), IoSlice::new(&questions[n as usize % questions.len()][2..])])
            .collect();
        let nowhere = vec![None; count];
        let flags = MsgFlags::MSG_DONTWAIT;
        match sendmmsg(self.socket.as_raw_fd(), &mut self.sending, &slices, &nowhere, [], flags) {
            Ok(sent) => Ok(sent.count() as u64),
            Err(nix::errno::Errno::EAGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what has come; `each` gets the ids.
    fn hear(&mut self, kind: Kind, came: &mut Came, each: &mut dyn FnMut(u16)) -> io::Result<usize> {
        let mut slices: Vec<_> = self.replies.iter_mut().map(|reply| [IoSliceMut::new(reply)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmmsg(self.socket.as_raw_fd(), &mut self.receiving, slices.iter_mut(), flags, None);
        let lengths: Vec<usize> = match received {
            Ok(messages) => messages.map(|message| message.bytes).collect(),
            Err(nix::errno::Errno::EAGAIN) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        for (reply, length) in self.replies.iter().zip(&lengths) {
            let right = *length >= 12
                && (reply[3] & 0xf, u16::from_be_bytes([reply[6], reply[7]])) == kind.expected()
                && reply[2] & 0x82 == 0x80;
            match right {
                true => came.answered += 1,
                false => came.wrong += 1,
            }
            each(u16::from_be_bytes([reply[0], reply[1]]));
        }
        Ok(lengths.len())
    }
}
