//! Counts of what the gossip layer did, for the metrics page.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// One counted series: the metric's name without the `warren_` prefix, and its label pairs.
type Series = (&'static str, Vec<(&'static str, &'static str)>);

/// What is called with a series' name, its label pairs and its count.
pub type Visit<'a> = dyn FnMut(&'static str, &[(&'static str, &str)], u64) + 'a;

/// Monotonic counters, shared by a wire and the [`Gossip`](crate::Gossip) above it.
#[derive(Debug, Default)]
pub struct Counters {
    counts: Mutex<BTreeMap<Series, u64>>,
    /// Messages and bytes by direction and kind, apart from the rest: they are counted most.
    traffic: Mutex<BTreeMap<(&'static str, &'static str), Traffic>>,
    /// Frames by what came of them, apart for the same reason.
    frames: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Traffic {
    messages: u64,
    bytes: u64,
}

impl Counters {
    /// Calls `f` with every series: metric name without its `warren_` prefix, labels, count.
    pub fn each(&self, f: &mut Visit<'_>) {
        for ((name, labels), count) in self.all() {
            f(name, &labels, count);
        }
    }

    /// The count of one series; 0 when it was never counted.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let counts = self.all();
        counts.iter().find(|((n, l), _)| *n == name && l == labels).map_or(0, |(_, count)| *count)
    }

    /// One message passed: `direction` is `in` or `out`, `kind` what it was.
    pub(crate) fn message(&self, direction: &'static str, kind: &'static str, bytes: usize) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = traffic.entry((direction, kind)).or_default();
        counted.messages += 1;
        counted.bytes += bytes as u64;
    }

    /// A record was skipped; see [`MalformedRecord::reason`](crate::record::MalformedRecord::reason).
    pub(crate) fn quarantined(&self, reason: &'static str) {
        self.add("records_quarantined_total", vec![("reason", reason)], 1);
    }

    /// A peer was refused, or refused us.
    pub(crate) fn rejected(&self, reason: &'static str) {
        self.add("gossip_rejected_total", vec![("reason", reason)], 1);
    }

    /// A message was dropped: a queue was full, or it was not what it claimed to be.
    pub(crate) fn dropped(&self, kind: &'static str) {
        self.add("gossip_dropped_total", vec![("kind", kind)], 1);
    }

    /// What came of a frame that arrived, or that was not pushed on.
    pub(crate) fn frame(&self, outcome: &'static str) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        *frames.entry(outcome).or_default() += 1;
    }

    /// What came of asking, or of being asked, for a snapshot.
    pub(crate) fn snapshot(&self, outcome: &'static str) {
        self.add("snapshots_total", vec![("outcome", outcome)], 1);
    }

    fn add(&self, name: &'static str, labels: Vec<(&'static str, &'static str)>, by: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((name, labels)).or_default() += by;
    }

    fn all(&self) -> BTreeMap<Series, u64> {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (&(direction, kind), traffic) in &*self.traffic.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = vec![("direction", direction), ("kind", kind)];
            all.insert(("gossip_bytes_total", labels.clone()), traffic.bytes);
            all.insert(("gossip_messages_total", labels), traffic.messages);
        }
        for (&outcome, frames) in &*self.frames.lock().unwrap_or_else(PoisonError::into_inner) {
            all.insert(("frames_total", vec![("outcome", outcome)]), *frames);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_told_once_with_its_sum() {
        let counters = Counters::default();
        counters.message("in", "envelope", 10);
        counters.message("in", "envelope", 5);
        counters.rejected("twin");
        let mut seen = Vec::new();
        counters.each(&mut |name, labels, count| {
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            seen.push(format!("{name}{{{}}} {count}", labels.join(",")));
        });
        assert_eq!(
            seen,
            [
                "gossip_bytes_total{direction=in,kind=envelope} 15",
                "gossip_messages_total{direction=in,kind=envelope} 2",
                "gossip_rejected_total{reason=twin} 1",
            ]
        );
        assert_eq!(counters.get("gossip_rejected_total", &[("reason", "twin")]), 1);
        assert_eq!(counters.get("gossip_rejected_total", &[("reason", "tls")]), 0);
    }
}
