//! What hosts ask each other: whether a new member is in the kernel already, and what a judge gives.

use std::collections::BTreeSet;
use std::time::Duration;

use gossip::Ask;
use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{MemberRecord, MemberState};
use netplumb::kernel::Kernel;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Agent;
use crate::claims;
use crate::explain::{Look, Probe};
use crate::store::Store;

/// How long a question about a record waits for the kernel.
pub(super) const APPLIED_BOUND: Duration = Duration::from_secs(2);
/// How long a record that is asked about may be on its way: frames reach a thousand hosts within 30 ms. A pull costs two
/// digests of the whole region, and everybody in the network is asked.
const ON_ITS_WAY: Duration = Duration::from_millis(60);

/// What one host asks another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Question {
    /// Do you have this member in your kernel?
    Applied { network: NetworkId, member: MemberId, counter: u64 },
    /// Give me this.
    Claim(claims::Question),
    /// Which members do you remember of me?
    Mine,
    /// Say what you have.
    Inquiry(Inquiry),
}

/// What a person wants to know of a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inquiry {
    /// What do you know and have of your member towards another one? A [`crate::explain::Sight`].
    Look(Look),
    /// What comes back of echoes from your member to another one? [`crate::explain::Probes`].
    Probe(Probe),
    /// What would be mended now, if it were looked at? Words.
    Drift,
    /// What time is it? Milliseconds since 1970.
    Clock,
}

/// A member as another host remembers it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    pub(super) network: NetworkId,
    pub(super) member: MemberId,
    pub(super) record: MemberRecord,
}

/// A question waiting for the kernel.
pub(super) struct Pending {
    pub(super) from: HostId,
    pub(super) network: NetworkId,
    pub(super) member: MemberId,
    counter: u64,
    pub(super) deadline: Instant,
    pub(super) revision: Option<u64>,
    /// When its host is gossiped with, should the record not be here by then; once.
    pull_at: Option<Instant>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// When somebody is to be gossiped with.
fn next_pull(pending: &[Pending]) -> Option<Instant> {
    pending.iter().filter(|pending| pending.revision.is_none()).filter_map(|pending| pending.pull_at).min()
}

/// The hosts whose records should be here and are not; each is named once.
fn missed(pending: &mut [Pending], now: Instant) -> BTreeSet<HostId> {
    let late = pending.iter_mut().filter(|pending| pending.revision.is_none());
    late.filter_map(|pending| pending.pull_at.take_if(|at| *at <= now).map(|_| pending.from.clone()))
        .collect()
}

/// Whether a new member of which this host has just said that it is here will find it so, and needs no greeting: its
/// host was still waiting, and has not let it speak before.
fn met(state: MemberState, heard: bool) -> bool {
    heard && state == MemberState::Joining
}

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Other answering hosts with members of a network.
    pub(super) fn hosts_of(&self, network: NetworkId) -> Vec<HostId> {
        let has = |h: &gossip::view::Host| {
            h.records.members.iter().any(|((pn, _), r)| *pn == network && r.state != MemberState::Released)
        };
        let answers = |h: &gossip::view::Host| {
            matches!(h.standing, gossip::standing::Standing::Answering | gossip::standing::Standing::Late)
        };
        let others = self.view.hosts.iter().filter(|(host, _)| **host != self.here.host);
        others.filter(|(_, h)| answers(h) && has(h)).map(|(host, _)| host.clone()).collect()
    }

    /// Another host's question.
    pub(super) fn hear(&mut self, ask: Ask) {
        match serde_json::from_slice(&ask.body) {
            Ok(Question::Applied { network, member, counter }) => {
                self.hear_applied(ask, network, member, counter);
            }
            Ok(Question::Claim(question)) => {
                let answer = self.desk(question.network()).judge(&ask.from, &question, &mut rand::rng());
                tracing::debug!(from = %ask.from, ?question, ?answer, "judged");
                if let Ok(body) = serde_json::to_vec(&answer) {
                    let _ = ask.reply.send(body);
                }
            }
            Ok(Question::Mine) => {
                if let Ok(body) = serde_json::to_vec(&self.members_of(&ask.from)) {
                    let _ = ask.reply.send(body);
                }
            }
            Ok(Question::Inquiry(Inquiry::Look(look))) => self.hear_look(look, ask.reply),
            Ok(Question::Inquiry(Inquiry::Probe(probe))) => self.hear_probe(&probe, ask.reply),
            Ok(Question::Inquiry(Inquiry::Drift)) => self.hear_drift(ask.reply),
            Ok(Question::Inquiry(Inquiry::Clock)) => {
                let _ = ask.reply.send(self.events.now_ms().to_string().into_bytes());
            }
            // Dropping the reply refuses: a newer version asks what this one does not know.
            Err(_) => tracing::debug!(from = %ask.from, "a question of an unknown kind"),
        }
    }

    /// A host's members as this one knows them, those that vanished with an older generation too.
    pub(super) fn members_of(&self, host: &HostId) -> Vec<Remembered> {
        let published = self.view.hosts.get(host).map(|h| &h.records.members).into_iter().flatten();
        let published = published.map(|((network, member), record)| (*network, member, record));
        let vanished = self.view.vanished.iter().filter(|((owner, ..), _)| owner == host);
        let vanished = vanished.map(|((_, network, member), v)| (*network, member, &v.record));
        let all = published.chain(vanished).map(|(network, member, record)| Remembered {
            network,
            member: member.clone(),
            record: record.clone(),
        });
        all.collect()
    }

    /// Answered when the kernel has followed the record asked about.
    fn hear_applied(&mut self, ask: Ask, network: NetworkId, member: MemberId, counter: u64) {
        let now = Instant::now();
        self.pending.push(Pending {
            from: ask.from,
            network,
            member,
            counter,
            deadline: now + APPLIED_BOUND,
            revision: None,
            pull_at: Some(now + ON_ITS_WAY),
            reply: ask.reply,
        });
        self.answer_pending();
    }

    /// When [`pull_missed`](Self::pull_missed) has something to do.
    pub(super) fn next_pull(&self) -> Option<Instant> {
        next_pull(&self.pending)
    }

    /// Gossips with those whose records are asked about and should be here.
    pub(super) fn pull_missed(&mut self) {
        let Some(gossip) = &self.gossip else { return };
        for host in missed(&mut self.pending, Instant::now()) {
            gossip.pull(&host);
        }
    }

    pub(super) fn answer_pending(&mut self) {
        let built = self.context.built.borrow().revision;
        let now = Instant::now();
        for mut pending in std::mem::take(&mut self.pending) {
            let concerned = self.journal.durable().any(|e| e.network == pending.network);
            let host = self.view.hosts.get(&pending.from);
            let record = host.and_then(|h| h.records.members.get(&(pending.network, pending.member.clone())));
            let known = record.filter(|r| r.counter >= pending.counter);
            if known.is_some() && pending.revision.is_none() {
                pending.revision = Some(self.revision);
            }
            if !concerned || pending.revision.is_some_and(|revision| built >= revision) {
                let heard = pending.reply.send(b"true".to_vec()).is_ok();
                if concerned && known.is_some_and(|record| met(record.state, heard)) {
                    self.young.remove(&(pending.from, pending.network, pending.member));
                }
            } else if now < pending.deadline {
                self.pending.push(pending);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::fixtures::{self, pn};

    /// Else each of a hundred hosts of a network would exchange digests with whoever attaches there.
    #[tokio::test(start_paused = true)]
    async fn only_what_did_not_come_in_time_is_pulled_and_once_from_each_host() {
        let start = Instant::now();
        let of = |host: &str, member: u64, revision| Pending {
            from: host.parse().unwrap(),
            network: pn(),
            member: fixtures::member(member),
            counter: 1,
            deadline: start + APPLIED_BOUND,
            revision,
            pull_at: Some(start + ON_ITS_WAY),
            reply: oneshot::channel().0,
        };
        let mut pending = [of("a", 1, None), of("a", 2, None), of("b", 3, Some(7))];
        assert!(missed(&mut pending, start).is_empty());
        let then = next_pull(&pending).unwrap();
        assert_eq!(missed(&mut pending, then), BTreeSet::from(["a".parse().unwrap()]));
        assert!(missed(&mut pending, then + ON_ITS_WAY).is_empty());
        assert_eq!(next_pull(&pending), None);
    }

    /// It speaks as soon as it is ready. What it said before this host had built it is lost, and a kernel repeats it
    /// after 5 s only.
    #[test]
    fn whoever_did_not_hear_in_time_is_greeted() {
        for (state, heard, expected) in [
            (MemberState::Joining, true, true),
            (MemberState::Joining, false, false),
            (MemberState::Ready, true, false),
            (MemberState::Ready, false, false),
        ] {
            assert_eq!(met(state, heard), expected, "{state:?}, heard {heard}");
        }
    }
}
