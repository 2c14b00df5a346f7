//! From a configuration and its seams to an agent that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gossip::record::MemberState;
use netplumb::kernel::Kernel;
use netplumb::plan::Prune;
use netplumb::state::{Desired, Guard, Vtep};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::building::Building;
use super::contested::READDRESS_PER_TICK;
use super::event::Events;
use super::join::{Join, settle, start_delay};
use super::reconcile::{Built, Wanted, reconcile};
use super::{Agent, Handle, Own, Seams, Snapshot};
use crate::attach::Context;
use crate::claims::{Bench, Grants, Ledger};
use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::project::{self, Here};
use crate::store::{Store, Stored};

/// Starts an agent; it serves its own containers at once and joins the region beside that.
///
/// # Errors
/// The store cannot be read, or the underlay address is not on this host.
pub async fn start<K, S, W>(config: Config, seams: Seams<K, S, W>) -> anyhow::Result<Handle<K, S>>
where
    K: Kernel,
    S: Store + Clone,
    W: gossip::Wire + Clone,
{
    let Stored { generation, mut starts, entries, networks, known, draining, damaged } =
        seams.store.load()?;
    // An empty journal may be a lost one.
    let intact = damaged.is_empty() && !entries.is_empty();
    for path in damaged {
        tracing::error!(path = %path.display(), "a file of the store was damaged and is set aside");
    }
    let underlay_mtu = seams.kernel.underlay_mtu(config.underlay.address).await?;
    let delay = start_delay((seams.clock)() / 1_000_000_000, &mut starts);
    if let Err(error) = seams.store.set_starts(&starts) {
        tracing::error!("this start is not counted: {error}");
    }
    let kernel = Arc::new(seams.kernel);
    let entries = settle(entries, &seams.boot, &*kernel, &seams.store).await;
    if intact {
        kernel.sweep(&project::ours(&entries)).await?;
    }
    let gossiping = gossiping(&config, known, generation + 1, seams.clock.clone());
    let timings = gossiping.timings;
    let quarantine = config.quarantine();
    let metrics = Arc::new(Metrics::default());
    metrics.set_gossip(seams.wire.counters());
    let listening = entries.iter().filter(|e| e.state == MemberState::Ready).map(|e| e.netns.cookie);
    seams.listen.retain(&listening.collect());
    let names = Names::new(&config.dns, seams.listen);
    metrics.set_resolver(names.counters());

    let view = Arc::new(gossiping.known_view());
    let mut journal = Journal::restore(entries, networks, Instant::now() + quarantine);
    journal.drain(draining);
    let journal = Arc::new(journal);
    let (snapshot, snapshots) = watch::channel(Snapshot {
        view: view.clone(),
        journal: journal.clone(),
        zones: Arc::default(),
        generation: 0,
        unjoined: Some(UNJOINED.into()),
        events: Arc::default(),
        mtu: 0,
    });
    let (steps, step_queue) = mpsc::channel(256);
    let wanted =
        Wanted { revision: 0, desired: Arc::default(), ours: Arc::default(), prune: Prune::HoldRemote };
    let (want, wants) = watch::channel(wanted);
    let (build, built) = watch::channel(Arc::new(Built::default()));
    let context = Context {
        kernel: kernel.clone(),
        store: seams.store.clone(),
        steps,
        built: built.clone(),
        unguarded: config.unguarded,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(reconcile(kernel.clone(), wants, build, metrics.clone()));
    let join = Join { config: gossiping, wire: seams.wire, store: seams.store.clone(), delay };
    let agent = Agent {
        bench: Bench::new(config.host.clone(), timings.hold, Instant::now()),
        grants: Grants::new(timings.hold),
        ledger: Ledger::default(),
        asked: BTreeSet::new(),
        here: here(&config, underlay_mtu),
        timings,
        quarantine,
        boot: seams.boot,
        advertise: config.gossip.advertise,
        kernel,
        store: seams.store,
        context: context.clone(),
        metrics: metrics.clone(),
        names,
        gossip: None,
        joined_at: None,
        unjoined: Some(UNJOINED.into()),
        view,
        own: Own::default(),
        followed: Arc::default(),
        journal,
        published: None,
        young: BTreeMap::new(),
        pending: Vec::new(),
        building: Building::default(),
        desired: Desired::default(),
        tangled: BTreeSet::new(),
        mtu: 0,
        revision: 0,
        want,
        snapshot,
        moving: BTreeSet::new(),
        unused: BTreeMap::new(),
        taken_over: intact,
        disowned: BTreeSet::new(),
        readdresses_left: READDRESS_PER_TICK,
        events: Events::new(seams.clock),
        lonely_told: None,
        seeds: other_seeds(&config),
        watching: None,
        remembered: Vec::new(),
        remember_from: None,
        tasks,
    };
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(agent.run(join, step_queue, built, stopped));
    Ok(Handle { context, snapshot: snapshots, metrics, stop: Some(stop), task })
}

/// Why an agent that has just started has not joined.
const UNJOINED: &str = "not joined yet";

/// What of this host enters the projection of its view.
fn here(config: &Config, underlay_mtu: u32) -> Here {
    let guard = if config.unguarded { Guard::None } else { Guard::Table { listener: config.dns.listener() } };
    Here {
        region: config.region.clone(),
        host: config.host.clone(),
        vtep: Vtep { address: config.underlay.address, port: config.underlay.vxlan_port },
        underlay_mtu,
        guard,
    }
}

/// How this host gossips, given what it knew of others when it ended.
fn gossiping(
    config: &Config,
    known: Vec<gossip::KnownHost>,
    generation_floor: u64,
    clock: gossip::config::WallClock,
) -> gossip::Config {
    let interval = config.interval(known.len());
    gossip::Config {
        region: config.region.clone(),
        host: config.host.clone(),
        listen: config.gossip.listen,
        advertise: config.gossip.advertise,
        seeds: config.gossip.seeds.clone(),
        interval,
        known,
        generation_floor,
        timings: config.thresholds.timings.unwrap_or_else(|| gossip::Timings::of(interval)),
        eager: config.thresholds.eager,
        plain_digests: config.thresholds.plain_digests,
        parsed: config.thresholds.parsed.clone(),
        now_ns: clock,
    }
}

fn other_seeds(config: &Config) -> Vec<String> {
    let own = config.gossip.advertise.to_string();
    config.gossip.seeds.iter().filter(|seed| **seed != own).cloned().collect()
}
