//! What the simulation itself takes: it is to be run often, and on machines as people have them.

use std::env;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::wait::{clock, pause};

use crate::cost::peak_mb;
use crate::report::{Row, Target};

/// Hosts of the large region, unless `HOSTS` says otherwise.
const HOSTS: usize = 100;
/// As many hosts the targets are for.
const LARGE: usize = 1000;
/// Members of each host: how long a minute may take, and how much memory in MB.
const REGIONS: [(usize, f64, Option<f64>); 2] = [(5, 480.0, None), (20, 900.0, Some(14.0 * 1024.0))];
const SEEDS: &str = "1..200";
const SEEDS_HOSTS: usize = 25;
const SEEDS_S: f64 = 120.0;

/// How long it takes, and how much memory.
///
/// # Errors
/// A simulation that is not there, or in which a law broke.
pub fn measure() -> io::Result<Vec<Row>> {
    let asked = env::var("HOSTS").ok().map(|hosts| hosts.parse().map_err(io::Error::other));
    let hosts: usize = asked.transpose()?.unwrap_or(HOSTS);
    eprintln!("a region of {hosts} hosts; HOSTS=1000 is what the targets are for, and takes hours");
    let (wall, _) = run(&["--hosts", &SEEDS_HOSTS.to_string(), "--seeds", SEEDS])?;
    let seeds = format!("seeds {SEEDS} of {SEEDS_HOSTS} hosts under chaos");
    let mut rows = vec![Row::figure(seeds, "s", wall.as_secs_f64()).at_most(SEEDS_S)];
    for (members, target_s, target_mb) in REGIONS {
        let (hosts_arg, members_arg) = (hosts.to_string(), members.to_string());
        let minute = ["--virtual-seconds", "60", "--seed", "1"];
        let region = ["--scenario", "large-region", "--hosts", &hosts_arg, "--members", &members_arg];
        let (wall, peak) = run(&[&region[..], &minute[..]].concat())?;
        let what = format!("{hosts} hosts × {members} members, a virtual minute");
        let bound = |target: Option<f64>| target.filter(|_| hosts >= LARGE).map(Target::AtMost);
        let row = Row::figure(format!("{what}: wall time"), "s", wall.as_secs_f64());
        rows.push(Row { target: bound(Some(target_s)), ..row });
        let row = Row::figure(format!("{what}: memory"), "MB", peak);
        rows.push(Row { target: bound(target_mb), ..row });
    }
    Ok(rows)
}

/// How long a simulation runs, and the most memory it has had.
fn run(args: &[&str]) -> io::Result<(Duration, f64)> {
    let began = clock();
    let peak = watch(&mut start(args, Stdio::null())?)?;
    Ok((began.elapsed(), peak))
}

/// Starts the simulation that lies beside this program; its progress goes to stderr.
pub fn start(args: &[&str], out: Stdio) -> io::Result<Child> {
    let program = env::current_exe()?.with_file_name("simulation");
    Command::new(&program)
        .args(args)
        .stdout(out)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{} does not run: {error}", program.display())))
}

fn watch(child: &mut Child) -> io::Result<f64> {
    let mut peak = 0.0;
    loop {
        if let Some(status) = child.try_wait()? {
            let broke = io::Error::other("the simulation did not hold; it says why above");
            return if status.success() { Ok(peak) } else { Err(broke) };
        }
        peak = peak_mb(child.id() as i32).unwrap_or(peak);
        pause(Duration::from_millis(200));
    }
}
