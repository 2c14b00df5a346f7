//! What every network should be published as: VNI and subnet, settled across networks. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gossip::View;
use gossip::id::{HostId, NetworkId};
use gossip::record::NetworkRecord;
use gossip::standing::Standing;
use gossip::view::Host;

use super::changes::each_change;
use super::vni_candidate;

/// The networks of the region.
///
/// All hosts of a network publish the same, copied from its lowest (counter, host) record, and what
/// was said last of its other names. Of two networks on one VNI the lower (counter, network) keeps it,
/// the other takes its next candidate.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Networks {
    /// The lowest record of each network, and whose it is.
    lowest: BTreeMap<NetworkId, Lowest>,
    /// By VNI, the networks whose lowest record has it, the one that keeps it first.
    vnis: BTreeMap<u32, BTreeSet<(u64, NetworkId)>>,
    /// The networks that lost theirs, with what they take instead.
    moved: BTreeMap<NetworkId, u32>,
    /// What is to be settled when the view is followed: the networks whose lowest record is another one now, or none
    /// where only a look at all hosts tells.
    unsettled: BTreeMap<NetworkId, Option<Lowest>>,
}

/// A host that is gone has no word on a VNI where another one has: what it said may be long settled
/// otherwise. What it said of other names is the last word until there is a later one.
#[derive(Debug, Clone, PartialEq)]
struct Lowest {
    gone: bool,
    host: HostId,
    /// With what was said last of other names, by whomever.
    record: NetworkRecord,
}

/// One host's word on a network before and after; none where it had none, or has none.
struct Word<'a> {
    host: &'a HostId,
    gone: bool,
    from: Option<&'a NetworkRecord>,
    to: Option<&'a NetworkRecord>,
}

impl Lowest {
    fn rank(&self) -> (bool, u64, &HostId) {
        (self.gone, self.record.counter, &self.host)
    }

    /// The lowest record after one host's word has changed; none when it is somebody else's now, and `held` does not
    /// tell whose.
    fn after(held: Option<&Lowest>, Word { host, gone, from, to }: Word<'_>) -> Option<Lowest> {
        let said = |record: Option<&NetworkRecord>| record.and_then(|record| record.forwarding);
        let told = held.and_then(|held| held.record.forwarding);
        if said(from) == told && said(to) < told {
            return None;
        }
        let new = to.map(|record| Lowest { gone, host: host.clone(), record: record.clone() });
        let lowest = match (held, new) {
            (None, new) => new?,
            (Some(held), Some(new)) if new.rank() <= held.rank() => new,
            (Some(held), _) if held.host == *host => return None,
            (Some(held), _) => held.clone(),
        };
        let forwarding = told.max(said(to));
        Some(Lowest { record: NetworkRecord { forwarding, ..lowest.record }, ..lowest })
    }
}

impl Networks {
    /// What all hosts of a network should publish of it; none of a network nobody has a word on.
    pub fn get(&self, network: NetworkId) -> Option<NetworkRecord> {
        let record = &self.lowest.get(&network)?.record;
        let vni = self.moved.get(&network).copied().unwrap_or(record.vni);
        Some(NetworkRecord { vni, ..record.clone() })
    }

    /// Every network with what should be published of it.
    pub fn iter(&self) -> impl Iterator<Item = (NetworkId, NetworkRecord)> + '_ {
        self.lowest.keys().filter_map(|network| Some((*network, self.get(*network)?)))
    }

    /// How many networks there are.
    pub fn len(&self) -> usize {
        self.lowest.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lowest.is_empty()
    }

    /// Networks that lost their VNI to an older one, and the one they take instead.
    pub fn moved(&self) -> &BTreeMap<NetworkId, u32> {
        &self.moved
    }

    /// The network that has a VNI, or takes it after it lost its own.
    pub fn holder(&self, vni: u32) -> Option<NetworkId> {
        let first = self.vnis.get(&vni).and_then(|networks| networks.first());
        let taken = || self.moved.iter().find(|(_, taken)| **taken == vni).map(|(network, _)| *network);
        first.map(|(_, network)| *network).or_else(taken)
    }

    /// Notes what one host says now; [`settle`](Self::settle) follows when all have been noted.
    pub(super) fn follow(&mut self, host: &HostId, old: Option<&Host>, new: Option<&Host>) {
        let none = BTreeMap::new();
        let gone = |h: Option<&Host>| h.is_none_or(|h| h.standing == Standing::Gone);
        let (was_gone, gone) = (gone(old), gone(new));
        let before = old.map_or(&none, |h| &h.records.networks);
        let after = new.map_or(&none, |h| &h.records.networks);
        each_change(before, after, |network, from, to| {
            if from == to && was_gone == gone {
                return;
            }
            // Where all hosts are to be looked at, they are.
            let held = match self.unsettled.get(network) {
                Some(None) => return,
                Some(settled) => settled.as_ref(),
                None => self.lowest.get(network),
            };
            let after = Lowest::after(held, Word { host, gone, from, to });
            if after.is_none() || after.as_ref() != held {
                self.unsettled.insert(*network, after);
            }
        });
    }

    /// Settles what was noted; returns the networks that are to be published otherwise than before.
    pub(super) fn settle(&mut self, view: &View) -> BTreeSet<NetworkId> {
        let mut changed = BTreeSet::new();
        for (network, settled) in std::mem::take(&mut self.unsettled) {
            let lowest = settled.or_else(|| lowest(view, network));
            if self.lowest.get(&network) != lowest.as_ref() {
                self.replace(network, lowest);
                changed.insert(network);
            }
        }
        if !changed.is_empty() {
            let moved = self.settle_vnis();
            each_change(&self.moved, &moved, |network, from, to| {
                if from != to {
                    changed.insert(*network);
                }
            });
            self.moved = moved;
        }
        changed
    }

    fn replace(&mut self, network: NetworkId, lowest: Option<Lowest>) {
        if let Some(Lowest { record, .. }) = self.lowest.remove(&network)
            && let Some(networks) = self.vnis.get_mut(&record.vni)
        {
            networks.remove(&(record.counter, network));
            if networks.is_empty() {
                self.vnis.remove(&record.vni);
            }
        }
        if let Some(lowest) = lowest {
            self.vnis.entry(lowest.record.vni).or_default().insert((lowest.record.counter, network));
            self.lowest.insert(network, lowest);
        }
    }

    fn settle_vnis(&self) -> BTreeMap<NetworkId, u32> {
        let losers = self.vnis.values().filter(|networks| networks.len() > 1);
        let losers: BTreeSet<&(u64, NetworkId)> = losers.flat_map(|n| n.iter().skip(1)).collect();
        let mut taken = BTreeSet::new();
        let mut moved = BTreeMap::new();
        for (_, network) in losers {
            let free = |vni: &u32| !self.vnis.contains_key(vni) && !taken.contains(vni);
            // More candidates than there are VNIs: one is free unless all are taken.
            let Some(vni) = (0..1 << 24).map(|i| vni_candidate(*network, i)).find(free) else { continue };
            taken.insert(vni);
            moved.insert(*network, vni);
        }
        moved
    }
}

fn lowest(view: &View, network: NetworkId) -> Option<Lowest> {
    let words = view.hosts.iter().filter_map(|(host, h)| {
        Some((h.standing == Standing::Gone, host, h.records.networks.get(&network)?))
    });
    let forwarding = words.clone().filter_map(|(_, _, record)| record.forwarding).max();
    let (gone, host, record) = words.min_by_key(|(gone, host, record)| (*gone, record.counter, *host))?;
    Some(Lowest { gone, host: host.clone(), record: NetworkRecord { forwarding, ..record.clone() } })
}
