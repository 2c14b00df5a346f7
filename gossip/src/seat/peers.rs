//! Other hosts: who is greeted, who is served a snapshot, who is called.

use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use tokio::time::Instant;

use super::Seat;
use crate::greeting::Greeting;
use crate::id::HostId;
use crate::snapshot::{self, Snapshot};
use crate::standing::Standing;
use crate::transport::{ADMISSION_BYTES_MAX, digest_bytes};
use crate::view::{Host, View};

/// One in so many intervals a seed is gossiped with even when all is well: two halves of a region
/// that never knew each other meet there.
const SEED_PERIOD: u64 = 10;
/// How many hosts that are about to be given up are asked themselves in one interval: eight, or as
/// many as digests of so many bytes in all can be sent to. An entry of a digest is about so long.
const DOUBTED_MIN: usize = 8;
const DOUBTED_BYTES: usize = 128 << 10;
const DIGEST_ENTRY_BYTES: usize = 48;
/// How many hosts are told of a goodbye one by one.
const GOODBYES: usize = 3;
/// How many hosts are asked for a snapshot in one interval.
const ASKED: usize = 2;

impl Seat {
    pub(super) async fn greeting(&mut self, from: &HostId, address: SocketAddr) -> Greeting {
        let generation = self.highest_seen(from).await;
        let node_id = from.node_id();
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        let twin = chitchat.node_states().keys().find(|id| {
            *id.node_id == *node_id
                && id.gossip_advertise_addr != address
                && chitchat.failure_detection_timeout(id).is_some()
        });
        let twin = twin.filter(|_| self.builder.hears(&node_id, Instant::now()));
        let twin = twin.map(|id| id.gossip_advertise_addr);
        let bytes = digest_bytes(chitchat.node_states().keys());
        let full = (generation.is_none() && bytes > ADMISSION_BYTES_MAX).then_some(bytes);
        Greeting { generation, twin, full }
    }

    /// Serves one page of a snapshot, or says why not.
    pub(super) async fn serve(&mut self, to: SocketAddr, body: &[u8]) -> Vec<u8> {
        let others =
            self.builder.answering().sample(&mut rand::rng(), 2 * ASKED).copied().collect::<Vec<_>>();
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        self.read_held(&chitchat);
        self.untold = true;
        self.served.answer(to, body, &chitchat, &self.builder, others.into_iter(), Instant::now())
    }

    /// Takes in a snapshot that was asked for after the start.
    pub(super) async fn land(&mut self, snapshot: Snapshot) {
        let now = Instant::now();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        snapshot.remember(&mut self.builder, now);
        snapshot.apply(&mut chitchat, &self.stay.config.parsed);
        self.read_held(&chitchat);
        self.tell();
    }

    /// Gossips beyond what chitchat picks: it never calls hosts whose grace is over, so that a long
    /// partition would not heal, and it knows no seeds.
    pub(super) fn reach_out(&mut self) {
        self.intervals += 1;
        let view = self.builder.view().clone();
        let silent = view.hosts.values().filter(|host| !host.standing.answers()).map(|host| host.address);
        if let Some(address) = silent.choose(&mut rand::rng()) {
            self.gossip(address);
        }
        // Small islands of a large region would bury each other: chance calls the many beyond the cut.
        let doubtful = doubtful(&view, Instant::now(), self.stay.config.timings.detection);
        for address in doubtful.sample(&mut rand::rng(), doubted_max(view.hosts.len())) {
            self.gossip(address);
        }
        let alone = self.builder.answering().is_empty();
        if alone || !view.whole || self.intervals.is_multiple_of(SEED_PERIOD) {
            let seeds = self.stay.seeds.borrow().addresses.clone();
            let known = view.hosts.values().map(|host| host.address).filter(|_| !view.whole);
            if let Some(address) = seeds.into_iter().chain(known).choose(&mut rand::rng()) {
                self.gossip(address);
            }
        }
        if !self.builder.is_whole() && self.asking.is_none() && !alone {
            let wire = self.stay.wire.clone();
            let peers: Vec<_> = self.builder.answering().sample(&mut rand::rng(), ASKED).copied().collect();
            self.asking = Some(Box::pin(async move { snapshot::ask(&*wire, peers).await }));
        }
    }

    /// Gossips at once with some random hosts; returns with how many.
    pub(super) fn gossip_around(&self) -> usize {
        let chosen = self.builder.answering().sample(&mut rand::rng(), GOODBYES);
        let told = chosen.len();
        chosen.for_each(|address| self.gossip(*address));
        told
    }

    pub(super) fn gossip(&self, address: SocketAddr) {
        if address != self.stay.config.advertise && self.chitchat.gossip(address).is_err() {
            tracing::debug!(%address, "gossip has ended; the next look starts it anew");
        }
    }
}

/// How many doubtful hosts of a region of so many hosts are asked in one interval.
fn doubted_max(hosts: usize) -> usize {
    (DOUBTED_BYTES / (DIGEST_ENTRY_BYTES * hosts.max(1))).max(DOUBTED_MIN)
}

/// The hosts that are late, or were found dead less than `bound` ago.
fn doubtful(view: &View, now: Instant, bound: Duration) -> impl Iterator<Item = SocketAddr> + '_ {
    let doubtful = move |host: &&Host| match host.standing {
        Standing::Late => true,
        Standing::Dead => host.silent_since.is_some_and(|since| now < since + bound),
        Standing::Answering | Standing::Away | Standing::Gone => false,
    };
    view.hosts.values().filter(doubtful).map(|host| host.address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::fixtures::host;
    use crate::record::Record;
    use crate::view::{HostRecords, Via};

    #[tokio::test(start_paused = true)]
    async fn who_is_about_to_be_given_up_is_doubtful() {
        let (start, bound) = (Instant::now(), Duration::from_secs(6));
        let check = |standing, silent_s: Option<u64>, expected: bool| {
            let Record::Host(record) = host("b") else { unreachable!("a host record was asked for") };
            let records = HostRecords { host: record, networks: BTreeMap::new(), members: BTreeMap::new() };
            let host = Host {
                generation: 1,
                version: 1,
                address: ([192, 0, 2, 2], 7946).into(),
                standing,
                silent_since: silent_s.map(|ago| start - Duration::from_secs(ago)),
                via: Via::Chitchat,
                records: Arc::new(records),
            };
            let hosts = [("b".parse::<HostId>().unwrap(), host)].into_iter().collect();
            let view = View { hosts, ..View::default() };
            assert_eq!(doubtful(&view, start, bound).count() == 1, expected, "{standing:?} {silent_s:?}");
        };
        check(Standing::Answering, None, false);
        check(Standing::Away, None, false);
        check(Standing::Late, None, true);
        check(Standing::Dead, Some(0), true);
        check(Standing::Dead, Some(5), true);
        check(Standing::Dead, Some(6), false);
        check(Standing::Gone, Some(1000), false);
    }
}
