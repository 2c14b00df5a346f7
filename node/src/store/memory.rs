//! A store in memory with the faults of a disk: for tests and the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gossip::View;
use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::NetworkRecord;

use super::{Entry, Store, Stored};

/// A store in memory; clones share what they hold, so that a restarted node finds it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    generation: u64,
    starts: Vec<u64>,
    entries: BTreeMap<MemberId, Entry>,
    networks: BTreeMap<NetworkId, NetworkRecord>,
    docker: BTreeMap<String, NetworkId>,
    /// Whose store it is, and what it last saw: encoded when it is read, which is seldom.
    known: Option<(HostId, Arc<View>)>,
    draining: bool,
    /// Entries of which only a part was written.
    torn: BTreeSet<MemberId>,
    failing: bool,
    tear_next: bool,
    slow: Duration,
}

impl MemoryStore {
    /// From now on every write fails, as on a full disk, or none does.
    pub fn fail_writes(&self, failing: bool) {
        self.with(|held| held.failing = failing);
    }

    /// Of the next journal entry only a part reaches the disk, and the disk says that all did: the
    /// next load finds it damaged.
    pub fn tear_next(&self) {
        self.with(|held| held.tear_next = true);
    }

    /// How long a journal entry takes to be written from now on. One whose writer ends before is
    /// not written.
    pub fn slow_writes(&self, slow: Duration) {
        self.with(|held| held.slow = slow);
    }

    /// Everything that was stored is lost: an empty state directory.
    pub fn wipe(&self) {
        self.with(|held| {
            let Held { failing, tear_next, slow, .. } = *held;
            *held = Held { failing, tear_next, slow, ..Held::default() };
        });
    }

    /// What was stored becomes a copy of what another store holds: a machine's image, started twice.
    pub fn copy_from(&self, other: &MemoryStore) {
        let (generation, starts, known) =
            other.with(|held| (held.generation, held.starts.clone(), held.known.clone()));
        let (entries, networks, docker) =
            other.with(|held| (held.entries.clone(), held.networks.clone(), held.docker.clone()));
        let draining = other.with(|held| held.draining);
        self.with(|held| {
            (held.generation, held.starts, held.known) = (generation, starts, known);
            (held.entries, held.networks, held.docker) = (entries, networks, docker);
            held.draining = draining;
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, work: impl FnOnce(&mut Held)) -> io::Result<()> {
        self.with(|held| match held.failing {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => {
                work(held);
                Ok(())
            }
        })
    }

    async fn delay(&self) {
        let slow = self.with(|held| held.slow);
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
    }
}

impl Store for MemoryStore {
    fn load(&self) -> io::Result<Stored> {
        Ok(self.with(|held| {
            let torn = std::mem::take(&mut held.torn);
            held.entries.retain(|member, _| !torn.contains(member));
            Stored {
                generation: held.generation,
                starts: held.starts.clone(),
                entries: held.entries.values().cloned().collect(),
                networks: held.networks.clone(),
                known: held.known.as_ref().map(|(own, view)| view.known(own)).unwrap_or_default(),
                draining: held.draining,
                damaged: torn.iter().map(|member| format!("members/{member}.damaged").into()).collect(),
            }
        }))
    }

    async fn put(&self, entry: &Entry) -> io::Result<()> {
        self.delay().await;
        self.write(|held| {
            match std::mem::take(&mut held.tear_next) {
                true => held.torn.insert(entry.member.clone()),
                false => held.torn.remove(&entry.member),
            };
            held.entries.insert(entry.member.clone(), entry.clone());
        })
    }

    async fn remove(&self, member: &MemberId) -> io::Result<()> {
        self.delay().await;
        self.write(|held| _ = held.entries.remove(member))
    }

    async fn put_network(&self, network: NetworkId, claim: &NetworkRecord) -> io::Result<()> {
        self.delay().await;
        self.write(|held| _ = held.networks.insert(network, claim.clone()))
    }

    async fn remove_network(&self, network: NetworkId) -> io::Result<()> {
        self.delay().await;
        self.write(|held| _ = held.networks.remove(&network))
    }

    async fn put_docker(&self, id: &str, network: NetworkId) -> io::Result<()> {
        self.delay().await;
        self.write(|held| _ = held.docker.insert(id.to_owned(), network))
    }

    fn docker(&self, id: &str) -> io::Result<Option<NetworkId>> {
        Ok(self.with(|held| held.docker.get(id).copied()))
    }

    async fn remove_docker(&self, id: &str) -> io::Result<()> {
        self.delay().await;
        self.write(|held| _ = held.docker.remove(id))
    }

    async fn set_draining(&self, draining: bool) -> io::Result<()> {
        self.delay().await;
        self.write(|held| held.draining = draining)
    }

    fn set_generation(&self, generation: u64) -> io::Result<()> {
        self.write(|held| held.generation = generation)
    }

    fn set_starts(&self, starts: &[u64]) -> io::Result<()> {
        self.write(|held| held.starts = starts.to_vec())
    }

    async fn set_known(&self, own: &HostId, view: Arc<View>) -> io::Result<()> {
        self.write(|held| held.known = Some((own.clone(), view)))
    }
}
