//! A region in one process: the node of every host as it is, in virtual time, on a network and on kernels in
//! memory. One seed is one history, so that what went wrong once goes wrong again.
//!
//! It never touches a socket, a file or the kernel. Messages travel as values: QUIC, netlink and the engine
//! are left to the tests that have them.

mod cluster;
mod entropy;
mod history;
mod laws;
mod seeds;
mod story;

use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use cluster::Cluster;

/// Simulated hosts allocate a lot, and libc's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Runs the node on a simulated region and checks its laws")]
struct Arguments {
    /// Hosts of the region
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    hosts: u16,
    /// The history to run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run all of A..B, both included, on all cores
    #[arg(long, value_name = "A..B", value_parser = seeds::parse, conflicts_with = "seed")]
    seeds: Option<RangeInclusive<u64>>,
    /// How long a history lasts at least, in virtual seconds
    #[arg(long, value_name = "T", default_value_t = 180)]
    virtual_seconds: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().without_time().with_env_filter(filter).with_writer(io::stderr).init();
    match arguments.seeds.clone() {
        Some(seeds) => {
            let common = ["--hosts", &arguments.hosts.to_string()].map(str::to_owned);
            let lasting = ["--virtual-seconds", &arguments.virtual_seconds.to_string()].map(str::to_owned);
            seeds::run_all(seeds, &[common, lasting].concat())
        }
        None => run(arguments),
    }
}

/// Runs one seed, on a fresh thread of its own: see [`entropy::seed`].
fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let seed = arguments.seed;
    let report = std::panic::take_hook();
    // A task that panics would end alone and unheard.
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        eprintln!("seed {seed}: a panic breaks every law");
        process::exit(1);
    }));
    let thread = thread::Builder::new().name(format!("seed {seed}"));
    let told = thread.spawn(move || {
        entropy::seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        runtime.block_on(tell(&arguments))
    })?;
    told.join().unwrap_or_else(|_| unreachable!("a panic ends the process"))
}

async fn tell(Arguments { hosts, seed, virtual_seconds, .. }: &Arguments) -> anyhow::Result<ExitCode> {
    // Some time after 2023, another one for each seed.
    let epoch_ns = (1_700_000_000 + seed % 100_000_000) * 1_000_000_000;
    let mut cluster = Cluster::new(*hosts, epoch_ns)?;
    let told = story::tell(&mut cluster, *seed, Duration::from_secs(*virtual_seconds)).await;
    cluster.note_traffic();
    let history = &cluster.history;
    let summary = format!(
        "seed {seed}: {:.6} virtual s, {hosts} hosts, {} events, history {:016x}",
        history.elapsed().as_secs_f64(),
        history.count(),
        history.hash()
    );
    let mut out = io::stdout().lock();
    match told {
        Ok(()) => {
            writeln!(out, "{summary}").context("stdout")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            write!(out, "{}seed {seed}: {broken:#}\n{summary}\n", history.last()).context("stdout")?;
            writeln!(out, "again: --hosts {hosts} --seed {seed} --virtual-seconds {virtual_seconds}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}
