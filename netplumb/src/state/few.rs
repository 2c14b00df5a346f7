//! Sets of one or two.

use std::net::IpAddr;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// A few things, each once and in order: a peer's addresses, a row's tunnel ends. Whoever has a thousand peers for each
/// of fifty members has fifty thousand of these: they take no more room than they need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<T>", bound(deserialize = "T: Ord + Deserialize<'de>"))]
pub struct Few<T>(Box<[T]>);

/// The addresses of a peer.
pub type Addresses = Few<IpAddr>;

impl<T: Ord> Few<T> {
    /// Puts one in.
    pub fn insert(&mut self, item: T) {
        self.extend([item]);
    }

    /// Takes one out.
    pub fn remove(&mut self, item: &T) {
        self.retain(|is| is != item);
    }

    /// Takes out what is not to be kept.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        let mut items = std::mem::take(&mut self.0).into_vec();
        items.retain(keep);
        self.0 = items.into_boxed_slice();
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few(Box::default())
    }
}

impl<T: Ord> From<Vec<T>> for Few<T> {
    fn from(mut items: Vec<T>) -> Self {
        items.sort_unstable();
        items.dedup();
        Few(items.into_boxed_slice())
    }
}

impl<T: Ord, const N: usize> From<[T; N]> for Few<T> {
    fn from(items: [T; N]) -> Self {
        items.into_iter().collect()
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Vec::from_iter(items).into()
    }
}

impl<T: Ord> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        *self = std::mem::take(self).into_iter().chain(items).collect();
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once_and_in_order() {
        let [a, b, c] = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|address| address.parse::<IpAddr>().unwrap());
        let mut addresses = Addresses::from([c, a, c]);
        assert_eq!(*addresses, [a, c]);
        addresses.extend([b, a]);
        assert_eq!(*addresses, [a, b, c]);
        addresses.remove(&b);
        assert_eq!(*addresses, [a, c]);
        addresses.insert(b);
        addresses.retain(|is| *is != a);
        assert_eq!(Vec::from_iter(addresses), [b, c]);
    }

    /// An agent and an engine of another version understand each other.
    #[test]
    fn they_are_written_as_a_set_is() {
        let addresses = ["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let set = std::collections::BTreeSet::from(addresses);
        let written = postcard::to_allocvec(&Addresses::from(addresses)).unwrap();
        assert_eq!(written, postcard::to_allocvec(&set).unwrap());
        assert_eq!(postcard::from_bytes::<Addresses>(&written).unwrap(), addresses.into());
    }
}
