//! What an agent costs that has much to know and nothing to do, and what it costs others that one is killed.

mod crowd;
mod kills;

use std::fs;
use std::io;
use std::path::Path;

use tests::wait::{eventually, pause, seconds, want};
use tests::{Container, Host, Lab};

use self::crowd::{Crowd, Size};
use crate::cost::{cpu_s, resident_mb};
use crate::report::Row;

/// 100 hosts of 50 members, in networks of 1,000, nearly as many as there may be.
const REGION: Size = Size { hosts: 100, members: 10, networks: 5 };
/// As long as a round of audits takes: everything that comes again is in it.
const WATCHED_S: u64 = 30;
/// After the last attach peers are greeted for 10 s, and the first round of audits ends.
const SETTLED_S: u64 = 40;
const TARGET_MB: f64 = 60.0;
const TARGET_CPU: f64 = 1.0;
/// What all audits of a round may work, in seconds: 50 members with 1,022 peers.
const TARGET_AUDIT_S: f64 = 1.0;
/// Gossip that is sent in a second at 100 hosts.
const TARGET_GOSSIP_KB: f64 = 40.0;

pub use self::kills::measure as kills;

/// The agent of one host of a large region, idle; `state` is on a real disk.
pub fn idle(state: &Path) -> io::Result<Vec<Row>> {
    fs::create_dir_all(state)?;
    let lab = Lab::new("agent");
    let host = lab.host("a");
    host.set("state_dir", &state.display().to_string()).set("gossip.interval_ms", "500");
    let place = lab.host("crowd");
    let crowd = Crowd::join(&lab, &place, REGION)?;
    host.start_agent();
    host.wait_ready();
    host.wait_hosts(REGION.hosts);
    let alone = resident_mb(host.agent_pid() as i32)?;
    let containers = attach_all(&host);
    knows_all(&host);
    pause(seconds(SETTLED_S));
    let rows = watch(&host, alone)?;
    drop((crowd, containers));
    Ok(rows)
}

/// As many members as every other host has.
fn attach_all(host: &Host) -> Vec<Container> {
    let many = (0..REGION.networks).flat_map(|network| (0..REGION.members).map(move |n| (network, n)));
    let attach = |(network, n): (usize, usize)| {
        eprint!("\rattach {} of {}  ", network * REGION.members + n + 1, REGION.networks * REGION.members);
        let container = host.bare_container(&format!("c-{network}-{n}"));
        container.attach(&crowd::network(network), &crowd::app(network), &["--wait", "0"]).ok();
        container
    };
    let containers = many.map(attach).collect();
    eprintln!();
    containers
}

/// It has every member of the region, and the kernel all that follows.
fn knows_all(host: &Host) {
    let all = REGION.hosts * REGION.members * REGION.networks;
    eventually(seconds(30), "all members are known", || {
        let held = host.metric("warren_claims", &["kind=\"address\"", "state=\"held\""]);
        want(held == all as f64, held)
    });
}

fn watch(host: &Host, alone: f64) -> io::Result<Vec<Row>> {
    let what = format!("agent, {} hosts × {} members, idle", REGION.hosts, REGION.members * REGION.networks);
    let agent = host.agent_pid() as i32;
    let engine = host.engine_pid();
    let sent = || host.metric("warren_gossip_bytes_total", &["direction=\"out\""]);
    let engine_s = || engine.map_or(Ok(0.0), cpu_s);
    let (sent_before, engine_before, before) = (sent(), engine_s()?, cpu_s(agent)?);
    pause(seconds(WATCHED_S));
    let spent = cpu_s(agent)? - before;
    let (engine_spent, sent) = (engine_s()? - engine_before, sent() - sent_before);
    let watched = WATCHED_S as f64;
    let peers = REGION.hosts * REGION.members - 1;
    let mut rows = vec![
        Row::figure(format!("{what}: memory"), "MB", resident_mb(agent)?).at_most(TARGET_MB),
        Row::figure(format!("{what}: CPU"), "%", spent / watched * 100.0).at_most(TARGET_CPU),
        Row::figure(
            format!("all work in {WATCHED_S} s, with an audit of 50 members × {peers} peers"),
            "s",
            spent,
        )
        .at_most(TARGET_AUDIT_S),
        Row::figure(format!("{what}: gossip sent"), "kB/s", sent / watched / 1e3).at_most(TARGET_GOSSIP_KB),
        Row::figure("its memory before it had members of its own", "MB", alone),
    ];
    if let Some(engine) = engine {
        rows.push(Row::figure("its engine: memory", "MB", resident_mb(engine)?));
        rows.push(Row::figure("its engine: CPU", "%", engine_spent / watched * 100.0));
    }
    Ok(rows)
}
