//! The contract of a wire, held by the real one and by its twin in memory.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{Authority, REGION, anywhere, bind, host_id};
use bytes::Bytes;
use chitchat::{ChitchatEnvelope, ChitchatMessage, ProtocolVersion};
use gossip::memory::{Delay, Link, MemoryNetwork};
use gossip::wire::{ANSWER_BYTES_MAX, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, Pushed};
use gossip::{AskError, Refusal, Wire};
use tokio::time::{sleep, timeout};

const BOUND: Duration = Duration::from_secs(10);

/// Where wires come from.
trait Network {
    async fn wire(&mut self, region: &str, host: &str) -> Box<dyn Wire>;
}

struct Real(Authority);

impl Network for Real {
    async fn wire(&mut self, region: &str, host: &str) -> Box<dyn Wire> {
        Box::new(bind(anywhere(), &self.0.issue(region, host, |_| ()).load()).await)
    }
}

struct Twin(MemoryNetwork, u8);

impl Network for Twin {
    async fn wire(&mut self, region: &str, host: &str) -> Box<dyn Wire> {
        self.1 += 1;
        let address = SocketAddr::from(([192, 0, 2, self.1], 7946));
        Box::new(self.0.wire(&region.parse().unwrap(), &host_id(host), address))
    }
}

fn envelope(text: &str) -> ChitchatEnvelope {
    let message = ChitchatMessage::Syn { cluster_id: text.into(), digest: Default::default() };
    ChitchatEnvelope { version: ProtocolVersion::V1, message }
}

async fn contract(network: &mut impl Network) {
    envelopes_arrive_from_the_advertised_address(network).await;
    frames_arrive_in_whatever_order(network).await;
    an_overlong_frame_is_counted_and_not_sent(network).await;
    frames_beyond_the_queue_are_counted(network).await;
    questions_are_answered(network).await;
    an_answer_may_be_a_page(network).await;
    a_question_nobody_takes_is_an_error(network).await;
    whoever_is_asked_sees_that_nobody_waits_any_more(network).await;
    nobody_there_blocks_nobody(network).await;
    another_region_is_refused(network).await;
    the_own_name_is_refused(network).await;
    a_closed_wire_ends(network).await;
}

async fn envelopes_arrive_from_the_advertised_address(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let long = "x".repeat(60_000);
    for (from, to, text) in [(&a, &b, "to b"), (&b, &a, "to a"), (&a, &b, &long)] {
        from.send(to.advertise(), envelope(text));
        let received = timeout(BOUND, to.recv()).await.unwrap().unwrap();
        assert_eq!((received.from, received.envelope), (from.advertise(), envelope(text)));
    }
    let counted = |wire: &dyn Wire, direction| {
        wire.counters().get("gossip_messages_total", &[("direction", direction), ("kind", "envelope")])
    };
    assert_eq!((counted(&*a, "out"), counted(&*b, "in")), (2, 2));
}

fn counted(wire: &dyn Wire, name: &str, labels: &[(&str, &str)]) -> u64 {
    wire.counters().get(name, labels)
}

async fn frames_arrive_in_whatever_order(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let mut frames: Vec<Bytes> = (0..10).map(|number| Bytes::from(vec![number; 300])).collect();
    frames.push(Bytes::new());
    frames.push(Bytes::from(vec![1; FRAME_BYTES_MAX]));
    for frame in &frames {
        a.push(b.advertise(), frame.clone());
    }
    let mut arrived = Vec::new();
    for _ in &frames {
        let Pushed { from, frame } = timeout(BOUND, b.pushed()).await.unwrap().unwrap();
        assert_eq!(from, a.advertise());
        arrived.push(frame);
    }
    arrived.sort();
    frames.sort();
    assert!(arrived == frames);
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
    for (wire, direction) in [(&a, "out"), (&b, "in")] {
        let labels = [("direction", direction), ("kind", "frame")];
        assert_eq!(counted(&**wire, "gossip_messages_total", &labels), frames.len() as u64);
        assert_eq!(counted(&**wire, "gossip_bytes_total", &labels), bytes);
    }
}

fn frames_dropped(wire: &dyn Wire) -> u64 {
    counted(wire, "gossip_dropped_total", &[("kind", "frame")])
}

async fn an_overlong_frame_is_counted_and_not_sent(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    a.push(b.advertise(), Bytes::from(vec![0; FRAME_BYTES_MAX + 1]));
    a.push(b.advertise(), Bytes::from_static(b"short"));
    let pushed = timeout(BOUND, b.pushed()).await.unwrap().unwrap();
    assert_eq!(pushed.frame, "short");
    assert!(timeout(Duration::from_millis(100), b.pushed()).await.is_err());
    assert_eq!(frames_dropped(&*a), 1);
}

/// When nobody reads, the newest gives way, and every frame is accounted for.
async fn frames_beyond_the_queue_are_counted(network: &mut impl Network) {
    const BATCH: u32 = 60;
    const BATCHES: u32 = 6;
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    for batch in 0..BATCHES {
        for number in 0..BATCH {
            let frame = (batch * BATCH + number).to_be_bytes();
            a.push(b.advertise(), Bytes::copy_from_slice(&frame));
        }
        sleep(Duration::from_millis(100)).await;
    }
    let mut arrived = BTreeSet::new();
    while let Ok(pushed) = timeout(Duration::from_millis(300), b.pushed()).await {
        arrived.insert(u32::from_be_bytes(pushed.unwrap().frame[..].try_into().unwrap()));
    }
    let dropped = frames_dropped(&*a) + frames_dropped(&*b);
    assert!(dropped > 0);
    assert_eq!(arrived.len() as u64 + dropped, u64::from(BATCH * BATCHES));
    assert!((0..BATCH).all(|number| arrived.contains(&number)));
}

async fn an_answer_may_be_a_page(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let ask = async |length: usize| {
        let answering = async { b.asked().await.unwrap().reply.send(vec![7; length]).unwrap() };
        timeout(BOUND, async { tokio::join!(a.ask(b.advertise(), vec![1]), answering).0 }).await.unwrap()
    };
    assert_eq!(ask(ANSWER_BYTES_MAX).await.unwrap().len(), ANSWER_BYTES_MAX);
    let overlong = ask(ANSWER_BYTES_MAX + 1).await;
    assert!(matches!(overlong, Err(AskError::Unanswered(_))), "{overlong:?}");
}

async fn questions_are_answered(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let answering = async {
        loop {
            let mut question = b.asked().await.unwrap();
            assert_eq!((&question.from, question.address), (&host_id("a"), a.advertise()));
            question.body.reverse();
            question.reply.send(question.body).unwrap();
        }
    };
    let asking = async {
        for body in [vec![], vec![1, 2, 3], vec![7; 100_000]] {
            let mut answer = a.ask(b.advertise(), body.clone()).await.unwrap();
            answer.reverse();
            assert_eq!(answer, body);
        }
        let long = vec![0; MESSAGE_BYTES_MAX + 1];
        assert_eq!(a.ask(b.advertise(), long).await, Err(AskError::TooLong(MESSAGE_BYTES_MAX + 1)));
    };
    timeout(BOUND, async {
        tokio::select! { () = asking => {}, () = answering => {} }
    })
    .await
    .unwrap();
}

async fn a_question_nobody_takes_is_an_error(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let drop_it = async { drop(b.asked().await.unwrap()) };
    let (answer, ()) =
        timeout(BOUND, async { tokio::join!(a.ask(b.advertise(), vec![1]), drop_it) }).await.unwrap();
    assert!(matches!(answer, Err(AskError::Unanswered(_))), "{answer:?}");
}

async fn whoever_is_asked_sees_that_nobody_waits_any_more(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let asking = a.ask(b.advertise(), vec![1]);
    let mut question = tokio::select! {
        _ = asking => panic!("nobody has answered"),
        question = b.asked() => question.unwrap(),
    };
    timeout(BOUND, question.reply.closed()).await.unwrap();
}

async fn nobody_there_blocks_nobody(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    for _ in 0..100 {
        a.send(nobody, envelope("lost"));
    }
    a.send(b.advertise(), envelope("found"));
    let received = timeout(Duration::from_secs(2), b.recv()).await.unwrap().unwrap();
    assert_eq!(received.envelope, envelope("found"));
    assert!(timeout(Duration::from_millis(200), a.ask(nobody, vec![1])).await.is_err());
}

/// Both ends count a refusal, and the refused one learns of it.
async fn refused(a: &dyn Wire, b: &dyn Wire, reason: &str) -> Refusal {
    let answer = timeout(BOUND, a.ask(b.advertise(), vec![1])).await.unwrap();
    let Err(AskError::Refused(refusal)) = answer else { panic!("{answer:?}") };
    assert_eq!(refusal.reason(), reason);
    a.send(b.advertise(), envelope("never"));
    assert!(timeout(Duration::from_millis(300), b.recv()).await.is_err());
    let counted = |wire: &dyn Wire| wire.counters().get("gossip_rejected_total", &[("reason", reason)]);
    timeout(BOUND, async {
        while counted(a) == 0 || counted(b) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    refusal
}

async fn another_region_is_refused(network: &mut impl Network) {
    let (a, b) = (network.wire(REGION, "a").await, network.wire("elsewhere", "b").await);
    refused(&*a, &*b, "region").await;
}

async fn the_own_name_is_refused(network: &mut impl Network) {
    let (a, twin) = (network.wire(REGION, "a").await, network.wire(REGION, "a").await);
    let refusal = refused(&*twin, &*a, "twin").await;
    assert_eq!(refusal, Refusal::Twin { host: host_id("a"), address: a.advertise() });
}

async fn a_closed_wire_ends(network: &mut impl Network) {
    let a = network.wire(REGION, "a").await;
    timeout(BOUND, a.close()).await.unwrap();
    assert!(timeout(BOUND, a.recv()).await.unwrap().is_none());
    assert!(timeout(BOUND, a.pushed()).await.unwrap().is_none());
    assert!(timeout(BOUND, a.asked()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_holds_the_contract() {
    contract(&mut Real(Authority::new())).await;
}

#[tokio::test(start_paused = true)]
async fn memory_holds_the_contract() {
    contract(&mut Twin(MemoryNetwork::new(), 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_call_each_other_at_once_talk_both_ways() {
    let mut network = Real(Authority::new());
    for round in 0..30 {
        let (a, b) = (network.wire(REGION, "a").await, network.wire(REGION, "b").await);
        let text = format!("round {round}");
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.send(to.advertise(), envelope(&text));
        }
        for wire in [&a, &b] {
            let received = timeout(BOUND, wire.recv()).await.unwrap().unwrap();
            assert_eq!(received.envelope, envelope(&text));
        }
    }
}

/// An agent killed without a goodbye answers again as soon as it is back, long before its peers'
/// connections to its former self time out.
#[test]
fn a_killed_agent_is_asked_again_when_it_is_back() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = Authority::new();
    let identity = authority.identity("b");
    let asker = runtime();
    let a = asker.block_on(bind(anywhere(), &authority.identity("a")));
    let serve = |address: SocketAddr| {
        let runtime = runtime();
        let wire = runtime.block_on(bind(address, &identity));
        let address = wire.advertise();
        runtime.spawn(async move {
            while let Some(question) = wire.asked().await {
                question.reply.send(question.body).unwrap();
            }
        });
        (runtime, address)
    };
    let ask =
        |address| asker.block_on(async { timeout(Duration::from_secs(2), a.ask(address, vec![1])).await });
    let (killed, address) = serve(anywhere());
    assert_eq!(ask(address).unwrap(), Ok(vec![1]));
    killed.shutdown_timeout(Duration::from_secs(1));
    let (restarted, address) = serve(address);
    assert_eq!(ask(address).unwrap(), Ok(vec![1]));
    restarted.shutdown_background();
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_passes_nothing_until_it_heals() {
    let network = MemoryNetwork::new();
    let mut twin = Twin(network.clone(), 0);
    let (a, b) = (twin.wire(REGION, "a").await, twin.wire(REGION, "b").await);
    network.cut(a.advertise(), b.advertise());
    a.send(b.advertise(), envelope("cut"));
    assert!(timeout(BOUND, b.recv()).await.is_err());
    b.send(a.advertise(), envelope("other way"));
    assert!(timeout(BOUND, a.recv()).await.is_ok());
    network.heal();
    network.set_links(Link { loss: 1.0, ..Link::default() });
    a.send(b.advertise(), envelope("lost"));
    assert!(timeout(BOUND, b.recv()).await.is_err());
    network.set_links(Link::of(Delay::Fixed(Duration::from_secs(1))));
    a.send(b.advertise(), envelope("slow"));
    assert!(timeout(Duration::from_millis(900), b.recv()).await.is_err());
    assert!(timeout(Duration::from_millis(200), b.recv()).await.is_ok());
    network.set_slow(b.advertise(), Some(Duration::from_secs(1)));
    a.send(b.advertise(), envelope("slower"));
    assert!(timeout(Duration::from_millis(1900), b.recv()).await.is_err());
    assert!(timeout(Duration::from_millis(200), b.recv()).await.is_ok());
}

/// Without any delay messages arrive in the order in which they were sent.
#[tokio::test(start_paused = true)]
async fn a_network_without_delay_keeps_the_order() {
    let network = MemoryNetwork::new();
    network.set_links(Link::of(Delay::Fixed(Duration::ZERO)));
    let mut twin = Twin(network, 0);
    let (a, b) = (twin.wire(REGION, "a").await, twin.wire(REGION, "b").await);
    let started = tokio::time::Instant::now();
    for number in 0..200u8 {
        a.push(b.advertise(), Bytes::from(vec![number]));
    }
    for number in 0..200u8 {
        assert_eq!(b.pushed().await.unwrap().frame, vec![number]);
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// A frame under way is overtaken by one over a quicker link, and by none that leaves it later.
#[tokio::test(start_paused = true)]
async fn a_quick_link_overtakes_a_slow_one() {
    let network = MemoryNetwork::new();
    let mut twin = Twin(network.clone(), 0);
    let (a, b, c) =
        (twin.wire(REGION, "a").await, twin.wire(REGION, "b").await, twin.wire(REGION, "c").await);
    network.set_link(a.advertise(), c.advertise(), Link::of(Delay::Fixed(Duration::from_secs(3))));
    a.push(c.advertise(), Bytes::from_static(b"slow"));
    sleep(Duration::from_secs(1)).await;
    b.push(c.advertise(), Bytes::from_static(b"quick"));
    let quick = timeout(Duration::from_millis(10), c.pushed()).await.unwrap().unwrap();
    assert_eq!((quick.from, &quick.frame[..]), (b.advertise(), &b"quick"[..]));
    let slow = timeout(Duration::from_millis(2010), c.pushed()).await.unwrap().unwrap();
    assert_eq!((slow.from, &slow.frame[..]), (a.advertise(), &b"slow"[..]));
    network.reset_links();
    a.push(c.advertise(), Bytes::new());
    assert!(timeout(Duration::from_millis(10), c.pushed()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_frame_may_arrive_twice() {
    let network = MemoryNetwork::new();
    network.set_links(Link { duplicate: 1.0, ..Link::default() });
    let mut twin = Twin(network, 0);
    let (a, b) = (twin.wire(REGION, "a").await, twin.wire(REGION, "b").await);
    a.push(b.advertise(), Bytes::from_static(b"twice"));
    for _ in 0..2 {
        assert_eq!(timeout(BOUND, b.pushed()).await.unwrap().unwrap().frame, "twice");
    }
    assert!(timeout(BOUND, b.pushed()).await.is_err());
}

/// A question whose asker has given up, or whose answer is lost, was asked all the same; who crashes
/// with it says nothing.
#[tokio::test(start_paused = true)]
async fn a_question_outlives_its_asker() {
    let network = MemoryNetwork::new();
    let mut twin = Twin(network.clone(), 0);
    let (a, b) = (twin.wire(REGION, "a").await, twin.wire(REGION, "b").await);
    network.set_links(Link::of(Delay::Fixed(Duration::from_secs(1))));
    assert!(timeout(Duration::from_millis(500), a.ask(b.advertise(), vec![1])).await.is_err());
    assert!(timeout(Duration::from_millis(600), b.asked()).await.is_ok());
    network.cut(b.advertise(), a.advertise());
    let (answer, asked) = tokio::join!(timeout(BOUND, a.ask(b.advertise(), vec![2])), b.asked());
    assert!(answer.is_err());
    assert_eq!(asked.unwrap().body, [2]);
    network.heal();
    let address = b.advertise();
    let crash = async { drop((b.asked().await, b)) };
    let (answer, ()) = tokio::join!(timeout(BOUND, a.ask(address, vec![3])), crash);
    assert!(answer.is_err());
}
