//! One nfnetlink socket: dumps, and batches that the kernel commits whole or not at all
//! (include/uapi/linux/netfilter/nfnetlink.h).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// The subsystem a batch is for, in the header of its first and last message.
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// The dump was cut by a change in between (include/uapi/linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;

const DUMPS: usize = 4;

/// The end of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    /// The kernel checks everything, answers, and forgets it.
    Rehearse,
}

/// A socket in the network namespace of the thread that opened it. The kernel answers inside the system
/// call that asks, so nothing here waits.
pub(super) struct Transactions {
    socket: Socket,
    sequence: u32,
}

impl Transactions {
    pub(super) fn open() -> io::Result<Transactions> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // An error answer quotes the message it is about, unless told not to.
        socket.set_cap_ack(true)?;
        Ok(Transactions { socket, sequence: 0 })
    }

    /// Everything that answers `request`. An object that cannot be decoded is left out: it is not ours,
    /// or no longer as we made it.
    pub(super) fn dump(&mut self, request: &NfTablesMessage) -> io::Result<Vec<NfTablesMessage>> {
        for _ in 0..DUMPS {
            if let Some(found) = self.dump_once(request)? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the rules keep changing while they are read"))
    }

    fn dump_once(&mut self, request: &NfTablesMessage) -> io::Result<Option<Vec<NfTablesMessage>>> {
        let bytes = self.message(NLM_F_REQUEST | NLM_F_DUMP, 0, request.clone().into());
        let sequence = self.sequence;
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive()? {
                let Some(message) = message.filter(|m| m.header.sequence_number == sequence) else {
                    continue;
                };
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::NfTables(object),
                        ..
                    }) => found.push(object),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                    _ => (),
                }
            }
        }
    }

    /// Sends all `requests` as one batch and waits for every answer.
    pub(super) fn batch(&mut self, requests: Vec<NfTablesMessage>, end: End) -> io::Result<()> {
        let mut bytes = self.message(NLM_F_REQUEST, NFNL_SUBSYS_NFTABLES, ControlMessage::BatchBegin.into());
        let first = self.sequence;
        for request in requests {
            let flags = match request {
                NfTablesMessage::NewRule(_) => NLM_F_CREATE | NLM_F_APPEND,
                NfTablesMessage::NewTable(_) | NfTablesMessage::NewChain(_) => NLM_F_CREATE,
                _ => 0,
            };
            bytes.extend(self.message(NLM_F_REQUEST | NLM_F_ACK | flags, 0, request.into()));
        }
        let last = self.sequence;
        if end == End::Commit {
            bytes.extend(self.message(NLM_F_REQUEST, NFNL_SUBSYS_NFTABLES, ControlMessage::BatchEnd.into()));
        }
        self.socket.send(&bytes, 0)?;
        self.acknowledged(first, last, self.sequence)
    }

    /// Reads the answers to the messages after `first` up to `last`, and errors up to `end`.
    fn acknowledged(&self, first: u32, last: u32, end: u32) -> io::Result<()> {
        let mut missing = last - first;
        while missing > 0 {
            for message in self.receive()?.into_iter().flatten() {
                if !(first..=end).contains(&message.header.sequence_number) {
                    continue;
                }
                if let NetlinkPayload::Error(answer) = message.payload {
                    if answer.code.is_some() {
                        return Err(answer.to_io());
                    }
                    missing = missing.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// The next datagram's messages; None stands for one that cannot be decoded.
    fn receive(&self) -> io::Result<Vec<Option<NetlinkMessage<NetfilterMessage>>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(length) = rest.first_chunk().map(|b| u32::from_ne_bytes(*b) as usize) {
            let Some(message) = rest.get(..length).filter(|m| m.len() >= 16) else { break };
            messages.push(NetlinkMessage::deserialize(message).ok());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    fn message(&mut self, flags: u16, resource: u16, inner: NetfilterMessageInner) -> Vec<u8> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        // The kernel wants the control messages of a batch without family.
        let family = match inner {
            NetfilterMessageInner::None(_) => NetfilterProtoFamily::Unspec,
            _ => NetfilterProtoFamily::Inet,
        };
        let body = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(body));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}
