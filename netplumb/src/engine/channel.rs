//! Frames and descriptors over a Unix socket: the length in bytes (u32, little-endian), then a postcard value. The
//! descriptors come with the length (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A frame of an interface with 65,000 peers.
const FRAME_BYTES_MAX: u32 = 8 << 20;
/// Descriptors that may travel with one frame.
pub(super) const DESCRIPTORS_MAX: usize = 8;

const LENGTH_BYTES: usize = size_of::<u32>();
const ROOM: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One connection, blocking.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Of a connected stream socket. Whoever is silent for `patience` in the middle of something has failed.
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> io::Result<Channel> {
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        Ok(Channel(socket))
    }

    /// Sends one frame with its descriptors, of which the receiver gets copies.
    pub(super) fn send(&self, frame: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let payload = postcard::to_allocvec(frame).map_err(io::Error::other)?;
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let length = length.ok_or_else(|| invalid("a frame that is too long"))?.to_le_bytes();
        let mut room = [MaybeUninit::uninit(); ROOM];
        let mut ancillary = SendAncillaryBuffer::new(&mut room);
        let rights = SendAncillaryMessage::ScmRights(descriptors);
        if descriptors.len() > DESCRIPTORS_MAX || !(descriptors.is_empty() || ancillary.push(rights)) {
            return Err(invalid("too many descriptors in a frame"));
        }
        let sent = persist(|| {
            rustix::net::sendmsg(&self.0, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        self.send_bytes(&length[sent..])?;
        self.send_bytes(&payload)
    }

    /// Receives one frame with its descriptors; [`io::ErrorKind::UnexpectedEof`] when the other side has gone.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut length = [0; LENGTH_BYTES];
        let mut room = [MaybeUninit::uninit(); ROOM];
        let mut ancillary = RecvAncillaryBuffer::new(&mut room);
        let message = persist(|| {
            let mut slices = [IoSliceMut::new(&mut length)];
            rustix::net::recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        let rights = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.receive_bytes(&mut length[message.bytes..])?;
        let length = u32::from_le_bytes(length);
        if length > FRAME_BYTES_MAX {
            return Err(invalid("a frame that is too long"));
        }
        let mut payload = vec![0; length as usize];
        self.receive_bytes(&mut payload)?;
        let frame = postcard::from_bytes(&payload).map_err(|error| invalid(&error.to_string()))?;
        Ok((frame, descriptors))
    }

    /// Sends bytes as they are.
    pub(super) fn send_bytes(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = persist(|| rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Fills `bytes`.
    pub(super) fn receive_bytes(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let (received, _) =
                persist(|| rustix::net::recv(&self.0, &mut bytes[filled..], RecvFlags::empty()))?;
            if received == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += received;
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn persist<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let patience = Duration::from_secs(5);
        (Channel::new(a, patience).unwrap(), Channel::new(b, patience).unwrap())
    }

    #[test]
    fn frames_keep_their_order_and_their_descriptors() {
        let (a, b) = pair();
        let mut files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter_mut().enumerate() {
            write!(file, "file {number}").unwrap();
        }
        let long = vec![7_u8; 300_000];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                a.send(&"one", &[files[0].as_fd()]).unwrap();
                a.send(&"none", &[]).unwrap();
                a.send(&("two", &long), &[files[1].as_fd(), files[2].as_fd()]).unwrap();
            });
            let (one, descriptors) = b.receive::<String>().unwrap();
            assert_eq!((one.as_str(), read(descriptors)), ("one", vec!["file 0".to_owned()]));
            let (none, descriptors) = b.receive::<String>().unwrap();
            assert_eq!((none.as_str(), descriptors.len()), ("none", 0));
            let ((two, bytes), descriptors) = b.receive::<(String, Vec<u8>)>().unwrap();
            assert_eq!(read(descriptors), ["file 1", "file 2"]);
            assert!(two == "two" && bytes == long);
        });
    }

    fn read(descriptors: Vec<OwnedFd>) -> Vec<String> {
        let read = |descriptor: OwnedFd| {
            let mut file = File::from(descriptor);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        descriptors.into_iter().map(read).collect()
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let (a, b) = pair();
        a.send_bytes(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(b.receive::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (a, b) = pair();
        a.send_bytes(&[2, 0, 0, 0, 0xff, 0xff]).unwrap();
        assert_eq!(b.receive::<String>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert_eq!(b.receive::<String>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (a, b) = pair();
        a.send_bytes(&[9, 0]).unwrap();
        drop(a);
        assert_eq!(b.receive::<String>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (a, _b) = pair();
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(a.send(&"", &many).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn silence_ends() {
        let (a, _b) = pair();
        let quiet = Channel::new(a.0, Duration::from_millis(10)).unwrap();
        assert_eq!(quiet.receive::<String>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
