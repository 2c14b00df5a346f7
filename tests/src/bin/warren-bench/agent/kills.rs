//! An agent is killed again and again under traffic and lookups of its containers.

use std::fs;
use std::io;
use std::net::SocketAddr;

use tests::dns::{Answer, Poll};
use tests::ids::{AP, PN};
use tests::pulse::Pulse;
use tests::wait::{eventually, pause, seconds, want};
use tests::{Host, Lab, lab};

use crate::report::Row;

const KILLS: usize = 10;
const PORT: u16 = 3000;

/// Kills the agent of a host whose containers talk to another host's, and ask for names 50 times a second.
pub fn measure() -> io::Result<Vec<Row>> {
    let lab = Lab::new("kills");
    let hosts = [lab.host("a"), lab.host("b")];
    for host in &hosts {
        host.set("gossip.interval_ms", "500");
    }
    lab::start(&hosts);
    let members = hosts.each_ref().map(|host| {
        let container = host.bare_container(&format!("c-{}", host.name()));
        let attached = container.join(PN, AP, "web");
        (container, attached)
    });
    let [(here, own), (there, other)] = &members;
    let _echo = there.echo(PORT);
    for (container, name) in [(here, &other.names[0]), (there, &own.names[0])] {
        eventually(seconds(10), "they find each other", || want(!container.addresses(name).is_empty(), name));
    }
    let pulse = Pulse::start(here.netns(), SocketAddr::new(other.address.into(), PORT));
    let polls = [Poll::dense(here.netns(), &other.names[0]), Poll::dense(there.netns(), &own.names[0])];
    let mut written = 0.0;
    for kill in 0..KILLS {
        eprint!("\rthe agent is killed: {} of {KILLS}  ", kill + 1);
        hosts[0].kill_agent();
        // Many starts within a minute would delay its join.
        let _ = fs::remove_file(hosts[0].dir().join("state/starts"));
        hosts[0].start_agent();
        hosts[0].wait_ready();
        pause(seconds(2));
        written += ops(&hosts[0]);
    }
    eprintln!();
    let beat = pulse.stop();
    let lookups: Vec<_> = polls.into_iter().flat_map(Poll::stop).collect();
    let failed = lookups.iter().filter(|lookup| !is_found(lookup)).count();
    let of = |what: &str, all: usize| format!("an agent killed {KILLS} times: {what} of {all}");
    let count = |metric: String, value: f64| Row::figure(metric, "", value).at_most(0.0);
    Ok(vec![
        count(of("datagrams lost", beat.sent), beat.lost as f64),
        count(of("lookups without an answer", lookups.len()), failed as f64),
        count(format!("an agent killed {KILLS} times: writes to the kernel"), written),
        Row::told(
            format!("an agent killed {KILLS} times: longest time between two echoes"),
            beat.gap.as_secs_f64() * 1e3,
        ),
    ])
}

/// What the agent has written into its kernel since its start.
fn ops(host: &Host) -> f64 {
    host.metric("warren_reconcile_ops_total", &["outcome=\"done\""])
}

fn is_found(lookup: &Result<Answer, String>) -> bool {
    lookup.as_ref().is_ok_and(|answer| !answer.addresses.is_empty())
}
