//! The contract of `Kernel`, held by both twins: the one in memory, and the real one in namespaces.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::lab::{Host, Identity, NETWORK, PORT, Space, VNI, desired, network, ours, run_at};
use netplumb::plan::{FabricChange, InsideChange, MemberChange, Op, Prune, diff};
use netplumb::state::{Desired, Few, Guard, NetnsRef, Network, Ours, Vtep};
use netplumb::{Error, Kernel, MemoryKernel, NetlinkKernel, NetnsSource, Reconciler};

const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// One twin with what the contract needs around it.
trait Twin {
    type Kernel: Kernel + Clone;
    fn new() -> Self;
    fn kernel(&self) -> Self::Kernel;
    fn start_container(&mut self) -> NetnsRef;
    fn stop_container(&mut self, netns: &NetnsRef);
    /// An interface of this name that is not ours.
    fn add_link(&mut self, netns: &NetnsRef, name: &str);
    /// Another tunnel end for a MAC of the network, behind everybody's back.
    fn forge_row(&mut self, mac: netplumb::state::Mac);
}

struct InMemory {
    kernel: MemoryKernel,
    started: usize,
}

impl Twin for InMemory {
    type Kernel = MemoryKernel;
    fn new() -> Self {
        InMemory { kernel: MemoryKernel::new(LOCAL.into(), 1500), started: 0 }
    }
    fn kernel(&self) -> MemoryKernel {
        self.kernel.clone()
    }
    fn start_container(&mut self) -> NetnsRef {
        self.started += 1;
        self.kernel.start_container(format!("/containers/{}", self.started), None)
    }
    fn stop_container(&mut self, netns: &NetnsRef) {
        self.kernel.stop_container(&netns.path);
    }
    fn add_link(&mut self, netns: &NetnsRef, name: &str) {
        self.kernel.edit_container(&netns.path, |container| _ = container.links.insert(name.to_owned()));
    }
    fn forge_row(&mut self, mac: netplumb::state::Mac) {
        let vtep = Vtep { address: Ipv4Addr::new(192, 0, 2, 99).into(), port: PORT };
        self.kernel.edit(|state| {
            let fabric = state.networks.get_mut(NETWORK).and_then(|network| network.fabric.as_mut()).unwrap();
            fabric.rows.insert(mac, Few::from([vtep]));
        });
    }
}

struct Real {
    host: Host,
    containers: BTreeMap<PathBuf, Space>,
}

impl Twin for Real {
    type Kernel = NetlinkKernel;
    fn new() -> Self {
        let host = Host::new();
        host.space
            .run(&format!("ip link add u0 type bridge; ip addr add {LOCAL}/24 dev u0; ip link set u0 up"));
        Real { host, containers: BTreeMap::new() }
    }
    fn kernel(&self) -> NetlinkKernel {
        self.host.kernel.clone()
    }
    fn start_container(&mut self) -> NetnsRef {
        let space = Space::new();
        let netns = space.netns();
        self.containers.insert(netns.path.clone(), space);
        netns
    }
    fn stop_container(&mut self, netns: &NetnsRef) {
        self.containers.remove(&netns.path);
    }
    fn add_link(&mut self, netns: &NetnsRef, name: &str) {
        self.containers[&netns.path].run(&format!("ip link add {name} type bridge"));
    }
    fn forge_row(&mut self, mac: netplumb::state::Mac) {
        let fabric = self.host.netns_of(&format!("net-{NETWORK}"));
        run_at(&fabric, &format!("bridge fdb replace {mac} dev vxlan0 self permanent dst 192.0.2.99"));
    }
}

/// One member here, one elsewhere.
fn world(netns: &NetnsRef) -> (Vec<Identity>, Desired) {
    let everybody = vec![Identity::new("a", 10, LOCAL), Identity::new("b", 11, REMOTE)];
    let desired = wanted(&everybody, netns);
    (everybody, desired)
}

fn wanted(everybody: &[Identity], netns: &NetnsRef) -> Desired {
    desired(network(LOCAL, everybody, &BTreeMap::from([("a".to_owned(), netns.clone())])))
}

async fn left_to_do<K: Kernel>(
    kernel: &K,
    desired: &Desired,
    ours: &Ours,
    prune: Prune,
) -> Vec<&'static str> {
    let observed = kernel.observe(ours).await.unwrap();
    diff(&observed, desired, ours, prune).ops.iter().map(Op::kind).collect()
}

async fn builds_and_removes<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let (_, desired) = world(&netns);
    let journal = ours(&desired);
    let ops = diff(&kernel.observe(&journal).await.unwrap(), &desired, &journal, Prune::All).ops;
    for op in &ops {
        for _ in 0..2 {
            kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }
    assert_eq!(left_to_do(&kernel, &desired, &journal, Prune::All).await, [""; 0]);
    let traffic = kernel.traffic(&journal).await;
    assert_eq!(traffic.len(), 1);
    assert_eq!((traffic[0].member.as_str(), traffic[0].handshake), ("a", None));

    let nothing = Desired::default();
    let ops = diff(&kernel.observe(&journal).await.unwrap(), &nothing, &journal, Prune::HoldRemote).ops;
    for op in &ops {
        for _ in 0..2 {
            kernel.apply(op).await.unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }
    assert_eq!(left_to_do(&kernel, &nothing, &journal, Prune::All).await, [""; 0]);
    let inside =
        kernel.observe(&journal).await.unwrap().networks[NETWORK].members["a"].inside.clone().unwrap();
    assert!(
        inside.loopback && inside.unreachable.is_empty() && inside.guard.is_none() && inside.device.is_none()
    );
}

async fn peers_come_and_go<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let (mut everybody, first) = world(&netns);
    let journal = ours(&first);
    let mut reconciler = Reconciler::new(kernel.clone());
    assert!(reconciler.reconcile(&first, &journal, Prune::All).await.is_clean());
    assert_eq!(reconciler.reconcile(&first, &journal, Prune::All).await.writes(), 0);

    for last in 20..60 {
        everybody.push(Identity::new(&format!("c{last}"), last, REMOTE));
    }
    let many = wanted(&everybody, &netns);
    let report = reconciler.reconcile(&many, &journal, Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    assert_eq!(report.writes(), 3, "rows, neighbours and peers, each in one batch");
    assert_eq!(left_to_do(&kernel, &many, &journal, Prune::All).await, [""; 0]);

    // An unfinished view holds them; a whole one does not.
    assert_eq!(reconciler.reconcile(&first, &journal, Prune::HoldRemote).await.writes(), 0);
    assert_eq!(left_to_do(&kernel, &first, &journal, Prune::HoldRemote).await, [""; 0]);
    assert_eq!(reconciler.reconcile(&first, &journal, Prune::All).await.writes(), 3);
    assert_eq!(left_to_do(&kernel, &first, &journal, Prune::All).await, [""; 0]);

    // A peer that moved to another host and address is replaced in place.
    everybody.truncate(2);
    everybody[1].host = Ipv4Addr::new(192, 0, 2, 3);
    everybody[1].address = Ipv4Addr::new(10, 240, 2, 2);
    let moved = wanted(&everybody, &netns);
    let report = reconciler.reconcile(&moved, &journal, Prune::All).await;
    let kinds: Vec<&str> = report.steps.iter().map(|step| step.op.kind()).collect();
    assert_eq!(kinds, ["drop-neighbours", "rows", "neighbours", "peers"]);
    assert_eq!(left_to_do(&kernel, &moved, &journal, Prune::All).await, [""; 0]);
}

async fn every_value_changes_in_place<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let (mut everybody, first) = world(&netns);
    let journal = ours(&first);
    let mut reconciler = Reconciler::new(kernel.clone());
    assert!(reconciler.reconcile(&first, &journal, Prune::All).await.is_clean());
    everybody[0].address = Ipv4Addr::new(10, 240, 3, 255);
    let mut second = wanted(&everybody, &netns);
    let network = Arc::make_mut(second.networks.get_mut(NETWORK).unwrap());
    network.fabric.alias = "warren other".to_owned();
    network.fabric.mtu = 1400;
    network.fabric.local.address = Ipv4Addr::new(192, 0, 2, 7).into();
    let member = network.members.get_mut("a").unwrap();
    (member.mtu, member.address6, member.guard) = (1340, None, Guard::None);
    let report = reconciler.reconcile(&second, &journal, Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    assert_eq!(left_to_do(&kernel, &second, &journal, Prune::All).await, [""; 0]);
    let kinds: Vec<&str> = report.steps.iter().map(|step| step.op.kind()).collect();
    assert!(
        !kinds.iter().any(|kind| ["link", "drop-link", "drop-vxlan", "drop-binding"].contains(kind)),
        "{kinds:?}"
    );

    // Another key is another interface and another MAC; another subnet is other routes.
    everybody[0] = Identity { id: "a".to_owned(), ..Identity::new("x", 99, LOCAL) };
    let mut third = wanted(&everybody, &netns);
    let network = Arc::make_mut(third.networks.get_mut(NETWORK).unwrap());
    (network.fabric.vni, network.fabric.local.port) = (VNI + 1, PORT + 1);
    let member = network.members.get_mut("a").unwrap();
    member.subnet = "10.240.0.0/20".parse().unwrap();
    let report = reconciler.reconcile(&third, &journal, Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    assert_eq!(left_to_do(&kernel, &third, &journal, Prune::All).await, [""; 0]);
}

async fn a_vni_is_held_once<T: Twin>() {
    let mut twin = T::new();
    let kernel = twin.kernel();
    let (_, first) = world(&twin.start_container());
    let mut both = first.clone();
    let mut second = Network::clone(&first.networks[NETWORK]);
    let mut member = second.members.remove("a").unwrap();
    member.netns = twin.start_container();
    second.members.insert("z".to_owned(), member);
    both.networks.insert("pn-2".to_owned(), Arc::new(second));
    let mut reconciler = Reconciler::new(kernel.clone());
    let report = reconciler.reconcile(&both, &ours(&both), Prune::All).await;
    assert!(report.failed(NETWORK, "a").is_none());
    assert!(matches!(report.failed("pn-2", "z"), Some(Error::VniInUse { vni: VNI, port: PORT })));
    // On another port the same VNI is another one.
    Arc::make_mut(both.networks.get_mut("pn-2").unwrap()).fabric.local.port = PORT + 1;
    let report = reconciler.reconcile(&both, &ours(&both), Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    // Two networks exchange their VNIs.
    Arc::make_mut(both.networks.get_mut("pn-2").unwrap()).fabric.local.port = PORT;
    Arc::make_mut(both.networks.get_mut("pn-2").unwrap()).fabric.vni = VNI + 1;
    assert!(reconciler.reconcile(&both, &ours(&both), Prune::All).await.is_clean());
    Arc::make_mut(both.networks.get_mut(NETWORK).unwrap()).fabric.vni = VNI + 1;
    Arc::make_mut(both.networks.get_mut("pn-2").unwrap()).fabric.vni = VNI;
    let report = reconciler.reconcile(&both, &ours(&both), Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    assert_eq!(left_to_do(&kernel, &both, &ours(&both), Prune::All).await, [""; 0]);
}

async fn a_container_ends<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let seen = kernel.identify(&NetnsSource::Path(netns.path.clone())).await.unwrap();
    assert_eq!((&seen.netns, seen.own, seen.ipv6, seen.nf_tables), (&netns, false, true, true));
    assert!(seen.links.contains("lo") && seen.addresses.iter().all(|net| net.addr().is_loopback()));
    assert!(kernel.alive(&netns, seen.inode).await);
    assert!(!kernel.alive(&netns, seen.inode + 1).await);
    let (_, desired) = world(&netns);
    let journal = ours(&desired);
    let mut reconciler = Reconciler::new(kernel.clone());
    assert!(reconciler.reconcile(&desired, &journal, Prune::All).await.is_clean());

    twin.stop_container(&netns);
    assert!(!kernel.alive(&netns, seen.inode).await);
    assert!(matches!(
        kernel.identify(&NetnsSource::Path(netns.path.clone())).await,
        Err(Error::NetnsGone(_))
    ));
    let report = reconciler.audit(&desired, &journal, Prune::All).await;
    assert!(matches!(report.failed(NETWORK, "a"), Some(Error::NetnsGone(_))), "{report:?}");
    // Every removal in a namespace that is gone is done already.
    let site = netplumb::plan::Site { netns: netns.clone(), ifname: "wg0".to_owned() };
    for change in [InsideChange::DropLink, InsideChange::DropGuard] {
        let (network, member) = (NETWORK.to_owned(), "a".to_owned());
        kernel.apply(&Op::Inside { network, member, site: site.clone(), change }).await.ok();
    }
    let report = reconciler.reconcile(&Desired::default(), &journal, Prune::All).await;
    assert!(report.is_clean(), "{:?}", report.errors().collect::<Vec<_>>());
    assert_eq!(left_to_do(&kernel, &Desired::default(), &journal, Prune::All).await, [""; 0]);
}

async fn members_of_a_lost_journal_are_found<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let (_, desired) = world(&netns);
    let private_key = desired.networks[NETWORK].members["a"].private_key.clone();
    let wanted = BTreeMap::from([("a".to_owned(), private_key.public())]);
    assert_eq!(kernel.find(&wanted).await, []);
    let mut reconciler = Reconciler::new(kernel.clone());
    assert!(reconciler.reconcile(&desired, &ours(&desired), Prune::All).await.is_clean());
    let found = kernel.find(&wanted).await;
    let expected =
        found.iter().map(|f| (f.member.as_str(), f.netns.cookie, f.ifname.as_str(), &f.private_key));
    assert_eq!(expected.collect::<Vec<_>>(), [("a", netns.cookie, "wg0", &private_key)]);
    let other = BTreeMap::from([("a".to_owned(), netplumb::state::PrivateKey([9; 32]).public())]);
    assert_eq!(kernel.find(&other).await, [], "another key is another member");
    twin.stop_container(&netns);
    assert_eq!(kernel.find(&wanted).await, []);
}

async fn a_name_that_is_taken_stays_whose_it_is<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    twin.add_link(&netns, "wg0");
    let (_, desired) = world(&netns);
    let journal = ours(&desired);
    let mut reconciler = Reconciler::new(kernel.clone());
    let report = reconciler.reconcile(&desired, &journal, Prune::All).await;
    assert!(matches!(report.failed(NETWORK, "a"), Some(Error::NameTaken { .. })), "{report:?}");
    assert!(reconciler.reconcile(&Desired::default(), &journal, Prune::All).await.is_clean());
    assert!(kernel.identify(&NetnsSource::Path(netns.path.clone())).await.unwrap().links.contains("wg0"));
}

async fn drift_is_seen_counted_and_repaired<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let (everybody, desired) = world(&netns);
    let journal = ours(&desired);
    let mut reconciler = Reconciler::new(kernel.clone());
    assert!(reconciler.reconcile(&desired, &journal, Prune::All).await.is_clean());
    assert!(reconciler.audit(&desired, &journal, Prune::All).await.drift.is_empty());
    twin.forge_row(everybody[1].mac());
    assert_eq!(reconciler.reconcile(&desired, &journal, Prune::All).await.writes(), 0, "not looked at");
    let report = reconciler.audit(&desired, &journal, Prune::HoldRemote).await;
    assert_eq!(report.drift.iter().map(|op| op.kind()).collect::<Vec<_>>(), ["rows"]);
    assert!(report.is_clean());
    assert_eq!(left_to_do(&kernel, &desired, &journal, Prune::All).await, [""; 0]);
}

async fn errors_name_what_is_missing<T: Twin>() {
    let mut twin = T::new();
    let (kernel, netns) = (twin.kernel(), twin.start_container());
    let network = || "pn-none".to_owned();
    let orphans = [
        Op::Fabric { network: network(), change: FabricChange::Bridge { mtu: 1450 } },
        Op::Member {
            network: network(),
            member: "a".to_owned(),
            change: MemberChange::Ethernet { address: "10.240.0.1/22".parse().unwrap() },
        },
        Op::Inside {
            network: network(),
            member: "a".to_owned(),
            site: netplumb::plan::Site { netns: netns.clone(), ifname: "wg0".to_owned() },
            change: InsideChange::LinkUp,
        },
    ];
    for op in orphans {
        assert!(matches!(kernel.apply(&op).await, Err(Error::Missing { .. })), "{op:?}");
    }
    let recycled = NetnsRef { cookie: netns.cookie + 1000, ..netns };
    let site = netplumb::plan::Site { netns: recycled, ifname: "wg0".to_owned() };
    let (network, member) = (network(), "a".to_owned());
    let op = Op::Inside { network, member, site, change: InsideChange::Loopback };
    assert!(matches!(kernel.apply(&op).await, Err(Error::NetnsRecycled(_))));
    assert_eq!(kernel.underlay_mtu(LOCAL.into()).await.unwrap(), 1500);
    assert!(matches!(kernel.underlay_mtu(REMOTE.into()).await, Err(Error::NoSuchAddress(_))));
    assert_eq!(kernel.preflight().await, []);
}

macro_rules! contract {
    ($($law:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $law() {
                super::$law::<super::InMemory>().await;
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $law() {
                super::$law::<super::Real>().await;
            })*
        }
    };
}

contract!(
    builds_and_removes,
    peers_come_and_go,
    every_value_changes_in_place,
    a_vni_is_held_once,
    a_container_ends,
    members_of_a_lost_journal_are_found,
    a_name_that_is_taken_stays_whose_it_is,
    drift_is_seen_counted_and_repaired,
    errors_name_what_is_missing,
);

/// A process is taken hold of by its pid, and only while it lives.
#[tokio::test]
async fn a_process_is_identified_by_pid() {
    let host = Host::new();
    let space = Space::new();
    let mut child = space.enter(|| std::process::Command::new("sleep").arg("60").spawn().unwrap());
    let source = |inode| NetnsSource::Pid { pid: child.id(), inode };
    let seen = host.kernel.identify(&source(None)).await.unwrap();
    assert_eq!(seen.netns.cookie, space.netns().cookie);
    assert_eq!(host.kernel.identify(&source(Some(seen.inode))).await.unwrap(), seen);
    let other = host.kernel.identify(&source(Some(seen.inode + 1))).await;
    assert!(matches!(other, Err(Error::NetnsRecycled(_))));
    let source = source(None);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(host.kernel.identify(&source).await, Err(Error::ProcessGone(_))));
    let own = NetnsSource::Path(host.space.path());
    assert!(host.kernel.identify(&own).await.unwrap().own);
    let none = NetnsSource::Path("/proc/self/ns/mnt".into());
    assert!(matches!(host.kernel.identify(&none).await, Err(Error::NotNetns(_))));
}
