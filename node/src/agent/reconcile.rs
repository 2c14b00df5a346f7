//! The task that makes the kernel follow what is wanted, and says what it built.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gossip::id::MemberId;
use netplumb::kernel::{Kernel, Place};
use netplumb::plan::Prune;
use netplumb::state::{Desired, Ours};
use netplumb::{Reconciler, Report};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::attach::Refusal;
use crate::metrics::Metrics;

/// How often the kernel is compared whole with what it should hold.
pub(super) const AUDIT: Duration = Duration::from_secs(30);

/// How long after the first sign of a change it is looked for: what belongs together has come by then.
const SETTLE: Duration = Duration::from_millis(200);
/// How often it is looked at most, whoever goes on changing things.
const LOOK: Duration = Duration::from_secs(1);

/// How long a repaired container is told of.
const TOLD: Duration = Duration::from_secs(600);

/// What has been built: the reconciler's answer to a revision.
#[derive(Debug, Clone, Default)]
pub struct Built {
    /// The last revision the kernel was made to follow.
    pub revision: u64,
    /// Members of which something could not be built or removed.
    pub failed: BTreeMap<MemberId, Refusal>,
    /// Members whose container refused the IPv6 address.
    pub without_ipv6: BTreeSet<MemberId>,
    /// Members in whose container somebody removed our rules lately, and when that was repaired.
    pub flushed: BTreeMap<MemberId, Instant>,
    /// Operations that failed, in words, whatever they belong to.
    pub errors: Vec<String>,
}

/// What the kernel should be made to follow.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) revision: u64,
    pub(super) desired: Arc<Desired>,
    pub(super) ours: Arc<Ours>,
    pub(super) prune: Prune,
}

/// Why it is time to do something.
enum Turn {
    /// Something else is wanted, or what failed is tried again.
    Follow,
    /// One network is compared whole.
    Audit,
    /// Something changed at these places.
    Look(BTreeSet<Place>),
}

/// Makes the kernel follow what is wanted: at once when that changes, again with backoff after an
/// error, where the kernel tells of a change, and one network at a time for drift that nobody tells of.
pub(super) async fn reconcile<K: Kernel>(
    kernel: Arc<K>,
    mut wants: watch::Receiver<Wanted>,
    build: watch::Sender<Arc<Built>>,
    metrics: Arc<Metrics>,
) {
    const BACKOFF_MIN: Duration = Duration::from_millis(500);
    const BACKOFF_MAX: Duration = Duration::from_secs(30);
    let mut reconciler = Reconciler::new(kernel);
    let mut backoff = BACKOFF_MIN;
    let mut retry: Option<Instant> = None;
    let mut audit = Instant::now() + AUDIT;
    let mut flushed: BTreeMap<MemberId, Instant> = BTreeMap::new();
    let mut changes = Changes::default();
    let mut reached = 0;
    loop {
        let turn = tokio::select! {
            changed = wants.changed() => match changed {
                Ok(()) => Turn::Follow,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => Turn::Follow,
            () = tokio::time::sleep_until(audit) => Turn::Audit,
            places = reconciler.kernel().changed() => {
                changes.hear(places, Instant::now());
                continue;
            }
            () = changes.due() => Turn::Look(changes.take(Instant::now())),
        };
        // What is wanted newly is followed first: it is not marked as seen by a look or an audit.
        let follows = matches!(turn, Turn::Follow);
        let wanted = if follows { wants.borrow_and_update().clone() } else { wants.borrow().clone() };
        if wanted.revision == 0 {
            audit = Instant::now() + AUDIT;
            continue;
        }
        let started = Instant::now();
        let report = match turn {
            Turn::Follow => reconciler.reconcile(&wanted.desired, &wanted.ours, wanted.prune).await,
            Turn::Audit => {
                // One network at a time, all of them within the period.
                audit = started + AUDIT / wanted.ours.networks.len().max(1) as u32;
                reconciler.audit(&wanted.desired, &wanted.ours, wanted.prune).await
            }
            Turn::Look(places) => {
                reconciler.look_again(&places, &wanted.desired, &wanted.ours, wanted.prune).await
            }
        };
        if follows {
            reached = wanted.revision;
        }
        metrics.reconciled(&report, started.elapsed());
        for op in &report.drift {
            tracing::warn!(
                network = op.network(),
                member = op.member(),
                kind = op.kind(),
                "changed by somebody: put back"
            );
        }
        flushed.retain(|_, repaired| started - *repaired < TOLD);
        for member in report.flushed().filter_map(|id| id.parse::<MemberId>().ok()) {
            tracing::warn!(%member, "somebody removed our rules in its container: put back");
            flushed.insert(member, started);
        }
        if !follows && (retry.is_some() || reached != wanted.revision) {
            // It says nothing of the networks that are still to be tried.
            continue;
        }
        let answer = Built { flushed: flushed.clone(), ..answer(&wanted, &report) };
        for error in &answer.errors {
            tracing::warn!(revision = wanted.revision, "{error}");
        }
        (retry, backoff) = if answer.errors.is_empty() {
            (None, BACKOFF_MIN)
        } else {
            (Some(Instant::now() + backoff), (backoff * 2).min(BACKOFF_MAX))
        };
        build.send_replace(Arc::new(answer));
        reconciler.kernel().watch(&wanted.ours).await;
    }
}

/// Places where something has changed, until it is time to look there.
#[derive(Default)]
struct Changes {
    places: BTreeSet<Place>,
    /// When the first of them was heard of.
    since: Option<Instant>,
    looked: Option<Instant>,
}

impl Changes {
    fn hear(&mut self, places: BTreeSet<Place>, now: Instant) {
        self.places.extend(places);
        self.since.get_or_insert(now);
    }

    /// Ends when it is time to look; never without a change.
    async fn due(&self) {
        let Some(since) = self.since else { return std::future::pending().await };
        let rested = self.looked.map(|looked| looked + LOOK);
        tokio::time::sleep_until(rested.map_or(since + SETTLE, |rested| rested.max(since + SETTLE))).await;
    }

    fn take(&mut self, now: Instant) -> BTreeSet<Place> {
        (self.since, self.looked) = (None, Some(now));
        std::mem::take(&mut self.places)
    }
}

fn answer(wanted: &Wanted, report: &Report) -> Built {
    let mut built = Built { revision: wanted.revision, ..Built::default() };
    for (network, members) in &wanted.ours.networks {
        for id in members.keys() {
            if let (Some(error), Ok(member)) = (report.failed(network, id), id.parse()) {
                built.failed.insert(member, Refusal::from(error));
            }
            if report.without_ipv6(network, id) {
                built.without_ipv6.extend(id.parse::<MemberId>());
            }
        }
    }
    let unseen = report.unseen.iter().map(|(network, error)| format!("{network}: {error}"));
    built.errors =
        unseen.chain(report.errors().map(|(op, error)| format!("{}: {error}", op.network()))).collect();
    built
}
