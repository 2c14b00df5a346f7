//! What happened on this host that is worth telling: a bounded log.

use std::collections::VecDeque;
use std::sync::Arc;

use gossip::config::WallClock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many events are kept.
const KEPT: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts from 1 since the agent started.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What kind.
    pub kind: EventKind,
    /// What happened, in words.
    pub detail: String,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// This host is in the region.
    Joined,
    /// A member's address was another's: it has a new one.
    Readdressed,
    /// A member's number was another's: it has a new one.
    Renumbered,
    /// A network's VNI was another network's, or its hosts did not agree: it has another one.
    VniMoved,
    /// Two parts of the region had given a network different subnets: it has another one here.
    SubnetMoved,
    /// Other names are passed on for a network's containers, or no more.
    Forwarding,
    /// This host takes no new members, or takes them again.
    Draining,
    /// This host was away, and somebody else has what a member of it held.
    Yielded,
    /// A member whose journal entry was lost was taken over from the region's records.
    Adopted,
    /// No other host answers.
    CutOff,
    /// Other hosts answer again.
    Healed,
    /// Another machine answers under this host's name.
    Fenced,
}

impl EventKind {
    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Joined => "joined",
            EventKind::Readdressed => "readdressed",
            EventKind::Renumbered => "renumbered",
            EventKind::VniMoved => "vni-moved",
            EventKind::SubnetMoved => "subnet-moved",
            EventKind::Forwarding => "forwarding",
            EventKind::Draining => "draining",
            EventKind::Yielded => "yielded",
            EventKind::Adopted => "adopted",
            EventKind::CutOff => "cut-off",
            EventKind::Healed => "healed",
            EventKind::Fenced => "fenced",
        }
    }
}

/// The log.
pub(super) struct Events {
    clock: WallClock,
    count: u64,
    log: Arc<VecDeque<Event>>,
}

impl Events {
    pub(super) fn new(clock: WallClock) -> Events {
        Events { clock, count: 0, log: Arc::default() }
    }

    pub(super) fn note(&mut self, kind: EventKind, detail: String) {
        self.count += 1;
        let at_ms = self.now_ms();
        let log = Arc::make_mut(&mut self.log);
        if log.len() == KEPT {
            log.pop_front();
        }
        log.push_back(Event { number: self.count, at_ms, kind, detail });
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        (self.clock)() / 1_000_000
    }

    pub(super) fn log(&self) -> Arc<VecDeque<Event>> {
        self.log.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_one_name() {
        for kind in [
            EventKind::Joined,
            EventKind::VniMoved,
            EventKind::SubnetMoved,
            EventKind::Draining,
            EventKind::CutOff,
            EventKind::Fenced,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn the_last_ones_are_kept() {
        let mut events = Events::new(Arc::new(|| 5_000_000));
        for i in 0..KEPT + 3 {
            events.note(EventKind::Joined, i.to_string());
        }
        let log = events.log();
        assert_eq!((log.len(), log[0].number, log[0].at_ms), (KEPT, 4, 5));
        assert_eq!(log.back().unwrap().detail, (KEPT + 2).to_string());
    }
}
