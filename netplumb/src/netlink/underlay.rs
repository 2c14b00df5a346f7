//! The MTU of what tunnels are made over.

use std::net::IpAddr;

use ipnet::IpNet;

use super::socket::Rtnl;
use crate::error::Error;

/// As [`Kernel::underlay_mtu`], in the calling thread's namespace and without a kernel of one's own. For threads that
/// may block.
///
/// Errors: [`Error::NoSuchAddress`].
pub fn underlay_mtu(address: IpAddr) -> Result<u32, Error> {
    let mut route = Rtnl::here().map_err(|error| Error::kernel("open a netlink socket", error))?;
    mtu_at(&mut route, address)
}

/// As [`underlay_mtu`], by a socket of the host's namespace.
pub(super) fn mtu_at(route: &mut Rtnl, address: IpAddr) -> Result<u32, Error> {
    let failed = |error| Error::kernel("read the underlay's MTU", error);
    let owner = route.addresses().map_err(failed)?.into_iter().find(|(_, net)| net.addr() == address);
    let Some((index, _)) = owner else { return Err(Error::NoSuchAddress(address)) };
    let links = route.links().map_err(failed)?;
    let link = links.into_values().find(|link| link.index == index).map(|link| link.mtu);
    let routes = route.routes().map_err(failed)?.into_iter();
    let family = |net: IpNet| net.addr().is_ipv4() == address.is_ipv4();
    let set = routes.filter(|route| route.index == Some(index) && family(route.destination));
    link.into_iter().chain(set.filter_map(|route| route.mtu)).min().ok_or(Error::NoSuchAddress(address))
}
