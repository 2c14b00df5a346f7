//! Parsed records, unpacked frames and node ids, once per process.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use chitchat::{ChitchatId, NodeState};
use foldhash::quality::FixedState;

use crate::view::HostRecords;

/// What one host published, told apart from everything else by its hash.
pub(crate) type Print = u64;

/// Shares the parsed records of hosts between the agents of one process: a simulated region has a
/// thousand agents that all hold the same records, and none of them parses or keeps them twice. So are the ids of their
/// hosts, which chitchat compares all the time.
///
/// The default one shares nothing: an agent alone in its process parses what it gets. Whoever shares trusts everybody
/// in the region not to look for two sets of records with one hash.
#[derive(Clone, Default)]
pub struct Interner {
    shared: Option<Arc<Mutex<Shelf>>>,
}

#[derive(Default)]
struct Shelf {
    records: BTreeMap<Print, Weak<HostRecords>>,
    /// What a print becomes by a change: most agents make the same steps as another one before.
    steps: BTreeMap<u64, Print>,
    unpacked: BTreeMap<u64, Arc<[u8]>>,
    texts: BTreeSet<Arc<str>>,
    /// At these lengths what nobody has any more is taken out.
    records_max: usize,
    texts_max: usize,
}

/// So many steps and unpacked bodies are kept; beyond, all are forgotten and come again.
const STEPS_MAX: usize = 64 * 1024;
const UNPACKED_MAX: usize = 4 * 1024;

/// How long something may be that has this length without what nobody has any more.
fn room_for(length: usize) -> usize {
    64 + 2 * length
}

impl Interner {
    /// One whose copies share what they parse.
    pub fn shared() -> Self {
        Self { shared: Some(Arc::default()) }
    }

    /// The print of an owner's live key-values, which come in the order of their keys; none where nothing is shared.
    pub(crate) fn print<'a>(
        &self,
        node_id: &str,
        key_values: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<Print> {
        self.shared.as_ref()?;
        let mut hash = FixedState::with_seed(1).build_hasher();
        node_id.hash(&mut hash);
        for key_value in key_values {
            key_value.hash(&mut hash);
        }
        Some(hash.finish())
    }

    /// The print of an owner's state, told from the print at an earlier version of the same generation: of what has not
    /// been written since, the versions say what is still there, and only the rest is read.
    pub(crate) fn print_since(
        &self,
        (before, version): (Print, u64),
        owner: &ChitchatId,
        state: &NodeState,
    ) -> Option<Print> {
        self.shared.as_ref()?;
        let mut hash = FixedState::with_seed(2).build_hasher();
        (before, owner.generation_id, owner.gossip_advertise_addr).hash(&mut hash);
        for (key, value) in state.key_values_including_deleted() {
            let (is_news, is_deleted) = (value.version > version, value.is_deleted());
            if is_news || !is_deleted {
                value.version.hash(&mut hash);
            }
            if is_news {
                (key, &value.value, is_deleted).hash(&mut hash);
            }
        }
        let step = hash.finish();
        if let Some(print) = self.shelf(|shelf| shelf.steps.get(&step).copied()).flatten() {
            return Some(print);
        }
        let print = self.print(&owner.node_id, state.key_values())?;
        self.shelf(|shelf| {
            if shelf.steps.len() >= STEPS_MAX {
                shelf.steps.clear();
            }
            shelf.steps.insert(step, print);
        });
        Some(print)
    }

    /// What `unpack` makes of some bytes, which says the same each time.
    pub(crate) fn unpacked<'a>(
        &self,
        packed: &'a [u8],
        unpack: impl FnOnce() -> Option<Cow<'a, [u8]>>,
    ) -> Option<Unpacked<'a>> {
        let Some(print) = self.shared.as_ref().map(|_| FixedState::with_seed(3).hash_one(packed)) else {
            return unpack().map(Unpacked::Own);
        };
        if let Some(kept) = self.shelf(|shelf| shelf.unpacked.get(&print).cloned()).flatten() {
            return Some(Unpacked::Shared(kept));
        }
        let body = match unpack()? {
            Cow::Owned(body) => body,
            borrowed => return Some(Unpacked::Own(borrowed)),
        };
        let body: Arc<[u8]> = body.into();
        self.shelf(|shelf| {
            if shelf.unpacked.len() >= UNPACKED_MAX {
                shelf.unpacked.clear();
            }
            shelf.unpacked.insert(print, body.clone());
        });
        Some(Unpacked::Shared(body))
    }

    pub(crate) fn get(&self, print: &Print) -> Option<Arc<HostRecords>> {
        self.shelf(|shelf| shelf.records.get(print)?.upgrade()).flatten()
    }

    /// Shares records, or returns those that somebody else has shared meanwhile: of one print there is one copy.
    pub(crate) fn put(&self, print: Print, records: Arc<HostRecords>) -> Arc<HostRecords> {
        let there = self.shelf(|shelf| {
            let there = shelf.records.get(&print).and_then(Weak::upgrade);
            if there.is_none() {
                shelf.records.insert(print, Arc::downgrade(&records));
            }
            if shelf.records.len() > shelf.records_max {
                shelf.records.retain(|_, records| records.strong_count() > 0);
                shelf.records_max = room_for(shelf.records.len());
            }
            there
        });
        there.flatten().unwrap_or(records)
    }

    /// The one copy of a text.
    pub(crate) fn text(&self, text: &str) -> Arc<str> {
        let kept = self.shelf(|shelf| {
            if let Some(kept) = shelf.texts.get(text) {
                return kept.clone();
            }
            if shelf.texts.len() >= shelf.texts_max {
                shelf.texts.retain(|text| Arc::strong_count(text) > 1);
                shelf.texts_max = room_for(shelf.texts.len());
            }
            let kept: Arc<str> = text.into();
            shelf.texts.insert(kept.clone());
            kept
        });
        kept.unwrap_or_else(|| text.into())
    }

    fn shelf<T>(&self, with: impl FnOnce(&mut Shelf) -> T) -> Option<T> {
        Some(with(&mut self.shared.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// An unpacked body.
#[derive(Debug)]
pub(crate) enum Unpacked<'a> {
    Own(Cow<'a, [u8]>),
    Shared(Arc<[u8]>),
}

impl Deref for Unpacked<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Unpacked::Own(body) => body,
            Unpacked::Shared(body) => body,
        }
    }
}

impl fmt::Debug for Interner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interner").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::host;
    use crate::record::Record;

    fn records(name: &str) -> Arc<HostRecords> {
        let Record::Host(host) = host(name) else { unreachable!("a host record was asked for") };
        Arc::new(HostRecords { host, networks: BTreeMap::new(), members: BTreeMap::new() })
    }

    #[test]
    fn what_somebody_has_is_shared_and_what_nobody_has_is_dropped() {
        let (one, other) = (Interner::shared(), Interner::shared());
        let copy = one.clone();
        let a = records("a");
        one.put(1, a.clone());
        assert!(copy.get(&1).is_some_and(|found| Arc::ptr_eq(&found, &a)));
        assert!(Arc::ptr_eq(&copy.put(1, records("a")), &a), "who comes second takes what is there");
        assert!(other.get(&1).is_none());
        drop(a);
        assert!(copy.get(&1).is_none());
        for number in 0..1000_u64 {
            one.put(2 + number, records("b"));
        }
        assert!(one.shelf(|shelf| shelf.records.len()) < Some(100));
    }

    #[test]
    fn an_agent_alone_shares_nothing() {
        let alone = Interner::default();
        assert_eq!(alone.print("a", [("k", "v")].into_iter()), None);
        assert!(!Arc::ptr_eq(&alone.text("a"), &alone.text("a")));
    }

    #[test]
    fn a_text_is_there_once_as_long_as_somebody_has_it() {
        let interner = Interner::shared();
        let a = interner.text("a");
        assert!(Arc::ptr_eq(&a, &interner.text("a")));
        for number in 0..1000 {
            interner.text(&number.to_string());
        }
        assert!(Arc::ptr_eq(&a, &interner.text("a")));
        assert!(interner.shelf(|shelf| shelf.texts.len()) < Some(100));
    }

    /// The print of a state is the same whatever way it came about, and is worked out once for each step.
    #[test]
    fn a_step_leads_to_the_print_of_the_whole() {
        let interner = Interner::shared();
        let owner = ChitchatId::new("a", 1, ([192, 0, 2, 1], 7946).into());
        let mut state = NodeState::for_test();
        let whole = |state: &NodeState| interner.print("a", state.key_values()).unwrap();
        let steps = || interner.shelf(|shelf| shelf.steps.len()).unwrap();
        state.set("k", "v");
        let begin = (whole(&state), state.max_version());
        let changes: [fn(&mut NodeState); 4] = [
            |state| state.set("l", "w"),
            |state| state.set("k", "x"),
            |state| state.delete("l"),
            |state| state.set("l", "y"),
        ];
        let mut before = begin;
        for (taken, change) in (1..).zip(changes) {
            change(&mut state);
            for _ in 0..2 {
                let print = interner.print_since(before, &owner, &state).unwrap();
                assert_eq!(print, whole(&state));
                assert_eq!(steps(), taken);
            }
            before = (whole(&state), state.max_version());
        }
        assert_eq!(interner.print_since(begin, &owner, &state), Some(whole(&state)));
        // What is gone without a word is told by the versions of what is left.
        let (mut one, mut other) = (NodeState::for_test(), NodeState::for_test());
        for state in [&mut one, &mut other] {
            state.set("k", "v");
            state.set("l", "v");
        }
        let before = (whole(&one), one.max_version());
        one.delete("k");
        other.delete("l");
        assert_ne!(interner.print_since(before, &owner, &one), interner.print_since(before, &owner, &other));
    }

    #[test]
    fn bytes_are_unpacked_once() {
        let (shared, alone) = (Interner::shared(), Interner::default());
        for (interner, times) in [(&shared, 1), (&alone, 3)] {
            let mut unpacked = 0;
            for _ in 0..3 {
                let body = interner.unpacked(b"packed", || {
                    unpacked += 1;
                    Some(Cow::Owned(b"body".to_vec()))
                });
                assert_eq!(&*body.unwrap(), b"body");
            }
            assert_eq!(unpacked, times);
            assert!(interner.unpacked(b"noise", || None).is_none());
            assert_eq!(&*interner.unpacked(b"plain", || Some(Cow::Borrowed(b"plain"))).unwrap(), b"plain");
        }
    }

    #[test]
    fn a_print_tells_boundaries_apart() {
        let interner = Interner::shared();
        let print =
            |key_values: &[(&'static str, &'static str)]| interner.print("a", key_values.iter().copied());
        assert_eq!(print(&[("k", "v")]), print(&[("k", "v")]));
        assert_ne!(print(&[("k", "v")]), print(&[("kv", "")]));
        assert_ne!(print(&[("k", "v"), ("l", "")]), print(&[("k", "v")]));
    }
}
