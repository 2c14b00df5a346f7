//! Rows of the bridge, rows of `vxlan0`, and neighbours: all of them `RTM_*NEIGH`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::link::absent;
use crate::netlink::socket::Rtnl;
use crate::state::{Few, Mac, Vtep};

const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The forwarding table of a network's namespace.
#[derive(Debug, Default)]
pub(crate) struct Forwarding {
    /// Rows of `vxlan0` (self).
    pub(crate) remote: BTreeMap<Mac, Few<Vtep>>,
    /// Static rows of the bridge (master), by index of the port.
    pub(crate) local: BTreeMap<Mac, u32>,
}

impl Rtnl {
    /// Rows of `vxlan0`: one tunnel end for each MAC, whatever it was.
    pub(crate) fn set_rows(&mut self, vxlan: u32, rows: &BTreeMap<Mac, Vtep>) -> io::Result<()> {
        let row = |(mac, vtep)| (RouteNetlinkMessage::NewNeighbour(remote_row(vxlan, mac, vtep)), REPLACE);
        self.batch(rows.iter().map(row))
    }

    /// Removes single tunnel ends.
    pub(crate) fn delete_rows(&mut self, vxlan: u32, rows: &BTreeSet<(Mac, Vtep)>) -> io::Result<()> {
        rows.iter().try_for_each(|(mac, vtep)| {
            absent(self.request(RouteNetlinkMessage::DelNeighbour(remote_row(vxlan, mac, vtep)), 0))
        })
    }

    /// A static row of the bridge: nothing that arrives elsewhere moves it, as no port learns.
    pub(crate) fn set_local_row(&mut self, port: u32, mac: Mac) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewNeighbour(local_row(port, mac)), REPLACE)
    }

    /// Removes a row of the bridge.
    pub(crate) fn delete_local_row(&mut self, port: u32, mac: Mac) -> io::Result<()> {
        absent(self.request(RouteNetlinkMessage::DelNeighbour(local_row(port, mac)), 0))
    }

    /// Permanent neighbours.
    pub(crate) fn set_neighbours(&mut self, link: u32, rows: &BTreeMap<Ipv4Addr, Mac>) -> io::Result<()> {
        let row = |(address, mac): (&Ipv4Addr, &Mac)| {
            let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
            (RouteNetlinkMessage::NewNeighbour(neighbour(link, *address, Some(mac))), REPLACE)
        };
        self.batch(rows.iter().map(row))
    }

    /// Removes neighbours.
    pub(crate) fn delete_neighbours(&mut self, link: u32, rows: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
        rows.iter().try_for_each(|address| {
            absent(self.request(RouteNetlinkMessage::DelNeighbour(neighbour(link, *address, None)), 0))
        })
    }

    /// Rows of bridge and `vxlan0`. A tunnel end whose port is the device's own (`port`) comes
    /// without one.
    pub(crate) fn forwarding(&mut self, vxlan: u32, port: u16) -> io::Result<Forwarding> {
        let mut table = Forwarding::default();
        for row in self.neighbour_table(AddressFamily::Bridge)? {
            let Some(mac) = mac(&row) else { continue };
            let (link, flags) = (row.header.ifindex, row.header.flags);
            let mut vtep = (None, port);
            for attribute in &row.attributes {
                match attribute {
                    NeighbourAttribute::Destination(address) => vtep.0 = ip(address),
                    NeighbourAttribute::Port(port) => vtep.1 = *port,
                    _ => {}
                }
            }
            if let (true, true, (Some(address), port)) =
                (link == vxlan, flags.contains(NeighbourFlags::Own), vtep)
            {
                table.remote.entry(mac).or_default().insert(Vtep { address, port });
            } else if row.header.state == NeighbourState::Noarp && !flags.contains(NeighbourFlags::Own) {
                table.local.insert(mac, link);
            }
        }
        Ok(table)
    }

    /// Permanent neighbours of a link.
    pub(crate) fn neighbours(&mut self, link: u32) -> io::Result<BTreeMap<Ipv4Addr, Mac>> {
        let rows = self.neighbour_table(AddressFamily::Inet)?.into_iter();
        let ours =
            rows.filter(|row| (row.header.ifindex, row.header.state) == (link, NeighbourState::Permanent));
        let pairs = ours.filter_map(|row| {
            let address = row.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
                _ => None,
            });
            Some((address?, mac(&row)?))
        });
        Ok(pairs.collect())
    }

    fn neighbour_table(&mut self, family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        let rows = self.dump(RouteNetlinkMessage::GetNeighbour(message))?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewNeighbour(row) => Some(row),
                _ => None,
            })
            .collect())
    }
}

fn remote_row(vxlan: u32, mac: &Mac, vtep: &Vtep) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = vxlan;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(vtep.address.into()),
        NeighbourAttribute::Port(vtep.port),
    ];
    message
}

fn local_row(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    // Without a timer, and not the bridge's own: what `bridge fdb` calls static.
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

fn neighbour(link: u32, address: Ipv4Addr, mac: Option<NeighbourAttribute>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message.attributes.extend(mac);
    message
}

fn mac(row: &NeighbourMessage) -> Option<Mac> {
    row.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

/// In a bridge row the family says nothing of the tunnel end's.
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
        },
        _ => None,
    }
}
