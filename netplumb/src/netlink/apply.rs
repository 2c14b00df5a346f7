//! Ops that are done: in our own namespaces with the sockets that are kept, in a container's by a visit.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::link::LinkAttribute;

use super::link::{ETHERNET, LOOPBACK, VXLAN};
use super::socket::Rtnl;
use super::wireguard::Introduction;
use super::{Host, binding_name, fabric_name, inside, lock};
use crate::error::Error;
use crate::netns;
use crate::observed::{PortFlags, port_name};
use crate::plan::{FabricChange, InsideChange, MemberChange, Op, Site};
use crate::state::{Mac, Ours, Vtep};

impl Host {
    /// As many Ops as can be done in their order; what stands beside each other in one container is done in one visit,
    /// and peers of several members are told together.
    pub(super) fn apply_in_turn(&self, ops: &[Op]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(ops.len());
        while let Some(op) = ops.get(results.len()) {
            let rest = &ops[results.len()..];
            if let Some((member, site, _)) = visit(op) {
                let here = rest.iter().map_while(visit).take_while(|(_, other, _)| *other == site);
                let changes: Vec<&InsideChange> = here.map(|(.., change)| change).collect();
                results.append(&mut inside::visit(&self.wireguard, member, site, &changes));
            } else if introduction(op).is_some() {
                let introduced: Vec<Introduction> = rest.iter().map_while(introduction).collect();
                results.append(&mut self.wireguard.introduce(&introduced));
            } else {
                results.push(self.apply(op));
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
            Op::Inside { member, site, change, .. } => inside::apply(&self.wireguard, member, site, change),
        }
    }

    fn apply_fabric(&self, name: &str, change: &FabricChange) -> Result<(), Error> {
        match change {
            FabricChange::Namespace { alias } => self.namespace(name, alias),
            FabricChange::DropNamespace => self.drop_namespace(name),
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
        let furnish = || netns::quieten().and_then(|()| Rtnl::here());
        let (netns, route) = self.namespaces.create(name, furnish)?;
        self.keep(name, netns.as_fd(), route)?;
        self.within(name, "bring up lo", |route| {
            let index = route.index(LOOPBACK)?;
            route.set_link(index, vec![LinkAttribute::IfAlias(alias.to_owned())], true)
        })
    }

    pub(super) fn sweep(&self, ours: &Ours) -> Result<(), Error> {
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
        // The kernel takes namespaces apart later and one after the other: until then the VNI would be in use.
        match self.within(name, "remove the VXLAN device", |route| route.delete_link(VXLAN)) {
            Ok(()) | Err(Error::Missing { .. }) => {}
            Err(error) => tracing::warn!(name, %error, "its VNI is in use for a moment"),
        }
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
        if outer.is_some() {
            self.within(fabric, "remove a stray port", |route| route.delete_link(port))?;
        }
        if inner.is_some() {
            self.within(binding, "remove a stray eth0", |route| route.delete_link(ETHERNET))?;
        }
        let target = self.require(binding)?;
        self.within(fabric, "make a veth", |route| route.create_veth(port, target.as_fd(), mac, mtu))
    }
}

/// Peers that a member is told of.
fn introduction(op: &Op) -> Option<Introduction<'_>> {
    match op {
        Op::Inside { member, site, change: InsideChange::Peers(peers), .. } => {
            Some(Introduction { member, site, peers })
        }
        _ => None,
    }
}

/// What is done in a container's namespace alone.
fn visit(op: &Op) -> Option<(&str, &Site, &InsideChange)> {
    match op {
        Op::Inside { member, site, change, .. } if change.is_of_the_visit() => Some((member, site, change)),
        Op::Inside { .. } | Op::Fabric { .. } | Op::Member { .. } => None,
    }
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

/// It becomes part of a path, and the kernel's rule is the same (dev_valid_name).
pub(super) fn check_ifname(name: &str) -> Result<(), Error> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':');
    let good = (1..=15).contains(&name.len()) && name != "." && name != ".." && name.chars().all(allowed);
    if good { Ok(()) } else { Err(Error::BadName(name.to_owned())) }
}
