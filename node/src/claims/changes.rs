//! What differs between two views, host by host: what the ledger, the bench and the projection follow
//! by, so that one host's write costs what that host has. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use gossip::View;
use gossip::view::{Host, HostChange, Vanished};

use super::MemberKey;

/// The way from one view to the next.
#[derive(Debug)]
pub struct Changes<'v> {
    /// Hosts whose records, generation or standing changed, that came or went.
    pub hosts: Vec<HostChange<'v>>,
    /// Claims that vanished without being released, or are not remembered any longer.
    pub vanished: Vec<VanishedChange<'v>>,
    /// Where it leads.
    pub view: &'v View,
}

/// One claim that vanished, before and after.
#[derive(Debug, Clone, Copy)]
pub struct VanishedChange<'v> {
    /// Whose member it was, in which network, and which.
    pub key: &'v MemberKey,
    /// As it was; none when it vanished now.
    pub old: Option<&'v Vanished>,
    /// As it is; none when it is not remembered any longer.
    pub new: Option<&'v Vanished>,
}

impl<'v> Changes<'v> {
    /// What differs between two views.
    pub fn between(old: &'v View, new: &'v View) -> Changes<'v> {
        let hosts = new.hosts_since(old).filter(|change| !is_same(change.old, change.new)).collect();
        let mut changes = Changes { hosts, vanished: Vec::new(), view: new };
        each_change(&old.vanished, &new.vanished, |key, old, new| {
            if old.map(|v| v.since) != new.map(|v| v.since) || old != new {
                changes.vanished.push(VanishedChange { key, old, new });
            }
        });
        changes
    }
}

fn is_same(old: Option<&Host>, new: Option<&Host>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return false };
    Arc::ptr_eq(&old.records, &new.records)
        && (old.standing, old.generation, old.silent_since)
            == (new.standing, new.generation, new.silent_since)
}

/// Walks two ordered maps side by side and calls `each` for every key that is in either.
pub(super) fn each_change<'m, K: Ord, V>(
    old: &'m BTreeMap<K, V>,
    new: &'m BTreeMap<K, V>,
    mut each: impl FnMut(&'m K, Option<&'m V>, Option<&'m V>),
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let from = if order.is_le() { old.next() } else { None };
        let to = if order.is_ge() { new.next() } else { None };
        if let Some((key, _)) = from.or(to) {
            each(key, from.map(|(_, v)| v), to.map(|(_, v)| v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_either_is_visited_once_in_order() {
        let map = |pairs: &[(u8, u8)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let (old, new) = (map(&[(1, 1), (2, 2), (4, 4)]), map(&[(2, 2), (3, 3), (4, 5), (9, 9)]));
        let mut seen = Vec::new();
        each_change(&old, &new, |key, from, to| seen.push((*key, from.copied(), to.copied())));
        let expected = [
            (1, Some(1), None),
            (2, Some(2), Some(2)),
            (3, None, Some(3)),
            (4, Some(4), Some(5)),
            (9, None, Some(9)),
        ];
        assert_eq!(seen, expected);
    }
}
