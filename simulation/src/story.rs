//! What is done to a region: hosts start, containers come and go, a host crashes and comes back, once so
//! late that it is found dead and once so soon that nobody notices.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use gossip::Timings;
use gossip::id::{AppId, NetworkId};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::cluster::{Cluster, INTERVAL};
use crate::laws;

const NETWORKS: usize = 2;
const MEMBERS_PER_HOST: usize = 2;
/// Between two looks at a law that shall come true.
const LOOK: Duration = Duration::from_millis(100);
/// A host that starts again is back in answers after five intervals, and asks around before.
const BACK_WITHIN: Duration = Duration::from_secs(5);
const A_MINUTE: Duration = Duration::from_secs(60);

/// Tells the story of a seed; the laws are checked whenever the region is quiet. It lasts at least as long as
/// asked, so that audits run and quarantines end.
pub async fn tell(cluster: &mut Cluster, seed: u64, lasting: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + lasting;
    let mut rng = SmallRng::seed_from_u64(seed);
    for host in 0..cluster.hosts.len() {
        sleep(pause(&mut rng)).await;
        cluster.start(host).await?;
    }
    settle(cluster).await.context("after the start")?;

    attach_everywhere(cluster, &mut rng).await?;
    settle(cluster).await.context("after the attaches")?;

    if let Some(member) = cluster.promised.keys().choose(&mut rng).cloned() {
        cluster.detach(&member).await?;
    }
    settle(cluster).await.context("after the detach")?;

    let host = rng.random_range(0..cluster.hosts.len());
    cluster.crash(host);
    // A dead host is found by silence, which is measured once in an interval.
    in_answers_within(cluster, Timings::of(INTERVAL).detection + INTERVAL)
        .await
        .context("after the crash")?;
    settle(cluster).await.context("after the crash")?;

    cluster.start(host).await?;
    in_answers_within(cluster, BACK_WITHIN).await.context("after the crash and the restart")?;
    settle(cluster).await.context("after the restart")?;

    // Three starts within a minute would delay the join, and the others would miss the host.
    sleep(A_MINUTE).await;
    restart_unnoticed(cluster, host).await.context("after the quick restart")?;

    sleep_until(end).await;
    settle(cluster).await.context("at the end")
}

async fn attach_everywhere(cluster: &mut Cluster, rng: &mut SmallRng) -> anyhow::Result<()> {
    let places: Vec<(NetworkId, AppId)> =
        (0..NETWORKS).map(|_| (NetworkId::random(), AppId::random())).collect();
    let mut attaching = JoinSet::new();
    for host in &mut cluster.hosts {
        for _ in 0..MEMBERS_PER_HOST {
            let (network, app) = places[rng.random_range(0..places.len())];
            let (id, pause) = (host.id.clone(), pause(rng));
            let attach = host.attach(network, app)?;
            attaching.spawn(async move {
                sleep(pause).await;
                (id, attach.await)
            });
        }
    }
    while let Some(ended) = attaching.join_next().await {
        let (host, entry) = ended?;
        let entry = entry.with_context(|| format!("law broken: a container of {host} can be attached"))?;
        cluster.promise(host, entry);
    }
    Ok(())
}

async fn in_answers_within(cluster: &Cluster, bound: Duration) -> anyhow::Result<()> {
    let follows = async {
        while laws::answers_follow(cluster).is_err() {
            sleep(LOOK).await;
        }
    };
    if timeout(bound, follows).await.is_err() {
        laws::answers_follow(cluster)
            .with_context(|| format!("law broken: names follow within {} ms", bound.as_millis()))?;
    }
    cluster.history.note("names have followed");
    Ok(())
}

/// An agent that is back at once: nobody misses its names, and no kernel has anything to do.
async fn restart_unnoticed(cluster: &mut Cluster, host: usize) -> anyhow::Result<()> {
    let written = |cluster: &Cluster| cluster.hosts.iter().map(|h| h.kernel.applied()).collect::<Vec<_>>();
    let before = written(cluster);
    cluster.crash(host);
    cluster.start(host).await?;
    let until = Instant::now() + A_MINUTE;
    while Instant::now() < until {
        sleep(LOOK).await;
        laws::answers_follow(cluster).context("law broken: an agent that is back at once is not missed")?;
    }
    settle(cluster).await?;
    let after = written(cluster);
    ensure!(before == after, "law broken: a restart writes nothing; Ops by host {before:?}, then {after:?}");
    Ok(())
}

async fn settle(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.quiet().await?;
    laws::check(cluster).await?;
    cluster.history.note("quiet, and every law holds");
    Ok(())
}

fn pause(rng: &mut SmallRng) -> Duration {
    Duration::from_millis(rng.random_range(0..500))
}
