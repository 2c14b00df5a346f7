//! One measurement, and the peer's file format.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// The columns of NetworkDB's files.
pub const COLUMNS: &str =
    "Perturbation,Nodes,Converged,VirtualConvergence(ns),Polls,GossipDeliveries,BulkSyncDeliveries";

/// One measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What was done.
    pub perturbation: String,
    /// Hosts of the region.
    pub nodes: usize,
    /// Hosts that were waited for.
    pub converged: usize,
    /// From the change until the last of them showed it.
    pub elapsed: Duration,
    /// How often all views were looked at, once in a millisecond.
    pub polls: usize,
    /// How many other hosts got it pushed: by a frame here, by gossip in NetworkDB.
    pub pushed: usize,
    /// How many other hosts got it by repair or at once: by chitchat or a snapshot here, by bulk sync in
    /// NetworkDB.
    pub repaired: usize,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { perturbation, nodes, converged, elapsed, polls, pushed, repaired } = self;
        write!(f, "{perturbation},{nodes},{converged},{},{polls},{pushed},{repaired}", elapsed.as_nanos())
    }
}

impl FromStr for Sample {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Sample> {
        let fields: Vec<&str> = line.trim_end().split(',').collect();
        ensure!(fields.len() == COLUMNS.split(',').count(), "`{line}` has {} columns", fields.len());
        let number =
            |at: usize| fields[at].parse::<u64>().with_context(|| format!("column {} of `{line}`", at + 1));
        let count = |at: usize| number(at).map(|number| number as usize);
        Ok(Sample {
            perturbation: fields[0].to_owned(),
            nodes: count(1)?,
            converged: count(2)?,
            elapsed: Duration::from_nanos(number(3)?),
            polls: count(4)?,
            pushed: count(5)?,
            repaired: count(6)?,
        })
    }
}

/// The samples of a file in that format.
///
/// # Errors
/// A first line that is not the columns, or a line that does not fit them.
pub fn read(text: &str) -> anyhow::Result<Vec<Sample>> {
    let mut lines = text.lines();
    let columns = lines.next().unwrap_or_default();
    ensure!(columns == COLUMNS, "the columns are `{columns}`");
    lines.filter(|line| !line.is_empty()).map(str::parse).collect()
}

/// Of sorted values the one by nearest rank.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_written_as_it_is_read() {
        let line = "create-entry-under-churn,25,24,1581000000,1582,3,20";
        let sample: Sample = line.parse().unwrap();
        assert_eq!((sample.converged, sample.elapsed), (24, Duration::from_millis(1581)));
        assert_eq!(sample.to_string(), line);
        for wrong in ["create-entry,2,2,1,1,1", "create-entry,2,2,x,1,1,0", ""] {
            assert!(wrong.parse::<Sample>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let taken = [0, 50, 90, 91, 100].map(|percent| percentile(&values, percent));
        assert_eq!(taken, [1.0, 5.0, 9.0, 10.0, 10.0]);
    }
}
