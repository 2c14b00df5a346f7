//! DNS sockets that outlive the agent: the engine's process holds copies, so that a query during a restart waits
//! instead of failing.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use netplumb::engine::Remote;
use netplumb::state::NetnsRef;
use resolver::Sockets;

use super::Listen;

/// Sockets in the containers' namespaces, with copies in the engine's process.
pub struct Kept(Arc<Remote>);

impl Kept {
    /// Copies go to this engine and whichever follows it.
    pub fn new(engine: Arc<Remote>) -> Kept {
        Kept(engine)
    }

    /// What an earlier agent had opened, if it is where queries arrive now.
    fn taken_back(&self, name: &str, listener: SocketAddrV4) -> io::Result<Option<Sockets>> {
        let Some(Ok([udp, tcp])) = self.0.kept(name)?.map(<[OwnedFd; 2]>::try_from) else { return Ok(None) };
        let sockets = Sockets { udp: udp.into(), tcp: tcp.into() };
        let there = [sockets.udp.local_addr()?, sockets.tcp.local_addr()?];
        Ok((there == [SocketAddr::V4(listener); 2]).then_some(sockets))
    }

    fn keep(&self, name: &str, sockets: &Sockets) -> anyhow::Result<()> {
        let copies = vec![sockets.udp.try_clone()?.into(), sockets.tcp.try_clone()?.into()];
        Ok(self.0.keep(name, copies)?)
    }
}

impl Listen for Kept {
    fn open(&self, netns: &NetnsRef, listener: SocketAddrV4) -> io::Result<Option<Sockets>> {
        let name = name(netns.cookie);
        if let Some(sockets) = self.taken_back(&name, listener)? {
            return Ok(Some(sockets));
        }
        // Those of an earlier configuration would be in the way.
        self.0.release(&name);
        let opened = netns.open().map_err(io::Error::other)?;
        let sockets = Sockets::open(opened.as_fd(), listener)?;
        if let Err(error) = self.keep(&name, &sockets) {
            tracing::warn!(%error, "DNS sockets have no copy: names will fail while this agent restarts");
        }
        Ok(Some(sockets))
    }

    fn retain(&self, cookies: &BTreeSet<u64>) {
        let names: BTreeSet<String> = cookies.iter().map(|cookie| name(*cookie)).collect();
        let others = self.0.kept_names().into_iter().filter(|kept| !names.contains(kept));
        others.for_each(|kept| self.0.release(&kept));
    }
}

/// A namespace's cookie is never used again until the next boot, which ends the engine.
fn name(cookie: u64) -> String {
    format!("dns-{cookie}")
}
