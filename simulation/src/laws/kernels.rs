//! Kernels: what stands is what should stand.

use std::collections::BTreeSet;

use anyhow::ensure;
use netplumb::kernel::Kernel as _;
use netplumb::plan::{Prune, diff};
use node::claims::Ledger;
use node::project;

use crate::cluster::Cluster;

/// A plan on an unchanged world is empty.
pub async fn follow(cluster: &Cluster) -> anyhow::Result<()> {
    for (_, host, snapshot) in cluster.live() {
        let ledger = Ledger::of(&snapshot.view);
        // Whether a peer is young is never compared.
        let own = snapshot.journal.durable();
        let desired = project::desired(&snapshot.view, &ledger, &host.here(), own, |_| false);
        let ours = project::ours(snapshot.journal.in_kernel());
        let observed = host.kernel.observe(&ours).await?;
        let plan = diff(&observed, &desired, &ours, Prune::All);
        ensure!(plan.ops.is_empty(), "{} has still to do {:#?}", host.label(), plan.ops);
    }
    Ok(())
}

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
