use std::sync::Mutex;

use super::*;
use crate::fixtures::{host, member};
use crate::memory::MemoryNetwork;
use crate::pull::Missing;
use crate::record::Key;
use crate::standing::Standing;
use crate::standing::Timings;
use crate::transport::ADMISSION_BYTES_MAX;
use chitchat::ChitchatId;

const INTERVAL: Duration = Duration::from_millis(500);

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 7946))
}

/// A seat at `address`, and the generations it has persisted.
async fn seat(network: &MemoryNetwork, name: &str, number: u8, seeds: &[u8]) -> (Seat, Arc<Mutex<Vec<u64>>>) {
    let (id, address) = (name.parse().unwrap(), address(number));
    let region = "r".parse().unwrap();
    let wire = Arc::new(network.wire(&region, &id, address));
    let config = Config {
        region,
        host: id.clone(),
        listen: address,
        advertise: address,
        seeds: Vec::new(),
        interval: INTERVAL,
        known: Vec::new(),
        generation_floor: 0,
        timings: Timings::of(INTERVAL),
        eager: true,
        plain_digests: false,
        parsed: Default::default(),
        now_ns: Arc::new(|| 1000),
    };
    let seeds = Seeds {
        addresses: seeds.iter().map(|seed| super::tests::address(*seed)).collect(),
        unresolved: false,
    };
    let (_, seeds) = watch::channel(seeds);
    let persisted = Arc::new(Mutex::new(Vec::new()));
    let own = OwnRecords::new(&id, vec![host(name), member(number.into())]).unwrap();
    let persist = {
        let persisted = persisted.clone();
        Box::new(move |generation| {
            persisted.lock().unwrap().push(generation);
            Ok(())
        })
    };
    let builder =
        ViewBuilder::new(&id, &[], config.timings, wire.counters(), Default::default(), Instant::now());
    let stay = Stay { config, wire, persist, seeds };
    (Seat::take(stay, own, builder, None, None).await.unwrap(), persisted)
}

async fn until(what: &str, mut views: watch::Receiver<Arc<View>>, condition: impl FnMut(&Arc<View>) -> bool) {
    let waited = time::timeout(Duration::from_secs(60), views.wait_for(condition)).await;
    assert!(waited.is_ok(), "not within 60 s: {what}");
}

#[tokio::test(start_paused = true)]
async fn whose_state_is_overwritten_starts_a_new_generation() {
    let network = MemoryNetwork::new();
    let (a, persisted) = seat(&network, "a", 1, &[]).await;
    let (b, _) = seat(&network, "b", 2, &[1]).await;
    let chitchat = a.chitchat.chitchat();
    let (generation, watched, own) = (a.generation(), b.views(), a.views());
    let (_a_commands, commands) = mpsc::channel(1);
    let a = tokio::spawn(a.run(commands));
    let (_b_commands, commands) = mpsc::channel(1);
    let _b = tokio::spawn(b.run(commands));
    let id: HostId = "a".parse().unwrap();
    until("b sees a", watched.clone(), |view| view.hosts.contains_key(&id)).await;

    chitchat.lock().await.self_node_state().set("host", "forged");
    until("b sees the new generation", watched.clone(), |view| view.hosts[&id].generation == 1001).await;
    until("a sees its own", own, |view| view.hosts[&id].generation == 1001).await;
    assert_eq!(watched.borrow().hosts[&id].records.members.len(), 1);
    assert_eq!((generation.load(Ordering::Relaxed), &*persisted.lock().unwrap()), (1001, &vec![1000, 1001]));
    a.abort();
}

#[tokio::test(start_paused = true)]
async fn whose_gossip_task_ends_starts_a_new_generation() {
    let network = MemoryNetwork::new();
    let (mut seat, persisted) = seat(&network, "a", 1, &[]).await;
    seat.chitchat.abort();
    let own = seat.views();
    seat.ended = false;
    let (commands, received) = mpsc::channel(1);
    let task = tokio::spawn(seat.run(received));
    let id: HostId = "a".parse().unwrap();
    until("a new generation", own, |view| view.hosts[&id].generation == 1001).await;
    let (done, published) = oneshot::channel();
    let change = Change::Delete(member(1).key());
    commands.send(Command::Publish { changes: vec![change], done }).await.ok().unwrap();
    assert_eq!(published.await.unwrap(), Ok(()));
    assert_eq!(*persisted.lock().unwrap(), [1000, 1001]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_publication_while_the_state_is_foreign_is_in_the_next_generation() {
    let network = MemoryNetwork::new();
    let (mut seat, _) = seat(&network, "a", 1, &[]).await;
    seat.chitchat.with_chitchat(|chitchat| chitchat.self_node_state().set("mem/forged", "x")).await;
    seat.publish(vec![Change::Put(member(7))]).await.unwrap();
    let key = member(7).key().to_string();
    let holds = async |seat: &Seat| {
        seat.chitchat.with_chitchat(|chitchat| chitchat.self_node_state().get(&key).is_some()).await
    };
    assert!(!holds(&seat).await, "nothing is set into a foreign state");
    assert!(!seat.look().await);
    assert!(seat.restart().await);
    assert!(holds(&seat).await && seat.look().await);
    let members = seat.views().borrow().members().count();
    assert_eq!(members, 2);
}

#[tokio::test(start_paused = true)]
async fn an_outgrown_digest_closes_the_gate() {
    let network = MemoryNetwork::new();
    let (mut seat, _) = seat(&network, "a", 1, &[]).await;
    seat.look().await;
    assert!(seat.gate.is_open());
    let zombies = |chitchat: &mut Chitchat| {
        for generation in 0..3000 {
            let id = ChitchatId::new("0123456789ab", generation, address(9));
            chitchat.reset_node_state_if_update(&id, std::iter::empty(), 1, 0);
        }
    };
    seat.chitchat.with_chitchat(zombies).await;
    seat.look().await;
    assert!(!seat.gate.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_region_heals_after_a_cut_longer_than_chitchats_memory() {
    let network = MemoryNetwork::new();
    let mut views = Vec::new();
    let mut commands = Vec::new();
    for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
        let seeds: &[u8] = if number == 1 { &[] } else { &[1] };
        let (seat, _) = seat(&network, name, number, seeds).await;
        views.push(seat.views());
        let (sender, received) = mpsc::channel(1);
        commands.push(sender);
        tokio::spawn(seat.run(received));
    }
    let id: HostId = "c".parse().unwrap();
    let answers =
        |view: &Arc<View>, host: &HostId| view.hosts.get(host).is_some_and(|host| host.standing.answers());
    for view in &views {
        until("all answer", view.clone(), |view| view.answering().count() == 3 && view.whole).await;
    }
    for other in [1, 2] {
        network.cut(address(3), address(other));
        network.cut(address(other), address(3));
    }
    until("a misses c", views[0].clone(), |view| !answers(view, &id)).await;
    until("c is cut off", views[2].clone(), |view| view.cut_off).await;
    time::sleep(Duration::from_secs(20 * 60)).await;
    let standing = views[0].borrow().hosts[&id].standing;
    assert_eq!((standing, views[0].borrow().cut_off), (Standing::Gone, false));
    network.heal();
    for view in &views {
        until("all answer again", view.clone(), |view| view.answering().count() == 3 && !view.cut_off).await;
    }
    until("a and b agree", views[0].clone(), |view| **view == **views[1].borrow()).await;
    let key = Key::Member(crate::fixtures::NETWORK.parse().unwrap(), format!("{:016x}", 3).parse().unwrap());
    assert!(views[0].borrow().hosts[&id].records.iter().any(|record| record.key() == key));
}

#[tokio::test(start_paused = true)]
async fn a_region_near_the_wall_lets_no_new_host_in() {
    let network = MemoryNetwork::new();
    let (mut a, _) = seat(&network, "a", 1, &[]).await;
    let chitchat = a.chitchat.chitchat();
    let stranger: HostId = "stranger".parse().unwrap();
    assert_eq!(a.greeting(&stranger, address(9)).await.full, None);
    {
        let mut chitchat = chitchat.lock().await;
        for number in 0..3000u32 {
            let id = ChitchatId::new(format!("{number:012}"), 1, address(3));
            chitchat.reset_node_state_if_update(&id, std::iter::empty(), 1, 0);
        }
    }
    assert!(a.greeting(&stranger, address(9)).await.full.is_some_and(|bytes| bytes > ADMISSION_BYTES_MAX));
    let resident: HostId = "000000000007".parse().unwrap();
    assert_eq!(a.greeting(&resident, address(3)).await.full, None, "who is in may come back");
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_of_a_host_is_told_if_a_frame_can_carry_it() {
    let network = MemoryNetwork::new();
    let (mut seat, _) = seat(&network, "a", 1, &[]).await;
    let version = seat.own.version();
    let nothing = |answer: Option<Vec<u8>>| answer.map(|frame| frame.is_empty());
    for (node_id, generation, held, expected) in [
        ("a", 1000, version, Some(true)),
        ("a", 1000, version + 5, Some(true)),
        ("a", 1000, version - 1, Some(false)),
        ("a", 999, version, Some(false)),
        ("a", 0, 0, Some(false)),
        ("b", 0, 0, None),
    ] {
        let question = Missing { node_id, generation, version: held }.encode();
        let answer = seat.tell_missing(&question).await;
        assert_eq!(nothing(answer), expected, "{node_id} {generation} {held}");
    }
    assert_eq!(seat.tell_missing(&[0xff; 3]).await, None);

    seat.publish((100..300).map(|number| Change::Put(member(number))).collect()).await.unwrap();
    let all = Missing { node_id: "a", generation: 0, version: 0 }.encode();
    assert_eq!(seat.tell_missing(&all).await, None);
    let last = Missing { node_id: "a", generation: 1000, version: seat.own.version() - 1 }.encode();
    assert_eq!(nothing(seat.tell_missing(&last).await), Some(false));
}
