//! Files that are the old or the new, never half, and never older than what was written last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Writes a file for others, whole or not at all, and its directory where that is missing.
///
/// # Errors
/// It cannot be written.
pub fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

/// What of a file outlives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasting {
    /// Nothing in particular.
    Nothing,
    /// Its content is whole, the old one or the new one.
    Content,
    /// It is there, with the new content.
    Name,
}

/// Who wrote which file last: of two writers at once, the one that was called later.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: AtomicU64,
    last: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Turns {
    pub(super) fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Write beside, fsync, rename, fsync the directory: the file is the old or the new, never
    /// half, and never older than what was written in a later turn.
    pub(super) fn replace(&self, turn: u64, path: &Path, bytes: &[u8], lasting: Lasting) -> io::Result<()> {
        let beside = path.with_extension(format!("{turn}.new"));
        let written = (|| {
            let mut file =
                File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            if lasting != Lasting::Nothing {
                file.sync_data()?;
            }
            self.put_in_place(turn, &beside, path)?;
            match path.parent() {
                Some(parent) if lasting == Lasting::Name => File::open(parent)?.sync_all(),
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
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
