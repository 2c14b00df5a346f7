//! Many runs of this program side by side, each in a process of its own.
//!
//! tokio seeds its `select!` with a counter of the process beside getrandom(2), so that only the first runtime
//! of a process is the same each time.

use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::progress::Progress;
use anyhow::Context as _;

/// Runs this program once for each list of arguments, on all cores, and returns what `read` makes of the
/// outputs, in order. Progress goes to stderr.
///
/// # Errors
/// The first run that could not be started or read.
pub fn run<T: Send>(
    what: &str,
    runs: &[Vec<String>],
    read: impl Fn(&[String], Output) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let left = Mutex::new(runs.iter().enumerate());
    let progress = Mutex::new((Progress::begin(what), 0));
    let done = Mutex::new(Vec::with_capacity(runs.len()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((number, arguments)) = next() {
                    let output = Command::new(&program).args(arguments).output();
                    let outcome = output.context("this program").and_then(|output| read(arguments, output));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
                    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                    let (progress, done) = &mut *progress;
                    *done += 1;
                    let detail = format!("{done} of {}", runs.len());
                    progress.tell(f64::from(*done), runs.len() as f64, &detail);
                }
            });
        }
    });
    progress.into_inner().unwrap_or_else(PoisonError::into_inner).0.end();
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
