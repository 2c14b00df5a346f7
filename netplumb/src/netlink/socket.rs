//! A route netlink connection (RFC 3549; `man 7 rtnetlink`), of the namespace it was opened in.
//!
//! rtnetlink's connection is a task, and its socket is closed when the task ends. Nothing of ours may
//! stay in a container's namespace after an Op, so each connection has a runtime of its own, which is
//! gone, task and socket with it, when this value is dropped.

use std::io;

use futures::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use tokio::runtime::{Builder, Runtime};

/// Requests in flight: their answers fit the default receive buffer.
const PIPELINE: usize = 64;
/// A dump during which the table changed is incomplete and made again.
const DUMPS_MAX: usize = 10;

/// A connection of the namespace it was opened in, wherever the thread that uses it is. For threads
/// that may block.
pub(crate) struct Rtnl {
    handle: Handle,
    /// None only while dropped.
    runtime: Option<Runtime>,
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        // The plain drop of a runtime waits, which a thread of another runtime must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Rtnl {
    /// A connection of the calling thread's namespace.
    pub(crate) fn here() -> io::Result<Rtnl> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (connection, handle, _) = {
            let _entered = runtime.enter();
            rtnetlink::new_connection()?
        };
        runtime.spawn(connection);
        Ok(Rtnl { handle, runtime: Some(runtime) })
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
        let handle = &self.handle;
        let one = |(message, flags)| exchange(handle.clone(), message, flags | NLM_F_REQUEST | NLM_F_ACK);
        let all = futures::stream::iter(requests).map(one).buffered(PIPELINE);
        let first_error =
            all.fold(Ok(()), |result: io::Result<()>, answers| async { result.and(answers.map(drop)) });
        self.runtime()?.block_on(first_error)
    }

    /// One request and its single answer; None if there is no such object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        // Acknowledged, so that an answer that cannot be parsed ends the exchange too.
        let answers = exchange(self.handle.clone(), message, NLM_F_REQUEST | NLM_F_ACK);
        match self.runtime()?.block_on(answers) {
            Ok(answers) => match answers.into_iter().next() {
                Some((message, _)) => Ok(Some(message)),
                None => Err(io::Error::other("the kernel's answer cannot be read")),
            },
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A whole table; rows that cannot be parsed, such as a foreign link in a container, are left out.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS_MAX {
            let rows = exchange(self.handle.clone(), message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            let rows = self.runtime()?.block_on(rows)?;
            if rows.iter().all(|(_, flags)| flags & NLM_F_DUMP_INTR == 0) {
                return Ok(rows.into_iter().map(|(row, _)| row).collect());
            }
        }
        Err(io::Error::other("the table changed during each of many dumps"))
    }

    fn runtime(&self) -> io::Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| io::Error::other("the connection is closed"))
    }
}

/// Sends a request and gathers its answers with their header's flags.
async fn exchange(
    handle: Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<(RouteNetlinkMessage, u16)>> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    let mut replies = { handle }.request(request).map_err(io::Error::other)?;
    let mut answers = Vec::new();
    while let Some(reply) = replies.next().await {
        match reply.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push((answer, reply.header.flags)),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(answers)
}
