//! Names: what a zone must answer, worked out from records, and from promises.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::ensure;
use gossip::View;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{MemberRecord, MemberState};
use gossip::standing::Standing;
use node::agent::Snapshot;
use node::store::Entry;
use resolver::Zone;

use super::claims::{holders, number, numbered};
use super::each_live;
use crate::cluster::{Cluster, Life};
use crate::history::Fingerprint;

/// Whole names, with what they resolve to.
pub type Names = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// What an agent's zones answer, read once as long as they are the same zones.
#[derive(Default)]
pub struct Served(BTreeMap<NetworkId, Read>);

struct Read {
    zone: Arc<Zone>,
    names: Names,
    print: u64,
}

impl Served {
    /// Reads the zones that are new; of a large region only prints are kept.
    pub fn read(&mut self, zones: &BTreeMap<NetworkId, Arc<Zone>>, is_large: bool) {
        self.0.retain(|network, read| {
            let same = zones.get(network).is_some_and(|now| Arc::ptr_eq(now, &read.zone));
            same && (is_large || !read.names.is_empty())
        });
        for (network, zone) in zones {
            self.0.entry(*network).or_insert_with(|| {
                let names = served(zone);
                let print = print(&names);
                Read { zone: zone.clone(), names: if is_large { Names::new() } else { names }, print }
            });
        }
    }

    /// What was read, by network.
    pub fn names(&self) -> impl Iterator<Item = (&NetworkId, &Names)> {
        self.0.iter().map(|(network, read)| (network, &read.names))
    }

    /// Prints of what was read, network by network.
    pub fn prints(&self) -> impl Iterator<Item = u64> {
        self.0.values().map(|read| read.print)
    }
}

fn print(names: &Names) -> u64 {
    let mut print = Fingerprint::default();
    for (name, addresses) in names {
        print.add(name.as_bytes());
        addresses.iter().for_each(|address| print.add(&address.octets()));
    }
    print.0
}

const ZONE: &str = "private-network.internal";

/// Every zone holds exactly the ready members of its agent's view that hold their address, on hosts that answer
/// and are not drained; where the agent is cut off, on dead hosts too.
///
/// What has not changed since it was looked at holds still.
pub fn follow_the_view(cluster: &mut Cluster) -> anyhow::Result<()> {
    each_live(cluster, |(), number, _, now| {
        let same =
            |last: &Snapshot| Arc::ptr_eq(&last.view, &now.view) && Arc::ptr_eq(&last.zones, &now.zones);
        if cluster.looked_at.get(&number).is_some_and(same) {
            return Ok(());
        }
        let mut served = Served::default();
        served.read(&now.zones, false);
        follow_view(now, &served)
    })?;
    cluster.looked_at = cluster.live().map(|(number, _, now)| (number, now)).collect();
    Ok(())
}

/// As [`follow_the_view`], of one agent whose zones were read.
pub fn follow_view(snapshot: &Snapshot, served: &Served) -> anyhow::Result<()> {
    let expected = of_view(&snapshot.view, |network| snapshot.zones.contains_key(network));
    for (network, found) in served.names() {
        let none = Names::new();
        let expected = expected.get(network).unwrap_or(&none);
        ensure!(found == expected, "it serves {found:#?}\nits view says {expected:#?}");
    }
    Ok(())
}

/// Once quiet the names are those of the members that were promised on hosts that answer and are not drained.
pub fn are_those_promised(cluster: &Cluster) -> anyhow::Result<()> {
    let mut expected: BTreeMap<NetworkId, Names> = BTreeMap::new();
    let mut numbers: BTreeMap<_, (u64, HostId, MemberId)> = BTreeMap::new();
    let mut entries = Vec::new();
    for (member, promise) in &cluster.books.promises {
        let owner = &cluster.hosts[promise.host];
        if !matches!(owner.life, Life::Up(_) | Life::Away(_)) || owner.draining {
            continue;
        }
        // Its number may have changed in a conflict; its own host knows.
        let snapshot = owner.snapshot();
        let entry = snapshot.as_ref().and_then(|s| s.journal.get(member)).unwrap_or(&promise.entry);
        entries.push((owner.id.clone(), entry.clone()));
    }
    for (host, entry) in &entries {
        let age = (entry.counter, host.clone(), entry.member.clone());
        let first = numbers.entry(number_of(entry)).or_insert_with(|| age.clone());
        *first = age.min(first.clone());
    }
    for (_, entry) in &entries {
        // A number its caller chose is not changed: while another member holds it, there is no name.
        let holds = numbers.get(&number_of(entry)).is_some_and(|(.., member)| *member == entry.member);
        let names = expected.entry(entry.network).or_default();
        let record = node::project::record(entry);
        add(names, entry.network, &record, entry.ordinal.filter(|_| holds));
    }
    each_live(cluster, |(), _, _, snapshot| {
        for (network, zone) in &*snapshot.zones {
            let (found, none) = (served(zone), Names::new());
            let expected = expected.get(network).unwrap_or(&none);
            ensure!(found == *expected, "it serves {found:#?}\npromised were {expected:#?}");
        }
        Ok(())
    })
}

/// What a numbered name is made of.
fn number_of(entry: &Entry) -> (NetworkId, AppId, ProcessType, Option<u32>) {
    (entry.network, entry.app, entry.process.clone(), entry.ordinal)
}

fn of_view(view: &View, wanted: impl Fn(&NetworkId) -> bool) -> BTreeMap<NetworkId, Names> {
    let numbered = numbered(view, &wanted);
    let mut all: BTreeMap<NetworkId, Names> = BTreeMap::new();
    for seen in holders(view, wanted).values() {
        let answers = seen.standing.answers() || (view.cut_off && seen.standing == Standing::Dead);
        let drained = view.hosts[seen.host].records.host.draining;
        if !answers || drained || seen.record.state != MemberState::Ready {
            continue;
        }
        let number = number(*seen).filter(|number| numbered[number].member == seen.member);
        let ordinal = number.map(|(.., ordinal)| ordinal);
        add(all.entry(seen.network).or_default(), seen.network, seen.record, ordinal);
    }
    all
}

fn add(names: &mut Names, network: NetworkId, record: &MemberRecord, number: Option<u32>) {
    let MemberRecord { app, process, address, .. } = record;
    let typed = format!("{process}.{app}.{network}.{ZONE}");
    if process.as_str() == "web" {
        names.entry(format!("{app}.{network}.{ZONE}")).or_default().insert(*address);
    }
    if let Some(number) = number {
        names.entry(format!("{number}.{typed}")).or_default().insert(*address);
    }
    names.entry(typed).or_default().insert(*address);
}

fn served(zone: &Zone) -> Names {
    zone.names().into_iter().map(|named| (named.name, named.addresses.into_iter().collect())).collect()
}
