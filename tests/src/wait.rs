//! Waiting for conditions. The only place that sleeps or reads the clock: the laboratory runs on
//! real time, unlike the product's crates, whose time the simulation controls.

#![expect(clippy::disallowed_methods, reason = "real packets take real time")]

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A duration of so many seconds.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How much longer things may take than on a machine: on an emulated one by far (`WARREN_TEST_PATIENCE`).
pub fn patience(bound: Duration) -> Duration {
    let times = std::env::var("WARREN_TEST_PATIENCE").ok().and_then(|times| times.parse().ok());
    bound * times.unwrap_or(1)
}

/// Polls until `look` finds what it wants, at the longest for `bound` ([`patience`]); panics with `what` and what
/// was seen last.
#[track_caller]
pub fn eventually<T>(bound: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let bound = patience(bound);
    let deadline = Instant::now() + bound;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= deadline => {
                panic!("not within {bound:?}: {what}; last seen: {seen}")
            }
            Err(_) => pause(POLL),
        }
    }
}

/// For [`eventually`]: `holds`, or what was seen instead.
pub fn want(holds: bool, seen: impl Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{seen:?}")) }
}

/// Now.
pub fn clock() -> Instant {
    Instant::now()
}

/// How long `work` takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// Does `work` once every `period` until it says that it is enough.
pub fn paced(period: Duration, mut work: impl FnMut() -> bool) {
    let mut next = Instant::now();
    while work() {
        next += period;
        pause(next.saturating_duration_since(Instant::now()));
    }
}

/// Lets time pass where time itself is the input: pacing traffic, holding a process stopped.
/// For conditions there is [`eventually`].
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
