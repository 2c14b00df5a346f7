//! Many runs of this program side by side, each in a process of its own.
//!
//! tokio seeds its `select!` with a counter of the process beside getrandom(2), so that only the first runtime
//! of a process is the same each time.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

/// Between two lines of progress where nothing can be overwritten.
const LINE_PAUSE: Duration = Duration::from_secs(30);

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
    let (left, progress) =
        (Mutex::new(runs.iter().enumerate()), Mutex::new(Progress::begin(what, runs.len())));
    let done = Mutex::new(Vec::with_capacity(runs.len()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((number, arguments)) = next() {
                    let output = Command::new(&program).args(arguments).output();
                    let outcome = output.context("this program").and_then(|output| read(arguments, output));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
                    progress.lock().unwrap_or_else(PoisonError::into_inner).step();
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// How far a long run is: a line that is overwritten on a terminal, one now and then elsewhere.
struct Progress<'a> {
    what: &'a str,
    total: usize,
    done: usize,
    began: Instant,
    told: Instant,
}

impl Progress<'_> {
    fn begin(what: &str, total: usize) -> Progress<'_> {
        let now = Instant::now();
        Progress { what, total, done: 0, began: now, told: now }
    }

    fn step(&mut self) {
        self.done += 1;
        let mut err = io::stderr().lock();
        let line = self.line();
        // Nobody misses a progress line that cannot be written.
        let _ = if err.is_terminal() {
            write!(err, "\r{line}\x1b[K{}", if self.done == self.total { "\n" } else { "" })
        } else if self.told.elapsed() >= LINE_PAUSE {
            self.told = Instant::now();
            writeln!(err, "{line}")
        } else {
            Ok(())
        };
        let _ = err.flush();
    }

    fn line(&self) -> String {
        let share = self.done as f64 / self.total.max(1) as f64;
        let filled = (share * 30.0) as usize;
        let left = self.began.elapsed().as_secs_f64() * (1.0 / share.max(1e-9) - 1.0);
        format!(
            "{} [{}{}] {} of {}, {left:.0} s left",
            self.what,
            "=".repeat(filled),
            " ".repeat(30 - filled),
            self.done,
            self.total
        )
    }
}
