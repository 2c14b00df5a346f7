//! What stands of what is ours: namespaces, links, rows, neighbours, traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use ipnet::IpNet;

use super::link::{BRIDGE, ETHERNET, LOOPBACK, VXLAN};
use super::socket::Rtnl;
use super::{Host, binding_name, fabric_name, inside};
use crate::error::Error;
use crate::kernel::{Place, Traffic};
use crate::netns;
use crate::observed::{
    Binding, Bridge, Ethernet, Observed, ObservedFabric, ObservedMember, ObservedNetwork, Vxlan,
};
use crate::plan::Site;
use crate::state::{Mac, Ours, Trace, Vtep};

impl Host {
    pub(super) fn observe(&self, ours: &Ours) -> Result<Observed, Error> {
        let mut observed = Observed::default();
        for (name, traces) in &ours.networks {
            let mut network = ObservedNetwork { fabric: self.observe_fabric(name)?, ..Default::default() };
            network.members = self.observe_members(traces)?;
            observed.networks.insert(name.clone(), network);
        }
        Ok(observed)
    }

    pub(super) fn observe_members(
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

    pub(super) fn traffic(&self, ours: &Ours) -> Vec<Traffic> {
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
    pub(super) fn places(&self, ours: &Ours) -> BTreeMap<PathBuf, BTreeSet<Place>> {
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
}
