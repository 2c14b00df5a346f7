//! What must survive a restart: own members with their keys and the networks made here (the journal),
//! the generation, the last view. Written, fsynced, renamed.

mod directory;
mod entry;
mod memory;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::NetworkRecord;
use gossip::{KnownHost, View};

pub use directory::{DirStore, known, lock};
pub use entry::{Endpoint, Entry};
pub use memory::MemoryStore;
pub use turns::publish;

/// What a store held at start.
#[derive(Debug, Default)]
pub struct Stored {
    /// The last generation published; 0 for none.
    pub generation: u64,
    /// Wall-clock seconds of the last starts, oldest first.
    pub starts: Vec<u64>,
    /// The journal.
    pub entries: Vec<Entry>,
    /// Networks made on this host, as last published.
    pub networks: BTreeMap<NetworkId, NetworkRecord>,
    /// The other hosts as last seen.
    pub known: Vec<KnownHost>,
    /// Whether this host takes no new members.
    pub draining: bool,
    /// Files that could not be read, moved aside.
    pub damaged: Vec<PathBuf>,
}

/// The seam to stable storage.
pub trait Store: Send + Sync + 'static {
    /// Everything that was stored. Damaged files are moved aside and named.
    fn load(&self) -> io::Result<Stored>;
    /// Writes a journal entry; when this returns a new one survives a power cut, and of one that is replaced either
    /// state does: the next boot releases it either way.
    fn put(&self, entry: &Entry) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends a journal entry.
    fn remove(&self, member: &MemberId) -> impl Future<Output = io::Result<()>> + Send;
    /// Writes a network made here; when this returns it survives a power cut.
    fn put_network(
        &self,
        network: NetworkId,
        claim: &NetworkRecord,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// Forgets a network made here.
    fn remove_network(&self, network: NetworkId) -> impl Future<Output = io::Result<()>> + Send;
    /// Writes which private network one of Docker's is, by its id there; when this returns it survives a power cut.
    fn put_docker(&self, id: &str, network: NetworkId) -> impl Future<Output = io::Result<()>> + Send;
    /// Which private network one of Docker's is, where that was written.
    fn docker(&self, id: &str) -> io::Result<Option<NetworkId>>;
    /// Forgets one of Docker's networks.
    fn remove_docker(&self, id: &str) -> impl Future<Output = io::Result<()>> + Send;
    /// Writes whether this host takes no new members; when this returns it survives a power cut.
    fn set_draining(&self, draining: bool) -> impl Future<Output = io::Result<()>> + Send;
    /// Persists a generation before it is published.
    fn set_generation(&self, generation: u64) -> io::Result<()>;
    /// Notes a start, keeping the last few.
    fn set_starts(&self, starts: &[u64]) -> io::Result<()>;
    /// Keeps the hosts of a view but this one; a lost write costs a slower start, nothing else.
    fn set_known(&self, own: &HostId, view: Arc<View>) -> impl Future<Output = io::Result<()>> + Send;
}
