//! What passes along a way: a stream by iperf3, small datagrams, pings.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::Netns;
use tests::process;
use tests::wait::{clock, pause};

use super::Way;
use crate::cost;

/// After so much silence nothing more is on its way.
const QUIET: Duration = Duration::from_millis(500);

/// What passed in one round.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    pub mbits: f64,
    pub seconds: f64,
    /// CPU time of the engines on both hosts.
    pub cpu_s: f64,
}

/// One TCP stream for so many seconds.
pub fn stream(way: &Way, seconds: u64) -> io::Result<Flow> {
    let mut server = way.to.command("iperf3");
    server.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = process::spawn(server)?;
    pause(Duration::from_millis(300));
    let before = cpu_s(way)?;
    let mut client = way.from.command("iperf3");
    client.args(["-J", "-c", &way.address.to_string(), "-t", &seconds.to_string()]);
    let output = client.output()?;
    let cpu_s = cpu_s(way)? - before;
    // It has served its one client, or never will.
    let _ = server.kill();
    server.wait()?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let received = &said["end"]["sum_received"];
    match (received["bits_per_second"].as_f64(), received["seconds"].as_f64()) {
        (Some(bits), Some(seconds)) => Ok(Flow { mbits: bits / 1e6, seconds, cpu_s }),
        _ => {
            let said = String::from_utf8_lossy(&output.stdout);
            Err(io::Error::other(format!("{}: iperf3 measured nothing: {}", way.name, said.trim())))
        }
    }
}

/// Datagrams of so many bytes, sent as fast as they are taken: how many thousands arrive in a second.
pub fn datagrams(way: &Way, time: Duration, bytes: usize) -> io::Result<f64> {
    let receiver = way.to.try_enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    receiver.set_read_timeout(Some(QUIET))?;
    let to = (way.address, receiver.local_addr()?.port());
    let sender = way.from.try_enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    sender.connect(to)?;
    let counting = std::thread::spawn(move || {
        let (mut buffer, mut count) = ([0; 2048], 0_u64);
        while receiver.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    });
    let (datagram, start) = (vec![0; bytes], clock());
    while start.elapsed() < time {
        // What nobody takes is lost, as on any path.
        let _ = sender.send(&datagram);
    }
    let count = counting.join().map_err(|_| io::Error::other("the receiver panicked"))?;
    Ok(count as f64 / time.as_secs_f64() / 1e3)
}

fn cpu_s(way: &Way) -> io::Result<f64> {
    way.processes.iter().map(|pid| cost::cpu_s(*pid)).sum()
}

/// The mean round trip.
pub fn ping_ms(from: &Netns, to: IpAddr) -> io::Result<f64> {
    let output = from.try_run(&format!("ping -n -q -c 100 -i 0.01 -W 2 {to}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let mean = said.lines().find_map(|line| line.strip_prefix("rtt ")?.split('/').nth(4)?.parse().ok());
    mean.ok_or_else(|| io::Error::other(format!("ping to {to}: {said}")))
}
