//! Names: what a query costs the server, beside the name servers people know, all in one run; and what a thousand
//! containers cost.
//!
//! Servers stand on one CPU and the client on another; they take turns round by round, and a figure is the median
//! of its rounds. CPU time is the kernel's own count of the server's threads, loopback's work included.

mod containers;
mod hickory;
mod load;
mod names;
mod plot;
mod servers;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use load::{Came, Client};
use names::Kind;
use servers::Server;
use tests::process::need;
use tests::wait::{eventually, seconds};

use crate::report::{Row, Samples};

/// The first argument of a process of this bench's, before its name and number.
pub const SERVE: &str = "dns-server";
const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(500);
/// Queries a second at which latency is taken.
const PACE: u32 = 5000;
const PACED: Duration = Duration::from_millis(1500);
/// What our CPU time may be of NSD's, by kind.
const TARGETS: [(Kind, f64); 2] = [(Kind::One, 1.0), (Kind::Twenty, 0.9)];

/// Is one of this bench's processes; `number` is a server's port, or how many containers there are.
pub fn serve(name: &str, number: u16) -> io::Result<()> {
    match name {
        containers::NAME => containers::serve(number),
        _ => servers::serve(name, number),
    }
}

/// Everything; `dir` is for the servers' files, `plot` for the picture.
pub fn measure(dir: &Path, plot: &Path) -> io::Result<Vec<Row>> {
    need(&servers::PROGRAMS);
    loopback_up()?;
    let containers = containers::measure(&dir.join("containers"))?;
    fs::create_dir_all(dir)?;
    names::write(&names::zone(), dir)?;
    let mut all = Vec::new();
    for index in 0..servers::NAMES.len() {
        all.push(Server::start(index, dir)?);
    }
    servers::pin(None, CLIENT_CPU)?;
    for server in &all {
        wait_for(server);
        server.pin(SERVER_CPU)?;
    }
    let costs = costs(&all)?;
    let latencies = latencies(&all)?;
    fs::write(plot, plot::bars(&servers::NAMES, &Kind::ALL.map(Kind::name), &costs))?;
    println!("the picture: {}", plot.display());
    Ok(rows(&costs, &latencies).into_iter().chain(containers).collect())
}

/// In a new namespace it is down.
fn loopback_up() -> io::Result<()> {
    let ended = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if ended.success() { Ok(()) } else { Err(io::Error::other("`ip link set lo up` failed")) }
}

/// Until it has loaded the zone and answers rightly.
fn wait_for(server: &Server) {
    let questions = names::questions(Kind::One);
    eventually(seconds(60), &format!("{} answers", server.name), || {
        let mut client = Client::of(server.address).map_err(|error| error.to_string())?;
        match client.pace(Kind::One, &questions, 100, Duration::from_millis(50)) {
            Ok(Came { answered, wrong: 0, .. }) if answered > 0 => Ok(()),
            Ok(came) => Err(format!("{} right, {} wrong", came.answered, came.wrong)),
            Err(error) => Err(error.to_string()),
        }
    });
}

/// Nanoseconds of CPU for each query, by server and kind: medians.
fn costs(servers: &[Server]) -> io::Result<Vec<Vec<f64>>> {
    let mut rounds = vec![vec![Vec::new(); Kind::ALL.len()]; servers.len()];
    for round in 0..ROUNDS {
        eprint!("\rround {} of {ROUNDS}", round + 1);
        for (kind, of_kind) in Kind::ALL.into_iter().enumerate() {
            let questions = names::questions(of_kind);
            for (server, of_server) in servers.iter().zip(&mut rounds) {
                let before = server.cpu_ns();
                let came = Client::of(server.address)?.flood(of_kind, &questions, ROUND)?;
                if came.wrong > 0 || came.answered == 0 {
                    let (name, kind) = (server.name, of_kind.name());
                    let told =
                        format!("{name}, {kind}: {} right, {} wrong replies", came.answered, came.wrong);
                    return Err(io::Error::other(told));
                }
                of_server[kind].push((server.cpu_ns() - before) as f64 / came.answered as f64);
            }
        }
    }
    eprintln!();
    Ok(rounds.into_iter().map(|kinds| kinds.into_iter().map(median).collect()).collect())
}

/// How long replies take when the server is nearly idle.
fn latencies(servers: &[Server]) -> io::Result<Vec<Samples>> {
    let questions = names::questions(Kind::One);
    servers
        .iter()
        .map(|server| {
            let came = Client::of(server.address)?.pace(Kind::One, &questions, PACE, PACED)?;
            if came.lost + came.wrong > 0 {
                eprintln!(
                    "{}: {} lost, {} wrong at {PACE} queries a second",
                    server.name, came.lost, came.wrong
                );
            }
            Ok(Samples::new(came.took))
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rows(costs: &[Vec<f64>], latencies: &[Samples]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, of_kind) in Kind::ALL.into_iter().enumerate() {
        let target = TARGETS.iter().find(|(targeted, _)| *targeted == of_kind);
        let nsd = costs[1][kind];
        for (name, costs) in servers::NAMES.iter().zip(costs) {
            let metric = format!("{name}: server CPU per query, {}", of_kind.name());
            let row = Row { unit: "ns".into(), ..Row::told(metric, costs[kind]) };
            let row = if *name == "NSD" { row } else { row.beside("NSD", nsd) };
            let target = target.filter(|_| *name == "warren");
            rows.push(target.map(|(_, most)| most * nsd).into_iter().fold(row, Row::at_most));
        }
    }
    let nsd = latencies[1].p50();
    for (name, took) in servers::NAMES.iter().zip(latencies) {
        let us = |metric: String, ms: f64| Row { unit: "µs".into(), ..Row::told(metric, ms * 1e3) };
        rows.push(us(format!("{name}: latency at {PACE} q/s, p50"), took.p50()).beside("NSD", nsd * 1e3));
        rows.push(us(format!("{name}: latency at {PACE} q/s, p99"), took.p99()));
    }
    rows
}
