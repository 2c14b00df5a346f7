//! A route netlink socket (RFC 3549; `man 7 rtnetlink`), of the namespace it was opened in.
//!
//! The kernel answers inside the system call that asks, so that nothing here waits but for RTNL, and a socket is
//! closed, in whosever namespace it is, when this value is dropped.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Requests in one write: their answers fit the default receive buffer.
const PIPELINE: usize = 64;
/// A dump during which the table changed is incomplete and made again.
const DUMPS_MAX: usize = 10;

/// A socket of the namespace it was opened in, wherever the thread that uses it is. For threads that may block.
pub(crate) struct Rtnl {
    socket: Socket,
    sequence: u32,
}

/// What came back of requests.
#[derive(Default)]
struct Answers {
    rows: Vec<RouteNetlinkMessage>,
    /// A table changed while it was read.
    interrupted: bool,
    /// The first of them, the kernel's errno.
    error: Option<io::Error>,
}

impl Rtnl {
    /// A socket of the calling thread's namespace.
    pub(crate) fn here() -> io::Result<Rtnl> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An answer that is not there has been lost.
        socket.set_non_blocking(true)?;
        // An error answer quotes the message it is about, unless told not to.
        socket.set_cap_ack(true)?;
        Ok(Rtnl { socket, sequence: 0 })
    }

    /// The index of the link of this name; ENODEV without such a one. A description of the link would take longer.
    pub(crate) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// One request; an error is the kernel's errno.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.batch([(message, flags)])
    }

    /// Many requests without waiting for each. All are tried; the first error is given back.
    pub(crate) fn batch(
        &mut self,
        requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> io::Result<()> {
        let mut requests =
            requests.into_iter().map(|(message, flags)| (message, flags | NLM_F_ACK)).peekable();
        let mut result = Ok(());
        while requests.peek().is_some() {
            let answers = self.ask(requests.by_ref().take(PIPELINE))?;
            result = result.and(answers.error.map_or(Ok(()), Err));
        }
        result
    }

    /// One request and its single answer; None if there is no such object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        // Acknowledged, so that an answer that cannot be parsed ends the exchange too.
        let answers = self.ask([(message, NLM_F_ACK)])?;
        match answers.error {
            Some(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Some(error) => Err(error),
            None => match answers.rows.into_iter().next() {
                Some(row) => Ok(Some(row)),
                None => Err(io::Error::other("the kernel's answer cannot be read")),
            },
        }
    }

    /// A whole table; rows that cannot be parsed, such as a foreign link in a container, are left out.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS_MAX {
            let answers = self.ask([(message.clone(), NLM_F_DUMP)])?;
            match answers.error {
                Some(error) => return Err(error),
                None if answers.interrupted => {}
                None => return Ok(answers.rows),
            }
        }
        Err(io::Error::other("the table changed during each of many dumps"))
    }

    /// Sends requests in one write, and reads until each has had its last answer.
    fn ask(&mut self, requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>) -> io::Result<Answers> {
        let first = self.sequence;
        let mut bytes = Vec::new();
        for (message, flags) in requests {
            let mut request = NetlinkMessage::from(message);
            request.header.flags = flags | NLM_F_REQUEST;
            request.header.sequence_number = self.sequence;
            request.finalize();
            let start = bytes.len();
            bytes.resize(start + request.buffer_len().next_multiple_of(4), 0);
            request.serialize(&mut bytes[start..]);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.socket.send(&bytes, 0)?;
        self.answers(first, self.sequence.wrapping_sub(first))
    }

    /// What answers the `missing` requests from `first` on.
    fn answers(&self, first: u32, mut missing: u32) -> io::Result<Answers> {
        let (asked, mut answers) = (missing, Answers::default());
        while missing > 0 {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
                    continue;
                };
                if message.header.sequence_number.wrapping_sub(first) >= asked {
                    continue;
                }
                answers.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                let error = match message.payload {
                    NetlinkPayload::InnerMessage(row) => {
                        answers.rows.push(row);
                        continue;
                    }
                    NetlinkPayload::Error(error) => error.code.map(|_| error.to_io()),
                    NetlinkPayload::Done(done) => {
                        (done.code < 0).then(|| io::Error::from_raw_os_error(-done.code))
                    }
                    _ => continue,
                };
                missing = missing.saturating_sub(1);
                answers.error = answers.error.or(error);
            }
        }
        Ok(answers)
    }
}

/// Bytes of a message's header.
pub(crate) const HEADER_BYTES: usize = 16;

/// The messages of a datagram, each with its header.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.first_chunk().copied()?) as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER_BYTES)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
