//! What the kernel should hold of one network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use gossip::View;
use gossip::id::NetworkId;
use gossip::record::{MemberRecord, MemberState};
use gossip::view::Host;
use ipnet::Ipv4Net;
use netplumb::state::{Addresses, Fabric, Key, Mac, Member, Network, Peer, Vtep};

use super::{Here, WIREGUARD_PORT, record, same_family, ula};
use crate::claims::{Claimant, Ledger, MemberKey};
use crate::store::Entry;

/// What a network is projected from.
pub struct World<'w> {
    /// The region.
    pub view: &'w View,
    /// Who holds what in it.
    pub ledger: &'w Ledger,
    /// This host.
    pub here: &'w Here,
    /// [`fabric_mtu`](super::fabric_mtu) of the region, in bytes.
    pub mtu: u32,
    /// Whether a member was first seen a short while ago, and may have spoken before it could be heard here.
    pub young: &'w dyn Fn(&MemberKey) -> bool,
}

/// A network as it follows from everything that is known of it.
#[derive(Debug)]
pub struct Whole {
    /// What the kernel should hold.
    pub network: Network,
    /// Two members have one key, or keys with one MAC: what stands at one address cannot be told apart from what
    /// stands at the other.
    pub tangled: bool,
}

/// A network after something changed at some addresses.
#[derive(Debug)]
pub enum Renewed {
    /// As it was.
    Same,
    /// Another one.
    Changed(Network),
    /// It has to be projected whole.
    Tangled,
}

/// What stands at one address.
struct Holding {
    key: Key,
    peer: Peer,
    /// Where it is, if that is another host to be reached from here.
    end: Option<Vtep>,
}

/// One network of [`desired`](super::desired), with this host's members of it, `own`; none when it has none there.
///
/// Contested members are in nobody's datapath, so that an address has one key in any single view. An
/// own one keeps its interface meanwhile, without a peer: it is re-addressed in place.
pub fn whole(world: &World<'_>, id: NetworkId, own: &[&Entry]) -> Option<Whole> {
    let World { ledger, here, mtu, .. } = *world;
    let claim = ledger.networks.get(id)?;
    let own: Vec<&&Entry> = own.iter().filter(|e| e.state != MemberState::Released).collect();
    own.first()?;
    let fabric = Fabric {
        alias: format!("warren {} {} {id}", here.region, here.host),
        vni: claim.vni,
        local: here.vtep,
        mtu,
        rows: BTreeMap::new(),
    };
    let mut network = Network { fabric, members: BTreeMap::new(), peers: BTreeMap::new() };
    for entry in own {
        let member =
            Member { contested: contested(world, entry), ..own_member(entry, claim.subnet, here, mtu) };
        network.members.insert(entry.member.to_string(), member);
    }
    let mut macs = BTreeSet::new();
    let mut tangled = false;
    for holder in ledger.claims(id).holders() {
        if let Some(holding) = holding(world, id, holder, &network.members) {
            tangled |= !macs.insert(holding.peer.mac);
            holding.enter(&mut network);
        }
    }
    Some(Whole { network, tangled })
}

/// `last`, a network that is not tangled, after whatever stands at these addresses changed, and nothing else did.
pub fn renewed(
    world: &World<'_>,
    id: NetworkId,
    own: &[&Entry],
    last: &Network,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Renewed {
    let claims = world.ledger.claims(id);
    let holders = addresses.iter().filter_map(|address| claims.holder(*address));
    let now: Vec<Holding> = holders.filter_map(|holder| holding(world, id, holder, &last.members)).collect();
    let here = |peer: &Peer| addresses.contains(peer.endpoint.ip());
    let before: Vec<(Key, Mac)> =
        last.peers.iter().filter(|(_, peer)| here(peer)).map(|(key, peer)| (*key, peer.mac)).collect();
    let own = own.iter().filter(|e| e.state != MemberState::Released && addresses.contains(&e.address));
    let own: Vec<(&str, bool)> = own.map(|e| (e.member.as_str(), contested(world, e))).collect();
    let same = before.len() == now.len()
        && now.iter().all(|holding| holding.stands_in(last))
        && own.iter().all(|(id, contested)| last.members.get(*id).is_some_and(|m| m.contested == *contested));
    if same {
        return Renewed::Same;
    }
    let mut network = last.clone();
    for (key, mac) in before {
        network.peers.remove(&key);
        network.fabric.rows.remove(&mac);
    }
    for holding in now {
        if network.peers.contains_key(&holding.key) || network.fabric.rows.contains_key(&holding.peer.mac) {
            return Renewed::Tangled;
        }
        holding.enter(&mut network);
    }
    for (id, contested) in own {
        if let Some(member) = network.members.get_mut(id) {
            member.contested = contested;
        }
    }
    Renewed::Changed(network)
}

impl Holding {
    fn enter(self, network: &mut Network) {
        if let Some(end) = self.end {
            network.fabric.rows.insert(self.peer.mac, end);
        }
        network.peers.insert(self.key, self.peer);
    }

    fn stands_in(&self, network: &Network) -> bool {
        network.peers.get(&self.key) == Some(&self.peer)
            && network.fabric.rows.get(&self.peer.mac) == self.end.as_ref()
    }
}

/// What follows from a claimant that holds its address; nothing for one on a host that is gone, and for an own member
/// that is not on disk yet: it comes to its neighbours with its own objects.
fn holding(
    world: &World<'_>,
    id: NetworkId,
    holder: &Claimant,
    own: &BTreeMap<String, Member>,
) -> Option<Holding> {
    let (key, host, record) = held(world.view, id, holder)?;
    let remote = key.0 != world.here.host;
    if !remote && !own.contains_key(key.2.as_str()) {
        return None;
    }
    let public = Key(record.key.0);
    let theirs = &host.records.host;
    let reached = remote && same_family(host, world.here.vtep.address);
    let peer = Peer {
        endpoint: SocketAddrV4::new(record.address, WIREGUARD_PORT),
        mac: Mac::of_key(&public),
        allowed: addresses(record),
        greet: remote && record.state == MemberState::Ready && (world.young)(&key),
    };
    let end = reached.then_some(Vtep { address: theirs.vtep, port: theirs.port });
    Some(Holding { key: public, peer, end })
}

/// The member that holds an address, with its host. Those of hosts that are gone hold nothing.
pub(super) fn held<'v>(
    view: &'v View,
    network: NetworkId,
    holder: &Claimant,
) -> Option<(MemberKey, &'v Host, &'v MemberRecord)> {
    let host = view.hosts.get(&holder.host)?;
    let record = host.records.members.get(&(network, holder.member.clone()))?;
    Some(((holder.host.clone(), network, holder.member.clone()), host, record))
}

fn contested(world: &World<'_>, entry: &Entry) -> bool {
    let key = (world.here.host.clone(), entry.network, entry.member.clone());
    world.ledger.address_contested(&key, &record(entry))
}

fn own_member(entry: &Entry, subnet: Ipv4Net, here: &Here, mtu: u32) -> Member {
    Member {
        netns: entry.netns.clone(),
        ifname: entry.ifname.clone(),
        mtu: netplumb::state::wg_mtu(mtu),
        mac: Mac::of_key(&Key(entry.public_key.0)),
        address: entry.address,
        subnet,
        address6: entry.address6,
        ula: ula(entry.network),
        private_key: entry.private_key.clone(),
        port: WIREGUARD_PORT,
        contested: false,
        held: entry.is_held(),
        guard: here.guard,
    }
}

fn addresses(record: &MemberRecord) -> Addresses {
    [Some(IpAddr::V4(record.address)), record.address6.map(IpAddr::V6)].into_iter().flatten().collect()
}
