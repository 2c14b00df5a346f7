//! Many seeds side by side, and which of them are done already.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{ExitCode, Output};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;

use crate::pool;
use crate::report::{COMMIT, binary_hash};

/// Reads `A..B`, both included.
pub fn parse(text: &str) -> Result<RangeInclusive<u64>, String> {
    let numbers = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match numbers {
        Some((first, last)) if first <= last => Ok(first..=last),
        _ => Err("two seeds in rising order, as in 1..200".into()),
    }
}

/// Runs this program once for each seed on all cores, with `common` arguments beside it, but for those that a
/// file says this very binary has run. Prints the summary of each seed in order, and the whole of those that
/// broke a law.
pub fn run_all(
    seeds: RangeInclusive<u64>,
    common: &[String],
    resume: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let binary = binary_hash();
    let ledger = resume.map(|path| Ledger::open(path, &binary, common)).transpose()?;
    let done = ledger.as_ref().map_or_else(BTreeSet::new, |ledger| ledger.held.clone());
    let left: Vec<u64> = seeds.clone().filter(|seed| !done.contains(seed)).collect();
    let arguments = |seed: &u64| [&["--seed".to_owned(), seed.to_string()], common].concat();
    let runs: Vec<Vec<String>> = left.iter().map(arguments).collect();
    let outputs = pool::run("seeds", &runs, |arguments, output| {
        if let Some(ledger) = &ledger {
            ledger.note(&arguments[1], output.status.success())?;
        }
        // A long run may be ended before its report.
        if let Some(broken) = broken_law(&output) {
            eprintln!("{broken}");
        }
        Ok(output)
    })?;
    let mut out = io::stdout().lock();
    writeln!(out, "commit {COMMIT}, binary {binary}")?;
    if runs.len() < seeds.clone().count() {
        writeln!(out, "{} seeds held before", seeds.count() - runs.len())?;
    }
    report(&left, &outputs, &mut out)
}

/// The line of a run's output that says which law its seed broke.
fn broken_law(output: &Output) -> Option<String> {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let mut told = text.lines().filter(|line| line.starts_with("seed "));
    if output.status.success() { None } else { told.next().map(str::to_owned) }
}

fn report(seeds: &[u64], outputs: &[Output], out: &mut impl io::Write) -> anyhow::Result<ExitCode> {
    let mut broken = Vec::new();
    for (seed, output) in seeds.iter().zip(outputs) {
        out.write_all(&output.stdout)?;
        if !output.status.success() {
            broken.push(seed);
            out.write_all(&output.stderr)?;
        }
    }
    if broken.is_empty() {
        writeln!(out, "{} seeds, every law held", seeds.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} seeds, laws were broken by {broken:?}", seeds.len())?;
    Ok(ExitCode::FAILURE)
}

/// A file of what was run: a line with binary, arguments, seed and outcome each.
struct Ledger {
    /// What each line of this run begins with.
    run: String,
    /// Seeds that held every law in such a run.
    held: BTreeSet<u64>,
    file: Mutex<File>,
}

impl Ledger {
    fn open(path: &Path, binary: &str, common: &[String]) -> anyhow::Result<Ledger> {
        let run = format!("{binary} {}", common.join(" "));
        let text = if path.exists() { fs::read_to_string(path) } else { Ok(String::new()) };
        let text = text.with_context(|| path.display().to_string())?;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = Mutex::new(file.with_context(|| path.display().to_string())?);
        Ok(Ledger { held: held(&text, &run), run, file })
    }

    fn note(&self, seed: &str, held: bool) -> io::Result<()> {
        let outcome = if held { "held" } else { "broke" };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(file, "{} {seed} {outcome}", self.run)
    }
}

/// The seeds of a run that held every law; a line cut short by a crash is none.
fn held(text: &str, run: &str) -> BTreeSet<u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(run)?.strip_prefix(' '));
    lines.filter_map(|line| line.strip_suffix(" held")?.parse().ok()).collect()
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

    #[test]
    fn a_seed_is_done_when_the_same_run_of_it_held() {
        let text = "aa --hosts 5 1 held\naa --hosts 5 2 broke\nbb --hosts 5 3 held\naa --hosts 50 4 held\naa --hosts 5 5";
        assert_eq!(held(text, "aa --hosts 5"), BTreeSet::from([1]));
        assert_eq!(held(text, "bb --hosts 5"), BTreeSet::from([3]));
    }
}
