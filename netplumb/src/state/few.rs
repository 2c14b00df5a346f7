//! The addresses of a peer.

use std::net::IpAddr;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Addresses, each once and in order. Whoever has a thousand peers for each of fifty members has fifty thousand of
/// these: they take no more room than they need.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<IpAddr>")]
pub struct Addresses(Box<[IpAddr]>);

impl Addresses {
    /// Takes one out.
    pub fn remove(&mut self, address: &IpAddr) {
        self.0 = self.0.iter().copied().filter(|is| is != address).collect();
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(mut addresses: Vec<IpAddr>) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        Addresses(addresses.into_boxed_slice())
    }
}

impl<const N: usize> From<[IpAddr; N]> for Addresses {
    fn from(addresses: [IpAddr; N]) -> Self {
        addresses.into_iter().collect()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Vec::from_iter(addresses).into()
    }
}

impl Extend<IpAddr> for Addresses {
    fn extend<T: IntoIterator<Item = IpAddr>>(&mut self, addresses: T) {
        *self = self.iter().copied().chain(addresses).collect();
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        &self.0
    }
}

impl IntoIterator for Addresses {
    type Item = IpAddr;
    type IntoIter = std::vec::IntoIter<IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = std::slice::Iter<'a, IpAddr>;

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
        assert_eq!(Vec::from_iter(addresses), [a, c]);
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
