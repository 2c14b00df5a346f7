//! A route netlink socket (RFC 3549; `man 7 rtnetlink`): blocking, of the namespace it was opened in.
//!
//! Not `rtnetlink`: its connection is a task that closes the socket some time later, and nothing of
//! ours may stay in a container's namespace after an Op.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Requests in flight: their answers fit the default receive buffer.
const PIPELINE: usize = 64;
/// The kernel's dumps come in messages of at most 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;
/// A dump during which the table changed is incomplete and made again.
const DUMPS_MAX: usize = 10;

/// One message of an answer; no payload if this version of the parser cannot read it.
struct Answer {
    sequence: u32,
    flags: u16,
    payload: Option<NetlinkPayload<RouteNetlinkMessage>>,
}

/// A socket of the namespace it was opened in, wherever the thread that uses it is.
pub(crate) struct Rtnl {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnl {
    /// A socket of the calling thread's namespace.
    pub(crate) fn here() -> io::Result<Rtnl> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Rtnl { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// One request; an error is the kernel's errno.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.batch([(message, flags)])
    }

    /// Many requests in few system calls. All are tried; the first error is given back.
    pub(crate) fn batch(
        &mut self,
        requests: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> io::Result<()> {
        let mut requests = requests.into_iter().peekable();
        let mut result = Ok(());
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for (message, flags) in requests.by_ref().take(PIPELINE) {
                self.write(&mut bytes, message, flags | NLM_F_REQUEST | NLM_F_ACK);
            }
            self.socket.send(&bytes, 0)?;
            result = result.and(self.acknowledged(first));
        }
        result
    }

    /// One request and its single answer; None if there is no such object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, message, NLM_F_REQUEST);
        self.socket.send(&bytes, 0)?;
        loop {
            for answer in self.receive()?.into_iter().filter(|answer| answer.sequence == self.sequence) {
                match answer.payload {
                    Some(NetlinkPayload::InnerMessage(message)) => return Ok(Some(message)),
                    Some(NetlinkPayload::Error(error)) if error.raw_code() == -libc::ENODEV => {
                        return Ok(None);
                    }
                    Some(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Some(_) => {}
                    None => return Err(io::Error::other("the kernel's answer cannot be read")),
                }
            }
        }
    }

    /// A whole table.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS_MAX {
            if let Some(rows) = self.dump_once(message.clone())? {
                return Ok(rows);
            }
        }
        Err(io::Error::other("the table changed during each of many dumps"))
    }

    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;
        let (mut rows, mut whole) = (Vec::new(), true);
        loop {
            for answer in self.receive()?.into_iter().filter(|answer| answer.sequence == self.sequence) {
                whole &= answer.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    Some(NetlinkPayload::InnerMessage(row)) => rows.push(row),
                    Some(NetlinkPayload::Done(_)) => return Ok(whole.then_some(rows)),
                    Some(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(error.to_io()),
                    // A foreign link in a container that cannot be read must not stop everything else.
                    _ => {}
                }
            }
        }
    }

    /// Waits for the answers to all requests from `first` to the last one written.
    fn acknowledged(&mut self, first: u32) -> io::Result<()> {
        let mut open = self.sequence.wrapping_sub(first).wrapping_add(1);
        let mut result = Ok(());
        while open > 0 {
            for answer in self.receive()? {
                let stale = answer.sequence.wrapping_sub(first) > self.sequence.wrapping_sub(first);
                if let (Some(NetlinkPayload::Error(error)), false) = (answer.payload, stale) {
                    open -= 1;
                    if error.code.is_some() {
                        result = result.and(Err(error.to_io()));
                    }
                }
            }
        }
        result
    }

    fn write(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// One datagram's messages.
    fn receive(&mut self) -> io::Result<Vec<Answer>> {
        let length = self.socket.recv(&mut self.buffer.as_mut_slice(), 0)?;
        let mut rest = &self.buffer[..length.min(RECEIVE_BYTES)];
        let mut answers = Vec::new();
        while let Ok(frame) = NetlinkBuffer::new_checked(rest) {
            let (sequence, flags, size) = (frame.sequence_number(), frame.flags(), frame.length() as usize);
            let message = NetlinkMessage::deserialize(&rest[..size]);
            let payload = message.inspect_err(|error| tracing::debug!(%error, "unreadable netlink message"));
            answers.push(Answer { sequence, flags, payload: payload.ok().map(|message| message.payload) });
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
        Ok(answers)
    }
}
