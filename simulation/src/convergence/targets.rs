//! The design's targets that are about gossip, each as a JSON line for `make bench`.

use std::io::{self, Write as _};
use std::process::Output;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::perturbation::Perturbation;
use super::sample::percentile;
use super::{Campaign, MODELS, Model, Selection, is_faster, peer_row};
use crate::pool;

/// The regions that are measured, and whether with frames.
const REGIONS: [(usize, bool); 5] = [(25, true), (100, true), (500, true), (1000, true), (1000, false)];

/// What came of one region.
pub struct Measured {
    /// Its hosts.
    pub hosts: usize,
    /// Whether changes were pushed at once.
    pub eager: bool,
    /// As [`Figure::json`](super::region::Figure::json) makes them.
    pub figures: Vec<Value>,
}

impl Measured {
    /// The figure of a name.
    pub fn figure(&self, metric: &str) -> Option<&Value> {
        self.figures.iter().find(|figure| figure["metric"] == metric)
    }
}

/// Measures the regions of at most so many hosts, each in a process of its own.
///
/// # Errors
/// The first run that failed.
pub fn regions(hosts_max: usize) -> anyhow::Result<Vec<Measured>> {
    // The longest runs begin first.
    let regions: Vec<_> = REGIONS.into_iter().rev().filter(|(hosts, _)| *hosts <= hosts_max).collect();
    let runs: Vec<Vec<String>> = regions.iter().map(|&(hosts, eager)| arguments(hosts, eager)).collect();
    let figures = pool::run("regions", &runs, read)?;
    let measured = regions.into_iter().zip(figures);
    Ok(measured.map(|((hosts, eager), figures)| Measured { hosts, eager, figures }).rev().collect())
}

/// Prints a JSON object for each row, in the order of the design.
///
/// # Errors
/// The peer's file, or stdout.
pub fn tell(campaign: &Campaign, regions: &[Measured]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for row in campaign_rows(campaign)?.into_iter().chain(regions.iter().flat_map(region_rows)) {
        writeln!(out, "{row}")?;
    }
    Ok(())
}

fn arguments(hosts: usize, eager: bool) -> Vec<String> {
    let mut arguments: Vec<String> = ["--scenario", "region", "--hosts"].map(str::to_owned).into();
    arguments.push(hosts.to_string());
    if !eager {
        arguments.push("--chitchat-alone".into());
    }
    arguments
}

/// The figures in a region's output.
fn read(arguments: &[String], output: Output) -> anyhow::Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{}: {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    text.lines().map(|line| serde_json::from_str(line).context("a figure")).collect()
}

fn row(metric: String, value: f64, unit: &str, peer: Option<(&str, f64)>, target: Option<f64>) -> Value {
    let (name, peer_value) = peer.unzip();
    json!({
        "metric": metric, "value": value, "unit": unit,
        "peer": name, "peer_value": peer_value, "target": target,
    })
}

/// What is compared with NetworkDB.
fn campaign_rows(campaign: &Campaign) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    let targets = [
        (Perturbation::CreateEntry, [Some(10.0), Some(20.0), Some(500.0)]),
        (Perturbation::CreateEntryUnderChurn, [None, Some(100.0), Some(1500.0)]),
    ];
    let instant_alone = Model { eager: false, ..MODELS[0] };
    for (what, targets) in targets {
        let peer = peer_row(what, 25)?;
        for model in [MODELS[1], MODELS[0], instant_alone] {
            let ours = campaign.row(what, 25, model);
            for ((at, name), target) in [(50, "p50"), (90, "p90"), (100, "max")].into_iter().zip(targets) {
                // The target is for links that take time; NetworkDB has none such.
                let target = target.filter(|_| model == MODELS[1]);
                let metric = format!("{}, 25 hosts, {model}: {name}", what.name());
                let peer = Some(("NetworkDB", percentile(&peer, at)));
                rows.push(row(metric, percentile(&ours, at), "ms", peer, target));
            }
        }
    }
    let mut slower = 0;
    for what in Selection::All.perturbations() {
        for &nodes in what.sizes() {
            slower += usize::from(!is_faster(&campaign.row(what, nodes, MODELS[0]), &peer_row(what, nodes)?));
        }
    }
    let metric = "rows not faster than NetworkDB's (or as fast at 0), of 34".to_owned();
    rows.push(row(metric, slower as f64, "rows", None, Some(0.0)));
    Ok(rows)
}

/// What a region's figures are held to: metric, percentile, target, peer.
type Held = (&'static str, &'static str, Option<f64>, Option<(&'static str, f64)>);

fn region_rows(region: &Measured) -> Vec<Value> {
    let Measured { hosts, eager, .. } = *region;
    let large = hosts == 1000 && eager;
    let only = |applies: bool, target: f64| applies.then_some(target);
    let (detected, detected_max) = if hosts > 500 { (9_000.0, 12_000.0) } else { (5_000.0, 6_500.0) };
    let memberlist = |at25, at100| match hosts {
        25 => Some(("memberlist", at25)),
        100 => Some(("memberlist", at100)),
        _ => None,
    };
    let plain = |at100, at1000| match hosts {
        100 => Some(("plain chitchat", at100)),
        1000 => Some(("plain chitchat", at1000)),
        _ => None,
    };
    let loud = match hosts {
        100 => Some(40_000.0),
        1000 => Some(150_000.0),
        _ => None,
    };
    let alone = |value| (hosts == 1000).then_some(("plain chitchat", value));
    let repeated = "write, 10 % lost and repeated after 30 ms";
    let lost = "write, 10 % lost for good";
    let held: [Held; 14] = [
        ("write", "p50", None, None),
        ("write", "p99", only(large, 30.0), alone(1900.0)),
        ("write", "max", only(large, 1000.0), None),
        (repeated, "p99", only(large, 30.0), None),
        (repeated, "max", only(large, 1000.0), None),
        (lost, "p99", only(large, 30.0), None),
        (lost, "max", only(large, 1000.0), None),
        ("cold join of one host", "max", only(large, 1000.0), alone(9300.0)),
        ("cold start of all hosts at once", "max", only(large, 30_000.0), None),
        ("dead host out of answers", "p50", Some(detected), memberlist(7_000.0, 10_000.0)),
        ("dead host out of answers", "max", Some(detected_max), memberlist(9_000.0, 13_000.0)),
        ("live hosts out of answers", "max", Some(0.0), None),
        ("live hosts out of answers, 10 % lost for good", "max", Some(0.0), None),
        ("sent by an idle host", "p50", loud, plain(24_200.0, 122_000.0)),
    ];
    let found = |(metric, percentile, target, peer): Held| {
        let figure = region.figure(metric)?;
        let how = if eager { "" } else { ", chitchat alone" };
        let name = format!("{hosts} hosts × 5{how}, {metric}: {percentile}");
        let unit = figure["unit"].as_str().unwrap_or_default();
        // Without frames it is told for comparison; the targets are for what is shipped.
        Some(row(name, figure[percentile].as_f64()?, unit, peer, target.filter(|_| eager)))
    };
    held.into_iter().filter_map(found).collect()
}
