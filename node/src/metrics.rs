//! The agent's figures in OpenMetrics. What is counted as it happens stands in a registry; what
//! can be read off the agent's state is read at the scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gossip::record::MemberState;
use netplumb::Report;
use netplumb::engine::{Facts, Remote};
use netplumb::kernel::Traffic;
use netplumb::reconciler::Outcome;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::agent::Snapshot;
use crate::claims::ledger::Tally;
use crate::claims::{DEFAULT_SUBNET, Ledger};

type Labels = Vec<(String, String)>;

/// An agent's figures.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconcile_ops: Family<Labels, Counter>,
    reconcile_seconds: Histogram,
    drift: Family<Labels, Counter>,
    conflicts: Family<Labels, Counter>,
    attach_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    attach_failures: Counter,
    convergence_seconds: Histogram,
    certificate_expiry: AtomicU64,
    gossip: OnceLock<Arc<gossip::Counters>>,
    resolver: OnceLock<Arc<resolver::Counters>>,
    engine: OnceLock<Arc<Remote>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        // 1 ms to 16 s: an attach takes tens of milliseconds, a stuck one its bound.
        fn seconds() -> Histogram {
            Histogram::new(exponential_buckets(0.001, 2.0, 15))
        }
        let mut registry = Registry::with_prefix("warren");
        let metrics = Metrics {
            reconcile_ops: Family::default(),
            reconcile_seconds: seconds(),
            drift: Family::default(),
            conflicts: Family::default(),
            attach_seconds: Family::new_with_constructor(seconds),
            attach_failures: Counter::default(),
            convergence_seconds: seconds(),
            certificate_expiry: AtomicU64::new(0),
            gossip: OnceLock::new(),
            resolver: OnceLock::new(),
            engine: OnceLock::new(),
            registry: Mutex::new(Registry::default()),
        };
        let r = &mut registry;
        r.register("reconcile_ops", "Kernel operations by kind and outcome", metrics.reconcile_ops.clone());
        r.register(
            "reconcile_duration_seconds",
            "Time to make the kernel follow, in seconds",
            metrics.reconcile_seconds.clone(),
        );
        r.register(
            "drift",
            "Kernel objects changed behind the agent's back and repaired",
            metrics.drift.clone(),
        );
        r.register("conflicts", "Own claims that another host's held", metrics.conflicts.clone());
        r.register(
            "attach_duration_seconds",
            "Whole attach calls, in seconds",
            metrics.attach_seconds.clone(),
        );
        r.register(
            "attach_failures",
            "Attach calls that were refused or failed",
            metrics.attach_failures.clone(),
        );
        r.register(
            "convergence_seconds",
            "From publishing a member until another host has it in its kernel, in seconds",
            metrics.convergence_seconds.clone(),
        );
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }
}

impl Metrics {
    /// A reconciliation ended.
    pub fn reconciled(&self, report: &Report, took: Duration) {
        for step in &report.steps {
            let outcome = match step.outcome {
                Outcome::Done => "done",
                Outcome::Failed(_) => "failed",
                Outcome::Skipped => "skipped",
            };
            let labels = vec![("kind".into(), step.op.kind().into()), ("outcome".into(), outcome.into())];
            self.reconcile_ops.get_or_create(&labels).inc();
        }
        for op in &report.drift {
            self.drift.get_or_create(&vec![("kind".into(), op.kind().into())]).inc();
        }
        if !report.steps.is_empty() {
            self.reconcile_seconds.observe(took.as_secs_f64());
        }
    }

    /// An own claim was contested; `kind` is `address`, `ordinal` or `vni`.
    pub fn conflict(&self, kind: &str) {
        self.conflicts.get_or_create(&vec![("kind".into(), kind.into())]).inc();
    }

    /// An attach call ended; `surface` is how it came.
    pub fn attached(&self, surface: &str, took: Duration, ok: bool) {
        let labels = vec![("surface".into(), surface.into())];
        self.attach_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if !ok {
            self.attach_failures.inc();
        }
    }

    /// Another host has a new member of this one in its kernel.
    pub fn converged(&self, took: Duration) {
        self.convergence_seconds.observe(took.as_secs_f64());
    }

    /// When the host's certificate expires, in seconds since 1970.
    pub fn set_certificate_expiry(&self, seconds: i64) {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        self.certificate_expiry.store(seconds, std::sync::atomic::Ordering::Relaxed);
    }

    /// When the host's certificate expires, in seconds since 1970; 0 when not told.
    pub fn certificate_expiry(&self) -> i64 {
        let seconds = self.certificate_expiry.load(std::sync::atomic::Ordering::Relaxed);
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// Where gossip counts; known before the join, so that refusals show.
    pub fn set_gossip(&self, counters: Arc<gossip::Counters>) {
        let _ = self.gossip.set(counters);
    }

    /// Where the resolver counts.
    pub fn set_resolver(&self, counters: Arc<resolver::Counters>) {
        let _ = self.resolver.set(counters);
    }

    /// DNS queries answered since the start, by the network they count for.
    pub fn queries(&self) -> BTreeMap<String, u64> {
        let mut queries = BTreeMap::new();
        if let Some(counters) = self.resolver.get() {
            counters.each(&mut |name, labels, value| {
                let network =
                    labels.iter().find(|(label, _)| *label == "network").map(|(_, network)| *network);
                if let Some(network) = network.filter(|_| name == "dns_queries_total") {
                    *queries.entry(network.to_owned()).or_default() += value;
                }
            });
        }
        queries
    }

    /// The engine's process.
    pub fn set_engine(&self, engine: Arc<Remote>) {
        let _ = self.engine.set(engine);
    }

    /// What there is to know of the engine's process, where there is one.
    pub fn engine(&self) -> Option<Facts> {
        self.engine.get().map(|engine| engine.facts())
    }

    /// Everything as OpenMetrics text.
    pub fn encode(&self, snapshot: &Snapshot, traffic: &[Traffic]) -> Result<String, fmt::Error> {
        let mut out = String::new();
        let mut sampled = Registry::with_prefix("warren");
        sampled.register_collector(Box::new(self.sample(snapshot, traffic)));
        text::encode_registry(&mut out, &sampled)?;
        text::encode_registry(&mut out, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        text::encode_eof(&mut out)?;
        Ok(out)
    }

    fn sample(&self, snapshot: &Snapshot, traffic: &[Traffic]) -> Sampled {
        let mut sampled = Sampled::default();
        state(&mut sampled, snapshot);
        wireguard(&mut sampled, traffic);
        sampled.gauge(
            "certificate_expiry_timestamp_seconds",
            "When this host's certificate expires, in seconds since 1970",
            &[],
            self.certificate_expiry.load(std::sync::atomic::Ordering::Relaxed) as f64,
        );
        if let Some(facts) = self.engine() {
            engine(&mut sampled, &facts);
        }
        if let Some(counters) = self.gossip.get() {
            counters.each(&mut |name, labels, value| sampled.counter(name, labels, value));
        }
        if let Some(counters) = self.resolver.get() {
            counters.each(&mut |name, labels, value| sampled.counter(name, labels, value));
            sampled.durations = Some(counters.durations());
        }
        sampled
    }
}

fn state(sampled: &mut Sampled, snapshot: &Snapshot) {
    sampled.gauge("build_info", "The running version", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let hosts = "Hosts by standing";
    for standing in ["answering", "away", "late", "dead", "gone"] {
        let count = snapshot.view.hosts.values().filter(|h| h.standing.as_str() == standing).count();
        sampled.gauge("hosts", hosts, &[("state", standing)], count as f64);
    }
    let draining = f64::from(snapshot.journal.draining());
    sampled.gauge("draining", "Whether this host takes no new members", &[], draining);
    let ledger = snapshot.ledger();
    sampled.gauge("networks", "Networks known in the region", &[], ledger.networks.len() as f64);
    claims(sampled, &ledger);
    for network in snapshot.journal.networks() {
        let label = network.to_string();
        let live = snapshot.journal.live().filter(|e| e.network == network && e.state == MemberState::Ready);
        sampled.gauge("members", "Members on this host", &[("network", &label)], live.count() as f64);
        let tally = ledger.claims(network).tally();
        let subnet = ledger.networks.get(network).map_or(DEFAULT_SUBNET, |n| n.subnet);
        let free = subnet.hosts().count().saturating_sub(tally.held + tally.released + tally.ghosts);
        let states =
            [("held", tally.held), ("released", tally.released), ("ghost", tally.ghosts), ("free", free)];
        for (state, count) in states {
            let labels = [("network", label.as_str()), ("state", state)];
            sampled.gauge("addresses", "Addresses of a network by state", &labels, count as f64);
        }
    }
}

fn claims(sampled: &mut Sampled, ledger: &Ledger) {
    let (mut addresses, mut ordinals) = (Tally::default(), (0, 0));
    for (_, claims) in ledger.all_claims() {
        let (tally, (held, contested)) = (claims.tally(), claims.numbers());
        addresses.held += tally.held;
        addresses.released += tally.released;
        addresses.ghosts += tally.ghosts;
        addresses.contested += tally.contested;
        ordinals = (ordinals.0 + held, ordinals.1 + contested);
    }
    for (kind, state, count) in [
        ("address", "held", addresses.held),
        ("address", "released", addresses.released),
        ("address", "ghost", addresses.ghosts),
        ("address", "contested", addresses.contested),
        ("ordinal", "held", ordinals.0),
        ("ordinal", "contested", ordinals.1),
        ("vni", "held", ledger.networks.len()),
        ("vni", "contested", ledger.networks.moved().len()),
    ] {
        let labels = [("kind", kind), ("state", state)];
        sampled.gauge("claims", "Claims by kind and state", &labels, count as f64);
    }
}

fn engine(sampled: &mut Sampled, facts: &Facts) {
    let uptime = facts.process.map(|(_, uptime)| uptime);
    sampled.gauge("engine_up", "Whether the engine's process answers", &[], f64::from(uptime.is_some()));
    let (help, uptime) = ("For how long it has been running", uptime.unwrap_or_default());
    sampled.gauge("engine_uptime_seconds", help, &[], uptime.as_secs_f64());
    sampled.counter("engine_replaced_total", &[], facts.replaced);
    let help = "What the engine's process holds";
    for (kind, count) in [("interface", facts.interfaces), ("listener", facts.kept)] {
        sampled.gauge("engine_held", help, &[("kind", kind)], count as f64);
    }
}

fn wireguard(sampled: &mut Sampled, traffic: &[Traffic]) {
    let mut networks: Vec<&str> = traffic.iter().map(|t| t.network.as_str()).collect();
    networks.dedup();
    for network in networks {
        let of = || traffic.iter().filter(|t| t.network == network);
        let labels = [("network", network)];
        sampled.counter("wireguard_transmit_bytes_total", &labels, of().map(|t| t.sent).sum());
        sampled.counter("wireguard_receive_bytes_total", &labels, of().map(|t| t.received).sum());
        if let Some(age) = of().filter_map(|t| t.handshake).max() {
            let help = "Age of the oldest WireGuard session, in seconds";
            sampled.gauge("peer_handshake_age_seconds", help, &labels, age.as_secs_f64());
        }
    }
}

/// One metric read at a scrape.
#[derive(Debug)]
struct SampledFamily {
    name: String,
    help: &'static str,
    counter: bool,
    samples: Vec<(Labels, f64)>,
}

/// Figures read at a scrape.
#[derive(Debug, Default)]
struct Sampled {
    families: Vec<SampledFamily>,
    durations: Option<resolver::Durations>,
}

impl Sampled {
    fn gauge(&mut self, name: &str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, false, labels, value);
    }

    fn counter(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.add(name.trim_end_matches("_total"), counter_help(name), true, labels, value as f64);
    }

    fn add(&mut self, name: &str, help: &'static str, counter: bool, labels: &[(&str, &str)], value: f64) {
        let labels: Labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        match self.families.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push((labels, value)),
            None => {
                let samples = vec![(labels, value)];
                self.families.push(SampledFamily { name: name.to_owned(), help, counter, samples });
            }
        }
    }
}

fn counter_help(name: &str) -> &'static str {
    match name {
        "engine_replaced_total" => "Engines that ended and were replaced",
        "gossip_messages_total" => "Gossip messages",
        "gossip_bytes_total" => "Bytes of gossip messages",
        "gossip_rejected_total" => "Peers refused, by reason",
        "gossip_dropped_total" => "Gossip messages dropped",
        "records_quarantined_total" => "Records skipped, by reason",
        "dns_queries_total" => "DNS queries answered",
        "dns_forwarded_total" => "DNS queries relayed, by outcome",
        "dns_dropped_total" => "DNS queries without an answer, by reason",
        "wireguard_transmit_bytes_total" => "Bytes sent to WireGuard peers",
        "wireguard_receive_bytes_total" => "Bytes received from WireGuard peers",
        _ => "See the documentation",
    }
}

impl Collector for Sampled {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for SampledFamily { name, help, counter, samples } in &self.families {
            let kind = if *counter { MetricType::Counter } else { MetricType::Gauge };
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in samples {
                let one = family.encode_family(labels)?;
                if *counter {
                    ConstCounter::new(*value).encode(one)?;
                } else {
                    ConstGauge::new(*value).encode(one)?;
                }
            }
        }
        if let Some(durations) = &self.durations {
            let mut before = 0;
            // The encoder sums the buckets up itself.
            let buckets: Vec<(f64, u64)> = durations
                .buckets
                .iter()
                .map(|(bound, total)| {
                    let own = total - before;
                    before = *total;
                    (if bound.is_finite() { *bound } else { f64::MAX }, own)
                })
                .collect();
            let help = "From a DNS query to its reply, in seconds";
            let mut one =
                encoder.encode_descriptor("dns_duration_seconds", help, None, MetricType::Histogram)?;
            one.encode_histogram::<Labels>(durations.sum_s, before, &buckets, None)?;
        }
        Ok(())
    }
}
