//! Who answers: live hosts always, dead hosts not for long. Live is whose agent runs and can be heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use gossip::id::HostId;
use tokio::time::Instant;

use super::SMALL;
use crate::cluster::{AWAY, Cluster, Host, Life, SEEDS};

/// How long after its join, or after a link was mended, a host may still be unheard: it is found by chance, and
/// is live for five intervals before it is believed again.
fn heard_within(cluster: &Cluster) -> Duration {
    cluster.timings.detection + cluster.timings.hold + 4 * cluster.interval
}

/// Notes who has joined, and who has had the time to meet everybody since.
pub fn introduce(cluster: &mut Cluster) {
    let open = cluster.weather.whole_since();
    let is_in = |host: &Host| host.snapshot().is_some_and(|snapshot| snapshot.unjoined.is_none());
    let joined: BTreeSet<HostId> = cluster.hosts.iter().filter(|h| is_in(h)).map(|h| h.id.clone()).collect();
    let mut machines: BTreeMap<HostId, usize> = BTreeMap::new();
    for host in cluster.hosts.iter().filter(|host| !matches!(host.life, Life::New | Life::Scrapped(_))) {
        *machines.entry(host.id.clone()).or_default() += 1;
    }
    // Who starts for the first time while no seed is there finds nobody, and is found by nobody.
    let seeds =
        cluster.hosts.iter().take(SEEDS.into()).filter(|seed| is_in(seed)).filter_map(|seed| seed.joined);
    let seeded = seeds.min();
    let heard_within = heard_within(cluster);
    for host in &mut cluster.hosts {
        host.twin = machines.get(&host.id).is_some_and(|machines| *machines > 1);
        host.joined = is_in(host).then(|| host.joined.unwrap_or_else(Instant::now));
        host.goodbye = host.goodbye.filter(|_| !joined.contains(&host.id));
        let remembers = host.starts.len() > 1 && host.wiped.is_none();
        let met = if remembers { host.joined } else { seeded };
        let (Some(joined), Some(open), Some(seeded)) = (host.joined, open, met) else { continue };
        host.introduced |= joined.max(open).max(seeded) + heard_within <= Instant::now();
    }
}

/// Notes who must believe whom; of a large region, for those whose paths are looked at.
pub fn hear(cluster: &mut Cluster) {
    let hosts = cluster.hosts.len();
    let pairs = (0..hosts.min(SMALL)).flat_map(|observer| (0..hosts).map(move |other| (observer, other)));
    let heard: Vec<(usize, usize)> = pairs.filter(|(a, b)| is_heard(cluster, *a, *b)).collect();
    cluster.heard.extend(heard.into_iter().map(|pair| (pair, Instant::now())));
}

/// A host whose agent runs, and hears and is heard by another one, answers to that one at all times, whatever
/// becomes of the others.
pub fn living_hosts_answer(cluster: &Cluster) -> anyhow::Result<()> {
    if cluster.weather.is_lossy_within(heard_within(cluster)) {
        return Ok(());
    }
    for (observer, host, snapshot) in cluster.live() {
        for (number, other) in cluster.hosts.iter().enumerate() {
            if !is_heard(cluster, observer, number) {
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

/// Whether `observer` has had the time to hear of `other`, and still must.
fn is_heard(cluster: &Cluster, observer: usize, other: usize) -> bool {
    let (observing, observed) = (&cluster.hosts[observer], &cluster.hosts[other]);
    if observer == other || observing.twin || observed.twin {
        return false;
    }
    // Two that have never met do not find each other while both are cut off from the seeds.
    let met = observing.introduced && observed.introduced;
    let (Some(open), Some(here), Some(there)) =
        (cluster.weather.open_since(observer, other), observing.joined, observed.joined)
    else {
        return false;
    };
    met && open.max(Some(here)).max(Some(there)).is_some_and(|at| at.elapsed() >= heard_within(cluster))
}

/// A host that ended without a word is out of answers after the detection bound, but for an agent that hears
/// nobody: that one keeps what it has.
pub fn dead_hosts_do_not(cluster: &Cluster) -> anyhow::Result<()> {
    let running: BTreeSet<&HostId> = cluster.hosts.iter().filter(|h| h.is_up()).map(|h| &h.id).collect();
    let hosts = cluster.hosts.iter().enumerate();
    let ended: Vec<(usize, &Host)> = hosts.filter(|(_, host)| !running.contains(&host.id)).collect();
    for (observer, host, snapshot) in cluster.live().filter(|(_, host, _)| !host.twin) {
        // Until it has joined an agent goes by what it last knew; with a full disk that may be long.
        let Some(joined) = host.joined else { continue };
        let since = Some(joined).max(cluster.weather.last_release());
        for (number, other) in ended.iter().copied() {
            let Some(dead_since) = dead_since(cluster, host, other) else { continue };
            // What comes late, or by others alone, comes irregularly.
            let rough = cluster.weather.is_rough() || !cluster.weather.is_open(observer, number);
            // Its last heartbeat goes round by others: so long in a region of 40, longer where a bridge has to
            // carry it from island to island.
            let round = if cluster.weather.is_fair() { 4 } else { 10 } * cluster.interval;
            let bound = if rough { 2 } else { 1 } * cluster.timings.detection + round;
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

/// When the last agent of its name ended without a word, or when the time ends for `observer` that the last word
/// asked for: it counts from the start of whoever learns of it later.
fn dead_since(cluster: &Cluster, observer: &Host, host: &Host) -> Option<Instant> {
    let named = || cluster.hosts.iter().filter(|other| other.id == host.id);
    let ends = named().map(|other| match other.life {
        Life::Crashed(at) | Life::Scrapped(at) => Some(at),
        _ => None,
    });
    let away = named()
        .filter_map(|other| other.goodbye)
        .map(|at| observer.joined.map_or(at, |joined| at.max(joined)) + AWAY)
        .max();
    ends.max().flatten().map(|end| away.map_or(end, |away| end.max(away)))
}

/// Whether no agent that runs can be reached from a machine.
pub fn hears_nobody(cluster: &Cluster, observer: usize) -> bool {
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
        // What it wrote down of one that is dead for good nobody may be there to confirm.
        let dead = view.hosts.values().any(|other| !other.standing.answers());
        ensure!(!view.stale || dead, "{} knows somebody from its disk alone", host.label());
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
