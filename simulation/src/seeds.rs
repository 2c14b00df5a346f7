//! Many seeds side by side.
//!
//! Each in a process of its own: tokio seeds its `select!` with a counter of the process beside getrandom(2),
//! so that only the first runtime of a process is the same each time.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::RangeInclusive;
use std::process::{Command, ExitCode, Output};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;

/// Reads `A..B`, both included.
pub fn parse(text: &str) -> Result<RangeInclusive<u64>, String> {
    let numbers = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match numbers {
        Some((first, last)) if first <= last => Ok(first..=last),
        _ => Err("two seeds in rising order, as in 1..200".into()),
    }
}

/// Runs this program once for each seed on all cores, with `common` arguments beside it. Prints the summary of
/// each seed in order, and the whole of those that broke a law.
pub fn run_all(seeds: RangeInclusive<u64>, common: &[String]) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("this program's own path")?;
    let (total, left) = (seeds.clone().count(), Mutex::new(seeds));
    let outcomes = Mutex::new(BTreeMap::<u64, io::Result<Output>>::new());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let outcome =
                        Command::new(&program).args(common).arg("--seed").arg(seed.to_string()).output();
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    outcomes.insert(seed, outcome);
                    progress(&outcomes, total);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(&outcomes)
}

fn holds(outcome: &io::Result<Output>) -> bool {
    outcome.as_ref().is_ok_and(|output| output.status.success())
}

fn progress(outcomes: &BTreeMap<u64, io::Result<Output>>, total: usize) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        let broken = outcomes.values().filter(|outcome| !holds(outcome)).count();
        let end = if outcomes.len() == total { "\n" } else { "" };
        // Nobody misses a progress line that cannot be written.
        let _ = write!(err, "\r{} of {total} seeds, {broken} broke a law{end}", outcomes.len());
        let _ = err.flush();
    }
}

fn report(outcomes: &BTreeMap<u64, io::Result<Output>>) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut broken = Vec::new();
    for (seed, outcome) in outcomes {
        if !holds(outcome) {
            broken.push(seed);
        }
        match outcome {
            Ok(output) => {
                out.write_all(&output.stdout)?;
                if !output.status.success() {
                    out.write_all(&output.stderr)?;
                }
            }
            Err(error) => writeln!(out, "seed {seed} did not run: {error}")?,
        }
    }
    if broken.is_empty() {
        writeln!(out, "{} seeds, every law held", outcomes.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} seeds, laws were broken by {broken:?}", outcomes.len())?;
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, read) in [
            ("1..8", Some(1..=8)),
            ("7..7", Some(7..=7)),
            ("8..1", None),
            ("1", None),
            ("a..b", None),
            ("", None),
        ] {
            assert_eq!(parse(text).ok(), read, "{text}");
        }
    }
}
