//! The store of an agent: a directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::NetworkRecord;
use gossip::{KnownHost, View};
use serde::de::DeserializeOwned;

use super::turns::{Lasting, Turns};
use super::{Entry, Store, Stored};

/// A directory: `members/<member>.json`, `networks/<network>.json`, `docker/<Docker's id>`, `generation`, `starts`,
/// `view.json`, and `draining` where the host takes no new members.
#[derive(Debug, Clone)]
pub struct DirStore {
    dir: Arc<PathBuf>,
    // Held for the life of the store: two agents on one state directory would overwrite each other.
    _lock: Arc<File>,
    turns: Arc<Turns>,
}

impl DirStore {
    /// Opens the directory, making it (0700) when missing.
    ///
    /// # Errors
    /// The directory cannot be made or written, or another agent uses it.
    pub fn open(dir: &Path) -> io::Result<DirStore> {
        let parts = ["members", "networks", "docker"].map(|name| dir.join(name));
        for part in &parts {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(part)?;
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
/// What is there while the host takes no new members.
const DRAINING: &str = "draining";

fn set_aside(path: &Path, damaged: &mut Vec<PathBuf>) -> io::Result<()> {
    let aside = path.with_extension("damaged");
    fs::rename(path, &aside)?;
    damaged.push(aside);
    Ok(())
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
        let draining = self.dir.join(DRAINING).try_exists()?;
        Ok(Stored { generation, starts, entries, networks, known, draining, damaged })
    }

    async fn put(&self, entry: &Entry) -> io::Result<()> {
        let (path, bytes) = (self.member_path(&entry.member), serde_json::to_vec(entry)?);
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || {
            // Which of two states a power cut leaves is all one: the next boot releases either.
            let lasting = if path.exists() { Lasting::Content } else { Lasting::Name };
            turns.replace(turn, &path, &bytes, lasting)
        })
        .await
    }

    async fn remove(&self, member: &MemberId) -> io::Result<()> {
        let path = self.member_path(member);
        let turns = self.turns.clone();
        blocking(move || turns.remove(&path)).await
    }

    async fn put_network(&self, network: NetworkId, claim: &NetworkRecord) -> io::Result<()> {
        let (path, bytes) = (self.network_path(network), serde_json::to_vec(claim)?);
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, &bytes, Lasting::Name)).await
    }

    async fn remove_network(&self, network: NetworkId) -> io::Result<()> {
        let (path, turns) = (self.network_path(network), self.turns.clone());
        blocking(move || turns.remove(&path)).await
    }

    async fn put_docker(&self, id: &str, network: NetworkId) -> io::Result<()> {
        let (path, text) = (self.docker_path(id)?, network.to_string());
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || turns.replace(turn, &path, text.as_bytes(), Lasting::Name)).await
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

    async fn set_draining(&self, draining: bool) -> io::Result<()> {
        let (path, turns, turn) = (self.dir.join(DRAINING), self.turns.clone(), self.turns.take());
        blocking(move || match draining {
            true => turns.replace(turn, &path, b"", Lasting::Name),
            false => turns.remove(&path),
        })
        .await
    }

    fn set_generation(&self, generation: u64) -> io::Result<()> {
        let path = self.dir.join("generation");
        self.turns.replace(self.turns.take(), &path, generation.to_string().as_bytes(), Lasting::Name)
    }

    fn set_starts(&self, starts: &[u64]) -> io::Result<()> {
        let text: Vec<String> = starts.iter().map(u64::to_string).collect();
        self.turns.replace(
            self.turns.take(),
            &self.dir.join("starts"),
            text.join(" ").as_bytes(),
            Lasting::Nothing,
        )
    }

    async fn set_known(&self, own: &HostId, view: Arc<View>) -> io::Result<()> {
        let (path, own) = (self.dir.join(VIEW), own.clone());
        let (turns, turn) = (self.turns.clone(), self.turns.take());
        blocking(move || {
            turns.replace(turn, &path, &serde_json::to_vec(&view.known(&own))?, Lasting::Nothing)
        })
        .await
    }
}
