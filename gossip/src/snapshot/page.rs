//! One page of a snapshot, and its wire form.

use std::net::{Ipv4Addr, SocketAddr};

use chitchat::{Chitchat, ChitchatId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::member_key;
use crate::id::HostId;
use crate::interner::Interner;
use crate::merge::{Track, ViewBuilder};
use crate::packed::{pack, unpack};
use crate::record::Record;
use crate::stretch::{Extent, KeyValue, Status, Stretch};

/// The format of answers this build writes, and the one it reads.
const FORMAT: u8 = 1;
/// A page ends with the host that reaches this length, before it is packed.
const PAGE_BYTES: usize = 512 * 1024;
/// Longest page once unpacked: one host's records may come on top.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a peer answers when it is asked for a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer<'a> {
    #[serde(borrow)]
    Page(Page<'a>),
    /// It serves enough others; these hosts may have time.
    Busy(Vec<SocketAddr>),
    /// It does not know the whole region itself.
    NotWhole,
}

/// Some hosts, in the order of their node ids.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Page<'a> {
    /// What chitchat holds.
    #[serde(borrow)]
    pub(super) held: Vec<Held<'a>>,
    /// What is remembered of hosts that chitchat does not hold any more.
    pub(super) remembered: Vec<Remembered>,
    /// Claims that vanished; with the last page.
    pub(super) vanished: Vec<Haunt>,
    /// Where the next page goes on; none on the last one.
    pub(super) next: Option<String>,
}

/// One generation of one host as chitchat holds it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Held<'a> {
    pub(super) node_id: &'a str,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
    pub(super) extent: Extent,
    /// For how long it is out of answers, in milliseconds.
    pub(super) silent_ms: Option<u64>,
    #[serde(borrow)]
    key_values: Vec<KeyValue<'a>>,
}

/// The records of a host that is gone from chitchat.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) node_id: String,
    pub(super) generation: u64,
    pub(super) version: u64,
    pub(super) address: SocketAddr,
    pub(super) silent_ms: Option<u64>,
    pub(super) key_values: Vec<(String, String)>,
}

/// A claim that vanished without being released.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Haunt {
    pub(super) host: HostId,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) ago_ms: u64,
}

impl Answer<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("text and numbers have a plain form");
        let mut bytes = vec![FORMAT];
        pack(&body, &mut bytes);
        bytes
    }
}

impl<'a> Answer<'a> {
    /// Reads what [`unpacked`] left.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((answer, [])) => Some(answer),
            _ => None,
        }
    }
}

/// An answer without its envelope; none when it is of another format.
pub(super) fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    unpack(bytes.strip_prefix(&[FORMAT])?, PAGE_BYTES_MAX).map(|bytes| bytes.into_owned())
}

impl<'a> Page<'a> {
    /// The hosts after a node id, as many as fit.
    pub(super) fn after(
        after: Option<&str>,
        chitchat: &'a Chitchat,
        builder: &'a ViewBuilder,
        now: Instant,
    ) -> Self {
        let (mut page, mut bytes) = (Page::default(), 0);
        for (node_id, track) in builder.tracks(after) {
            bytes += page.add(node_id, track, chitchat, now);
            if bytes >= PAGE_BYTES {
                page.next = Some(node_id.to_owned());
                return page;
            }
        }
        page.vanished = haunts(builder, now);
        page
    }

    /// Adds what counts of a host and what is newer; returns its length, about.
    fn add(&mut self, node_id: &'a str, track: &Track, chitchat: &'a Chitchat, now: Instant) -> usize {
        let accepted = track.accepted();
        let silent_ms = track.unheard_since().map(|since| milliseconds(since, now));
        let lowest = accepted.map_or(0, |accepted| accepted.generation);
        // The lowest of all addresses: every generation from this one on is behind it.
        let first = ChitchatId::new(node_id, lowest, (Ipv4Addr::UNSPECIFIED, 0).into());
        let states = chitchat.node_states().range(first..);
        let states = states.take_while(|(owner, _)| *owner.node_id == *node_id);
        let (mut bytes, mut counted) = (0, false);
        for (owner, state) in states {
            let stretch = Stretch::cut(owner, state, 0);
            counted |= accepted.is_some_and(|a| {
                (a.generation, a.address) == (owner.generation_id, owner.gossip_advertise_addr)
                    && a.version <= stretch.extent.to
            });
            bytes += stretch.key_values.iter().map(KeyValue::bytes).sum::<usize>();
            self.held.push(Held {
                node_id,
                generation: owner.generation_id,
                address: owner.gossip_advertise_addr,
                extent: stretch.extent,
                silent_ms,
                key_values: stretch.key_values,
            });
        }
        match accepted.filter(|_| !counted) {
            None => bytes,
            Some(accepted) => {
                let mut key_values: Vec<(String, String)> = accepted
                    .records
                    .iter()
                    .map(|record| (record.key().to_string(), record.encode()))
                    .collect();
                key_values.sort();
                bytes += key_values.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                self.remembered.push(Remembered {
                    node_id: node_id.to_owned(),
                    generation: accepted.generation,
                    version: accepted.version,
                    address: accepted.address,
                    silent_ms,
                    key_values,
                });
                bytes
            }
        }
    }
}

fn haunts(builder: &ViewBuilder, now: Instant) -> Vec<Haunt> {
    let vanished = builder.vanished().iter();
    vanished
        .map(|((host, network, member), vanished)| Haunt {
            host: host.clone(),
            key: member_key(network, member),
            value: Record::Member(*network, member.clone(), vanished.record.clone()).encode(),
            ago_ms: milliseconds(vanished.since, now),
        })
        .collect()
}

fn milliseconds(since: Instant, now: Instant) -> u64 {
    u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX)
}

impl<'a> Held<'a> {
    /// Its keys that are not deleted.
    pub(super) fn live(&self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone + '_ {
        self.key_values.iter().filter(|kv| kv.status != Status::Deleted).map(|kv| (kv.key, kv.value))
    }

    pub(super) fn stretch(self, names: &Interner) -> Stretch<'a> {
        Stretch {
            owner: ChitchatId::new(names.text(self.node_id), self.generation, self.address),
            extent: self.extent,
            key_values: self.key_values,
        }
    }
}
