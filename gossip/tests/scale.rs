//! A region of a thousand hosts in one process: how soon, how many bytes, how much CPU. By hand:
//! `HOSTS=1000 MEMBERS=20 cargo test --release -p gossip --test suite scale -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::time::Duration;

use gossip::id::MemberId;
use gossip::memory::{Delay, Link, MemoryNetwork};
use gossip::record::{Key, MemberRecord, PublicKey, Record};
use gossip::{Arrival, Change, Config, Gossip, Interner, Timings};
use tokio::time::{Instant, sleep};

use crate::common::{REGION, host_id, host_record};
use crate::eager::{address, name};

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// CPU seconds of this process since the last call: other work on the machine does not count.
struct Stopwatch(f64);

impl Stopwatch {
    fn lap(&mut self) -> f64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // User and system time, in hundredths of a second.
        let times = stat.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        let now = times.sum::<f64>() / 100.0;
        now - std::mem::replace(&mut self.0, now)
    }
}

fn resident_mib() -> u64 {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse().ok())
        .unwrap_or(0);
    pages * 4096 / (1024 * 1024)
}

/// A member as hosts publish them: what is random in it does not compress.
fn member(number: u32) -> Record {
    match crate::common::member(number) {
        Record::Member(network, _, record) => {
            let key = std::array::from_fn(|_| rand::random());
            let record = MemberRecord { key: PublicKey(key), ..record };
            Record::Member(network, MemberId::random(), record)
        }
        other => other,
    }
}

fn config(number: usize, hosts: usize, parsed: &Interner) -> Config {
    let interval = Duration::from_millis(if hosts > 500 { 1000 } else { 500 });
    Config {
        interval,
        timings: Timings::of(interval),
        eager: self::number("EAGER", 1) == 1,
        parsed: parsed.clone(),
        seeds: if number == 0 { Vec::new() } else { vec![address(0).to_string(), address(1).to_string()] },
        ..crate::common::config(&name(number), address(number), &[])
    }
}

fn bytes(hosts: &[Gossip], kind: &'static str) -> u64 {
    let sent =
        |host: &Gossip| host.counters().get("gossip_bytes_total", &[("direction", "out"), ("kind", kind)]);
    hosts.iter().map(sent).sum()
}

fn frames(hosts: &[Gossip]) -> BTreeMap<&'static str, u64> {
    let outcomes = ["applied", "duplicate", "gap", "old", "shed", "malformed"];
    let count = |outcome: &'static str| {
        hosts.iter().map(|host| host.counters().get("frames_total", &[("outcome", outcome)])).sum()
    };
    outcomes.into_iter().map(|outcome| (outcome, count(outcome))).collect()
}

fn members_of(view: &gossip::View) -> usize {
    view.hosts.values().map(|host| host.records.members.len()).sum()
}

#[tokio::test(start_paused = true)]
#[ignore = "measures for minutes; run it alone, in release"]
async fn a_region_of_a_thousand() {
    let (hosts, members, writes) = (number("HOSTS", 200), number("MEMBERS", 20), number("WRITES", 50));
    let (network, parsed) = (MemoryNetwork::new(), Interner::shared());
    let delay = Delay::Uniform(Duration::from_micros(300)..=Duration::from_micros(1500));
    let loss = number("LOSS", 0) as f64 / 100.0;
    network.set_links(Link { delay, loss, bandwidth: Some(125_000_000), ..Link::default() });
    let join = async |number: usize| {
        let wire = network.wire(&REGION.parse().unwrap(), &host_id(&name(number)), address(number));
        let records = (0..members as u32).map(|n| member(number as u32 * 1000 + n));
        let records: Vec<Record> = records.chain([host_record(&name(number))]).collect();
        let arrival = Arrival::at(config(number, hosts, &parsed), wire).await.unwrap();
        arrival.join(records, |_| Ok(())).await.unwrap().0
    };
    let mut cpu = Stopwatch(0.0);
    let started = Instant::now();
    let mut region: Vec<Gossip> = futures::future::join_all((0..hosts).map(join)).await;
    println!("{hosts} × {members}: all arrived after {:?} ({:.1} CPU-s)", started.elapsed(), cpu.lap());
    let all_see = async |region: &[Gossip], expected: usize| {
        for host in region {
            let mut views = host.view();
            views.wait_for(|view| view.whole && members_of(view) == expected).await.unwrap();
        }
    };
    all_see(&region, hosts * members).await;
    println!("  all see all after {:?} ({:.1} CPU-s), {} MiB", started.elapsed(), cpu.lap(), resident_mib());
    sleep(Duration::from_secs(10)).await;
    cpu.lap();

    let sent = (bytes(&region, "envelope"), bytes(&region, "frame"));
    sleep(Duration::from_secs(20)).await;
    let per_host = |bytes: u64, seconds: f64| bytes as f64 / hosts as f64 / seconds / 1000.0;
    let envelopes = per_host(bytes(&region, "envelope") - sent.0, 20.0);
    println!("  idle: {:.2} CPU-s per virtual s, {envelopes:.1} kB/s per host", cpu.lap() / 20.0);

    let before = frames(&region);
    let sent = bytes(&region, "frame");
    let mut took: Vec<u64> = Vec::new();
    for write in 0..writes {
        let writer = write * 7 % hosts;
        let record = member(writer as u32 * 1000 + 500 + write as u32);
        let key = record.key();
        region[writer].publish(vec![Change::Put(record)]).await.unwrap();
        let mut waiting: Vec<usize> = (0..hosts).collect();
        let written = Instant::now();
        let id = host_id(&name(writer));
        while !waiting.is_empty() && written.elapsed() < Duration::from_secs(10) {
            waiting.retain(|host| {
                let view = region[*host].view();
                let view = view.borrow();
                let Key::Member(network, member) = &key else { unreachable!() };
                let has = view.hosts[&id].records.members.contains_key(&(*network, member.clone()));
                if has {
                    took.push(written.elapsed().as_millis() as u64);
                }
                !has
            });
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let frame_bytes = (bytes(&region, "frame") - sent) as f64 / writes as f64 / hosts as f64;
    println!(
        "  {writes} writes: p50 {} p90 {} p99 {} max {} ms; {frame_bytes:.0} B of frames per host and write ({:.1} CPU-s)",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        cpu.lap()
    );
    println!("  frames before {before:?}\n  after {:?}", frames(&region));

    let churned = churn(&region, number("CHURN_MS", 2000) as u64).await;
    println!("  {churned} ({:.1} CPU-s)", cpu.lap());
    println!("  frames {:?}", frames(&region));

    let alone = Instant::now();
    let late = join(hosts).await;
    let expected = members_of(&region[0].view().borrow());
    let arrived = alone.elapsed();
    let has = members_of(&late.view().borrow());
    println!("  one joins: {arrived:?}, has {has} of {} ({:.1} CPU-s)", expected + members, cpu.lap());
    region.push(late);
    all_see(&region, expected + members).await;
    println!("  all see it after {:?}, {} MiB", alone.elapsed(), resident_mib());
}

/// Eight writes each 20 ms, somewhere; and how long one in eight takes to be everywhere.
async fn churn(region: &[Gossip], lasting_ms: u64) -> String {
    let started = Instant::now();
    let sent = bytes(region, "frame");
    let (mut waiting, mut took, mut tick) = (Vec::new(), Vec::new(), 0_u64);
    while tick < lasting_ms || (!waiting.is_empty() && tick < lasting_ms + 10_000) {
        if tick < lasting_ms && tick.is_multiple_of(20) {
            for write in 0..8 {
                let writer = rand::random_range(0..region.len());
                let record = member(tick as u32 * 8 + write);
                let Key::Member(network, id) = record.key() else { unreachable!() };
                region[writer].publish(vec![Change::Put(record)]).await.unwrap();
                if write == 0 {
                    let hosts: Vec<usize> = (0..region.len()).collect();
                    waiting.push((started.elapsed(), host_id(&name(writer)), (network, id), hosts));
                }
            }
        }
        for (at, writer, key, hosts) in &mut waiting {
            let age = (started.elapsed() - *at).as_millis() as u64;
            hosts.retain(|host| {
                let has = region[*host].view().borrow().hosts[writer].records.members.contains_key(key);
                took.extend(has.then_some(age));
                !has
            });
        }
        waiting.retain(|(.., hosts)| !hosts.is_empty());
        sleep(Duration::from_millis(1)).await;
        tick = started.elapsed().as_millis() as u64;
    }
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let rate = (bytes(region, "frame") - sent) as f64 / region.len() as f64 / lasting_ms as f64;
    format!(
        "churn: p50 {} p90 {} p99 {} max {} ms, {} not seen; {rate:.0} kB/s of frames per host",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        waiting.len()
    )
}
