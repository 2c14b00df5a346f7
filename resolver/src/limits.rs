//! What one container may take of what all share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Queries one container is answered in a second; a core answers ten times as many.
const QUERIES_PER_S: u32 = 20_000;
/// Queries it may have saved up, as time.
const BURST: Duration = Duration::from_millis(100);
/// TCP connections of all containers of a host together.
const CONNECTIONS_MAX: usize = 2048;

/// What the containers of one host may take; clones share what is left of it.
#[derive(Clone, Debug)]
pub struct Limits {
    per_query: Duration,
    pub(crate) connections: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::per_container(QUERIES_PER_S)
    }
}

impl Limits {
    /// Answers each container at most this many queries a second; what more it asks waits, and is lost once its
    /// socket's buffer is full. 0 is no limit.
    pub fn per_container(queries_per_s: u32) -> Limits {
        let per_query = Duration::from_secs(1).checked_div(queries_per_s).unwrap_or_default();
        Limits { per_query, connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// A new container's share.
    pub(crate) fn pace(&self) -> Pace {
        Pace { per_query: self.per_query, origin: Instant::now(), spent_ns: Arc::default() }
    }
}

/// How fast a container is answered: the generic cell rate algorithm (ITU-T I.371). Clones share one pace.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    per_query: Duration,
    origin: Instant,
    /// When all queries so far would have been asked at the rate allowed, after `origin`.
    spent_ns: Arc<AtomicU64>,
}

impl Pace {
    /// Counts `queries` answered at `now`.
    pub(crate) fn spend(&self, queries: usize, now: Instant) {
        let now_ns = nanoseconds(now.saturating_duration_since(self.origin));
        let cost_ns = nanoseconds(self.per_query).saturating_mul(queries as u64);
        let _ = self.spent_ns.fetch_update(Relaxed, Relaxed, |spent| Some(spent.max(now_ns) + cost_ns));
    }

    /// When the next query may be read; `None` if at once.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let next = self.origin + Duration::from_nanos(self.spent_ns.load(Relaxed)).saturating_sub(BURST);
        (next > now).then_some(next)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_waits() {
        let pace = Limits::per_container(1000).pace();
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        pace.spend(100, start);
        assert_eq!(pace.next(start), None, "100 ms worth is saved up from the start");
        pace.spend(1, start);
        assert_eq!(pace.next(start), Some(ms(1)));
        pace.spend(49, start);
        assert_eq!((pace.next(start), pace.next(ms(50))), (Some(ms(50)), None));
        pace.spend(100, ms(1000));
        assert_eq!(pace.next(ms(1000)), None, "an idle second saves no more than a burst");
        pace.spend(5, ms(1000));
        assert_eq!(pace.next(ms(1000)), Some(ms(1005)));
        let free = Limits::per_container(0).pace();
        free.spend(1_000_000, start);
        assert_eq!(free.next(start), None);
    }
}
