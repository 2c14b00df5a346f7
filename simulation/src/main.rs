//! A region in one process: the node of every host as it is, in virtual time, on a network and on kernels in
//! memory. One seed is one history, so that what went wrong once goes wrong again.
//!
//! It never touches a socket, a file or the kernel. Messages travel as values: QUIC, netlink and the engine
//! are left to the tests that have them.

mod chronicle;
mod clock;
mod cluster;
mod convergence;
mod entropy;
mod history;
mod lanes;
mod laws;
mod liar;
mod operation;
mod pool;
mod progress;
mod random;
mod report;
mod scenario;
mod seeds;
mod stage;
mod veteran;

use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use chronicle::Chronicle;
use cluster::Cluster;
use history::History;
use operation::Operation;
use report::Page;
use scenario::{Scenario, Size};
use stage::Stage;

/// Simulated hosts allocate a lot, and libc's allocator took a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Runs the node on a simulated region and checks its laws")]
struct Arguments {
    /// Hosts of the region; without it the seed draws 5 to 50, and a scenario has its own number
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    hosts: Option<u16>,
    /// The history to run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run all of A..B, both included, on all cores
    #[arg(long, value_name = "A..B", value_parser = seeds::parse, conflicts_with = "seed")]
    seeds: Option<RangeInclusive<u64>>,
    /// A scenario by name instead of one drawn from the seed
    #[arg(long, value_name = "NAME", value_parser = named)]
    scenario: Option<Named>,
    /// How long a drawn scenario disturbs the region, in virtual seconds
    #[arg(long, value_name = "T", default_value_t = 60)]
    virtual_seconds: u64,
    /// With --seeds: what was run is noted in this file; seeds that held every law in the same binary are left out
    #[arg(long, value_name = "FILE", requires = "seeds")]
    resume: Option<PathBuf>,
    /// How many of the last events are printed when a law is broken
    #[arg(long, value_name = "N", default_value_t = 60)]
    events: usize,
    #[command(flatten)]
    convergence: convergence::Options,
}

/// What `--scenario` names.
#[derive(Clone, Copy)]
enum Named {
    /// A script played with laws.
    Script(&'static Scenario),
    /// Changes of a quiet region, timed.
    Convergence(convergence::Selection),
}

fn named(name: &str) -> Result<Named, String> {
    let script = scenario::find(name).map(Named::Script);
    script.or_else(|| convergence::Selection::find(name).map(Named::Convergence)).ok_or_else(|| {
        let scripts = scenario::SCENARIOS.iter().map(|s| (s.name, s.about));
        let names: Vec<_> =
            scripts.chain(convergence::names()).map(|(name, about)| format!("{name:24} {about}")).collect();
        format!("there are\n  {}", names.join("\n  "))
    })
}

impl Arguments {
    fn script(&self) -> Option<&'static Scenario> {
        match self.scenario? {
            Named::Script(script) => Some(script),
            Named::Convergence(_) => None,
        }
    }

    /// What one seed of them is run by.
    fn again(&self) -> Vec<String> {
        let hosts = self.hosts.map(|hosts| ["--hosts".to_owned(), hosts.to_string()]);
        let scenario = self.script().map(|scenario| ["--scenario".to_owned(), scenario.name.to_owned()]);
        let members = self.script().map(|_| ["--members".to_owned(), self.convergence.members.to_string()]);
        let lasting = ["--virtual-seconds".to_owned(), self.virtual_seconds.to_string()];
        hosts.into_iter().chain(scenario).chain(members).chain([lasting]).flatten().collect()
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().without_time().with_env_filter(filter).with_writer(io::stderr).init();
    let Arguments { seed, seeds, hosts, scenario, convergence, .. } = &arguments;
    match (*scenario, seeds.clone()) {
        (Some(Named::Convergence(selection)), seeds) => match selection.single(*hosts, convergence) {
            Some(single) if seeds.is_none() => run(*seed, move || single.tell()),
            _ => convergence::tell_all(selection, *hosts, seeds, convergence),
        },
        (_, Some(seeds)) => seeds::run_all(seeds, &arguments.again(), arguments.resume.as_deref()),
        (_, None) => run(*seed, move || tell(arguments)),
    }
}

/// Runs one seed, on a fresh thread of its own: see [`entropy::seed`].
fn run<F>(seed: u64, told: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let report = std::panic::take_hook();
    // A task that panics would end alone and unheard.
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        eprintln!("seed {seed}: a panic breaks every law");
        process::exit(1);
    }));
    let thread = thread::Builder::new().name(format!("seed {seed}")).stack_size(STACK_BYTES);
    let ended = thread.spawn(move || {
        entropy::seed(seed);
        lanes::driver()?.block_on(told())
    })?;
    ended.join().unwrap_or_else(|_| unreachable!("a panic ends the process"))
}

/// Unoptimised futures of a whole agent are long.
const STACK_BYTES: usize = 16 << 20;

async fn tell(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let seed = arguments.seed;
    let mut rng = SmallRng::seed_from_u64(seed);
    let drawn = random::hosts(&mut rng);
    let hosts =
        arguments.hosts.unwrap_or_else(|| arguments.script().map_or(drawn, |scenario| scenario.hosts));
    // Some time after 2023, another one for each seed.
    let epoch_ns = (1_700_000_000 + seed % 100_000_000) * 1_000_000_000;
    let report = arguments.convergence.report.as_deref();
    let kept = if report.is_some() { arguments.events.max(REPORTED_EVENTS) } else { arguments.events };
    let size = Size { hosts: hosts.into(), members: arguments.convergence.members };
    let script = arguments.script().map(|scenario| (scenario.script)(size));
    let mut cluster = Cluster::new(hosts, epoch_ns, History::begin(kept))?;
    if script.iter().flatten().any(Operation::crowds) {
        cluster.compress_digests();
    }
    let mut stage = Stage::new(cluster);
    stage.chronicle = report.map(|_| Chronicle::begin());
    let told = match script {
        Some(script) => {
            stage.planned = script.iter().map(Operation::waits).sum();
            stage.play(script).await
        }
        None => {
            let lasting = Duration::from_secs(arguments.virtual_seconds);
            stage.planned = lasting;
            random::play(&mut stage, &mut rng, lasting).await
        }
    };
    stage.progress.end();
    stage.cluster.note_traffic();
    if let Some(file) = report {
        page(&stage, &arguments, told.as_ref().err()).write(file)?;
    }
    let mut out = io::stdout().lock();
    match told {
        Ok(()) => {
            writeln!(out, "{}", summary(&stage, seed)).context("stdout")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            let last: String = stage.cluster.history.last(arguments.events).map(|line| line + "\n").collect();
            write!(out, "{last}seed {seed}: {broken:#}\n{}\n", summary(&stage, seed)).context("stdout")?;
            writeln!(out, "again: simulation --seed {seed} {}", arguments.again().join(" "))?;
            writeln!(out, "commit {}, binary {}", report::COMMIT, report::binary_hash())?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// How many of the last events a page shows.
const REPORTED_EVENTS: usize = 20_000;

/// The page of a run.
fn page(stage: &Stage, arguments: &Arguments, broken: Option<&anyhow::Error>) -> Page {
    let seed = arguments.seed;
    let history = &stage.cluster.history;
    let what = arguments.script().map_or("a random scenario", |script| script.name);
    let command = format!("simulation --seed {seed} {}", arguments.again().join(" "));
    let mut page = Page::new(&format!("Seed {seed}: {what}"), &command);
    if let Some(broken) = broken {
        page.alarm(&format!("{broken:#}"));
    }
    let told = |figure: String, what: &str| (figure, what.to_owned());
    page.headlines(&[
        told(if broken.is_none() { "every law held" } else { "a law broke" }.into(), "the outcome"),
        told(stage.cluster.hosts.len().to_string(), "hosts"),
        told(format!("{:.1} s", history.elapsed().as_secs_f64()), "of virtual time"),
        told(stage.cluster.books.acknowledged.to_string(), "attaches that were acknowledged"),
        told(
            format!("{:016x}", history.hash()),
            "history: the same seed, binary and arguments give the same",
        ),
    ]);
    if let Some(chronicle) = &stage.chronicle {
        chronicle.show(&mut page);
    }
    page.section(
        "Events",
        "The last of them, oldest first, by virtual seconds. Blue: what was done to the region.",
    );
    page.timeline(&history.last(REPORTED_EVENTS).collect::<Vec<_>>());
    page
}

fn summary(stage: &Stage, seed: u64) -> String {
    let (history, books) = (&stage.cluster.history, &stage.cluster.books);
    let settled = stage.settled.iter().max().copied().unwrap_or_default();
    format!(
        "seed {seed}: {:.1} virtual s, {} hosts, {} attaches ({} refused, slowest {:.1} s), settled within {:.1} s, \
         {} events, history {:016x}",
        history.elapsed().as_secs_f64(),
        stage.cluster.hosts.len(),
        books.acknowledged,
        books.refused.len(),
        books.slowest.as_secs_f64(),
        settled.as_secs_f64(),
        history.count(),
        history.hash()
    )
}
