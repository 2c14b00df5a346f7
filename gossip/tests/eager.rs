//! Regions in memory, under a paused clock: how soon a change is everywhere, and what cannot get in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gossip::id::{HostId, NetworkId};
use gossip::memory::{Delay, Link, MemoryNetwork, MemoryWire};
use gossip::record::{Key, Record};
use gossip::view::Via;
use gossip::{Arrival, Change, Config, Counters, Gossip, JoinError, Timings, View, Wire as _};
use tokio::time::{Instant, sleep, timeout};

use crate::common::{NETWORK, REGION, host_id, host_record, member};

const INTERVAL: Duration = Duration::from_millis(500);

pub fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 7946))
}

pub fn name(number: usize) -> String {
    format!("h{number}")
}

fn config(number: usize, eager: bool) -> Config {
    Config {
        interval: INTERVAL,
        timings: Timings::of(INTERVAL),
        eager,
        seeds: if number == 0 { Vec::new() } else { vec![address(0).to_string()] },
        ..crate::common::config(&name(number), address(number), &[])
    }
}

/// A region whose links take 0.3 to 1.5 ms.
struct Region {
    network: MemoryNetwork,
    hosts: Vec<Gossip>,
    eager: bool,
}

impl Region {
    async fn of(hosts: usize, eager: bool) -> Self {
        let network = MemoryNetwork::new();
        let delay = Delay::Uniform(Duration::from_micros(300)..=Duration::from_micros(1500));
        network.set_links(Link { delay, ..Link::default() });
        let mut region = Self { network, hosts: Vec::new(), eager };
        for number in 0..hosts {
            let host = region.arrive(number, vec![host_record(&name(number))]).await.unwrap();
            region.hosts.push(host);
        }
        region.until("all see all", |view| view.answering().count() == hosts && view.whole).await;
        // Past the time in which everybody is news.
        sleep(3 * INTERVAL).await;
        region
    }

    fn wire(&self, number: usize) -> MemoryWire {
        self.network.wire(&REGION.parse().unwrap(), &host_id(&name(number)), address(number))
    }

    async fn arrive(&self, number: usize, records: Vec<Record>) -> Result<Gossip, JoinError> {
        let arrival = Arrival::at(config(number, self.eager), self.wire(number)).await?;
        Ok(arrival.join(records, |_| Ok(())).await?.0)
    }

    /// Waits until all views are so; returns how long that took.
    async fn until(&self, what: &str, mut condition: impl FnMut(&View) -> bool) -> Duration {
        let started = Instant::now();
        for host in &self.hosts {
            let mut views = host.view();
            let waited = timeout(Duration::from_secs(60), views.wait_for(|view| condition(view))).await;
            assert!(waited.is_ok(), "not within 60 s: {what}");
        }
        started.elapsed()
    }

    /// Publishes one more member and waits until all have it.
    async fn write(&self, host: usize, number: u32) -> Duration {
        let Record::Member(network, id, _) = member(number) else { unreachable!() };
        self.hosts[host].publish(vec![Change::Put(member(number))]).await.unwrap();
        self.until("all have the member", |view| {
            view.hosts
                .get(&host_id(&name(host)))
                .is_some_and(|host| host.records.members.contains_key(&(network, id.clone())))
        })
        .await
    }

    fn frames(&self, outcome: &'static str) -> u64 {
        let counters = self.hosts.iter().map(Gossip::counters);
        counters.map(|counters: Arc<Counters>| counters.get("frames_total", &[("outcome", outcome)])).sum()
    }
}

fn member_key(number: u32) -> Key {
    member(number).key()
}

#[tokio::test(start_paused = true)]
async fn a_write_is_everywhere_within_milliseconds() {
    let region = Region::of(25, true).await;
    let mut took = Vec::new();
    for number in 0..100 {
        took.push(region.write(number as usize % 25, 1000 + number).await);
        sleep(Duration::from_millis(130)).await;
    }
    took.sort();
    assert!(took[50] <= Duration::from_millis(10), "p50 {:?}", took[50]);
    assert!(took[90] <= Duration::from_millis(20), "p90 {:?}", took[90]);
    assert!(took[99] <= INTERVAL, "max {:?}", took[99]);
    assert!(region.frames("malformed") == 0 && region.frames("applied") > 2000);
    let view = region.hosts[3].view().borrow().clone();
    let by_frame = view.hosts.values().filter(|host| host.via == Via::Frame).count();
    assert!(by_frame >= 20, "{by_frame} of 24 newest versions came by frame");
}

#[tokio::test(start_paused = true)]
async fn without_frames_chitchat_takes_its_intervals() {
    let region = Region::of(25, false).await;
    let took = region.write(3, 1000).await;
    assert!(took > Duration::from_millis(50) && took < 4 * INTERVAL, "{took:?}");
    assert_eq!(region.frames("applied"), 0);
}

#[tokio::test(start_paused = true)]
async fn lost_frames_are_repaired() {
    let region = Region::of(25, true).await;
    region.network.set_links(Link { loss: 0.25, ..Link::default() });
    let mut longest = Duration::ZERO;
    for number in 0..50 {
        longest = longest.max(region.write(number as usize % 25, 1000 + number).await);
    }
    assert!(longest < 6 * INTERVAL, "{longest:?}");
    region.network.set_links(Link::default());
    let expected = region.hosts[0].view().borrow().members().count();
    region.until("all have all", |view| view.members().count() == expected.max(50)).await;
}

#[tokio::test(start_paused = true)]
async fn who_missed_frames_pulls_what_is_missing() {
    let region = Region::of(8, true).await;
    // So much that only windows are pushed.
    let many: Vec<Change> = (0..60).map(|n| Change::Put(member(n))).collect();
    region.hosts[1].publish(many).await.unwrap();
    let has = |number: u32| {
        move |view: &View| {
            view.hosts[&host_id("h1")].records.iter().any(|record| record.key() == member_key(number))
        }
    };
    region.until("all have the many", has(59)).await;
    for other in (0..8).filter(|other| *other != 7) {
        region.network.cut(address(other), address(7));
    }
    for number in 100..120 {
        region.hosts[1].publish(vec![Change::Put(member(number))]).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    // The frames of that time are out of the window.
    sleep(Duration::from_millis(2100)).await;
    region.network.heal();
    region.hosts[1].publish(vec![Change::Put(member(200))]).await.unwrap();
    region.until("all have the last", has(200)).await;
    let gaps = region.hosts[7].counters().get("frames_total", &[("outcome", "gap")]);
    assert!(gaps > 0, "it heard of the gap");
    assert!(region.hosts[7].view().borrow().hosts[&host_id("h1")].records.members.len() == 81);
}

#[tokio::test(start_paused = true)]
async fn what_one_host_has_is_pulled_without_a_digest() {
    let region = Region::of(8, true).await;
    for other in 0..7 {
        region.network.cut(address(other), address(7));
    }
    region.hosts[1].publish(vec![Change::Put(member(100))]).await.unwrap();
    sleep(Duration::from_millis(20)).await;
    region.network.heal();
    let count = |kind| {
        region.hosts[7].counters().get("gossip_messages_total", &[("direction", "out"), ("kind", kind)])
    };
    let (asked, mut views) = (count("ask"), region.hosts[7].view());
    region.hosts[7].pull(&host_id("h1"));
    let has = |view: &std::sync::Arc<View>| view.members().count() == 1;
    // A round of chitchat would come at some time of its interval, and take three messages.
    let waited = timeout(Duration::from_millis(5), views.wait_for(has)).await;
    assert!(waited.is_ok(), "an answer takes a round trip");
    assert_eq!(count("ask"), asked + 1);
}

/// A frame as version 1 of the format writes it.
fn frame(
    owner: &str,
    generation: u64,
    at: SocketAddr,
    extent: (u64, u64, u64),
    key: &str,
    value: &str,
) -> Bytes {
    fn number(mut number: u64, bytes: &mut Vec<u8>) {
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    }
    let mut bytes = vec![1];
    number(owner.len() as u64, &mut bytes);
    bytes.extend_from_slice(owner.as_bytes());
    number(generation, &mut bytes);
    let SocketAddr::V4(at) = at else { unreachable!() };
    bytes.push(0);
    bytes.extend_from_slice(&at.ip().octets());
    number(at.port().into(), &mut bytes);
    for part in [extent.0, extent.1, extent.2] {
        number(part, &mut bytes);
    }
    bytes.extend_from_slice(&[0; 4]);
    number(1, &mut bytes);
    for text in [key, value] {
        number(text.len() as u64, &mut bytes);
        bytes.extend_from_slice(text.as_bytes());
    }
    number(extent.1, &mut bytes);
    bytes.push(0);
    bytes.into()
}

#[tokio::test(start_paused = true)]
async fn forged_frames_change_nothing() {
    let region = Region::of(4, true).await;
    let own = region.hosts[0].generation();
    let other = region.hosts[1].generation();
    let liar = region.wire(9);
    let count = |outcome| region.hosts[0].counters().get("frames_total", &[("outcome", outcome)]);
    let forge = async |bytes: Bytes, outcome: &'static str| {
        let before = count(outcome);
        let view = region.hosts[0].view().borrow().clone();
        liar.push(address(0), bytes);
        sleep(Duration::from_millis(20)).await;
        assert_eq!(count(outcome), before + 1, "{outcome}");
        assert_eq!(*region.hosts[0].view().borrow(), view, "{outcome}");
    };
    let host = host_record("h1").encode();
    forge(frame("h0", own, address(0), (0, u64::MAX, 0), "host", &host), "own").await;
    forge(frame("h0", own + 1, address(9), (0, 5, 0), "host", &host), "own").await;
    forge(frame("h1", other - 1, address(1), (0, 99, 0), "host", &host), "old").await;
    forge(frame("h1", other, address(1), (0, 1, 0), "host", &host), "duplicate").await;
    forge(frame("h1", other, address(1), (50, 99, 0), "host", &host), "gap").await;
    forge(frame("h1", other, address(1), (1, 3, 0), "h\u{f6}st", &host), "malformed").await;
    forge(frame("h1", other, address(1), (1, 3, 0), "host", &"x".repeat(2000)), "malformed").await;
    forge(Bytes::from_static(b"\x01junk"), "malformed").await;
    forge(Bytes::new(), "malformed").await;
    forge(frame("h1", other, address(1), (0, u64::MAX, 0), "host", &host), "quarantined").await;
    // While its owner is in quarantine its true frames are not heard either; chitchat carries them.
    let took = region.write(1, 77).await;
    assert!(took < 4 * INTERVAL, "{took:?}");
    assert_eq!(region.hosts[1].generation(), other);
    assert!(count("quarantined") > 1);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_is_whole_at_once() {
    let mut region = Region::of(10, true).await;
    for number in 0..9 {
        let members = (0..20).map(|n| Change::Put(member(100 * number + n))).collect();
        region.hosts[number as usize].publish(members).await.unwrap();
    }
    region.until("all have all", |view| view.members().count() == 180).await;
    let started = Instant::now();
    let arrival = Arrival::at(config(10, true), region.wire(10)).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    let view = arrival.view();
    assert!(view.whole && view.members().count() == 180 && view.hosts.len() == 10);
    assert!(view.hosts.values().all(|host| host.via == Via::Snapshot));
    let (host, _asks) = arrival.join(vec![host_record("h10")], |_| Ok(())).await.unwrap();
    region.hosts.push(host);
    let took = region.until("all see it", |view| view.hosts.len() == 11).await;
    assert!(took <= Duration::from_millis(50), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_returns_hears_of_its_older_self_and_the_rest_of_it_is_a_ghost() {
    let mut region = Region::of(5, true).await;
    region.hosts[4].publish((0..3).map(|n| Change::Put(member(n))).collect()).await.unwrap();
    region.until("all have the members", |view| view.members().count() == 3).await;
    let generation = region.hosts[4].generation();
    // A crash, and an empty state directory.
    drop(region.hosts.pop());
    sleep(Duration::from_secs(10)).await;
    let arrival = Arrival::at(config(4, true), region.wire(4)).await.unwrap();
    let own = host_id("h4");
    assert_eq!(arrival.view().hosts[&own].records.members.len(), 3);
    let records = vec![host_record("h4"), member(1)];
    let (host, _asks) = arrival.join(records, |_| Ok(())).await.unwrap();
    assert!(host.generation() > generation);
    region.hosts.push(host);
    let network: NetworkId = NETWORK.parse().unwrap();
    let vanished = |view: &View| -> Vec<(HostId, Key)> {
        let ghosts = view.ghosts();
        ghosts.map(|ghost| (ghost.host.clone(), Key::Member(*ghost.network, ghost.member.clone()))).collect()
    };
    let expected = vec![(own.clone(), member_key(0)), (own.clone(), member_key(2))];
    region.until("two are ghosts", |view| vanished(view) == expected).await;
    // A joiner hears of them, and how old they are.
    sleep(Duration::from_secs(100)).await;
    let late = region.arrive(6, vec![host_record("h6")]).await.unwrap();
    assert_eq!(vanished(&late.view().borrow()), expected);
    region.hosts.push(late);
    let took = region.until("they are forgotten", |view| view.vanished.is_empty()).await;
    assert!(took < Duration::from_secs(21), "{took:?}");
    assert!(region.hosts[0].view().borrow().members().all(|(_, _, pn, _, _)| *pn == network));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_starts_at_once_becomes_whole() {
    let network = MemoryNetwork::new();
    let region = Region { network, hosts: Vec::new(), eager: true };
    let starting =
        (0..40).map(|number| region.arrive(number, vec![host_record(&name(number)), member(number as u32)]));
    let hosts: Result<Vec<Gossip>, JoinError> =
        futures::future::join_all(starting).await.into_iter().collect();
    let region = Region { network: region.network.clone(), hosts: hosts.unwrap(), eager: true };
    let took = region.until("all are whole", |view| view.whole && view.members().count() == 40).await;
    assert!(took < 10 * INTERVAL, "{took:?}");
}
