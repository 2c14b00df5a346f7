//! The container's side. Everything here opens its sockets on a thread in the container's namespace
//! and leaves none behind.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::link::LinkAttribute;

use crate::error::Error;
use crate::kernel::{Container, Route};
use crate::netlink::apply::check_ifname;
use crate::netlink::link::{LOOPBACK, Seen};
use crate::netlink::nft;
use crate::netlink::socket::Rtnl;
use crate::netlink::wireguard::{Introduction, Wireguard, group};
use crate::netns;
use crate::observed::Inside;
use crate::plan::{InsideChange, Site};
use crate::state::NetnsRef;

/// Does one change; the binding namespace is needed for [`InsideChange::Link`] only, and that one is
/// the caller's.
pub(crate) fn apply(
    wireguard: &Wireguard,
    member: &str,
    site: &Site,
    change: &InsideChange,
) -> Result<(), Error> {
    check_ifname(&site.ifname)?;
    match change {
        InsideChange::DropLink => wireguard.remove(member, site),
        InsideChange::Peers(peers) => {
            wireguard.introduce(&[Introduction { member, site, peers }]).pop().unwrap_or(Ok(()))
        }
        InsideChange::DropPeers(peers) => wireguard.remove_peers(member, site, peers),
        InsideChange::Link(_) => Err(Error::Missing { what: format!("the binding namespace of {member}") }),
        change => visit(wireguard, member, site, &[change]).pop().unwrap_or(Ok(())),
    }
}

/// Does changes of one container in one visit ([`InsideChange::is_of_the_visit`]), in their order; after an essential
/// one that failed none is tried.
pub(crate) fn visit(
    wireguard: &Wireguard,
    member: &str,
    site: &Site,
    changes: &[&InsideChange],
) -> Vec<Result<(), Error>> {
    if let Err(error) = check_ifname(&site.ifname) {
        return vec![Err(error)];
    }
    let done = site.netns.enter(|| {
        let mut visit = Visit { wireguard, member, site, route: None };
        in_turn(changes, |change| visit.make(change))
    });
    match (done, changes) {
        (Ok(results), _) => results,
        (Err(error), [change]) => vec![if change.is_removal() { gone(Err(error)) } else { Err(error) }],
        // Each for itself, to tell what is gone with the namespace from what cannot be made there.
        (Err(_), _) => in_turn(changes, |change| apply(wireguard, member, site, change)),
    }
}

fn in_turn(
    changes: &[&InsideChange],
    mut make: impl FnMut(&InsideChange) -> Result<(), Error>,
) -> Vec<Result<(), Error>> {
    let mut results = Vec::with_capacity(changes.len());
    for change in changes {
        results.push(make(change));
        if results.last().is_some_and(Result::is_err) && change.essential() {
            break;
        }
    }
    results
}

/// A stay in a container's namespace. Its socket is opened when it is needed, and closed at the end.
struct Visit<'a> {
    wireguard: &'a Wireguard,
    member: &'a str,
    site: &'a Site,
    route: Option<Rtnl>,
}

impl Visit<'_> {
    fn make(&mut self, change: &InsideChange) -> Result<(), Error> {
        match change {
            InsideChange::Guard(rules) => Ok(nft::install(self.member, rules)?),
            InsideChange::DropGuard => Ok(nft::remove(self.member)?),
            change => {
                let site = self.site;
                self.route(change).map_err(|error| refused(change, site, error))?;
                self.tell(change)
            }
        }
    }

    fn route(&mut self, change: &InsideChange) -> io::Result<()> {
        let (member, site) = (self.member, self.site);
        let route = match &mut self.route {
            Some(route) => route,
            none => none.insert(Rtnl::here()?),
        };
        match change {
            InsideChange::Loopback => {
                let index = route.index(LOOPBACK)?;
                route.set_link(index, vec![], true)
            }
            InsideChange::Unreachable(prefixes) => {
                prefixes.iter().try_for_each(|prefix| route.set_unreachable(*prefix))
            }
            InsideChange::DropUnreachable(prefixes) => {
                prefixes.iter().try_for_each(|prefix| route.delete_unreachable(*prefix))
            }
            InsideChange::LinkMtu(mtu) => {
                let index = index(route, member, site)?;
                route.set_link(index, vec![LinkAttribute::Mtu(*mtu)], false)
            }
            InsideChange::Address(address) => {
                let link = own(route, member, site)?;
                if matches!(address, IpNet::V6(_)) {
                    take_ipv6(&site.ifname, link.up)?;
                }
                route.add_address(link.index, *address)
            }
            InsideChange::DropAddress(address) => {
                let index = index(route, member, site)?;
                route.delete_address(index, *address)
            }
            InsideChange::LinkUp => {
                // Before it is up: no link-local address, which would be chosen as a source.
                netns::write_sysctl(&format!("ipv6/conf/{}/addr_gen_mode", site.ifname), NO_LINK_LOCAL)?;
                let index = index(route, member, site)?;
                route.set_link(index, vec![], true)
            }
            InsideChange::Route { destination, source } => {
                let index = index(route, member, site)?;
                route.set_route(index, *destination, *source)
            }
            InsideChange::DropRoute(destination) => {
                let index = index(route, member, site)?;
                route.delete_route(index, *destination)
            }
            _ => Ok(()),
        }
    }

    /// What the engine has to know of it.
    fn tell(&mut self, change: &InsideChange) -> Result<(), Error> {
        match change {
            InsideChange::LinkMtu(mtu) => self.wireguard.set_mtu(self.member, *mtu),
            InsideChange::Address(address) => self.tell_addresses(Some(address.addr())),
            InsideChange::DropAddress(_) => self.tell_addresses(None),
            _ => Ok(()),
        }
    }

    /// The engine's ICMP errors come from the address that was set last.
    fn tell_addresses(&mut self, newest: Option<IpAddr>) -> Result<(), Error> {
        let (member, site) = (self.member, self.site);
        let (Wireguard::Userspace(engine), Some(route)) = (self.wireguard, &mut self.route) else {
            return Ok(());
        };
        // It was told at birth.
        let same = |newest| {
            engine.interface(member).is_some_and(|is| {
                IpAddr::V4(is.address) == newest || is.address6.map(IpAddr::V6) == Some(newest)
            })
        };
        if newest.is_some_and(same) {
            return Ok(());
        }
        let mut read = || -> io::Result<(Vec<Ipv4Addr>, Vec<Ipv6Addr>)> {
            let index = index(route, member, site)?;
            let addresses = route.addresses()?.into_iter().filter(|(of, _)| *of == index);
            let (mut v4, mut v6) = (Vec::new(), Vec::new());
            for address in addresses.map(|(_, address)| address.addr()).chain(newest) {
                match address {
                    IpAddr::V4(address) => v4.push(address),
                    IpAddr::V6(address) => v6.push(address),
                }
            }
            Ok((v4, v6))
        };
        let (v4, v6) =
            read().map_err(|error| Error::kernel(format!("read the addresses of {}", site.ifname), error))?;
        match v4.last() {
            Some(address) => self.wireguard.set_address(member, *address, v6.last().copied()),
            None => Ok(()),
        }
    }
}

/// The member's side in its container, without what is `beside` it, of its other networks; None when the
/// namespace is gone or another.
pub(crate) fn observe(
    wireguard: &Wireguard,
    member: &str,
    site: &Site,
    beside: &BTreeSet<IpNet>,
) -> Result<Option<Inside>, Error> {
    let seen = site.netns.enter(|| -> Result<Inside, Error> {
        let failed = |error| Error::kernel(format!("observe {}", site.netns.path.display()), error);
        let mut route = Rtnl::here().map_err(failed)?;
        let mut inside = look(&mut route, wireguard, member, site).map_err(failed)?;
        inside.unreachable.retain(|prefix| !beside.contains(prefix));
        // Without nf_tables there is no guard either.
        inside.guard = match nft::observe() {
            Ok(mut guards) => guards.remove(member),
            Err(nft::NftError::Unsupported(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(inside)
    });
    match seen {
        Ok(inside) => inside.map(Some),
        Err(Error::NetnsGone(_) | Error::NetnsRecycled(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn look(route: &mut Rtnl, wireguard: &Wireguard, member: &str, site: &Site) -> io::Result<Inside> {
    let mut inside = Inside {
        ipv6: netns::has_ipv6(),
        loopback: route.link(LOOPBACK)?.is_some_and(|link| link.up),
        ..Inside::default()
    };
    let routes = route.routes()?.into_iter().filter(|route| route.ours);
    let (unreachable, through): (Vec<_>, Vec<_>) = routes.partition(|route| route.unreachable);
    inside.unreachable = unreachable.into_iter().map(|route| route.destination).collect();
    let Some(link) = route.link(&site.ifname)? else { return Ok(inside) };
    inside.device = wireguard.observe(member, &link)?;
    let Some(device) = &mut inside.device else { return Ok(inside) };
    let addresses = route.addresses()?.into_iter().filter(|(index, _)| *index == link.index);
    device.addresses = addresses.map(|(_, address)| address).collect();
    inside.routes = through
        .into_iter()
        .filter(|route| route.index == Some(link.index))
        .filter_map(|route| Some((route.destination, route.source?)))
        .collect();
    Ok(inside)
}

/// Everything the caller needs to know before it attaches the container whose namespace the calling
/// thread is in.
pub(crate) fn survey(netns: NetnsRef, inode: u64, own: bool, nf_tables: bool) -> io::Result<Container> {
    let mut route = Rtnl::here()?;
    let links = route.links()?;
    let name = |index: u32| links.values().find(|link| link.index == index).map(|link| link.name.clone());
    let (ours, others): (Vec<_>, Vec<_>) = route.routes()?.into_iter().partition(|route| route.ours);
    let routes = others.into_iter().filter(|route| route.destination.prefix_len() > 0);
    let routes: BTreeSet<Route> = routes
        .map(|route| Route { destination: route.destination, device: route.index.and_then(name) })
        .collect();
    let addresses = route.addresses()?.into_iter().map(|(_, address)| address).collect();
    Ok(Container {
        netns,
        inode,
        own,
        routes: routes.into_iter().collect(),
        addresses,
        ipv6: netns::has_ipv6(),
        nf_tables,
        leftovers: !ours.is_empty() || nft::stands(),
        links: links.into_keys().collect(),
    })
}

/// `addr_gen_mode` (IN6_ADDR_GEN_MODE_NONE).
const NO_LINK_LOCAL: &str = "1";

/// Lets the interface have IPv6 addresses, ours alone. Where its MTU was too small for IPv6 and is not any more the
/// kernel has begun anew, with a link-local address.
fn take_ipv6(ifname: &str, up: bool) -> io::Result<()> {
    let [disable, generate] =
        ["disable_ipv6", "addr_gen_mode"].map(|key| format!("ipv6/conf/{ifname}/{key}"));
    if up && netns::read_sysctl(&generate)? != NO_LINK_LOCAL {
        netns::write_sysctl(&generate, NO_LINK_LOCAL)?;
        netns::write_sysctl(&disable, "1")?;
    }
    netns::write_sysctl(&disable, "0")
}

/// The member's own interface: never one that only has its name.
fn own(route: &mut Rtnl, member: &str, site: &Site) -> io::Result<Seen> {
    let link = route.link(&site.ifname)?.filter(|link| link.group == group(member));
    link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

fn index(route: &mut Rtnl, member: &str, site: &Site) -> io::Result<u32> {
    own(route, member, site).map(|link| link.index)
}

/// What cannot be removed because its namespace is gone is removed.
fn gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NetnsGone(_) | Error::NetnsRecycled(_)) => Ok(()),
        result => result,
    }
}

fn refused(change: &InsideChange, site: &Site, error: io::Error) -> Error {
    let ifname = || site.ifname.clone();
    match (change, error.raw_os_error()) {
        (InsideChange::Address(IpNet::V6(_)), Some(libc::EACCES | libc::EOPNOTSUPP | libc::EINVAL)) => {
            Error::NoIpv6 { ifname: ifname() }
        }
        (_, Some(libc::ENODEV)) => Error::Missing { what: ifname() },
        _ => {
            let op = change.kind();
            Error::kernel(format!("do `{op}` for {} in {}", site.ifname, site.netns.path.display()), error)
        }
    }
}

/// Removes every route that bears our mark, and the table, from the calling thread's namespace.
pub(crate) fn clean() -> Result<(), Error> {
    let failed = |error| Error::kernel("remove what is left of an earlier member", error);
    let mut route = Rtnl::here().map_err(failed)?;
    for seen in route.routes().map_err(failed)?.into_iter().filter(|seen| seen.ours) {
        let removed = match seen.index {
            Some(index) if !seen.unreachable => route.delete_route(index, seen.destination),
            _ => route.delete_unreachable(seen.destination),
        };
        removed.map_err(failed)?;
    }
    Ok(nft::clear()?)
}
