//! Where a script is played: each operation is done to the cluster, and the laws are looked at.

mod act;
mod sabotage;

use std::time::Duration;

use anyhow::Context as _;
use gossip::id::{AppId, NetworkId};
use tokio::time::{Instant, sleep, sleep_until};

use crate::chronicle::Chronicle;
use crate::cluster::{Cluster, QUARANTINE};
use crate::laws;
use crate::liar::Liar;
use crate::operation::Operation;
use crate::progress::Progress;

/// Between two looks at what holds at any moment.
const STEP: Duration = Duration::from_secs(1);
/// Between two looks at all views and kernels.
pub const FULL: Duration = Duration::from_secs(5);
/// Between two looks at a region that shall become quiet.
const LOOK: Duration = Duration::from_millis(250);
/// How long a quiet region is watched.
const STAYS: Duration = Duration::from_secs(2);
/// An audit goes round all networks in 30 s; after an error the longest pause is as long.
const REPAIR: Duration = Duration::from_secs(62);

/// A cluster with the networks and apps a script speaks of.
pub struct Stage {
    /// The region.
    pub cluster: Cluster,
    networks: Vec<NetworkId>,
    apps: Vec<AppId>,
    /// When all views and kernels are looked at next.
    full: Instant,
    /// When the last fault ended.
    healed: Instant,
    /// Until when repairs of kernels may go on.
    repairing: Option<Instant>,
    suspended: Vec<usize>,
    liar: Option<Liar>,
    /// How long the region took to be quiet, each time.
    pub settled: Vec<Duration>,
    /// For whoever waits.
    pub progress: Progress,
    /// About how long it will be, in virtual time.
    pub planned: Duration,
    /// What a page shows of the run; none where nobody asked for one.
    pub chronicle: Option<Chronicle>,
}

impl Stage {
    /// A stage for a cluster.
    pub fn new(cluster: Cluster) -> Stage {
        let (networks, apps) = (0..4).map(|_| (NetworkId::random(), AppId::random())).unzip();
        let now = Instant::now();
        Stage {
            cluster,
            networks,
            apps,
            full: now + FULL,
            healed: now,
            repairing: None,
            suspended: Vec::new(),
            liar: None,
            settled: Vec::new(),
            progress: Progress::begin("the scenario"),
            planned: Duration::ZERO,
            chronicle: None,
        }
    }

    /// Plays a script to its end.
    pub async fn play(&mut self, script: impl IntoIterator<Item = Operation>) -> anyhow::Result<()> {
        for operation in script {
            self.perform(&operation).await.with_context(|| format!("at {operation:?}"))?;
        }
        Ok(())
    }

    /// Does one operation, and looks at the laws that hold at any moment.
    pub async fn perform(&mut self, operation: &Operation) -> anyhow::Result<()> {
        match operation {
            Operation::Wait(time) => return self.wait(*time).await,
            Operation::Settle => return self.settle().await,
            Operation::Rest => return self.rest().await,
            _ => self.cluster.history.note(format_args!("now {operation:?}")),
        }
        self.act(operation).await?;
        if operation.disturbs() {
            self.healed = Instant::now();
        }
        laws::each_step(&mut self.cluster)
    }

    async fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + STEP).min(self.full)).await;
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        if let Some(chronicle) = &mut self.chronicle {
            chronicle.look(&self.cluster);
        }
        let (done, total) = (self.cluster.history.elapsed(), self.planned);
        let detail = format!("{} of {} virtual s", done.as_secs(), total.max(done).as_secs());
        self.progress.tell(done.as_secs_f64(), total.as_secs_f64(), &detail);
        if Instant::now() < self.full {
            return laws::each_second(&mut self.cluster);
        }
        self.full = Instant::now() + FULL;
        laws::at_any_time(&mut self.cluster)
    }

    /// The region becomes quiet within its bound, and stays so without a write to any kernel.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let bound = self.bound();
        let one_each = self.joined() + laws::claims::law_3_bound(&self.cluster);
        while let Err(broken) = self.quiet() {
            if self.healed.elapsed() > bound {
                return Err(broken.context(format!("not quiet within {bound:?}")));
            }
            if self.healed.elapsed() > one_each {
                let one = laws::claims::one_holder_each(&self.cluster);
                one.with_context(|| format!("law 3 broken: after {one_each:?} a thing has one holder"))?;
            }
            sleep(LOOK).await;
            self.look()?;
        }
        self.settled.push(self.healed.elapsed());
        let written = self.written();
        sleep(STAYS).await;
        laws::at_any_time(&mut self.cluster)?;
        self.stays_quiet().await?;
        anyhow::ensure!(
            self.written() == written || self.repairing.is_some(),
            "law broken: a plan on an unchanged world is empty"
        );
        self.cluster.history.note("quiet, and every law holds");
        Ok(())
    }

    /// What ends by itself, such as a quarantine, may be on its way just now.
    async fn stays_quiet(&mut self) -> anyhow::Result<()> {
        if self.quiet().is_ok() {
            return Ok(());
        }
        sleep(STAYS).await;
        self.quiet().context("it was quiet, and did not stay so")
    }

    fn quiet(&mut self) -> anyhow::Result<()> {
        self.cluster.collect()?;
        anyhow::ensure!(self.cluster.books.in_flight() == 0, "law 7 broken: calls have no end");
        laws::once_quiet(&mut self.cluster)
    }

    fn written(&self) -> Vec<usize> {
        self.cluster.hosts.iter().map(|host| host.kernel.applied()).collect()
    }

    /// How long after the last fault everything may take: to find each other and to be believed, to tell what was
    /// missed, and to repair what was broken.
    fn bound(&self) -> Duration {
        let repaired = self.repairing.map_or(Duration::ZERO, |until| until - self.healed.min(until));
        let believed = self.joined() + self.cluster.timings.detection;
        believed.max(repaired) + laws::claims::law_3_bound(&self.cluster) + 4 * self.cluster.interval
    }

    /// How long after the last fault the hosts that started may take to join: held back after many starts, or
    /// while their name is in use, and then for as long as no seed answers.
    fn joined(&self) -> Duration {
        let up = self.cluster.hosts.iter().filter(|host| host.is_up());
        up.map(|host| self.cluster.join_delay_max(host)).max().unwrap_or_default() + Duration::from_secs(2)
    }

    /// What rests is over, what is gone is forgotten.
    async fn rest(&mut self) -> anyhow::Result<()> {
        self.wait(QUARANTINE + Duration::from_secs(5)).await?;
        self.healed = Instant::now();
        self.settle().await?;
        laws::once_rested(&self.cluster)
    }
}
