//! Two hosts and their containers out of namespaces, driven as an agent would: real packets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crate::lab::{Host, Identity, NETWORK, Space, VNI, desired, network, ours, run_at};
use netplumb::engine::{Framing, open_tun};
use netplumb::plan::{Prune, diff};
use netplumb::reconciler::Outcome;
use netplumb::state::{Desired, Ours};
use netplumb::{Error, Kernel, NetlinkKernel, Reconciler, Report};
use tokio::time::Instant;

pub const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// Long enough for a loaded machine; success comes at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Two hosts on one link, one container on each with a way out through its host, both attached.
pub struct World {
    pub hosts: [Host; 2],
    pub containers: [Space; 2],
    pub reconcilers: [Reconciler<NetlinkKernel>; 2],
    pub everybody: [Identity; 2],
}

impl World {
    fn new() -> World {
        World::of([Host::new(), Host::new()])
    }

    pub fn of(hosts: [Host; 2]) -> World {
        let there = hosts[1].space.path();
        hosts[0].space.run(&format!("ip link add u0 type veth peer name u0 netns {}", there.display()));
        for (host, address) in hosts.iter().zip(HOSTS) {
            host.space.run(&format!("ip addr add {address}/24 dev u0; ip link set u0 up"));
        }
        let containers = [Space::new(), Space::new()];
        for (host, container) in hosts.iter().zip(&containers) {
            let inside = container.path();
            host.space
                .run(&format!("ip link add docker0 type veth peer name eth0 netns {}", inside.display()));
            host.space.run("ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
            container.run("ip addr add 172.17.0.2/16 dev eth0; ip link set eth0 up");
            container.run("ip route add default via 172.17.0.1");
        }
        let everybody = [Identity::new("a", 10, HOSTS[0]), Identity::new("b", 11, HOSTS[1])];
        let reconcilers = [0, 1].map(|i: usize| Reconciler::new(hosts[i].kernel.clone()));
        World { hosts, containers, reconcilers, everybody }
    }

    pub fn desired(&self, i: usize) -> Desired {
        let netns = BTreeMap::from([(self.everybody[i].id.clone(), self.containers[i].netns())]);
        desired(network(HOSTS[i], &self.everybody, &netns))
    }

    pub async fn attach(&mut self) {
        for i in [0, 1] {
            let desired = self.desired(i);
            let report = self.reconcilers[i].reconcile(&desired, &ours(&desired), Prune::All).await;
            assert_clean(&report);
        }
    }

    /// Nothing is left to do: what is there is what should be.
    pub async fn assert_settled(&self, i: usize) {
        let desired = self.desired(i);
        assert_settled(&self.hosts[i].kernel, &desired, &ours(&desired)).await;
    }

    pub fn ping(&self, size: usize) -> bool {
        let to = self.everybody[1].address;
        self.containers[0].succeeds(&format!("ping -c 1 -W 5 -M do -s {size} {to}"))
    }
}

pub async fn assert_settled(kernel: &NetlinkKernel, desired: &Desired, ours: &Ours) {
    let observed = kernel.observe(ours).await.unwrap();
    assert_eq!(diff(&observed, desired, ours, Prune::All).ops, [], "{observed:#?}");
}

pub fn assert_clean(report: &Report) {
    assert!(report.is_clean(), "{:?} {:?}", report.errors().collect::<Vec<_>>(), report.unseen);
}

#[tokio::test]
async fn packets_pass_between_hosts_whole_and_encrypted() {
    let mut world = World::new();
    world.attach().await;
    for i in [0, 1] {
        world.assert_settled(i).await;
    }
    assert!(world.ping(56), "{}", world.containers[0].run("ip a; ip r; ip neigh"));
    assert!(world.ping(1390 - 28), "a full packet with DF");
    assert!(!world.ping(1391 - 28), "one byte more than the MTU");
    let to = world.everybody[1].address6();
    assert!(world.containers[0].succeeds(&format!("ping -c 1 -W 5 {to}")));

    let server = world.everybody[1].address;
    let listener = world.containers[1].enter(|| TcpListener::bind((server, 80)).unwrap());
    let client = world.containers[0]
        .enter(|| TcpStream::connect_timeout(&SocketAddr::from((server, 80)), PATIENCE).unwrap());
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), world.everybody[0].address);
    drop(client);
}

#[tokio::test]
async fn a_forged_frame_moves_no_row() {
    let mut world = World::new();
    world.attach().await;
    assert!(world.ping(56));
    let fabric = world.hosts[0].netns_of(&format!("net-{NETWORK}"));
    let rows = || run_at(&fabric, "bridge fdb show | sort");
    let before = rows();
    // VXLAN header, then an Ethernet broadcast whose source is the member on host 0 itself.
    let mut frame = vec![8, 0, 0, 0, 0, 0, VNI as u8, 0];
    frame.extend([0xff; 6]);
    frame.extend(world.everybody[0].mac().0);
    frame.extend([0x08, 0x06]);
    frame.extend([0; 46]);
    let received = || {
        run_at(&fabric, "cat /proc/net/dev | grep vxlan0 | awk '{print $3}'").trim().parse::<u64>().unwrap()
    };
    let count = received();
    world.hosts[1].space.enter(|| {
        let socket = UdpSocket::bind((HOSTS[1], 0)).unwrap();
        socket.send_to(&frame, (HOSTS[0], 4789)).unwrap();
    });
    let deadline = Instant::now() + PATIENCE;
    while received() == count && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(received() > count, "the frame arrived");
    assert_eq!(rows(), before);
    world.assert_settled(0).await;
    assert!(world.ping(56));
}

#[tokio::test]
async fn without_the_interface_nothing_leaves_in_clear() {
    let mut world = World::new();
    world.attach().await;
    let to = world.everybody[1].address;
    let container = &world.containers[0];
    assert!(container.run(&format!("ip route get {to}")).contains("dev wg0"));
    container.run("ip link del wg0");
    let answer = container.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().connect((to, 1)).unwrap_err());
    assert_eq!(answer.raw_os_error(), Some(libc::EHOSTUNREACH));
    assert!(container.run("ip route get 1.1.1.1").contains("dev eth0"), "the rest goes its way");

    let desired = world.desired(0);
    let report = world.reconcilers[0].audit(&desired, &ours(&desired), Prune::All).await;
    assert_clean(&report);
    assert_eq!(report.drift.iter().filter(|op| op.kind() == "link").count(), 1);
    world.assert_settled(0).await;
    assert!(world.ping(56));
}

#[tokio::test]
async fn a_member_moves_to_another_address_and_keeps_its_interface() {
    let mut world = World::new();
    world.attach().await;
    assert!(world.ping(56));
    let index = |world: &World| {
        world.containers[0].run("cat /sys/class/net/wg0/ifindex; ip -o link show wg0 | cut -d: -f1")
    };
    let before = index(&world);
    world.everybody[0].address = Ipv4Addr::new(10, 240, 1, 77);
    world.attach().await;
    for i in [0, 1] {
        world.assert_settled(i).await;
    }
    assert_eq!(index(&world), before);
    assert!(world.ping(56));
    assert!(world.containers[0].run("ip -4 -o addr show wg0").contains("10.240.1.77/32"));
    assert!(!world.containers[0].run("ip -4 -o addr show wg0").contains("10.240.0.10"));
}

#[tokio::test]
async fn another_vni_or_mtu_re_makes_the_vxlan_device_only() {
    let mut world = World::new();
    world.attach().await;
    assert!(world.ping(56));
    for i in [0, 1] {
        let mut desired = world.desired(i);
        let network = Arc::make_mut(desired.networks.get_mut(NETWORK).unwrap());
        network.fabric.vni = 77;
        network.fabric.mtu = 1400;
        network.members.values_mut().for_each(|member| member.mtu = 1340);
        let journal = ours(&desired);
        let report = world.reconcilers[i].reconcile(&desired, &journal, Prune::All).await;
        assert_clean(&report);
        assert_settled(&world.hosts[i].kernel, &desired, &journal).await;
        let kinds: Vec<&str> = report.steps.iter().map(|step| step.op.kind()).collect();
        assert!(kinds.contains(&"drop-vxlan") && !kinds.contains(&"link"), "{kinds:?}");
    }
    assert!(world.ping(1340 - 28));
}

#[tokio::test]
async fn detach_leaves_nothing_behind_and_touches_nothing_else() {
    let mut world = World::new();
    let container = &world.containers[0];
    container.run("nft add table inet other; nft add chain inet other c");
    // The kernel's own IPv6 routes of eth0 come when it has found its address to be unique.
    let state = "ip -o link | cut -d@ -f1 | awk '{print $2}'; ip -4 addr show dev eth0; ip -4 route show table all; ip -6 route show table all proto 87; nft list ruleset";
    let before = container.run(state);
    let links = world.hosts[0].space.run("ip -o link");
    world.attach().await;
    assert_eq!(world.hosts[0].space.run("ip -o link"), links, "nothing of ours in the host's namespace");
    let journal = ours(&world.desired(0));
    let report = world.reconcilers[0].reconcile(&Desired::default(), &journal, Prune::HoldRemote).await;
    assert_clean(&report);
    assert_eq!(world.containers[0].run(state), before);
    assert_eq!(world.hosts[0].namespaces().len(), 0);
    assert_settled(&world.hosts[0].kernel, &Desired::default(), &journal).await;
    // The VNI of a namespace on its way out is in use for a moment: not an error.
    world.attach().await;
    assert!(world.ping(56));
}

/// The userspace interface goes with its engine, as with an agent that ended; what stays bears our
/// mark, and nothing names it any more.
#[tokio::test]
async fn what_a_lost_journal_leaves_is_removed() {
    let mut world = World::new();
    let state = "ip -4 route show table all; ip -6 route show table all proto 87; nft list ruleset";
    let before = world.containers[0].run(state);
    world.attach().await;
    let netns = world.containers[0].netns();
    let source = netplumb::NetnsSource::Path(netns.path.clone());
    let kernel = world.hosts[0].kernel.clone();
    world.containers[0].run("ip link del wg0");
    let seen = kernel.identify(&source).await.unwrap();
    assert!(seen.leftovers);
    assert!(seen.routes.iter().all(|route| route.device.as_deref() == Some("eth0")), "{:?}", seen.routes);
    kernel.sweep(&Ours::default()).await.unwrap();
    kernel.clean(&netns).await.unwrap();
    assert_eq!(world.hosts[0].namespaces().len(), 0);
    assert_eq!(world.containers[0].run(state), before);
    assert!(!kernel.identify(&source).await.unwrap().leftovers);
}

/// An agent starts and has no word of a member any more, whose container is gone; another one of the network lives on.
#[tokio::test]
async fn what_a_vanished_member_leaves_is_removed_beside_one_that_lives() {
    let mut world = World::new();
    let (gone, container) = (Identity::new("c", 12, HOSTS[0]), Space::new());
    let [a, b] = world.everybody.clone();
    let all = [a.clone(), b, gone.clone()];
    let here = |ids: &[&str]| {
        let netns = |id: &&str| if **id == a.id { world.containers[0].netns() } else { container.netns() };
        ids.iter().map(|id| ((*id).to_owned(), netns(id))).collect::<BTreeMap<_, _>>()
    };
    let both = desired(network(HOSTS[0], &all, &here(&["a", "c"])));
    let alone = world.desired(0);
    let there = BTreeMap::from([("b".to_owned(), world.containers[1].netns())]);
    let there = desired(network(HOSTS[1], &all, &there));
    for (i, desired) in [(0, &both), (1, &there)] {
        assert_clean(&world.reconcilers[i].reconcile(desired, &ours(desired), Prune::All).await);
    }
    assert!(world.ping(56));

    drop(container);
    let kernel = world.hosts[0].kernel.clone();
    kernel.sweep(&ours(&alone)).await.unwrap();
    world.reconcilers[0] = Reconciler::new(kernel.clone());
    for i in [0, 1] {
        let desired = world.desired(i);
        assert_clean(&world.reconcilers[i].reconcile(&desired, &ours(&desired), Prune::All).await);
    }
    let trace = |i: usize, binding: &str| {
        let host = &world.hosts[i];
        let rows = run_at(&host.netns_of("net-pn-1"), "bridge fdb show");
        let neighbours = run_at(&host.netns_of(binding), "ip neigh show");
        [rows, neighbours]
            .join("\n")
            .lines()
            .filter(|line| {
                line.contains(&gone.mac().to_string()) || line.contains(&format!("{} ", gone.address))
            })
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let start = Instant::now();
    // The kernel takes namespaces away in the background.
    while !(trace(0, "bind-a").is_empty() && trace(1, "bind-b").is_empty()) {
        assert!(start.elapsed() < PATIENCE, "{:?} {:?}", trace(0, "bind-a"), trace(1, "bind-b"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!world.hosts[0].namespaces().contains("bind-c"));
    for i in [0, 1] {
        let seen = world.hosts[i].kernel.observe(&ours(&world.desired(i))).await.unwrap();
        let members = &seen.networks[NETWORK].members;
        let peers = members.values().map(|m| &m.inside.as_ref().unwrap().device.as_ref().unwrap().peers);
        assert!(peers.into_iter().all(|peers| peers.len() == 1 && !peers.contains_key(&gone.public())));
        assert_settled(&world.hosts[i].kernel, &world.desired(i), &ours(&world.desired(i))).await;
    }
    assert!(world.ping(56), "the others never had to do with it");
}

#[tokio::test]
async fn nothing_of_ours_pins_a_container_or_changes_the_host() {
    let mut world = World::new();
    world.hosts[0].space.run("echo 1 > /proc/sys/net/ipv4/ip_forward");
    world.attach().await;
    let sysctls = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/disable_ipv6 | tr '\\n' ' '";
    assert_eq!(world.hosts[0].space.run(sysctls), "1 0 ");
    for name in [format!("net-{NETWORK}"), "bind-a".to_owned()] {
        assert_eq!(run_at(&world.hosts[0].netns_of(&name), sysctls), "0 1 ");
    }
    let World { hosts, containers: [ended, _other], .. } = world;
    assert!(hosts[0].space.succeeds("ip link show docker0"));
    drop(ended);
    // The other end of its eth0 goes only with the namespace itself.
    let deadline = Instant::now() + PATIENCE;
    while hosts[0].space.succeeds("ip link show docker0") {
        assert!(Instant::now() < deadline, "something keeps the container's namespace");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_agent_that_starts_again_finds_everything() {
    let mut world = World::new();
    world.attach().await;
    let desired = world.desired(0);
    let mut again = Reconciler::new(world.hosts[0].kernel.clone());
    assert_eq!(again.reconcile(&desired, &ours(&desired), Prune::All).await.writes(), 0);

    // The engine gives back what it holds: nothing is written.
    let link = world.containers[0].run("ip -d link show wg0");
    world.hosts[0].restart();
    again = Reconciler::new(world.hosts[0].kernel.clone());
    assert_eq!(again.reconcile(&desired, &ours(&desired), Prune::All).await.writes(), 0);
    assert_eq!(world.containers[0].run("ip -d link show wg0"), link);
    assert!(world.ping(56));

    // Agent and engine both gone, a TUN goes with them; whatever else is there is kept, the kernel's interface too.
    drop(again);
    let [_, other] = &world.hosts;
    world.reconcilers[0] = Reconciler::new(other.kernel.clone());
    world.hosts[0].crash();
    let stays = world.hosts[0].kernel.kernel_wireguard();
    assert_eq!(world.containers[0].succeeds("ip link show wg0"), stays);
    again = Reconciler::new(world.hosts[0].kernel.clone());
    world.reconcilers[0] = Reconciler::new(world.hosts[0].kernel.clone());
    let report = again.reconcile(&desired, &ours(&desired), Prune::All).await;
    assert_clean(&report);
    let kinds: Vec<&str> = report.steps.iter().map(|step| step.op.kind()).collect();
    let rebuilt: &[&str] = if stays { &[] } else { &["link", "address", "link-up", "route", "peers"] };
    assert!(kinds.iter().all(|kind| rebuilt.contains(kind)), "{kinds:?}");
    world.assert_settled(0).await;
    assert!(world.ping(56));
}

#[tokio::test]
async fn what_a_container_does_to_itself_stops_nobody_else() {
    let mut world = World::new();
    world.containers[0].run("ip link add wg0 type bridge");
    let desired = world.desired(0);
    let report = world.reconcilers[0].reconcile(&desired, &ours(&desired), Prune::All).await;
    assert!(matches!(report.failed(NETWORK, "a"), Some(Error::NameTaken { .. })), "{report:?}");
    let skipped = report.steps.iter().filter(|step| matches!(step.outcome, Outcome::Skipped)).count();
    assert!(skipped > 0);
    let gone = world.reconcilers[0].reconcile(&Desired::default(), &ours(&desired), Prune::All).await;
    assert_clean(&gone);
    assert!(world.containers[0].succeeds("ip link show wg0 type bridge"), "somebody else's wg0");
    let left = world.containers[0].run("ip route show proto 87; nft list tables");
    assert!(!left.contains("unreachable") && !left.contains("warren"), "{left}");
}

/// For the record: the floor is one move of a TUN between namespaces.
#[tokio::test]
async fn a_member_is_built_in_little_more_than_a_tun_move() {
    println!("one member: {}", build_members(World::new()).await);
}

/// How long members take to be built and removed, and the floor.
pub async fn build_members(mut world: World) -> String {
    const ROUNDS: u8 = 9;
    world.attach().await;
    let spaces: Vec<Space> = (0..ROUNDS).map(|_| Space::new()).collect();
    let mut everybody = world.everybody.to_vec();
    let mut containers = BTreeMap::from([("a".to_owned(), world.containers[0].netns())]);
    let mut floor: Vec<Duration> = spaces.iter().map(tun_move).collect();
    let (mut built, mut all) = (Vec::new(), Ours::default());
    for (round, space) in (0..ROUNDS).zip(&spaces) {
        let identity = Identity::new(&format!("c{round}"), 20 + round, HOSTS[0]);
        containers.insert(identity.id.clone(), space.netns());
        everybody.push(identity);
        let more = desired(network(HOSTS[0], &everybody, &containers));
        all = ours(&more);
        let started = Instant::now();
        let report = world.reconcilers[0].reconcile(&more, &all, Prune::All).await;
        built.push(started.elapsed());
        assert_clean(&report);
    }
    let started = Instant::now();
    let report = world.reconcilers[0].reconcile(&world.desired(0), &all, Prune::All).await;
    let removed = started.elapsed() / ROUNDS.into();
    assert_clean(&report);
    built.sort();
    floor.sort();
    let median = usize::from(ROUNDS / 2);
    format!("built {:?}, removed {removed:?}, a TUN move {:?}", built[median], floor[median])
}

/// How long the one move lasts that cannot be avoided.
fn tun_move(container: &Space) -> Duration {
    let binding = Space::new();
    let tun = binding.enter(|| open_tun("floor", Framing::Large).unwrap());
    let started = Instant::now();
    binding.run(&format!("ip link set floor netns {}", container.path().display()));
    let took = started.elapsed();
    drop(tun);
    took
}
