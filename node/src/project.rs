//! The node is a projection of the view: what the kernel should hold, and what names should
//! resolve. Pure; the one place where gossip's records become netplumb's and resolver's values.

mod network;
mod zone;

pub use self::network::{Renewed, Whole, World, renewed, whole};
pub use self::zone::{print, serial, zone_member};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::View;
use gossip::id::{HostId, NetworkId, Region};
use gossip::port::Port;
use gossip::record::MemberRecord;
use gossip::standing::Standing;
use gossip::view::{Host, Via};
use ipnet::{IpNet, Ipv6Net};
use netplumb::state::{Desired, Guard, Ours, Trace, Vtep};

use crate::claims::{Ledger, MemberKey};
use crate::store::Entry;

/// UDP port of WireGuard in every binding namespace.
pub const WIREGUARD_PORT: u16 = 51820;

/// What of this host enters the projection.
#[derive(Debug, Clone)]
pub struct Here {
    /// The region, for aliases.
    pub region: Region,
    /// This host.
    pub host: HostId,
    /// This host's tunnel end.
    pub vtep: Vtep,
    /// This host's underlay MTU in bytes.
    pub underlay_mtu: u32,
    /// What protects private addresses in this host's containers.
    pub guard: Guard,
}

/// The MTU of `wgN` in the region, in bytes: one number for all, from the smallest underlay.
pub fn wireguard_mtu(view: &View, here: &Here) -> u32 {
    netplumb::state::wg_mtu(fabric_mtu(view, here))
}

/// The MTU of bridges, VXLAN devices and veths in the region, in bytes.
pub fn fabric_mtu(view: &View, here: &Here) -> u32 {
    let others = view.hosts.iter().filter(|(host, h)| **host != here.host && h.standing != Standing::Gone);
    let others = others.filter(|(_, h)| same_family(h, here.vtep.address));
    let smallest = others.map(|(_, h)| h.records.host.mtu).chain([here.underlay_mtu]).min();
    netplumb::state::fabric_mtu(smallest.unwrap_or(here.underlay_mtu), here.vtep.address.is_ipv6())
}

/// Whether a host's tunnel end is of the same address family as this host's: a region's underlay is one of
/// the two.
pub fn same_family(host: &Host, from: IpAddr) -> bool {
    host.records.host.vtep.is_ipv6() == from.is_ipv6()
}

/// Why a host with a tunnel end at `from` has no place in a region of these, in words: most of them have theirs in
/// the other address family.
pub fn foreign_family<'a>(
    others: impl Iterator<Item = (&'a HostId, IpAddr)>,
    from: IpAddr,
) -> Option<String> {
    let (same, other): (Vec<_>, Vec<_>) = others.partition(|(_, vtep)| vtep.is_ipv6() == from.is_ipv6());
    let (host, vtep) = other.first().filter(|_| other.len() > same.len())?;
    Some(stranger(from, host, *vtep))
}

/// The hosts that answer, with their tunnel ends. What is known from disk alone is not among them: the whole
/// region may have moved since.
pub fn heard<'a>(view: &'a View, own: &HostId) -> impl Iterator<Item = (&'a HostId, IpAddr)> {
    let others = view.answering().filter(move |(host, h)| *host != own && h.via != Via::Disk);
    others.map(|(host, h)| (host, h.records.host.vtep))
}

/// That two hosts cannot tunnel to each other, in words.
pub fn stranger(from: IpAddr, host: &HostId, vtep: IpAddr) -> String {
    let family = |address: IpAddr| if address.is_ipv6() { "IPv6" } else { "IPv4" };
    let theirs = family(vtep);
    format!(
        "this host's tunnel end {from} is {}, that of host {host} is {vtep}: a region has one address family; set \
         `underlay.address` to an {theirs} address of this host",
        family(from)
    )
}

/// The network's ULA prefix (RFC 4193): 40 random bits and a subnet id, both from its id.
pub fn ula(network: NetworkId) -> Ipv6Net {
    let hash: [u8; 8] = Blake2b::<U8>::digest(network.as_bytes()).into();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&hash[..7]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)
}

/// A member's address in the ULA: unique because its IPv4 address, the interface id, is claimed.
pub fn address6(network: NetworkId, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(ula(network).network()) | u128::from(u32::from(address)))
}

/// A member's record as this host publishes it.
pub fn record(entry: &Entry) -> MemberRecord {
    MemberRecord {
        counter: entry.counter,
        state: entry.state,
        app: entry.app,
        process: entry.process.clone(),
        ordinal: entry.ordinal,
        ordinal_chosen: entry.ordinal_chosen,
        address: entry.address,
        address6: entry.address6,
        key: entry.public_key,
        ports: entry.ports.iter().map(Port::to_string).collect(),
        unknown: BTreeMap::new(),
    }
}

/// What the journal names: the only things of the kernel that are ours.
pub fn ours<'a>(journal: impl IntoIterator<Item = &'a Entry>) -> Ours {
    let entries: Vec<&Entry> = journal.into_iter().collect();
    let mut containers: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
    for entry in &entries {
        containers.entry(entry.netns.cookie).or_default().push(entry);
    }
    let mut ours = Ours::default();
    let eclipsed = crate::journal::eclipsed(entries.iter().copied());
    let served =
        |e: &Entry| e.state != gossip::record::MemberState::Released && !eclipsed.contains_key(&e.member);
    for entry in entries {
        let others = containers[&entry.netns.cookie].iter().filter(|other| other.network != entry.network);
        // Of what two of them have in common the one that goes takes nothing along, and the other one sees all.
        let others = others.filter(|other| served(other) || !crate::journal::overlap(other, entry));
        let trace = Trace {
            netns: entry.netns.clone(),
            ifname: entry.ifname.clone(),
            beside: others.flat_map(|other| prefixes(other)).collect(),
        };
        ours.networks.entry(entry.network.to_string()).or_default().insert(entry.member.to_string(), trace);
    }
    ours
}

fn prefixes(entry: &Entry) -> [IpNet; 2] {
    [entry.claim.subnet.into(), ula(entry.network).into()]
}

/// What this host's kernel should hold: its own members, and what they need of the others.
///
/// `young` says whether a member was first seen a short while ago, and may not have been heard here; `journalled` are this host's own
/// members whose journal entry is safe on disk.
pub fn desired<'a>(
    view: &View,
    ledger: &Ledger,
    here: &Here,
    journalled: impl IntoIterator<Item = &'a Entry>,
    young: impl Fn(&MemberKey) -> bool,
) -> Desired {
    let mtu = fabric_mtu(view, here);
    let mut own: BTreeMap<NetworkId, Vec<&Entry>> = BTreeMap::new();
    for entry in journalled {
        own.entry(entry.network).or_default().push(entry);
    }
    let world = World { view, ledger, here, mtu, young: &young };
    let network = |(id, own): (&NetworkId, &Vec<&Entry>)| {
        let whole = network::whole(&world, *id, own)?;
        Some((id.to_string(), Arc::new(whole.network)))
    };
    Desired { networks: own.iter().filter_map(network).collect() }
}

/// The names a member is found by, longest first.
pub fn names(
    entry_app: &str,
    process: &str,
    ordinal: Option<u32>,
    network: NetworkId,
    zone: &str,
) -> Vec<String> {
    let numbered = ordinal.map(|n| format!("{n}.{process}.{entry_app}.{network}.{zone}"));
    let typed = format!("{process}.{entry_app}.{network}.{zone}");
    let bare = (process == "web").then(|| format!("{entry_app}.{network}.{zone}"));
    numbered.into_iter().chain([typed]).chain(bare).collect()
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod renewal_tests;
#[cfg(test)]
mod tests;
