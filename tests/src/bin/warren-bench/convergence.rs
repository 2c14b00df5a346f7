//! What the simulation measures of gossip, in virtual time: its rows as they are.

use std::env;
use std::io;
use std::process::Stdio;

use serde::Deserialize;

use crate::report::{Row, Target};
use crate::simulation;

/// Hosts of the largest region, unless `HOSTS` says otherwise.
const HOSTS: &str = "100";

/// A row as the simulation prints it.
#[derive(Deserialize)]
struct Line {
    metric: String,
    value: f64,
    unit: String,
    peer: Option<String>,
    peer_value: Option<f64>,
    target: Option<f64>,
}

/// What the simulation measures.
///
/// # Errors
/// A simulation that is not there, or that could not measure.
pub fn measure() -> io::Result<Vec<Row>> {
    let hosts = env::var("HOSTS").unwrap_or_else(|_| HOSTS.into());
    eprintln!("regions of up to {hosts} hosts; HOSTS=1000 measures the largest too and takes an hour");
    let targets = simulation::start(&["--scenario", "targets", "--hosts", &hosts], Stdio::piped())?;
    let output = targets.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other("the simulation could not measure; it says why above"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| Ok(row(serde_json::from_str(line)?))).collect()
}

fn row(Line { metric, value, unit, peer, peer_value, target }: Line) -> Row {
    Row { metric, value, unit, peer: peer.zip(peer_value), target: target.map(Target::AtMost) }
}
