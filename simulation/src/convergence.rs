//! How fast news reaches every host, measured as NetworkDB measures itself: the same perturbations, numbers
//! of hosts and columns, in virtual time.
//!
//! NetworkDB's links take no time and its gossip ticks every 200 ms. So the compared model has links without
//! delay; beside it stand links of 0.3 to 1.5 ms, and both without frames, when chitchat's rounds of 500 ms
//! alone carry the news.

mod measure;
mod page;
mod perturbation;
mod region;
mod sample;
mod seats;
mod targets;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Output};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use gossip::memory::{Delay, Link};

use crate::pool;
use measure::Measured;
use perturbation::Perturbation;
use region::Region;
use sample::{COLUMNS, Sample, percentile};
use seats::Setting;

/// Between two rounds of chitchat.
const INTERVAL: Duration = Duration::from_millis(500);

/// What the peer measured of itself; see `peers/README.md`.
const PEER_QUIET: &str = include_str!("../peers/networkdb-quiet.csv");
const PEER_CHURN: &str = include_str!("../peers/networkdb-churn.csv");

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Every perturbation.
    All,
    /// One of them.
    One(Perturbation),
    /// A large region.
    Region,
    /// What the design has a target for.
    Targets,
}

/// How it is measured.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long messages travel, for one sample of a convergence scenario
    #[arg(long, value_enum, default_value_t = Links::Instant)]
    links: Links,
    /// Take that sample without frames
    #[arg(long)]
    chitchat_alone: bool,
    /// Members of each host of a large region, gossip alone (region) or whole nodes (large-region)
    #[arg(long, value_name = "M", default_value_t = 5)]
    pub members: usize,
    /// Write the samples of a convergence scenario to FILE, in the columns of peers/*.csv
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with drawings to FILE
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl Options {
    /// How news travels in a single sample.
    fn model(&self) -> Model {
        Model { links: self.links, eager: !self.chitchat_alone }
    }
}

/// The scenarios here, and what each shows.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    let ones =
        perturbation::ALL.map(|one| (one.name(), "how fast that reaches everybody; with --hosts one sample"));
    [
        ("targets", "what the design has a target for, as JSON lines"),
        ("region", "a large region: news, silence, deaths, a newcomer"),
        ("convergence", "all of the following beside NetworkDB's figures"),
    ]
    .into_iter()
    .chain(ones)
}

/// What one run of this program measures.
#[derive(Debug, Clone, Copy)]
pub enum Single {
    /// One sample.
    Sample(Perturbation, usize, Model),
    /// One region.
    Region(Region),
}

impl Selection {
    /// The selection of a scenario's name.
    pub fn find(name: &str) -> Option<Selection> {
        match name {
            "convergence" => Some(Selection::All),
            "region" => Some(Selection::Region),
            "targets" => Some(Selection::Targets),
            name => Perturbation::find(name).map(Selection::One),
        }
    }

    /// What to measure in this process; `None`: it takes many runs.
    pub fn single(self, hosts: Option<u16>, options: &Options) -> Option<Single> {
        let Options { members, chitchat_alone, .. } = *options;
        match self {
            Selection::One(what) => hosts.map(|hosts| Single::Sample(what, hosts.into(), options.model())),
            Selection::Region => {
                let hosts = hosts.unwrap_or(1000).into();
                Some(Single::Region(Region { hosts, members, eager: !chitchat_alone }))
            }
            Selection::All | Selection::Targets => None,
        }
    }

    fn perturbations(self) -> Vec<Perturbation> {
        match self {
            Selection::All | Selection::Targets => perturbation::ALL.to_vec(),
            Selection::One(one) => vec![one],
            Selection::Region => Vec::new(),
        }
    }
}

/// How long a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Links {
    /// No time at all, as in NetworkDB's harness.
    Instant,
    /// 0.3 to 1.5 ms, as in a metropolitan region.
    Metro,
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Links::Instant => "instant",
            Links::Metro => "metro",
        })
    }
}

/// How news travels in a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// What links are like.
    pub links: Links,
    /// Whether changes are pushed at once.
    pub eager: bool,
}

/// The compared one first.
pub const MODELS: [Model; 4] = [
    Model { links: Links::Instant, eager: true },
    Model { links: Links::Metro, eager: true },
    Model { links: Links::Instant, eager: false },
    Model { links: Links::Metro, eager: false },
];

impl Model {
    fn setting(self) -> Setting {
        let links = match self.links {
            Links::Instant => Link::of(Delay::Fixed(Duration::ZERO)),
            Links::Metro => Link::default(),
        };
        Setting { links, eager: self.eager, interval: INTERVAL }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} links, {}", self.links, if self.eager { "eager" } else { "chitchat alone" })
    }
}

impl Single {
    /// Measures it and prints what came of it, for people and for the run that collects many.
    ///
    /// # Errors
    /// News that did not arrive everywhere.
    pub async fn tell(self) -> anyhow::Result<ExitCode> {
        match self {
            Single::Sample(what, hosts, model) => {
                let Measured { sample, bytes_per_host } =
                    measure::measure(what, hosts, model.setting()).await?;
                writeln!(io::stdout(), "{COLUMNS},BytesPerHost\n{sample},{bytes_per_host}")?;
            }
            Single::Region(region) => {
                #[expect(clippy::disallowed_methods, reason = "who waits for it waits in real time")]
                let began = std::time::Instant::now();
                region
                    .measure(|figure| {
                        let (what, unit) = (figure.metric, figure.unit);
                        let [p50, p99, max] = [50, 99, 100].map(|at| percentile(&figure.values, at));
                        let after = began.elapsed().as_secs_f64();
                        eprintln!(
                            "{after:>6.0} s  {} hosts, {what}: p50 {p50:.1}, p99 {p99:.1}, max {max:.1} {unit}",
                            region.hosts
                        );
                        Ok(writeln!(io::stdout(), "{}", figure.json())?)
                    })
                    .await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Takes all samples, prints them beside the peer's, and writes the files.
///
/// # Errors
/// A sample that was not taken, or a file that was not written.
pub fn tell_all(
    selection: Selection,
    hosts: Option<u16>,
    seeds: Option<RangeInclusive<u64>>,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let Options { csv, report, .. } = options;
    let campaign = Campaign::take(selection, seeds)?;
    let for_targets = selection == Selection::Targets;
    // Beside machine-readable rows the table is for whoever waits.
    let mut told: Box<dyn io::Write> =
        if for_targets { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
    let never_slower = print(&mut *told, &campaign, selection)?;
    if let Some(file) = csv {
        for file in campaign.write(file)? {
            writeln!(told, "written: {}", file.display())?;
        }
    }
    let hosts_max = match selection {
        Selection::Targets => hosts.map_or(REGION_HOSTS_MAX, usize::from),
        Selection::All if report.is_some() => REGION_HOSTS_MAX,
        _ => 0,
    };
    let regions = targets::regions(hosts_max)?;
    if let Some(file) = report {
        let command: Vec<String> = std::env::args().skip(1).collect();
        page::page(&campaign, &regions, &format!("simulation {}", command.join(" ")))?.write(file)?;
        writeln!(told, "written: {}", file.display())?;
    }
    if for_targets {
        targets::tell(&campaign, &regions)?;
    }
    Ok(if never_slower || for_targets { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Larger regions take up to an hour: `targets` measures them where `--hosts` asks for it.
const REGION_HOSTS_MAX: usize = 100;

/// All samples of a campaign.
pub struct Campaign {
    taken: Vec<Taken>,
}

/// One sample of ours.
pub struct Taken {
    perturbation: Perturbation,
    model: Model,
    seed: u64,
    sample: Sample,
    bytes_per_host: u64,
}

impl Campaign {
    /// Takes all samples, each in a process of its own, on all cores.
    ///
    /// # Errors
    /// The first run that failed.
    pub fn take(selection: Selection, seeds: Option<RangeInclusive<u64>>) -> anyhow::Result<Campaign> {
        let mut planned = Vec::new();
        for perturbation in selection.perturbations() {
            for &hosts in perturbation.sizes() {
                for model in MODELS {
                    let seeds = seeds.clone().unwrap_or(1..=perturbation.repetitions());
                    planned.extend(seeds.map(|seed| (perturbation, hosts, model, seed)));
                }
            }
        }
        let runs: Vec<Vec<String>> = planned.iter().map(|&(p, h, m, s)| arguments(p, h, m, s)).collect();
        let outcomes = pool::run("samples", &runs, read)?;
        let taken =
            planned.into_iter().zip(outcomes).map(|((perturbation, _, model, seed), (sample, bytes))| {
                Taken { perturbation, model, seed, sample, bytes_per_host: bytes }
            });
        Ok(Campaign { taken: taken.collect() })
    }

    /// Whether there are samples of a perturbation.
    fn has(&self, perturbation: Perturbation) -> bool {
        self.taken.iter().any(|taken| taken.perturbation == perturbation)
    }

    /// The milliseconds of all samples of a row, sorted.
    pub fn row(&self, perturbation: Perturbation, nodes: usize, model: Model) -> Vec<f64> {
        let of_row = |taken: &&Taken| {
            (taken.perturbation, taken.sample.nodes, taken.model) == (perturbation, nodes, model)
        };
        sorted(self.taken.iter().filter(of_row).map(|taken| ms(taken.sample.elapsed)))
    }

    /// Bytes each host sent until all had the news, on average over a row.
    pub fn bytes_per_host(&self, perturbation: Perturbation, nodes: usize, model: Model) -> f64 {
        let bytes: Vec<f64> = self
            .taken
            .iter()
            .filter(|t| (t.perturbation, t.sample.nodes, t.model) == (perturbation, nodes, model))
            .map(|t| t.bytes_per_host as f64)
            .collect();
        bytes.iter().sum::<f64>() / bytes.len().max(1) as f64
    }

    /// Writes the compared model to `file` in the peer's columns, the one with links that take time beside it
    /// as `-metro`, and everything with seeds, models and bytes as `-all`. Returns the files.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, file: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let of_model = |model: Model| {
            let lines = self.taken.iter().filter(|t| t.model == model).map(|t| format!("{}\n", t.sample));
            format!("{COLUMNS}\n{}", lines.collect::<String>())
        };
        let all: String = self
            .taken
            .iter()
            .map(|t| {
                let Model { links, eager } = t.model;
                format!("{links},{eager},{},{},{}\n", t.seed, t.sample, t.bytes_per_host)
            })
            .collect();
        let files = [
            (file.to_owned(), of_model(MODELS[0])),
            (beside(file, "metro"), of_model(MODELS[1])),
            (beside(file, "all"), format!("Links,Eager,Seed,{COLUMNS},BytesPerHost\n{all}")),
        ];
        for (file, text) in &files {
            fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(files.map(|(file, _)| file).into())
    }
}

/// The arguments of a run that takes one sample.
fn arguments(perturbation: Perturbation, hosts: usize, model: Model, seed: u64) -> Vec<String> {
    let mut arguments: Vec<String> = ["--scenario", perturbation.name(), "--links"].map(str::to_owned).into();
    arguments.push(model.links.to_string());
    arguments.extend(["--hosts".into(), hosts.to_string(), "--seed".into(), seed.to_string()]);
    if !model.eager {
        arguments.push("--chitchat-alone".into());
    }
    arguments
}

/// The sample and the bytes in a run's output.
fn read(arguments: &[String], output: Output) -> anyhow::Result<(Sample, u64)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().nth(1).filter(|_| output.status.success());
    let Some((sample, bytes)) = line.and_then(|line| line.rsplit_once(',')) else {
        bail!("{}: {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    };
    Ok((sample.parse()?, bytes.parse().context("the bytes")?))
}

/// `x.csv` with a word before its ending: `x-word.csv`.
fn beside(file: &Path, word: &str) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = match file.extension() {
        Some(ending) => format!("{stem}-{word}.{}", ending.to_string_lossy()),
        None => format!("{stem}-{word}"),
    };
    file.with_file_name(name)
}

/// The milliseconds of all the peer's samples of a row, sorted.
pub fn peer_row(perturbation: Perturbation, nodes: usize) -> anyhow::Result<Vec<f64>> {
    let samples = sample::read(if perturbation.is_churned() { PEER_CHURN } else { PEER_QUIET })?;
    let of_row = |sample: &&Sample| sample.perturbation == perturbation.name() && sample.nodes == nodes;
    Ok(sorted(samples.iter().filter(of_row).map(|sample| ms(sample.elapsed))))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Prints each row beside the peer's; whether none is slower, and each above 0 is faster, at p50, p90 and max.
///
/// # Errors
/// The peer's file, or `out`.
fn print(out: &mut dyn io::Write, campaign: &Campaign, selection: Selection) -> anyhow::Result<bool> {
    writeln!(out, "milliseconds of virtual time until the last host's view has it: p50 / p90 / max")?;
    writeln!(out, "NetworkDB: links without delay, its gossip ticks every 200 ms. Ours: rounds of 500 ms.")?;
    writeln!(
        out,
        "{:<25}{:>3}  {:>21}  {:>17}  {:>17}  {:>21}  {:>9} {:>7}",
        "", "N", "NetworkDB", "ours, instant", "ours, 0.3-1.5 ms", "chitchat alone", "B/host", "alone"
    )?;
    let mut never_slower = true;
    for perturbation in selection.perturbations() {
        for &nodes in perturbation.sizes() {
            let peer = peer_row(perturbation, nodes)?;
            let rows = MODELS.map(|model| campaign.row(perturbation, nodes, model));
            let bytes =
                [MODELS[0], MODELS[2]].map(|model| campaign.bytes_per_host(perturbation, nodes, model));
            let holds = is_faster(&rows[0], &peer);
            never_slower &= holds;
            writeln!(
                out,
                "{:<25}{nodes:>3}  {:>21}  {:>17}  {:>17}  {:>21}  {:>9.0} {:>7.0}  {}",
                perturbation.name(),
                three(&peer),
                three(&rows[0]),
                three(&rows[1]),
                three(&rows[2]),
                bytes[0],
                bytes[1],
                if holds { "" } else { "SLOWER" }
            )?;
        }
    }
    Ok(never_slower)
}

/// Whether ours is below the peer's at p50, p90 and max, or both are 0.
fn is_faster(ours: &[f64], peer: &[f64]) -> bool {
    [50, 90, 100].iter().all(|&at| {
        let (ours, peer) = (percentile(ours, at), percentile(peer, at));
        ours < peer || (ours == 0.0 && peer == 0.0)
    })
}

fn three(sorted: &[f64]) -> String {
    let [p50, p90, max] = [50, 90, 100].map(|at| percentile(sorted, at));
    format!("{p50:.0} / {p90:.0} / {max:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_files_have_every_row() {
        for perturbation in perturbation::ALL {
            for &nodes in perturbation.sizes() {
                let row = peer_row(perturbation, nodes).unwrap();
                let name = perturbation.name();
                assert_eq!(row.len() as u64, perturbation.repetitions(), "{name} {nodes}");
                let is_instant = perturbation == Perturbation::JoinPopulatedNetwork;
                assert!(row.iter().all(|ms| (*ms == 0.0) == is_instant), "{name} {nodes}");
            }
        }
    }

    #[test]
    fn a_row_is_faster_below_and_equal_at_zero() {
        for (ours, peer, expected) in [
            (&[6.0, 7.0][..], &[200.0, 400.0][..], true),
            (&[0.0], &[0.0], true),
            (&[1.0], &[0.0], false),
            (&[200.0], &[200.0], false),
            (&[1.0, 500.0], &[200.0, 400.0], false),
        ] {
            assert_eq!(is_faster(ours, peer), expected, "{ours:?} {peer:?}");
        }
    }

    #[test]
    fn files_lie_beside_the_one_asked_for() {
        assert_eq!(beside(Path::new("/x/a.csv"), "metro"), Path::new("/x/a-metro.csv"));
        assert_eq!(beside(Path::new("a"), "all"), Path::new("a-all"));
    }
}
