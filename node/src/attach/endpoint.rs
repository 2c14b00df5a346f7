//! Attaching for a runtime that has no namespace yet (libnetwork): reserve an address, bind it to a container with an
//! interface that waits in the host's namespace, and follow when the runtime has taken that into the container.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::port::Port;
use ipnet::{IpNet, Ipv4Net};
use netplumb::kernel::{Container, Kernel, NetnsSource};
use tokio::time::Instant;

use super::context::{APPLIED_WAIT_DEFAULT, ATTACH_BOUND, unwritten};
use super::{Applied, Context, Refusal, RefusalKind};
use crate::agent::Step;
use crate::store::{Endpoint, Entry, Store};

/// The host's own namespace, as the agent sees it.
const HOST: &str = "/proc/self/ns/net";
/// How often a sandbox is looked at that its runtime is about to fill.
const PACE: Duration = Duration::from_millis(5);
/// How long that often; the agent's tick looks on.
const WATCHED: Duration = Duration::from_secs(10);

/// An address that a runtime asks for before it says what for.
#[derive(Debug, Clone)]
pub struct Reservation {
    /// The network.
    pub network: NetworkId,
    /// The subnet the network shall have if it is new.
    pub subnet: Option<Ipv4Net>,
    /// The address, when the caller has chosen one.
    pub address: Option<Ipv4Addr>,
    /// The host's own namespace.
    pub host: Container,
}

/// Whose a reserved address is.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The network.
    pub network: NetworkId,
    /// The reserved address.
    pub address: Ipv4Addr,
    /// The runtime's id of the endpoint.
    pub endpoint: String,
    /// Where the container's namespace will be.
    pub sandbox: PathBuf,
    /// Who it is, unless that is said later: until then it has no names.
    pub naming: Option<Naming>,
}

/// Who a member is.
#[derive(Debug, Clone)]
pub struct Naming {
    /// The caller's name for the container.
    pub container: String,
    /// The app.
    pub app: AppId,
    /// The process type.
    pub process: ProcessType,
    /// The number it shall have.
    pub ordinal: Option<u32>,
    /// No other number will do.
    pub insists: bool,
    /// The ports it publishes.
    pub ports: Vec<Port>,
}

impl Naming {
    /// The same with whatever number is free, unless its user insists on one.
    fn of_any_number(self) -> Option<Naming> {
        (!self.insists).then_some(Naming { ordinal: None, ..self })
    }
}

impl<K: Kernel, S: Store> Context<K, S> {
    /// Claims an address of a network; it is freed again unless it is bound within a minute.
    pub async fn reserve(
        &self,
        network: NetworkId,
        subnet: Option<Ipv4Net>,
        address: Option<Ipv4Addr>,
    ) -> Result<Entry, Refusal> {
        let host = self.kernel.identify(&NetnsSource::Path(HOST.into())).await;
        let host = host.map_err(|e| Refusal::from(&e))?;
        if !host.nf_tables && !self.unguarded {
            return Err(super::context::unguardable());
        }
        let asked = Box::new(Reservation { network, subnet, address, host });
        let make = |told, reply| Step::Reserve(asked.clone(), told, reply);
        self.rounds(Some(Instant::now() + ATTACH_BOUND), make).await
    }

    /// Binds a reserved address to a container: its interface is in the host's namespace when this returns, under the
    /// name the entry says.
    pub async fn bind(&self, binding: Binding) -> Result<(Entry, Applied), Refusal> {
        let started = Instant::now();
        let bound = match self.bind_once(&binding).await {
            Err(refusal) if refusal.kind == RefusalKind::NotFound => {
                // The agent was restarted in between: the address is claimed once more.
                self.reserve(binding.network, None, Some(binding.address)).await?;
                self.bind_once(&binding).await
            }
            Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                let naming = binding.naming.clone().and_then(Naming::of_any_number).ok_or(refusal)?;
                self.bind_once(&Binding { naming: Some(naming), ..binding }).await
            }
            bound => bound,
        };
        let (entry, hosts) = bound?;
        let applied = self.realize(&entry, hosts, APPLIED_WAIT_DEFAULT, started + ATTACH_BOUND).await?;
        Ok((entry, applied))
    }

    async fn bind_once(&self, binding: &Binding) -> Result<(Entry, Vec<HostId>), Refusal> {
        let make = |told, reply| Step::Bind(Box::new(binding.clone()), told, reply);
        self.rounds(Some(Instant::now() + ATTACH_BOUND), make).await
    }

    /// Says of a member that was bound without it who it is; it has its names as soon as it is in its container.
    ///
    /// # Errors
    /// It is gone, or its number is taken.
    pub async fn name(&self, member: &MemberId, naming: Naming) -> Result<(), Refusal> {
        let named = match self.name_once(member, &naming).await {
            Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                let naming = naming.of_any_number().ok_or(refusal)?;
                self.name_once(member, &naming).await
            }
            named => named,
        };
        let named = named?;
        self.store.put(&named).await.map_err(|e| unwritten(&e))?;
        if named.is_unfinished() { self.finish(member).await } else { Ok(()) }
    }

    async fn name_once(&self, member: &MemberId, naming: &Naming) -> Result<Entry, Refusal> {
        let make = |told, reply| Step::Name(Box::new((member.clone(), naming.clone())), told, reply);
        self.rounds(Some(Instant::now() + ATTACH_BOUND), make).await
    }

    /// Follows a held member into its container as soon as its runtime has taken it there.
    pub async fn follow_sandbox(self, entry: Entry) {
        let until = Instant::now() + WATCHED;
        while Instant::now() < until && !self.look_into_sandbox(&entry).await {
            tokio::time::sleep(PACE).await;
        }
    }

    /// Looks once whether a held member has been taken, and makes it whole then. Whether there is nothing to wait for.
    pub async fn look_into_sandbox(&self, entry: &Entry) -> bool {
        let Some(Endpoint::Held { id, sandbox }) = &entry.endpoint else { return true };
        let Ok(container) = self.kernel.identify(&NetnsSource::Path(sandbox.clone())).await else {
            return false;
        };
        let Some(ifname) = delivered(&container, entry) else { return false };
        let taken = Entry {
            address6: None,
            netns: container.netns.clone(),
            inode: container.inode,
            ifname,
            endpoint: Some(Endpoint::Taken { id: id.clone() }),
            ..entry.clone()
        };
        if let Err(refusal) = self.complete(taken, container.ipv6).await {
            tracing::warn!(member = %entry.member, container = %entry.container, "not whole yet: {refusal}");
        }
        true
    }

    /// Makes what a runtime does not: rules, routes that fail closed, names.
    async fn complete(&self, taken: Entry, ipv6: bool) -> Result<(), Refusal> {
        // On disk before routes of ours hide by which the runtime's were known.
        self.store.put(&taken).await.map_err(|e| unwritten(&e))?;
        let member = taken.member.clone();
        self.step(|reply| Step::Take(Box::new(taken), ipv6, reply)).await?;
        self.finish(&member).await
    }

    /// Publishes a member that is in its container as soon as it is built.
    ///
    /// # Errors
    /// It is gone, or cannot be built.
    pub async fn finish(&self, member: &MemberId) -> Result<(), Refusal> {
        self.build(member, Instant::now() + ATTACH_BOUND).await?;
        self.ready(member).await?;
        Ok(())
    }

    /// Gives back an address that nobody was bound to.
    pub async fn unreserve(self, member: MemberId) -> Result<(), Refusal> {
        self.step(|reply| Step::Release(member, reply)).await.map(|_| ())
    }
}

/// The interface's name in the container once its runtime has done everything that it does: the route comes last.
/// Whoever sets address or routes before that makes the runtime fail.
fn delivered(container: &Container, entry: &Entry) -> Option<String> {
    let address = container.addresses.iter().any(|net| net.addr() == entry.address);
    let subnet = IpNet::V4(entry.claim.subnet.trunc());
    let route = container.routes.iter().find(|route| route.destination == subnet)?;
    route.device.clone().filter(|_| address)
}
