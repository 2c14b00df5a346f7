//! Parsed records, once per process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest as _};

use crate::view::HostRecords;

/// What one host published, told apart from everything else by its hash.
pub(crate) type Print = [u8; 16];

/// Shares the parsed records of hosts between the agents of one process: a simulated region has a
/// thousand agents that all hold the same records, and none of them parses or keeps them twice.
#[derive(Clone, Default)]
pub struct Interner {
    shared: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    records: BTreeMap<Print, Weak<HostRecords>>,
    /// At this length the records nobody has any more are taken out.
    swept_at: usize,
}

impl Interner {
    pub(crate) fn get(&self, print: &Print) -> Option<Arc<HostRecords>> {
        self.shelf(|shelf| shelf.records.get(print)?.upgrade())
    }

    pub(crate) fn put(&self, print: Print, records: &Arc<HostRecords>) {
        self.shelf(|shelf| {
            shelf.records.insert(print, Arc::downgrade(records));
            if shelf.records.len() > shelf.swept_at {
                shelf.records.retain(|_, records| records.strong_count() > 0);
                shelf.swept_at = 64 + 2 * shelf.records.len();
            }
        });
    }

    fn shelf<T>(&self, with: impl FnOnce(&mut Shelf) -> T) -> T {
        with(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Interner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interner").finish_non_exhaustive()
    }
}

/// The print of an owner's live key-values, which come in the order of their keys.
pub(crate) fn print<'a>(node_id: &str, key_values: impl Iterator<Item = (&'a str, &'a str)>) -> Print {
    let mut hash = Blake2b::<U16>::new();
    let mut text = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    text(node_id);
    for (key, value) in key_values {
        text(key);
        text(value);
    }
    hash.finalize().into()
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
        let (one, other) = (Interner::default(), Interner::default());
        let copy = one.clone();
        let a = records("a");
        one.put([1; 16], &a);
        assert!(copy.get(&[1; 16]).is_some_and(|found| Arc::ptr_eq(&found, &a)));
        assert!(other.get(&[1; 16]).is_none());
        drop(a);
        assert!(copy.get(&[1; 16]).is_none());
        for number in 0..1000_u64 {
            let mut print = [0; 16];
            print[..8].copy_from_slice(&number.to_le_bytes());
            one.put(print, &records("b"));
        }
        assert!(one.shelf(|shelf| shelf.records.len()) < 100);
    }

    #[test]
    fn a_print_tells_boundaries_apart() {
        let print = |key_values: &[(&'static str, &'static str)]| print("a", key_values.iter().copied());
        assert_eq!(print(&[("k", "v")]), print(&[("k", "v")]));
        assert_ne!(print(&[("k", "v")]), print(&[("kv", "")]));
        assert_ne!(print(&[("k", "v"), ("l", "")]), print(&[("k", "v")]));
    }
}
