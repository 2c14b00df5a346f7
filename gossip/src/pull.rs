//! One owner's records, asked of a host that has them.
//!
//! chitchat would compare digests of the whole region for it: tens of kilobytes and a millisecond of CPU on either side
//! where there are a thousand hosts. When many containers start at once, every host of their networks may miss
//! something.

use chitchat::{Chitchat, ChitchatId};
use serde::{Deserialize, Serialize};

use crate::eager;
use crate::merge::ViewBuilder;

/// Whose records are missing, and what the asker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing<'a> {
    pub(crate) node_id: &'a str,
    /// The generation that counts with the asker; 0 when none does.
    pub(crate) generation: u64,
    /// The version of it that the asker has.
    pub(crate) version: u64,
}

impl<'a> Missing<'a> {
    /// Of an owner, so that `builder` would have all of it.
    pub(crate) fn of(node_id: &'a str, builder: &ViewBuilder) -> Self {
        let (generation, version) = builder.counts(node_id).unwrap_or_default();
        Self { node_id, generation, version }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("text and numbers have a plain form")
    }
}

/// Answers a [`Missing`]: a frame, or nothing at all when the asker has what this host has. None when the question is
/// not understood, the owner not known, or its records too long for a frame: that is left to chitchat.
pub(crate) fn answer(question: &[u8], chitchat: &Chitchat, builder: &ViewBuilder) -> Option<Vec<u8>> {
    let missing: Missing<'_> = postcard::from_bytes(question).ok()?;
    let owner: ChitchatId = builder.owner(missing.node_id)?;
    let state = chitchat.node_state(&owner)?;
    let held = if owner.generation_id == missing.generation { missing.version } else { 0 };
    if state.max_version() <= held {
        return Some(Vec::new());
    }
    eager::frame_since(&owner, state, held).map(Into::into)
}
