//! The kernel of this host, by netlink.
//!
//! A socket belongs to the namespace it was opened in: those of our own namespaces are kept, in a
//! container's nothing of ours stays after an Op.

mod echo;
mod inside;
mod link;
mod neighbour;
pub mod nft;
pub(crate) mod probe;
mod route;
mod search;
mod socket;
mod watch;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::link::LinkAttribute;
use tokio::time::Instant;

use crate::engine::Remote;
use crate::error::Error;
use crate::kernel::{
    Container, Echo, EchoFrom, EchoRequest, Found, Kernel, NetnsSource, Place, Problem, Traffic,
};
use crate::netlink::link::{BRIDGE, ETHERNET, LOOPBACK, VXLAN};
use crate::netlink::socket::Rtnl;
use crate::netlink::watch::Watch;
use crate::netlink::wireguard::Wireguard;
use crate::netns::{self, Namespaces};
use crate::observed::{
    Binding, Bridge, Ethernet, Observed, ObservedFabric, ObservedMember, ObservedNetwork, PortFlags, Vxlan,
    port_name,
};
use crate::plan::{FabricChange, InsideChange, MemberChange, Op, Site};
use crate::state::{Key, Mac, NetnsRef, Ours, Trace, Vtep};

/// A namespace that was dropped lives on for a moment, and its VNI is in use as long.
const LINGER: Duration = Duration::from_secs(2);
/// How often a VNI is tried again meanwhile.
const RETRY: Duration = Duration::from_millis(5);

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
    /// When a VXLAN device went with its namespace.
    dropped: Mutex<Option<Instant>>,
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
            dropped: Mutex::default(),
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
        let mut results = Vec::with_capacity(ops.len());
        loop {
            let rest = ops[results.len()..].to_vec();
            let done = self.blocking(move |host| Ok(host.apply_in_turn(&rest))).await;
            results.append(&mut done.unwrap_or_else(|error| vec![Err(error)]));
            if !matches!(results.last(), Some(Err(Error::VniInUse { .. }))) || !self.0.lingers() {
                return results;
            }
            results.pop();
            tokio::time::sleep(RETRY).await;
        }
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
    /// As many Ops as can be done in their order; what stands beside each other in one container is done in one visit.
    fn apply_in_turn(&self, ops: &[Op]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(ops.len());
        while let Some(op) = ops.get(results.len()) {
            match op {
                Op::Inside { member, site, change, .. } if change.is_of_the_visit() => {
                    let here = |op: &&Op| matches!(op, Op::Inside { site: other, change, .. } if other == site && change.is_of_the_visit());
                    let changes = ops[results.len()..].iter().take_while(here).filter_map(Op::inside);
                    let changes: Vec<&InsideChange> = changes.collect();
                    results.append(&mut inside::visit(&self.wireguard, member, site, &changes));
                }
                op => results.push(self.apply(op)),
            }
            if results.last().is_some_and(Result::is_err) && ops[results.len() - 1].essential() {
                break;
            }
        }
        results
    }

    fn apply(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Fabric { network, change } => self.apply_fabric(&fabric_name(network), change),
            Op::Member { network, member, change } => {
                self.apply_member(&fabric_name(network), &binding_name(member), member, change)
            }
            Op::Inside { member, site, change: InsideChange::Link(link), .. } => {
                check_ifname(&site.ifname)?;
                let binding = self.require(&binding_name(member))?;
                self.wireguard.create(member, site, binding.as_fd(), link)
            }
            Op::Inside { member, site, change, .. } => {
                check_ifname(&site.ifname)?;
                inside::apply(&self.wireguard, member, site, change)
            }
        }
    }

    fn apply_fabric(&self, name: &str, change: &FabricChange) -> Result<(), Error> {
        match change {
            FabricChange::Namespace { alias } => self.namespace(name, alias),
            FabricChange::DropNamespace => {
                self.drop_namespace(name)?;
                *lock(&self.dropped) = Some(Instant::now());
                Ok(())
            }
            FabricChange::Bridge { mtu } => self.within(name, "make the bridge", |route| route.bridge(*mtu)),
            FabricChange::Vxlan { vni, local, mtu } => self.vxlan(name, *vni, *local, *mtu),
            FabricChange::DropVxlan => {
                self.within(name, "remove the VXLAN device", |route| route.delete_link(VXLAN))
            }
            FabricChange::Port => self.vxlan_port(name),
            FabricChange::Rows(rows) => self.within(name, "write rows", |route| {
                let vxlan = route.index(VXLAN)?;
                route.set_rows(vxlan, rows)
            }),
            FabricChange::DropRows(rows) => self.within(name, "remove rows", |route| {
                let vxlan = route.index(VXLAN)?;
                route.delete_rows(vxlan, rows)
            }),
        }
    }

    fn apply_member(
        &self,
        fabric: &str,
        binding: &str,
        member: &str,
        change: &MemberChange,
    ) -> Result<(), Error> {
        let port = port_name(member);
        match change {
            MemberChange::Namespace { alias } => self.namespace(binding, alias),
            MemberChange::DropNamespace => {
                self.wireguard.forget(member);
                self.drop_namespace(binding)
            }
            MemberChange::Veth { mac, mtu } => self.veth(fabric, binding, &port, *mac, *mtu),
            MemberChange::Port => {
                self.within(fabric, "make a port", |route| route.port(&port, PortFlags::MEMBER))
            }
            MemberChange::LocalRow { mac } => self.within(fabric, "write a member's row", |route| {
                let index = route.index(&port)?;
                route.set_local_row(index, *mac)
            }),
            MemberChange::DropLocalRow { mac } => self.within(fabric, "remove a member's row", |route| {
                let index = route.index(&port)?;
                route.delete_local_row(index, *mac)
            }),
            MemberChange::Ethernet { address } => {
                self.within(binding, "set the binding's address", |route| ethernet(route, *address))
            }
            MemberChange::Neighbours(rows) => self.within(binding, "write neighbours", |route| {
                let index = route.index(ETHERNET)?;
                route.set_neighbours(index, rows)
            }),
            MemberChange::DropNeighbours(rows) => self.within(binding, "remove neighbours", |route| {
                let index = route.index(ETHERNET)?;
                route.delete_neighbours(index, rows)
            }),
        }
    }

    /// A namespace of ours with its sysctls, before any link is in it.
    fn namespace(&self, name: &str, alias: &str) -> Result<(), Error> {
        let netns = self.namespaces.create(name)?;
        let failed = |error| Error::kernel(format!("set up the network namespace {name}"), error);
        netns::enter(netns.as_fd(), netns::quieten).and_then(|done| done).map_err(failed)?;
        self.within(name, "bring up lo", |route| {
            let index = route.index(LOOPBACK)?;
            route.set_link(index, vec![LinkAttribute::IfAlias(alias.to_owned())], true)
        })
    }

    fn sweep(&self, ours: &Ours) -> Result<(), Error> {
        let ids = ours.networks.values().flat_map(|members| members.keys().map(String::as_str));
        self.wireguard.retain(&ids.collect());
        let members = ours.networks.values().flat_map(|members| members.keys().map(|id| binding_name(id)));
        let named: BTreeSet<String> =
            ours.networks.keys().map(|name| fabric_name(name)).chain(members).collect();
        for name in self.namespaces.names()? {
            // An agent that was killed before the mount leaves a file that is no namespace yet.
            let half_made = !named.contains(&name) || self.namespaces.open(&name).is_ok_and(|n| n.is_none());
            if half_made {
                tracing::warn!(name, "a namespace that the journal does not name, or half made: removed");
                self.drop_namespace(&name)?;
            }
        }
        Ok(())
    }

    fn drop_namespace(&self, name: &str) -> Result<(), Error> {
        drop(lock(&self.sockets).remove(name));
        self.namespaces.remove(name)
    }

    fn vxlan(&self, name: &str, vni: u32, local: Vtep, mtu: u32) -> Result<(), Error> {
        if let Some(link) = self.within(name, "look for the VXLAN device", |route| route.link(VXLAN))? {
            return self.within(name, "change the VXLAN device", |route| {
                route.change_vxlan(link.index, local.address, mtu)
            });
        }
        let target = self.require(name)?;
        let born = lock(&self.underlay).create_vxlan(target.as_fd(), vni, local, mtu);
        born.map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => Error::VniInUse { vni, port: local.port },
            Some(libc::EADDRINUSE) => Error::PortInUse { port: local.port },
            Some(libc::EOPNOTSUPP) => Error::NoVxlan,
            _ => Error::kernel(format!("make the VXLAN device of {name}"), error),
        })
    }

    /// Its UDP socket is opened when it comes up.
    fn vxlan_port(&self, name: &str) -> Result<(), Error> {
        let link = self.within(name, "look for the VXLAN device", |route| route.link(VXLAN))?;
        let port = link.and_then(|link| link.vxlan).map_or(0, |vxlan| vxlan.port);
        let up = self.within(name, "bring up the VXLAN device", |route| route.port(VXLAN, PortFlags::VXLAN));
        up.map_err(|error| match error {
            Error::Netlink { source, .. } if source.raw_os_error() == Some(libc::EADDRINUSE) => {
                Error::PortInUse { port }
            }
            error => error,
        })
    }

    fn veth(&self, fabric: &str, binding: &str, port: &str, mac: Mac, mtu: u32) -> Result<(), Error> {
        let outer = self.within(fabric, "look for a port", |route| route.link(port))?;
        let inner = self.within(binding, "look for eth0", |route| route.link(ETHERNET))?;
        if let (Some(outer), Some(inner)) = (&outer, &inner) {
            self.within(fabric, "set a port's MTU", |route| {
                route.set_link(outer.index, vec![LinkAttribute::Mtu(mtu)], false)
            })?;
            return self.within(binding, "set eth0's MAC and MTU", |route| {
                let mut attributes = vec![LinkAttribute::Mtu(mtu)];
                // Even the same MAC set again would flush the neighbours.
                if inner.mac != Some(mac) {
                    attributes.push(LinkAttribute::Address(mac.0.to_vec()));
                }
                route.set_link(inner.index, attributes, false)
            });
        }
        // One end without the other is of a namespace that is on its way out.
        self.within(fabric, "remove a stray port", |route| route.delete_link(port))?;
        self.within(binding, "remove a stray eth0", |route| route.delete_link(ETHERNET))?;
        let target = self.require(binding)?;
        self.within(fabric, "make a veth", |route| route.create_veth(port, target.as_fd(), mac, mtu))
    }

    fn underlay_mtu(&self, address: IpAddr) -> Result<u32, Error> {
        mtu_at(&mut lock(&self.underlay), address)
    }

    fn lingers(&self) -> bool {
        lock(&self.dropped).is_some_and(|at| at.elapsed() < LINGER)
    }

    fn observe(&self, ours: &Ours) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for (name, traces) in &ours.networks {
            let mut network = ObservedNetwork { fabric: self.observe_fabric(name)?, ..Default::default() };
            network.members = self.observe_members(traces)?;
            observed.networks.insert(name.clone(), network);
        }
        Ok(observed)
    }

    fn observe_members(
        &self,
        traces: &BTreeMap<String, Trace>,
    ) -> Result<BTreeMap<String, ObservedMember>, Error> {
        let member = |(id, trace): (&String, &Trace)| -> Result<(String, ObservedMember), Error> {
            let site = Site { netns: trace.netns.clone(), ifname: trace.ifname.clone() };
            let inside = inside::observe(&self.wireguard, id, &site, &trace.beside)?;
            Ok((id.clone(), ObservedMember { binding: self.observe_binding(id)?, inside }))
        };
        traces.iter().map(member).collect()
    }

    fn observe_fabric(&self, network: &str) -> Result<Option<ObservedFabric>, Error> {
        let name = fabric_name(network);
        let Some(quiet) = self.is_quiet(&name)? else { return Ok(None) };
        let look = |route: &mut Rtnl| -> io::Result<ObservedFabric> {
            let mut links = route.links()?;
            let bridge = links.remove(BRIDGE);
            let index = bridge.as_ref().map(|bridge| bridge.index);
            let vxlan = links.remove(VXLAN);
            let (device, port) =
                vxlan.as_ref().map_or((0, 0), |link| (link.index, link.vxlan.map_or(0, |vxlan| vxlan.port)));
            let table = route.forwarding(device, port)?;
            let alias = links.remove(LOOPBACK).map(|lo| lo.alias).unwrap_or_default();
            let names: BTreeMap<u32, &String> = links.values().map(|link| (link.index, &link.name)).collect();
            let named = |(mac, port): (Mac, u32)| Some((mac, (*names.get(&port)?).clone()));
            Ok(ObservedFabric {
                alias,
                quiet,
                bridge: bridge.map(|link| Bridge { mtu: link.mtu, up: link.up, snooping: link.snooping }),
                vxlan: vxlan.and_then(|link| {
                    let is = link.vxlan?;
                    let local = Vtep { address: is.local?, port: is.port };
                    Some(Vxlan { vni: is.vni, local, learning: is.learning, port: link.port(index) })
                }),
                rows: table.remote,
                local_rows: table.local.into_iter().filter_map(named).collect(),
                ports: links.values().map(|link| (link.name.clone(), link.port(index))).collect(),
            })
        };
        self.within(&name, "observe", look).map(Some)
    }

    fn observe_binding(&self, member: &str) -> Result<Option<Binding>, Error> {
        let name = binding_name(member);
        let Some(quiet) = self.is_quiet(&name)? else { return Ok(None) };
        let look = |route: &mut Rtnl| -> io::Result<Binding> {
            let mut links = route.links()?;
            let alias = links.remove(LOOPBACK).map(|lo| lo.alias).unwrap_or_default();
            let mut binding = Binding { alias, quiet, ..Binding::default() };
            let Some(link) = links.remove(ETHERNET) else { return Ok(binding) };
            let addresses = route.addresses()?.into_iter().filter_map(|(index, address)| match address {
                IpNet::V4(address) if index == link.index => Some(address),
                _ => None,
            });
            binding.ethernet = Some(Ethernet {
                mac: link.mac.unwrap_or(Mac([0; 6])),
                mtu: link.mtu,
                up: link.up,
                addresses: addresses.collect(),
            });
            binding.neighbours = route.neighbours(link.index)?;
            Ok(binding)
        };
        self.within(&name, "observe", look).map(Some)
    }

    /// None without such a namespace.
    fn is_quiet(&self, name: &str) -> Result<Option<bool>, Error> {
        let Some(netns) = self.namespaces.open(name)? else { return Ok(None) };
        let quiet = netns::enter(netns.as_fd(), netns::is_quiet);
        quiet.map(Some).map_err(|error| Error::kernel(format!("enter {name}"), error))
    }

    fn traffic(&self, ours: &Ours) -> Vec<Traffic> {
        let mut traffic = Vec::new();
        for (network, traces) in &ours.networks {
            for (member, trace) in traces {
                let site = Site { netns: trace.netns.clone(), ifname: trace.ifname.clone() };
                let exchanged = self.wireguard.traffic(member, &site).into_iter();
                traffic.extend(exchanged.map(|is| Traffic {
                    network: network.clone(),
                    member: member.clone(),
                    peer: is.peer,
                    handshake: is.handshake,
                    received: is.received,
                    sent: is.sent,
                }));
            }
        }
        traffic
    }

    /// The namespaces of `ours` by path, and whose they are.
    fn places(&self, ours: &Ours) -> BTreeMap<PathBuf, BTreeSet<Place>> {
        let mut places: BTreeMap<PathBuf, BTreeSet<Place>> = BTreeMap::new();
        let directory = &self.namespaces.directory;
        for (network, traces) in &ours.networks {
            let place = |member: Option<&String>| Place { network: network.clone(), member: member.cloned() };
            places.entry(directory.join(fabric_name(network))).or_default().insert(place(None));
            for (id, trace) in traces {
                for path in [directory.join(binding_name(id)), trace.netns.path.clone()] {
                    places.entry(path).or_default().insert(place(Some(id)));
                }
            }
        }
        places
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

    fn require(&self, name: &str) -> Result<std::os::fd::OwnedFd, Error> {
        let netns = self.namespaces.open(name)?;
        netns.ok_or_else(|| Error::Missing { what: format!("the network namespace {name}") })
    }
}

/// As [`Kernel::underlay_mtu`], in the calling thread's namespace and without a kernel of one's own. For threads that
/// may block.
///
/// Errors: [`Error::NoSuchAddress`].
pub fn underlay_mtu(address: IpAddr) -> Result<u32, Error> {
    let mut route = Rtnl::here().map_err(|error| Error::kernel("open a netlink socket", error))?;
    mtu_at(&mut route, address)
}

fn mtu_at(route: &mut Rtnl, address: IpAddr) -> Result<u32, Error> {
    let failed = |error| Error::kernel("read the underlay's MTU", error);
    let owner = route.addresses().map_err(failed)?.into_iter().find(|(_, net)| net.addr() == address);
    let Some((index, _)) = owner else { return Err(Error::NoSuchAddress(address)) };
    let links = route.links().map_err(failed)?;
    let link = links.into_values().find(|link| link.index == index).map(|link| link.mtu);
    let routes = route.routes().map_err(failed)?.into_iter();
    let family = |net: IpNet| net.addr().is_ipv4() == address.is_ipv4();
    let set = routes.filter(|route| route.index == Some(index) && family(route.destination));
    link.into_iter().chain(set.filter_map(|route| route.mtu)).min().ok_or(Error::NoSuchAddress(address))
}

/// `eth0` up with exactly this address: the new one first, so that neighbours and socket stay.
fn ethernet(route: &mut Rtnl, address: Ipv4Net) -> io::Result<()> {
    let index = route.index(ETHERNET)?;
    route.add_address(index, address.into())?;
    let others =
        route.addresses()?.into_iter().filter(|(of, other)| *of == index && *other != address.into());
    for (_, other) in others.filter(|(_, other)| matches!(other, IpNet::V4(_))) {
        route.delete_address(index, other)?;
    }
    route.set_link(index, vec![], true)
}

fn fabric_name(network: &str) -> String {
    format!("net-{network}")
}

fn binding_name(member: &str) -> String {
    format!("bind-{member}")
}

/// It becomes part of a path, and the kernel's rule is the same (dev_valid_name).
fn check_ifname(name: &str) -> Result<(), Error> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':');
    let good = (1..=15).contains(&name.len()) && name != "." && name != ".." && name.chars().all(allowed);
    if good { Ok(()) } else { Err(Error::BadName(name.to_owned())) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
