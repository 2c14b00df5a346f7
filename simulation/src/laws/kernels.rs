//! Kernels: what stands is what should stand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use futures::FutureExt as _;
use gossip::View;
use gossip::id::NetworkId;
use netplumb::kernel::Kernel as _;
use netplumb::observed::{ObservedNetwork, ObservedPeer};
use netplumb::plan::{Prune, diff};
use netplumb::state::{Few, Key, Mac, Vtep};
use node::claims::Ledger;
use node::project;

use super::claims::{Seen, are_alike, holders};
use super::each_live;
use crate::cluster::{Cluster, Host};

/// A plan on an unchanged world is empty.
pub fn follow(cluster: &Cluster) -> anyhow::Result<()> {
    each_live(cluster, |last: &mut Option<(Arc<View>, Ledger)>, _, host, snapshot| {
        let settled =
            last.take().filter(|(view, _)| are_alike(view, &snapshot.view)).map(|(_, ledger)| ledger);
        let ledger = settled.unwrap_or_else(|| Ledger::of(&snapshot.view));
        // Whether a peer is young is never compared.
        let own = snapshot.journal.durable();
        let desired = project::desired(&snapshot.view, &ledger, &host.here(), own, |_| false);
        let ours = project::ours(snapshot.journal.in_kernel());
        let observed = host.kernel.observe(&ours).now_or_never().context("memory lets nobody wait")??;
        let prune = if snapshot.view.stale { Prune::HoldRemote } else { Prune::All };
        let plan = diff(&observed, &desired, &ours, prune);
        ensure!(plan.ops.is_empty(), "it has still to do {:#?}", plan.ops);
        *last = Some((snapshot.view.clone(), ledger));
        Ok(())
    })
}

/// Rows, neighbours and peers are those of the members that hold their address, and no others: worked out here,
/// from records alone.
pub fn know_the_members(cluster: &Cluster) -> anyhow::Result<()> {
    each_live(cluster, |(), _, host, snapshot| {
        if snapshot.view.stale {
            return Ok(());
        }
        let mut told: BTreeMap<NetworkId, Vec<(Seen<'_>, Vtep)>> = BTreeMap::new();
        let state = host.kernel.state();
        let stands: BTreeSet<NetworkId> =
            state.networks.keys().filter_map(|name| name.parse().ok()).collect();
        for seen in holders(&snapshot.view, |network| stands.contains(network)).into_values() {
            let Some(its) = snapshot.view.hosts.get(seen.host).map(|its| &its.records.host) else { continue };
            let end = Vtep { address: its.vtep, port: its.port };
            told.entry(seen.network).or_default().push((seen, end));
        }
        state.networks.iter().try_for_each(|(name, network)| {
            let told = name.parse().ok().and_then(|network: NetworkId| told.get(&network));
            knows(host, network, told.map_or(&[], Vec::as_slice))
        })
    })
}

fn knows(host: &Host, network: &ObservedNetwork, told: &[(Seen<'_>, Vtep)]) -> anyhow::Result<()> {
    let key = |seen: &Seen<'_>| Key(seen.record.key.0);
    let remote = told.iter().filter(|(seen, _)| *seen.host != host.id);
    let rows = remote.map(|(seen, end)| (Mac::of_key(&key(seen)), Few::from([*end])));
    let rows: BTreeMap<_, _> = rows.collect();
    if let Some(fabric) = &network.fabric {
        ensure!(fabric.rows == rows, "it has the rows {:?}, and was told {rows:?}", fabric.rows);
    }
    for (member, stands) in &network.members {
        let others = || told.iter().map(|(seen, _)| seen).filter(|seen| seen.member.as_str() != member);
        let peer = |seen: &Seen<'_>| {
            let allowed = [Some(IpAddr::V4(seen.record.address)), seen.record.address6.map(IpAddr::V6)];
            let endpoint = Some(SocketAddrV4::new(seen.record.address, WIREGUARD_PORT));
            (key(seen), ObservedPeer { endpoint, allowed: allowed.into_iter().flatten().collect() })
        };
        if let Some(device) = stands.inside.as_ref().and_then(|inside| inside.device.as_ref()) {
            let peers: BTreeMap<_, _> = others().map(peer).collect();
            ensure!(*device.peers == peers, "{member} has {:?}, and not {peers:?}", device.peers);
        }
        if let Some(binding) = &stands.binding {
            let near = others().map(|seen| (seen.record.address, Mac::of_key(&key(seen)))).collect();
            ensure!(binding.neighbours == near, "{member} has {:?}, not {near:?}", binding.neighbours);
        }
    }
    Ok(())
}

const WIREGUARD_PORT: u16 = 51820;

/// On a machine whose agent runs stands what was promised there, and nothing else.
pub fn leak_nothing(cluster: &Cluster) -> anyhow::Result<()> {
    for (number, host, _) in cluster.live() {
        let promised = cluster.books.promises.iter().filter(|(_, promise)| promise.host == number);
        let members: BTreeSet<&str> = promised.clone().map(|(member, _)| member.as_str()).collect();
        let networks: BTreeSet<String> = promised.map(|(_, p)| p.entry.network.to_string()).collect();
        for (name, network) in &host.kernel.state().networks {
            let kept = network.fabric.is_none() || networks.contains(name);
            ensure!(kept, "{} has kept {name}", host.label());
            for (member, seen) in &network.members {
                let device = seen.inside.as_ref().is_some_and(|inside| inside.device.is_some());
                let stands = seen.binding.is_some() || device;
                ensure!(!stands || members.contains(member.as_str()), "{} has kept {member}", host.label());
            }
        }
    }
    Ok(())
}
