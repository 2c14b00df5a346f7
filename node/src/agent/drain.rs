//! Draining: whoever wants a host empty says so to its agent. It takes no new members then, and names lead to those
//! it has no more; those stay until they are detached, with every connection they have.

use netplumb::kernel::Kernel;

use super::{Agent, EventKind};
use crate::attach::{Refusal, RefusalKind, unwritten};
use crate::store::Store;

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Drains this host, or takes it back; it is on disk when this returns.
    pub(super) async fn drain(&mut self, draining: bool) -> Result<(), Refusal> {
        if draining == self.journal.draining() {
            return Ok(());
        }
        // Within the loop: of two calls at once the disk has what holds here.
        self.store.set_draining(draining).await.map_err(|error| unwritten(&error))?;
        self.journal().drain(draining);
        let members = self.journal.live().count();
        let what = if draining {
            format!("no new members are taken, and names do not lead to the {members} here any more")
        } else {
            format!("new members are taken again, and names lead to the {members} here")
        };
        tracing::info!(draining, members, "{what}");
        self.events.note(EventKind::Draining, what);
        Ok(())
    }

    /// Refuses what is new on a host that is being drained.
    pub(super) fn not_draining(&self) -> Result<(), Refusal> {
        if !self.journal.draining() {
            return Ok(());
        }
        let detail = format!("host {} is being drained: it takes no new members", self.here.host);
        Err(Refusal::new(RefusalKind::Conflict, detail)
            .hint("start the container on another host, or take the drain back with `warren drain --off`"))
    }
}
