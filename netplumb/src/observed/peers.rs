//! The peers of an interface, each address with one of them (cryptokey routing).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;

use super::ObservedPeer;
use crate::state::Key;

/// Peers by public key; an address belongs to the last one that was given it. A thousand join one by one, so
/// that whom an address is taken from is looked up, not searched for.
#[derive(Clone, Default)]
pub struct Peers {
    by_key: BTreeMap<Key, ObservedPeer>,
    owners: BTreeMap<IpAddr, Key>,
}

impl Peers {
    /// Puts a peer there, or in the place of what it was.
    pub fn insert(&mut self, key: Key, peer: ObservedPeer) {
        self.remove(&key);
        for address in &peer.allowed {
            let owner = self.owners.insert(*address, key).and_then(|owner| self.by_key.get_mut(&owner));
            owner.into_iter().for_each(|owner| owner.allowed.remove(address));
        }
        self.by_key.insert(key, peer);
    }

    /// Takes a peer away.
    pub fn remove(&mut self, key: &Key) {
        for address in self.by_key.remove(key).into_iter().flat_map(|peer| peer.allowed) {
            self.owners.remove(&address);
        }
    }

    /// Takes some peers away.
    pub fn remove_all(&mut self, keys: &BTreeSet<Key>) {
        keys.iter().for_each(|key| self.remove(key));
    }

    /// Takes all peers away.
    pub fn clear(&mut self) {
        *self = Peers::default();
    }
}

impl Deref for Peers {
    type Target = BTreeMap<Key, ObservedPeer>;

    fn deref(&self) -> &Self::Target {
        &self.by_key
    }
}

impl PartialEq for Peers {
    fn eq(&self, other: &Self) -> bool {
        self.by_key == other.by_key
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.by_key.fmt(f)
    }
}

impl FromIterator<(Key, ObservedPeer)> for Peers {
    fn from_iter<T: IntoIterator<Item = (Key, ObservedPeer)>>(peers: T) -> Self {
        let mut all = Peers::default();
        peers.into_iter().for_each(|(key, peer)| all.insert(key, peer));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(lasts: &[u8]) -> ObservedPeer {
        let allowed = lasts.iter().map(|last| IpAddr::from([10, 240, 0, *last])).collect();
        ObservedPeer { endpoint: None, allowed }
    }

    #[test]
    fn an_address_belongs_to_the_last_one_that_was_given_it() {
        let (a, b) = (Key([1; 32]), Key([2; 32]));
        let has = |peers: &Peers, key| peers.get(&key).map(|peer: &ObservedPeer| peer.allowed.clone());
        let mut peers: Peers = [(a, peer(&[1, 2])), (b, peer(&[3]))].into_iter().collect();
        peers.insert(b, peer(&[2, 4]));
        assert_eq!(has(&peers, a), Some(peer(&[1]).allowed));
        assert_eq!(has(&peers, b), Some(peer(&[2, 4]).allowed));
        // What a peer gave up is nobody's.
        peers.insert(a, peer(&[3]));
        assert_eq!(has(&peers, b), Some(peer(&[2, 4]).allowed));
        peers.remove_all(&BTreeSet::from([b]));
        peers.insert(b, peer(&[1]));
        assert_eq!(has(&peers, a), Some(peer(&[3]).allowed));
        assert_eq!(peers.len(), 2);
    }
}
