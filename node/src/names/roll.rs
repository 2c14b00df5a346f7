//! Who is in one network's zone, kept from change to change.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use gossip::View;
use gossip::id::NetworkId;
use ipnet::Ipv4Net;
use resolver::{Draft, Zone, ZoneError, ZoneMember};

use crate::claims::{Extent, Ledger};
use crate::project;

/// The members of one zone.
pub(super) struct Roll {
    network: NetworkId,
    draft: Draft,
    /// The sum of the members' prints.
    prints: u64,
}

impl Roll {
    /// Nobody yet. Errors as [`Draft::new`].
    pub(super) fn new(
        network: NetworkId,
        zone: &str,
        ttl_s: u32,
        subnet: Ipv4Net,
    ) -> Result<Roll, ZoneError> {
        Ok(Roll { network, draft: Draft::new(&network.to_string(), zone, ttl_s, subnet)?, prints: 0 })
    }

    /// Takes in what was touched of the network; whether that changed anybody's names.
    pub(super) fn follow(&mut self, view: &View, ledger: &Ledger, touched: &Extent) -> bool {
        let addresses = match touched {
            Extent::Addresses(addresses) => addresses.clone(),
            Extent::Whole => self.addresses(ledger),
        };
        addresses.into_iter().fold(false, |changed, address| {
            let member = project::zone_member(view, ledger, self.network, address);
            self.set(address, member) || changed
        })
    }

    /// How long answers may be kept, and which addresses have names; whether that is something new.
    pub(super) fn set_terms(&mut self, ttl_s: u32, subnet: Ipv4Net) -> bool {
        self.draft.set_terms(ttl_s, subnet)
    }

    pub(super) fn zone(&mut self) -> Zone {
        self.draft.zone(project::serial(self.prints))
    }

    /// Every address that somebody has, or had.
    fn addresses(&self, ledger: &Ledger) -> BTreeSet<Ipv4Addr> {
        let claimed = ledger.claims(self.network).addresses().map(|(address, _)| address);
        claimed.chain(self.draft.members().map(|member| member.address)).collect()
    }

    fn set(&mut self, address: Ipv4Addr, member: Option<ZoneMember>) -> bool {
        let before = self.draft.at(address);
        if before == member.as_ref() {
            return false;
        }
        let gone = before.map_or(0, project::print);
        let come = member.as_ref().map_or(0, project::print);
        self.prints = self.prints.wrapping_sub(gone);
        match member.map(|member| self.draft.put(member)) {
            None => self.draft.remove(address),
            Some(Ok(())) => self.prints = self.prints.wrapping_add(come),
            Some(Err(error)) => tracing::error!(network = %self.network, "a name cannot be served: {error}"),
        }
        true
    }
}
