//! The kernel state of private networks as it is, and what each Op makes of it.
//!
//! Pure: [`Observed::apply`] is the model of the kernel. [`crate::MemoryKernel`] is this model, and
//! a [`crate::Reconciler`] advances what it knows by it.

mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use blake2::{Blake2s256, Digest};
use ipnet::{IpNet, Ipv4Net};

pub use peers::Peers;

use crate::netlink::nft::Rules;
use crate::plan::{FabricChange, InsideChange, MemberChange, Op};
use crate::state::{Addresses, Few, Mac, Peer, Vtep};

/// What stands of everything that is ours, by network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The networks of [`crate::state::Ours`], or those asked for.
    pub networks: BTreeMap<String, ObservedNetwork>,
}

/// What stands of one network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedNetwork {
    /// The namespace `net-<pn>`, if it is there.
    pub fabric: Option<ObservedFabric>,
    /// The members asked for.
    pub members: BTreeMap<String, ObservedMember>,
}

/// What stands in `net-<pn>`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedFabric {
    /// Alias of `lo`.
    pub alias: String,
    /// Every sysctl is as it should be: no IPv6, no forwarding, no bridge-nf, no redirects.
    pub quiet: bool,
    /// `br0`.
    pub bridge: Option<Bridge>,
    /// `vxlan0`.
    pub vxlan: Option<Vxlan>,
    /// The host ends of the veths, by interface name.
    pub ports: BTreeMap<String, Port>,
    /// Rows of `vxlan0`: a MAC with two tunnel ends would have its frames duplicated.
    pub rows: BTreeMap<Mac, Few<Vtep>>,
    /// Static rows of `br0` to members' ports, by interface name.
    pub local_rows: BTreeMap<Mac, String>,
}

/// `br0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Multicast snooping: would send IGMP and MLD queries.
    pub snooping: bool,
}

/// `vxlan0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// Source address and UDP port of this host.
    pub local: Vtep,
    /// The device's own learning, beside the port's.
    pub learning: bool,
    /// As a port of `br0`.
    pub port: Port,
}

/// A port of `br0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// A port of `br0` at all.
    pub enslaved: bool,
    /// How it forwards.
    pub flags: PortFlags,
}

/// What a bridge port does with frames (IFLA_BRPORT_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlags {
    /// Source MACs make rows: a forged frame would move a member's static row.
    pub learning: bool,
    /// Unknown unicast leaves here.
    pub flood: bool,
    /// Multicast leaves here.
    pub mcast_flood: bool,
    /// Broadcast leaves here.
    pub bcast_flood: bool,
}

impl PortFlags {
    /// What the kernel gives a new port.
    pub const DEFAULT: PortFlags =
        PortFlags { learning: true, flood: true, mcast_flood: true, bcast_flood: true };
    /// A member's port: only what has a row arrives.
    pub const MEMBER: PortFlags =
        PortFlags { learning: false, flood: false, mcast_flood: false, bcast_flood: false };
    /// `vxlan0`: an unknown destination dies there, without a row.
    pub const VXLAN: PortFlags = PortFlags { flood: true, ..PortFlags::MEMBER };
}

/// What stands of one member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedMember {
    /// The namespace `bind-<member>`, if it is there.
    pub binding: Option<Binding>,
    /// The container's side; None when its namespace is gone.
    pub inside: Option<Inside>,
}

/// What stands in `bind-<member>`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Binding {
    /// Alias of `lo`.
    pub alias: String,
    /// As [`ObservedFabric::quiet`].
    pub quiet: bool,
    /// `eth0`, the other end of the member's port.
    pub ethernet: Option<Ethernet>,
    /// Permanent neighbours on `eth0`.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
}

/// `eth0` of a binding namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ethernet {
    /// Its MAC.
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Its IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Net>,
}

/// What stands in a container's namespace, of one member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inside {
    /// The namespace has IPv6 at all; single interfaces may have it off.
    pub ipv6: bool,
    /// `lo` is up.
    pub loopback: bool,
    /// Our `unreachable` routes.
    pub unreachable: BTreeSet<IpNet>,
    /// The member's chain in the nft table.
    pub guard: Option<Rules>,
    /// `wgN`, if it is there and ours.
    pub device: Option<Device>,
    /// Our routes through `wgN` with their source address.
    pub routes: BTreeMap<IpNet, IpAddr>,
}

/// `wgN` of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The key's owner as a MAC; None without a key.
    pub mac: Option<Mac>,
    /// UDP port in the binding namespace.
    pub port: u16,
    /// Its addresses, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
    /// Its peers by public key.
    pub peers: Peers,
}

/// A peer of `wgN`.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedPeer {
    /// Where its messages go; None for a peer somebody added without.
    pub endpoint: Option<SocketAddrV4>,
    /// AllowedIPs, each a single address; anything wider shows as its network address too.
    pub allowed: Addresses,
}

impl From<&Peer> for ObservedPeer {
    fn from(peer: &Peer) -> Self {
        ObservedPeer { endpoint: Some(peer.endpoint), allowed: peer.allowed.clone() }
    }
}

/// Name of the member's port in `net-<pn>`: 15 bytes that follow from the member id.
pub fn port_name(member: &str) -> String {
    let hash = Blake2s256::digest(member);
    hash[..7].iter().fold("v".to_owned(), |name, byte| name + &format!("{byte:02x}"))
}

impl Observed {
    /// The state after `op` succeeded. Ops on parents that are not there change nothing.
    pub fn apply(&mut self, op: &Op) {
        let network = self.networks.entry(op.network().to_owned()).or_default();
        match op {
            Op::Fabric { change, .. } => network.apply_fabric(change),
            Op::Member { member, change, .. } => network.apply_member(member, change),
            Op::Inside { member, change, .. } => {
                if let Some(inside) = &mut network.members.entry(member.clone()).or_default().inside {
                    inside.apply(change);
                }
            }
        }
    }
}

impl ObservedNetwork {
    fn apply_fabric(&mut self, change: &FabricChange) {
        match (change, &mut self.fabric) {
            (FabricChange::Namespace { alias }, fabric) => {
                let fabric = fabric.get_or_insert_default();
                (fabric.alias, fabric.quiet) = (alias.clone(), true);
            }
            (FabricChange::DropNamespace, fabric) => {
                *fabric = None;
                self.members.values_mut().filter_map(|m| m.binding.as_mut()).for_each(Binding::lose_ethernet);
            }
            (_, Some(fabric)) => fabric.apply(change),
            (_, None) => {}
        }
    }

    fn apply_member(&mut self, id: &str, change: &MemberChange) {
        let member = self.members.entry(id.to_owned()).or_default();
        match (change, &mut member.binding, &mut self.fabric) {
            (MemberChange::Namespace { alias }, binding, _) => {
                let binding = binding.get_or_insert_default();
                (binding.alias, binding.quiet) = (alias.clone(), true);
            }
            (MemberChange::DropNamespace, binding, fabric) => {
                *binding = None;
                if let Some(fabric) = fabric {
                    fabric.lose_port(&port_name(id));
                }
            }
            (MemberChange::Veth { mac, mtu }, Some(binding), Some(fabric)) => {
                binding.apply_veth(*mac, *mtu);
                fabric.apply_veth(&port_name(id), *mtu);
            }
            (
                MemberChange::Port | MemberChange::LocalRow { .. } | MemberChange::DropLocalRow { .. },
                _,
                Some(fabric),
            ) => {
                fabric.apply_port(&port_name(id), change);
            }
            (_, Some(binding), _) => binding.apply(change),
            _ => {}
        }
    }
}

impl ObservedFabric {
    fn apply(&mut self, change: &FabricChange) {
        match change {
            FabricChange::Bridge { mtu } => {
                self.bridge = Some(Bridge { mtu: *mtu, up: true, snooping: false })
            }
            FabricChange::Vxlan { vni, local, mtu } => {
                let port = Port { mtu: *mtu, ..self.vxlan.map_or(Port::fresh(*mtu), |vxlan| vxlan.port) };
                self.vxlan = Some(Vxlan { vni: *vni, local: *local, learning: false, port });
            }
            FabricChange::DropVxlan => {
                self.vxlan = None;
                self.rows.clear();
            }
            FabricChange::Port => {
                if let (Some(vxlan), Some(_)) = (&mut self.vxlan, &self.bridge) {
                    vxlan.port = Port { up: true, enslaved: true, flags: PortFlags::VXLAN, ..vxlan.port };
                }
            }
            FabricChange::Rows(rows) if self.vxlan.is_some() => {
                self.rows.extend(rows.iter().map(|(mac, vtep)| (*mac, Few::from([*vtep]))));
            }
            FabricChange::DropRows(rows) => {
                self.rows.retain(|mac, ends| {
                    ends.retain(|vtep| !rows.contains(&(*mac, *vtep)));
                    !ends.is_empty()
                });
            }
            FabricChange::Rows(_) | FabricChange::Namespace { .. } | FabricChange::DropNamespace => {}
        }
    }

    fn apply_veth(&mut self, name: &str, mtu: u32) {
        self.ports.entry(name.to_owned()).or_insert(Port::fresh(mtu)).mtu = mtu;
    }

    fn apply_port(&mut self, name: &str, change: &MemberChange) {
        let Some(port) = self.ports.get_mut(name) else { return };
        match change {
            MemberChange::Port if self.bridge.is_some() => {
                *port = Port { up: true, enslaved: true, flags: PortFlags::MEMBER, ..*port };
            }
            MemberChange::LocalRow { mac } if port.enslaved => {
                self.local_rows.insert(*mac, name.to_owned());
            }
            MemberChange::DropLocalRow { mac } if self.local_rows.get(mac).is_some_and(|p| p == name) => {
                self.local_rows.remove(mac);
            }
            _ => {}
        }
    }

    /// One end of a veth takes the other along, and a port its rows.
    fn lose_port(&mut self, name: &str) {
        self.ports.remove(name);
        self.local_rows.retain(|_, port| port != name);
    }
}

impl Port {
    /// As a new link is.
    fn fresh(mtu: u32) -> Port {
        Port { mtu, up: false, enslaved: false, flags: PortFlags::DEFAULT }
    }
}

impl Binding {
    fn apply(&mut self, change: &MemberChange) {
        let Some(ethernet) = &mut self.ethernet else { return };
        match change {
            MemberChange::Ethernet { address } => {
                (ethernet.up, ethernet.addresses) = (true, BTreeSet::from([*address]));
            }
            MemberChange::Neighbours(rows) => self.neighbours.extend(rows),
            MemberChange::DropNeighbours(rows) => {
                self.neighbours.retain(|address, _| !rows.contains(address))
            }
            _ => {}
        }
    }

    fn apply_veth(&mut self, mac: Mac, mtu: u32) {
        let fresh = Ethernet { mac, mtu, up: false, addresses: BTreeSet::new() };
        let ethernet = self.ethernet.get_or_insert(fresh);
        if ethernet.mac != mac {
            self.neighbours.clear();
        }
        (ethernet.mac, ethernet.mtu) = (mac, mtu);
    }

    /// The other end of the veth is gone.
    fn lose_ethernet(&mut self) {
        self.ethernet = None;
        self.neighbours.clear();
    }
}

impl Inside {
    fn apply(&mut self, change: &InsideChange) {
        match change {
            InsideChange::Loopback => self.loopback = true,
            InsideChange::Unreachable(prefixes) => self.unreachable.extend(prefixes),
            InsideChange::DropUnreachable(prefixes) => self.unreachable.retain(|p| !prefixes.contains(p)),
            InsideChange::Guard(rules) => self.guard = Some(rules.clone()),
            InsideChange::DropGuard => self.guard = None,
            InsideChange::Link(link) => {
                let (mac, port) = (Some(Mac::of_key(&link.private_key.public())), link.port);
                let (addresses, peers) = (BTreeSet::new(), Peers::default());
                self.device = Some(Device { mtu: link.mtu, up: false, mac, port, addresses, peers });
            }
            InsideChange::DropLink => {
                self.device = None;
                self.routes.clear();
            }
            _ => self.apply_device(change),
        }
    }

    fn apply_device(&mut self, change: &InsideChange) {
        let Some(device) = &mut self.device else { return };
        match change {
            InsideChange::LinkMtu(mtu) => device.mtu = *mtu,
            InsideChange::LinkUp => device.up = true,
            InsideChange::Address(address) => _ = device.addresses.insert(*address),
            InsideChange::DropAddress(address) => {
                device.addresses.remove(address);
                self.routes.retain(|_, source| *source != address.addr());
            }
            InsideChange::Route { destination, source } => _ = self.routes.insert(*destination, *source),
            InsideChange::DropRoute(destination) => _ = self.routes.remove(destination),
            InsideChange::Peers(peers) => {
                peers.iter().for_each(|(key, peer)| device.peers.insert(*key, peer.into()));
            }
            InsideChange::DropPeers(peers) => device.peers.remove_all(peers),
            _ => {}
        }
    }
}
