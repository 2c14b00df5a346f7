//! Scenarios drawn from a seed: rules with guards and weights. Each ends with all faults over.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use crate::cluster::{GONE, Life, Role, SEEDS};
use crate::operation::{Disk, Lie, Operation, Place, Sabotage, Sky};
use crate::stage::Stage;

/// How many hosts a region drawn from a seed has.
const HOSTS: std::ops::RangeInclusive<u16> = 5..=50;
/// Containers that a host starts with at most.
const CONTAINERS_MAX: usize = 3;
const NETWORKS: usize = 2;
/// So many hosts at most are started later, while others attach.
const MET_LATE: usize = 4;
/// How many attaches then begin, and how many milliseconds after the start: about when it joins.
const RUSHING: usize = 16;
const RUSH: std::ops::Range<u64> = 3..14;
/// A member younger than this may not be known elsewhere yet.
const YOUNG: Duration = Duration::from_secs(5);

/// How many hosts a seed's region has.
pub fn hosts(rng: &mut SmallRng) -> u16 {
    // Small regions run sooner, and find as much.
    let (a, b) = (rng.random_range(HOSTS), rng.random_range(HOSTS));
    a.min(b)
}

/// Plays a scenario that the seed draws: a region starts and fills, is disturbed for about `lasting`, heals.
pub async fn play(stage: &mut Stage, rng: &mut SmallRng, lasting: Duration) -> anyhow::Result<()> {
    begin(stage, rng).await?;
    rush(stage, rng).await?;
    let end = stage.cluster.history.elapsed() + lasting;
    while stage.cluster.history.elapsed() < end {
        let burst = rng.random_range(1..=4);
        for _ in 0..burst {
            if let Some(operation) = draw(stage, rng) {
                stage.perform(&operation).await?;
            }
        }
        stage.perform(&Operation::Wait(pause(rng))).await?;
        if rng.random_bool(0.1) {
            stage.play([Operation::Heal, Operation::Settle]).await?;
            contest(stage, rng).await?;
        }
    }
    stage.play([Operation::Heal, Operation::Settle]).await?;
    if rng.random_bool(0.3) {
        contest(stage, rng).await?;
    }
    rush(stage, rng).await?;
    if rng.random_bool(0.4) {
        bury(stage, rng).await?;
    }
    stage.perform(&Operation::Rest).await
}

/// A host is down for so long that it is gone, and others attach what it has.
async fn bury(stage: &mut Stage, rng: &mut SmallRng) -> anyhow::Result<()> {
    let Some(host) = with_member(stage, rng) else { return Ok(()) };
    stage
        .play([Operation::Crash(host), Operation::Wait(stage.cluster.timings.detection + GONE + YOUNG)])
        .await?;
    for _ in 0..4 {
        let (Some(other), Some(place)) = (up(stage, rng), stage.place_of(host)) else { continue };
        stage.play([Operation::Attach(other, place), Operation::Wait(Duration::from_secs(1))]).await?;
    }
    stage.play([Operation::Heal, Operation::Settle]).await
}

/// In calm a host joins, and while the others come to hear of it, they attach members of one app: then judges
/// change places, and must not give one thing twice.
async fn rush(stage: &mut Stage, rng: &mut SmallRng) -> anyhow::Result<()> {
    let new = choose(stage, rng, |host| stage.cluster.hosts[host].life == Life::New);
    let (Some(new), app) = (new, place(rng)) else { return Ok(()) };
    let attach = |rng: &mut SmallRng| {
        let place = Place { worker: rng.random_bool(0.5), ..app };
        Some((up(stage, rng)?, place, Duration::from_millis(rng.random_range(RUSH))))
    };
    let attaches = (0..RUSHING).filter_map(|_| attach(rng)).collect();
    let calm = Operation::Wait(2 * stage.cluster.timings.hold + YOUNG);
    stage.play([calm, Operation::AttachEach(attaches), Operation::Start(new), Operation::Settle]).await
}

/// Two halves find each other dead, and give the same addresses and numbers, to other apps. They meet again.
async fn contest(stage: &mut Stage, rng: &mut SmallRng) -> anyhow::Result<()> {
    let mut hosts: Vec<usize> = (0..stage.cluster.hosts.len()).collect();
    hosts.shuffle(rng);
    let (here, there) = hosts.split_at(hosts.len() / 2);
    let split = Operation::Split(vec![here.to_vec(), there.to_vec()]);
    stage.play([split, Operation::Wait(stage.cluster.timings.detection)]).await?;
    let (network, number) = (rng.random_range(0..NETWORKS), rng.random_range(1..=6));
    for (app, half) in [here, there].into_iter().enumerate() {
        let place = Place { network, app, worker: false };
        for last in 1..=2 {
            let Some(host) =
                choose(stage, rng, |host| half.contains(&host) && stage.cluster.hosts[host].is_up())
            else {
                continue;
            };
            stage.perform(&Operation::AttachAt(host, place, last)).await?;
            stage.perform(&Operation::AttachNumbered(host, Place { app: 0, ..place }, number)).await?;
        }
    }
    let given = Operation::Wait(stage.cluster.timings.hold + Duration::from_secs(1));
    stage.play([given, Operation::Mend, Operation::Settle]).await
}

async fn begin(stage: &mut Stage, rng: &mut SmallRng) -> anyhow::Result<()> {
    let mut hosts: Vec<usize> = (0..stage.cluster.hosts.len()).collect();
    hosts.shuffle(rng);
    // Without the seeds nobody meets.
    let late = rng.random_range(0..=MET_LATE);
    let late: Vec<usize> = hosts.iter().copied().filter(|host| *host >= SEEDS.into()).take(late).collect();
    hosts.retain(|host| !late.contains(host));
    let at_once = rng.random_bool(0.5);
    for host in hosts {
        if rng.random_bool(0.1) {
            stage.perform(&Operation::Become(host, Role::Veteran)).await?;
        }
        stage.perform(&Operation::Start(host)).await?;
        for _ in 0..rng.random_range(0..=CONTAINERS_MAX) {
            stage.perform(&Operation::Attach(host, place(rng))).await?;
        }
        if !at_once {
            stage.perform(&Operation::Wait(Duration::from_millis(rng.random_range(0..500)))).await?;
        }
    }
    stage.play([Operation::Settle]).await
}

/// Mostly short, sometimes long enough for everything to be noticed.
fn pause(rng: &mut SmallRng) -> Duration {
    match rng.random_range(0..10) {
        0..4 => Duration::from_millis(rng.random_range(10..1_000)),
        4..8 => Duration::from_millis(rng.random_range(1_000..8_000)),
        _ => Duration::from_secs(rng.random_range(8..25)),
    }
}

fn place(rng: &mut SmallRng) -> Place {
    Place {
        network: rng.random_range(0..NETWORKS),
        app: rng.random_range(0..2),
        worker: rng.random_bool(0.3),
    }
}

/// What may happen, how often, and the rule that says where.
type Rule = (u32, fn(&Stage, &mut SmallRng) -> Option<Operation>);

const RULES: &[Rule] = &[
    (30, |stage, rng| Some(Operation::Attach(up(stage, rng)?, place(rng)))),
    (4, |stage, rng| Some(Operation::AttachMany(up(stage, rng)?, place(rng), rng.random_range(2..=8)))),
    (3, |stage, rng| Some(Operation::AttachNumbered(up(stage, rng)?, place(rng), rng.random_range(1..=6)))),
    (10, |stage, rng| Some(Operation::AttachAt(up(stage, rng)?, place(rng), rng.random_range(1..=4)))),
    (14, |stage, rng| Some(Operation::Detach(with_member(stage, rng)?, rng.random_range(0..8)))),
    (6, |stage, rng| Some(Operation::Kill(with_member(stage, rng)?, rng.random_range(0..8)))),
    (2, |_, rng| Some(Operation::Redeploy(rng.random_range(0..NETWORKS)))),
    (8, |stage, rng| Some(Operation::Crash(up(stage, rng)?))),
    (12, |stage, rng| Some(Operation::Start(down(stage, rng)?))),
    (6, |stage, rng| Some(Operation::Restart(up(stage, rng)?))),
    (3, |stage, rng| Some(Operation::RestartAlone(up(stage, rng)?))),
    (4, |stage, rng| Some(Operation::Stop(up(stage, rng)?))),
    (3, |stage, rng| Some(Operation::RestartEmpty(well_known(stage, rng)?))),
    (2, |stage, rng| Some(Operation::Reboot(up(stage, rng)?))),
    (1, |stage, rng| Some(Operation::Replace(replaceable(stage, rng)?))),
    (1, |stage, rng| Some(Operation::Clone(cloneable(stage, rng)?))),
    (3, |stage, rng| Some(Operation::JumpClock(any(stage, rng)?, rng.random_range(-3600..=3600)))),
    (2, |stage, rng| Some(Operation::Become(any(stage, rng)?, role(rng)))),
    (6, |stage, rng| {
        let (a, b) = (any(stage, rng)?, any(stage, rng)?);
        (a != b).then_some(Operation::Cut(a, b))
    }),
    (6, |stage, rng| Some(Operation::Split(islands(stage, rng)))),
    (8, |_, _| Some(Operation::Mend)),
    (8, |_, rng| Some(Operation::Weather(sky(rng)))),
    (3, |stage, rng| {
        let longer = Duration::from_millis(rng.random_range(0..400));
        Some(Operation::Slow(any(stage, rng)?, longer))
    }),
    (2, |stage, rng| Some(Operation::Suspend(up(stage, rng)?))),
    (5, |stage, rng| Some(Operation::Disk(any(stage, rng)?, disk(rng)))),
    (4, |stage, rng| Some(Operation::Refuse(any(stage, rng)?, *[0, 2, 5, 20].choose(rng)?))),
    (1, |_, _| Some(Operation::Lie(Lie::Nonsense))),
    (2, |_, _| Some(Operation::Silence)),
    (4, |stage, rng| Some(Operation::Sabotage(up(stage, rng)?, sabotage(rng)))),
];

/// One operation that is possible now, if the rule drawn has one.
fn draw(stage: &Stage, rng: &mut SmallRng) -> Option<Operation> {
    let total: u32 = RULES.iter().map(|(weight, _)| weight).sum();
    let mut at = rng.random_range(0..total);
    for (weight, rule) in RULES {
        if at < *weight {
            return rule(stage, rng);
        }
        at -= weight;
    }
    None
}

fn choose(stage: &Stage, rng: &mut SmallRng, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let hosts: Vec<usize> = (0..stage.cluster.hosts.len()).filter(|host| fits(*host)).collect();
    hosts.choose(rng).copied()
}

fn any(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    choose(stage, rng, |host| !matches!(stage.cluster.hosts[host].life, Life::Scrapped(_)))
}

fn up(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    choose(stage, rng, |host| stage.cluster.hosts[host].is_up())
}

fn down(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    choose(stage, rng, |host| matches!(stage.cluster.hosts[host].life, Life::Crashed(_) | Life::Away(_)))
}

fn with_member(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    let has = |host: usize| stage.cluster.books.promises.values().any(|p| p.host == host && !p.leaving);
    choose(stage, rng, |host| stage.cluster.hosts[host].is_up() && has(host))
}

/// A host of which all is known elsewhere, on hosts that it reaches: what it loses can be had back.
fn well_known(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    let cluster = &stage.cluster;
    let old = |host: usize| {
        let mut promises = cluster.books.promises.values().filter(|promise| promise.host == host);
        promises.all(|promise| promise.since.elapsed() > YOUNG && !promise.leaving)
    };
    // An old agent knows neither the question nor to ask it.
    let asks = |host: usize| cluster.hosts[host].runs != Role::Veteran;
    let reached = |host: usize, other: usize| {
        let hears = |observer: usize| {
            let snapshot = cluster.hosts[observer].snapshot();
            snapshot.is_some_and(|s| s.view.hosts.contains_key(&cluster.hosts[host].id))
        };
        other != host && asks(other) && cluster.weather.is_open(host, other) && hears(other)
    };
    let others = |host: usize| (0..cluster.hosts.len()).filter(|other| reached(host, *other)).count();
    let calm = cluster.weather.is_fair() && cluster.weather.stirred().elapsed() > YOUNG;
    let fits = |host: usize| cluster.hosts[host].is_up() && asks(host) && old(host) && others(host) > 1;
    choose(stage, rng, |host| calm && fits(host))
}

fn replaceable(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    down(stage, rng).filter(|host| !stage.cluster.hosts[*host].copy)
}

fn cloneable(stage: &Stage, rng: &mut SmallRng) -> Option<usize> {
    let single = |host: usize| {
        let same = |other: &&crate::cluster::Host| other.id == stage.cluster.hosts[host].id;
        stage.cluster.hosts.iter().filter(same).count() == 1
    };
    choose(stage, rng, |host| stage.cluster.hosts[host].is_up() && single(host))
}

fn islands(stage: &Stage, rng: &mut SmallRng) -> Vec<Vec<usize>> {
    let mut hosts: Vec<usize> = (0..stage.cluster.hosts.len()).collect();
    hosts.shuffle(rng);
    // A bridge is on no island.
    let bridges = rng.random_range(0..=hosts.len().min(4) / 2);
    hosts.truncate(hosts.len() - bridges);
    let size = rng.random_range(1..=hosts.len());
    hosts.chunks(size).map(<[usize]>::to_vec).collect()
}

fn sky(rng: &mut SmallRng) -> Sky {
    match rng.random_range(0..10) {
        0..4 => Sky::Fair,
        4 => Sky::Lossy(0.1),
        5 => Sky::Lossy(0.25),
        6 => Sky::Resending(0.25),
        7 => Sky::Distant(Duration::from_millis(rng.random_range(5..150))),
        8 => Sky::LongTailed,
        _ => Sky::Confused,
    }
}

fn role(rng: &mut SmallRng) -> Role {
    if rng.random_bool(0.5) { Role::Veteran } else { Role::Current }
}

fn disk(rng: &mut SmallRng) -> Disk {
    match rng.random_range(0..4) {
        0 => Disk::Sound,
        1 => Disk::Full,
        2 => Disk::Tears,
        _ => Disk::Slow(Duration::from_millis(rng.random_range(1..300))),
    }
}

fn sabotage(rng: &mut SmallRng) -> Sabotage {
    *Sabotage::ALL.choose(rng).unwrap_or(&Sabotage::DropRows)
}
