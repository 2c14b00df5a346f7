//! What was acknowledged holds until it is taken back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gossip::View;
use gossip::id::MemberId;
use gossip::record::MemberState;
use netplumb::observed::Observed;
use netplumb::state::{Key, Mac};
use node::agent::Snapshot;
use node::store::Entry;
use tokio::time::Instant;

use super::claims::{are_alike, calm_since, holders};
use super::standing::hears_nobody;
use crate::cluster::{Cluster, Host, Promise};

/// How long an emptied state directory may take to be filled again after the join.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);

/// An acknowledged address changes only where a conflict may be, and the books follow.
pub fn addresses_change_only_in_conflicts(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut moved = Vec::new();
    for (member, promise) in &cluster.books.promises {
        let Some(snapshot) = cluster.hosts[promise.host].snapshot() else { continue };
        let Some(entry) = snapshot.journal.get(member) else { continue };
        if entry.address != promise.entry.address || entry.ordinal != promise.entry.ordinal {
            moved.push((member.clone(), entry.address, entry.ordinal));
        }
    }
    let calm = calm_since(cluster).is_some_and(|since| since.elapsed() >= 2 * cluster.timings.hold + SETTLES);
    let veterans = cluster.veterans();
    for (member, address, ordinal) in moved {
        let Some(promise) = cluster.books.promises.get_mut(&member) else { continue };
        let host = cluster.hosts[promise.host].label();
        cluster.history.note(format_args!(
            "{host} re-addressed {member}: {} becomes {address}, {:?} becomes {ordinal:?}",
            promise.entry.address, promise.entry.ordinal
        ));
        // Where a judge of numbers is silent, each takes the lowest that it sees free.
        let excused = veterans && address == promise.entry.address;
        ensure!(!calm || excused, "{member} on {host} was {}, is {address}", promise.entry.address);
        (promise.entry.address, promise.entry.ordinal) = (address, ordinal);
        promise.moves += 1;
    }
    Ok(())
}

/// How long conflicts from before a calm may still be settled in it (law 3).
const SETTLES: Duration = Duration::from_secs(10);

/// On its own host an acknowledged member is always one: in the journal, and in the kernel.
pub fn are_kept_at_home(cluster: &Cluster) -> anyhow::Result<()> {
    let mut promised: BTreeMap<usize, Vec<(&MemberId, &Promise)>> = BTreeMap::new();
    for (member, promise) in cluster.books.promises.iter().filter(|(_, promise)| !promise.leaving) {
        promised.entry(promise.host).or_default().push((member, promise));
    }
    for (number, members) in promised {
        let host = &cluster.hosts[number];
        if !is_adopting(cluster, number) {
            are_kept_on(host, &members).with_context(|| host.label())?;
        }
    }
    Ok(())
}

fn are_kept_on(host: &Host, members: &[(&MemberId, &Promise)]) -> anyhow::Result<()> {
    let (snapshot, kernel) = (host.snapshot(), host.kernel.state());
    let meddled = host.is_meddled(Instant::now());
    for (member, promise) in members {
        let entry = snapshot.as_ref().map(|s| journalled(s, member, promise)).transpose()?;
        let Err(missing) = is_built(&kernel, member, promise) else { continue };
        // A contested member has nothing until it has another address.
        let contested = snapshot.as_ref().zip(entry).is_some_and(|(s, entry)| {
            let holders = holders(&s.view, |network| *network == entry.network);
            holders.get(&(entry.network, entry.address)).is_none_or(|seen| seen.member != *member)
        });
        if !contested && !meddled {
            return Err(missing.context(format!("for {member} with {}", promise.entry.address)));
        }
    }
    Ok(())
}

/// Whether a host may not yet know what it had before its state directory was emptied.
fn is_adopting(cluster: &Cluster, number: usize) -> bool {
    let host = &cluster.hosts[number];
    let Some(wiped) = host.wiped else { return false };
    // Until it has joined it has heard nobody; with a full disk that may be long.
    hears_nobody(cluster, number)
        || host.joined.is_none_or(|joined| {
            let reached = cluster.weather.last_change().unwrap_or(joined);
            joined.max(wiped).max(reached).elapsed() < ADOPTED_WITHIN
        })
}

fn journalled<'s>(snapshot: &'s Snapshot, member: &MemberId, promise: &Promise) -> anyhow::Result<&'s Entry> {
    let entry = snapshot.journal.get(member).with_context(|| format!("it does not know {member}"))?;
    let kept = entry.state == MemberState::Ready && entry.public_key == promise.entry.public_key;
    ensure!(kept, "it has {member} as {:?} with key {:?}", entry.state, entry.public_key);
    Ok(entry)
}

fn is_built(kernel: &Observed, member: &MemberId, promise: &Promise) -> anyhow::Result<()> {
    let network = kernel.networks.get(&promise.entry.network.to_string());
    let built = network.and_then(|network| network.members.get(member.as_str()));
    let built = built.context("its kernel has nothing")?;
    ensure!(built.binding.is_some(), "its kernel has no binding namespace");
    let device = built.inside.as_ref().and_then(|inside| inside.device.as_ref());
    let device = device.context("its kernel has no interface")?;
    let mac = Mac::of_key(&Key(promise.entry.public_key.0));
    ensure!(device.mac == Some(mac), "its kernel has an interface with another key");
    Ok(())
}

/// In every view each acknowledged member is ready, with its own key and the address its host says, unless its
/// host is gone.
pub fn are_in_every_view(cluster: &Cluster) -> anyhow::Result<()> {
    let mut last: Option<Arc<View>> = None;
    for (_, host, snapshot) in cluster.live() {
        if last.replace(snapshot.view.clone()).is_some_and(|last| are_alike(&last, &snapshot.view)) {
            continue;
        }
        for (member, promise) in cluster.books.promises.iter().filter(|(_, promise)| !promise.leaving) {
            let owner = &cluster.hosts[promise.host];
            let records = snapshot.view.hosts.get(&owner.id);
            // A host that is down can have been forgotten, or never been met.
            if !owner.is_up() && records.is_none_or(|h| !h.standing.answers()) {
                continue;
            }
            let records =
                records.with_context(|| format!("{} does not know {}", host.label(), owner.label()))?;
            let record = records.records.members.get(&(promise.entry.network, member.clone()));
            let Some(record) = record else {
                bail!("{} has no record of {member} on {}", host.label(), owner.label());
            };
            let as_promised = record.state == MemberState::Ready
                && record.address == promise.entry.address
                && record.key == promise.entry.public_key;
            ensure!(
                as_promised,
                "{} has {member} as {record:?}, promised was {:?}",
                host.label(),
                promise.entry
            );
        }
    }
    Ok(())
}
