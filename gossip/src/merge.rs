//! From what chitchat holds to the [`View`]. Pure: sightings and `now` in, a view out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::KnownHost;
use crate::counters::Counters;
use crate::id::HostId;
use crate::record::{HostRecord, Record};
use crate::standing::{Life, Sign, Standing, Timings};
use crate::view::{Host, HostRecords, Via, View};

/// One generation of one host, as chitchat holds it at this moment.
#[derive(Debug, Clone)]
pub(crate) struct Sighting<'a, K> {
    pub(crate) node_id: &'a str,
    pub(crate) generation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) max_version: u64,
    pub(crate) heartbeat: u64,
    /// The failure detector's timeout for it: it has one exactly while it is live.
    pub(crate) timeout: Option<Duration>,
    /// Looked at only when the version has moved.
    pub(crate) key_values: K,
}

/// Everything the view is built from, kept from one look to the next.
///
/// Per host the highest generation whose `host` record has arrived counts (it is published last,
/// so its generation's first records are then here), and within one the view never goes back:
/// while chitchat refills a state it has reset, the last records stay.
#[derive(Debug)]
pub(crate) struct ViewBuilder {
    own: HostId,
    own_node_id: String,
    timings: Timings,
    counters: Arc<Counters>,
    hosts: BTreeMap<String, Track>,
    /// Some live peer's records have arrived in full once.
    synced: bool,
    /// Some host is not as the last view has it. Views are not compared: that would read every
    /// record at every look.
    changed: bool,
    view: Arc<View>,
}

/// One host through its generations.
#[derive(Debug)]
struct Track {
    life: Life,
    sign: Sign,
    /// What counts; none until the first `host` record is here.
    accepted: Option<Accepted>,
    /// Newer generations that were looked into and do not count yet, with the version looked at.
    pending: BTreeMap<u64, u64>,
}

impl Track {
    fn begin(generation: u64, accepted: Option<Accepted>, now: Instant) -> Self {
        Self { life: Life::begin(generation, now), sign: Sign::default(), accepted, pending: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct Accepted {
    host: HostId,
    generation: u64,
    version: u64,
    address: SocketAddr,
    via: Via,
    records: Arc<HostRecords>,
}

impl ViewBuilder {
    /// Starts from what was persisted of other hosts, as if first heard of now.
    pub(crate) fn new(
        own: &HostId,
        known: &[KnownHost],
        timings: Timings,
        counters: Arc<Counters>,
        now: Instant,
    ) -> Self {
        let mut builder = Self {
            own: own.clone(),
            own_node_id: own.node_id(),
            timings,
            counters,
            hosts: BTreeMap::new(),
            synced: false,
            changed: true,
            view: Arc::default(),
        };
        for known in known.iter().filter(|known| known.host != *own) {
            builder.restore(known, now);
        }
        builder
    }

    /// The view of the last look.
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The highest generation of a host that counts here, were it persisted or seen.
    pub(crate) fn generation(&self, node_id: &str) -> Option<u64> {
        self.hosts.get(node_id).map(|track| track.life.generation())
    }

    /// Takes one look at everything chitchat holds; `own` is the generation and address this agent
    /// publishes under. Returns the view when it changed.
    pub(crate) fn look<'a, K>(
        &mut self,
        own: (u64, SocketAddr),
        sightings: impl Iterator<Item = Sighting<'a, K>>,
        now: Instant,
    ) -> Option<Arc<View>>
    where
        K: Iterator<Item = (&'a str, &'a str)>,
    {
        for track in self.hosts.values_mut() {
            track.sign = Sign::default();
        }
        let mut twin = None;
        for sighting in sightings {
            let is_own = (sighting.generation, sighting.address) == own;
            if is_own || sighting.node_id != self.own_node_id {
                self.see(sighting, now);
            } else if sighting.generation > own.0 && sighting.address != own.1 && sighting.timeout.is_some() {
                twin = Some(sighting.address);
            }
        }
        self.age(now);
        self.synced |= self.is_synced();
        let whole = self.synced || self.knows_nobody();
        if !self.changed && (whole, twin) == (self.view.whole, self.view.twin) {
            return None;
        }
        self.changed = false;
        self.view = Arc::new(self.build(whole, twin));
        Some(self.view.clone())
    }

    fn restore(&mut self, known: &KnownHost, now: Instant) {
        let node_id = known.host.node_id();
        let key_values = known.key_values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let Some(records) = self.records(&node_id, key_values, None) else { return };
        let accepted = Accepted {
            host: known.host.clone(),
            generation: known.generation,
            version: known.version,
            address: known.address,
            via: Via::Disk,
            records: Arc::new(records),
        };
        self.hosts.insert(node_id, Track::begin(known.generation, Some(accepted), now));
    }

    fn see<'a, K>(&mut self, sighting: Sighting<'a, K>, now: Instant)
    where
        K: Iterator<Item = (&'a str, &'a str)>,
    {
        if !self.hosts.contains_key(sighting.node_id) {
            self.hosts.insert(sighting.node_id.to_owned(), Track::begin(sighting.generation, None, now));
        }
        let Some(track) = self.hosts.get_mut(sighting.node_id) else { return };
        track.sign.add(sighting.generation, sighting.heartbeat, sighting.timeout);
        let previous = match &track.accepted {
            Some(accepted) if sighting.generation < accepted.generation => return,
            Some(accepted) if sighting.generation == accepted.generation => {
                if sighting.max_version <= accepted.version {
                    return;
                }
                Some(accepted.records.host.clone())
            }
            _ => {
                let looked_at = track.pending.insert(sighting.generation, sighting.max_version);
                if looked_at == Some(sighting.max_version) {
                    return;
                }
                None
            }
        };
        let (generation, version, address) = (sighting.generation, sighting.max_version, sighting.address);
        let node_id = sighting.node_id;
        let Some(records) = self.records(node_id, sighting.key_values, previous) else { return };
        let accepted = Accepted {
            host: records.host.name.clone(),
            generation,
            version,
            address,
            via: Via::Chitchat,
            records: Arc::new(records),
        };
        if let Some(track) = self.hosts.get_mut(node_id) {
            track.accepted = Some(accepted);
            self.changed = true;
            track.pending = track.pending.split_off(&(generation + 1));
        }
    }

    /// Reads one host's records; none without a `host` record, which may be the `previous` one.
    fn records<'a>(
        &self,
        node_id: &str,
        key_values: impl Iterator<Item = (&'a str, &'a str)>,
        previous: Option<HostRecord>,
    ) -> Option<HostRecords> {
        let (mut host, mut networks, mut members) = (previous, BTreeMap::new(), BTreeMap::new());
        for (key, value) in key_values {
            match Record::decode(node_id, key, value) {
                Ok(Record::Host(record)) => host = Some(record),
                Ok(Record::Network(network, record)) => _ = networks.insert(network, record),
                Ok(Record::Member(network, member, record)) => _ = members.insert((network, member), record),
                Err(error) => {
                    self.counters.quarantined(error.reason());
                    tracing::debug!(owner = node_id, %error, "record skipped");
                }
            }
        }
        Some(HostRecords { host: host?, networks, members })
    }

    fn age(&mut self, now: Instant) {
        let (own, timings, changed) = (&self.own_node_id, &self.timings, &mut self.changed);
        self.hosts.retain(|node_id, track| {
            if node_id == own {
                return true;
            }
            let before = track.life.standing();
            track.sign.away = track.accepted.as_ref().and_then(|accepted| accepted.records.host.away);
            let standing = track.life.observe(&track.sign, now, timings);
            let forgotten = track.life.is_forgotten(now, timings);
            *changed |= standing != before || forgotten;
            !forgotten
        });
    }

    fn build(&self, whole: bool, twin: Option<SocketAddr>) -> View {
        let mut hosts = BTreeMap::new();
        for (node_id, track) in &self.hosts {
            let Some(accepted) = &track.accepted else { continue };
            let standing =
                if *node_id == self.own_node_id { Standing::Answering } else { track.life.standing() };
            let host = Host {
                generation: accepted.generation,
                version: accepted.version,
                address: accepted.address,
                standing,
                silent_since: track.life.silent_since(),
                via: accepted.via,
                records: accepted.records.clone(),
            };
            hosts.insert(accepted.host.clone(), host);
        }
        let cut_off = is_cut_off(&self.own, &hosts);
        View { hosts, vanished: BTreeMap::new(), whole, cut_off, twin }
    }

    fn others(&self) -> impl Iterator<Item = &Track> {
        self.hosts.iter().filter(|(node_id, _)| **node_id != self.own_node_id).map(|(_, track)| track)
    }

    /// A peer's digest names all hosts at once, so when one is live, and every host in answers has
    /// the `host` record of its newest generation here, nothing is on its way that an agent
    /// published when it started.
    fn is_synced(&self) -> bool {
        let complete =
            |track: &Track| track.accepted.as_ref().is_some_and(|a| a.generation >= track.sign.generation);
        self.others().any(|track| track.sign.live.is_some())
            && self.others().filter(|track| track.life.standing().answers()).all(complete)
    }

    fn knows_nobody(&self) -> bool {
        self.others().all(|track| track.life.standing() == Standing::Gone)
    }
}

/// Others that left with a goodbye do not count: a region may shrink to one host.
fn is_cut_off(own: &HostId, hosts: &BTreeMap<HostId, Host>) -> bool {
    let mut others = hosts.iter().filter(|(id, _)| *id != own).map(|(_, host)| host);
    let expected = others.clone().filter(|host| host.records.host.away.is_none()).count();
    expected >= 2 && !others.any(|host| matches!(host.standing, Standing::Answering | Standing::Late))
}

#[cfg(test)]
mod tests;
