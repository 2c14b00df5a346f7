//! Rows of a bench: for people as a table, for machines as JSON lines.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

/// One figure.
pub struct Row {
    /// What was measured.
    pub metric: String,
    /// The figure.
    pub value: f64,
    /// Of what it is a number.
    pub unit: String,
    /// What it stands beside: its name and figure.
    pub peer: Option<(String, f64)>,
    /// What it may be; none where the figure is only told.
    pub target: Option<Target>,
}

/// A bound of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// It may be so much and no more.
    AtMost(f64),
    /// It may be so much and no less.
    AtLeast(f64),
}

impl Row {
    /// Milliseconds that are only told.
    pub fn told(metric: impl Into<String>, value: f64) -> Row {
        Row::figure(metric, "ms", value)
    }

    /// A figure that is only told.
    pub fn figure(metric: impl Into<String>, unit: &str, value: f64) -> Row {
        Row { metric: metric.into(), value, unit: unit.into(), peer: None, target: None }
    }

    /// With the most it may be.
    pub fn at_most(mut self, target: f64) -> Row {
        self.target = Some(Target::AtMost(target));
        self
    }

    /// With the least it may be.
    pub fn at_least(mut self, target: f64) -> Row {
        self.target = Some(Target::AtLeast(target));
        self
    }

    /// With what it stands beside.
    pub fn beside(mut self, peer: &str, value: f64) -> Row {
        self.peer = Some((peer.to_owned(), value));
        self
    }

    fn ratio(&self) -> Option<f64> {
        let (_, beside) = self.peer.as_ref()?;
        (*beside != 0.0).then(|| self.value / beside)
    }

    fn ok(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtMost(target) => self.value <= target,
            Target::AtLeast(target) => self.value >= target,
        })
    }
}

/// Durations, sorted.
pub struct Samples(Vec<Duration>);

impl Samples {
    /// At least one duration, in any order.
    pub fn new(mut durations: Vec<Duration>) -> Samples {
        assert!(!durations.is_empty(), "nothing was measured");
        durations.sort();
        Samples(durations)
    }

    /// The percentile by nearest rank, in milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len());
        ms(self.0[rank - 1])
    }

    /// The middle one, in milliseconds.
    pub fn p50(&self) -> f64 {
        self.percentile(50)
    }

    /// In milliseconds; the longest where there are fewer than a hundred.
    pub fn p99(&self) -> f64 {
        self.percentile(99)
    }
}

/// In milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Says on what the figures were taken.
pub fn machine(dir: &Path) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("{cores} cores, load {load}, Linux {}, nothing pinned", kernel.trim());
    println!("gossip every 500 ms, WireGuard in userspace, state_dir below {}", dir.display());
    let tmpfs = rustix::fs::statfs(dir).is_ok_and(|found| found.f_type == TMPFS_MAGIC);
    if tmpfs {
        println!("that is a tmpfs, where fsync costs nothing: put `target` on a disk for figures that count");
    }
}

/// `f_type` of a tmpfs (linux/magic.h).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Prints the rows.
pub fn table(rows: &[Row]) {
    println!("\n{:<68} {:>9} {:<5}  {:>10}  {:<3}  beside", "", "value", "", "target", "");
    for row in rows {
        let target = row.target.map(|target| match target {
            Target::AtMost(target) => format!("≤ {target:.1}"),
            Target::AtLeast(target) => format!("≥ {target:.1}"),
        });
        let target = target.unwrap_or_default();
        let mark = row.ok().map_or("", |ok| if ok { "ok" } else { "NOT" });
        let ratio = row.ratio().map(|ratio| format!(" (× {ratio:.2})")).unwrap_or_default();
        let peer = row.peer.as_ref().map(|(name, value)| format!("{name} {value:.1}{ratio}"));
        println!(
            "{:<68} {:>9.2} {:<5}  {target:>10}  {mark:<3}  {}",
            row.metric,
            row.value,
            row.unit,
            peer.unwrap_or_default()
        );
    }
    let with_target: Vec<bool> = rows.iter().filter_map(Row::ok).collect();
    let met = with_target.iter().filter(|ok| **ok).count();
    if !with_target.is_empty() {
        println!("\n{met} of {} targets met", with_target.len());
    }
}

/// Appends the rows to a file of JSON lines.
pub fn append(file: &Path, bench: &str, rows: &[Row]) -> io::Result<()> {
    let mut out = File::options().create(true).append(true).open(file)?;
    for row in rows {
        let line = json!({
            "bench": bench,
            "metric": row.metric,
            "value": row.value,
            "unit": row.unit,
            "peer": row.peer.as_ref().map(|(name, _)| name),
            "peer_value": row.peer.as_ref().map(|(_, value)| value),
            "ratio": row.ratio(),
            "target": row.target.map(|(Target::AtMost(target) | Target::AtLeast(target))| target),
            "ok": row.ok(),
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}
