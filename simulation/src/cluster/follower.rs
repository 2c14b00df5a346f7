//! What an agent sees, noted whenever it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gossip::View;
use gossip::id::{HostId, MemberId, NetworkId};
use node::agent::Snapshot;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::books::{Origin, Shared, lock};
use crate::history::{Fingerprint, History};
use crate::laws::names::{self, Served};
use crate::laws::{SMALL, claims};

/// Notes what the agent of `host` sees whenever that changes, for ever; in a large region, once a second, for
/// it would be most of the work.
pub(super) async fn follow(
    label: String,
    mut snapshots: watch::Receiver<Snapshot>,
    history: History,
    shared: Arc<Mutex<Shared>>,
) {
    let mut last = 0;
    let mut answering = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut served = Served::default();
    let mut own = BTreeMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        note_origins(&snapshot, &mut known, &shared);
        if snapshot.generation != 0 {
            lock(&shared).joined.entry(label.clone()).or_insert_with(Instant::now);
        }
        let now: BTreeSet<HostId> = snapshot.view.answering().map(|(id, _)| id.clone()).collect();
        if !now.is_superset(&answering) {
            lock(&shared).stirred = Some(Instant::now());
        }
        answering = now;
        let is_large = snapshot.view.hosts.len() > SMALL;
        served.read(&snapshot.zones, is_large);
        let seen = fingerprint(&snapshot.view, &served);
        if seen != last {
            look(&label, &snapshot, &served, seen, &shared);
            note_conflicts(&snapshot.view, &shared);
            note_moves(&snapshot, &mut own, &shared);
            history.note(format_args!("{label} sees {}", describe(&snapshot, seen)));
            last = seen;
        }
        drop(snapshot);
        if is_large {
            sleep(Duration::from_secs(1)).await;
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// In any single view at any instant an address has one name set: looked at whenever a view changes, as long as
/// that is not the whole work of a run.
///
/// Most agents see what another one has seen already: that is looked at once.
fn look(label: &str, snapshot: &Snapshot, served: &Served, seen: u64, shared: &Mutex<Shared>) {
    if snapshot.view.hosts.len() > SMALL {
        return;
    }
    let print = with_members(&snapshot.view, seen);
    if lock(shared).followed.contains(&print) {
        return;
    }
    match names::follow_view(snapshot, served) {
        Ok(()) => _ = lock(shared).followed.insert(print),
        Err(broken) => _ = lock(shared).broken.insert((Instant::now(), label.to_owned()), broken),
    }
}

/// A print of a view and its zones with all that the names of its members follow from.
fn with_members(view: &View, seen: u64) -> u64 {
    let mut print = Fingerprint(seen);
    for (host, _, network, member, record) in view.members() {
        print.add(host.as_str().as_bytes());
        print.add(network.as_bytes());
        print.add(member.as_str().as_bytes());
        print.add(record.app.as_bytes());
        print.add(record.process.as_str().as_bytes());
        print.add(&record.address.octets());
        print.add_number(record.state as u64);
        print.add_number(record.ordinal.map_or(0, u64::from));
        print.add_number(record.counter);
    }
    print.0
}

/// Which addresses several live members have.
fn note_conflicts(view: &View, shared: &Mutex<Shared>) {
    if view.hosts.len() > SMALL {
        return;
    }
    let mut claimants: BTreeMap<_, Vec<&MemberId>> = BTreeMap::new();
    for seen in claims::live(view) {
        claimants.entry((seen.network, seen.record.address)).or_default().push(seen.member);
    }
    for (thing, claimants) in claimants.into_iter().filter(|(_, claimants)| claimants.len() > 1) {
        let conflicts = &mut lock(shared).conflicts;
        conflicts.entry(thing).or_default().claimants.extend(claimants.into_iter().cloned());
    }
}

/// Which own members have another address than before.
fn note_moves(
    snapshot: &Snapshot,
    own: &mut BTreeMap<MemberId, (NetworkId, Ipv4Addr)>,
    shared: &Mutex<Shared>,
) {
    for entry in snapshot.journal.live() {
        let thing = (entry.network, entry.address);
        let before = own.insert(entry.member.clone(), thing).filter(|before| *before != thing);
        if let Some(before) = before {
            let conflicts = &mut lock(shared).conflicts;
            let conflict = conflicts.entry(before).or_default();
            conflict.claimants.insert(entry.member.clone());
            conflict.left.insert(entry.member.clone());
        }
    }
}

fn note_origins(snapshot: &Snapshot, known: &mut BTreeSet<MemberId>, shared: &Mutex<Shared>) {
    for entry in snapshot.journal.all() {
        if known.insert(entry.member.clone()) {
            let origin = Origin { network: entry.network, app: entry.app, process: entry.process.clone() };
            lock(shared).origins.insert(entry.member.clone(), origin);
        }
    }
}

fn fingerprint(view: &View, served: &Served) -> u64 {
    let mut print = Fingerprint::default();
    print.add(&[u8::from(view.whole), u8::from(view.cut_off), u8::from(view.twin.is_some())]);
    for (id, host) in &view.hosts {
        print.add(id.as_str().as_bytes());
        print.add_number(host.generation);
        print.add_number(host.version);
        print.add_number(host.standing as u64);
    }
    served.prints().for_each(|zone| print.add_number(zone));
    print.0
}

fn describe(snapshot: &Snapshot, seen: u64) -> String {
    let view = &snapshot.view;
    let silent = view.hosts.iter().filter(|(_, host)| !host.standing.answers());
    let silent: Vec<String> = silent.map(|(id, host)| format!("{id} {}", host.standing.as_str())).collect();
    let silent = if silent.is_empty() { String::new() } else { format!(" ({})", silent.join(", ")) };
    format!(
        "{} of {} hosts answer{silent}, {} members{}{}{}{} ({seen:016x})",
        view.answering().count(),
        view.hosts.len(),
        view.members().count(),
        if view.whole { "" } else { ", not whole" },
        if view.stale { ", stale" } else { "" },
        if view.cut_off { ", cut off" } else { "" },
        if view.twin.is_some() { ", fenced" } else { "" },
    )
}
