//! What holds in every region: some of it at any moment, all of it once a region is quiet.
//!
//! The oracle asks the code under test as little as it can: who holds what, which names there are and where a
//! frame ends are worked out here, from views, kernels and the cluster's own books.

mod attach;
pub mod claims;
mod kernels;
pub mod names;
mod promises;
mod reach;
mod standing;
#[cfg(test)]
mod tests;

use std::panic::resume_unwind;
use std::thread;

use anyhow::Context as _;
use node::agent::Snapshot;
use tokio::runtime::Handle;

use crate::cluster::{Cluster, Host};

/// What holds at any moment, whatever is broken just now. Cheap enough for every step.
pub fn each_step(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.collect()?;
    standing::introduce(cluster);
    claims::fresh_claims_are_free(cluster).context("law 2 broken: in calm no conflict arises")?;
    claims::conflicts_cost_one_move(cluster).context("law 3 broken: one re-address per conflict")?;
    attach::ends_in_time(cluster).context("law 7 broken: an attach ends in time")?;
    attach::detaches_end(cluster).context("law 7 broken")?;
    promises::addresses_change_only_in_conflicts(cluster).context("law 2 broken: in calm nobody moves")?;
    promises::are_kept_at_home(cluster).context("law 5 broken: who was attached is a member until detached")
}

/// What holds at any moment and does not last long where it does not; of a large region it is left to the rarer
/// looks.
pub fn each_second(cluster: &mut Cluster) -> anyhow::Result<()> {
    each_step(cluster)?;
    if cluster.hosts.len() > SMALL {
        return Ok(());
    }
    standing::living_hosts_answer(cluster).context("law broken: a live host never leaves DNS")
}

/// Regions with more hosts are not looked at as often, and of their members a part each time.
pub const SMALL: usize = 60;

/// What holds at any moment, looked at in all views and kernels.
pub fn at_any_time(cluster: &mut Cluster) -> anyhow::Result<()> {
    each_step(cluster)?;
    standing::living_hosts_answer(cluster).context("law broken: a live host never leaves DNS")?;
    // In a smaller one that is looked at whenever a view changes.
    if cluster.hosts.len() > SMALL {
        names::follow_the_view(cluster).context("law broken: a zone answers as its view says")?;
    }
    standing::hear(cluster);
    standing::dead_hosts_do_not(cluster).context("law broken: a dead host leaves DNS in time")?;
    reach::no_wrong_container(cluster).context("law 4 broken: no frame reaches a wrong container")?;
    reach::paths_stay(cluster).context("law broken: a path stays as long as its ends")
}

/// What holds in a region that is quiet, whatever happened before.
pub fn once_quiet(cluster: &mut Cluster) -> anyhow::Result<()> {
    standing::everybody_is_in(cluster).context("law broken: once quiet everybody is in")?;
    claims::one_holder_each(cluster).context("law 3 broken: a thing has one holder")?;
    promises::are_in_every_view(cluster)
        .context("law 5 broken: who was attached is a member until detached")?;
    claims::views_are_equal(cluster).context("law broken: views are equal")?;
    names::are_those_promised(cluster)
        .context("law broken: names are those of the members on hosts that answer")?;
    kernels::follow(cluster).context("law broken: the kernel is the projection of the view")?;
    kernels::know_the_members(cluster).context("law broken: a kernel has what its agent was told")?;
    kernels::leak_nothing(cluster).context("law broken: nothing is left of what is gone")?;
    reach::everybody_is_reached(cluster).context("law broken: every member reaches every other")
}

/// What holds once quarantines are over too.
pub fn once_rested(cluster: &Cluster) -> anyhow::Result<()> {
    claims::held_is_live(cluster).context("law 6 broken: once all has rested, held is live")
}

/// Holds every agent that runs to a law, a large region's on all cores; tells of the first that breaks it.
///
/// `T` is what is kept from one agent to the next, or nothing yet.
fn each_live<T: Default>(
    cluster: &Cluster,
    law: impl Fn(&mut T, usize, &Host, &Snapshot) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let live: Vec<_> = cluster.live().collect();
    let look = |part: &[(usize, &Host, Snapshot)]| {
        let mut kept = T::default();
        part.iter().try_for_each(|(number, host, snapshot)| {
            law(&mut kept, *number, host, snapshot).with_context(|| host.label())
        })
    };
    let parts = thread::available_parallelism().map_or(1, usize::from);
    if live.len() <= SMALL || parts == 1 {
        return look(&live);
    }
    // Virtual time is its runtime's.
    let runtime = Handle::current();
    let look = &|part| {
        let _entered = runtime.enter();
        look(part)
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            live.chunks(live.len().div_ceil(parts)).map(|part| scope.spawn(move || look(part))).collect();
        let told =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        // All are waited for, whichever breaks a law.
        told.collect::<Vec<_>>().into_iter().collect()
    })
}
