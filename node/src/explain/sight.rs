//! What one host knows and has of its member towards another one. Pure: what the loop knows and what the kernel
//! was seen to have become a [`Sight`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use netplumb::Traffic;
use netplumb::observed::{Observed, ObservedPeer, port_name};
use netplumb::plan::{FabricChange, InsideChange, MemberChange, Op, Prune, diff};
use netplumb::state::{Desired, Key, Mac, Network, Ours, Peer, Vtep};

use super::{Fact, Kind, Known, Look, Own, Sight, Stands, Wrong};

/// What is known of a look before the kernel is seen.
#[derive(Debug, Clone)]
pub struct Before {
    /// The own member.
    pub own: Option<Own>,
    /// The other's record.
    pub other: Option<Known>,
    /// The other's key.
    pub key: Option<Key>,
    /// What the name asked for resolves to.
    pub resolves: Option<Vec<std::net::IpAddr>>,
    /// The network as it should be in the kernel.
    pub network: Option<Arc<Network>>,
    /// The own member's entry alone.
    pub ours: Ours,
    /// The underlay's MTU as published.
    pub underlay_mtu: u32,
    /// What was asked.
    pub look: Look,
}

impl Before {
    /// With what the kernel was seen to have.
    pub fn seen(
        self,
        observed: Result<(Observed, Vec<Traffic>), String>,
        underlay_mtu_now: Option<u32>,
        heard: u64,
    ) -> Sight {
        let kernel = observed.map(|(observed, traffic)| self.stands(&observed, &traffic));
        let Before { own, other, resolves, underlay_mtu, .. } = self;
        Sight { own, other, resolves, kernel, underlay_mtu, underlay_mtu_now, heard }
    }

    fn stands(&self, observed: &Observed, traffic: &[Traffic]) -> Stands {
        let name = self.look.network.to_string();
        let Some(network) = &self.network else { return Stands::default() };
        let desired = Desired { networks: BTreeMap::from([(name.clone(), network.clone())]) };
        let plan = diff(observed, &desired, &self.ours, Prune::All);
        let Some(key) = self.key else { return Stands::default() };
        let towards = Towards { key, mac: Mac::of_key(&key), peer: network.peers.get(&key) };
        let mut wrong: Vec<Wrong> = plan.ops.iter().filter_map(|op| towards.wrong(op)).collect();
        wrong.dedup();
        let is = observed.networks.get(&name);
        let fabric = is.and_then(|is| is.fabric.as_ref());
        let member = is.and_then(|is| is.members.get(self.look.member.as_str()));
        let other_port = port_name(self.look.other.as_str());
        let local = network.members.contains_key(self.look.other.as_str()).then_some(other_port);
        let row = Fact {
            should: local.or_else(|| network.fabric.rows.get(&towards.mac).map(address)),
            is: fabric.and_then(|fabric| {
                let ends = fabric.rows.get(&towards.mac).map(|ends| list(ends.iter().map(address)));
                ends.or_else(|| fabric.local_rows.get(&towards.mac).cloned())
            }),
        };
        let binding = member.and_then(|member| member.binding.as_ref());
        let neighbour = Fact {
            should: towards.peer.map(|peer| peer.mac.to_string()),
            is: towards.peer.and_then(|peer| {
                binding.and_then(|binding| binding.neighbours.get(peer.endpoint.ip())).map(Mac::to_string)
            }),
        };
        let device = member.and_then(|m| m.inside.as_ref()).and_then(|inside| inside.device.as_ref());
        let peer = Fact {
            should: towards.peer.map(|peer| peer_text(&peer.into())),
            is: device.and_then(|device| device.peers.get(&key)).map(peer_text),
        };
        let session = traffic.iter().find(|t| t.peer == key && t.member == self.look.member.as_str());
        let handshake_s = session.and_then(|t| t.handshake).map(|age| age.as_secs());
        Stands { wrong, row, neighbour, peer, handshake_s }
    }
}

fn address(vtep: &Vtep) -> String {
    SocketAddr::new(vtep.address, vtep.port).to_string()
}

fn peer_text(peer: &ObservedPeer) -> String {
    let endpoint = peer.endpoint.map_or("no endpoint".to_owned(), |endpoint| endpoint.to_string());
    format!("{endpoint} for {}", list(peer.allowed.iter().map(ToString::to_string)))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" and ")
}

/// The other, as the own member's host has it.
struct Towards<'a> {
    key: Key,
    mac: Mac,
    peer: Option<&'a Peer>,
}

impl Towards<'_> {
    /// What it means for the way to the other that an Op is needed; none when it concerns a third one.
    fn wrong(&self, op: &Op) -> Option<Wrong> {
        let (step, what) = match op {
            Op::Fabric { change, .. } => self.fabric(change)?,
            Op::Member { change, .. } => self.binding(change)?,
            Op::Inside { change, .. } => self.inside(change)?,
        };
        Some(Wrong { step, what: what.to_owned() })
    }

    fn fabric(&self, change: &FabricChange) -> Option<(Kind, &'static str)> {
        let found = match change {
            FabricChange::Namespace { .. } => {
                (Kind::Fabric, "the network's namespace is missing or was changed")
            }
            FabricChange::Bridge { .. } => (Kind::Fabric, "br0 is missing, down, snooping or of another MTU"),
            FabricChange::Vxlan { .. } => (Kind::Fabric, "vxlan0 is missing, or of another address or MTU"),
            FabricChange::DropVxlan => (Kind::Fabric, "vxlan0 has another VNI or port, or learns"),
            FabricChange::Port => (Kind::Fabric, "vxlan0 is down, not in br0, or floods or learns otherwise"),
            FabricChange::DropNamespace => (Kind::Fabric, "the network is to be removed here"),
            FabricChange::Rows(rows) if rows.contains_key(&self.mac) => {
                (Kind::Row, "vxlan0 has no or another row for it")
            }
            FabricChange::DropRows(rows) if rows.iter().any(|(mac, _)| *mac == self.mac) => {
                (Kind::Row, "vxlan0 has a row too many for it: its frames are doubled")
            }
            FabricChange::Rows(_) | FabricChange::DropRows(_) => return None,
        };
        Some(found)
    }

    fn binding(&self, change: &MemberChange) -> Option<(Kind, &'static str)> {
        let address = self.peer.map(|peer| *peer.endpoint.ip());
        let has = |rows: &BTreeSet<_>| address.is_some_and(|address| rows.contains(&address));
        let found = match change {
            MemberChange::Namespace { .. } => {
                (Kind::Fabric, "the binding namespace is missing or was changed")
            }
            MemberChange::DropNamespace => (Kind::Fabric, "the member is to be removed here"),
            MemberChange::Veth { .. } => (Kind::Fabric, "the veth is missing, or of another MAC or MTU"),
            MemberChange::Port => {
                (Kind::Fabric, "the member's port is down, not in br0, or floods or learns")
            }
            MemberChange::Ethernet { .. } => {
                (Kind::Fabric, "eth0 in the binding is down or of another address")
            }
            MemberChange::LocalRow { .. } => (Kind::Row, "br0 has no row for the own member"),
            MemberChange::Neighbours(rows) if address.is_some_and(|a| rows.contains_key(&a)) => {
                (Kind::Neighbour, "the binding has no or another neighbour for it")
            }
            MemberChange::DropNeighbours(rows) if has(rows) => {
                (Kind::Neighbour, "the neighbour is one too many")
            }
            MemberChange::DropLocalRow { .. }
            | MemberChange::Neighbours(_)
            | MemberChange::DropNeighbours(_) => return None,
        };
        Some(found)
    }

    fn inside(&self, change: &InsideChange) -> Option<(Kind, &'static str)> {
        let found = match change {
            InsideChange::Loopback => (Kind::Interface, "lo is down, or the container's namespace is gone"),
            InsideChange::Unreachable(_) => (Kind::Interface, "the unreachable routes are missing"),
            InsideChange::Guard(_) | InsideChange::DropGuard => {
                (Kind::Interface, "the nft table was changed")
            }
            InsideChange::Link(_) => (Kind::Interface, "the interface is missing, or of another key"),
            InsideChange::LinkMtu(_) => (Kind::Interface, "the interface has another MTU"),
            InsideChange::Address(_) | InsideChange::DropAddress(_) => {
                (Kind::Interface, "the interface has another address")
            }
            InsideChange::LinkUp => (Kind::Interface, "the interface is down"),
            InsideChange::Route { .. } | InsideChange::DropRoute(_) => {
                (Kind::Interface, "the route into the network is missing or another")
            }
            InsideChange::Peers(peers) if peers.contains_key(&self.key) => {
                (Kind::Peer, "WireGuard does not have it as a peer, or otherwise")
            }
            InsideChange::DropPeers(peers) if peers.contains(&self.key) => {
                (Kind::Peer, "WireGuard has it as a peer, and should not")
            }
            InsideChange::Peers(_)
            | InsideChange::DropPeers(_)
            | InsideChange::DropUnreachable(_)
            | InsideChange::DropLink => return None,
        };
        Some(found)
    }
}
