//! A large region over links of a metropolitan one, from its cold start on: how long news takes, what silence
//! costs, how soon the dead are found, and how long a newcomer needs.

use std::time::Duration;

use anyhow::ensure;
use gossip::memory::Link;
use gossip::record::MemberState;
use gossip::{Change, Standing};
use rand::RngExt as _;
use rand::seq::IteratorRandom as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::measure::{agreed, start};
use super::sample::percentile;
use super::seats::{Seats, Setting, member, member_id, network};
use super::{ms, sorted};

/// 1 Gbit/s.
const BANDWIDTH: u64 = 125_000_000;
/// From this number of hosts on a region's rounds take a second.
const SLOW_ROUNDS_FROM: usize = 501;
/// A quiet region is measured for so long.
const IDLE: Duration = Duration::from_secs(20);
const WRITES: usize = 20;
/// Between two writes, beside a random part.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at who shows a write.
const STEP: Duration = Duration::from_millis(1);
/// Between two looks at all views; a large region's take their time.
const LOOK: Duration = Duration::from_millis(100);
const WITHIN: Duration = Duration::from_secs(120);
/// Hosts that crash, one after another.
const DEATHS: usize = 3;
/// A share of the messages is lost.
const LOSS: f64 = 0.1;
/// QUIC repeats a lost packet after its probe timeout: round trip and variance, and the 25 ms for which a peer
/// may hold back an acknowledgement (RFC 9002, section 6.2.1).
const QUIC_REPEATS_AFTER: Duration = Duration::from_millis(30);

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Hosts at the start.
    pub hosts: usize,
    /// Members of each.
    pub members: usize,
    /// Whether changes are pushed at once.
    pub eager: bool,
}

/// One thing that was measured: a number of values.
#[derive(Debug)]
pub struct Figure {
    /// What.
    pub metric: &'static str,
    /// Of what its values are numbers.
    pub unit: &'static str,
    /// Sorted.
    pub values: Vec<f64>,
}

impl Figure {
    fn of(metric: &'static str, unit: &'static str, values: impl IntoIterator<Item = f64>) -> Figure {
        Figure { metric, unit, values: sorted(values.into_iter()) }
    }

    /// As a JSON object with its percentiles.
    pub fn json(&self) -> Value {
        let at = |percent| percentile(&self.values, percent);
        let quantiles: Vec<f64> = (1..=100).map(at).collect();
        json!({
            "metric": self.metric, "unit": self.unit, "count": self.values.len(),
            "p50": at(50), "p90": at(90), "p99": at(99), "max": at(100), "quantiles": quantiles,
        })
    }
}

impl Region {
    /// Measures all of it, and tells each figure once it is there: large regions take their time.
    ///
    /// # Errors
    /// A region that does not settle, news that does not arrive, or a listener that fails.
    pub async fn measure(self, mut tell: impl FnMut(&Figure) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Region { hosts, members, eager } = self;
        let interval = Duration::from_millis(if hosts < SLOW_ROUNDS_FROM { 500 } else { 1000 });
        let links = Link { bandwidth: Some(BANDWIDTH), ..Link::default() };
        let lossy = Link { loss: LOSS, ..links.clone() };
        let repeating = Link { loss_delay: Some(QUIC_REPEATS_AFTER), ..lossy.clone() };
        // One seat more, for the newcomer.
        let mut seats = Seats::new(hosts + 1, Setting { links: links.clone(), eager, interval })?;

        tell(&cold_start(&mut seats, hosts, members).await?)?;
        sleep(10 * interval).await;
        idle(&seats).await.iter().try_for_each(&mut tell)?;
        tell(&writes(&seats, "write", members).await?)?;
        seats.network.set_links(repeating);
        tell(&writes(&seats, "write, 10 % lost and repeated after 30 ms", members + WRITES).await?)?;
        seats.network.set_links(lossy);
        tell(&writes(&seats, "write, 10 % lost for good", members + 2 * WRITES).await?)?;
        tell(&false_alarms(&seats).await)?;
        seats.network.set_links(links);
        tell(&newcomer(&mut seats, hosts).await?)?;
        tell(&deaths(&mut seats).await?)
    }
}

/// All hosts start within a second and know nobody but the seeds.
async fn cold_start(seats: &mut Seats, hosts: usize, members: usize) -> anyhow::Result<Figure> {
    let began = Instant::now();
    let members = (0..=hosts).map(|host| (host < hosts).then_some(members)).collect();
    start(seats, members, Duration::from_secs(1)).await?;
    agree(seats).await?;
    Ok(Figure::of("cold start of all hosts at once", "ms", [ms(began.elapsed())]))
}

async fn agree(seats: &Seats) -> anyhow::Result<()> {
    let began = Instant::now();
    while !agreed(seats) {
        ensure!(began.elapsed() < WITHIN, "{} hosts do not agree", seats.taken().count());
        sleep(LOOK).await;
    }
    Ok(())
}

/// What each host sends while nothing happens, payload before QUIC; and how often a live host is out of
/// another's answers.
async fn idle(seats: &Seats) -> [Figure; 2] {
    let sent = || -> Vec<f64> { seats.taken().map(|(_, seat)| seat.sent() as f64).collect() };
    let before = sent();
    let alarms = false_alarms(seats).await;
    let rates = sent().into_iter().zip(before).map(|(after, before)| (after - before) / IDLE.as_secs_f64());
    [
        Figure::of("sent by an idle host", "B/s", rates),
        Figure { metric: "live hosts out of answers", ..alarms },
    ]
}

/// Once a second: how many live hosts are out of a live host's answers.
async fn false_alarms(seats: &Seats) -> Figure {
    let mut alarms = Vec::new();
    for _ in 0..IDLE.as_secs() {
        sleep(Duration::from_secs(1)).await;
        let missed = |seat: &super::seats::Seat| {
            let view = seat.view();
            seats
                .taken()
                .filter(|(_, other)| !view.hosts.get(&other.id).is_some_and(|h| h.standing.answers()))
                .count()
        };
        alarms.push(seats.taken().map(|(_, seat)| missed(seat)).sum::<usize>() as f64);
    }
    Figure::of("live hosts out of answers, 10 % lost for good", "pairs", alarms)
}

/// Members attached by hosts of chance: for each other host how long until it shows each.
async fn writes(seats: &Seats, metric: &'static str, first: usize) -> anyhow::Result<Figure> {
    let mut taken = Vec::new();
    for number in first..first + WRITES {
        sleep(PAUSE + rand::rng().random_range(Duration::ZERO..PAUSE)).await;
        let (host, seat) = seats.taken().choose(&mut rand::rng()).expect("a region has hosts");
        seat.publish(vec![Change::Put(member(host, number, 2, MemberState::Ready))]).await?;
        taken.extend(arrivals(seats, host, number).await?);
    }
    Ok(Figure::of(metric, "ms", taken))
}

async fn arrivals(seats: &Seats, owner: usize, number: usize) -> anyhow::Result<Vec<f64>> {
    let began = Instant::now();
    let (id, key) = (&seats.seat(owner)?.id, (network(), member_id(owner, number)));
    let mut missing: Vec<_> = seats.taken().filter(|(host, _)| *host != owner).collect();
    let mut taken = Vec::with_capacity(missing.len());
    while !missing.is_empty() {
        let before = missing.len();
        let shows = |seat: &super::seats::Seat| {
            seat.view().hosts.get(id).is_some_and(|host| host.records.members.contains_key(&key))
        };
        missing.retain(|(_, seat)| !shows(seat));
        taken.extend(std::iter::repeat_n(ms(began.elapsed()), before - missing.len()));
        ensure!(began.elapsed() < WITHIN, "{} hosts were never told", missing.len());
        sleep(STEP).await;
    }
    Ok(taken)
}

/// One more host joins: how long until its view has everything.
async fn newcomer(seats: &mut Seats, number: usize) -> anyhow::Result<Figure> {
    agree(seats).await?;
    let known = seats.seat(0)?.view();
    let began = Instant::now();
    let seat = seats.arrival(number, 0)?.await?;
    loop {
        let view = seat.view();
        let has = |(id, host): (_, &gossip::view::Host)| {
            view.hosts.get(id).is_some_and(|seen| seen.version >= host.version)
        };
        if known.hosts.iter().all(has) {
            break;
        }
        ensure!(began.elapsed() < WITHIN, "the newcomer never has everything");
        sleep(STEP).await;
    }
    seats.seats[number] = Some(seat);
    Ok(Figure::of("cold join of one host", "ms", [ms(began.elapsed())]))
}

/// Hosts crash: for each other host how long until each is out of its answers.
async fn deaths(seats: &mut Seats) -> anyhow::Result<Figure> {
    agree(seats).await?;
    let mut taken = Vec::new();
    for _ in 0..DEATHS {
        // Chitchat judges by the heartbeats of the last while; nobody is new then.
        sleep(Duration::from_secs(10)).await;
        let number = seats.taken().map(|(number, _)| number).choose(&mut rand::rng());
        let seat = number.and_then(|number| seats.seats[number].take()).expect("a region has hosts");
        let id = seat.id.clone();
        drop(seat);
        let began = Instant::now();
        let mut missing: Vec<_> = seats.taken().map(|(_, seat)| seat).collect();
        while !missing.is_empty() {
            let before = missing.len();
            missing.retain(|seat| {
                seat.view().hosts.get(&id).map(|host| host.standing).is_some_and(Standing::answers)
            });
            taken.extend(std::iter::repeat_n(ms(began.elapsed()), before - missing.len()));
            ensure!(began.elapsed() < WITHIN, "{} hosts never found {id} dead", missing.len());
            sleep(10 * STEP).await;
        }
    }
    Ok(Figure::of("dead host out of answers", "ms", taken))
}
