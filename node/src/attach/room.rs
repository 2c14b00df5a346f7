//! Whether a container has room for a network: nothing in it may overlap the network's addresses, or traffic for
//! the one would take the way of the other. Pure.

use std::net::Ipv4Addr;

use gossip::id::NetworkId;
use ipnet::{IpNet, Ipv4Net};
use netplumb::kernel::Container;

use super::{Refusal, RefusalKind};
use crate::claims::DEFAULT_SUBNET;
use crate::claims::networks::Networks;
use crate::project;

/// Where a subnet that overlaps nothing is looked for.
const PROPOSED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 12);

/// A container and the networks around it.
pub struct Room<'a> {
    /// What stands in it.
    pub container: &'a Container,
    /// The networks it is in, with their subnets.
    pub beside: Vec<(NetworkId, Ipv4Net)>,
    /// The networks of the region.
    pub networks: &'a Networks,
}

impl Room<'_> {
    /// Refuses a network with this subnet where something overlaps it or its ULA.
    pub fn check(&self, network: NetworkId, subnet: Ipv4Net) -> Result<(), Refusal> {
        let ours = [IpNet::V4(subnet), IpNet::V6(project::ula(network))];
        let meets = |net: &IpNet| ours.iter().any(|our| overlap(our, net));
        let other = self.beside.iter().find(|(_, other)| meets(&IpNet::V4(*other)));
        let detail = match (other, self.nets().find(meets)) {
            (Some((other, theirs)), _) => format!(
                "the container is in {other} already, whose subnet {theirs} overlaps {subnet}, that of {network}"
            ),
            (None, Some(net)) => {
                format!("the container has {net}, which overlaps the network's subnet {subnet}")
            }
            (None, None) => return Ok(()),
        };
        Err(Refusal::new(RefusalKind::Conflict, detail).hint(self.remedy(network)))
    }

    fn remedy(&self, network: NetworkId) -> String {
        let Some(free) = self.free() else {
            return "take the container out of the other network, or its address or route away".into();
        };
        if self.networks.get(network).is_none() {
            return format!(
                "give it another subnet before its first container: warren network create {network} --subnet {free}"
            );
        }
        format!(
            "a network keeps its subnet as long as it has containers: take one made with \
             `warren network create PN --subnet {free}`"
        )
    }

    /// The first subnet of the default size that overlaps nothing here and no network of the region.
    fn free(&self) -> Option<Ipv4Net> {
        let networks = self.networks.iter().map(|(_, claim)| claim.subnet);
        let subnets = self.beside.iter().map(|(_, subnet)| *subnet).chain(networks).map(IpNet::V4);
        let taken: Vec<IpNet> = self.nets().chain(subnets).collect();
        let mut candidates = PROPOSED.subnets(DEFAULT_SUBNET.prefix_len()).ok()?;
        candidates.find(|candidate| !taken.iter().any(|net| overlap(net, &IpNet::V4(*candidate))))
    }

    /// Addresses and routes that are not ours. A default route contains everything and is meant to.
    fn nets(&self) -> impl Iterator<Item = IpNet> {
        let routes = self.container.routes.iter().map(|route| route.destination);
        self.container.addresses.iter().copied().chain(routes).filter(|net| net.prefix_len() > 0)
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(nets: &[&str]) -> Container {
        let route = |net: &&str| netplumb::kernel::Route { destination: net.parse().unwrap(), device: None };
        Container {
            netns: netplumb::state::NetnsRef { path: "/run/netns/x".into(), cookie: 1 },
            inode: 1,
            own: false,
            links: Default::default(),
            addresses: Vec::new(),
            routes: nets.iter().map(route).collect(),
            ipv6: true,
            nf_tables: true,
            leftovers: false,
        }
    }

    #[test]
    fn overlaps_are_found_both_ways() {
        let network = NetworkId::random();
        let ula = project::ula(network).to_string();
        for (net, refused) in [
            ("10.240.1.0/24", true),
            ("10.0.0.0/8", true),
            ("10.240.0.7/32", true),
            (ula.as_str(), true),
            ("0.0.0.0/0", false),
            ("10.240.4.0/24", false),
            ("172.17.0.0/16", false),
            ("fe80::/64", false),
        ] {
            let (container, networks) = (container(&[net]), Networks::default());
            let room = Room { container: &container, beside: Vec::new(), networks: &networks };
            assert_eq!(room.check(network, DEFAULT_SUBNET).is_err(), refused, "{net}");
        }
    }

    #[test]
    fn of_two_networks_with_one_subnet_the_second_is_told_a_free_one() {
        let (first, second) = (NetworkId::random(), NetworkId::random());
        // Our own address stands in the container; the network it is of says more.
        let (container, networks) = (container(&["10.240.0.5/32", "10.240.4.0/24"]), Networks::default());
        let beside = vec![(first, DEFAULT_SUBNET)];
        let room = Room { container: &container, beside, networks: &networks };
        let refusal = room.check(second, DEFAULT_SUBNET).unwrap_err();
        assert!(refusal.detail.contains(&first.to_string()), "{refusal}");
        let hint = refusal.hint.unwrap();
        assert!(hint.ends_with(&format!("warren network create {second} --subnet 10.240.8.0/22")), "{hint}");
        assert!(room.check(second, "10.240.8.0/22".parse().unwrap()).is_ok());
        // A wide subnet around the first one.
        assert!(room.check(second, "10.240.0.0/16".parse().unwrap()).is_err());
    }
}
