//! What a process has cost so far (proc(5)).

use std::fs;
use std::io;

/// Clock ticks a second of proc(5), the same on all machines of today.
const TICKS: f64 = 100.0;

/// User and system time in seconds (`/proc/pid/stat`).
pub fn cpu_s(pid: i32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS)
}

/// Resident memory in megabytes.
pub fn resident_mb(pid: i32) -> io::Result<f64> {
    status_mb(pid, "VmRSS:")
}

/// The most resident memory it has had, in megabytes.
pub fn peak_mb(pid: i32) -> io::Result<f64> {
    status_mb(pid, "VmHWM:")
}

/// A size of `/proc/pid/status`.
fn status_mb(pid: i32, field: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kb = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse::<f64>().ok());
    kb.map(|kb| kb / 1024.0).ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no {field}")))
}
