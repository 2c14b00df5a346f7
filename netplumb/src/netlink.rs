//! The kernel of this host, by netlink.
//!
//! A socket belongs to the namespace it was opened in: those of our own namespaces are kept, in a
//! container's nothing of ours stays after an Op.

mod apply;
mod echo;
mod inside;
mod link;
mod neighbour;
pub mod nft;
mod observe;
pub(crate) mod probe;
mod route;
mod search;
mod socket;
mod underlay;
mod watch;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use underlay::underlay_mtu;

use crate::engine::Remote;
use crate::error::Error;
use crate::kernel::{
    Container, Echo, EchoFrom, EchoRequest, Found, Kernel, NetnsSource, Place, Problem, Traffic,
};
use crate::netlink::socket::Rtnl;
use crate::netlink::watch::Watch;
use crate::netlink::wireguard::Wireguard;
use crate::netns::{self, Namespaces};
use crate::observed::{Observed, ObservedMember};
use crate::plan::Op;
use crate::state::{Key, NetnsRef, Ours, Trace};

/// Who does WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel if it can, else the engine.
    Auto,
    /// The kernel's module.
    Kernel,
    /// [`crate::engine`].
    Userspace,
}

/// The kernel of this host. A clone is the same one.
#[derive(Clone)]
pub struct NetlinkKernel(Arc<Host>);

struct Host {
    namespaces: Namespaces,
    /// Of the host's namespace.
    underlay: Mutex<Rtnl>,
    /// Of our namespaces, by name, each with its namespace's inode: while the socket pins it, no
    /// other namespace gets the same.
    sockets: Mutex<BTreeMap<String, (u64, Rtnl)>>,
    /// Hears of the namespaces of ours.
    watch: Watch,
    wireguard: Wireguard,
    cookie: u64,
    /// Whether the guard can be installed: the kernel's answer costs a transaction, and stays.
    nf_tables: bool,
}

impl NetlinkKernel {
    /// Namespaces of ours are mounts in `<run_dir>/netns/`. The host's namespace is the calling
    /// thread's. `engine` does WireGuard where the kernel does not; where it does, the engine's interfaces end.
    ///
    /// Errors: [`Error::NoWireguard`] with [`Backend::Kernel`] on a kernel without it, and whatever
    /// keeps a netlink socket or a thread from being made.
    pub fn new(
        run_dir: impl Into<PathBuf>,
        backend: Backend,
        engine: Arc<Remote>,
    ) -> Result<NetlinkKernel, Error> {
        let failed = |error| Error::kernel("look at the host's network namespace", error);
        let wireguard = match (backend, backend != Backend::Userspace && wireguard::kernel_has_wireguard()) {
            (Backend::Kernel, false) => return Err(Error::NoWireguard),
            (Backend::Kernel | Backend::Auto, true) => {
                // What it served for an agent with another backend would hold the interfaces' ports.
                engine.retain(&BTreeSet::new());
                Wireguard::Kernel
            }
            (Backend::Userspace, _) | (Backend::Auto, false) => Wireguard::Userspace(engine),
        };
        Ok(NetlinkKernel(Arc::new(Host {
            namespaces: Namespaces::new(&run_dir.into()),
            underlay: Mutex::new(Rtnl::here().map_err(failed)?),
            sockets: Mutex::default(),
            watch: Watch::here(),
            wireguard,
            cookie: netns::cookie().map_err(failed)?,
            nf_tables: nft::supported(),
        })))
    }

    /// WireGuard is the kernel's, not the engine's.
    pub fn kernel_wireguard(&self) -> bool {
        matches!(self.0.wireguard, Wireguard::Kernel)
    }

    /// Runs `work` where it may block: RTNL is one lock for the whole machine.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let host = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&host)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(Error::kernel("work while the agent stops", io::Error::other(error))),
            },
        }
    }
}

impl Kernel for NetlinkKernel {
    async fn preflight(&self) -> Vec<Problem> {
        let found = self
            .blocking(|host| Ok(probe::problems(&host.namespaces, &host.wireguard, host.nf_tables)))
            .await;
        found.unwrap_or_else(|error| vec![Problem { what: error.to_string(), fatal: true }])
    }

    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32, Error> {
        self.blocking(move |host| host.underlay_mtu(address)).await
    }

    async fn identify(&self, source: &NetnsSource) -> Result<Container, Error> {
        let source = source.clone();
        self.blocking(move |host| probe::identify(&source, host.cookie, host.nf_tables)).await
    }

    async fn alive(&self, netns: &NetnsRef, inode: u64) -> bool {
        fs::metadata(&netns.path).is_ok_and(|found| found.ino() == inode)
    }

    async fn sweep(&self, ours: &Ours) -> Result<(), Error> {
        let ours = ours.clone();
        self.blocking(move |host| host.sweep(&ours)).await
    }

    async fn clean(&self, netns: &NetnsRef) -> Result<(), Error> {
        let netns = netns.clone();
        self.blocking(move |_| netns.enter(inside::clean)?).await
    }

    async fn find(&self, members: &BTreeMap<String, Key>) -> Vec<Found> {
        let members = members.clone();
        let found = self.blocking(move |host| Ok(search::find(&host.wireguard, &members))).await;
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "containers were not looked into");
            Vec::new()
        })
    }

    async fn observe(&self, ours: &Ours) -> Result<Observed, Error> {
        let ours = ours.clone();
        self.blocking(move |host| host.observe(&ours)).await
    }

    async fn observe_members(
        &self,
        traces: &BTreeMap<String, Trace>,
    ) -> Result<BTreeMap<String, ObservedMember>, Error> {
        let traces = traces.clone();
        self.blocking(move |host| host.observe_members(&traces)).await
    }

    async fn apply(&self, op: &Op) -> Result<(), Error> {
        self.apply_all(std::slice::from_ref(op)).await.pop().unwrap_or(Ok(()))
    }

    async fn apply_all(&self, ops: &[Op]) -> Vec<Result<(), Error>> {
        let ops = ops.to_vec();
        let done = self.blocking(move |host| Ok(host.apply_in_turn(&ops))).await;
        done.unwrap_or_else(|error| vec![Err(error)])
    }

    async fn watch(&self, ours: &Ours) {
        let ours = ours.clone();
        let watched = self.blocking(move |host| {
            host.watch.follow(&host.places(&ours), &host.underlay);
            Ok(())
        });
        // It fails while the agent stops.
        let _ = watched.await;
    }

    async fn changed(&self) -> BTreeSet<Place> {
        self.0.watch.changed().await
    }

    async fn traffic(&self, ours: &Ours) -> Vec<Traffic> {
        let ours = ours.clone();
        self.blocking(move |host| Ok(host.traffic(&ours))).await.unwrap_or_default()
    }

    async fn echo(&self, request: &EchoRequest) -> Result<Echo, Error> {
        let request = request.clone();
        self.blocking(move |host| host.echo(&request)).await
    }

    async fn echoes_heard(&self, member: &str) -> Result<u64, Error> {
        let name = binding_name(member);
        let failed = |error| Error::kernel("read how many echo requests came", error);
        self.blocking(move |host| {
            let binding = host.require(&name)?;
            netns::enter(binding.as_fd(), echo::heard).and_then(|heard| heard).map_err(failed)
        })
        .await
    }
}

impl Host {
    fn underlay_mtu(&self, address: IpAddr) -> Result<u32, Error> {
        underlay::mtu_at(&mut lock(&self.underlay), address)
    }

    fn echo(&self, request: &EchoRequest) -> Result<Echo, Error> {
        let ping = || echo::echo(request.to, request.packet_bytes, request.bound);
        let answered = match &request.from {
            EchoFrom::Binding(member) => {
                let binding = self.require(&binding_name(member))?;
                netns::enter(binding.as_fd(), ping).and_then(|answered| answered)
            }
            EchoFrom::Container(netns) => netns.enter(ping)?,
        };
        answered.map_err(|error| Error::kernel("send an ICMP echo request", error))
    }

    /// Runs `work` with the kept socket of the namespace `name` of ours.
    fn within<T>(
        &self,
        name: &str,
        what: &str,
        work: impl FnOnce(&mut Rtnl) -> io::Result<T>,
    ) -> Result<T, Error> {
        let failed = |error| Error::kernel(format!("{what} in {name}"), error);
        let netns = self.require(name)?;
        let inode = rustix::fs::fstat(&netns).map_err(|error| failed(error.into()))?.st_ino;
        // Out of the map while in use, so that one namespace does not wait for another.
        let kept = lock(&self.sockets).remove(name).filter(|(of, _)| *of == inode);
        let mut route = match kept {
            Some((_, route)) => route,
            None => netns::enter(netns.as_fd(), Rtnl::here).and_then(|opened| opened).map_err(failed)?,
        };
        let done = work(&mut route).map_err(failed)?;
        lock(&self.sockets).insert(name.to_owned(), (inode, route));
        Ok(done)
    }

    /// Keeps a socket of the namespace `name` of ours.
    fn keep(&self, name: &str, netns: BorrowedFd<'_>, route: Rtnl) -> Result<(), Error> {
        let failed = |error: rustix::io::Errno| Error::kernel(format!("look at {name}"), error.into());
        let inode = rustix::fs::fstat(netns).map_err(failed)?.st_ino;
        lock(&self.sockets).insert(name.to_owned(), (inode, route));
        Ok(())
    }

    fn require(&self, name: &str) -> Result<std::os::fd::OwnedFd, Error> {
        let netns = self.namespaces.open(name)?;
        netns.ok_or_else(|| Error::Missing { what: format!("the network namespace {name}") })
    }
}

fn fabric_name(network: &str) -> String {
    format!("net-{network}")
}

fn binding_name(member: &str) -> String {
    format!("bind-{member}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
