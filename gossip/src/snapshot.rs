//! The whole region in some pages, for a host that joins: chitchat alone would need seconds.
//!
//! The asker names the last node id it has; the answer goes on from there. Every host's records are
//! in one page, so that a page is a set of [`Stretch`]es from nothing to now.

mod page;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use chitchat::Chitchat;
use tokio::time::{self, Instant};

use crate::apply::apply;
use crate::greeting::Purpose;
use crate::interner::Interner;
use crate::merge::{Memory, ViewBuilder};
use crate::record::{Key, Record};
use crate::view::Via;
use crate::wire::Wire;
use page::{Answer, Page};

/// Askers served at once; the next one is sent elsewhere.
const SERVED_MAX: usize = 4;
/// An asker that has not come back for its next page for so long has given up.
const SERVED_PAUSE: Duration = Duration::from_secs(2);
/// How many others a busy host names.
const OTHERS_MAX: usize = 4;
/// Bound on one page.
const PAGE_BOUND: Duration = Duration::from_secs(2);
/// Peers asked, one after the other, until one begins.
const PEERS_MAX: usize = 8;
/// More pages than any region has.
const PAGES_MAX: usize = 1000;

/// A region's records as one peer held them, still in wire form.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pages: Vec<Vec<u8>>,
    /// When the first page came: ages count from here.
    at: Instant,
}

/// Whom this host is serving a snapshot, and when each last asked.
#[derive(Debug, Default)]
pub(crate) struct Served {
    askers: BTreeMap<SocketAddr, Instant>,
}

impl Served {
    /// Answers one question. `chitchat` has been read into the `builder`; `others` are peers to
    /// name when this host has enough to do.
    pub(crate) fn answer(
        &mut self,
        asker: SocketAddr,
        body: &[u8],
        chitchat: &Chitchat,
        builder: &ViewBuilder,
        others: impl Iterator<Item = SocketAddr>,
        now: Instant,
    ) -> Vec<u8> {
        if !builder.is_whole() {
            return not_whole();
        }
        self.askers.retain(|_, last| now < *last + SERVED_PAUSE);
        if !self.askers.contains_key(&asker) && self.askers.len() >= SERVED_MAX {
            return Answer::Busy(others.filter(|other| *other != asker).take(OTHERS_MAX).collect()).encode();
        }
        let after = std::str::from_utf8(body).ok().filter(|after| !after.is_empty());
        let page = Page::after(after, chitchat, builder, now);
        match page.next {
            Some(_) => _ = self.askers.insert(asker, now),
            None => _ = self.askers.remove(&asker),
        }
        Answer::Page(page).encode()
    }
}

/// The answer of a host that knows no region yet.
pub(crate) fn not_whole() -> Vec<u8> {
    Answer::NotWhole.encode()
}

/// Asks peers for a snapshot until one serves it whole; those that are busy name others.
pub(crate) async fn ask(wire: &dyn Wire, peers: impl IntoIterator<Item = SocketAddr>) -> Option<Snapshot> {
    let mut peers: VecDeque<SocketAddr> = peers.into_iter().collect();
    let mut asked = BTreeSet::from([wire.advertise()]);
    while let Some(peer) = peers.pop_front() {
        if !asked.insert(peer) {
            continue;
        }
        match ask_one(wire, peer).await {
            Ok(snapshot) => return Some(snapshot),
            Err(others) => peers.extend(others),
        }
        if asked.len() > PEERS_MAX {
            break;
        }
    }
    None
}

/// Takes every page from one peer, or says who else to ask.
async fn ask_one(wire: &dyn Wire, peer: SocketAddr) -> Result<Snapshot, Vec<SocketAddr>> {
    let mut snapshot = Snapshot { pages: Vec::new(), at: Instant::now() };
    let mut after = String::new();
    while snapshot.pages.len() < PAGES_MAX {
        let question = Purpose::Snapshot.wrap(after.into_bytes());
        let Ok(Ok(answer)) = time::timeout(PAGE_BOUND, wire.ask(peer, question)).await else {
            return Err(Vec::new());
        };
        let Some(bytes) = page::unpacked(&answer) else {
            wire.counters().snapshot("malformed");
            return Err(Vec::new());
        };
        let next = match Answer::decode(&bytes) {
            Some(Answer::Page(page)) => page.next,
            Some(Answer::Busy(others)) => return Err(others),
            Some(Answer::NotWhole) => return Err(Vec::new()),
            None => {
                wire.counters().snapshot("malformed");
                return Err(Vec::new());
            }
        };
        snapshot.pages.push(bytes);
        match next {
            Some(next) => after = next,
            None => return Ok(snapshot),
        }
    }
    Err(Vec::new())
}

impl Snapshot {
    fn pages(&self) -> impl Iterator<Item = Page<'_>> {
        self.pages.iter().filter_map(|bytes| match Answer::decode(bytes) {
            Some(Answer::Page(page)) => Some(page),
            _ => None,
        })
    }

    /// Takes it into the view, and the region counts as known whole.
    pub(crate) fn remember(&self, builder: &mut ViewBuilder, now: Instant) {
        let ago = |milliseconds: u64| self.at.checked_sub(Duration::from_millis(milliseconds));
        for page in self.pages() {
            for host in &page.held {
                let memory = Memory {
                    node_id: host.node_id,
                    generation: host.generation,
                    version: host.extent.to,
                    address: host.address,
                    via: Via::Snapshot,
                    silent_since: host.silent_ms.map(|ms| ago(ms).unwrap_or(now)),
                };
                builder.remember(&memory, host.live(), now);
            }
            for host in &page.remembered {
                let memory = Memory {
                    node_id: &host.node_id,
                    generation: host.generation,
                    version: host.version,
                    address: host.address,
                    via: Via::Snapshot,
                    silent_since: host.silent_ms.map(|ms| ago(ms).unwrap_or(now)),
                };
                let key_values = host.key_values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                builder.remember(&memory, key_values, now);
            }
            for vanished in &page.vanished {
                let read = Record::decode(&vanished.host.node_id(), &vanished.key, &vanished.value);
                let Ok(Record::Member(network, member, record)) = read else { continue };
                let since = ago(vanished.ago_ms).unwrap_or(now);
                builder.haunt((vanished.host.clone(), network, member), record, since);
            }
        }
        builder.complete();
    }

    /// Takes it into chitchat, but what it says of this host, and of hosts that are silent: who of
    /// them is remembered by others comes back by itself.
    pub(crate) fn apply(&self, chitchat: &mut Chitchat, names: &Interner) {
        let own = chitchat.self_chitchat_id().node_id.clone();
        for page in self.pages() {
            let held = page.held.into_iter();
            for host in held.filter(|host| *host.node_id != *own && host.silent_ms.is_none()) {
                let stretch = host.stretch(names);
                if let Err(error) = apply(chitchat, &stretch) {
                    tracing::debug!(owner = &*stretch.owner.node_id, %error, "left out of the snapshot");
                }
            }
        }
    }

    /// The highest generation it knows of a host.
    pub(crate) fn generation(&self, node_id: &str) -> Option<u64> {
        self.pages()
            .flat_map(|page| {
                let held = page.held.into_iter().map(|host| (host.node_id.to_owned(), host.generation));
                let remembered = page.remembered.into_iter().map(|host| (host.node_id, host.generation));
                held.chain(remembered).collect::<Vec<_>>()
            })
            .filter(|(found, _)| found == node_id)
            .map(|(_, generation)| generation)
            .max()
    }
}

/// The key a member is published under.
fn member_key(network: &crate::id::NetworkId, member: &crate::id::MemberId) -> String {
    Key::Member(*network, member.clone()).to_string()
}

#[cfg(test)]
mod tests;
