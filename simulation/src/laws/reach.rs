//! Where a frame ends: followed from kernel to kernel, by neighbour rows, FDB rows, ports and keys, without a
//! look at any view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gossip::View;
use gossip::id::{MemberId, NetworkId};
use netplumb::observed::{Observed, ObservedFabric, ObservedMember, port_name};
use netplumb::state::{Key, Mac};
use tokio::time::Instant;

use super::SMALL;
use super::claims::{contested, holders};
use crate::cluster::{Cluster, GONE, Life, Promise};
use crate::stage::FULL;

/// Every kernel there is, as frames find it.
struct Underlay {
    machines: Vec<Option<Machine>>,
    by_address: BTreeMap<IpAddr, usize>,
}

struct Machine {
    state: Arc<Observed>,
    /// Which network has this (VNI, UDP port).
    tunnels: BTreeMap<(u32, u16), String>,
    /// Which member is behind a port of a network.
    ports: BTreeMap<String, BTreeMap<String, String>>,
}

impl Underlay {
    fn of(cluster: &Cluster) -> Underlay {
        let standing = |life: Life| !matches!(life, Life::Scrapped(_));
        let machines = cluster.hosts.iter();
        Underlay {
            machines: machines
                .clone()
                .map(|h| standing(h.life).then(|| Machine::of(h.kernel.state())))
                .collect(),
            by_address: machines.enumerate().map(|(number, h)| (h.address.ip(), number)).collect(),
        }
    }

    fn machine(&self, number: usize) -> Option<&Machine> {
        self.machines.get(number)?.as_ref()
    }

    /// A member's container on a machine, as what it sends leaves it; none where nothing does.
    fn sender<'u>(&'u self, machine: usize, network: &'u str, member: &str) -> Option<Sender<'u>> {
        let here = self.machine(machine)?;
        let (id, from) = here.members(network).find(|(id, _)| *id == member)?;
        let device = from.inside.as_ref()?.device.as_ref().filter(|device| device.up)?;
        let peers = device.peers.iter().rev();
        let routes =
            peers.flat_map(|(key, peer)| peer.allowed.iter().map(move |ip| (*ip, (key, peer.endpoint))));
        let binding = from.binding.as_ref();
        let open = binding.filter(|binding| binding.ethernet.as_ref().is_some_and(|ethernet| ethernet.up));
        Some(Sender {
            underlay: self,
            here,
            network,
            member: id,
            own: device.addresses.iter().map(|own| own.addr()).collect(),
            routes: routes.collect(),
            neighbours: open.map(|binding| &binding.neighbours),
            fabric: here.fabric(network),
        })
    }
}

/// A container that sends; whom its interface has as peers is read once.
struct Sender<'u> {
    underlay: &'u Underlay,
    here: &'u Machine,
    network: &'u str,
    member: &'u str,
    own: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, (&'u Key, Option<SocketAddrV4>)>,
    neighbours: Option<&'u BTreeMap<Ipv4Addr, Mac>>,
    fabric: Option<&'u ObservedFabric>,
}

impl<'u> Sender<'u> {
    /// The member in whose container a packet to `address` is read; none where it is dropped.
    fn deliver(&self, address: Ipv4Addr) -> Option<&'u str> {
        let wanted = IpAddr::V4(address);
        if self.own.contains(&wanted) {
            return Some(self.member);
        }
        let (key, endpoint) = *self.routes.get(&wanted)?;
        let endpoint = *endpoint?.ip();
        let mac = self.neighbours?.get(&endpoint)?;
        let frame = Frame { mac: *mac, key, endpoint, address };
        let fabric = self.fabric?;
        if fabric.local_rows.contains_key(mac) {
            return self.here.arrive(self.network, &frame);
        }
        let vxlan = fabric.vxlan.as_ref().filter(|vxlan| vxlan.port.up && vxlan.port.enslaved)?;
        fabric.rows.get(mac)?.iter().find_map(|end| {
            let there = self.underlay.machine(*self.underlay.by_address.get(&end.address)?)?;
            let network = there.tunnels.get(&(vxlan.vni, end.port))?;
            there.arrive(network, &frame)
        })
    }
}

/// What a member sends: to whom on the overlay, for whom it is encrypted, and what is inside.
struct Frame<'k> {
    mac: Mac,
    key: &'k Key,
    endpoint: Ipv4Addr,
    address: Ipv4Addr,
}

impl Machine {
    fn of(state: Arc<Observed>) -> Machine {
        let (mut tunnels, mut ports) = (BTreeMap::new(), BTreeMap::new());
        for (name, network) in &state.networks {
            let vxlan = network.fabric.as_ref().and_then(|fabric| fabric.vxlan);
            if let Some(vxlan) = vxlan.filter(|vxlan| vxlan.port.up && vxlan.port.enslaved) {
                tunnels.insert((vxlan.vni, vxlan.local.port), name.clone());
            }
            let behind = network.members.keys().map(|member| (port_name(member), member.clone())).collect();
            ports.insert(name.clone(), behind);
        }
        Machine { state, tunnels, ports }
    }

    fn fabric(&self, network: &str) -> Option<&ObservedFabric> {
        self.state.networks.get(network)?.fabric.as_ref()
    }

    fn members(&self, network: &str) -> impl Iterator<Item = (&str, &ObservedMember)> {
        let members = self.state.networks.get(network).map(|network| &network.members);
        members.into_iter().flatten().map(|(id, member)| (id.as_str(), member))
    }

    fn member(&self, network: &str, member: &str) -> Option<&ObservedMember> {
        self.state.networks.get(network)?.members.get(member)
    }

    /// Who reads a frame that is in a network's bridge.
    fn arrive(&self, network: &str, frame: &Frame<'_>) -> Option<&str> {
        let port = self.fabric(network)?.local_rows.get(&frame.mac)?;
        let id = self.ports.get(network)?.get(port)?;
        let member = self.member(network, id)?;
        let ethernet = member.binding.as_ref()?.ethernet.as_ref()?;
        let taken = ethernet.up
            && ethernet.mac == frame.mac
            && ethernet.addresses.iter().any(|own| own.addr() == frame.endpoint);
        let device = member.inside.as_ref()?.device.as_ref().filter(|_| taken)?;
        // Only who has the key can read it, and only a packet for an own address goes up.
        let read = device.up
            && device.mac == Some(Mac::of_key(frame.key))
            && device.addresses.iter().any(|own| own.addr() == IpAddr::V4(frame.address));
        read.then_some(id.as_str())
    }
}

/// Whatever an agent's names say: a packet to the address ends in a container of that app and type, or nowhere.
pub fn no_wrong_container(cluster: &Cluster) -> anyhow::Result<()> {
    let underlay = Underlay::of(cluster);
    for (number, host, snapshot) in cluster.live().filter(|(number, ..)| is_its_turn(cluster, *number)) {
        let Some(machine) = underlay.machine(number) else { continue };
        let built: BTreeMap<NetworkId, &String> =
            machine.state.networks.keys().filter_map(|name| Some((name.parse().ok()?, name))).collect();
        let mut senders: BTreeMap<NetworkId, Vec<Sender<'_>>> = BTreeMap::new();
        for (network, name) in &built {
            let of_network = machine.members(name).filter_map(|(id, _)| underlay.sender(number, name, id));
            senders.insert(*network, of_network.collect());
        }
        for ((network, address), meant) in holders(&snapshot.view, |network| built.contains_key(network)) {
            for sender in &senders[&network] {
                let (member, Some(reached)) = (sender.member, sender.deliver(address)) else { continue };
                // Who is contested has its address still, without a peer: what it sends there never leaves it.
                if reached == member || reached == meant.member.as_str() {
                    continue;
                }
                let reached: MemberId = reached.parse()?;
                let origin = cluster.books.origin(&reached).context("a member nobody has claimed")?;
                ensure!(
                    (origin.network, origin.app, &origin.process)
                        == (network, meant.record.app, &meant.record.process),
                    "{member} on {} sends to {address} in {network}, which is {} of {} {}; {reached} of {origin:?} gets it",
                    host.label(),
                    meant.member,
                    meant.record.app,
                    meant.record.process
                );
            }
        }
    }
    Ok(())
}

/// Whether a host is looked at just now: in a large region, by turns.
fn is_its_turn(cluster: &Cluster, host: usize) -> bool {
    let turns = cluster.hosts.len().div_ceil(SMALL);
    let now = cluster.history.elapsed().as_secs() / FULL.as_secs();
    host % turns == usize::try_from(now).unwrap_or_default() % turns
}

/// Who has reached another member goes on to, whatever agents and links do: until one of the two moves or ends,
/// the other host is gone, or somebody meddles with a kernel.
pub fn paths_stay(cluster: &mut Cluster) -> anyhow::Result<()> {
    let underlay = Underlay::of(cluster);
    let is_contested = |host: usize, promise: &Promise| {
        let thing = (promise.entry.network, promise.entry.address);
        cluster.hosts[host].snapshot().is_some_and(|snapshot| contested(&snapshot.view).contains(&thing))
    };
    // What its disk said last of an address may be of another member: names lead to that one, and law 4 goes before.
    let is_anothers = |host: usize, member: &MemberId, promise: &Promise| {
        let (network, address) = (promise.entry.network, promise.entry.address);
        cluster.hosts[host].snapshot().filter(|snapshot| snapshot.view.stale).is_some_and(|snapshot| {
            let holders = holders(&snapshot.view, |of| *of == network);
            holders.get(&(network, address)).is_some_and(|holder| holder.member != member)
        })
    };
    // An agent that starts again has what it wrote down; where the owner is down too, all who knew may have ended.
    let is_unknown = |member: &MemberId, promise: &Promise| {
        let (owner, key) = (&cluster.hosts[promise.host], (promise.entry.network, member.clone()));
        let known =
            |view: &View| view.hosts.get(&owner.id).is_some_and(|h| h.records.members.contains_key(&key));
        !owner.is_up() && !cluster.live().any(|(_, _, snapshot)| known(&snapshot.view))
    };
    let mut now = BTreeMap::new();
    for (network, members) in by_network(cluster) {
        let name = network.to_string();
        for (from, sender) in members.iter().filter(|(_, sender)| is_steady(cluster, sender)) {
            // In a large region the same hosts each time: the others would be forgotten meanwhile.
            if sender.host >= SMALL {
                continue;
            }
            let sends = underlay.sender(sender.host, &name, from.as_str());
            for (to, receiver) in &members {
                if !is_steady(cluster, receiver) || is_given_up(cluster, sender.host, receiver.host) {
                    continue;
                }
                let (pair, address) = (((*from).clone(), (*to).clone()), receiver.entry.address);
                if sends.as_ref().and_then(|sends| sends.deliver(address)) == Some(to.as_str()) {
                    now.insert(pair, address);
                    continue;
                }
                if cluster.books.paths.get(&pair) != Some(&address) {
                    continue;
                }
                // A conflict means absence, on the host of either (law 4).
                let ends = [sender.host, receiver.host];
                let contested =
                    ends.iter().any(|end| is_contested(*end, sender) || is_contested(*end, receiver));
                ensure!(
                    contested || is_anothers(sender.host, to, receiver) || is_unknown(to, receiver),
                    "{from} on {} has reached {to} on {} at {address}, and does not any more",
                    cluster.hosts[sender.host].label(),
                    cluster.hosts[receiver.host].label()
                );
            }
        }
    }
    cluster.books.paths = now;
    Ok(())
}

/// What was promised, network by network.
fn by_network(cluster: &Cluster) -> BTreeMap<NetworkId, Vec<(&MemberId, &Promise)>> {
    let mut networks: BTreeMap<NetworkId, Vec<(&MemberId, &Promise)>> = BTreeMap::new();
    for (member, promise) in &cluster.books.promises {
        networks.entry(promise.entry.network).or_default().push((member, promise));
    }
    networks
}

/// Whether nothing of a member may be missing just now.
fn is_steady(cluster: &Cluster, promise: &Promise) -> bool {
    let host = &cluster.hosts[promise.host];
    let recently = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < MENDED_WITHIN);
    !promise.leaving && promise.moves == 0 && host.wiped.is_none() && !recently(host.meddled)
}

/// How long a kernel may be other than it should be after somebody meddled with it.
const MENDED_WITHIN: Duration = Duration::from_secs(65);

/// Whether a host may have given up another one, or been told wrongly of it by a copy of one of them or a liar.
fn is_given_up(cluster: &Cluster, host: usize, other: usize) -> bool {
    let named = [&cluster.hosts[host].id, &cluster.hosts[other].id];
    let copied = cluster.hosts.iter().any(|copy| copy.copy && named.contains(&&copy.id));
    let heard = cluster.heard.get(&(host, other));
    copied || cluster.lied_to || host != other && heard.is_none_or(|at| at.elapsed() >= GONE)
}

/// Once quiet a packet from each member to each other's address ends in that one's container.
pub fn everybody_is_reached(cluster: &Cluster) -> anyhow::Result<()> {
    let underlay = Underlay::of(cluster);
    for (network, members) in by_network(cluster) {
        let name = network.to_string();
        let up = || members.iter().filter(|(_, promise)| cluster.hosts[promise.host].is_up());
        for (from, sender) in up() {
            let sends = underlay.sender(sender.host, &name, from.as_str());
            for (to, receiver) in up() {
                let reached = sends.as_ref().and_then(|sends| sends.deliver(receiver.entry.address));
                ensure!(
                    reached == Some(to.as_str()),
                    "{from} on {} sends to {} of {to} on {}; {reached:?} gets it",
                    cluster.hosts[sender.host].label(),
                    receiver.entry.address,
                    cluster.hosts[receiver.host].label()
                );
            }
        }
    }
    Ok(())
}
