//! From what is to what should be, as data: pure and total.
//!
//! All removals come before all additions, over every network, so that a VNI one network gives up
//! is free when another takes it. Among removals children come first, among additions parents, and last what members
//! are told of each other.
//! The same state gives an empty plan; a plan cut short anywhere and planned again ends the same.

mod diff;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

pub use crate::plan::diff::diff;

use crate::netlink::nft::Rules;
use crate::state::{Key, Mac, NetnsRef, Peer, PrivateKey, Vtep};

/// What may be removed of other hosts' members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Everything that is not desired.
    All,
    /// No peer, row or neighbour: the view is not whole yet. What this host's own intent removes
    /// (members, networks) goes all the same.
    HoldRemote,
}

/// Ops in the order in which they are to be applied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// First removals, then additions.
    pub ops: Vec<Op>,
}

/// One idempotent step: it makes one object as it says, whether the object was there or not.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// In the network's namespace.
    Fabric {
        /// The network.
        network: String,
        /// What to do there.
        change: FabricChange,
    },
    /// In a member's binding namespace, and its port in the network's.
    Member {
        /// The network.
        network: String,
        /// The member id.
        member: String,
        /// What to do there.
        change: MemberChange,
    },
    /// In a container's namespace.
    Inside {
        /// The network.
        network: String,
        /// The member id.
        member: String,
        /// Which container.
        site: Site,
        /// What to do there.
        change: InsideChange,
    },
}

/// Where the container's side of a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Name of `wgN`.
    pub ifname: String,
}

/// Changes in `net-<pn>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FabricChange {
    /// The namespace, its sysctls, `lo` up with this alias.
    Namespace {
        /// For people.
        alias: String,
    },
    /// The namespace and all in it.
    DropNamespace,
    /// `br0`, up, without snooping.
    Bridge {
        /// In bytes.
        mtu: u32,
    },
    /// `vxlan0`, born from the host's namespace; `local`'s address and MTU change in place.
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// This host's tunnel end.
        local: Vtep,
        /// In bytes.
        mtu: u32,
    },
    /// `vxlan0` with its rows: its VNI and port cannot change in place.
    DropVxlan,
    /// `vxlan0` as a port of `br0`: flags first, then up.
    Port,
    /// Rows of `vxlan0`, replaced.
    Rows(BTreeMap<Mac, Vtep>),
    /// Single tunnel ends of rows.
    DropRows(BTreeSet<(Mac, Vtep)>),
}

/// Changes in `bind-<member>` and at the member's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// The namespace, its sysctls, `lo` up with this alias.
    Namespace {
        /// For people.
        alias: String,
    },
    /// The namespace; the kernel takes `eth0` and the port along.
    DropNamespace,
    /// `eth0` and the port, both ends by one message.
    Veth {
        /// MAC of `eth0`.
        mac: Mac,
        /// Of both ends, in bytes.
        mtu: u32,
    },
    /// The port in `br0`: flags first, then up.
    Port,
    /// The member's static row.
    LocalRow {
        /// MAC of `eth0`.
        mac: Mac,
    },
    /// A static row of a former key.
    DropLocalRow {
        /// The former MAC.
        mac: Mac,
    },
    /// `eth0` up with exactly this address.
    Ethernet {
        /// The member's address with the subnet's length.
        address: Ipv4Net,
    },
    /// Permanent neighbours, replaced.
    Neighbours(BTreeMap<Ipv4Addr, Mac>),
    /// Neighbours of peers that are no more.
    DropNeighbours(BTreeSet<Ipv4Addr>),
}

/// Changes in the container's namespace.
#[derive(Debug, Clone, PartialEq)]
pub enum InsideChange {
    /// `lo` up.
    Loopback,
    /// `unreachable` routes at the highest metric: nothing leaves in clear without `wgN`.
    Unreachable(BTreeSet<IpNet>),
    /// The same, removed.
    DropUnreachable(BTreeSet<IpNet>),
    /// The member's chain, replaced.
    Guard(Rules),
    /// The member's chain, removed.
    DropGuard,
    /// `wgN` with key and port, down, without addresses and peers.
    Link(Link),
    /// `wgN`, removed.
    DropLink,
    /// MTU of `wgN`, in bytes.
    LinkMtu(u32),
    /// An address of `wgN`, as /32 or /128.
    Address(IpNet),
    /// The same, removed.
    DropAddress(IpNet),
    /// `wgN` up.
    LinkUp,
    /// A route through `wgN`, replaced.
    Route {
        /// Subnet or ULA.
        destination: IpNet,
        /// The member's address.
        source: IpAddr,
    },
    /// The same, removed.
    DropRoute(IpNet),
    /// Peers with exactly these endpoints and addresses; the others stay.
    Peers(BTreeMap<Key, Peer>),
    /// Peers, removed.
    DropPeers(BTreeSet<Key>),
}

/// A WireGuard interface at birth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// In bytes.
    pub mtu: u32,
    /// UDP port in the binding namespace.
    pub port: u16,
    /// Its key.
    pub private_key: PrivateKey,
    /// Where ICMP errors of the userspace engine come from.
    pub address: Ipv4Addr,
    /// As `address`, in IPv6.
    pub address6: Option<Ipv6Addr>,
}

impl Op {
    /// The network it belongs to.
    pub fn network(&self) -> &str {
        match self {
            Op::Fabric { network, .. } | Op::Member { network, .. } | Op::Inside { network, .. } => network,
        }
    }

    /// The member it belongs to; None for what all members of the network share.
    pub fn member(&self) -> Option<&str> {
        match self {
            Op::Fabric { .. } => None,
            Op::Member { member, .. } | Op::Inside { member, .. } => Some(member),
        }
    }

    /// It concerns the member's IPv6 address alone, which may fail without the member failing.
    pub fn only_ipv6(&self) -> bool {
        let Op::Inside { change, .. } = self else { return false };
        matches!(
            change,
            InsideChange::Address(IpNet::V6(_)) | InsideChange::Route { destination: IpNet::V6(_), .. }
        )
    }

    /// Its kind, for reports and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Fabric { change, .. } => match change {
                FabricChange::Namespace { .. } => "fabric",
                FabricChange::DropNamespace => "drop-fabric",
                FabricChange::Bridge { .. } => "bridge",
                FabricChange::Vxlan { .. } => "vxlan",
                FabricChange::DropVxlan => "drop-vxlan",
                FabricChange::Port => "vxlan-port",
                FabricChange::Rows(_) => "rows",
                FabricChange::DropRows(_) => "drop-rows",
            },
            Op::Member { change, .. } => match change {
                MemberChange::Namespace { .. } => "binding",
                MemberChange::DropNamespace => "drop-binding",
                MemberChange::Veth { .. } => "veth",
                MemberChange::Port => "port",
                MemberChange::LocalRow { .. } => "local-row",
                MemberChange::DropLocalRow { .. } => "drop-local-row",
                MemberChange::Ethernet { .. } => "ethernet",
                MemberChange::Neighbours(_) => "neighbours",
                MemberChange::DropNeighbours(_) => "drop-neighbours",
            },
            Op::Inside { change, .. } => change.kind(),
        }
    }

    /// Whether it puts a member's rules in place.
    pub fn is_guard(&self) -> bool {
        matches!(self, Op::Inside { change: InsideChange::Guard(_), .. })
    }

    /// When it fails, what follows for the same member (or, without a member, in the same network)
    /// must not be done: it would fail too, or leave a container unguarded.
    pub fn essential(&self) -> bool {
        match self {
            Op::Fabric { change, .. } => !matches!(
                change,
                FabricChange::Rows(_) | FabricChange::DropRows(_) | FabricChange::DropNamespace
            ),
            Op::Member { change, .. } => !matches!(
                change,
                MemberChange::Neighbours(_)
                    | MemberChange::DropNeighbours(_)
                    | MemberChange::DropLocalRow { .. }
                    | MemberChange::DropNamespace
            ),
            Op::Inside { change, .. } => change.essential(),
        }
    }
}

impl InsideChange {
    /// As [`Op::essential`].
    pub(crate) fn essential(&self) -> bool {
        match self {
            InsideChange::Address(address) => matches!(address, IpNet::V4(_)),
            InsideChange::Loopback
            | InsideChange::Unreachable(_)
            | InsideChange::Guard(_)
            | InsideChange::Link(_)
            | InsideChange::DropLink
            | InsideChange::LinkUp => true,
            _ => false,
        }
    }

    /// It is done when there is no namespace any more.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, InsideChange::DropUnreachable(_) | InsideChange::DropGuard)
    }

    /// It is done in the container's namespace, all of it and nothing else.
    pub(crate) fn is_of_the_visit(&self) -> bool {
        !matches!(
            self,
            InsideChange::Link(_)
                | InsideChange::DropLink
                | InsideChange::Peers(_)
                | InsideChange::DropPeers(_)
        )
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            InsideChange::Loopback => "loopback",
            InsideChange::Unreachable(_) => "unreachable",
            InsideChange::DropUnreachable(_) => "drop-unreachable",
            InsideChange::Guard(_) => "guard",
            InsideChange::DropGuard => "drop-guard",
            InsideChange::Link(_) => "link",
            InsideChange::DropLink => "drop-link",
            InsideChange::LinkMtu(_) => "link-mtu",
            InsideChange::Address(_) => "address",
            InsideChange::DropAddress(_) => "drop-address",
            InsideChange::LinkUp => "link-up",
            InsideChange::Route { .. } => "route",
            InsideChange::DropRoute(_) => "drop-route",
            InsideChange::Peers(_) => "peers",
            InsideChange::DropPeers(_) => "drop-peers",
        }
    }
}
