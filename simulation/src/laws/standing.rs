//! Who answers: live hosts always, dead hosts not for long. Live is whose agent runs and can be heard.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use crate::cluster::{Cluster, Host, INTERVAL, Life, timings};

/// How long a start asks around.
const GREETS: Duration = Duration::from_secs(2);

/// How long after a start, or after a link was mended, a host may still be unheard: it asks around, is found by
/// chance, and is live for five intervals before it is believed again.
fn heard_within(host: &Host) -> Duration {
    host.start_delay_max() + GREETS + timings().detection + timings().hold + 4 * INTERVAL
}

/// Notes who has had the time to be believed, and to meet everybody, since its start.
pub fn introduce(cluster: &mut Cluster) {
    let open = cluster.weather.whole_since();
    for host in &mut cluster.hosts {
        let Some(up) = host.up_since() else { continue };
        if up.elapsed() >= heard_within(host) {
            host.believed = Some(Instant::now());
        }
        let Some(open) = open else { continue };
        host.introduced |= up.max(open) + heard_within(host) <= Instant::now();
    }
}

/// More loss than this, and silence may be mistaken for death.
const LOSS_MAX: f64 = 0.11;

/// A host whose agent runs, and hears and is heard by another one, answers to that one at all times; one that
/// said goodbye does for as long as it asked to.
pub fn living_hosts_answer(cluster: &Cluster) -> anyhow::Result<()> {
    // While links change far away, chance can keep two hosts from each other longer than silence is believed.
    let changed = cluster.weather.last_change().is_some_and(|at| at.elapsed() < 2 * timings().detection);
    if changed || cluster.weather.loss() > LOSS_MAX {
        return Ok(());
    }
    let twins: Vec<bool> = cluster.hosts.iter().map(|host| has_twin(cluster, host)).collect();
    for (observer, host, snapshot) in cluster.live().filter(|(number, ..)| !twins[*number]) {
        for (number, other) in cluster.hosts.iter().enumerate() {
            if number == observer || twins[number] || !is_heard(cluster, observer, number) {
                continue;
            }
            let seen = snapshot.view.hosts.get(&other.id);
            let answers = seen.is_some_and(|seen| seen.standing.answers());
            ensure!(
                answers,
                "to {} {} is {:?}, {:?}",
                host.label(),
                other.label(),
                seen.map(|seen| seen.standing),
                other.life
            );
        }
    }
    Ok(())
}

/// Whether another machine has its name: then one of the two is not let in.
fn has_twin(cluster: &Cluster, host: &Host) -> bool {
    cluster
        .hosts
        .iter()
        .filter(|other| other.id == host.id && !matches!(other.life, Life::New | Life::Scrapped(_)))
        .count()
        > 1
}

/// Whether `observer` has had the time to hear of `other`, and still must.
fn is_heard(cluster: &Cluster, observer: usize, other: usize) -> bool {
    let (observing, observed) = (&cluster.hosts[observer], &cluster.hosts[other]);
    let Some(open_since) = cluster.weather.open_since(observer, other) else { return false };
    let Some(since) = observing.up_since() else { return false };
    // Two that have never met do not find each other while both are cut off from the seeds.
    // Near chitchat's wall the region lets nobody new in.
    let joined = |host: &Host| host.snapshot().is_none_or(|snapshot| snapshot.unjoined.is_none());
    if !observing.introduced || !observed.introduced || !joined(observing) || !joined(observed) {
        return false;
    }
    let long_enough = |at: Instant, bound: Duration| at.elapsed() >= bound;
    let heard = long_enough(since, heard_within(observing))
        && open_since.is_none_or(|at| long_enough(at, heard_within(observing)));
    match observed.life {
        Life::Up(up) => heard && long_enough(up, heard_within(observed)),
        _ => false,
    }
}

/// A host that ended without a word is out of answers after the detection bound, but for an agent that hears
/// nobody: that one keeps what it has.
pub fn dead_hosts_do_not(cluster: &Cluster) -> anyhow::Result<()> {
    let rough = if cluster.weather.is_rough() { 2 } else { 1 };
    let bound = rough * timings().detection + 2 * INTERVAL;
    for (observer, host, snapshot) in cluster.live().filter(|(_, host, _)| !has_twin(cluster, host)) {
        // Until it has joined an agent goes by what it last knew.
        let joined = host.up_since().map(|up| up + host.start_delay_max() + GREETS);
        let since = joined.max(cluster.weather.last_change());
        for other in cluster.hosts.iter().filter(|other| !is_there(cluster, other)) {
            let Some(dead_since) = dead_since(cluster, other) else { continue };
            let late = Some(dead_since).max(since).is_some_and(|at| at + bound < Instant::now());
            if !late || hears_nobody(cluster, observer) {
                continue;
            }
            let answers = snapshot.view.hosts.get(&other.id).is_some_and(|seen| seen.standing.answers());
            ensure!(!answers, "to {} {} still answers, {:?}", host.label(), other.label(), other.life);
        }
    }
    Ok(())
}

/// When the last agent of its name ended without a word.
fn dead_since(cluster: &Cluster, host: &Host) -> Option<Instant> {
    let named = cluster.hosts.iter().filter(|other| other.id == host.id);
    let ends = named.map(|other| match other.life {
        Life::Crashed(at) | Life::Scrapped(at) => Some(at),
        _ => None,
    });
    ends.max().flatten()
}

/// Whether an agent of its name runs.
fn is_there(cluster: &Cluster, host: &Host) -> bool {
    cluster.hosts.iter().any(|other| other.id == host.id && other.is_up())
}

fn hears_nobody(cluster: &Cluster, observer: usize) -> bool {
    let heard = |other: usize| {
        other != observer && cluster.hosts[other].is_up() && cluster.weather.is_open(observer, other)
    };
    !(0..cluster.hosts.len()).any(heard)
}

/// Every agent has joined, knows the region whole, is neither cut off nor fenced, and answers to all others.
pub fn everybody_is_in(cluster: &Cluster) -> anyhow::Result<()> {
    let snapshots: Vec<_> = cluster.live().collect();
    for (_, host, snapshot) in &snapshots {
        ensure!(snapshot.unjoined.is_none(), "{} has not joined: {:?}", host.label(), snapshot.unjoined);
        let view = &snapshot.view;
        ensure!(view.whole, "{} has no whole view", host.label());
        ensure!(view.twin.is_none(), "{} is fenced", host.label());
        let alone = snapshots.len() == 1;
        ensure!(!view.cut_off || alone, "{} is cut off", host.label());
        for (_, other, _) in &snapshots {
            let answers = view.hosts.get(&other.id).is_some_and(|h| h.standing.answers());
            ensure!(answers, "to {} {} does not answer", host.label(), other.label());
        }
        for other in &cluster.hosts {
            let dead =
                matches!(other.life, Life::Crashed(_)) && !snapshots.iter().any(|(_, h, _)| h.id == other.id);
            let answers = view.hosts.get(&other.id).is_some_and(|h| h.standing.answers());
            ensure!(!dead || !answers || alone, "to {} the dead {} answers", host.label(), other.label());
        }
    }
    Ok(())
}
