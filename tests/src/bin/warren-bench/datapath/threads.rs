//! What two pairs of containers pass at once, where one thread of each engine serves both, and where each has its own.

use std::io;
use std::path::Path;

use tests::wait::{eventually, seconds, want};
use tests::{Attached, Container, Host};

use super::{ENGINE, ROUND_S, Way, flow, join, median, way};
use crate::report::Row;

const THREADS: [u16; 2] = [1, 2];

/// In turn, round by round; every engine is replaced between two, since an interface keeps its thread.
pub fn measure(hosts: &[Host; 2], pair: &[(Container, Attached); 2], rounds: usize) -> io::Result<Vec<Row>> {
    let other = join(hosts, "other");
    let ways = [pair, &other].map(|pair| {
        let netns = pair.each_ref().map(|(container, _)| container.netns().clone());
        way(ENGINE, netns, pair[1].1.address, Vec::new())
    });
    let mut sums = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        eprint!("\rTCP, two pairs: round {} of {rounds}  ", round + 1);
        for (threads, sums) in THREADS.iter().zip(&mut sums) {
            hosts.iter().for_each(|host| shard(host, *threads));
            sums.push(at_once(&ways)?);
        }
    }
    eprintln!();
    hosts.iter().for_each(|host| shard(host, 1));
    let [one, two] = sums.map(|sums| median(sums.into_iter()));
    let cores = std::thread::available_parallelism()?;
    let metric = format!("TCP, 2 pairs at once, {cores} cores for both hosts, 2 threads in each engine");
    Ok(vec![Row::figure(metric, "Mbit/s", two).beside("1 thread", one)])
}

/// Gives the host an engine with so many threads.
fn shard(host: &Host, threads: u16) {
    host.unset();
    host.set("wireguard.threads", &threads.to_string());
    host.stop_agent();
    host.restart_agent();
    let old = host.kill_engine();
    eventually(seconds(5), "another engine", || {
        let tasks =
            |pid| std::fs::read_dir(Path::new("/proc").join(format!("{pid}/task"))).map(Iterator::count);
        let pid = host.engine_pid().filter(|pid| *pid != old).ok_or("none")?;
        // Its first thread is the agent's.
        want(tasks(pid).is_ok_and(|tasks| tasks == usize::from(threads) + 1), pid)
    });
}

/// One stream along each way: what they pass together, in Mbit/s.
fn at_once(ways: &[Way; 2]) -> io::Result<f64> {
    std::thread::scope(|scope| {
        let flows = ways.each_ref().map(|way| scope.spawn(|| flow::stream(way, ROUND_S)));
        flows.into_iter().map(|flow| flow.join().expect("it does not panic").map(|flow| flow.mbits)).sum()
    })
}
