//! Laws of `diff`, on small worlds and the kernel in memory.

use std::net::SocketAddrV4;

use proptest::prelude::*;

use super::*;
use crate::observed::{Observed, ObservedPeer, port_name};
use crate::state::{Desired, Fabric, Few, Guard, Member, Network, Ours, Trace};
use crate::{Error, Kernel, MemoryKernel, Reconciler};

const NETWORKS: [&str; 2] = ["pn-0", "pn-1"];
const MEMBERS: u8 = 3;

/// What is chosen of a network; everything else follows.
#[derive(Debug, Clone)]
struct Choice {
    /// Addresses of the hosts' tunnel ends, MTUs, the subnet: one of two.
    port: bool,
    low: bool,
    subnet: bool,
    /// This host's members, then remote ones: absent, or one of some keys and addresses.
    members: [Option<(u8, u8, bool)>; 3],
    remotes: [Option<(u8, u8, bool)>; 3],
}

fn choice() -> impl Strategy<Value = Option<Choice>> {
    let member = || prop::option::weighted(0.7, (0..2_u8, 0..2_u8, any::<bool>()));
    let some = (any::<[bool; 3]>(), [member(), member(), member()], [member(), member(), member()]);
    prop::option::weighted(
        0.8,
        some.prop_map(|([port, low, subnet], members, remotes)| Choice {
            port,
            low,
            subnet,
            members,
            remotes,
        }),
    )
}

/// What this host should have. VNIs are three for two networks, so that they are swapped too.
fn world() -> impl Strategy<Value = Desired> {
    let vnis = Just([1_u32, 2, 3]).prop_shuffle();
    ([choice(), choice()], vnis).prop_map(|(choices, vnis)| {
        let networks = choices.into_iter().enumerate().filter_map(|(index, choice)| {
            Some((NETWORKS[index].to_owned(), network(index as u8, vnis[index], &choice?).into()))
        });
        Desired { networks: networks.collect() }
    })
}

fn network(index: u8, vni: u32, choice: &Choice) -> Network {
    let port = if choice.port { 4789 } else { 4790 };
    let vtep = |last: u8| Vtep { address: Ipv4Addr::new(192, 0, 2, last).into(), port };
    let mtu = if choice.low { 1330 } else { 1450 };
    let everybody: Vec<(u8, (u8, u8, bool))> = (0..)
        .zip(choice.members.iter().chain(&choice.remotes))
        .filter_map(|(slot, c)| Some((slot, (*c)?)))
        .collect();
    let remotes = everybody.iter().filter(|(slot, _)| *slot >= MEMBERS);
    let rows = remotes.map(|(slot, chosen)| (mac(index, *slot, *chosen), vtep(10 + chosen.1)));
    let fabric = Fabric { alias: format!("warren {index}"), vni, local: vtep(1), mtu, rows: rows.collect() };
    let members = everybody.iter().filter(|(slot, _)| *slot < MEMBERS).map(|(slot, chosen)| {
        let (address, _) = addresses(*slot, *chosen);
        let member = Member {
            netns: netns(index, *slot),
            ifname: "wg0".to_owned(),
            mtu: mtu - 60,
            mac: mac(index, *slot, *chosen),
            address,
            subnet: if choice.subnet { "10.240.0.0/22" } else { "10.240.0.0/21" }.parse().unwrap(),
            address6: chosen.2.then_some(addresses(*slot, *chosen).1),
            ula: "fd00::/64".parse().unwrap(),
            private_key: key(index, *slot, *chosen),
            port: 51820,
            contested: false,
            held: false,
            guard: Guard::Table { listener: "127.240.0.53:61053".parse().unwrap() },
        };
        (member_id(*slot), member)
    });
    let peers = everybody.iter();
    let peers =
        peers.map(|(slot, chosen)| (key(index, *slot, *chosen).public(), peer(index, *slot, *chosen)));
    Network { fabric, members: members.collect(), peers: peers.collect() }
}

fn key(network: u8, slot: u8, chosen: (u8, u8, bool)) -> PrivateKey {
    PrivateKey([1 + 64 * network + 8 * slot + chosen.0; 32])
}

fn mac(network: u8, slot: u8, chosen: (u8, u8, bool)) -> Mac {
    Mac::of_key(&key(network, slot, chosen).public())
}

fn addresses(slot: u8, chosen: (u8, u8, bool)) -> (Ipv4Addr, Ipv6Addr) {
    let last = 10 + 10 * slot + chosen.1;
    (Ipv4Addr::new(10, 240, 0, last), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()))
}

fn peer(network: u8, slot: u8, chosen: (u8, u8, bool)) -> Peer {
    let (address, address6) = addresses(slot, chosen);
    let v6 = chosen.2.then_some(IpAddr::V6(address6));
    Peer {
        endpoint: SocketAddrV4::new(address, 51820),
        mac: mac(network, slot, chosen),
        allowed: v6.into_iter().chain([IpAddr::V4(address)]).collect(),
        greet: false,
    }
}

fn member_id(slot: u8) -> String {
    format!("m{slot}")
}

fn netns(network: u8, slot: u8) -> NetnsRef {
    NetnsRef { path: format!("/c/{network}/{slot}").into(), cookie: u64::from(1 + network * MEMBERS + slot) }
}

/// A journal that names everything that can be.
fn ours() -> Ours {
    let trace = |network, slot| Trace {
        netns: netns(network, slot),
        ifname: "wg0".to_owned(),
        beside: BTreeSet::new(),
    };
    let traces = |network| (0..MEMBERS).map(|slot| (member_id(slot), trace(network, slot))).collect();
    Ours { networks: (0..).zip(NETWORKS).map(|(index, name)| (name.to_owned(), traces(index))).collect() }
}

/// A kernel with all the containers there can be.
fn kernel() -> MemoryKernel {
    let kernel = MemoryKernel::default();
    for (network, slot) in (0..2).flat_map(|network| (0..MEMBERS).map(move |slot| (network, slot))) {
        assert_eq!(kernel.start_container(netns(network, slot).path, None), netns(network, slot));
    }
    kernel
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

async fn apply(kernel: &MemoryKernel, plan: &[Op]) {
    for op in plan {
        kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }
}

async fn plan(kernel: &MemoryKernel, desired: &Desired, prune: Prune) -> Plan {
    let ours = ours();
    diff(&kernel.observe(&ours).await.unwrap(), desired, &ours, prune)
}

/// Makes the kernel as desired, and is done by that.
async fn reach(kernel: &MemoryKernel, desired: &Desired) {
    apply(kernel, &plan(kernel, desired, Prune::All).await.ops).await;
    assert_eq!(plan(kernel, desired, Prune::All).await.ops, []);
}

/// Something somebody else does to what is ours, as the kernel would leave it.
fn damage(state: &mut Observed, network: usize, slot: u8, kind: u8) {
    let Some(network) = state.networks.get_mut(NETWORKS[network]) else { return };
    let name = port_name(&member_id(slot));
    let stranger = Mac([2, 9, 9, 9, 9, 9]);
    let vtep = Vtep { address: Ipv4Addr::new(192, 0, 2, 99).into(), port: 4789 };
    let member = network.members.get_mut(&member_id(slot));
    match (kind, &mut network.fabric, member) {
        (0, fabric, _) => {
            *fabric = None;
            for binding in network.members.values_mut().filter_map(|member| member.binding.as_mut()) {
                binding.ethernet = None;
                binding.neighbours.clear();
            }
        }
        (1, Some(fabric), _) => {
            fabric.vxlan = None;
            fabric.rows.clear();
        }
        (2, Some(fabric), _) => {
            fabric.bridge = None;
            fabric.local_rows.clear();
            fabric.ports.values_mut().for_each(|port| port.enslaved = false);
            fabric.vxlan.iter_mut().for_each(|vxlan| vxlan.port.enslaved = false);
        }
        (3, Some(fabric), _) if fabric.vxlan.is_some() => {
            fabric.rows.values_mut().for_each(|ends| ends.insert(vtep));
            fabric.rows.insert(stranger, Few::from([vtep]));
        }
        (4, Some(fabric), Some(member)) => {
            fabric.ports.remove(&name);
            fabric.local_rows.retain(|_, port| *port != name);
            member.binding = None;
        }
        (5, _, Some(member)) => {
            if let Some(binding) = &mut member.binding {
                binding.quiet = false;
            }
            if let Some(binding) = member.binding.as_mut().filter(|binding| binding.ethernet.is_some()) {
                binding.neighbours.insert(Ipv4Addr::new(10, 240, 0, 99), stranger);
            }
        }
        (6, _, Some(member)) => {
            if let Some(inside) = &mut member.inside {
                inside.device = None;
                inside.routes.clear();
            }
        }
        (7, _, Some(member)) => {
            if let Some(device) = member.inside.as_mut().and_then(|inside| inside.device.as_mut()) {
                let peer = ObservedPeer {
                    endpoint: None,
                    allowed: device.addresses.iter().map(IpNet::addr).collect(),
                };
                let lost = |peer: &ObservedPeer| ObservedPeer { endpoint: None, ..peer.clone() };
                let others = device.peers.iter().map(|(key, peer)| (*key, lost(peer)));
                device.peers = others.chain([(Key([9; 32]), peer)]).collect();
            }
        }
        (8, Some(fabric), _) if fabric.ports.contains_key(&name) => {
            fabric.ports.values_mut().for_each(|port| port.flags.learning = true);
            fabric.local_rows.insert(stranger, name);
            fabric.alias.clear();
        }
        (_, _, Some(member)) => {
            if let Some(inside) = &mut member.inside {
                inside.guard = None;
                inside.unreachable.clear();
                inside.loopback = false;
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_state_reaches_every_other(from in world(), to in world()) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &from).await;
            reach(&kernel, &to).await;
            reach(&kernel, &Desired::default()).await;
            let state = kernel.state();
            prop_assert!(state.networks.values().all(|network| network.fabric.is_none()));
            let members = state.networks.values().flat_map(|network| network.members.values());
            for member in members {
                let left = member.inside.clone().unwrap_or_default();
                prop_assert!(member.binding.is_none() && left.device.is_none() && left.guard.is_none());
                prop_assert!(left.routes.is_empty() && left.unreachable.is_empty());
            }
            Ok(())
        })?;
    }

    #[test]
    fn members_are_told_of_each_other_when_they_stand(from in world(), to in world()) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &from).await;
            let stage = |op: &Op| match op {
                Op::Member { change: MemberChange::Neighbours(_), .. } => 1,
                Op::Inside { change: InsideChange::Peers(_), .. } => 2,
                _ => 0,
            };
            prop_assert!(plan(&kernel, &to, Prune::All).await.ops.is_sorted_by_key(stage));
            Ok(())
        })?;
    }

    #[test]
    fn a_plan_cut_short_is_taken_up_again(from in world(), to in world(), cut in 0..60_usize, twice in any::<bool>()) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &from).await;
            let ops = plan(&kernel, &to, Prune::All).await.ops;
            for op in ops.iter().take(cut) {
                apply(&kernel, std::slice::from_ref(op)).await;
                // An Op done twice is as good as once.
                if twice {
                    let once = kernel.state();
                    apply(&kernel, std::slice::from_ref(op)).await;
                    if !matches!(op, Op::Inside { change: InsideChange::Link(_), .. }) {
                        prop_assert_eq!(once, kernel.state());
                    }
                }
            }
            reach(&kernel, &to).await;
            Ok(())
        })?;
    }

    #[test]
    fn damage_is_repaired(
        desired in world(),
        harm in prop::collection::vec((0..2_usize, 0..MEMBERS, 0..10_u8), 1..4),
    ) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &desired).await;
            kernel.edit(|state| harm.iter().for_each(|(network, slot, kind)| damage(state, *network, *slot, *kind)));
            reach(&kernel, &desired).await;
        });
    }

    #[test]
    fn strangers_are_left_alone(strangers in world(), desired in world()) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &strangers).await;
            let mut ours = ours();
            ours.networks.remove(NETWORKS[0]);
            ours.networks.get_mut(NETWORKS[1]).unwrap().remove(&member_id(0));
            let before = kernel.state();
            // What strangers hold, their VNI among it, cannot be had: errors, and nothing else.
            let mut reconciler = Reconciler::new(kernel.clone());
            reconciler.reconcile(&desired, &ours, Prune::All).await;
            let after = kernel.state();
            prop_assert_eq!(before.networks.get(NETWORKS[0]), after.networks.get(NETWORKS[0]));
            let member = |state: &Observed| {
                let inside = state.networks.get(NETWORKS[1])?.members.get(&member_id(0))?.inside.clone()?;
                Some(inside)
            };
            prop_assert_eq!(member(&before), member(&after));
            Ok(())
        })?;
    }

    #[test]
    fn an_unfinished_view_removes_nothing_remote(from in world(), to in world()) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &from).await;
            let ops = plan(&kernel, &to, Prune::HoldRemote).await.ops;
            for op in &ops {
                match op {
                    Op::Fabric { network, change: FabricChange::DropRows(rows), .. } => {
                        let wanted = &to.networks[network].fabric.rows;
                        prop_assert!(rows.iter().all(|(mac, _)| wanted.contains_key(mac)));
                    }
                    Op::Member { change: MemberChange::DropNeighbours(_), .. }
                    | Op::Inside { change: InsideChange::DropPeers(_), .. } => prop_assert!(false, "{:?}", op),
                    _ => {}
                }
            }
            apply(&kernel, &ops).await;
            prop_assert_eq!(plan(&kernel, &to, Prune::HoldRemote).await.ops, vec![]);
            let here = kernel.state();
            for (name, network) in &here.networks {
                let wanted = to.networks.get(name).map(|network| &network.members);
                let present = network.members.iter().filter(|(_, member)| member.binding.is_some());
                prop_assert!(present.into_iter().all(|(id, _)| wanted.is_some_and(|wanted| wanted.contains_key(id))));
            }
            reach(&kernel, &to).await;
            Ok(())
        })?;
    }

    #[test]
    fn a_reconciler_survives_any_failure(from in world(), to in world(), nth in 0..40_usize) {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &from).await;
            let mut reconciler = Reconciler::new(kernel.clone());
            let count = std::sync::atomic::AtomicUsize::new(0);
            kernel.set_fault(move |op| {
                let now = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                (now == nth).then(|| Error::Missing { what: op.kind().to_owned() })
            });
            let report = reconciler.reconcile(&to, &ours(), Prune::All).await;
            // A VXLAN device that could not be removed keeps its VNI from the other network.
            prop_assert!(report.errors().count() <= 2);
            kernel.clear_fault();
            let report = reconciler.reconcile(&to, &ours(), Prune::All).await;
            prop_assert!(report.is_clean());
            prop_assert_eq!(plan(&kernel, &to, Prune::All).await.ops, vec![]);
            prop_assert_eq!(reconciler.reconcile(&to, &ours(), Prune::All).await.writes(), 0);
            Ok(())
        })?;
    }
}

/// One member here, one elsewhere.
fn pair() -> Network {
    let of = |chosen| [Some((chosen, chosen, false)), None, None];
    network(0, 1, &Choice { port: true, low: false, subnet: true, members: of(0), remotes: of(1) })
}

fn alone(network: Network) -> Desired {
    Desired { networks: BTreeMap::from([(NETWORKS[0].to_owned(), network.into())]) }
}

fn inside(kernel: &MemoryKernel) -> crate::observed::Inside {
    kernel.state().networks[NETWORKS[0]].members[&member_id(0)].inside.clone().unwrap()
}

/// Whose namespace and journal entry are gone is not asked about; what others have of it is.
#[test]
fn nobody_keeps_anything_of_a_member_that_vanished() {
    let here = |second| [Some((0, 0, true)), second, None];
    let all = |second, there| {
        network(0, 1, &Choice { port: true, low: false, subnet: true, members: here(second), remotes: there })
    };
    let (there, somebody) = ([Some((1, 1, true)), Some((0, 1, true)), None], Some((1, 0, true)));
    for (what, vanished, left) in [
        ("a member here", (1, (1, 0, true)), all(None, there)),
        ("one elsewhere", (4, (0, 1, true)), all(somebody, [there[0], None, None])),
    ] {
        block_on(async {
            let kernel = kernel();
            reach(&kernel, &alone(all(somebody, there))).await;
            let (slot, chosen) = vanished;
            let (id, mac, (address, _)) = (member_id(slot), mac(0, slot, chosen), addresses(slot, chosen));
            let mut ours = ours();
            kernel.edit(|state| {
                // The kernel takes port and row along with the namespace.
                let network = state.networks.get_mut(NETWORKS[0]).unwrap();
                let fabric = network.fabric.as_mut().unwrap();
                if network.members.remove(&id).is_some() {
                    fabric.ports.remove(&port_name(&id));
                    fabric.local_rows.remove(&mac);
                }
            });
            ours.networks.get_mut(NETWORKS[0]).unwrap().remove(&id);
            let left = alone(left);
            for round in 0..2 {
                let plan = diff(&kernel.observe(&ours).await.unwrap(), &left, &ours, Prune::All);
                assert_eq!(plan.ops.is_empty(), round == 1, "{what}: {:?}", plan.ops);
                apply(&kernel, &plan.ops).await;
            }
            let state = kernel.state();
            let network = &state.networks[NETWORKS[0]];
            let fabric = network.fabric.as_ref().unwrap();
            assert!(!fabric.rows.contains_key(&mac) && !fabric.local_rows.contains_key(&mac), "{what}");
            for member in network.members.values() {
                let peers = &member.inside.as_ref().unwrap().device.as_ref().unwrap().peers;
                assert!(!peers.contains_key(&key(0, slot, chosen).public()), "{what}");
                assert!(!member.binding.as_ref().unwrap().neighbours.contains_key(&address), "{what}");
            }
        });
    }
}

#[test]
fn an_interface_that_waits_for_a_runtime_is_made_once_and_never_again() {
    block_on(async {
        let (kernel, mut network) = (kernel(), pair());
        network.members.values_mut().for_each(|member| member.held = true);
        let desired = alone(network);
        reach(&kernel, &desired).await;
        let held = inside(&kernel);
        let device = held.device.expect("it waits");
        assert!(!device.up && device.addresses.is_empty() && device.peers.keys().count() == 1);
        assert!(held.unreachable.is_empty() && held.guard.is_none() && held.routes.is_empty());
        kernel.edit(|state| {
            let network = state.networks.get_mut(NETWORKS[0]).unwrap();
            network.members.get_mut(&member_id(0)).unwrap().inside.as_mut().unwrap().device = None;
        });
        assert_eq!(plan(&kernel, &desired, Prune::All).await.ops, [], "a runtime has taken it");
    });
}

#[test]
fn a_member_whose_place_changed_is_looked_at_there() {
    block_on(async {
        let (kernel, before) = (kernel(), pair());
        let mut reconciler = Reconciler::new(kernel.clone());
        let mut ours = ours();
        ours.networks.get_mut(NETWORKS[0]).unwrap().retain(|id, _| *id == member_id(0));
        reconciler.reconcile(&alone(before.clone()), &ours, Prune::All).await;
        let mut after = before;
        let place = netns(0, 1);
        after.members.get_mut(&member_id(0)).unwrap().netns = place.clone();
        ours.networks.get_mut(NETWORKS[0]).unwrap().get_mut(&member_id(0)).unwrap().netns = place;
        let report = reconciler.reconcile(&alone(after), &ours, Prune::All).await;
        assert!(report.is_clean() && report.writes() > 0, "{report:?}");
        assert!(inside(&kernel).device.is_some_and(|device| device.up));
    });
}

/// Who was built while it could not be spoken to is greeted once it can: once, and whatever else happens. An interface
/// that is being made greets nobody: nobody knows it yet, and a kernel asks again after 5 s only.
#[test]
fn a_peer_that_is_there_is_greeted_when_that_is_new() {
    block_on(async {
        let kernel = kernel();
        let mut reconciler = Reconciler::new(kernel.clone());
        // Whether the peer is to be greeted; none where there is no peer, or no network either.
        for (round, peer, looked_at, told) in [
            ("joining before anybody heard of it here", Some(Some(false)), false, Some(false)),
            ("ready", Some(Some(true)), false, Some(true)),
            ("the same", Some(Some(true)), false, None),
            ("audited", Some(Some(true)), true, None),
            ("grown up", Some(Some(false)), false, None),
            ("gone", Some(None), false, None),
            ("ready when it is first heard of", Some(Some(true)), false, Some(true)),
            ("both gone", None, false, None),
            ("ready when the member here is built", Some(Some(true)), false, Some(false)),
            ("as it was", Some(Some(true)), true, None),
        ] {
            let with = |greet: Option<bool>| {
                let mut network = pair();
                network.peers.retain(|_, _| greet.is_some());
                network.peers.values_mut().for_each(|peer| peer.greet = greet == Some(true));
                alone(network)
            };
            let desired = peer.map_or_else(Desired::default, with);
            let report = if looked_at {
                reconciler.audit(&desired, &ours(), Prune::All).await
            } else {
                reconciler.reconcile(&desired, &ours(), Prune::All).await
            };
            let peers = report.steps.iter().filter_map(|step| match &step.op {
                Op::Inside { change: InsideChange::Peers(peers), .. } => Some(peers),
                _ => None,
            });
            let greeted: Vec<bool> = peers.flat_map(|peers| peers.values().map(|peer| peer.greet)).collect();
            assert!(report.is_clean() && report.drift.is_empty(), "{round}: {report:?}");
            assert_eq!(greeted, Vec::from_iter(told), "{round}");
        }
    });
}
