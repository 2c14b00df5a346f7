//! What of each network changed from one view to the next: what was not touched is not looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use gossip::id::NetworkId;

/// The networks something happened to.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Touched {
    networks: BTreeMap<NetworkId, Extent>,
    everything: bool,
}

/// How much of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// What stands at these addresses; none where it was ghosts, or the network's books are closed.
    Addresses(BTreeSet<Ipv4Addr>),
    /// All of it.
    Whole,
}

impl Touched {
    /// All of every network.
    pub fn everything() -> Touched {
        Touched { everything: true, ..Touched::default() }
    }

    /// Adds what stands at some addresses.
    pub fn at(&mut self, network: NetworkId, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        let extent = self.networks.entry(network).or_insert(Extent::Addresses(BTreeSet::new()));
        if let Extent::Addresses(touched) = extent {
            touched.extend(addresses);
        }
    }

    /// Adds all of a network.
    pub fn whole(&mut self, network: NetworkId) {
        self.networks.insert(network, Extent::Whole);
    }

    /// Adds what else was touched.
    pub fn extend(&mut self, other: Touched) {
        self.everything |= other.everything;
        for (network, extent) in other.networks {
            match extent {
                Extent::Addresses(addresses) => self.at(network, addresses),
                Extent::Whole => self.whole(network),
            }
        }
    }

    /// How much of a network was touched, if anything.
    pub fn of(&self, network: &NetworkId) -> Option<&Extent> {
        if self.everything { Some(&Extent::Whole) } else { self.networks.get(network) }
    }
}
