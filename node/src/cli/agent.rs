//! `warren agent`: the one place where an agent is put together from its real parts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use gossip::identity::Identity;
use gossip::quic::Quic;
use netplumb::{Kernel as _, NetlinkKernel};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::Failure;
use crate::agent::{self, Seams};
use crate::api::{Api, Served};
use crate::config::Config;
use crate::store::DirStore;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every key of the configuration has a flag (--set KEY=VALUE) and an environment variable \
                        (WARREN_ and the key in capitals, dots as underscores)."
)]
pub struct Args {
    /// The configuration file [default: /etc/warren/agent.toml]
    #[arg(short, long, env = "WARREN_CONFIG")]
    config: Option<PathBuf>,
    /// Set a key of the configuration, for example --set gossip.listen=192.0.2.1:7946
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
    /// Check the configuration and the certificates, and stop
    #[arg(long)]
    check: bool,
    /// How to log to standard error
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or filters such as gossip=debug
    #[arg(long, env = "WARREN_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    log(&args)?;
    let config = Config::load(args.config.as_deref(), std::env::vars(), &args.overrides)
        .map_err(|e| Failure::new(format!("configuration: {e:#}")).code(2))?;
    let identity = identity(&config)?;
    if args.check {
        tracing::info!(region = %config.region, host = %config.host, "configuration and certificates are good");
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    runtime.block_on(serve(config, identity))?;
    Ok(ExitCode::SUCCESS)
}

fn log(args: &Args) -> Result<(), Failure> {
    // boringtun logs the expiry of an idle session as an error.
    let filter = EnvFilter::try_new(format!("{},boringtun=off", args.log))
        .map_err(|e| Failure::new(format!("--log: {e}")).code(2))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE);
    let log = log.with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn identity(config: &Config) -> Result<Identity, Failure> {
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

async fn serve(config: Config, identity: Identity) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make run_dir {}", config.run_dir.display()))?;
    // The namespaces below it are one agent's: another one would sweep them away.
    let _held = crate::store::lock(&config.run_dir, "run_dir")
        .with_context(|| format!("run_dir {} cannot be used", config.run_dir.display()))?;
    let kernel =
        NetlinkKernel::new(&config.run_dir, config.backend).context("the kernel cannot be reached")?;
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
        listen: |netns, listener| {
            let netns = netns.open().map_err(std::io::Error::other)?;
            resolver::Sockets::open(std::os::fd::AsFd::as_fd(&netns), listener).map(Some)
        },
    };
    let mut stop = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let config = Arc::new(config);
    let agent = agent::start((*config).clone(), seams).await?;
    agent.metrics.set_certificate_expiry(identity.expires);
    let served = Served {
        config: config.clone(),
        context: agent.context.clone(),
        snapshot: agent.snapshot.clone(),
        metrics: agent.metrics.clone(),
    };
    let api = Api::serve(served).await?;
    tracing::info!(socket = %config.socket().display(), http = %config.http, "serving");
    tokio::select! {
        _ = stop.recv() => tracing::info!("stopping"),
        _ = interrupt.recv() => tracing::info!("stopping"),
    }
    drop(api);
    agent.stop().await;
    let _ = std::fs::remove_file(config.socket());
    Ok(())
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
