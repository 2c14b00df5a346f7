//! What holds in every region that is quiet, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context as _, bail, ensure};
use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{MemberRecord, MemberState, NetworkRecord};
use netplumb::kernel::Kernel as _;
use netplumb::plan::{Prune, diff};
use node::agent::Snapshot;
use node::project;

use crate::cluster::{Cluster, Host};

/// A host's records, but for its `host` record: that says how far its counter was at its start, and the
/// host itself knows better.
type Records<'v> =
    (u64, &'v BTreeMap<NetworkId, NetworkRecord>, &'v BTreeMap<(NetworkId, MemberId), MemberRecord>);

/// All laws; the first one broken is the error.
pub async fn check(cluster: &Cluster) -> anyhow::Result<()> {
    views_are_equal(cluster).context("law broken: views are equal")?;
    things_have_one_holder(cluster).context("law broken: a thing has one holder")?;
    promises_are_kept(cluster).context("law broken: who was attached is a member until detached")?;
    zones_are_equal(cluster).context("law broken: zones are equal")?;
    answers_follow(cluster).context("law broken: names are those of the members on hosts that answer")?;
    kernels_follow(cluster).await.context("law broken: the kernel is the projection of the view")
}

/// The addresses a network's names lead to are exactly those promised on running hosts: a dead host's are
/// out, those of one that came back are in.
pub fn answers_follow(cluster: &Cluster) -> anyhow::Result<()> {
    let live: BTreeSet<&HostId> = cluster.live().map(|(host, _)| &host.id).collect();
    let mut promised: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for (host, entry) in cluster.promised.values().filter(|(host, _)| live.contains(host)) {
        let fresh = promised.entry(entry.network).or_default().insert(entry.address);
        ensure!(fresh, "{} of {host} was promised to another member too", entry.address);
    }
    for (host, snapshot) in cluster.live() {
        let answered: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>> =
            project::zone_members(&snapshot.view, &snapshot.ledger)
                .into_iter()
                .map(|(network, members)| (network, members.iter().map(|m| m.address).collect()))
                .collect();
        ensure!(answered == promised, "{} answers {answered:?}, promised were {promised:?}", host.id);
        for (network, zone) in &*snapshot.zones {
            let served = zone.names().into_iter().flat_map(|name| name.addresses).collect::<BTreeSet<_>>();
            let promised = promised.get(network).cloned().unwrap_or_default();
            ensure!(served == promised, "{} serves {served:?}, promised were {promised:?}", host.id);
        }
    }
    Ok(())
}

fn views_are_equal(cluster: &Cluster) -> anyhow::Result<()> {
    let snapshots: Vec<(&Host, Snapshot)> = cluster.live().collect();
    let Some((first, rest)) = snapshots.split_first() else { return Ok(()) };
    for (host, snapshot) in &snapshots {
        ensure!(snapshot.unjoined.is_none(), "{} has not joined: {:?}", host.id, snapshot.unjoined);
        ensure!(snapshot.view.whole, "{} has no whole view", host.id);
        for (live, _) in &snapshots {
            let answers = snapshot.view.hosts.get(&live.id).is_some_and(|h| h.standing.answers());
            ensure!(answers, "to {} the running host {} does not answer", host.id, live.id);
        }
    }
    let expected = records(&first.1);
    for (host, snapshot) in rest {
        let found = records(snapshot);
        ensure!(found == expected, "{} has {expected:#?}\n{} has {found:#?}", first.0.id, host.id);
    }
    Ok(())
}

fn records(snapshot: &Snapshot) -> BTreeMap<&HostId, Records<'_>> {
    let hosts = snapshot.view.hosts.iter();
    hosts.map(|(id, h)| (id, (h.generation, &h.records.networks, &h.records.members))).collect()
}

fn things_have_one_holder(cluster: &Cluster) -> anyhow::Result<()> {
    for (host, snapshot) in cluster.live() {
        let (mut addresses, mut ordinals) = (BTreeMap::new(), BTreeMap::new());
        for (_, _, network, member, record) in snapshot.view.members() {
            if record.state == MemberState::Released {
                continue;
            }
            let address = (network, record.address);
            if let Some(other) = addresses.insert(address, member) {
                bail!("{}: {} is held by {other} and {member}", host.id, record.address);
            }
            let Some(number) = record.ordinal else { continue };
            let ordinal = (network, record.app, record.process.as_str(), number);
            if let Some(other) = ordinals.insert(ordinal, member) {
                bail!("{}: {other} and {member} are both number {number}", host.id);
            }
        }
    }
    Ok(())
}

/// Running or not, a promised member is in every view, and has the address it was acknowledged with.
fn promises_are_kept(cluster: &Cluster) -> anyhow::Result<()> {
    for (host, snapshot) in cluster.live() {
        for (member, (owner, promised)) in &cluster.promised {
            let records = snapshot.view.hosts.get(owner).map(|h| &h.records.members);
            let record = records.and_then(|members| members.get(&(promised.network, member.clone())));
            let record =
                record.with_context(|| format!("{} has no record of {member} on {owner}", host.id))?;
            let (state, address) = (record.state, record.address);
            ensure!(
                state == MemberState::Ready && address == promised.address,
                "{} sees {member} {state:?} with {address}, promised was {}",
                host.id,
                promised.address
            );
        }
    }
    Ok(())
}

fn zones_are_equal(cluster: &Cluster) -> anyhow::Result<()> {
    let mut first = BTreeMap::new();
    for (host, snapshot) in cluster.live() {
        for (network, zone) in &*snapshot.zones {
            let names = zone.names();
            let (other, expected) = first.entry(*network).or_insert_with(|| (&host.id, names.clone()));
            ensure!(names == *expected, "{other} serves {expected:#?}\n{} serves {names:#?}", host.id);
        }
    }
    Ok(())
}

/// What stands is what should stand: nothing to do, and nothing left of what is not ours any more.
async fn kernels_follow(cluster: &Cluster) -> anyhow::Result<()> {
    for (host, Snapshot { view, ledger, journal, .. }) in cluster.live() {
        // Whether a peer is young is never compared.
        let desired = project::desired(&view, &ledger, &host.here(), journal.durable(), |_| false);
        let ours = project::ours(journal.in_kernel());
        let observed = host.kernel.observe(&ours).await?;
        let plan = diff(&observed, &desired, &ours, Prune::All);
        ensure!(plan.ops.is_empty(), "{} has still to do {:#?}", host.id, plan.ops);
        for (name, network) in host.kernel.state().networks {
            let traces = ours.networks.get(&name);
            ensure!(network.fabric.is_none() || traces.is_some(), "{} has kept {name}", host.id);
            for (member, seen) in network.members {
                let device = seen.inside.is_some_and(|inside| inside.device.is_some());
                let known = traces.is_some_and(|traces| traces.contains_key(&member));
                ensure!(known || (seen.binding.is_none() && !device), "{} has kept {member}", host.id);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gossip::id::AppId;

    use super::*;

    /// Three hosts with a member each, quiet.
    async fn region() -> Cluster {
        let mut cluster = Cluster::new(3, 1_700_000_000_000_000_000).unwrap();
        for host in 0..3 {
            cluster.start(host).await.unwrap();
        }
        cluster.quiet().await.unwrap();
        let (network, app) = (NetworkId::random(), AppId::random());
        for host in 0..3 {
            let entry = cluster.hosts[host].attach(network, app).unwrap().await.unwrap();
            let id = cluster.hosts[host].id.clone();
            cluster.promise(id, entry);
        }
        cluster.quiet().await.unwrap();
        super::check(&cluster).await.unwrap();
        cluster
    }

    async fn check(change: impl FnOnce(&mut Cluster), broken: &str) {
        let mut cluster = region().await;
        change(&mut cluster);
        let error = super::check(&cluster).await.unwrap_err();
        assert!(error.to_string().contains(broken), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_law_that_is_broken_is_named() {
        check(|cluster| cluster.crash(1), "names are those of the members on hosts that answer").await;
        check(
            |cluster| cluster.hosts[0].kernel.edit(|kernel| kernel.networks.clear()),
            "the kernel is the projection of the view",
        )
        .await;
        let address_changed = |cluster: &mut Cluster| {
            let (_, entry) = cluster.promised.values_mut().next().unwrap();
            entry.address = Ipv4Addr::new(192, 0, 2, 1);
        };
        check(address_changed, "who was attached is a member").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_not_back_yet_breaks_the_first_law() {
        let mut cluster = region().await;
        cluster.crash(2);
        cluster.start(2).await.unwrap();
        let error = super::check(&cluster).await.unwrap_err();
        assert!(error.to_string().contains("views are equal"), "{error:#}");
    }
}
