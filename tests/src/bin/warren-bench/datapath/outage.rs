//! For how long nothing passes when the engine is killed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tests::pulse::Pulse;
use tests::wait::{eventually, pause, seconds, want};
use tests::{Attached, Container, Host};

use crate::report::{Row, Samples};

const KILLS: usize = 20;
const PORT: u16 = 3000;
/// Between two datagrams: what the figure is exact to.
const PERIOD: Duration = Duration::from_millis(1);
/// What the 99th percentile may be, in milliseconds.
const TARGET_MS: f64 = 50.0;

/// Kills the engine of the host that answers.
pub fn measure(host: &Host, members: &[(Container, Attached); 2]) -> io::Result<Vec<Row>> {
    let [(from, _), (to, attached)] = members;
    let _echo = to.echo(PORT);
    let address = SocketAddr::new(attached.address.into(), PORT);
    let mut gaps = Vec::new();
    for kill in 0..KILLS {
        eprint!("\rthe engine is killed: {} of {KILLS}  ", kill + 1);
        let pulse = Pulse::every(PERIOD, from.netns(), address);
        pause(Duration::from_millis(200));
        let old = host.kill_engine();
        eventually(seconds(5), "another engine", || {
            want(host.engine_pid().is_some_and(|pid| pid != old), old)
        });
        pause(Duration::from_millis(300));
        gaps.push(pulse.stop().gap);
    }
    eprintln!();
    let gaps = Samples::new(gaps);
    Ok(vec![
        Row::told(format!("outage when the engine is killed, {KILLS} times, p50"), gaps.p50()),
        Row::told(format!("outage when the engine is killed, {KILLS} times, the longest"), gaps.p99())
            .at_most(TARGET_MS),
    ])
}
