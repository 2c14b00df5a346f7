//! Reading an owner's records, as little of them as possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use chitchat::{ChitchatId, NodeState};
use tokio::time::Instant;

use super::{Accepted, Memory, Track, ViewBuilder};
use crate::interner::Print;
use crate::record::{HostRecord, Key, MalformedRecord, Record};
use crate::standing::Life;
use crate::view::{HostRecords, Via};

/// Records read before: what has not been written since needs no reading.
#[derive(Clone, Copy)]
struct Before<'a> {
    version: u64,
    records: &'a HostRecords,
    print: Option<Print>,
}

impl ViewBuilder {
    /// Reads an owner's state, after [`moved`](Self::moved) named it, or when it was just written.
    pub(crate) fn see(&mut self, owner: &ChitchatId, state: &NodeState, via: Via, now: Instant) {
        let (node_id, version) = (&*owner.node_id, state.max_version());
        if self.is_foreign_self(owner) {
            return;
        }
        if !self.hosts.contains_key(node_id) {
            let track = Track::begin(Life::begin(owner.generation_id, now));
            self.hosts.insert(owner.node_id.clone(), track);
        }
        let Some(track) = self.hosts.get(node_id) else { return };
        if !track.misses(owner.generation_id, version) {
            return;
        }
        let same = track.accepted.as_ref().filter(|accepted| accepted.generation == owner.generation_id);
        let before = same.map(|accepted| Before {
            version: accepted.version,
            records: &accepted.records,
            print: accepted.print,
        });
        let print = match before.and_then(|before| Some((before.print?, before.version))) {
            Some(before) => self.parsed.print_since(before, owner, state),
            None => self.parsed.print(node_id, state.key_values()),
        };
        let records = self.records_of(node_id, state, print, before);
        let accepted = records.map(|records| Accepted {
            host: records.host.name.clone(),
            generation: owner.generation_id,
            version,
            address: owner.gossip_advertise_addr,
            via,
            records,
            print,
        });
        match accepted {
            Some(accepted) => self.accept(&owner.node_id, accepted, now),
            None => self.look_again(owner, version),
        }
    }

    /// Takes in what others remember of a host; what chitchat says of it goes before.
    pub(crate) fn remember<'a>(
        &mut self,
        memory: &Memory<'_>,
        key_values: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        now: Instant,
    ) {
        let known = self.hosts.get(memory.node_id);
        if known.is_some_and(|track| !track.misses(memory.generation, memory.version)) {
            return;
        }
        let (generation, published) = (memory.generation, self.published.is_some());
        let print = self.parsed.print(memory.node_id, key_values.clone());
        let read = || self.read(memory.node_id, key_values.map(|(key, value)| (key, value, None)), None);
        let Some(records) = self.shared(print, read) else { return };
        let node_id = self.parsed.text(memory.node_id);
        let life = match memory.silent_since {
            Some(since) => Life::silent(generation, since, now),
            None => Life::begin(generation, now),
        };
        match self.hosts.get_mut(&node_id) {
            // Whoever gossips has heard of it by itself.
            Some(_) if published => {}
            Some(track) => track.life = life,
            None => _ = self.hosts.insert(node_id.clone(), Track::begin(life)),
        }
        let accepted = Accepted {
            host: records.host.name.clone(),
            generation,
            version: memory.version,
            address: memory.address,
            via: memory.via,
            records,
            print,
        };
        self.accept(&node_id, accepted, now);
    }

    fn accept(&mut self, node_id: &Arc<str>, accepted: Accepted, now: Instant) {
        let Some(track) = self.hosts.get_mut(node_id) else { return };
        track.pending = track.pending.split_off(&(accepted.generation + 1));
        let (host, records) = (accepted.host.clone(), accepted.records.clone());
        let before = track.accepted.replace(accepted);
        self.moved.insert(node_id.clone());
        if let Some(before) = before {
            if before.host != host {
                self.dropped.insert(before.host.clone());
            }
            self.miss(&before, &records, now);
        }
    }

    /// A generation without its `host` record does not count; it is looked into when it has moved.
    fn look_again(&mut self, owner: &ChitchatId, version: u64) {
        if let Some(track) = self.hosts.get_mut(&*owner.node_id) {
            track.pending.insert(owner.generation_id, version);
        }
    }

    fn records_of(
        &self,
        node_id: &str,
        state: &NodeState,
        print: Option<Print>,
        before: Option<Before<'_>>,
    ) -> Option<Arc<HostRecords>> {
        let live = state.key_values_including_deleted().filter(|(_, value)| !value.is_deleted());
        let live = live.map(|(key, value)| (key, value.value.as_str(), Some(value.version)));
        self.shared(print, || self.read(node_id, live, before))
    }

    /// Somebody's parsed records with this print, or those that `read` reads.
    fn shared(&self, print: Option<Print>, read: impl FnOnce() -> Option<Read>) -> Option<Arc<HostRecords>> {
        if let Some(records) = print.and_then(|print| self.parsed.get(&print)) {
            return Some(records);
        }
        let Read { records, clean } = read()?;
        let records = Arc::new(records);
        Some(match print.filter(|_| clean) {
            Some(print) => self.parsed.put(print, records),
            None => records,
        })
    }

    /// Reads one host's records; none without a `host` record, which may be the one of `before`.
    fn read<'a>(
        &self,
        node_id: &str,
        key_values: impl Iterator<Item = (&'a str, &'a str, Option<u64>)>,
        before: Option<Before<'_>>,
    ) -> Option<Read> {
        let (mut host, mut networks, mut members) = (None, BTreeMap::new(), BTreeMap::new());
        let mut clean = true;
        for (key, value, version) in key_values {
            match decode(node_id, key, value, version, before) {
                Ok(Record::Host(record)) => host = Some(record),
                Ok(Record::Network(network, record)) => _ = networks.insert(network, record),
                Ok(Record::Member(network, member, record)) => _ = members.insert((network, member), record),
                Err(error) => {
                    clean = false;
                    self.counters.quarantined(error.reason());
                    tracing::debug!(owner = node_id, %error, "record skipped");
                }
            }
        }
        clean &= host.is_some();
        let last = || before.map(|before: Before<'_>| -> HostRecord { before.records.host.clone() });
        Some(Read { records: HostRecords { host: host.or_else(last)?, networks, members }, clean })
    }
}

/// Records, and whether they follow from the key-values alone.
struct Read {
    records: HostRecords,
    clean: bool,
}

fn decode(
    node_id: &str,
    key: &str,
    value: &str,
    version: Option<u64>,
    before: Option<Before<'_>>,
) -> Result<Record, MalformedRecord> {
    let unwritten = before.filter(|before| version.is_some_and(|version| version <= before.version));
    match unwritten.and_then(|before| before.records.get(&key.parse().ok()?)) {
        Some(record) => Ok(record),
        None => Record::decode(node_id, key, value),
    }
}

impl HostRecords {
    fn get(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Host => Some(Record::Host(self.host.clone())),
            Key::Network(network) => {
                self.networks.get(network).map(|record| Record::Network(*network, record.clone()))
            }
            Key::Member(network, member) => self
                .members
                .get(&(*network, member.clone()))
                .map(|record| Record::Member(*network, member.clone(), record.clone())),
        }
    }
}
