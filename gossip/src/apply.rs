//! The one way another host's records come into chitchat but by chitchat itself.
//!
//! **Why prefixes give atomicity.** An owner numbers its writes; chitchat's deltas bring a reader
//! from one number to a higher one with nothing missing in between, so whoever holds version `v`
//! holds whatever was written up to `v` and not overwritten since. An owner may therefore write the
//! record that makes the others count last. A stretch keeps this only where it joins what is held:
//! the reader must have everything up to its `from`, and every deletion that left no tombstone must
//! be known on both sides. [`decide`] is that rule; what does not join is pulled by chitchat.

use std::collections::BTreeSet;

use chitchat::{Chitchat, NodeState, VersionedValue};
use tokio::time::Instant;

use crate::stretch::{Extent, MalformedStretch, Status, Stretch};

/// No owner writes so much between two frames: who claims it is lying, and believing it would stop
/// everything the owner writes from being news.
const LEAP_MAX: u64 = 1 << 32;

/// How far one owner's history is held here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) version: u64,
    pub(crate) gc: u64,
}

/// What is to be done with a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the whole state: it takes the place of what is held.
    Replace { gc: u64 },
    /// What is newer in it is added to what is held.
    Merge,
    /// Everything in it is held.
    Duplicate,
    /// Something between what is held and what it brings is missing.
    Gap,
    /// It leaps further than any owner writes.
    Leap,
}

impl Held {
    fn of(state: &NodeState) -> Self {
        Self { version: state.max_version(), gc: state.last_gc_version() }
    }
}

/// The guard: whether a stretch joins what is held. Never lowers a version, never leaves a hole.
pub(crate) fn decide(extent: Extent, held: Held) -> Verdict {
    let Extent { from, to, gc } = extent;
    if to <= held.version {
        return Verdict::Duplicate;
    }
    if to - held.version > LEAP_MAX {
        return Verdict::Leap;
    }
    // While chitchat refills a state, `held.gc` is above `held.version`: deletions up to there are
    // held by their keys' absence, and a stretch from before them would bring such a key back.
    if to.max(gc) < held.gc {
        return Verdict::Gap;
    }
    match from {
        0 => Verdict::Replace { gc: gc.max(held.gc) },
        _ if from <= held.version && gc <= held.gc.max(held.version) => Verdict::Merge,
        _ => Verdict::Gap,
    }
}

/// Takes a stretch in if it joins what is held, under chitchat's lock. Not for stretches of this
/// host's own state, nor of generations that are superseded.
pub(crate) fn apply(chitchat: &mut Chitchat, stretch: &Stretch<'_>) -> Result<Verdict, MalformedStretch> {
    let held = chitchat.node_state(&stretch.owner).map_or(Held::default(), Held::of);
    let verdict = decide(stretch.extent, held);
    let gc = match verdict {
        Verdict::Replace { gc } => gc,
        Verdict::Merge => held.gc,
        Verdict::Duplicate | Verdict::Gap | Verdict::Leap => return Ok(verdict),
    };
    stretch.check()?;
    let state = chitchat.node_state(&stretch.owner);
    let key_values: Vec<_> = match (verdict, state) {
        (Verdict::Merge, Some(state)) => {
            others(state, stretch, held).chain(of(stretch, Some(state), held)).collect()
        }
        _ => of(stretch, state, Held { version: 0, gc }).collect(),
    };
    chitchat.reset_node_state_if_update(&stretch.owner, key_values.into_iter(), stretch.extent.to, gc);
    let taken = chitchat.node_state(&stretch.owner).is_some_and(|s| s.max_version() == stretch.extent.to);
    // chitchat has collected this owner; its next heartbeat brings it back, and the rest with it.
    Ok(if taken { verdict } else { Verdict::Gap })
}

/// What of a stretch is news to whoever holds so much.
fn of<'a>(
    stretch: &'a Stretch<'_>,
    state: Option<&'a NodeState>,
    held: Held,
) -> impl Iterator<Item = (String, VersionedValue)> + 'a {
    let now = Instant::now();
    let news = stretch.key_values.iter().filter(move |kv| kv.version > held.version);
    let news = news.filter(move |kv| kv.status == Status::Set || kv.version > held.gc);
    news.map(move |kv| {
        let known =
            state.and_then(|state| state.get_versioned(kv.key)).filter(|known| known.version >= kv.version);
        (kv.key.to_owned(), known.map_or_else(|| kv.versioned(now), as_it_is))
    })
}

/// The keys of a state that a stretch does not write.
fn others<'a>(
    state: &'a NodeState,
    stretch: &Stretch<'a>,
    held: Held,
) -> impl Iterator<Item = (String, VersionedValue)> + 'a {
    let news = stretch.key_values.iter().filter(|kv| kv.version > held.version);
    let rewritten: BTreeSet<&str> = news.map(|kv| kv.key).collect();
    let old = state.key_values_including_deleted();
    old.filter(move |(key, _)| !rewritten.contains(key)).map(|(key, value)| (key.to_owned(), as_it_is(value)))
}

/// What names a value that chitchat has: where the version is not newer it keeps its own, so that none is copied.
fn as_it_is(known: &VersionedValue) -> VersionedValue {
    VersionedValue { value: String::new(), version: known.version, status: known.status }
}

#[cfg(test)]
mod tests;
