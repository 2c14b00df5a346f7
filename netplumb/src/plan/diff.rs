//! The difference as Ops: one draft for a network, one for each of its members.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::netlink::nft::Rules;
use crate::observed::{
    Binding, Bridge, Device, Inside, Observed, ObservedFabric, ObservedMember, ObservedNetwork, ObservedPeer,
    Peers, Port, PortFlags, Vxlan, port_name,
};
use crate::plan::{FabricChange, InsideChange, Link, MemberChange, Op, Plan, Prune, Site};
use crate::state::{Desired, Fabric, Guard, IPV6_MTU_MIN, Mac, Member, Network, Ours, Peer, Trace, Vtep};

/// Rows and peers in one Op: a few hundred kernel rows, so that no Op holds anything up for long.
const CHUNK: usize = 256;

/// The Ops that turn `observed` into `desired`, for what is named in `ours`; nothing else is looked
/// at. A network or member that is desired but not in `ours` is left for when the journal names it.
pub fn diff(observed: &Observed, desired: &Desired, ours: &Ours, prune: Prune) -> Plan {
    let nothing = ObservedNetwork::default();
    let mut plan = Stages::default();
    for (name, traces) in &ours.networks {
        let is = observed.networks.get(name).unwrap_or(&nothing);
        let mut draft = Draft { network: name, prune, stages: &mut plan };
        match desired.networks.get(name) {
            Some(network) => draft.network(is, network, traces),
            None => draft.no_network(is, traces),
        }
    }
    let Stages { removals, additions, neighbours, peers } = plan;
    Plan { ops: [removals, additions, neighbours, peers].into_iter().flatten().collect() }
}

/// The plan of all networks in the making, in the order of its parts.
#[derive(Default)]
struct Stages {
    removals: Vec<Op>,
    additions: Vec<Op>,
    /// What members are told of each other comes last, when they stand, and together: it is much, and little for each.
    neighbours: Vec<Op>,
    peers: Vec<Op>,
}

/// The plan of one network in the making.
struct Draft<'a> {
    network: &'a str,
    prune: Prune,
    stages: &'a mut Stages,
}

impl Draft<'_> {
    fn no_network(&mut self, is: &ObservedNetwork, traces: &BTreeMap<String, Trace>) {
        for (id, trace) in traces {
            self.no_member(is, id, trace);
        }
        if is.fabric.is_some() {
            self.remove_fabric(FabricChange::DropNamespace);
        }
    }

    fn network(&mut self, is: &ObservedNetwork, network: &Network, traces: &BTreeMap<String, Trace>) {
        let leaving = traces.iter().filter(|(id, _)| !network.members.contains_key(*id));
        for (id, trace) in leaving {
            self.no_member(is, id, trace);
        }
        self.fabric(is.fabric.as_ref(), &network.fabric);
        let nobody = ObservedMember::default();
        for (id, member) in network.members.iter().filter(|(id, _)| traces.contains_key(*id)) {
            let site = Site { netns: member.netns.clone(), ifname: member.ifname.clone() };
            let mut draft = MemberDraft { id, site: &site, draft: self };
            draft.member(is.members.get(id).unwrap_or(&nobody), is.fabric.as_ref(), member, network);
        }
    }

    fn no_member(&mut self, is: &ObservedNetwork, id: &str, trace: &Trace) {
        let Some(member) = is.members.get(id) else { return };
        let site = Site { netns: trace.netns.clone(), ifname: trace.ifname.clone() };
        let mut draft = MemberDraft { id, site: &site, draft: self };
        if let Some(inside) = &member.inside {
            draft.no_inside(inside);
        }
        if member.binding.is_some() {
            draft.remove_member(MemberChange::DropNamespace);
        }
    }

    fn fabric(&mut self, is: Option<&ObservedFabric>, fabric: &Fabric) {
        if is.is_none_or(|is| is.alias != fabric.alias || !is.quiet) {
            self.add_fabric(FabricChange::Namespace { alias: fabric.alias.clone() });
        }
        let mtu = fabric.mtu;
        if is.and_then(|is| is.bridge) != Some(Bridge { mtu, up: true, snooping: false }) {
            self.add_fabric(FabricChange::Bridge { mtu });
        }
        let kept = self.vxlan(is.and_then(|is| is.vxlan), fabric);
        self.rows(is.filter(|_| kept), fabric);
    }

    /// Whether the device stays, and its rows with it.
    fn vxlan(&mut self, is: Option<Vxlan>, fabric: &Fabric) -> bool {
        let Fabric { vni, local, mtu, .. } = *fabric;
        // Neither can change in place ("Cannot change VNI"), nor can the address family.
        let same = |is: &Vxlan| {
            (is.vni, is.local.port, is.learning) == (vni, local.port, false)
                && is.local.address.is_ipv4() == local.address.is_ipv4()
        };
        let kept = is.filter(same);
        if is.is_some() && kept.is_none() {
            self.remove_fabric(FabricChange::DropVxlan);
        }
        if kept.is_none_or(|is| is.local != local || is.port.mtu != mtu) {
            self.add_fabric(FabricChange::Vxlan { vni, local, mtu });
        }
        let port = Port { up: true, enslaved: true, flags: PortFlags::VXLAN, mtu };
        if kept.is_none_or(|is| Port { mtu, ..is.port } != port) {
            self.add_fabric(FabricChange::Port);
        }
        kept.is_some()
    }

    fn rows(&mut self, is: Option<&ObservedFabric>, fabric: &Fabric) {
        let nothing = BTreeMap::new();
        let have = is.map_or(&nothing, |is| &is.rows);
        let mut drop = BTreeSet::new();
        for (mac, ends) in have {
            match fabric.rows.get(mac) {
                Some(vtep) => {
                    // REPLACE puts the new end in the place of one; the others have to go before it.
                    let stale =
                        ends.iter().filter(|end| *end != vtep).skip(usize::from(!ends.contains(vtep)));
                    drop.extend(stale.map(|end| (*mac, *end)));
                }
                None if self.prune == Prune::All => drop.extend(ends.iter().map(|end| (*mac, *end))),
                None => {}
            }
        }
        for chunk in chunks(drop) {
            self.remove_fabric(FabricChange::DropRows(chunk));
        }
        let missing = |(mac, vtep): &(&Mac, &Vtep)| !have.get(mac).is_some_and(|ends| ends.contains(vtep));
        let rows = fabric.rows.iter().filter(missing).map(|(mac, vtep)| (*mac, *vtep));
        for chunk in chunks::<_, BTreeMap<_, _>>(rows) {
            self.add_fabric(FabricChange::Rows(chunk));
        }
    }

    fn remove_fabric(&mut self, change: FabricChange) {
        self.stages.removals.push(Op::Fabric { network: self.network.to_owned(), change });
    }

    fn add_fabric(&mut self, change: FabricChange) {
        self.stages.additions.push(Op::Fabric { network: self.network.to_owned(), change });
    }
}

/// The plan of one member in the making.
struct MemberDraft<'a, 'b> {
    id: &'a str,
    site: &'a Site,
    draft: &'a mut Draft<'b>,
}

impl MemberDraft<'_, '_> {
    fn member(
        &mut self,
        is: &ObservedMember,
        around: Option<&ObservedFabric>,
        member: &Member,
        network: &Network,
    ) {
        let binding = is.binding.as_ref();
        let alias = &network.fabric.alias;
        if binding.is_none_or(|is| is.alias != *alias || !is.quiet) {
            self.add_member(MemberChange::Namespace { alias: alias.clone() });
        }
        self.veth(binding, around, member, network);
        match &is.inside {
            Some(inside) if member.held => self.held(inside, binding.is_some(), member, network),
            Some(inside) => self.inside(inside, binding.is_some(), member, network),
            // It fails with the reason, and nothing after it is tried.
            None => self.add_inside(InsideChange::Loopback),
        }
    }

    fn veth(
        &mut self,
        binding: Option<&Binding>,
        around: Option<&ObservedFabric>,
        member: &Member,
        network: &Network,
    ) {
        let (mac, mtu) = (member.mac, network.fabric.mtu);
        let name = port_name(self.id);
        let port = around.and_then(|fabric| fabric.ports.get(&name));
        let ethernet = binding.and_then(|is| is.ethernet.as_ref()).filter(|_| port.is_some());
        if ethernet.is_none_or(|is| (is.mac, is.mtu) != (mac, mtu))
            || port.is_some_and(|port| port.mtu != mtu)
        {
            self.add_member(MemberChange::Veth { mac, mtu });
        }
        let port = port.filter(|_| ethernet.is_some());
        let expected = Port { up: true, enslaved: true, flags: PortFlags::MEMBER, mtu };
        let bridged = around.is_some_and(|fabric| fabric.bridge.is_some());
        let kept = port.is_some_and(|port| Port { mtu, ..*port } == expected) && bridged;
        if !kept {
            self.add_member(MemberChange::Port);
        }
        let rows = around.map(|fabric| &fabric.local_rows);
        if !kept || rows.and_then(|rows| rows.get(&mac)) != Some(&name) {
            self.add_member(MemberChange::LocalRow { mac });
        }
        let former = rows.into_iter().flatten().filter(|(row, to)| **to == name && **row != mac);
        for (mac, _) in former {
            self.remove_member(MemberChange::DropLocalRow { mac: *mac });
        }
        let address = Ipv4Net::new_assert(member.address, member.subnet.prefix_len());
        if ethernet.is_none_or(|is| !is.up || is.addresses != BTreeSet::from([address])) {
            self.add_member(MemberChange::Ethernet { address });
        }
        // A new MAC flushes the neighbours.
        let nothing = BTreeMap::new();
        let kept = ethernet.is_some_and(|is| is.mac == mac);
        self.neighbours(binding.filter(|_| kept).map_or(&nothing, |is| &is.neighbours), member, network);
    }

    fn neighbours(&mut self, have: &BTreeMap<Ipv4Addr, Mac>, member: &Member, network: &Network) {
        let want = || network.peers_of(member).map(|(_, peer)| (*peer.endpoint.ip(), peer.mac));
        let missing = want().filter(|(address, mac)| have.get(address) != Some(mac));
        for chunk in chunks::<_, BTreeMap<_, _>>(missing) {
            self.add_member(MemberChange::Neighbours(chunk));
        }
        if self.draft.prune == Prune::All && !have.is_empty() {
            let want: BTreeSet<Ipv4Addr> = want().map(|(address, _)| address).collect();
            let stale = have.keys().filter(|address| !want.contains(address)).copied();
            for chunk in chunks(stale) {
                self.remove_member(MemberChange::DropNeighbours(chunk));
            }
        }
    }

    /// The interface that waits in the host's namespace, made together with the binding's: one that is not there any
    /// more has been taken by the runtime, and will be found in the container.
    fn held(&mut self, is: &Inside, bound: bool, member: &Member, network: &Network) {
        if is.device.is_none() && bound {
            return;
        }
        let kept = self.link(is.device.as_ref(), bound, member, &Target::of(member, false));
        self.peers(kept, member, network);
    }

    fn inside(&mut self, is: &Inside, bound: bool, member: &Member, network: &Network) {
        let target = Target::of(member, is.ipv6);
        if !is.loopback {
            self.add_inside(InsideChange::Loopback);
        }
        let missing: BTreeSet<IpNet> = target.prefixes.difference(&is.unreachable).copied().collect();
        if !missing.is_empty() {
            self.add_inside(InsideChange::Unreachable(missing));
        }
        match (&target.guard, &is.guard) {
            (want, have) if want == have => {}
            (Some(rules), _) => self.add_inside(InsideChange::Guard(rules.clone())),
            (None, _) => self.remove_inside(InsideChange::DropGuard),
        }
        let kept = self.link(is.device.as_ref(), bound, member, &target);
        let no_routes = BTreeMap::new();
        self.routes(kept, if kept.is_some() { &is.routes } else { &no_routes }, &target);
        self.peers(kept, member, network);
        let stale: BTreeSet<IpNet> = is.unreachable.difference(&target.prefixes).copied().collect();
        if !stale.is_empty() {
            self.add_inside(InsideChange::DropUnreachable(stale));
        }
    }

    /// The device if it stays. It dies with the binding namespace it was born in, its key and port
    /// are its birth's.
    fn link<'d>(
        &mut self,
        is: Option<&'d Device>,
        bound: bool,
        member: &Member,
        target: &Target,
    ) -> Option<&'d Device> {
        let kept = is.filter(|is| bound && is.mac == Some(member.mac) && is.port == member.port);
        match kept {
            Some(is) if is.mtu != member.mtu => self.add_inside(InsideChange::LinkMtu(member.mtu)),
            Some(_) => {}
            None => {
                if is.is_some() {
                    self.remove_inside(InsideChange::DropLink);
                }
                self.add_inside(InsideChange::Link(Link {
                    mtu: member.mtu,
                    port: member.port,
                    private_key: member.private_key.clone(),
                    address: member.address,
                    address6: target.address6(),
                }));
            }
        }
        kept
    }

    fn routes(&mut self, is: Option<&Device>, have: &BTreeMap<IpNet, IpAddr>, target: &Target) {
        let nothing = BTreeSet::new();
        let addresses = is.map_or(&nothing, |is| &is.addresses);
        for address in target.addresses.difference(addresses) {
            self.add_inside(InsideChange::Address(*address));
        }
        if is.is_none_or(|is| !is.up) {
            self.add_inside(InsideChange::LinkUp);
        }
        for (destination, source) in target.routes.iter().filter(|(to, from)| have.get(to) != Some(from)) {
            self.add_inside(InsideChange::Route { destination: *destination, source: *source });
        }
        for destination in have.keys().filter(|to| !target.routes.contains_key(to)) {
            self.add_inside(InsideChange::DropRoute(*destination));
        }
        // Last: the kernel drops the routes whose source goes.
        for address in addresses.difference(&target.addresses) {
            self.add_inside(InsideChange::DropAddress(*address));
        }
    }

    fn peers(&mut self, is: Option<&Device>, member: &Member, network: &Network) {
        let nothing = Peers::default();
        let have = is.map_or(&nothing, |is| &is.peers);
        if self.draft.prune == Prune::All {
            let stale = have.keys().filter(|key| !network.has_peer(member, key)).copied();
            for chunk in chunks(stale) {
                self.remove_inside(InsideChange::DropPeers(chunk));
            }
        }
        let same = |have: &ObservedPeer, peer: &Peer| {
            have.endpoint == Some(peer.endpoint) && have.allowed == peer.allowed
        };
        let changed =
            network.peers_of(member).filter(|(key, peer)| !have.get(key).is_some_and(|is| same(is, peer)));
        // An initiation from an interface that is being made comes before its peers know it: lost, and repeated after 5 s.
        let stands = is.is_some();
        let told = changed.map(|(key, peer)| (*key, Peer { greet: peer.greet && stands, ..peer.clone() }));
        for chunk in chunks::<_, BTreeMap<_, _>>(told) {
            self.add_inside(InsideChange::Peers(chunk));
        }
    }

    fn no_inside(&mut self, is: &Inside) {
        if is.device.is_some() {
            self.remove_inside(InsideChange::DropLink);
        }
        if !is.unreachable.is_empty() {
            self.remove_inside(InsideChange::DropUnreachable(is.unreachable.clone()));
        }
        if is.guard.is_some() {
            self.remove_inside(InsideChange::DropGuard);
        }
    }

    fn remove_member(&mut self, change: MemberChange) {
        let (network, member) = (self.draft.network.to_owned(), self.id.to_owned());
        self.draft.stages.removals.push(Op::Member { network, member, change });
    }

    fn add_member(&mut self, change: MemberChange) {
        let (network, member) = (self.draft.network.to_owned(), self.id.to_owned());
        let stages = &mut self.draft.stages;
        let stage = match change {
            MemberChange::Neighbours(_) => &mut stages.neighbours,
            _ => &mut stages.additions,
        };
        stage.push(Op::Member { network, member, change });
    }

    fn remove_inside(&mut self, change: InsideChange) {
        let (network, member) = (self.draft.network.to_owned(), self.id.to_owned());
        self.draft.stages.removals.push(Op::Inside { network, member, site: self.site.clone(), change });
    }

    fn add_inside(&mut self, change: InsideChange) {
        let (network, member) = (self.draft.network.to_owned(), self.id.to_owned());
        let stages = &mut self.draft.stages;
        let stage = match change {
            InsideChange::Peers(_) => &mut stages.peers,
            _ => &mut stages.additions,
        };
        stage.push(Op::Inside { network, member, site: self.site.clone(), change });
    }
}

/// The container's side of a member, given whether the container has IPv6.
struct Target {
    prefixes: BTreeSet<IpNet>,
    guard: Option<Rules>,
    addresses: BTreeSet<IpNet>,
    routes: BTreeMap<IpNet, IpAddr>,
}

impl Target {
    fn of(member: &Member, ipv6: bool) -> Target {
        let address6 = member.address6.filter(|_| ipv6 && member.mtu >= IPV6_MTU_MIN);
        let (subnet, ula) = (member.subnet.trunc(), member.ula.trunc());
        let prefixes = [Some(subnet.into()), ipv6.then_some(ula.into())].into_iter().flatten().collect();
        let mut addresses = BTreeSet::from([IpNet::from(IpAddr::V4(member.address))]);
        let mut routes = BTreeMap::from([(IpNet::V4(subnet), IpAddr::V4(member.address))]);
        if let Some(address6) = address6 {
            addresses.insert(IpAddr::V6(address6).into());
            routes.insert(ula.into(), address6.into());
        }
        let guard = match member.guard {
            Guard::None => None,
            Guard::Table { listener } => Some(Rules {
                ifname: member.ifname.clone(),
                address: member.address,
                subnet,
                address6,
                ula: ipv6.then_some(ula),
                listener,
            }),
        };
        Target { prefixes, guard, addresses, routes }
    }

    fn address6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpNet::V6(address) => Some(address.addr()),
            IpNet::V4(_) => None,
        })
    }
}

/// `items` in collections of at most [`CHUNK`].
fn chunks<T, C: FromIterator<T>>(items: impl IntoIterator<Item = T>) -> Vec<C> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(|| {
        items.peek()?;
        Some(items.by_ref().take(CHUNK).collect())
    })
    .collect()
}
