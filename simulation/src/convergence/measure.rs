//! One sample: a quiet region, one change, and how long until all show it.

use std::time::Duration;

use anyhow::ensure;
use gossip::view::Via;
use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::perturbation::{Churn, Goal, Perturbation};
use super::sample::Sample;
use super::seats::{Seats, Setting};

/// Between two looks at all views; every sample is longer than the truth by at most this much.
const STEP: Duration = Duration::from_millis(1);
/// Who is not told by then never is.
const CEILING: Duration = Duration::from_secs(180);
/// Between two looks at a region that is starting.
const SETTLE_STEP: Duration = Duration::from_millis(10);
const SETTLE_WITHIN: Duration = Duration::from_secs(90);
/// chitchat takes newborn hosts for dead for a few rounds, and gossips with them less.
const SETTLED_ROUNDS: u32 = 10;
/// Between two steps of churn.
const CHURN_PAUSE: Duration = Duration::from_millis(20);

/// A sample, and what it cost.
pub struct Measured {
    /// The sample.
    pub sample: Sample,
    /// Bytes each host sent, on average, from the change until the last host showed it.
    pub bytes_per_host: u64,
}

/// Takes one sample.
///
/// # Errors
/// A region that does not settle, or a change that does not arrive everywhere within three minutes.
pub async fn measure(what: Perturbation, hosts: usize, setting: Setting) -> anyhow::Result<Measured> {
    let interval = setting.interval;
    let mut seats = Seats::new(hosts, setting)?;
    let members = (0..hosts).map(|host| what.begins_with(host, hosts)).collect();
    start(&mut seats, members, interval).await?;
    settle(&seats, SETTLE_STEP).await?;
    // Wherever in its round each host is, the change finds it there by chance.
    sleep(SETTLED_ROUNDS * interval + rand::rng().random_range(Duration::ZERO..interval)).await;

    let goal = what.goal(hosts)?;
    let waited_for = if what.is_churned() { hosts - 1 } else { hosts };
    let mut told = Told::before(&seats, &goal, waited_for);
    let sent = total_sent(&seats);
    let began = Instant::now();
    what.perturb(&mut seats).await?;
    let polls = watch(&seats, &goal, &mut told, what.is_churned().then(Churn::new)).await?;
    let elapsed = began.elapsed();
    let (pushed, repaired) = told.deliveries(&seats, &goal);
    let sample = Sample {
        perturbation: what.name().to_owned(),
        nodes: hosts,
        converged: waited_for,
        elapsed,
        polls,
        pushed,
        repaired,
    };
    let bytes_per_host = (total_sent(&seats) - sent) / hosts as u64;
    Ok(Measured { sample, bytes_per_host })
}

/// Has each host join at a random moment of one interval, with so many members; `None`: not at all.
///
/// # Errors
/// A host that cannot join.
pub async fn start(seats: &mut Seats, members: Vec<Option<usize>>, within: Duration) -> anyhow::Result<()> {
    let mut joining = JoinSet::new();
    for (host, members) in members.into_iter().enumerate() {
        let Some(members) = members else { continue };
        let (arrival, pause) =
            (seats.arrival(host, members)?, rand::rng().random_range(Duration::ZERO..within));
        joining.spawn(async move {
            sleep(pause).await;
            (host, arrival.await)
        });
    }
    while let Some(joined) = joining.join_next().await {
        let (host, seat) = joined?;
        seats.seats[host] = Some(seat?);
    }
    Ok(())
}

/// Waits until every view has all of everybody's records.
///
/// # Errors
/// A region in which that does not come.
pub async fn settle(seats: &Seats, step: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    while !agreed(seats) {
        ensure!(began.elapsed() < SETTLE_WITHIN, "{} hosts do not settle", seats.taken().count());
        sleep(step).await;
    }
    Ok(())
}

/// Whether every view has everybody's newest version, and has it in answers.
pub fn agreed(seats: &Seats) -> bool {
    let own = |seat: &super::seats::Seat| {
        let view = seat.view();
        view.hosts.get(&seat.id).map(|host| (seat.id.clone(), host.generation, host.version))
    };
    let Some(newest) = seats.taken().map(|(_, seat)| own(seat)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    seats.taken().all(|(_, seat)| {
        let view = seat.view();
        let has = |(id, generation, version): &(_, u64, u64)| {
            view.hosts.get(id).is_some_and(|host| {
                (host.generation, host.version) == (*generation, *version) && host.standing.answers()
            })
        };
        view.whole && newest.iter().all(has)
    })
}

/// Which hosts show it, and how they came by it.
struct Told {
    /// In the order of their numbers: how each that is waited for got it.
    via: Vec<Option<Via>>,
    /// Whether it did so before the clock started.
    before: Vec<bool>,
}

impl Told {
    fn before(seats: &Seats, goal: &Goal, waited_for: usize) -> Told {
        let mut told = Told { via: vec![None; waited_for], before: Vec::new() };
        told.look(seats, goal);
        told.before = told.via.iter().map(Option::is_some).collect();
        told
    }

    /// Looks at those who did not show it yet.
    fn look(&mut self, seats: &Seats, goal: &Goal) {
        for (via, seat) in self.via.iter_mut().zip(&seats.seats) {
            if via.is_none() {
                *via = seat.as_ref().and_then(|seat| goal.reached(&seat.view()));
            }
        }
    }

    fn is_everybody(&self) -> bool {
        self.via.iter().all(Option::is_some)
    }

    /// How many were pushed it, and how many got it otherwise.
    fn deliveries(&self, seats: &Seats, goal: &Goal) -> (usize, usize) {
        let is_other = |host: usize| seats.seat(host).is_ok_and(|seat| seat.id != goal.owner);
        let told: Vec<Via> = (0..self.via.len())
            .filter(|host| !self.before[*host] && is_other(*host))
            .filter_map(|host| self.via[host])
            .collect();
        let pushed = told.iter().filter(|via| **via == Via::Frame).count();
        (pushed, told.len() - pushed)
    }
}

/// Looks once in a millisecond until everybody shows it; how often that was.
async fn watch(
    seats: &Seats,
    goal: &Goal,
    told: &mut Told,
    mut churn: Option<Churn>,
) -> anyhow::Result<usize> {
    let began = Instant::now();
    let mut next_churn = began;
    for polls in 1.. {
        told.look(seats, goal);
        if told.is_everybody() {
            return Ok(polls);
        }
        let missing = told.via.iter().filter(|via| via.is_none()).count();
        ensure!(began.elapsed() < CEILING, "{missing} hosts never showed what {} published", goal.owner);
        if let Some(churn) = churn.as_mut().filter(|_| Instant::now() >= next_churn) {
            churn.step(seats).await?;
            next_churn = Instant::now() + CHURN_PAUSE;
        }
        sleep(STEP).await;
    }
    unreachable!("polls without end")
}

fn total_sent(seats: &Seats) -> u64 {
    seats.taken().map(|(_, seat)| seat.sent()).sum()
}
