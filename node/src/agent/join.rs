//! Into the region: what outlived the last agent, how soon to join, and joining.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gossip::id::{MemberId, NetworkId};
use gossip::record::{MemberRecord, MemberState, NetworkRecord};
use gossip::{Arrival, Ask, Gossip, JoinError};
use netplumb::kernel::{Found, Kernel};
use netplumb::state::Key;
use rand::seq::IteratorRandom as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::question::{Question, Remembered};
use super::{Agent, EventKind, JOIN_RETRY, Step, TICK};
use crate::claims::{DEFAULT_SUBNET, vni_candidate};
use crate::project;
use crate::store::{Entry, Store};

/// What joining the region takes.
pub(super) struct Join<S, W> {
    pub(super) config: gossip::Config,
    pub(super) wire: W,
    pub(super) store: S,
    pub(super) delay: Duration,
}

pub(super) enum Joined {
    /// The region has been heard; nothing is published yet.
    Arrived(Box<Arrival>),
    In(Gossip, mpsc::Receiver<Ask>),
    /// Why not, in words.
    Not(String),
}

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Begins to hear the region.
    pub(super) fn try_join<W: gossip::Wire + Clone>(
        &mut self,
        join: &Arc<Join<S, W>>,
        answer: &mpsc::Sender<Joined>,
        delay: Duration,
    ) {
        if delay > JOIN_RETRY {
            tracing::warn!(
                delay_s = delay.as_secs(),
                "started often within a minute: joining later, serving locally"
            );
        }
        let (join, answer) = (join.clone(), answer.clone());
        self.tasks.spawn(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let arrived = Arrival::at(join.config.clone(), join.wire.clone()).await;
            let joined = arrived.map_or_else(not, |arrival| Joined::Arrived(Box::new(arrival)));
            // The receiver ends with the loop only.
            let _ = answer.send(joined).await;
        });
    }

    /// The region has been heard: what it says decides what this host publishes first.
    pub(super) async fn arrive<W: gossip::Wire + Clone>(
        &mut self,
        arrival: Arrival,
        join: &Arc<Join<S, W>>,
        answer: &mpsc::Sender<Joined>,
    ) {
        self.view = arrival.view();
        if let Some(why) = self.stranger() {
            let answer = answer.clone();
            self.tasks.spawn(async move { _ = answer.send(Joined::Not(why)).await });
            return;
        }
        let alone = self.seeds.is_empty() && self.view.hosts.len() <= 1;
        if !self.taken_over && (alone || (self.view.whole && self.others_answer())) {
            self.take_over(Vec::new()).await;
        }
        self.follow().await;
        self.yield_held();
        self.follow().await;
        let (records, store, answer) = (self.initial(), join.store.clone(), answer.clone());
        self.tasks.spawn(async move {
            let persist = move |generation| store.set_generation(generation);
            let joined = match arrival.join(records, persist).await {
                Ok((gossip, asks)) => Joined::In(gossip, asks),
                Err(error) => not(error),
            };
            let _ = answer.send(joined).await;
        });
    }

    /// Members this host had in an older generation and whose journal entry is lost are taken over,
    /// if their interface stands here still; then what nobody names is removed. `others` is what
    /// another host remembers. It all waits until the region was heard: before that nobody can say
    /// whose a namespace is.
    pub(super) async fn take_over(&mut self, others: Vec<Remembered>) {
        self.taken_over = true;
        let here = self.here.host.clone();
        let all = others.into_iter().chain(self.members_of(&here));
        let lost: BTreeMap<MemberId, (NetworkId, MemberRecord)> = all
            .filter(|r| r.record.state != MemberState::Released && self.journal.get(&r.member).is_none())
            .map(|r| (r.member, (r.network, r.record)))
            .collect();
        let keys = lost.iter().map(|(member, (_, record))| (member.to_string(), Key(record.key.0))).collect();
        for found in self.kernel.find(&keys).await {
            let Ok(member) = found.member.parse::<MemberId>() else { continue };
            if let Some((network, record)) = lost.get(&member) {
                self.adopt(*network, record, found).await;
            }
        }
        if let Err(error) = self.kernel.sweep(&project::ours(self.journal.all())).await {
            tracing::warn!("what an earlier life of this agent left is not removed: {error}");
        }
    }

    /// Why this host has no place in the region, in words.
    fn stranger(&self) -> Option<String> {
        let heard = project::heard(&self.view, &self.here.host);
        project::foreign_family(heard, self.here.vtep.address)
    }

    fn others_answer(&self) -> bool {
        self.view.hosts.iter().any(|(host, h)| *host != self.here.host && h.standing.answers())
    }

    /// Asks an answering host what it remembers of this one, when nobody could be heard before the
    /// join; one that has no peers but seeds that do not answer goes on waiting for them.
    pub(super) fn recall(&mut self) {
        let Some(gossip) = self.gossip.clone() else { return };
        let others =
            self.view.hosts.iter().filter(|(host, h)| **host != self.here.host && h.standing.answers());
        let asked = others.map(|(host, _)| host.clone()).choose(&mut rand::rng());
        let (steps, body) = (self.context.steps.clone(), serde_json::to_vec(&Question::Mine));
        let (Some(host), Ok(body)) = (asked.filter(|_| self.view.whole), body) else { return };
        self.tasks.spawn(async move {
            let answer = gossip.ask(&host, body, TICK).await;
            // Another one is asked at the next tick.
            if let Some(remembered) = answer.ok().and_then(|answer| serde_json::from_slice(&answer).ok()) {
                let _ = steps.send(Step::TakeOver(remembered)).await;
            }
        });
    }

    async fn adopt(&mut self, network: NetworkId, record: &MemberRecord, found: Found) {
        let Ok(member) = found.member.parse::<MemberId>() else { return };
        let own = self.view.hosts.get(&self.here.host).and_then(|h| h.records.networks.get(&network));
        let claim = self.ledger.networks.get(network).or_else(|| own.cloned());
        // A network of this host alone, whose record nobody remembers, begins anew where its members are.
        let claim = claim.unwrap_or_else(|| NetworkRecord {
            counter: self.ledger.next_counter(),
            vni: vni_candidate(network, 0),
            subnet: found.subnet.unwrap_or(DEFAULT_SUBNET),
            forwarding: None,
            unknown: BTreeMap::new(),
        });
        // An attach that did not end was promised to nobody, and what was detached meanwhile is
        // wanted by nobody: both are torn down.
        let kept = record.state == MemberState::Ready && !self.disowned.contains(&member);
        let entry = Entry {
            // Its caller's name for it is lost; the namespace tells it from others.
            container: member.to_string(),
            member,
            network,
            claim,
            app: record.app,
            process: record.process.clone(),
            ordinal: record.ordinal,
            ordinal_chosen: record.ordinal_chosen,
            netns: found.netns,
            inode: found.inode,
            boot: self.boot.clone(),
            ifname: found.ifname,
            address: record.address,
            address6: record.address6,
            ipv6: record.address6.is_some(),
            public_key: record.key,
            private_key: found.private_key,
            ports: record.ports().collect(),
            state: if kept { MemberState::Ready } else { MemberState::Released },
            counter: record.counter,
            endpoint: None,
        };
        if let Err(error) = self.store.put(&entry).await {
            tracing::error!(member = %entry.member, "not taken over: {error}");
            return;
        }
        let what = format!("{} in {network}, in {}", entry.member, entry.netns.path.display());
        tracing::warn!("taken over from the region's records: {what}");
        self.events.note(EventKind::Adopted, what);
        let until = Instant::now() + self.quarantine;
        self.journal().restore_one(entry, until);
    }

    /// The returner yields: what a live member of an answering host has is that one's, however low
    /// the counter of the claim made here before. A counter above all others makes this one the
    /// contested one, in every view.
    fn yield_held(&mut self) {
        let held = |e: &&Entry| {
            let others =
                self.view.hosts.iter().filter(|(host, h)| **host != self.here.host && h.standing.answers());
            let members = others.flat_map(|(_, h)| h.records.members.iter());
            let mut same = members.filter(|((network, _), r)| {
                *network == e.network && r.state != MemberState::Released && r.address == e.address
            });
            same.next().is_some()
        };
        let yielding: Vec<Entry> = self.journal.live().filter(held).cloned().collect();
        for entry in yielding {
            let what = format!("{} in {}: {} is another's now", entry.member, entry.network, entry.address);
            tracing::warn!("{what}");
            self.events.note(EventKind::Yielded, what);
            let counter = self.ledger.next_counter();
            self.change(Entry { counter, ..entry });
        }
    }
}

fn not(error: JoinError) -> Joined {
    Joined::Not(error.to_string())
}

/// Three starts within a minute delay the next join by 5 s, 10 s … 60 s: every start is a new
/// generation in everybody's digest. `starts` are the last ones in wall-clock seconds; this one is
/// added.
pub(super) fn start_delay(now_s: u64, starts: &mut Vec<u64>) -> Duration {
    starts.retain(|s| s.abs_diff(now_s) <= 60);
    starts.push(now_s);
    let kept = starts.len().saturating_sub(16);
    starts.drain(..kept);
    Duration::from_secs((starts.len().saturating_sub(2) as u64 * 5).min(60))
}

/// Entries of another boot, of an unfinished attach or of a namespace that is gone are released:
/// what is left of them is torn down from the journal. What a runtime was promised is kept.
pub(super) async fn settle<K: Kernel, S: Store>(
    mut entries: Vec<Entry>,
    boot: &str,
    kernel: &K,
    store: &S,
) -> Vec<Entry> {
    for entry in &mut entries {
        let alive = entry.boot == boot && kernel.alive(&entry.netns, entry.inode).await;
        let promised = entry.state == MemberState::Ready || entry.endpoint_id().is_some();
        if entry.state == MemberState::Released || (promised && alive) {
            continue;
        }
        tracing::info!(member = %entry.member, container = %entry.container, alive, "member did not outlive the agent");
        entry.state = MemberState::Released;
        // Not written, it is found so again at the next start.
        if let Err(error) = store.put(entry).await {
            tracing::error!(member = %entry.member, "journal: {error}");
        }
    }
    entries
}
