//! Addresses and routes.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use crate::netlink::link::absent;
use crate::netlink::socket::Rtnl;

/// Our routes' protocol: the one mark by which ours are told from others'.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(87);
/// Worse than any route somebody else would set, but for the one reserved value.
const UNREACHABLE_METRIC: u32 = u32::MAX - 1;
/// The kernel's default for IPv6 where none is given.
const METRIC6: u32 = 1024;

/// A route of the main table as the kernel describes it.
#[derive(Debug, Clone)]
pub(crate) struct SeenRoute {
    pub(crate) destination: IpNet,
    /// Of the interface.
    pub(crate) index: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) ours: bool,
    pub(crate) unreachable: bool,
    /// In bytes, where the route sets one.
    pub(crate) mtu: Option<u32>,
}

impl Rtnl {
    /// An address of the link, without waiting for duplicates.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let message = address_message(index, address);
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes an address.
    pub(crate) fn delete_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        absent(self.request(RouteNetlinkMessage::DelAddress(address_message(index, address)), 0))
    }

    /// All addresses but IPv6 link-local ones, with the index of their link.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let rows = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let rows = rows.into_iter().filter_map(|row| match row {
            RouteNetlinkMessage::NewAddress(row) if row.header.scope != AddressScope::Link => Some(row),
            _ => None,
        });
        let read = rows.filter_map(|row| {
            // IFA_LOCAL is the address, IFA_ADDRESS the other end of a point-to-point link.
            let of = |local: bool| {
                row.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) if local => Some(*address),
                    AddressAttribute::Address(address) if !local => Some(*address),
                    _ => None,
                })
            };
            let address = of(true).or_else(|| of(false))?;
            Some((row.header.index, IpNet::new(address, row.header.prefix_len).ok()?))
        });
        Ok(read.collect())
    }

    /// A route through the link with this source, in place of the one there.
    pub(crate) fn set_route(&mut self, index: u32, destination: IpNet, source: IpAddr) -> io::Result<()> {
        let route = through(index, destination)?.pref_source(source).map_err(io::Error::other)?;
        self.request(RouteNetlinkMessage::NewRoute(route.build()), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route through the link.
    pub(crate) fn delete_route(&mut self, index: u32, destination: IpNet) -> io::Result<()> {
        absent(self.request(RouteNetlinkMessage::DelRoute(through(index, destination)?.build()), 0))
    }

    /// An `unreachable` route below all others.
    pub(crate) fn set_unreachable(&mut self, destination: IpNet) -> io::Result<()> {
        let route = unreachable(destination)?.build();
        self.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes it.
    pub(crate) fn delete_unreachable(&mut self, destination: IpNet) -> io::Result<()> {
        absent(self.request(RouteNetlinkMessage::DelRoute(unreachable(destination)?.build()), 0))
    }

    /// The main tables of IPv4 and IPv6.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<SeenRoute>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            // Without IPv6 the dump is one of every family.
            let rows = self.dump(RouteNetlinkMessage::GetRoute(message))?.into_iter();
            routes.extend(rows.filter_map(|row| match row {
                RouteNetlinkMessage::NewRoute(row) if row.header.address_family == family => seen(row),
                _ => None,
            }));
        }
        Ok(routes)
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    if let IpNet::V6(_) = address {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// Of either family.
type Route = RouteMessageBuilder<IpAddr>;

fn through(index: u32, destination: IpNet) -> io::Result<Route> {
    let route = route(destination, RouteType::Unicast)?.output_interface(index);
    Ok(match destination {
        IpNet::V4(_) => route.scope(RouteScope::Link),
        IpNet::V6(_) => route.priority(METRIC6),
    })
}

fn unreachable(destination: IpNet) -> io::Result<Route> {
    Ok(route(destination, RouteType::Unreachable)?.priority(UNREACHABLE_METRIC))
}

fn route(destination: IpNet, kind: RouteType) -> io::Result<Route> {
    let route = Route::new().protocol(PROTOCOL).kind(kind);
    route.destination_prefix(destination.network(), destination.prefix_len()).map_err(io::Error::other)
}

fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn seen(row: RouteMessage) -> Option<SeenRoute> {
    let header = &row.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut seen = SeenRoute {
        destination: IpNet::new(any, header.destination_prefix_length).ok()?,
        index: None,
        source: None,
        ours: header.protocol == PROTOCOL,
        unreachable: header.kind == RouteType::Unreachable,
        mtu: None,
    };
    let mut table = u32::from(header.table);
    for attribute in &row.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                seen.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Oif(index) => seen.index = Some(*index),
            RouteAttribute::PrefSource(address) => seen.source = ip(address),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Metrics(metrics) => {
                seen.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(seen)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
