//! One route socket that hears of all namespaces of ours (NETLINK_LISTEN_ALL_NSID, netlink(7)).
//!
//! A namespace is heard when it has an id (RTM_NEWNSID) in the one the socket is in, the host's. The id pins
//! nothing, and no socket of ours has to be in a container. What changed is not read out of the messages: they say
//! where to look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kernel::Place;
use crate::netlink::lock;
use crate::netlink::socket::{HEADER_BYTES, Rtnl, messages};
use crate::netns;

/// Links, rows, addresses, routes and ids of namespaces (linux/rtnetlink.h).
const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32
    | 1 << (libc::RTNLGRP_NSID - 1);
/// Room for a burst in bytes; what does not fit is looked at whole.
const BUFFER_BYTES: usize = 4 << 20;

/// The socket, and who is heard by it.
pub(crate) struct Watch {
    socket: Option<Socket>,
    ready: OnceLock<Option<AsyncFd<OwnedFd>>>,
    seats: Mutex<BTreeMap<PathBuf, Seat>>,
}

/// A namespace that is heard.
struct Seat {
    inode: u64,
    nsid: i32,
    places: BTreeSet<Place>,
}

impl Watch {
    /// Hears nobody yet. Where the kernel refuses, nothing is ever heard, and audits alone find what changed.
    pub(crate) fn here() -> Watch {
        let socket = open().inspect_err(|error| {
            tracing::warn!(%error, "changes made by others are found by audits alone, within 30 s");
        });
        Watch { socket: socket.ok(), ready: OnceLock::new(), seats: Mutex::default() }
    }

    /// Hears the namespaces at these paths, and no others.
    pub(crate) fn follow(&self, wanted: &BTreeMap<PathBuf, BTreeSet<Place>>, host: &Mutex<Rtnl>) {
        if self.socket.is_none() {
            return;
        }
        let mut seats = lock(&self.seats);
        seats.retain(|path, _| wanted.contains_key(path));
        for (path, places) in wanted {
            let Ok(inode) = fs::metadata(path).map(|found| found.ino()) else { continue };
            let kept = seats.get(path).filter(|seat| seat.inode == inode).map(|seat| seat.nsid);
            let nsid = kept.map_or_else(|| named(path, host), Ok);
            match nsid {
                Ok(nsid) => _ = seats.insert(path.clone(), Seat { inode, nsid, places: places.clone() }),
                // It ended just now, or the next audit looks at it.
                Err(error) => tracing::debug!(path = %path.display(), %error, "a namespace is not heard"),
            }
        }
    }

    /// Waits until something changed; for ever where nothing can be heard.
    pub(crate) async fn changed(&self) -> BTreeSet<Place> {
        let Some(ready) = self.ready.get_or_init(|| self.register()) else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut readable) = ready.readable().await else { return std::future::pending().await };
            let places = self.drain();
            readable.clear_ready();
            if !places.is_empty() {
                return places;
            }
        }
    }

    fn register(&self) -> Option<AsyncFd<OwnedFd>> {
        let same = self.socket.as_ref()?.as_fd().try_clone_to_owned().ok()?;
        // SAFETY: the descriptor is owned by what it is registered with, and closed with it.
        unsafe { AsyncFd::register_with_interest(same, Interest::READABLE) }.ok()
    }

    /// Reads what has come.
    fn drain(&self) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        let Some(socket) = &self.socket else { return places };
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match receive(socket.as_fd(), &mut buffer) {
                Ok((length, nsid)) => self.hear(&buffer[..length], nsid, &mut places),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    places.extend(lock(&self.seats).values().flat_map(|seat| seat.places.clone()));
                }
                Err(_) => return places,
            }
        }
    }

    /// Messages of one namespace; without an id they are the host's own.
    fn hear(&self, bytes: &[u8], nsid: Option<i32>, places: &mut BTreeSet<Place>) {
        for message in messages(bytes) {
            match nsid {
                Some(nsid) if matters(message) => {
                    let seats = lock(&self.seats);
                    let heard = seats.values().filter(|seat| seat.nsid == nsid);
                    places.extend(heard.flat_map(|seat| seat.places.clone()));
                }
                Some(_) => {}
                None => self.forget(message),
            }
        }
    }

    /// An id that went with its namespace may be another's from now on.
    fn forget(&self, message: &[u8]) {
        let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload);
        if let Ok(netlink_packet_core::NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNsId(gone))) =
            parsed
            && let Some(gone) = id(&gone)
        {
            lock(&self.seats).retain(|_, seat| seat.nsid != gone);
        }
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    set(&socket, libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES as libc::c_int)?;
    socket.bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an integer of the length given, and outlives the call.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One datagram, and the namespace it is of.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes are a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // glibc and musl have it in different widths.
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to buffers that outlive the call, with their lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut nsid = None;
    // SAFETY: the kernel filled in the header, and the macros stay within its control messages.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(message) = next.as_ref() {
            if (message.cmsg_level, message.cmsg_type) == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) {
                nsid = Some(libc::CMSG_DATA(next).cast::<i32>().read_unaligned());
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    Ok((length, nsid))
}

/// Links, addresses, routes, and rows. Not neighbours: a container's own come and go all the time, and dumping
/// ours walks the whole machine's table, so that they are left to the audits.
fn matters(message: &[u8]) -> bool {
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    match kind {
        libc::RTM_NEWLINK
        | libc::RTM_DELLINK
        | libc::RTM_NEWADDR
        | libc::RTM_DELADDR
        | libc::RTM_NEWROUTE
        | libc::RTM_DELROUTE => true,
        // The family stands after the header.
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            message.get(HEADER_BYTES) == Some(&(libc::AF_BRIDGE as u8))
        }
        _ => false,
    }
}

/// The id of the namespace at `path`, given now where it had none.
fn named(path: &std::path::Path, host: &Mutex<Rtnl>) -> io::Result<i32> {
    let netns = netns::open(path).map_err(io::Error::other)?;
    let descriptor = NsidAttribute::Fd(netns.as_raw_fd() as u32);
    let mut host = lock(host);
    let asked = |host: &mut Rtnl| -> io::Result<Option<i32>> {
        let answer = host.get(RouteNetlinkMessage::GetNsId(message(vec![descriptor.clone()])))?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewNsId(answer)) => id(&answer).filter(|id| *id >= 0),
            _ => None,
        })
    };
    if let Some(id) = asked(&mut host)? {
        return Ok(id);
    }
    let any = NsidAttribute::Id(-1);
    host.request(RouteNetlinkMessage::NewNsId(message(vec![descriptor.clone(), any])), 0)?;
    asked(&mut host)?.ok_or_else(|| io::Error::other("the kernel gave the namespace no id"))
}

fn message(attributes: Vec<NsidAttribute>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes = attributes;
    message
}

fn id(message: &NsidMessage) -> Option<i32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    })
}
