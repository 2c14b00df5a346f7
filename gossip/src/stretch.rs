//! A stretch of one owner's history: what frames and snapshots carry.

use chitchat::{ChitchatId, DeletionStatus, NodeState, VersionedValue};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::record::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// What an owner wrote after version `from`, as it stood at version `to`.
///
/// A key that was written several times in between is here once, with its last version.
#[derive(Debug, Clone)]
pub(crate) struct Stretch<'a> {
    pub(crate) owner: ChitchatId,
    pub(crate) extent: Extent,
    pub(crate) key_values: Vec<KeyValue<'a>>,
}

/// Which versions a stretch spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// What the reader must have at least; 0 when the stretch is the owner's whole state.
    pub(crate) from: u64,
    /// What the reader has afterwards.
    pub(crate) to: u64,
    /// Deletions up to here have left no tombstone.
    pub(crate) gc: u64,
}

/// One key as its owner last wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyValue<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a str,
    pub(crate) version: u64,
    pub(crate) status: Status,
}

/// chitchat's deletion status without the moment, which is each reader's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Set,
    Deleted,
    Expiring,
}

/// Why a stretch was refused as a whole: without the offending key it would have a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MalformedStretch {
    #[error("it ends at version {to}, where it begins or before")]
    Empty { to: u64 },
    #[error("version {version} is outside of it")]
    Version { version: u64 },
    /// chitchat panics on some of them.
    #[error("a key is empty, not ASCII, or longer than {KEY_BYTES_MAX} bytes")]
    Key,
    #[error("a value is longer than {VALUE_BYTES_MAX} bytes")]
    Value,
}

impl<'a> Stretch<'a> {
    /// What the owner of a state wrote after `from`.
    pub(crate) fn cut(owner: &ChitchatId, state: &'a NodeState, from: u64) -> Self {
        let key_values = state.key_values_including_deleted().filter(|(_, value)| value.version > from);
        Self {
            owner: owner.clone(),
            extent: Extent { from, to: state.max_version(), gc: state.last_gc_version() },
            key_values: key_values.map(|(key, value)| KeyValue::of(key, value)).collect(),
        }
    }

    /// Holds it to the bounds that keep it harmless to chitchat.
    pub(crate) fn check(&self) -> Result<(), MalformedStretch> {
        let Extent { from, to, .. } = self.extent;
        if to <= from {
            return Err(MalformedStretch::Empty { to });
        }
        self.key_values.iter().try_for_each(|kv| {
            let known = kv.key.is_ascii() && (1..=KEY_BYTES_MAX).contains(&kv.key.len());
            match () {
                () if !known => Err(MalformedStretch::Key),
                () if kv.value.len() > VALUE_BYTES_MAX => Err(MalformedStretch::Value),
                () if kv.version <= from || kv.version > to => {
                    Err(MalformedStretch::Version { version: kv.version })
                }
                () => Ok(()),
            }
        })
    }
}

impl<'a> KeyValue<'a> {
    fn of(key: &'a str, value: &'a VersionedValue) -> Self {
        let status = match value.status {
            DeletionStatus::Set => Status::Set,
            DeletionStatus::Deleted(_) => Status::Deleted,
            DeletionStatus::DeleteAfterTtl(_) => Status::Expiring,
        };
        Self { key, value: &value.value, version: value.version, status }
    }

    /// As chitchat keeps it; deletions count from `now` on.
    pub(crate) fn versioned(&self, now: Instant) -> VersionedValue {
        let status = match self.status {
            Status::Set => DeletionStatus::Set,
            Status::Deleted => DeletionStatus::Deleted(now),
            Status::Expiring => DeletionStatus::DeleteAfterTtl(now),
        };
        VersionedValue { value: self.value.to_owned(), version: self.version, status }
    }

    /// Its length on the wire, about: key, value and some numbers.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + 12
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_harm_chitchat_is_refused() {
        let (long_key, long_value) = ("k".repeat(KEY_BYTES_MAX + 1), "v".repeat(VALUE_BYTES_MAX + 1));
        let check = |from, to, key: &str, value: &str, version| {
            let key_values = vec![KeyValue { key, value, version, status: Status::Set }];
            let owner = ChitchatId::new("a", 1, ([192, 0, 2, 1], 7946).into());
            Stretch { owner, extent: Extent { from, to, gc: 0 }, key_values }.check()
        };
        assert_eq!(check(3, 5, "host", "x", 4), Ok(()));
        assert_eq!(check(5, 5, "host", "x", 5), Err(MalformedStretch::Empty { to: 5 }));
        assert_eq!(check(6, 5, "host", "x", 5), Err(MalformedStretch::Empty { to: 5 }));
        assert_eq!(check(3, 5, "host", "x", 3), Err(MalformedStretch::Version { version: 3 }));
        assert_eq!(check(3, 5, "host", "x", 6), Err(MalformedStretch::Version { version: 6 }));
        assert_eq!(check(0, 5, "", "x", 4), Err(MalformedStretch::Key));
        assert_eq!(check(0, 5, "h\u{f6}st", "x", 4), Err(MalformedStretch::Key));
        assert_eq!(check(0, 5, &long_key, "x", 4), Err(MalformedStretch::Key));
        assert_eq!(check(0, 5, "host", &long_value, 4), Err(MalformedStretch::Value));
    }
}
