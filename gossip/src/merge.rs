//! From what chitchat holds to the [`View`]. Pure: what is held and `now` in, a view out.
//!
//! Cheap at a thousand hosts: [`moved`](ViewBuilder::moved) compares numbers, only the owners it
//! names are read, and a view is the last one with their entries replaced.

mod reading;
mod vanished;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatId, NodeState};
use imbl::OrdMap;
use tokio::time::Instant;

use crate::config::KnownHost;
use crate::counters::Counters;
use crate::id::{HostId, MemberId, NetworkId};
use crate::interner::{Interner, Print};
use crate::standing::{Life, Sign, Standing, Timings};
use crate::view::{Host, HostRecords, Vanished, Via, View};

/// What chitchat's failure detector says of one generation of one host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat<'a> {
    pub(crate) owner: &'a ChitchatId,
    pub(crate) heartbeat: u64,
    /// The version that chitchat holds.
    pub(crate) version: u64,
    /// The failure detector's timeout for it: it has one exactly while it is live.
    pub(crate) timeout: Option<Duration>,
}

/// What is remembered of a host outside of chitchat: on disk, or by the peer a snapshot is from.
#[derive(Debug, Clone)]
pub(crate) struct Memory<'a> {
    pub(crate) node_id: &'a str,
    pub(crate) generation: u64,
    pub(crate) version: u64,
    pub(crate) address: SocketAddr,
    pub(crate) via: Via,
    /// Since when it is out of answers where it is remembered.
    pub(crate) silent_since: Option<Instant>,
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
    /// Under which generation and address this agent publishes; none before it does.
    published: Option<(u64, SocketAddr)>,
    timings: Timings,
    counters: Arc<Counters>,
    parsed: Interner,
    hosts: BTreeMap<Arc<str>, Track>,
    vanished: BTreeMap<(HostId, NetworkId, MemberId), Vanished>,
    /// Some live peer's records have arrived in full once.
    synced: bool,
    twin: Option<SocketAddr>,
    /// Hosts that are not as the view has them. Views are not compared: that would read every
    /// record at every look.
    moved: BTreeSet<Arc<str>>,
    /// Names that are to leave the view.
    dropped: BTreeSet<HostId>,
    vanished_moved: bool,
    view: Arc<View>,
    /// Where the others in answers gossip, but for those that said they are away.
    answering: Vec<SocketAddr>,
}

/// One host through its generations.
#[derive(Debug)]
pub(crate) struct Track {
    life: Life,
    sign: Sign,
    /// What counts; none until the first `host` record is here.
    accepted: Option<Accepted>,
    /// Newer generations that were looked into and do not count yet, with the version looked at.
    pending: BTreeMap<u64, u64>,
}

/// What counts of a host.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) host: HostId,
    pub(crate) generation: u64,
    pub(crate) version: u64,
    pub(crate) address: SocketAddr,
    pub(crate) via: Via,
    pub(crate) records: Arc<HostRecords>,
    /// What the records are told apart by, where agents share them.
    pub(crate) print: Option<Print>,
}

impl Track {
    fn begin(life: Life) -> Self {
        Self { life, sign: Sign::default(), accepted: None, pending: BTreeMap::new() }
    }

    pub(crate) fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    pub(crate) fn unheard_since(&self) -> Option<Instant> {
        self.life.unheard_since()
    }

    /// Records from disk are as they were when this agent last heard of them: others say the same.
    fn confirm(&mut self, via: Via) -> bool {
        let written = self.accepted.as_mut().filter(|accepted| accepted.via == Via::Disk);
        written.map(|accepted| accepted.via = via).is_some()
    }

    /// Whether they may be older than what this agent knew before its start.
    fn is_stale(&self) -> bool {
        let written = self.accepted.as_ref().is_some_and(|accepted| accepted.via == Via::Disk);
        written && self.life.standing() != Standing::Gone
    }

    /// Whether so much of a generation is news.
    fn misses(&self, generation: u64, version: u64) -> bool {
        match &self.accepted {
            Some(accepted) if generation < accepted.generation => false,
            Some(accepted) if generation == accepted.generation => version > accepted.version,
            _ => self.pending.get(&generation) != Some(&version),
        }
    }
}

impl ViewBuilder {
    /// Starts from what was persisted of other hosts, as if first heard of now.
    pub(crate) fn new(
        own: &HostId,
        known: &[KnownHost],
        timings: Timings,
        counters: Arc<Counters>,
        parsed: Interner,
        now: Instant,
    ) -> Self {
        let mut builder = Self {
            own: own.clone(),
            own_node_id: own.node_id(),
            published: None,
            timings,
            counters,
            parsed,
            hosts: BTreeMap::new(),
            vanished: BTreeMap::new(),
            synced: false,
            twin: None,
            moved: BTreeSet::new(),
            dropped: BTreeSet::new(),
            vanished_moved: false,
            view: Arc::default(),
            answering: Vec::new(),
        };
        for known in known.iter().filter(|known| known.host != *own) {
            let memory = Memory {
                node_id: &known.host.node_id(),
                generation: known.generation,
                version: known.version,
                address: known.address,
                via: Via::Disk,
                silent_since: None,
            };
            builder.remember(&memory, known.key_values.iter().map(|(k, v)| (k.as_str(), v.as_str())), now);
        }
        builder
    }

    /// The view as last built.
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Where the other hosts in answers gossip, by the view as last built; without those that said they are away.
    pub(crate) fn answering(&self) -> &[SocketAddr] {
        &self.answering
    }

    /// The highest generation of a host that was heard of, were it persisted or seen.
    pub(crate) fn generation(&self, node_id: &str) -> Option<u64> {
        self.hosts.get(node_id).map(|track| track.life.generation())
    }

    /// Whether an agent of that name is live, believed or not.
    pub(crate) fn hears(&self, node_id: &str, now: Instant) -> bool {
        self.hosts.get(node_id).is_some_and(|track| track.life.is_heard(now, &self.timings))
    }

    /// The generation of a host that counts here, and the version held of it.
    pub(crate) fn counts(&self, node_id: &str) -> Option<(u64, u64)> {
        self.hosts.get(node_id)?.accepted().map(|accepted| (accepted.generation, accepted.version))
    }

    /// Under which id chitchat has what counts of a host.
    pub(crate) fn owner(&self, node_id: &str) -> Option<ChitchatId> {
        let (node_id, track) = self.hosts.get_key_value(node_id)?;
        let accepted = track.accepted()?;
        Some(ChitchatId::new(node_id.clone(), accepted.generation, accepted.address))
    }

    /// The hosts from a node id on, in order.
    pub(crate) fn tracks(&self, after: Option<&str>) -> impl Iterator<Item = (&str, &Track)> {
        let range = match after {
            Some(after) => (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        self.hosts.range::<str, _>(range).map(|(node_id, track)| (&**node_id, track))
    }

    pub(crate) fn vanished(&self) -> &BTreeMap<(HostId, NetworkId, MemberId), Vanished> {
        &self.vanished
    }

    /// Whether a snapshot was taken, or its like came by chitchat: others may take one from here.
    pub(crate) fn is_whole(&self) -> bool {
        self.synced
    }

    /// A whole snapshot was taken in: what it did not tell anew is as it was written down.
    pub(crate) fn complete(&mut self) {
        self.synced = true;
        for (node_id, track) in &mut self.hosts {
            if track.confirm(Via::Snapshot) {
                self.moved.insert(node_id.clone());
            }
        }
    }

    /// This agent publishes in a generation from now on, and its failure detector begins with it.
    pub(crate) fn publishes(&mut self, generation: u64, address: SocketAddr, now: Instant) {
        self.published = Some((generation, address));
        self.renew(now);
    }

    /// Nobody could be heard until now: each host in answers has one detection bound to be heard again.
    pub(crate) fn renew(&mut self, now: Instant) {
        self.hosts.values_mut().for_each(|track| track.life.renew(now));
    }

    /// Which of these owners, in their order, have something that was not read yet.
    pub(crate) fn moved<'a>(
        &self,
        owners: impl Iterator<Item = (&'a ChitchatId, &'a NodeState)>,
    ) -> Vec<(&'a ChitchatId, &'a NodeState)> {
        let mut tracks = self.hosts.iter().peekable();
        let mut moved = Vec::new();
        for (owner, state) in owners {
            let track = loop {
                let Some((node_id, track)) = tracks.peek() else { break None };
                match (**node_id).cmp(&owner.node_id) {
                    Ordering::Less => _ = tracks.next(),
                    // Several generations of one host follow each other.
                    Ordering::Equal => break Some(*track),
                    Ordering::Greater => break None,
                }
            };
            if track.is_none_or(|track| track.misses(owner.generation_id, state.max_version()))
                && !self.is_foreign_self(owner)
            {
                moved.push((owner, state));
            }
        }
        moved
    }

    /// Takes in how all hosts live; `beats` come in the order of their owners.
    pub(crate) fn hear<'a>(&mut self, beats: impl Iterator<Item = Beat<'a>>, now: Instant) {
        for track in self.hosts.values_mut() {
            track.sign = Sign::default();
        }
        self.twin = None;
        let mut tracks = self.hosts.iter_mut().peekable();
        for Beat { owner, heartbeat, version, timeout } in beats {
            if *owner.node_id == *self.own_node_id {
                let newer = self.published.is_some_and(|(generation, address)| {
                    owner.generation_id > generation && owner.gossip_advertise_addr != address
                });
                if newer && timeout.is_some() {
                    self.twin = Some(owner.gossip_advertise_addr);
                }
                continue;
            }
            while tracks.next_if(|(node_id, _)| **node_id < owner.node_id).is_some() {}
            if let Some((node_id, track)) = tracks.peek_mut()
                && **node_id == owner.node_id
            {
                track.sign.add(owner.generation_id, heartbeat, timeout);
                let same = |a: &Accepted| a.generation == owner.generation_id && a.version <= version;
                if track.accepted().is_some_and(same) && track.confirm(Via::Chitchat) {
                    self.moved.insert(node_id.clone());
                }
            }
        }
        self.age(now);
        self.synced |= self.is_synced();
    }

    /// The view, if it is not what was built last.
    pub(crate) fn build(&mut self) -> Option<Arc<View>> {
        let whole = self.synced || self.knows_nobody();
        let same = self.moved.is_empty()
            && self.dropped.is_empty()
            && !self.vanished_moved
            && (whole, self.twin) == (self.view.whole, self.view.twin);
        if same {
            return None;
        }
        let mut view = (*self.view).clone();
        // Most changes are of a host's members: who answers, and where, is as it was.
        let mut stirred = !self.dropped.is_empty();
        for name in std::mem::take(&mut self.dropped) {
            view.hosts.remove(&name);
        }
        for node_id in std::mem::take(&mut self.moved) {
            if let Some((name, host)) = self.host(&node_id) {
                let now = bearing(&host);
                stirred |= view.hosts.insert(name, host).is_none_or(|before| bearing(&before) != now);
            }
        }
        if std::mem::take(&mut self.vanished_moved) {
            view.vanished = self.vanished.clone();
        }
        if stirred {
            view.cut_off = is_cut_off(&self.own, &view.hosts);
            view.stale = self.others().any(Track::is_stale);
            self.answering = others_answering(&self.own, &view.hosts);
        }
        (view.whole, view.twin) = (whole, self.twin);
        self.view = Arc::new(view);
        Some(self.view.clone())
    }

    fn host(&self, node_id: &str) -> Option<(HostId, Host)> {
        let track = self.hosts.get(node_id)?;
        let accepted = track.accepted()?;
        let is_own = node_id == self.own_node_id;
        let host = Host {
            generation: accepted.generation,
            version: accepted.version,
            address: accepted.address,
            standing: if is_own { Standing::Answering } else { track.life.standing() },
            silent_since: if is_own { None } else { track.life.silent_since() },
            via: accepted.via,
            records: accepted.records.clone(),
        };
        Some((accepted.host.clone(), host))
    }

    /// Older generations of this host, and another agent of its name, are not this host.
    fn is_foreign_self(&self, owner: &ChitchatId) -> bool {
        *owner.node_id == *self.own_node_id
            && self.published != Some((owner.generation_id, owner.gossip_advertise_addr))
    }

    fn age(&mut self, now: Instant) {
        // With a map's `retain` a fiftieth of a simulated agent's time went to finding nobody.
        let mut forgotten = Vec::new();
        for (node_id, track) in self.hosts.iter_mut().filter(|(node_id, _)| ***node_id != *self.own_node_id) {
            let before = track.life.standing();
            track.sign.away = track.accepted.as_ref().and_then(|accepted| accepted.records.host.away);
            let standing = track.life.observe(&track.sign, now, &self.timings);
            if standing != before {
                self.moved.insert(node_id.clone());
            }
            if track.life.is_forgotten(now, &self.timings) {
                forgotten.push(node_id.clone());
            }
        }
        for node_id in forgotten {
            let track = self.hosts.remove(&node_id);
            self.dropped.extend(track.and_then(|track| track.accepted).map(|accepted| accepted.host));
        }
        self.forget_vanished(now);
    }

    fn others(&self) -> impl Iterator<Item = &Track> {
        self.hosts.iter().filter(|(node_id, _)| ***node_id != *self.own_node_id).map(|(_, track)| track)
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

/// What of a host the rest of the region's state follows from.
fn bearing(host: &Host) -> (Standing, SocketAddr, bool, bool) {
    (host.standing, host.address, host.records.host.away.is_some(), host.via == Via::Disk)
}

/// Where the hosts in answers gossip, but for `own` and those that said they are away.
fn others_answering(own: &HostId, hosts: &OrdMap<HostId, Host>) -> Vec<SocketAddr> {
    let others = hosts.iter().filter(|(id, _)| *id != own);
    others
        .filter(|(_, host)| matches!(host.standing, Standing::Answering | Standing::Late))
        .map(|(_, host)| host.address)
        .collect()
}

/// Others that left with a goodbye do not count: a region may shrink to one host.
fn is_cut_off(own: &HostId, hosts: &OrdMap<HostId, Host>) -> bool {
    let mut others = hosts.iter().filter(|(id, _)| *id != own).map(|(_, host)| host);
    let expected = others.clone().filter(|host| host.records.host.away.is_none()).count();
    expected >= 2 && !others.any(|host| matches!(host.standing, Standing::Answering | Standing::Late))
}

#[cfg(test)]
mod tests;
