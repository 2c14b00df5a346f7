//! Parsed records and node ids, once per process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};

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
    texts: BTreeSet<Arc<str>>,
    /// At these lengths what nobody has any more is taken out.
    records_max: usize,
    texts_max: usize,
}

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

    pub(crate) fn get(&self, print: &Print) -> Option<Arc<HostRecords>> {
        self.shelf(|shelf| shelf.records.get(print)?.upgrade()).flatten()
    }

    pub(crate) fn put(&self, print: Print, records: &Arc<HostRecords>) {
        self.shelf(|shelf| {
            shelf.records.insert(print, Arc::downgrade(records));
            if shelf.records.len() > shelf.records_max {
                shelf.records.retain(|_, records| records.strong_count() > 0);
                shelf.records_max = room_for(shelf.records.len());
            }
        });
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
        one.put(1, &a);
        assert!(copy.get(&1).is_some_and(|found| Arc::ptr_eq(&found, &a)));
        assert!(other.get(&1).is_none());
        drop(a);
        assert!(copy.get(&1).is_none());
        for number in 0..1000_u64 {
            one.put(2 + number, &records("b"));
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
