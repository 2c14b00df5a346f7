//! What the resolver has done since it started.

use crate::answer::{DropReason, Transport};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Response codes we send ourselves (0 to 5, BADVERS), and one place for what upstreams send.
const RCODES: [&str; 8] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "OTHER"];
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
const FORWARDED: [&str; 3] = ["answered", "failed", "busy"];
const DROPPED: [&str; 4] = ["short", "response", "source", "send"];
/// Upper bounds of the duration buckets, in microseconds.
const DURATION_BOUNDS_US: [u64; 12] =
    [10, 25, 50, 100, 250, 1_000, 5_000, 25_000, 100_000, 500_000, 1_500_000, 5_000_000];

/// Counts of everything all listeners did; cheap to count, summed when read.
#[derive(Debug, Default)]
pub struct Counters {
    networks: Mutex<BTreeMap<String, Arc<NetworkCounters>>>,
    forwarded: [AtomicU64; FORWARDED.len()],
    dropped: [AtomicU64; DROPPED.len()],
    durations: [AtomicU64; DURATION_BOUNDS_US.len() + 1],
    duration_sum_us: AtomicU64,
}

/// A label's name and value.
pub type Label<'l> = (&'static str, &'l str);

/// Queries answered for one network, by transport and response code.
#[derive(Debug, Default)]
pub(crate) struct NetworkCounters([[AtomicU64; RCODES.len()]; TRANSPORTS.len()]);

/// How forwarding a query ended.
#[derive(Clone, Copy)]
pub(crate) enum Forwarded {
    Answered,
    Failed,
    Busy,
}

/// How long it took from reading a query to having its reply, those of upstreams included.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    /// Upper bound in seconds (the last is infinite) and how many replies took at most so long: cumulative, as
    /// OpenMetrics wants them.
    pub buckets: Vec<(f64, u64)>,
    /// All durations together, in seconds.
    pub sum_s: f64,
}

impl Counters {
    /// Calls `f` with the name (without `warren_`), the labels and the value of every counter.
    ///
    /// Queries count for the network whose zone the name is in, all others for the first network of the
    /// container that asked, or for `""` if it has none yet.
    pub fn each(&self, f: &mut dyn FnMut(&'static str, &[Label<'_>], u64)) {
        for (network, counters) in self.networks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (transport, row) in TRANSPORTS.iter().zip(&counters.0) {
                for (rcode, value) in RCODES.iter().zip(row) {
                    let labels = [("network", network.as_str()), ("rcode", rcode), ("transport", transport)];
                    match value.load(Relaxed) {
                        0 => {}
                        value => f("dns_queries_total", &labels, value),
                    }
                }
            }
        }
        for (outcome, value) in FORWARDED.iter().zip(&self.forwarded) {
            f("dns_forwarded_total", &[("outcome", outcome)], value.load(Relaxed));
        }
        for (reason, value) in DROPPED.iter().zip(&self.dropped) {
            f("dns_dropped_total", &[("reason", reason)], value.load(Relaxed));
        }
    }

    /// How long replies took.
    pub fn durations(&self) -> Durations {
        let bounds_s = DURATION_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let mut total = 0;
        let cumulative = self.durations.iter().map(|bucket| {
            total += bucket.load(Relaxed);
            total
        });
        Durations {
            buckets: bounds_s.zip(cumulative).collect(),
            sum_s: self.duration_sum_us.load(Relaxed) as f64 / 1e6,
        }
    }

    /// The counters of a network, made on first use and kept: a counter that starts again looks like a restart.
    pub(crate) fn network(&self, network: &str) -> Arc<NetworkCounters> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        match networks.get(network) {
            Some(counters) => Arc::clone(counters),
            None => Arc::clone(networks.entry(network.to_owned()).or_default()),
        }
    }

    pub(crate) fn count_forwarded(&self, outcome: Forwarded) {
        self.forwarded[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_dropped(&self, reason: DropReason) {
        let index = match reason {
            DropReason::Short => 0,
            DropReason::Response => 1,
            DropReason::Source => 2,
            DropReason::Send => 3,
        };
        self.dropped[index].fetch_add(1, Relaxed);
    }

    /// Counts `replies` that took `duration` each.
    pub(crate) fn count_durations(&self, duration: Duration, replies: usize) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_US.partition_point(|bound| *bound < us);
        self.durations[bucket].fetch_add(replies as u64, Relaxed);
        self.duration_sum_us.fetch_add(us.saturating_mul(replies as u64), Relaxed);
    }
}

impl NetworkCounters {
    pub(crate) fn count(&self, transport: Transport, rcode: u16) {
        let column = match rcode {
            0..=5 => usize::from(rcode),
            16 => 6,
            _ => 7,
        };
        let row = match transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        };
        self.0[row][column].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_with_their_labels() {
        let counters = Counters::default();
        counters.network("pn-1").count(Transport::Udp, 3);
        counters.network("pn-1").count(Transport::Udp, 3);
        counters.network("pn-2").count(Transport::Tcp, 16);
        counters.network("pn-2").count(Transport::Tcp, 23);
        counters.count_forwarded(Forwarded::Busy);
        counters.count_dropped(DropReason::Send);
        let mut lines = Vec::new();
        counters.each(&mut |name, labels, value| {
            let labels: Vec<_> = labels.iter().map(|(key, label)| format!("{key}={label}")).collect();
            lines.push(format!("{name} {} {value}", labels.join(",")));
        });
        let expected = [
            "dns_queries_total network=pn-1,rcode=NXDOMAIN,transport=udp 2",
            "dns_queries_total network=pn-2,rcode=BADVERS,transport=tcp 1",
            "dns_queries_total network=pn-2,rcode=OTHER,transport=tcp 1",
            "dns_forwarded_total outcome=answered 0",
            "dns_forwarded_total outcome=failed 0",
            "dns_forwarded_total outcome=busy 1",
            "dns_dropped_total reason=short 0",
            "dns_dropped_total reason=response 0",
            "dns_dropped_total reason=source 0",
            "dns_dropped_total reason=send 1",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn durations_are_cumulative() {
        let counters = Counters::default();
        for us in [10, 11, 6_000_000] {
            counters.count_durations(Duration::from_micros(us), 1);
        }
        let durations = counters.durations();
        assert_eq!(durations.buckets[0], (0.000_01, 1));
        assert_eq!(durations.buckets[1], (0.000_025, 2));
        assert_eq!(durations.buckets[11], (5.0, 2));
        assert_eq!(durations.buckets[12], (f64::INFINITY, 3));
        assert!((durations.sum_s - 6.000_021).abs() < 1e-9);
    }
}
