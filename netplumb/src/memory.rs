//! A kernel in memory with the rules of the real one: for simulations and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::error::Error;
use crate::kernel::{
    Container, Echo, EchoFrom, EchoRequest, Found, Kernel, NetnsSource, Place, Problem, Traffic,
};
use crate::observed::{Inside, Observed, ObservedMember, ObservedNetwork};
use crate::plan::{FabricChange, InsideChange, MemberChange, Op, Site};
use crate::state::{Key, NetnsRef, Ours, PrivateKey, Trace};

/// One host's kernel. A clone is the same kernel, as a restarted agent finds it.
#[derive(Debug, Clone, Default)]
pub struct MemoryKernel(Arc<Mutex<Host>>);

/// An Op that shall fail.
type Fault = Box<dyn Fn(&Op) -> Option<Error> + Send>;

#[derive(Default)]
struct Host {
    underlay: BTreeMap<IpAddr, u32>,
    /// Running containers by the path of their namespace.
    containers: BTreeMap<PathBuf, Running>,
    cookies: u64,
    /// Shared with whoever looked at it last.
    state: Arc<Observed>,
    /// Where each (network, member) was touched last.
    sites: BTreeMap<(String, String), Site>,
    /// The key each interface was made with.
    keys: BTreeMap<(String, String), PrivateKey>,
    taken: BTreeSet<(u32, u16)>,
    fault: Option<Fault>,
    applied: usize,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Running {
    pid: Option<u32>,
    container: Container,
}

impl MemoryKernel {
    /// A host whose interface with `address` has this MTU in bytes.
    pub fn new(address: IpAddr, mtu: u32) -> MemoryKernel {
        let kernel = MemoryKernel::default();
        kernel.set_underlay(address, mtu);
        kernel
    }

    /// Gives an interface of the host an address, or changes its MTU in bytes.
    pub fn set_underlay(&self, address: IpAddr, mtu: u32) {
        self.host().underlay.insert(address, mtu);
    }

    /// Starts a container with `lo` and IPv6; at a path in use it takes the place of the old one.
    pub fn start_container(&self, path: impl Into<PathBuf>, pid: Option<u32>) -> NetnsRef {
        let (mut host, path) = (self.host(), path.into());
        host.stop(&path);
        host.cookies += 1;
        let netns = NetnsRef { path: path.clone(), cookie: host.cookies };
        let container = Container {
            netns: netns.clone(),
            inode: host.cookies,
            own: false,
            links: BTreeSet::from(["lo".to_owned()]),
            addresses: Vec::new(),
            routes: Vec::new(),
            ipv6: true,
            nf_tables: true,
            leftovers: false,
        };
        host.containers.insert(path, Running { pid, container });
        netns
    }

    /// Changes what a running container has: another interface, no IPv6, no nf_tables.
    pub fn edit_container(&self, path: impl AsRef<Path>, edit: impl FnOnce(&mut Container)) {
        if let Some(running) = self.host().containers.get_mut(path.as_ref()) {
            edit(&mut running.container);
        }
    }

    /// Ends a container: what was in its namespace goes with it.
    pub fn stop_container(&self, path: impl AsRef<Path>) {
        self.host().stop(path.as_ref());
    }

    /// All that stands, ours or not.
    pub fn state(&self) -> Arc<Observed> {
        self.host().state.clone()
    }

    /// Changes the state behind everybody's back.
    pub fn edit(&self, edit: impl FnOnce(&mut Observed)) {
        edit(self.host().state_mut());
    }

    /// Something else on the host uses this VNI on this UDP port.
    pub fn take_vni(&self, vni: u32, port: u16) {
        self.host().taken.insert((vni, port));
    }

    /// From now on an Op fails for which `fault` has an error.
    pub fn set_fault(&self, fault: impl Fn(&Op) -> Option<Error> + Send + 'static) {
        self.host().fault = Some(Box::new(fault));
    }

    /// No Op fails by [`MemoryKernel::set_fault`] any more.
    pub fn clear_fault(&self) {
        self.host().fault = None;
    }

    /// How many Ops succeeded so far.
    pub fn applied(&self) -> usize {
        self.host().applied
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for MemoryKernel {
    async fn preflight(&self) -> Vec<Problem> {
        Vec::new()
    }

    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32, Error> {
        self.host().underlay.get(&address).copied().ok_or(Error::NoSuchAddress(address))
    }

    async fn identify(&self, source: &NetnsSource) -> Result<Container, Error> {
        let host = self.host();
        match source {
            NetnsSource::Path(path) => {
                let running = host.containers.get(path).ok_or_else(|| Error::NetnsGone(path.clone()))?;
                Ok(running.container.clone())
            }
            NetnsSource::Pid { pid, inode } => {
                let of_pid = host.containers.values().find(|running| running.pid == Some(*pid));
                let running = of_pid.ok_or(Error::ProcessGone(*pid))?;
                match inode {
                    Some(inode) if *inode != running.container.inode => {
                        Err(Error::NetnsRecycled(running.container.netns.path.clone()))
                    }
                    _ => Ok(running.container.clone()),
                }
            }
        }
    }

    async fn alive(&self, netns: &NetnsRef, inode: u64) -> bool {
        self.host().containers.get(&netns.path).is_some_and(|running| running.container.inode == inode)
    }

    async fn sweep(&self, ours: &Ours) -> Result<(), Error> {
        let mut host = self.host();
        let state = host.state_mut();
        state.networks.retain(|name, _| ours.networks.contains_key(name));
        for (name, network) in &mut state.networks {
            network.members.retain(|id, _| ours.networks[name].contains_key(id));
        }
        Ok(())
    }

    async fn clean(&self, netns: &NetnsRef) -> Result<(), Error> {
        let mut host = self.host();
        host.find(netns)?;
        let path = netns.path.clone();
        if let Some(running) = host.containers.get_mut(&path) {
            running.container.leftovers = false;
        }
        Ok(())
    }

    async fn find(&self, members: &BTreeMap<String, Key>) -> Vec<Found> {
        let host = self.host();
        let found = host.sites.iter().filter_map(|((network, member), site)| {
            let key = members.get(member)?;
            let inode = host.find(&site.netns).ok()?.inode;
            let inside = host.member(network, member, site).inside?;
            inside.device.as_ref()?;
            let private_key = host.keys.get(&(network.clone(), member.clone()))?.clone();
            let (member, netns, ifname) = (member.clone(), site.netns.clone(), site.ifname.clone());
            let subnet = inside.routes.keys().find_map(|destination| match destination {
                IpNet::V4(subnet) => Some(*subnet),
                IpNet::V6(_) => None,
            });
            let of_key = private_key.public() == *key;
            of_key.then_some(Found { member, netns, inode, ifname, private_key, subnet })
        });
        found.collect()
    }

    async fn observe(&self, ours: &Ours) -> Result<Observed, Error> {
        let host = self.host();
        let mut observed = Observed::default();
        for (name, traces) in &ours.networks {
            let network = host.state.networks.get(name);
            let mut seen = ObservedNetwork {
                fabric: network.and_then(|network| network.fabric.clone()),
                members: BTreeMap::new(),
            };
            for (id, trace) in traces {
                let site = Site { netns: trace.netns.clone(), ifname: trace.ifname.clone() };
                seen.members.insert(id.clone(), host.member(name, id, &site));
            }
            observed.networks.insert(name.clone(), seen);
        }
        Ok(observed)
    }

    async fn observe_members(
        &self,
        traces: &BTreeMap<String, Trace>,
    ) -> Result<BTreeMap<String, ObservedMember>, Error> {
        let host = self.host();
        let seen = traces.iter().map(|(id, trace)| {
            let site = Site { netns: trace.netns.clone(), ifname: trace.ifname.clone() };
            let of = host.state.networks.iter().find(|(_, network)| network.members.contains_key(id));
            let seen = host.member(of.map_or("", |(name, _)| name), id, &site);
            (id.clone(), seen)
        });
        Ok(seen.collect())
    }

    async fn apply(&self, op: &Op) -> Result<(), Error> {
        let mut host = self.host();
        host.check(op)?;
        if let Some(error) = host.fault.as_ref().and_then(|fault| fault(op)) {
            return Err(error);
        }
        if let Op::Inside { network, member, site, change } = op {
            let fresh =
                host.inside(network, member, site).is_none().then(|| host.find(&site.netns).map(fresh));
            host.sites.insert((network.clone(), member.clone()), site.clone());
            if let InsideChange::Link(link) = change {
                host.keys.insert((network.clone(), member.clone()), link.private_key.clone());
            }
            let networks = &mut host.state_mut().networks;
            let members = &mut networks.entry(network.clone()).or_default().members;
            let seen = members.entry(member.clone()).or_default();
            if let Some(fresh) = fresh {
                seen.inside = fresh.ok();
            }
        }
        host.state_mut().apply(op);
        host.applied += 1;
        Ok(())
    }

    async fn watch(&self, _: &Ours) {}

    /// [`MemoryKernel::edit`] is what nobody is told of: audits find it.
    async fn changed(&self) -> BTreeSet<Place> {
        std::future::pending().await
    }

    async fn traffic(&self, ours: &Ours) -> Vec<Traffic> {
        let host = self.host();
        let mut traffic = Vec::new();
        for (network, traces) in &ours.networks {
            let Some(seen) = host.state.networks.get(network) else { continue };
            for member in traces.keys() {
                let device =
                    seen.members.get(member).and_then(|m| m.inside.as_ref()).and_then(|i| i.device.as_ref());
                traffic.extend(device.into_iter().flat_map(|device| device.peers.keys()).map(|peer| {
                    Traffic {
                        network: network.clone(),
                        member: member.clone(),
                        peer: *peer,
                        handshake: None,
                        received: 0,
                        sent: 0,
                    }
                }));
            }
        }
        traffic
    }

    /// No packet moves in memory: nothing answers.
    async fn echo(&self, request: &EchoRequest) -> Result<Echo, Error> {
        let host = self.host();
        if let EchoFrom::Container(netns) = &request.from {
            host.find(netns)?;
        }
        Ok(Echo::Silent)
    }

    async fn echoes_heard(&self, _: &str) -> Result<u64, Error> {
        Ok(0)
    }
}

impl Host {
    fn state_mut(&mut self) -> &mut Observed {
        Arc::make_mut(&mut self.state)
    }

    fn stop(&mut self, path: &Path) {
        self.containers.remove(path);
        let ended = self.sites.extract_if(.., |_, site| site.netns.path == path);
        for ((network, member), _) in ended.collect::<Vec<_>>() {
            let members = self.state_mut().networks.get_mut(&network).map(|network| &mut network.members);
            if let Some(member) = members.and_then(|members| members.get_mut(&member)) {
                member.inside = None;
            }
        }
    }

    fn find(&self, netns: &NetnsRef) -> Result<&Container, Error> {
        let running = self.containers.get(&netns.path).ok_or_else(|| Error::NetnsGone(netns.path.clone()))?;
        match running.container.netns.cookie == netns.cookie {
            true => Ok(&running.container),
            false => Err(Error::NetnsRecycled(netns.path.clone())),
        }
    }

    /// A member as it is: its container's side is there only while the container is.
    fn member(&self, network: &str, id: &str, site: &Site) -> ObservedMember {
        let known = self.state.networks.get(network).and_then(|network| network.members.get(id));
        let container = self.find(&site.netns).ok();
        let inside = container
            .map(|container| self.inside(network, id, site).cloned().unwrap_or_else(|| fresh(container)));
        ObservedMember { binding: known.and_then(|known| known.binding.clone()), inside }
    }

    /// What was made in this container for a member.
    fn inside(&self, network: &str, id: &str, site: &Site) -> Option<&Inside> {
        let made = self.sites.get(&(network.to_owned(), id.to_owned()));
        if made.is_some_and(|made| made.netns != site.netns) {
            return None;
        }
        self.state.networks.get(network)?.members.get(id)?.inside.as_ref()
    }

    /// What the kernel would refuse.
    fn check(&self, op: &Op) -> Result<(), Error> {
        let missing = |what: &str| Err(Error::Missing { what: format!("{what} of {}", op.network()) });
        let network = self.state.networks.get(op.network());
        let fabric = network.and_then(|network| network.fabric.as_ref());
        let member = op.member().and_then(|id| network.and_then(|network| network.members.get(id)));
        let bound = member.is_some_and(|member| member.binding.is_some());
        match op {
            Op::Fabric { change: FabricChange::Namespace { .. } | FabricChange::DropNamespace, .. } => Ok(()),
            Op::Fabric { change: FabricChange::Vxlan { vni, local, .. }, .. } if fabric.is_some() => {
                self.check_vni(op.network(), *vni, local.port)
            }
            Op::Fabric { .. } if fabric.is_none() => missing("the namespace"),
            Op::Member { change: MemberChange::Namespace { .. } | MemberChange::DropNamespace, .. } => Ok(()),
            Op::Member { change: MemberChange::Veth { .. }, .. } if fabric.is_none() => {
                missing("the namespace")
            }
            Op::Member { .. } if !bound => missing("the binding namespace"),
            Op::Fabric { .. } | Op::Member { .. } => Ok(()),
            Op::Inside { network, member, site, change } => {
                self.check_inside(network, member, site, change, bound)
            }
        }
    }

    fn check_vni(&self, network: &str, vni: u32, port: u16) -> Result<(), Error> {
        let mut others = self.state.networks.iter().filter(|(name, _)| *name != network);
        let same = |(_, other): (&String, &ObservedNetwork)| {
            let vxlan = other.fabric.as_ref().and_then(|fabric| fabric.vxlan);
            vxlan.is_some_and(|vxlan| (vxlan.vni, vxlan.local.port) == (vni, port))
        };
        match self.taken.contains(&(vni, port)) || others.any(same) {
            true => Err(Error::VniInUse { vni, port }),
            false => Ok(()),
        }
    }

    fn check_inside(
        &self,
        network: &str,
        member: &str,
        site: &Site,
        change: &InsideChange,
        bound: bool,
    ) -> Result<(), Error> {
        let container = self.find(&site.netns)?;
        let device = self.inside(network, member, site).and_then(|inside| inside.device.as_ref());
        match change {
            InsideChange::Guard(_) if !container.nf_tables => Err(Error::from(
                crate::netlink::nft::NftError::Unsupported(std::io::ErrorKind::Unsupported.into()),
            )),
            InsideChange::Link(_) if !bound => {
                Err(Error::Missing { what: format!("the binding namespace of {member}") })
            }
            InsideChange::Link(_)
                if device.is_none() && self.name_taken(container, network, member, site) =>
            {
                Err(Error::NameTaken { ifname: site.ifname.clone() })
            }
            InsideChange::Address(IpNet::V6(_)) if !container.ipv6 => {
                Err(Error::NoIpv6 { ifname: site.ifname.clone() })
            }
            InsideChange::Address(_)
            | InsideChange::LinkMtu(_)
            | InsideChange::LinkUp
            | InsideChange::Route { .. }
            | InsideChange::Peers(_)
                if device.is_none() =>
            {
                Err(Error::Missing { what: site.ifname.clone() })
            }
            _ => Ok(()),
        }
    }

    fn name_taken(&self, container: &Container, network: &str, member: &str, site: &Site) -> bool {
        let others = self
            .sites
            .iter()
            .filter(|((n, m), other)| (n.as_str(), m.as_str()) != (network, member) && *other == site);
        let has_device = |key: &(String, String)| {
            let member = self.state.networks.get(&key.0).and_then(|network| network.members.get(&key.1));
            member.and_then(|m| m.inside.as_ref()).is_some_and(|inside| inside.device.is_some())
        };
        container.links.contains(&site.ifname) || others.into_iter().any(|(key, _)| has_device(key))
    }
}

/// A container's side in which nothing was made.
fn fresh(container: &Container) -> Inside {
    Inside { ipv6: container.ipv6, ..Inside::default() }
}
