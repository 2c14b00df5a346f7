//! The node is a projection of the view: what the kernel should hold, and what names should
//! resolve. Pure; the one place where gossip's records become netplumb's and resolver's values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::View;
use gossip::id::{HostId, NetworkId, Region};
use gossip::record::{MemberRecord, MemberState};
use gossip::standing::Standing;
use ipnet::Ipv6Net;
use netplumb::state::{Desired, Fabric, Guard, Key, Mac, Member, Network, Ours, Peer, Trace, Vtep};
use resolver::ZoneMember;

use crate::claims::{Ledger, MemberKey};
use crate::store::Entry;

/// UDP port of WireGuard in every binding namespace.
pub const WIREGUARD_PORT: u16 = 51820;
/// The smallest link IPv6 runs on (RFC 8200, section 5).
pub const IPV6_MTU_MIN: u32 = 1280;

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

fn fabric_mtu(view: &View, here: &Here) -> u32 {
    let others = view.hosts.iter().filter(|(host, h)| **host != here.host && h.standing != Standing::Gone);
    let smallest = others.map(|(_, h)| h.records.host.mtu).chain([here.underlay_mtu]).min();
    netplumb::state::fabric_mtu(smallest.unwrap_or(here.underlay_mtu), here.vtep.address.is_ipv6())
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
        unknown: BTreeMap::new(),
    }
}

/// What the journal names: the only things of the kernel that are ours.
pub fn ours<'a>(journal: impl IntoIterator<Item = &'a Entry>) -> Ours {
    let mut ours = Ours::default();
    for entry in journal {
        let trace = Trace { netns: entry.netns.clone(), ifname: entry.ifname.clone() };
        ours.networks.entry(entry.network.to_string()).or_default().insert(entry.member.to_string(), trace);
    }
    ours
}

/// What this host's kernel should hold: its own members, and what they need of the others.
/// Contested members are in nobody's datapath, so that an address has one key in any single view.
///
/// `young` says whether a member was first seen a short while ago; `journalled` are this host's own
/// members whose journal entry is safe on disk.
pub fn desired<'a>(
    view: &View,
    ledger: &Ledger,
    here: &Here,
    journalled: impl IntoIterator<Item = &'a Entry>,
    young: impl Fn(&MemberKey) -> bool,
) -> Desired {
    let mtu = fabric_mtu(view, here);
    let mut desired = Desired::default();
    for entry in journalled {
        let contested = ledger.contested_addresses.contains(&member_key(&here.host, entry));
        let Some(claim) = ledger.networks.get(&entry.network) else { continue };
        if entry.state == MemberState::Released || contested {
            continue;
        }
        let network = desired.networks.entry(entry.network.to_string()).or_insert_with(|| Network {
            fabric: Fabric {
                alias: format!("warren {} {} {}", here.region, here.host, entry.network),
                vni: claim.vni,
                local: here.vtep,
                mtu,
                rows: BTreeMap::new(),
            },
            members: BTreeMap::new(),
        });
        network.members.insert(entry.member.to_string(), own_member(entry, claim.subnet, here, mtu));
    }
    for (key, standing, record) in live_members(view, ledger) {
        let Some(network) = desired.networks.get_mut(&key.1.to_string()) else { continue };
        let (host, _, member) = &key;
        // An own member that is not on disk yet comes to its neighbours with its own objects.
        if *host == here.host && !network.members.contains_key(member.as_str()) {
            continue;
        }
        let public = Key(record.key.0);
        let mac = Mac::of_key(&public);
        if *host != here.host {
            let Some(theirs) = view.hosts.get(host).map(|h| &h.records.host) else { continue };
            if standing == Standing::Gone {
                continue;
            }
            network.fabric.rows.insert(mac, Vtep { address: theirs.vtep, port: theirs.port });
        }
        let peer = Peer {
            endpoint: SocketAddrV4::new(record.address, WIREGUARD_PORT),
            mac,
            allowed: addresses(record),
            greet: *host != here.host && young(&key),
        };
        for (id, local) in &mut network.members {
            if id != member.as_str() {
                local.peers.insert(public, peer.clone());
            }
        }
    }
    desired
}

fn own_member(entry: &Entry, subnet: ipnet::Ipv4Net, here: &Here, mtu: u32) -> Member {
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
        peers: BTreeMap::new(),
        guard: here.guard,
    }
}

fn addresses(record: &MemberRecord) -> BTreeSet<IpAddr> {
    [Some(IpAddr::V4(record.address)), record.address6.map(IpAddr::V6)].into_iter().flatten().collect()
}

fn member_key(host: &HostId, entry: &Entry) -> MemberKey {
    (host.clone(), entry.network, entry.member.clone())
}

/// Live members that hold their address, in the order of the view.
fn live_members<'a>(
    view: &'a View,
    ledger: &'a Ledger,
) -> impl Iterator<Item = (MemberKey, Standing, &'a MemberRecord)> {
    view.hosts.iter().flat_map(move |(host, h)| {
        h.records.members.iter().filter_map(move |((network, member), record)| {
            let key = (host.clone(), *network, member.clone());
            let live = record.state != MemberState::Released && !ledger.contested_addresses.contains(&key);
            live.then_some((key, h.standing, record))
        })
    })
}

/// Every member of a network that names resolve to: ready, holding its address, on a host that
/// answers; while this host is the one cut off, on a dead host too, for then it is the others that
/// can answer. A contested ordinal is left out of the numbered name only.
pub fn zone_members(view: &View, ledger: &Ledger) -> BTreeMap<NetworkId, Vec<ZoneMember>> {
    let mut zones: BTreeMap<NetworkId, Vec<ZoneMember>> = BTreeMap::new();
    for (key, standing, record) in live_members(view, ledger) {
        let answered = standing.answers() || (view.cut_off && standing == Standing::Dead);
        if record.state != MemberState::Ready || !answered {
            continue;
        }
        zones.entry(key.1).or_default().push(ZoneMember {
            app: record.app.to_string(),
            process: record.process.to_string(),
            ordinal: record.ordinal.filter(|_| !ledger.contested_ordinals.contains(&key)),
            address: record.address,
            address6: record.address6,
            late: matches!(standing, Standing::Late | Standing::Dead),
        });
    }
    zones
}

/// A SOA serial that is equal wherever the zone is: 32 bits of a hash of what it answers.
pub fn serial(members: &[ZoneMember]) -> u32 {
    let mut lines: Vec<String> = members
        .iter()
        .map(|m| format!("{}/{}/{:?}/{}/{:?}", m.app, m.process, m.ordinal, m.address, m.address6))
        .collect();
    lines.sort();
    let hash: [u8; 8] = Blake2b::<U8>::digest(lines.join("\n")).into();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
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
mod tests {
    use std::sync::Arc;

    use gossip::record::{HostRecord, NetworkRecord};
    use gossip::view::{Host, HostRecords};
    use netplumb::state::{NetnsRef, PrivateKey};

    use super::*;
    use crate::claims::DEFAULT_SUBNET;

    fn pn() -> NetworkId {
        "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap()
    }

    fn entry(last: u8, state: MemberState) -> Entry {
        Entry {
            member: format!("{last:016x}").parse().unwrap(),
            container: format!("c{last}"),
            network: pn(),
            claim: NetworkRecord { counter: 1, vni: 42, subnet: DEFAULT_SUBNET, unknown: BTreeMap::new() },
            app: "ap-a71da13f-7c70-4c00-a644-eee8558d8053".parse().unwrap(),
            process: "web".parse().unwrap(),
            ordinal: Some(u32::from(last)),
            ordinal_chosen: false,
            netns: NetnsRef { path: "/run/netns/c".into(), cookie: 1 },
            inode: 1,
            boot: "b".into(),
            ifname: "wg0".into(),
            address: Ipv4Addr::new(10, 240, 0, last),
            address6: None,
            private_key: PrivateKey([last; 32]),
            public_key: gossip::record::PublicKey(PrivateKey([last; 32]).public().0),
            state,
            counter: u64::from(last),
        }
    }

    /// Hosts `a` (me), `b`, `c`, each with the given members.
    fn view(hosts: &[(&str, Standing, &[Entry])]) -> View {
        let mut view = View::default();
        for (i, (name, standing, entries)) in hosts.iter().enumerate() {
            let vtep = IpAddr::V4(Ipv4Addr::new(192, 0, 2, i as u8 + 1));
            let claim =
                NetworkRecord { counter: 1, vni: 42, subnet: DEFAULT_SUBNET, unknown: BTreeMap::new() };
            let records = HostRecords {
                host: HostRecord {
                    name: name.parse().unwrap(),
                    counter: 0,
                    vtep,
                    port: 4789,
                    mtu: if *name == "c" { 1400 } else { 1500 },
                    speaks: 1,
                    away: None,
                    unknown: BTreeMap::new(),
                },
                networks: BTreeMap::from([(pn(), claim)]),
                members: entries.iter().map(|e| ((e.network, e.member.clone()), record(e))).collect(),
            };
            let host = Host {
                generation: 1,
                version: 1,
                address: "192.0.2.1:1".parse().unwrap(),
                standing: *standing,
                silent_since: None,
                via: gossip::view::Via::Chitchat,
                records: Arc::new(records),
            };
            view.hosts.insert(name.parse().unwrap(), host);
        }
        view
    }

    fn here() -> Here {
        Here {
            region: "r".parse().unwrap(),
            host: "a".parse().unwrap(),
            vtep: Vtep { address: "192.0.2.1".parse().unwrap(), port: 4789 },
            underlay_mtu: 1500,
            guard: Guard::None,
        }
    }

    fn project(view: &View, own: &[Entry]) -> (Desired, Ledger) {
        let here = here();
        let ledger = Ledger::of(view);
        (desired(view, &ledger, &here, own, |_| false), ledger)
    }

    #[test]
    fn members_see_all_others_and_rows_are_for_remote_ones() {
        use MemberState::*;
        let own = [entry(1, Ready), entry(2, Joining)];
        let remote = [entry(3, Joining), entry(4, Released)];
        let view = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
        let (desired, _) = project(&view, &own);
        let network = &desired.networks[&pn().to_string()];
        assert_eq!(network.fabric.rows.len(), 1, "one remote live member");
        assert_eq!(network.members.len(), 2);
        for member in network.members.values() {
            assert_eq!(member.peers.len(), 2, "the other local one and the remote one");
            assert_eq!(member.mtu, 1390);
        }
    }

    #[test]
    fn an_own_member_that_is_not_on_disk_is_nowhere() {
        let own = [entry(1, MemberState::Ready), entry(2, MemberState::Joining)];
        let view = view(&[("a", Standing::Answering, &own)]);
        let (desired, _) = project(&view, &own[..1]);
        let network = &desired.networks[&pn().to_string()];
        assert_eq!(network.members.len(), 1);
        assert!(network.members.values().all(|member| member.peers.is_empty()));
    }

    #[test]
    fn a_network_without_own_members_is_not_built() {
        let view = view(&[("b", Standing::Answering, &[entry(3, MemberState::Ready)])]);
        assert_eq!(project(&view, &[]).0, Desired::default());
    }

    #[test]
    fn standing_decides_names_and_datapath_apart() {
        let cases = [
            // (standing, in names, in datapath)
            (Standing::Answering, true, true),
            (Standing::Late, true, true),
            (Standing::Away, true, true),
            (Standing::Dead, false, true),
            (Standing::Gone, false, false),
        ];
        for (standing, named, routed) in cases {
            let own = [entry(1, MemberState::Ready)];
            let remote = [entry(3, MemberState::Ready)];
            let view = view(&[("a", Standing::Answering, &own), ("b", standing, &remote)]);
            let (desired, ledger) = project(&view, &own);
            let zone = &zone_members(&view, &ledger)[&pn()];
            assert_eq!(zone.iter().any(|m| m.address == remote[0].address), named, "{standing:?}");
            assert_eq!(
                desired.networks[&pn().to_string()].fabric.rows.len(),
                usize::from(routed),
                "{standing:?}"
            );
        }
    }

    #[test]
    fn the_one_cut_off_keeps_its_names() {
        let own = [entry(1, MemberState::Ready)];
        let remote = [entry(3, MemberState::Ready)];
        let mut view = view(&[("a", Standing::Answering, &own), ("b", Standing::Dead, &remote)]);
        view.cut_off = true;
        let (_, ledger) = project(&view, &own);
        assert_eq!(zone_members(&view, &ledger)[&pn()].len(), 2);
    }

    #[test]
    fn a_joining_member_is_programmed_but_not_named() {
        let own = [entry(1, MemberState::Ready)];
        let remote = [entry(3, MemberState::Joining)];
        let view = view(&[("a", Standing::Answering, &own), ("b", Standing::Answering, &remote)]);
        let (desired, ledger) = project(&view, &own);
        assert_eq!(desired.networks[&pn().to_string()].fabric.rows.len(), 1);
        assert_eq!(zone_members(&view, &ledger)[&pn()].len(), 1);
    }

    #[test]
    fn a_contested_address_has_one_key() {
        let own = [entry(1, MemberState::Ready)];
        let mut twin = entry(9, MemberState::Ready);
        twin.address = own[0].address;
        let witness = [entry(5, MemberState::Ready)];
        let view = view(&[
            ("a", Standing::Answering, &own),
            ("b", Standing::Answering, &[twin]),
            ("c", Standing::Answering, &witness),
        ]);
        let (desired, ledger) = project(&view, &own);
        let peers = &desired.networks[&pn().to_string()].members[own[0].member.as_str()].peers;
        assert_eq!(peers.len(), 1, "the twin is in nobody's datapath");
        assert_eq!(zone_members(&view, &ledger)[&pn()].len(), 2);
        assert_eq!(peers.values().next().unwrap().endpoint.port(), WIREGUARD_PORT);
    }

    #[test]
    fn the_smallest_underlay_sets_the_mtu() {
        let own = [entry(1, MemberState::Ready)];
        let view = view(&[("a", Standing::Answering, &own), ("c", Standing::Answering, &[])]);
        let (desired, _) = project(&view, &own);
        let network = &desired.networks[&pn().to_string()];
        assert_eq!((network.fabric.mtu, network.members[own[0].member.as_str()].mtu), (1350, 1290));
    }

    #[test]
    fn ulas_are_stable_unique_and_hold_the_address() {
        let other: NetworkId = "pn-bd0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap();
        assert_ne!(ula(pn()), ula(other));
        let address = address6(pn(), Ipv4Addr::new(10, 240, 0, 1));
        assert!(ula(pn()).contains(&address));
        assert!(address.to_string().ends_with("af0:1"), "{address}");
        assert_eq!(ula(pn()).network().octets()[0], 0xfd);
    }

    #[test]
    fn names_by_type_and_number() {
        let z = "private-network.internal";
        assert_eq!(names("ap", "web", Some(1), pn(), z).len(), 3);
        assert_eq!(names("ap", "worker", Some(1), pn(), z).len(), 2);
        assert_eq!(names("ap", "worker", None, pn(), z)[0], format!("worker.ap.{}.{z}", pn()));
    }

    #[test]
    fn the_serial_does_not_depend_on_order() {
        let member = |last| ZoneMember {
            app: "a".into(),
            process: "web".into(),
            ordinal: None,
            address: Ipv4Addr::new(10, 240, 0, last),
            address6: None,
            late: false,
        };
        assert_eq!(serial(&[member(1), member(2)]), serial(&[member(2), member(1)]));
        assert_ne!(serial(&[member(1)]), serial(&[member(2)]));
    }
}
