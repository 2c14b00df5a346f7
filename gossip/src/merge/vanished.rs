//! Claims that vanish without being released: the container may still be there, so nobody may have
//! what it held for a while.

use tokio::time::Instant;

use super::{Accepted, ViewBuilder};
use crate::id::{HostId, MemberId, NetworkId};
use crate::record::{MemberRecord, MemberState};
use crate::view::{HostRecords, Vanished};

impl ViewBuilder {
    /// Remembers the live members of `before` that `after` does not know any more, and forgets those
    /// it knows again.
    pub(super) fn miss(&mut self, before: &Accepted, after: &HostRecords, now: Instant) {
        let live = before.records.members.iter().filter(|(_, record)| record.state != MemberState::Released);
        let missing = live.filter(|(key, _)| !after.members.contains_key(key));
        for ((network, member), record) in missing {
            let key = (before.host.clone(), *network, member.clone());
            self.vanished.insert(key, Vanished { record: record.clone(), since: now });
            self.vanished_moved = true;
        }
        if !self.vanished.is_empty() {
            let length = self.vanished.len();
            self.vanished.retain(|(host, network, member), _| {
                *host != before.host || !after.members.contains_key(&(*network, member.clone()))
            });
            self.vanished_moved |= self.vanished.len() != length;
        }
    }

    /// Takes in a claim that vanished elsewhere, unless its host has it.
    pub(crate) fn haunt(&mut self, key: (HostId, NetworkId, MemberId), record: MemberRecord, since: Instant) {
        let (host, network, member) = &key;
        let accepted = self.hosts.get(&*host.node_id()).and_then(|track| track.accepted());
        if accepted.is_none_or(|a| !a.records.members.contains_key(&(*network, member.clone()))) {
            self.vanished.entry(key).or_insert(Vanished { record, since });
            self.vanished_moved = true;
        }
    }

    pub(super) fn forget_vanished(&mut self, now: Instant) {
        let (bound, length) = (self.timings.ghost, self.vanished.len());
        self.vanished.retain(|_, vanished| now < vanished.since + bound);
        self.vanished_moved |= self.vanished.len() != length;
    }
}
