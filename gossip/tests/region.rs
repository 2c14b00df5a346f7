//! Regions of a few hosts on real QUIC over loopback: joining, dying, coming back, and who is
//! refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{
    Authority, INTERVAL, Node, anywhere, bind, config, eventually, host_id, host_record, member,
};
use gossip::record::Key;
use gossip::{Arrival, AskError, Change, JoinError, PublishError, Standing, View, Wire as _};
use tokio::time::{Instant, sleep, timeout};

/// `count` hosts named a, b, …; all know each other and are whole.
async fn region(authority: &Authority, count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["a", "b", "c", "d", "e"].iter().take(count) {
        let seeds: Vec<SocketAddr> = nodes.first().map(|first| first.address).into_iter().collect();
        nodes.push(Node::start(&authority.identity(name), &seeds).await);
    }
    eventually("all answer and are whole", || {
        nodes.iter().all(|node| node.answering() == count && node.view().whole)
    })
    .await;
    nodes
}

fn members(view: &View) -> usize {
    view.members().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_publishes_all_see() {
    let authority = Authority::new();
    let mut nodes = region(&authority, 4).await;
    nodes[1].gossip.publish((1..=5).map(|n| Change::Put(member(n))).collect()).await.unwrap();
    assert_eq!(members(&nodes[1].view()), 5, "the own view shows it at once");
    let published = Instant::now();
    eventually("all see the members", || nodes.iter().all(|node| members(&node.view()) == 5)).await;
    assert!(published.elapsed() < Duration::from_secs(3));

    let many: Vec<Change> = (100..612).map(|n| Change::Put(member(n))).collect();
    assert_eq!(nodes[2].gossip.publish(many).await, Ok(()));
    let one_more = nodes[2].gossip.publish(vec![Change::Put(member(1))]).await;
    assert_eq!(one_more, Err(PublishError::TooManyMembers(513)));
    let Key::Member(network, id) = member(1).key() else { unreachable!() };
    nodes[1].gossip.publish(vec![Change::Delete(Key::Member(network, id))]).await.unwrap();
    eventually("all see the host with many members", || {
        nodes.iter().all(|node| members(&node.view()) == 516)
    })
    .await;
    eventually("all views are equal", || nodes.iter().all(|node| *node.view() == *nodes[0].view())).await;

    let body = b"who holds 10.240.0.7?".to_vec();
    let (asker, judge) = nodes.split_at_mut(3);
    let answering = async {
        let ask = judge[0].asks.recv().await.unwrap();
        assert_eq!((&ask.from, &ask.body), (&host_id("a"), &body));
        ask.reply.send(b"nobody".to_vec()).unwrap();
    };
    let d = host_id("d");
    let (answer, ()) = tokio::join!(asker[0].gossip.ask(&d, body.clone(), Duration::from_secs(5)), answering);
    assert_eq!(answer, Ok(b"nobody".to_vec()));
    let nobody = host_id("nobody");
    assert_eq!(asker[0].gossip.ask(&nobody, vec![], INTERVAL).await, Err(AskError::Unknown(nobody)));
    assert_eq!(asker[1].gossip.ask(&d, vec![], INTERVAL).await, Err(AskError::Timeout));
}

/// Runs a host on a runtime of its own, so that it can be killed without a word.
fn killable(
    authority: &Authority,
    name: &str,
    at: SocketAddr,
    seeds: &[SocketAddr],
) -> (tokio::runtime::Runtime, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.block_on(Node::join(&authority.identity(name), at, seeds, Vec::new())).unwrap();
    (runtime, node)
}

#[test]
fn a_restart_never_leaves_the_answers_and_a_death_does() {
    let authority = Authority::new();
    let watchers =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let nodes = watchers.block_on(region(&authority, 2));
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let (runtime, node) = killable(&authority, "x", anywhere(), &seeds);
    let (address, generation) = (node.address, node.gossip.generation());
    let x = host_id("x");
    watchers.block_on(async {
        let live = || {
            nodes.iter().all(|node| node.standing("x") == Some(Standing::Answering) && node.answering() == 3)
        };
        eventually("x answers", live).await;
        // Past the time in which it answers merely because it is new.
        sleep(14 * INTERVAL).await;
        assert!(live());
    });

    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let sampler = {
        let (views, stop, failed) =
            (nodes.iter().map(|node| node.gossip.view()).collect::<Vec<_>>(), stop.clone(), failed.clone());
        let x = x.clone();
        watchers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answers = |view: &View| view.hosts.get(&x).is_some_and(|host| host.standing.answers());
                if !views.iter().all(|view| answers(&view.borrow())) {
                    failed.store(true, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(node);
    let (runtime, node) = killable(&authority, "x", address, &seeds);
    assert!(node.gossip.generation() > generation);
    watchers.block_on(async {
        let seen = |node: &Node| node.view().hosts[&x].generation;
        eventually("the new generation is seen", || {
            nodes.iter().all(|n| seen(n) == node.gossip.generation())
        })
        .await;
        sleep(20 * INTERVAL).await;
        stop.store(true, Ordering::Relaxed);
        sampler.await.unwrap();
        assert!(!failed.load(Ordering::Relaxed), "x left the answers during its restart");
    });

    runtime.shutdown_timeout(Duration::from_secs(1));
    let killed = Instant::now();
    watchers.block_on(eventually("x is dead", || {
        nodes.iter().all(|node| node.standing("x") == Some(Standing::Dead))
    }));
    // One detection bound, twice for a machine that does much else.
    assert!(killed.elapsed() < 24 * INTERVAL, "{:?}", killed.elapsed());
    assert!(nodes.iter().all(|node| node.view().hosts.contains_key(&x)), "its records are kept");
}

#[test]
fn who_stood_still_blames_nobody() {
    let authority = Authority::new();
    let watchers =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let nodes = watchers.block_on(region(&authority, 3));
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.address).collect();
    let (runtime, node) = killable(&authority, "x", anywhere(), &seeds);
    let seen = node.gossip.view();
    watchers.block_on(async {
        eventually("x knows all", || node.answering() == 4).await;
        sleep(14 * INTERVAL).await;
        // Its only thread stands still, as a suspended machine's do.
        runtime.spawn(async { std::thread::park_timeout(30 * INTERVAL) });
        eventually("x is dead", || nodes.iter().all(|node| node.standing("x") == Some(Standing::Dead))).await;
        let back = async {
            eventually("x is back", || {
                nodes.iter().all(|node| node.standing("x") == Some(Standing::Answering))
            })
            .await;
        };
        let blamed = async {
            loop {
                let view = seen.borrow().clone();
                let silent = view.hosts.iter().find(|(_, host)| !host.standing.answers());
                assert!(silent.is_none() && !view.cut_off, "to x {silent:?} is out of answers");
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! { () = back => {}, () = blamed => {} }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_away_or_out_at_once() {
    let authority = Authority::new();
    let mut nodes = region(&authority, 4).await;
    for (away, expected) in [(Some(120), Standing::Away), (None, Standing::Dead)] {
        let leaving = nodes.pop().unwrap();
        let name = if away.is_some() { "d" } else { "c" };
        let started = Instant::now();
        leaving.gossip.leave(away).await;
        assert!(started.elapsed() < Duration::from_millis(1200), "{:?}", started.elapsed());
        let told = Instant::now();
        eventually(name, || nodes.iter().all(|node| node.standing(name) == Some(expected))).await;
        assert!(told.elapsed() < Duration::from_secs(1), "it was told, not detected: {:?}", told.elapsed());
    }
    assert!(nodes.iter().all(|node| !node.view().cut_off));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_refused_by_both_ends() {
    let (authority, other) = (Authority::new(), Authority::new());
    let nodes = region(&authority, 2).await;
    let stranger = Node::start(&other.identity("x"), &[nodes[0].address]).await;
    eventually("both count", || nodes[0].rejected("tls") > 0 && stranger.rejected("tls") > 0).await;
    // The other way round: the region calls the stranger.
    let before = stranger.rejected("tls");
    let caller = Node::start(&authority.identity("c"), &[stranger.address, nodes[0].address]).await;
    eventually("both count", || caller.rejected("tls") > 0 && stranger.rejected("tls") > before).await;
    eventually("the region goes on", || nodes.iter().all(|node| node.answering() == 3)).await;
    assert_eq!(stranger.answering(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_region_of_the_same_ca_is_refused_by_both_ends() {
    let authority = Authority::new();
    let nodes = region(&authority, 1).await;
    let stranger = authority.issue("elsewhere", "x", |_| ()).load();
    // It claims to be of the region; its certificate says otherwise.
    let stranger = Node::start(&stranger, &[nodes[0].address]).await;
    eventually("both count", || nodes[0].rejected("region") > 0 && stranger.rejected("region") > 0).await;
    assert_eq!((stranger.answering(), nodes[0].answering()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_cannot_use_anothers_name() {
    let authority = Authority::new();
    let nodes = region(&authority, 2).await;
    let mut liar = authority.identity("c");
    liar.host = host_id("a");
    let liar = Node::join(&liar, anywhere(), &[nodes[1].address], Vec::new()).await.unwrap();
    eventually("both count", || nodes[1].rejected("name") > 0 && liar.rejected("name") > 0).await;
    assert_eq!(nodes[1].view().hosts[&host_id("a")].address, nodes[0].address);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_agent_of_a_name_is_told_and_the_first_goes_on() {
    let authority = Authority::new();
    let nodes = region(&authority, 3).await;
    // It may ask a third host, or its own twin.
    for seed in [&nodes[2], &nodes[0]] {
        let second = Node::join(&authority.identity("a"), anywhere(), &[seed.address], Vec::new()).await;
        match second {
            Err(JoinError::Twin { host, address }) => {
                assert_eq!((host, address), (host_id("a"), nodes[0].address))
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("the second agent joined"),
        }
    }
    nodes[0].gossip.publish(vec![Change::Put(member(1))]).await.unwrap();
    eventually("the first goes on", || nodes.iter().all(|node| members(&node.view()) == 1)).await;
    assert!(nodes.iter().all(|node| node.view().twin.is_none() && node.answering() == 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_may_come_later() {
    let authority = Authority::new();
    let reserved = bind(anywhere(), &authority.identity("b")).await;
    let later = reserved.advertise();
    drop(reserved);
    let started = Instant::now();
    let node = Node::start(&authority.identity("a"), &[later]).await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(node.view().whole && node.answering() == 1, "alone, and so whole");
    let seed = Node::join(&authority.identity("b"), later, &[], Vec::new()).await.unwrap();
    eventually("both meet", || node.answering() == 2 && seed.answering() == 2).await;
    eventually("both are whole", || node.view().whole && seed.view().whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_hosts_lead_back_when_the_seeds_are_gone() {
    let authority = Authority::new();
    let nodes = region(&authority, 3).await;
    nodes[2].gossip.publish(vec![Change::Put(member(1))]).await.unwrap();
    let [a, b, c]: [Node; 3] = nodes.try_into().ok().unwrap();
    eventually("b has what it will persist", || members(&b.view()) == 1).await;
    let (known, address, generation) = (b.gossip.known(), b.address, b.gossip.generation());
    assert_eq!(known.len(), 2);
    a.gossip.leave(None).await;
    b.gossip.leave(Some(120)).await;

    let wire = bind(address, &authority.identity("b")).await;
    let config = gossip::Config {
        known,
        generation_floor: generation + 1_000_000_000_000_000_000,
        ..config("b", address, &[a.address])
    };
    let floor = config.generation_floor;
    let arrival = Arrival::at(config, wire).await.unwrap();
    assert_eq!(members(&arrival.view()), 1, "the persisted view is known before the first word");
    let (b, _asks) = arrival.join(vec![host_record("b")], |_| Ok(())).await.unwrap();
    assert_eq!(b.generation(), floor, "above the clock");
    let view = b.view().borrow().clone();
    assert_eq!(members(&view), 1, "the persisted view is served at once");
    let x = host_id("b");
    eventually("c sees it again", || {
        c.view().hosts[&x].generation == floor && c.standing("b") == Some(Standing::Answering)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generation_is_above_all_that_were_seen() {
    let authority = Authority::new();
    let nodes = region(&authority, 1).await;
    let join = async |now_ns: u64| {
        let wire = bind(anywhere(), &authority.identity("x")).await;
        let mut config = config("x", wire.advertise(), &[nodes[0].address]);
        config.now_ns = Arc::new(move || now_ns);
        Arrival::at(config, wire).await?.join(vec![host_record("x")], |_| Ok(())).await
    };
    let (first, _asks) = join(5_000).await.unwrap();
    assert_eq!(first.generation(), 5_000);
    eventually("it is seen", || nodes[0].answering() == 2).await;
    first.leave(None).await;
    // An empty state directory, an older clock, another address.
    eventually("it is dead", || nodes[0].standing("x") == Some(Standing::Dead)).await;
    let started = Instant::now();
    let (second, _asks) = loop {
        match join(17).await {
            Ok(joined) => break joined,
            Err(JoinError::Twin { .. }) if started.elapsed() < Duration::from_secs(10) => {
                sleep(INTERVAL).await
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(second.generation(), 5_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_cannot_be_stored_is_not_used() {
    let authority = Authority::new();
    let wire = bind(anywhere(), &authority.identity("a")).await;
    let config = config("a", wire.advertise(), &[]);
    let full = |_| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    let outcome = Arrival::at(config, wire).await.unwrap().join(vec![host_record("a")], full).await;
    assert!(matches!(outcome, Err(JoinError::Persist(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_of_one_judges_itself() {
    let authority = Authority::new();
    let mut nodes = region(&authority, 1).await;
    let node = &mut nodes[0];
    assert!(!node.view().cut_off && node.view().twin.is_none());
    let own = host_id("a");
    let (answer, ask) = tokio::join!(
        node.gossip.ask(&own, vec![1], Duration::from_secs(1)),
        timeout(Duration::from_secs(1), async {
            let ask = node.asks.recv().await.unwrap();
            ask.reply.send(vec![2]).unwrap();
        })
    );
    assert_eq!((answer, ask), (Ok(vec![2]), Ok(())));
}
