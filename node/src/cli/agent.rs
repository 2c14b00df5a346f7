//! `warren agent`: the one place where an agent is put together from its real parts.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use gossip::identity::Identity;
use gossip::quic::Quic;
use netplumb::engine::privileges::raise_descriptors;
use netplumb::{Kernel, NetlinkKernel};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::config::ConfigArgs;
use super::log::LogArgs;
use super::service::{self, Inherited};
use super::{Failure, engine};
use crate::agent::{self, Seams};
use crate::api::{Api, Served};
use crate::attach::Context;
use crate::config::Config;
use crate::names::Kept;
use crate::runtime::docker::Plugin;
use crate::runtime::{cdi, watch};
use crate::store::{DirStore, Store};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every key of the configuration has a flag (--set KEY=VALUE) and an environment variable \
                        (WARREN_ and the key in capitals, dots as underscores)."
)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Check the configuration, the certificates and the underlay address, and stop
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    log: LogArgs,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.log.start()?;
    let inherited = Inherited::take_all();
    let config = args.config.load()?;
    let identity = identity(&config)?;
    if args.check {
        let mtu = check_underlay(&config)?;
        tracing::info!(region = %config.region, host = %config.host, mtu, "configuration, certificates and underlay are good");
        return Ok(ExitCode::SUCCESS);
    }
    keep_one_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    runtime.block_on(serve(config, identity, inherited, &args.log))?;
    Ok(ExitCode::SUCCESS)
}

/// glibc gives threads heaps of their own, and memory that is freed in one is not used by another: an agent, which works
/// little, would have half as much again (mallopt(3)).
fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// The certificate, which must be this host's and of this region.
pub(super) fn identity(config: &Config) -> Result<Identity, Failure> {
    let Config { region, host, tls, .. } = config;
    let identity = Identity::load(&tls.ca, &tls.cert, &tls.key)
        .map_err(|e| Failure::new(e.to_string()).hint("`warren region issue` makes a host's certificate"))?;
    if identity.region != *region {
        let message =
            format!("the certificate is for region {}, the configuration for {region}", identity.region);
        return Err(Failure::new(message).hint("a host needs a certificate of its own region"));
    }
    if identity.host != *host {
        let message = format!("the certificate is for host {}, this agent is host {host}", identity.host);
        return Err(Failure::new(message).hint("set `host`, or issue a certificate for this host"));
    }
    Ok(identity)
}

/// The underlay is this host's, and of the same address family as that of the hosts known last: its MTU.
fn check_underlay(config: &Config) -> Result<u32, Failure> {
    let address = config.underlay.address;
    let mtu = netplumb::netlink::underlay_mtu(address).map_err(|e| Failure::new(e.to_string()))?;
    let known = crate::store::known(&config.state_dir);
    let known = known.map_err(|e| Failure::new(format!("state_dir {}: {e}", config.state_dir.display())))?;
    let known: Vec<_> = known.iter().filter_map(|known| Some((&known.host, known.vtep()?))).collect();
    match crate::project::foreign_family(known.into_iter(), address) {
        Some(why) => Err(Failure::new(why).hint("if the whole region moves, stop all its agents before")),
        None => Ok(mtu),
    }
}

async fn serve(
    config: Config,
    identity: Identity,
    mut inherited: Inherited,
    log: &LogArgs,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make run_dir {}", config.run_dir.display()))?;
    // The namespaces below it are one agent's: another one would sweep them away.
    let _held = crate::store::lock(&config.run_dir, "run_dir")
        .with_context(|| format!("run_dir {} cannot be used", config.run_dir.display()))?;
    raise_descriptors().context("cannot have more descriptors")?;
    let engine = Arc::new(engine::find(&config, log)?);
    let kernel = NetlinkKernel::new(&config.run_dir, config.backend, engine.clone())
        .context("the kernel cannot be reached")?;
    let wireguard = if kernel.kernel_wireguard() { "kernel" } else { "userspace" };
    preflight(&kernel, &config).await?;
    let store = DirStore::open(&config.state_dir)
        .with_context(|| format!("state_dir {} cannot be used", config.state_dir.display()))?;
    let wire =
        Quic::bind(config.gossip.listen, config.gossip.advertise, &identity).await.with_context(|| {
            format!("cannot gossip on {}; set gossip.listen to a free address", config.gossip.listen)
        })?;
    let seams = Seams {
        wire: Arc::new(wire),
        kernel,
        store,
        clock: Arc::new(gossip::unix_ns),
        boot: boot()?,
        listen: Arc::new(Kept::new(engine.clone())),
    };
    let mut stop = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let config = Arc::new(config);
    let agent = agent::start((*config).clone(), seams).await?;
    agent.metrics.set_certificate_expiry(identity.expires);
    agent.metrics.set_engine(engine);
    let served = Served {
        config: config.clone(),
        context: agent.context.clone(),
        snapshot: agent.snapshot.clone(),
        metrics: agent.metrics.clone(),
        wireguard,
    };
    let plugin = config.docker.plugin.as_deref().and_then(|path| {
        let plugin = Plugin::serve(served.clone(), inherited.listener(path), path, &config.docker.socket);
        // The rest is served all the same.
        plugin
            .inspect_err(|error| tracing::error!("containers of Docker cannot join by themselves: {error:#}"))
            .ok()
    });
    // They end when it is dropped.
    let mut followers = JoinSet::new();
    for socket in &config.watch {
        followers.spawn(watch::follow(served.clone(), socket.clone()));
    }
    if let Some((file, warren)) = config.cdi.clone().zip(std::env::current_exe().ok()) {
        let hook = cdi::Hook { warren, socket: config.socket() };
        followers.spawn(cdi::follow(file, hook, agent.snapshot.clone()));
    }
    let socket = inherited.listener(&config.socket());
    let lasting = socket.is_some();
    let api = Api::serve(served, socket).await?;
    tracing::info!(socket = %config.socket().display(), http = %config.http, wireguard, "serving");
    service::ready(&format!("serves host {} of region {}", config.host, config.region));
    tokio::select! {
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
        () = tell_watchdog(&agent.context) => {}
    }
    tracing::info!("stopping");
    service::stopping();
    drop((api, plugin, followers));
    agent.stop().await;
    if !lasting {
        let _ = std::fs::remove_file(config.socket());
    }
    Ok(())
}

/// Tells the watchdog, as long as the agent's loop turns; does not return.
async fn tell_watchdog<K: Kernel, S: Store>(context: &Context<K, S>) {
    let Some(period) = service::watchdog() else { return std::future::pending().await };
    let mut beat = tokio::time::interval(period);
    loop {
        beat.tick().await;
        if context.turns(period).await {
            service::alive();
        } else {
            tracing::error!("the agent's loop has not answered in {} s", period.as_secs());
        }
    }
}

async fn preflight(kernel: &NetlinkKernel, config: &Config) -> anyhow::Result<()> {
    let problems = kernel.preflight().await;
    let fatal: BTreeSet<&str> = problems.iter().filter(|p| p.fatal).map(|p| p.what.as_str()).collect();
    for problem in problems.iter().filter(|p| !p.fatal) {
        tracing::warn!("{}", problem.what);
    }
    if !fatal.is_empty() {
        bail!("{}", fatal.into_iter().collect::<Vec<_>>().join("; "));
    }
    if config.unguarded {
        tracing::warn!("unguarded: neighbours on a container's other networks can reach its private address");
    }
    Ok(())
}

/// Which boot this is: namespaces and their cookies are of one boot.
fn boot() -> anyhow::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("no boot id in /proc")?;
    Ok(id.trim().to_owned())
}
