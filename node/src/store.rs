//! What must survive a restart: own members with their keys and the networks made here (the journal),
//! the generation, the last view. Written, fsynced, renamed.

mod memory;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::port::Port;
use gossip::record::{MemberState, NetworkRecord, PublicKey};
use gossip::{KnownHost, View};
use netplumb::state::{NetnsRef, PrivateKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use memory::MemoryStore;

/// One journal entry: a member of this host from the claim of its address until the end of its
/// quarantine. It names everything of ours in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The member.
    pub member: MemberId,
    /// The name its caller knows it by.
    pub container: String,
    /// Its network.
    pub network: NetworkId,
    /// The network's VNI and subnet as last published.
    pub claim: NetworkRecord,
    /// Its app.
    pub app: AppId,
    /// Its process type.
    pub process: ProcessType,
    /// Its number.
    pub ordinal: Option<u32>,
    /// Whether the caller chose the number.
    pub ordinal_chosen: bool,
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Inode of the namespace: cannot be used again while our DNS sockets stand in it.
    pub inode: u64,
    /// The boot the namespace belongs to.
    pub boot: String,
    /// Interface in the container.
    pub ifname: String,
    /// Claimed address.
    pub address: Ipv4Addr,
    /// Address in the ULA, where it is programmed.
    pub address6: Option<Ipv6Addr>,
    /// The container takes IPv6 addresses; whether it has one depends on the region's MTU.
    #[serde(default)]
    pub ipv6: bool,
    /// WireGuard private key in base64; the file is readable by root alone.
    #[serde(with = "private_key")]
    pub private_key: PrivateKey,
    /// Its public half: deriving it takes a scalar multiplication, and every look at the journal
    /// needs it.
    pub public_key: PublicKey,
    /// The ports it publishes.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Where in its life it is.
    pub state: MemberState,
    /// The counter of the claim.
    pub counter: u64,
    /// How far its runtime is with it, where that asks by libnetwork's protocol.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
}

/// A member whose runtime asks for an address first, names the container then, and takes the interface into it last
/// (libnetwork).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// The address was asked for; whose it is will be said.
    Reserved,
    /// The interface waits in the host's namespace.
    Held {
        /// The runtime's id of the endpoint.
        id: String,
        /// Where the container's namespace will be.
        sandbox: PathBuf,
    },
    /// The runtime has taken the interface into the container.
    Taken {
        /// The runtime's id of the endpoint.
        id: String,
    },
}

impl Entry {
    /// Its interface waits in the host's namespace for the runtime.
    pub fn is_held(&self) -> bool {
        matches!(self.endpoint, Some(Endpoint::Held { .. }))
    }

    /// Its runtime has said who it is.
    pub fn is_named(&self) -> bool {
        self.app != Entry::nobody()
    }

    /// Its runtime has taken it into the container, and it is not published as ready.
    pub fn is_unfinished(&self) -> bool {
        self.state == MemberState::Joining && matches!(self.endpoint, Some(Endpoint::Taken { .. }))
    }

    /// The app of a member whose runtime has not said who it is.
    pub fn nobody() -> AppId {
        "ap-00000000-0000-0000-0000-000000000000".parse().expect("a nil id is an id")
    }

    /// The runtime's id of it.
    pub fn endpoint_id(&self) -> Option<&str> {
        match &self.endpoint {
            Some(Endpoint::Held { id, .. } | Endpoint::Taken { id }) => Some(id),
            Some(Endpoint::Reserved) | None => None,
        }
    }
}

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
    /// Files that could not be read, moved aside.
    pub damaged: Vec<PathBuf>,
}

/// The seam to stable storage.
pub trait Store: Send + Sync + 'static {
    /// Everything that was stored. Damaged files are moved aside and named.
    fn load(&self) -> io::Result<Stored>;
    /// Writes a journal entry; when this returns it survives a power cut.
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
    /// Persists a generation before it is published.
    fn set_generation(&self, generation: u64) -> io::Result<()>;
    /// Notes a start, keeping the last few.
    fn set_starts(&self, starts: &[u64]) -> io::Result<()>;
    /// Keeps the hosts of a view but this one; a lost write costs a slower start, nothing else.
    fn set_known(&self, own: &HostId, view: Arc<View>) -> impl Future<Output = io::Result<()>> + Send;
}

/// A directory: `members/<member>.json`, `networks/<network>.json`, `docker/<Docker's id>`, `generation`, `starts`,
/// `view.json`.
#[derive(Debug, Clone)]
pub struct DirStore {
    dir: Arc<PathBuf>,
    // Held for the life of the store: two agents on one state directory would overwrite each other.
    _lock: Arc<File>,
    turns: Arc<Turns>,
}

/// Who wrote which file last: of two writers at once, the one that was called later.
#[derive(Debug, Default)]
struct Turns {
    next: AtomicU64,
    last: Mutex<BTreeMap<PathBuf, u64>>,
}

impl DirStore {
    /// Opens the directory, making it (0700) when missing.
    ///
    /// # Errors
    /// The directory cannot be made or written, or another agent uses it.
    pub fn open(dir: &Path) -> io::Result<DirStore> {
        let parts = ["members", "networks", "docker"].map(|name| dir.join(name));
        for part in &parts {
            fs::DirBuilder::new_private().create(part)?;
        }
        let lock = lock(dir, "state_dir")?;
        for half_written in parts.iter().map(PathBuf::as_path).chain([dir]) {
            for file in fs::read_dir(half_written)? {
                let path = file?.path();
                if path.extension().is_some_and(|e| e == "new") {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(DirStore { dir: Arc::new(dir.to_owned()), _lock: Arc::new(lock), turns: Arc::default() })
    }

    fn member_path(&self, member: &MemberId) -> PathBuf {
        self.dir.join("members").join(format!("{member}.json"))
    }

    fn network_path(&self, network: NetworkId) -> PathBuf {
        self.dir.join("networks").join(format!("{network}.json"))
    }

    fn docker_path(&self, id: &str) -> io::Result<PathBuf> {
        // It comes from outside, and shall name a file in that directory alone.
        let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| self.dir.join("docker").join(id)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{id:?} is no id of Docker's"))
        })
    }

    /// What the JSON files of a directory hold, by their names without the ending.
    fn read_all<T: DeserializeOwned>(
        &self,
        directory: &str,
        damaged: &mut Vec<PathBuf>,
    ) -> io::Result<Vec<(String, T)>> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.dir.join(directory))?.map(|f| Ok(f?.path())).collect::<io::Result<_>>()?;
        files.sort();
        let mut all = Vec::new();
        for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "json")) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match serde_json::from_slice(&fs::read(path)?) {
                Ok(value) => all.push((name, value)),
                Err(_) => set_aside(path, damaged)?,
            }
        }
        Ok(all)
    }

    fn read_number(&self, name: &str, damaged: &mut Vec<PathBuf>) -> io::Result<Vec<u64>> {
        let path = self.dir.join(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        match text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>() {
            Ok(numbers) => Ok(numbers),
            Err(_) => set_aside(&path, damaged).map(|()| Vec::new()),
        }
    }
}

/// Holds a directory for this process alone, as long as the file is kept.
///
/// # Errors
/// The directory is not there or cannot be written, or another agent holds it; `key` is the
/// configuration's name for it.
pub fn lock(dir: &Path, key: &str) -> io::Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        let text = format!("{} is in use by another agent; give this one its own {key}", dir.display());
        io::Error::new(io::ErrorKind::AddrInUse, text)
    })?;
    Ok(lock)
}

/// The other hosts as last seen by the agent whose directory this is, which may be running.
///
/// # Errors
/// They cannot be read; `InvalidData` for what makes no sense.
pub fn known(dir: &Path) -> io::Result<Vec<KnownHost>> {
    match fs::read(dir.join(VIEW)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Where the other hosts are kept.
const VIEW: &str = "view.json";

trait NewPrivate {
    fn new_private() -> fs::DirBuilder;
}

impl NewPrivate for fs::DirBuilder {
    fn new_private() -> fs::DirBuilder {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
    }
}

fn set_aside(path: &Path, damaged: &mut Vec<PathBuf>) -> io::Result<()> {
    let aside = path.with_extension("damaged");
    fs::rename(path, &aside)?;
    damaged.push(aside);
    Ok(())
}

impl Turns {
    fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Write beside, fsync, rename, fsync the directory: the file is the old or the new, never
    /// half, and never older than what was written in a later turn.
    fn replace(&self, turn: u64, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let beside = path.with_extension(format!("{turn}.new"));
        let written = (|| {
            let mut file =
                File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            if durable {
                file.sync_data()?;
            }
            self.put_in_place(turn, &beside, path)?;
            match path.parent() {
                Some(parent) if durable => File::open(parent)?.sync_all(),
                _ => Ok(()),
            }
        })();
        written.map_err(|e| {
            // What a full disk keeps of it would never be read. That it cannot go either is no news.
            let _ = fs::remove_file(&beside);
            io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display()))
        })
    }

    fn put_in_place(&self, turn: u64, beside: &Path, path: &Path) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(path).is_some_and(|later| *later > turn) {
            return fs::remove_file(beside);
        }
        fs::rename(beside, path)?;
        last.insert(path.to_owned(), turn);
        Ok(())
    }

    /// Removes a file for good: nobody writes it any more, its quarantine is over.
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Store for DirStore {
    fn load(&self) -> io::Result<Stored> {
        let mut damaged = Vec::new();
        let entries = self.read_all("members", &mut damaged)?.into_iter().map(|(_, entry)| entry).collect();
        let networks = self.read_all("networks", &mut damaged)?.into_iter();
        let networks = networks.filter_map(|(name, claim)| Some((name.parse().ok()?, claim))).collect();
        let generation = self.read_number("generation", &mut damaged)?.first().copied().unwrap_or(0);
        let starts = self.read_number("starts", &mut damaged)?;
        let known = match known(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                set_aside(&self.dir.join(VIEW), &mut damaged).map(|()| Vec::new())?
            }
            known => known?,
        };
        Ok(Stored { generation, starts, entries, networks, known, damaged })
    }

    async fn put(&self, entry: &Entry) -> io::Result<()> {
        let (path, bytes) = (self.member_path(&entry.member), serde_json::to_vec(entry)?);
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, &bytes, true)).await
    }

    async fn remove(&self, member: &MemberId) -> io::Result<()> {
        let path = self.member_path(member);
        let turns = self.turns.clone();
        blocking(move || turns.remove(&path)).await
    }

    async fn put_network(&self, network: NetworkId, claim: &NetworkRecord) -> io::Result<()> {
        let (path, bytes) = (self.network_path(network), serde_json::to_vec(claim)?);
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, &bytes, true)).await
    }

    async fn remove_network(&self, network: NetworkId) -> io::Result<()> {
        let (path, turns) = (self.network_path(network), self.turns.clone());
        blocking(move || turns.remove(&path)).await
    }

    async fn put_docker(&self, id: &str, network: NetworkId) -> io::Result<()> {
        let (path, text) = (self.docker_path(id)?, network.to_string());
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, text.as_bytes(), true)).await
    }

    fn docker(&self, id: &str) -> io::Result<Option<NetworkId>> {
        match fs::read_to_string(self.docker_path(id)?) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn remove_docker(&self, id: &str) -> io::Result<()> {
        let (path, turns) = (self.docker_path(id)?, self.turns.clone());
        blocking(move || turns.remove(&path)).await
    }

    fn set_generation(&self, generation: u64) -> io::Result<()> {
        let path = self.dir.join("generation");
        self.turns.replace(self.turns.take(), &path, generation.to_string().as_bytes(), true)
    }

    fn set_starts(&self, starts: &[u64]) -> io::Result<()> {
        let text: Vec<String> = starts.iter().map(u64::to_string).collect();
        self.turns.replace(self.turns.take(), &self.dir.join("starts"), text.join(" ").as_bytes(), false)
    }

    async fn set_known(&self, own: &HostId, view: Arc<View>) -> io::Result<()> {
        let (path, own) = (self.dir.join(VIEW), own.clone());
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, &serde_json::to_vec(&view.known(&own))?, false)).await
    }
}

mod private_key {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use netplumb::state::PrivateKey;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(key: &PrivateKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(key.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrivateKey, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(PrivateKey).ok_or_else(|| D::Error::custom("private key is not 32 bytes of base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::fixtures;

    #[tokio::test]
    async fn networks_of_docker_are_found_by_their_ids_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (id, network) = ("8d235e92d7ec", fixtures::pn());
        DirStore::open(dir.path()).unwrap().put_docker(id, network).await.unwrap();
        let again = DirStore::open(dir.path()).unwrap();
        assert_eq!(again.docker(id).unwrap(), Some(network));
        for outside in ["../generation", "", "a/b", "."] {
            assert!(again.put_docker(outside, network).await.is_err(), "{outside:?}");
            assert!(again.docker(outside).is_err(), "{outside:?}");
        }
        again.remove_docker(id).await.unwrap();
        assert_eq!(again.docker(id).unwrap(), None);
    }

    fn entry(id: &str) -> Entry {
        let ports = vec!["tcp/3000:http".parse().unwrap()];
        Entry { member: id.parse().unwrap(), ports, ..fixtures::entry(1, MemberState::Ready) }
    }

    /// The contract every store keeps.
    async fn contract<S: Store>(open: impl Fn() -> S) {
        let (a, b) = (entry("00000000000000aa"), entry("00000000000000bb"));
        let store = open();
        assert_eq!(store.load().unwrap().generation, 0);
        store.put(&b).await.unwrap();
        store.put(&a).await.unwrap();
        let mut changed = a.clone();
        changed.state = MemberState::Released;
        store.put(&changed).await.unwrap();
        store.remove(&b.member).await.unwrap();
        store.remove(&b.member).await.unwrap();
        let claims = [42, 43].map(|vni| NetworkRecord { vni, ..a.claim.clone() });
        for claim in &claims {
            store.put_network(a.network, claim).await.unwrap();
        }
        let other = NetworkId::random();
        store.put_network(other, &claims[0]).await.unwrap();
        store.remove_network(other).await.unwrap();
        store.remove_network(other).await.unwrap();
        store.set_generation(41).unwrap();
        store.set_generation(42).unwrap();
        store.set_starts(&[1, 2, 3]).unwrap();
        drop(store);
        let stored = open().load().unwrap();
        assert_eq!(stored.entries, [changed]);
        assert_eq!(stored.networks, BTreeMap::from([(a.network, claims[1].clone())]));
        assert_eq!(stored.generation, 42);
        assert_eq!(stored.starts, [1, 2, 3]);
        assert!(stored.damaged.is_empty());
    }

    #[tokio::test]
    async fn a_directory_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(|| DirStore::open(&dir.path().join("state")).unwrap()).await;
    }

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        let store = MemoryStore::default();
        contract(|| store.clone()).await;
    }

    #[tokio::test]
    async fn a_faulty_disk_says_so_or_is_found_out() {
        let (a, b) = (entry("00000000000000aa"), entry("00000000000000bb"));
        let store = MemoryStore::default();
        store.fail_writes(true);
        assert!(store.put(&a).await.is_err() && store.set_generation(1).is_err());
        store.fail_writes(false);
        store.put(&a).await.unwrap();
        store.tear_next();
        store.put(&b).await.unwrap();
        let stored = store.load().unwrap();
        assert_eq!((stored.entries.len(), stored.damaged.len()), (1, 1));
        assert!(store.load().unwrap().damaged.is_empty(), "damage is set aside once");
        store.wipe();
        assert!(store.load().unwrap().entries.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_write_that_is_given_up_is_not_made() {
        let store = MemoryStore::default();
        let second = std::time::Duration::from_secs(1);
        store.slow_writes(second);
        let entry = entry("00000000000000aa");
        assert!(tokio::time::timeout(second / 2, store.put(&entry)).await.is_err());
        assert!(store.load().unwrap().entries.is_empty());
        let started = tokio::time::Instant::now();
        store.put(&entry).await.unwrap();
        assert_eq!(started.elapsed(), second);
        assert_eq!(store.load().unwrap().entries.len(), 1);
    }

    #[tokio::test]
    async fn damage_is_set_aside_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        store.put(&entry("00000000000000aa")).await.unwrap();
        fs::write(dir.path().join("members/00000000000000bb.json"), "{\"member\":").unwrap();
        fs::write(dir.path().join("generation"), "x").unwrap();
        fs::write(dir.path().join("view.json"), "[").unwrap();
        let stored = store.load().unwrap();
        assert_eq!(stored.entries.len(), 1);
        assert_eq!(stored.damaged.len(), 3);
        assert!(dir.path().join("members/00000000000000bb.damaged").exists(), "nothing is deleted");
    }

    #[tokio::test]
    async fn of_writers_at_once_the_last_called_stands() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        let puts = (1..=50_u64).map(|counter| {
            let (store, entry) = (store.clone(), Entry { counter, ..entry("00000000000000aa") });
            async move { store.put(&entry).await }
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
        assert_eq!(store.load().unwrap().entries[0].counter, 50);
        let names = fs::read_dir(dir.path().join("members")).unwrap();
        assert_eq!(names.count(), 1, "nothing half-written stays");
    }

    #[test]
    fn half_written_files_go_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        drop(DirStore::open(dir.path()).unwrap());
        let half = [dir.path().join("view.3.new"), dir.path().join("members/00000000000000aa.4.new")];
        for path in &half {
            fs::write(path, "{").unwrap();
        }
        let store = DirStore::open(dir.path()).unwrap();
        assert!(half.iter().all(|path| !path.exists()));
        assert!(store.load().unwrap().entries.is_empty());
    }

    #[test]
    fn one_agent_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DirStore::open(dir.path()).unwrap();
        assert!(DirStore::open(dir.path()).unwrap_err().to_string().contains("another agent"));
    }

    #[test]
    fn keys_are_for_root_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        Turns::default().replace(1, &path, b"{}", true).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{:?}", entry("00000000000000aa")).contains("7, 7"));
    }
}
