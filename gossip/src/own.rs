//! The records this host publishes, beside chitchat's copy of them.

use std::collections::BTreeMap;

use chitchat::NodeState;

use crate::id::HostId;
use crate::record::{HostRecord, Key, MEMBERS_MAX, MalformedRecord, Record, VALUE_BYTES_MAX};
use crate::{Change, PublishError};

/// What was published, and the version chitchat's copy must have.
///
/// Any member of the region can write into anybody's state in chitchat, also into ours in our own
/// process; by this copy it is found out.
#[derive(Debug)]
pub(crate) struct OwnRecords {
    node_id: String,
    key_values: BTreeMap<Key, String>,
    version: u64,
}

impl OwnRecords {
    /// The records to start with.
    pub(crate) fn new(host: &HostId, records: Vec<Record>) -> Result<Self, PublishError> {
        let mut own = Self { node_id: host.node_id(), key_values: BTreeMap::new(), version: 0 };
        own.change(records.into_iter().map(Change::Put).collect(), None)?;
        own.host().ok_or(PublishError::NoHostRecord)?;
        own.begin();
        Ok(own)
    }

    /// The own `host` record.
    pub(crate) fn host(&self) -> Option<HostRecord> {
        let value = self.key_values.get(&Key::Host)?;
        match Record::decode(&self.node_id, "host", value) {
            Ok(Record::Host(host)) => Some(host),
            _ => None,
        }
    }

    /// What a generation starts with. `host` is last: others have a prefix of the versions, so who
    /// has it has all.
    pub(crate) fn initial(&self) -> Vec<(String, String)> {
        let (host, others): (Vec<_>, Vec<_>) =
            self.key_values.iter().partition(|(key, _)| **key == Key::Host);
        others.into_iter().chain(host).map(|(key, value)| (key.to_string(), value.clone())).collect()
    }

    /// A generation has begun with [`initial`](Self::initial).
    pub(crate) fn begin(&mut self) {
        self.version = self.key_values.len() as u64;
    }

    /// The version chitchat's copy has.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether chitchat's copy is what was published, told by its numbers: whatever else writes into
    /// it raises the version, or resets it with a collection from beyond the version.
    pub(crate) fn holds(&self, state: &NodeState) -> bool {
        state.max_version() == self.version && state.last_gc_version() <= self.version
    }

    /// Makes all changes or none; in chitchat too, when its copy is given.
    pub(crate) fn change(
        &mut self,
        changes: Vec<Change>,
        state: Option<&mut NodeState>,
    ) -> Result<(), PublishError> {
        let changes = changes.into_iter().map(|change| self.check(change)).collect::<Result<Vec<_>, _>>()?;
        let mut next = self.key_values.clone();
        for (key, value) in &changes {
            match value {
                Some(value) => next.insert(key.clone(), value.clone()),
                None => next.remove(key),
            };
        }
        let members = next.keys().filter(|key| matches!(key, Key::Member(..))).count();
        if members > MEMBERS_MAX {
            return Err(PublishError::TooManyMembers(members));
        }
        if let Some(state) = state {
            write(&changes, state);
            self.version = state.max_version();
        }
        self.key_values = next;
        Ok(())
    }

    fn check(&self, change: Change) -> Result<(Key, Option<String>), PublishError> {
        match change {
            Change::Delete(Key::Host) => Err(PublishError::NoHostRecord),
            Change::Delete(key) => Ok((key, None)),
            Change::Put(record) => {
                record.check(&self.node_id)?;
                let (key, value) = (record.key(), record.encode());
                if value.len() > VALUE_BYTES_MAX {
                    return Err(MalformedRecord::Oversized { key, bytes: value.len() }.into());
                }
                Ok((key, Some(value)))
            }
        }
    }
}

fn write(changes: &[(Key, Option<String>)], state: &mut NodeState) {
    for (key, value) in changes {
        let key = key.to_string();
        match value {
            Some(value) => state.set(key, value),
            // chitchat warns about keys that are not there.
            None if state.contains_key(&key) => state.delete(&key),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{host, member};

    fn own() -> OwnRecords {
        OwnRecords::new(&"a".parse().unwrap(), vec![host("a"), member(1)]).unwrap()
    }

    #[test]
    fn host_is_last() {
        let keys: Vec<String> = own().initial().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[1], "host");
    }

    #[test]
    fn all_changes_are_made_or_none() {
        let other_host = "b".parse().unwrap();
        let mut wide = member(9);
        if let Record::Member(_, _, record) = &mut wide {
            record.unknown.insert("note".into(), "x".repeat(VALUE_BYTES_MAX).into());
        }
        let check = |changes: Vec<Change>, expected: fn(&PublishError) -> bool| {
            let mut own = own();
            let before = own.key_values.clone();
            let all = std::iter::once(Change::Put(member(2))).chain(changes).collect();
            let error = own.change(all, None).unwrap_err();
            assert!(expected(&error), "{error}");
            assert_eq!(own.key_values, before);
        };
        check(vec![Change::Delete(Key::Host)], |e| *e == PublishError::NoHostRecord);
        check(vec![Change::Put(host("b"))], |e| {
            matches!(e, PublishError::Malformed(MalformedRecord::Foreign { .. }))
        });
        check(vec![Change::Put(wide)], |e| {
            matches!(e, PublishError::Malformed(MalformedRecord::Oversized { .. }))
        });
        let many = (0..MEMBERS_MAX as u32).map(|n| Change::Put(member(100 + n))).collect();
        check(many, |e| *e == PublishError::TooManyMembers(MEMBERS_MAX + 2));
        let no_host = OwnRecords::new(&other_host, vec![member(1)]).unwrap_err();
        assert_eq!(no_host, PublishError::NoHostRecord);
    }

    #[test]
    fn a_foreign_write_is_seen() {
        let mut own = own();
        let mut state = NodeState::for_test();
        for (key, value) in own.initial() {
            state.set(key, value);
        }
        assert!(own.holds(&state));
        own.change(vec![Change::Put(member(2)), Change::Delete(member(1).key())], Some(&mut state)).unwrap();
        assert!(own.holds(&state));
        state.set("host", "forged");
        assert!(!own.holds(&state));
    }
}
