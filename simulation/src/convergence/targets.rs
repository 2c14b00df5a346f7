//! The design's targets that are about gossip, each as a JSON line for `make bench`.

use std::io::{self, Write as _};
use std::process::{ExitCode, Output};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::perturbation::Perturbation;
use super::sample::percentile;
use super::{Campaign, MODELS, Model, Selection, is_faster, peer_row, print};
use crate::pool;

/// Hosts of the regions that are measured.
const REGIONS: [usize; 4] = [25, 100, 500, 1000];
/// Hosts of the region that is measured once more without frames.
const PLAIN: usize = 1000;

/// Measures everything and prints a JSON object for each row on stdout, in the order of the design; the
/// samples beside the peer's go to stderr.
///
/// # Errors
/// The first run that failed.
pub fn tell() -> anyhow::Result<ExitCode> {
    let campaign = Campaign::take(Selection::All, None)?;
    print(&mut io::stderr(), &campaign, Selection::All)?;
    let regions: Vec<(usize, bool)> =
        REGIONS.map(|hosts| (hosts, true)).into_iter().chain([(PLAIN, false)]).collect();
    let runs: Vec<Vec<String>> =
        regions.iter().rev().map(|&(hosts, eager)| arguments(hosts, eager)).collect();
    let mut figures = pool::run("regions", &runs, read)?;
    figures.reverse();
    let mut rows = campaign_rows(&campaign)?;
    for ((hosts, eager), figures) in regions.into_iter().zip(figures) {
        rows.extend(region_rows(hosts, eager, &figures));
    }
    let mut out = io::stdout().lock();
    for row in rows {
        writeln!(out, "{row}")?;
    }
    Ok(ExitCode::SUCCESS)
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

fn region_rows(hosts: usize, eager: bool, figures: &[Value]) -> Vec<Value> {
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
        let figure = figures.iter().find(|figure| figure["metric"] == metric)?;
        let how = if eager { "" } else { ", chitchat alone" };
        let name = format!("{hosts} hosts × 5{how}, {metric}: {percentile}");
        let unit = figure["unit"].as_str().unwrap_or_default();
        // Without frames it is told for comparison; the targets are for what is shipped.
        Some(row(name, figure[percentile].as_f64()?, unit, peer, target.filter(|_| eager)))
    };
    held.into_iter().filter_map(found).collect()
}
