use std::sync::Arc;

use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::fixtures::{host, member};
use crate::interner::Interner;
use crate::memory::{MemoryNetwork, MemoryWire};
use crate::standing::{Standing, Timings};

const INTERVAL: Duration = Duration::from_millis(500);

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 7946))
}

fn wire(network: &MemoryNetwork, number: u8) -> MemoryWire {
    network.wire(&"r".parse().unwrap(), &format!("h{number}").parse().unwrap(), address(number))
}

fn builder() -> ViewBuilder {
    let own = "joiner".parse().unwrap();
    ViewBuilder::new(&own, &[], Timings::of(INTERVAL), Arc::default(), Interner::default(), Instant::now())
}

/// What a host has that knows so many others, each with so many members.
struct Peer {
    served: Served,
    chitchat: Chitchat,
    builder: ViewBuilder,
    others: Vec<SocketAddr>,
}

impl Peer {
    fn knowing(hosts: u32, members: u32, others: Vec<SocketAddr>) -> Self {
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new("peer", 1, address(1)),
            cluster_id: "r".into(),
            gossip_interval: INTERVAL,
            listen_addr: address(1),
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(900),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let seeds = watch::channel(Default::default()).1;
        let mut chitchat = Chitchat::with_chitchat_id_and_seeds(config, seeds, Vec::new());
        for number in 0..hosts {
            let name = format!("n{number}");
            let id = ChitchatId::new(name.as_str(), 7, address(2));
            let records = (0..members).map(|n| member(number * members + n)).chain([host(&name)]);
            let key_values = (1..).zip(records).map(|(version, record)| {
                let status = chitchat::DeletionStatus::Set;
                (
                    record.key().to_string(),
                    chitchat::VersionedValue { value: record.encode(), version, status },
                )
            });
            chitchat.reset_node_state_if_update(&id, key_values, u64::from(members) + 1, 0);
        }
        let mut builder = builder();
        for (owner, state) in builder.moved(chitchat.node_states().iter()) {
            builder.see(owner, state, Via::Chitchat, Instant::now());
        }
        builder.complete();
        Self { served: Served::default(), chitchat, builder, others }
    }

    async fn serve(mut self, wire: MemoryWire) {
        while let Some(mut question) = wire.asked().await {
            assert_eq!(Purpose::unwrap(&mut question), Some(Purpose::Snapshot));
            let answer = self.answer(question.address, &question.body);
            _ = question.reply.send(answer);
        }
    }

    fn answer(&mut self, asker: SocketAddr, body: &[u8]) -> Vec<u8> {
        let others = self.others.clone().into_iter();
        self.served.answer(asker, body, &self.chitchat, &self.builder, others, Instant::now())
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_longer_than_a_page_comes_whole() {
    let network = MemoryNetwork::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(Peer::knowing(40, 100, Vec::new()).serve(wire(&network, 1)));
    let snapshot = ask(&wire(&network, 2), [address(1)]).await.unwrap();
    assert!(snapshot.pages.len() > 1, "{} pages", snapshot.pages.len());
    assert_eq!((snapshot.generation("n3"), snapshot.generation("n40")), (Some(7), None));
    let mut joiner = builder();
    snapshot.remember(&mut joiner, Instant::now());
    let view = joiner.build().unwrap();
    assert!(view.whole && view.hosts.len() == 40 && view.members().count() == 4000);
    let mut empty = Peer::knowing(0, 0, Vec::new()).chitchat;
    snapshot.apply(&mut empty, &Interner::default());
    assert_eq!(empty.node_states().values().map(|state| state.num_key_values()).sum::<usize>(), 40 * 101);
    assert!(joiner.moved(empty.node_states().iter()).iter().all(|(owner, _)| &*owner.node_id == "peer"));
}

#[tokio::test(start_paused = true)]
async fn who_has_enough_to_do_names_another() {
    let network = MemoryNetwork::new();
    let mut tasks = JoinSet::new();
    // Four have begun and not ended.
    let mut busy = Peer::knowing(40, 100, vec![address(2)]);
    for asker in 11..15 {
        busy.answer(address(asker), b"");
    }
    tasks.spawn(busy.serve(wire(&network, 1)));
    tasks.spawn(Peer::knowing(5, 1, Vec::new()).serve(wire(&network, 2)));
    let snapshot = ask(&wire(&network, 3), [address(1)]).await.unwrap();
    let mut joiner = builder();
    snapshot.remember(&mut joiner, Instant::now());
    assert_eq!(joiner.build().unwrap().hosts.len(), 5, "of the host that was named");
    // Who does not come back for the next page has given up.
    time::sleep(SERVED_PAUSE).await;
    let snapshot = ask(&wire(&network, 3), [address(1)]).await.unwrap();
    assert!(snapshot.pages.len() > 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_whole_or_talks_nonsense_gives_none() {
    let network = MemoryNetwork::new();
    let mut tasks = JoinSet::new();
    let door = wire(&network, 1);
    tasks.spawn(async move {
        let answers = [not_whole(), b"junk".to_vec(), Vec::new(), vec![1, 0, 0, 0, 0, 9, 9]];
        for answer in answers.into_iter().cycle() {
            let Some(question) = door.asked().await else { return };
            _ = question.reply.send(answer);
        }
    });
    let asker = wire(&network, 2);
    for _ in 0..4 {
        assert!(ask(&asker, [address(1)]).await.is_none());
    }
    assert_eq!(asker.counters().get("snapshots_total", &[("outcome", "malformed")]), 3);
    assert!(ask(&asker, [address(9)]).await.is_none(), "nobody is there");
}

#[tokio::test(start_paused = true)]
async fn the_dead_and_the_gone_are_remembered_with_their_age() {
    let network = MemoryNetwork::new();
    let mut tasks = JoinSet::new();
    let mut peer = Peer::knowing(3, 2, Vec::new());
    let timings = Timings::of(INTERVAL);
    // Nobody's heartbeat is heard: all are dead after a bound, and gone much later.
    let beats = |peer: &mut Peer| peer.builder.hear(std::iter::empty(), Instant::now());
    beats(&mut peer);
    time::sleep(timings.detection).await;
    beats(&mut peer);
    time::sleep(Duration::from_secs(600)).await;
    beats(&mut peer);
    tasks.spawn(peer.serve(wire(&network, 1)));
    let snapshot = ask(&wire(&network, 2), [address(1)]).await.unwrap();
    let mut joiner = builder();
    snapshot.remember(&mut joiner, Instant::now());
    let view = joiner.build().unwrap();
    assert!(view.hosts.values().all(|host| host.standing == Standing::Dead) && view.hosts.len() == 3);
    time::sleep(timings.gone - Duration::from_secs(600)).await;
    joiner.hear(std::iter::empty(), Instant::now());
    let view = joiner.build().unwrap();
    assert!(view.hosts.values().all(|host| host.standing == Standing::Gone));
    assert_eq!(view.ghosts().count(), 6);
    // Nothing of them goes into chitchat: each joiner would keep them there for another grace.
    let mut empty = Peer::knowing(0, 0, Vec::new()).chitchat;
    snapshot.apply(&mut empty, &Interner::default());
    assert_eq!(empty.node_states().len(), 1);
}
