//! What holds for the kernel's own WireGuard alone. Needs that module: `make e2e-kernel`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use crate::datapath::{HOSTS, World, assert_clean, assert_settled, build_members};
use crate::lab::{Host, Identity, NETWORK, Space, desired, network, ours};
use netplumb::plan::{InsideChange, Op, Prune, Site};
use netplumb::state::{Addresses, Desired, Key, Mac, Peer};
use netplumb::{Backend, Error, Kernel, Reconciler};
use tokio::time::Instant;

/// As many as a network's subnet has addresses for.
const MANY: u16 = 1022;

fn world() -> World {
    World::of([Host::with(Backend::Kernel), Host::with(Backend::Kernel)])
}

/// The member with this number: an IPv4 and an IPv6 address, so that dumps split it.
fn peer(number: u16) -> (Key, Peer) {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&number.to_be_bytes());
    key[2] = 1;
    let key = Key(key);
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 240, 0, 0)) + u32::from(number));
    let address6: IpAddr = format!("fd00:0:0:1::{number:x}").parse().unwrap();
    let peer = Peer {
        endpoint: SocketAddrV4::new(address, 51820),
        mac: Mac::of_key(&key),
        allowed: Addresses::from([address.into(), address6]),
        greet: true,
    };
    (key, peer)
}

/// One member here, and peers with these numbers.
fn crowd(here: &Identity, container: &Space, numbers: impl Iterator<Item = u16>) -> Desired {
    let containers = BTreeMap::from([(here.id.clone(), container.netns())]);
    let mut network = network(HOSTS[0], std::slice::from_ref(here), &containers);
    network.peers = numbers.map(peer).collect();
    desired(network)
}

#[tokio::test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
async fn a_thousand_peers_are_set_read_back_and_removed() {
    let host = Host::with(Backend::Kernel);
    let container = Space::new();
    let here = Identity { address: Ipv4Addr::new(10, 240, 3, 254), ..Identity::new("a", 1, HOSTS[0]) };
    let mut reconciler = Reconciler::new(host.kernel.clone());
    let alone = crowd(&here, &container, 0..0);
    let journal = ours(&alone);
    assert_clean(&reconciler.reconcile(&alone, &journal, Prune::All).await);

    let all = crowd(&here, &container, 1..MANY);
    let started = Instant::now();
    assert_clean(&reconciler.reconcile(&all, &journal, Prune::All).await);
    let set = started.elapsed();
    let shown = container.run("wg show wg0 allowed-ips");
    assert_eq!((shown.lines().count(), shown.split_whitespace().count()), (1021, 3 * 1021), "{shown}");
    assert!(container.run("wg show wg0 persistent-keepalive | sort -u").lines().all(|l| l.ends_with("off")));
    let started = Instant::now();
    assert_settled(&host.kernel, &all, &journal).await;
    let looked = started.elapsed();
    assert_eq!(host.kernel.traffic(&journal).await.len(), 1021, "each is counted once");

    // One who comes, one who goes and one who moves are nobody else's business.
    let mut changed = crowd(&here, &container, 2..=MANY);
    let (key, mut moved) = peer(2);
    moved.endpoint.set_port(7);
    let peers = &mut Arc::make_mut(changed.networks.get_mut(NETWORK).unwrap()).peers;
    peers.insert(key, moved);
    let started = Instant::now();
    let report = reconciler.reconcile(&changed, &journal, Prune::All).await;
    let differed = started.elapsed();
    assert_clean(&report);
    let sizes = report.steps.iter().map(|step| match &step.op {
        Op::Inside { change: InsideChange::Peers(peers), .. } => peers.len(),
        Op::Inside { change: InsideChange::DropPeers(peers), .. } => peers.len(),
        _ => 0,
    });
    assert_eq!(sizes.sum::<usize>(), 3);
    assert_settled(&host.kernel, &changed, &journal).await;

    let started = Instant::now();
    assert_clean(&reconciler.reconcile(&alone, &journal, Prune::All).await);
    let dropped = started.elapsed();
    assert_eq!(container.run("wg show wg0 peers"), "");
    println!(
        "1,021 peers: set {set:?}, looked at {looked:?}, three changed {differed:?}, removed {dropped:?}"
    );
}

/// wireguard-control makes an interface where there is none, in whatever namespace it is called.
#[tokio::test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
async fn nothing_is_made_or_changed_that_is_not_ours() {
    let mut world = world();
    world.attach().await;
    let container = &world.containers[0];
    let site = Site { netns: container.netns(), ifname: "wg0".to_owned() };
    let set = |change| Op::Inside {
        network: NETWORK.to_owned(),
        member: "a".to_owned(),
        site: site.clone(),
        change,
    };
    let ops = [
        set(InsideChange::Peers(BTreeMap::from([peer(7)]))),
        set(InsideChange::DropPeers(BTreeSet::from([peer(7).0]))),
    ];
    container.run("ip link del wg0");
    for op in &ops {
        let error = world.hosts[0].kernel.apply(op).await.unwrap_err();
        assert!(matches!(&error, Error::Missing { .. } | Error::Netlink { .. }), "{error:?}");
        assert!(!container.succeeds("ip link show wg0"), "after {op:?}");
    }
    // Somebody else's WireGuard of the same name.
    container.run("ip link add wg0 type wireguard");
    let before = container.run("wg show wg0 dump; ip -d link show wg0");
    for op in &ops {
        world.hosts[0].kernel.apply(op).await.unwrap_err();
    }
    let desired = world.desired(0);
    let report = world.reconcilers[0].audit(&desired, &ours(&desired), Prune::All).await;
    assert!(matches!(report.failed(NETWORK, "a"), Some(Error::NameTaken { .. })), "{report:?}");
    assert_eq!(container.run("wg show wg0 dump; ip -d link show wg0"), before);
    assert!(!world.hosts[0].space.succeeds("ip link show wg0"));
    container.run("ip link del wg0");
    assert_clean(&world.reconcilers[0].audit(&desired, &ours(&desired), Prune::All).await);
    assert!(world.ping(56));
}

/// The kernel keeps it, dead for good: "link up" is ENONET.
#[tokio::test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
async fn an_interface_whose_binding_namespace_is_gone_is_made_anew() {
    let mut world = world();
    world.attach().await;
    assert!(world.ping(56));
    let binding = world.hosts[0].netns_of("bind-a");
    let index = |world: &World| world.containers[0].run("cat /proc/net/dev_snmp6/wg0 | head -1");
    let before = index(&world);
    rustix::mount::unmount(&binding, rustix::mount::UnmountFlags::DETACH).unwrap();
    let desired = world.desired(0);
    // The socket that is kept of it is of the old one.
    let report = world.reconcilers[0].audit(&desired, &ours(&desired), Prune::All).await;
    assert_clean(&report);
    assert!(report.drift.iter().any(|op| op.kind() == "link"), "{report:?}");
    assert_ne!(index(&world), before);
    world.assert_settled(0).await;
    assert!(world.ping(56));
}

#[tokio::test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
async fn a_host_changes_its_backend_under_its_containers() {
    let mut world = World::of([Host::with(Backend::Userspace), Host::with(Backend::Kernel)]);
    world.attach().await;
    assert!(world.ping(56), "one of each");
    for backend in [Backend::Kernel, Backend::Userspace] {
        world.hosts[0].restart_with(backend);
        world.reconcilers[0] = Reconciler::new(world.hosts[0].kernel.clone());
        world.attach().await;
        world.assert_settled(0).await;
        // To the peer the kernel's first initiations may be older than the engine's last, for 27 s: see ARCHITECTURE.
        assert!((0..8).any(|_| world.ping(56)), "{backend:?}");
        let kernels = world.containers[0].run("ip -d link show wg0").contains("wireguard");
        assert_eq!(kernels, backend == Backend::Kernel);
    }
}

#[tokio::test]
#[ignore = "needs WireGuard in the kernel: make e2e-kernel"]
async fn members_are_built_by_kernel_and_engine() {
    for (whose, backend) in [("the kernel's", Backend::Kernel), ("the engine's", Backend::Userspace)] {
        let took = build_members(World::of([Host::with(backend), Host::with(backend)])).await;
        println!("one member with {whose} WireGuard: {took}");
    }
}
