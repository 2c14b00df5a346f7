//! Who holds what, worked out from records alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gossip::View;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{MemberRecord, MemberState, NetworkRecord};
use gossip::standing::Standing;
use gossip::view::Host;
use tokio::time::Instant;

use super::SMALL;
use crate::cluster::{Cluster, Promise};

/// A member as a view has it.
#[derive(Clone, Copy)]
pub struct Seen<'v> {
    pub host: &'v HostId,
    pub standing: Standing,
    pub network: NetworkId,
    pub member: &'v MemberId,
    pub record: &'v MemberRecord,
}

/// The live members of a view: joining or ready, on a host that is not gone.
pub fn live(view: &View) -> impl Iterator<Item = Seen<'_>> {
    view.members().filter(|(.., record)| record.state != MemberState::Released).map(
        |(host, standing, network, member, record)| Seen {
            host,
            standing,
            network: *network,
            member,
            record,
        },
    )
}

/// Who holds each address of some networks in a view: the lowest (counter, host, member) of its live members.
pub fn holders(
    view: &View,
    wanted: impl Fn(&NetworkId) -> bool,
) -> BTreeMap<(NetworkId, Ipv4Addr), Seen<'_>> {
    let mut holders = BTreeMap::new();
    for seen in live(view).filter(|seen| wanted(&seen.network)) {
        hold(&mut holders, (seen.network, seen.record.address), seen);
    }
    holders
}

/// A number among the members of an app and type.
pub type Number<'v> = (NetworkId, AppId, &'v ProcessType, u32);

/// The number of a member, if it has one.
pub fn number(seen: Seen<'_>) -> Option<Number<'_>> {
    Some((seen.network, seen.record.app, &seen.record.process, seen.record.ordinal?))
}

/// The addresses that several live members of a view have.
pub fn contested(view: &View) -> BTreeSet<(NetworkId, Ipv4Addr)> {
    let mut once = BTreeSet::new();
    let things = live(view).map(|seen| (seen.network, seen.record.address));
    things.filter(|thing| !once.insert(*thing)).collect()
}

/// Who holds each number of some networks in a view.
pub fn numbered(view: &View, wanted: impl Fn(&NetworkId) -> bool) -> BTreeMap<Number<'_>, Seen<'_>> {
    let mut numbered = BTreeMap::new();
    for seen in live(view).filter(|seen| wanted(&seen.network)) {
        if let Some(number) = number(seen) {
            hold(&mut numbered, number, seen);
        }
    }
    numbered
}

fn hold<'v, T: Ord>(holders: &mut BTreeMap<T, Seen<'v>>, thing: T, seen: Seen<'v>) {
    let age = |seen: Seen<'v>| (seen.record.counter, seen.host, seen.member);
    let holder = holders.entry(thing).or_insert(seen);
    if age(seen) < age(*holder) {
        *holder = seen;
    }
}

/// Since when nothing happened that may move a judge or hide a claim; none while something does.
pub fn calm_since(cluster: &Cluster) -> Option<Instant> {
    let stirred = cluster.books.stirred().max(Some(cluster.weather.stirred()));
    // A judge that answers with noise is one that does not answer.
    stirred.filter(|_| cluster.weather.is_fair() && !cluster.lied_to)
}

/// Whether nothing of the kind has happened since 2 T_hold before then.
pub fn was_calm(cluster: &Cluster, at: Instant) -> bool {
    calm_since(cluster).is_some_and(|since| since + 2 * cluster.timings.hold <= at)
}

/// What was just acknowledged was nobody's when it was asked for, provided that all was calm (law 2), and was not
/// at rest, provided that anything else was left.
pub fn fresh_claims_are_free(cluster: &mut Cluster) -> anyhow::Result<()> {
    let fresh = std::mem::take(&mut cluster.books.fresh);
    for member in fresh {
        let Some(new) = cluster.books.promises.get(&member) else { continue };
        if !was_calm(cluster, new.began) {
            continue;
        }
        for (other, promise) in &cluster.books.promises {
            if *other != member && !cluster.hosts[promise.host].is_forgotten() {
                ensure_apart(cluster, (&member, new), (other, promise))?;
            }
        }
        let rests = cluster.books.resting(new.entry.network).contains(&new.entry.address);
        ensure!(
            // Names that led to a chosen address lead there again.
            !rests || new.address_chosen || is_full(cluster, new),
            "{} was given to {member} while it rests",
            new.entry.address
        );
    }
    Ok(())
}

fn ensure_apart(
    cluster: &Cluster,
    (member, new): (&MemberId, &Promise),
    (other, old): (&MemberId, &Promise),
) -> anyhow::Result<()> {
    let (a, b) = (&new.entry, &old.entry);
    if a.network != b.network {
        return Ok(());
    }
    let at = |promise: &Promise| cluster.hosts[promise.host].label();
    let same = a.address == b.address;
    ensure!(!same, "{} is held by {member} on {} and {other} on {}", a.address, at(new), at(old));
    let numbers = (a.app, &a.process, a.ordinal) == (b.app, &b.process, b.ordinal) && a.ordinal.is_some();
    // Where the judge of numbers is silent, each takes the lowest that it sees free.
    ensure!(
        !numbers || old.leaving || cluster.veterans(),
        "number {:?} is held by {member} on {} and {other} on {}",
        a.ordinal,
        at(new),
        at(old)
    );
    Ok(())
}

/// Whether a network may have had nothing free: everything ever claimed there counts.
fn is_full(cluster: &Cluster, new: &Promise) -> bool {
    let (network, books) = (new.entry.network, &cluster.books);
    let live = books.promises.values().filter(|promise| promise.entry.network == network).count();
    let ended = books.ended.iter().filter(|ended| ended.promise.entry.network == network).count();
    live + ended + books.refused.len() >= new.entry.claim.subnet.hosts().count()
}

/// Of those that had one address at once, one keeps it: each conflict costs one re-address at most (law 3). Who had it
/// is not noted in a large region.
pub fn conflicts_cost_one_move(cluster: &Cluster) -> anyhow::Result<()> {
    if cluster.hosts.len() > SMALL {
        return Ok(());
    }
    cluster.books.each_conflict(|network, address, conflict| {
        let (left, had) = (&conflict.left, &conflict.claimants);
        ensure!(left.len() < had.len(), "of {had:?} with {address} in {network} nobody keeps it");
        Ok(())
    })
}

/// No two live members of any view hold one thing.
pub fn one_holder_each(cluster: &Cluster) -> anyhow::Result<()> {
    let mut last: Option<Arc<View>> = None;
    for (_, host, snapshot) in cluster.live() {
        if last.replace(snapshot.view.clone()).is_some_and(|last| are_alike(&last, &snapshot.view)) {
            continue;
        }
        let all = |_: &NetworkId| true;
        let (addresses, ordinals) = (holders(&snapshot.view, all), numbered(&snapshot.view, all));
        for seen in live(&snapshot.view) {
            let holder = &addresses[&(seen.network, seen.record.address)];
            if holder.member != seen.member {
                bail!(
                    "to {} {} is held by {} and contested by {} on {}",
                    host.label(),
                    seen.record.address,
                    holder.member,
                    seen.member,
                    seen.host
                );
            }
            let Some(number) = number(seen) else { continue };
            let holder = &ordinals[&number];
            // A number its caller chose stays contested until it is free.
            if holder.member != seen.member && !seen.record.ordinal_chosen {
                bail!("to {} {} is held by {} and {}", host.label(), number.3, holder.member, seen.member);
            }
        }
        networks_agree(&snapshot.view).with_context(|| host.label())?;
    }
    Ok(())
}

/// Whether two agents see the same: what follows from a view alone is the same for both then. Agents that were told
/// the same share it.
pub fn are_alike(one: &View, other: &View) -> bool {
    let same = |((a_id, a), (b_id, b)): ((&HostId, &Host), (&HostId, &Host))| {
        a_id == b_id
            && Arc::ptr_eq(&a.records, &b.records)
            && (a.generation, a.standing, a.silent_since) == (b.generation, b.standing, b.silent_since)
    };
    one.hosts.len() == other.hosts.len()
        && one.hosts.iter().zip(&other.hosts).all(same)
        && one.vanished.is_empty()
        && other.vanished.is_empty()
}

/// All hosts of a network say the same of it, and no two networks have one VNI.
fn networks_agree(view: &View) -> anyhow::Result<()> {
    let mut words: BTreeMap<NetworkId, (&HostId, &NetworkRecord)> = BTreeMap::new();
    let mut vnis: BTreeMap<u32, NetworkId> = BTreeMap::new();
    for (id, host) in view.hosts.iter().filter(|(_, h)| h.standing.answers()) {
        for (network, record) in &host.records.networks {
            let (other, word) = words.entry(*network).or_insert((id, record));
            ensure!(*word == record, "{id} says {record:?} of {network}, {other} says {word:?}");
            let same = *vnis.entry(record.vni).or_insert(*network) == *network;
            ensure!(same, "{network} and another one have VNI {}", record.vni);
        }
    }
    Ok(())
}

/// A host's records, but for its `host` record: that says how far its counter was at its start, and the host
/// itself knows better.
#[derive(Debug)]
struct Records<'v> {
    generation: u64,
    networks: &'v BTreeMap<NetworkId, NetworkRecord>,
    members: &'v BTreeMap<(NetworkId, MemberId), MemberRecord>,
}

impl PartialEq for Records<'_> {
    /// Nodes share what they parse: most are one value, which need not be read.
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
            && (std::ptr::eq(self.networks, other.networks) || self.networks == other.networks)
            && (std::ptr::eq(self.members, other.members) || self.members == other.members)
    }
}

/// All views have the same records of every host that answers.
pub fn views_are_equal(cluster: &Cluster) -> anyhow::Result<()> {
    let snapshots: Vec<_> = cluster.live().collect();
    let Some(((_, first, expected), rest)) = snapshots.split_first() else { return Ok(()) };
    // What liars say is nobody's records.
    let ours: BTreeSet<&HostId> = cluster.hosts.iter().map(|host| &host.id).collect();
    let first_view = &expected.view;
    let expected = records(first_view, &ours);
    for (_, host, snapshot) in rest.iter().filter(|(_, _, snapshot)| !are_alike(first_view, &snapshot.view)) {
        let found = records(&snapshot.view, &ours);
        for (id, records) in &expected {
            let other = found.get(id);
            ensure!(
                other == Some(records),
                "of {id} {} has {records:#?}\n{} has {other:#?}",
                first.label(),
                host.label()
            );
        }
        let more = found.keys().find(|id| !expected.contains_key(*id));
        ensure!(more.is_none(), "{} has {more:?}, {} has not", host.label(), first.label());
    }
    Ok(())
}

fn records<'v>(view: &'v View, ours: &BTreeSet<&HostId>) -> BTreeMap<&'v HostId, Records<'v>> {
    let answering = view.hosts.iter().filter(|(id, host)| host.standing.answers() && ours.contains(id));
    let records = |h: &'v Host| Records {
        generation: h.generation,
        networks: &h.records.networks,
        members: &h.records.members,
    };
    answering.map(|(id, h)| (id, records(h))).collect()
}

/// Every record is a live member's that was promised: no released one is left, and nothing is held for nobody.
pub fn held_is_live(cluster: &Cluster) -> anyhow::Result<()> {
    for (_, host, snapshot) in cluster.live() {
        for (id, standing, _, member, record) in snapshot.view.members() {
            let promised = cluster.books.promises.contains_key(member);
            let kept = promised && record.state == MemberState::Ready;
            // A dead host cannot take its records back.
            ensure!(
                kept || !standing.answers() || standing == Standing::Away,
                "{} still has {member} of {id}: {:?} with {}",
                host.label(),
                record.state,
                record.address
            );
        }
    }
    Ok(())
}

/// How long the region takes at most to settle after its last fault (law 3): ten intervals, and what was missed
/// at 0.4 MB/s.
pub fn law_3_bound(cluster: &Cluster) -> Duration {
    const RECORD_BYTES: u64 = 400;
    const BYTES_PER_SECOND: u64 = 400_000;
    let records = cluster.live().map(|(_, _, s)| s.view.members().count()).max().unwrap_or(0) as u64;
    10 * cluster.interval + Duration::from_secs_f64((records * RECORD_BYTES) as f64 / BYTES_PER_SECOND as f64)
}
