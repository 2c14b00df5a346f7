//! Networks made here: they have a subnet of their own before their first container, and stay without one.

use gossip::id::{HostId, NetworkId};
use gossip::record::{MemberState, NetworkRecord};
use ipnet::Ipv4Net;
use netplumb::kernel::Kernel;

use super::Agent;
use super::claim::again;
use crate::attach::{Halt, Refusal, RefusalKind, Round};
use crate::claims::desk::Wanted;
use crate::claims::{DEFAULT_SUBNET, Need, Told};
use crate::store::Store;

/// Most networks made on one host: each is a record that every host of the region keeps.
const CREATED_MAX: usize = 512;

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Makes a network, or says whom to ask for its VNI. One that is there is as good, with the same subnet.
    pub(super) fn create(
        &mut self,
        network: NetworkId,
        subnet: Option<Ipv4Net>,
        told: Box<Told>,
    ) -> Round<NetworkRecord> {
        self.not_fenced()?;
        if let Some(why) = self.outside() {
            return Err(Halt::Later(told, again(), why));
        }
        let made = self.journal.created();
        if made.len() >= CREATED_MAX && !made.contains_key(&network) {
            let detail = format!("{CREATED_MAX} networks were made on this host, more than it may publish");
            return Err(Refusal::new(RefusalKind::Conflict, detail)
                .hint("`warren network rm` those that are not used, or ask on another host")
                .into());
        }
        let wanted = subnet.unwrap_or(DEFAULT_SUBNET);
        let need = Need { network, subnet: wanted, address: Wanted::Nothing, number: None };
        let claim = self.find(&need, told)?.claim;
        if let Some(subnet) = subnet.filter(|subnet| *subnet != claim.subnet) {
            let detail = format!("{network} has the subnet {} already, not {subnet}", claim.subnet);
            return Err(Refusal::new(RefusalKind::Conflict, detail)
                .hint(
                    "a network has one subnet for good: take another network, or detach all its containers, \
                     `warren network rm` it and make it anew when their addresses have rested",
                )
                .into());
        }
        self.journal().create(network, claim.clone());
        Ok(claim)
    }

    /// Forgets a network that was made here and has no members any more. Whether there was one.
    pub(super) fn forget(&mut self, network: NetworkId) -> Result<bool, Refusal> {
        let live = self.followed.members().filter(|(.., record)| record.state != MemberState::Released);
        let members = live.filter(|(_, _, of, ..)| **of == network).count();
        if members > 0 {
            return Err(Refusal::new(RefusalKind::Conflict, format!("{network} has {members} members"))
                .hint(format!("detach them first; `warren ps --all --network {network}` lists them")));
        }
        if self.journal.created().contains_key(&network) {
            return Ok(self.journal().forget(network));
        }
        match self.made_by(network).as_slice() {
            [] => Ok(false),
            hosts => {
                let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
                let detail = format!("{network} was not made on this host, but on {}", hosts.join(", "));
                Err(Refusal::new(RefusalKind::NotFound, detail).hint("ask there"))
            }
        }
    }

    /// The other hosts that have a word on a network and no member of it.
    fn made_by(&self, network: NetworkId) -> Vec<HostId> {
        let keeps = |(host, h): (&HostId, &gossip::view::Host)| {
            let member = h.records.members.keys().any(|(of, _)| *of == network);
            let made = *host != self.here.host && h.records.networks.contains_key(&network) && !member;
            made.then(|| host.clone())
        };
        self.followed.hosts.iter().filter_map(keeps).collect()
    }

    /// Changes a network made here, on disk too.
    pub(super) fn change_created(&mut self, network: NetworkId, claim: NetworkRecord) {
        self.journal().create(network, claim.clone());
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.put_network(network, &claim).await {
                tracing::error!(%network, "journal: {error}");
            }
        });
    }
}
