//! `warren reset`: nothing of this host's agent is left.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use netplumb::plan::Prune;
use netplumb::state::{Desired, Ours};
use netplumb::{Kernel as _, NetlinkKernel, Reconciler};

use super::config::ConfigArgs;
use super::log::LogArgs;
use super::{Failure, engine};
use crate::config::Config;
use crate::project;
use crate::store::{self, DirStore, Store as _, Stored};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Remove everything the agent has made on this host: interfaces, routes, rules and sockets in \
                  containers, its own namespaces, its members, and the engine with all it holds.\n\nThe agent must \
                  not run. The region learns of it when the agent starts again; until then, for 24 hours, the \
                  members' addresses rest. To leave properly, detach the members first, one by one or \
                  all at once by `POST /v1/reset` of the API."
)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    log: LogArgs,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.log.start()?;
    let config = args.config.load()?;
    std::fs::create_dir_all(&config.run_dir)
        .map_err(|e| Failure::new(format!("{}: {e}", config.run_dir.display())))?;
    let running = |e: io::Error| {
        Failure::new(e.to_string()).code(6).hint("stop the agent first: `systemctl stop warren`, or SIGTERM")
    };
    let _held = store::lock(&config.run_dir, "run_dir").map_err(running)?;
    let store = DirStore::open(&config.state_dir).map_err(running)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    runtime.block_on(reset(&config, &store, &args.log))?;
    Ok(ExitCode::SUCCESS)
}

async fn reset(config: &Config, store: &DirStore, log: &LogArgs) -> anyhow::Result<()> {
    let Stored { entries, networks, .. } = store.load()?;
    let engine = Arc::new(engine::find(config, log)?);
    let kernel = NetlinkKernel::new(&config.run_dir, config.backend, engine.clone())?;
    let mut reconciler = Reconciler::new(kernel.clone());
    let report = reconciler.reconcile(&Desired::default(), &project::ours(&entries), Prune::All).await;
    let failed = report.errors().map(|(op, error)| format!("{}: {error}", op.network()));
    let failed: Vec<String> =
        report.unseen.iter().map(|(network, error)| format!("{network}: {error}")).chain(failed).collect();
    anyhow::ensure!(failed.is_empty(), "not all could be removed, try again: {}", failed.join("; "));
    kernel.sweep(&Ours::default()).await?;
    for entry in &entries {
        store.remove(&entry.member).await.context("a journal entry cannot be removed")?;
    }
    for network in networks.keys() {
        store.remove_network(*network).await.context("a network made here cannot be forgotten")?;
    }
    store.set_draining(false).await.context("that this host is being drained cannot be forgotten")?;
    drop((reconciler, kernel));
    if let Some(engine) = Arc::into_inner(engine) {
        engine.end()?;
    }
    clear(&config.run_dir)?;
    if let Some(devices) = &config.cdi {
        gone(std::fs::remove_file(devices))?;
    }
    tracing::info!(members = entries.len(), "nothing of this host's agent is left");
    Ok(())
}

/// Removes what the agent and the engine put into the run directory, and the directory if nothing else is there.
fn clear(run_dir: &Path) -> io::Result<()> {
    for file in ["warren.sock", "engine.sock", "engine.lock", "lock"] {
        gone(std::fs::remove_file(run_dir.join(file)))?;
    }
    gone(std::fs::remove_dir(run_dir.join("netns")))?;
    match std::fs::remove_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => gone(result),
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
