//! Whether other names are passed on for a network's containers: what callers say of it.

use gossip::id::NetworkId;
use gossip::record::{Forwarding, NetworkRecord};
use netplumb::kernel::Kernel;

use super::{Agent, EventKind};
use crate::attach::{Refusal, RefusalKind};
use crate::store::{Entry, Store};

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Says it of a network that was made here or has members here; the region follows. Answers what is to be kept
    /// of one made here.
    pub(super) fn set_forwarding(
        &mut self,
        network: NetworkId,
        forward: bool,
    ) -> Result<Option<NetworkRecord>, Refusal> {
        let own = self.journal.live().find(|e| e.network == network).map(|e| &e.claim);
        let claim = own.or(self.journal.created().get(&network)).cloned().ok_or_else(|| {
            Refusal::new(RefusalKind::NotFound, format!("{network} has no member on this host")).hint(
                "ask on a host that `warren ps --all` lists with it, or give `--forward` to its first attach",
            )
        })?;
        self.say_forwarding(network, claim, Some(forward));
        Ok(self.journal.created().get(&network).cloned())
    }

    /// The claim of a network with what a caller says, if that is new; all members here have it at once.
    pub(super) fn say_forwarding(
        &mut self,
        network: NetworkId,
        mut claim: NetworkRecord,
        said: Option<bool>,
    ) -> NetworkRecord {
        let Some(forward) = said.filter(|forward| *forward != claim.forwards()) else { return claim };
        claim.forwarding = Some(Forwarding { counter: self.ledger.next_counter(), off: !forward });
        let own: Vec<Entry> = self.journal.live().filter(|e| e.network == network).cloned().collect();
        for entry in own {
            self.change(Entry { claim: claim.clone(), ..entry });
        }
        if self.journal.created().contains_key(&network) {
            self.change_created(network, claim.clone());
        }
        self.tell_forwarding(network, forward);
        claim
    }

    /// Tells people.
    pub(super) fn tell_forwarding(&mut self, network: NetworkId, forward: bool) {
        let what = if forward { "passed on" } else { "not passed on any more" };
        tracing::info!(%network, forward, "other names");
        self.events.note(EventKind::Forwarding, format!("{network}: other names are {what}"));
    }
}
