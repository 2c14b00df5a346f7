//! What the tasks around the loop ask of it, and what it does by the clock.

use std::collections::BTreeSet;
use std::time::Duration;

use gossip::id::{HostId, MemberId};
use netplumb::kernel::Kernel;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::contested::READDRESS_PER_TICK;
use super::question::{Inquiry, Question};
use super::{Agent, Built, Step};
use crate::attach::Claimed;
use crate::claims::{Answer, Told};
use crate::store::{Entry, Store};

/// How long the hosts are not written down again, for each of them.
const REMEMBER_HOST: Duration = Duration::from_millis(50);
/// How often it is said that no seed answers.
const LONELY: Duration = Duration::from_secs(60);

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    pub(super) async fn step(&mut self, step: Step) {
        match step {
            Step::Claim(asked, told, reply) => {
                let (call, container) = *asked;
                let claimed = self.claim(call, container, told);
                let changed = matches!(claimed, Ok(Claimed::New(..) | Claimed::Existing(..)));
                // Answered before it is published: the journal is written meanwhile.
                let _ = reply.send(claimed);
                if changed {
                    self.follow().await;
                }
            }
            Step::Reserve(asked, told, reply) => {
                let reserved = self.reserve(*asked, told);
                // Published before it is answered: a runtime may take it back at once.
                self.follow().await;
                let _ = reply.send(reserved);
            }
            Step::Bind(binding, told, reply) => {
                let bound = self.bind(*binding, told);
                self.follow().await;
                let _ = reply.send(bound);
            }
            Step::Name(named, told, reply) => {
                let (member, naming) = *named;
                let named = self.name(&member, naming, told);
                self.follow().await;
                let _ = reply.send(named);
            }
            Step::Take(entry, ipv6, reply) => {
                let address6 = self.address6(entry.network, entry.address, ipv6);
                self.take(Entry { address6, ipv6, ..*entry });
                let _ = reply.send(());
            }
            Step::TakeOver(remembered) => {
                if !self.taken_over {
                    self.take_over(remembered).await;
                    self.follow().await;
                }
            }
            Step::Move(member, told, reply) => {
                let moved = self.move_member(&member, told);
                self.follow().await;
                let _ = reply.send(moved);
            }
            Step::Inquire { host, inquiry, bound, reply } => self.inquire(host, inquiry, bound, reply),
            Step::Ask(judge, question, reply) => self.ask_judge(judge, Question::Claim(question), reply),
            Step::Build(member, reply) => self.building.wait(member, reply),
            Step::AskApplied { host, network, member, counter, wait, reply } => {
                self.ask_applied(host, Question::Applied { network, member, counter }, wait, reply);
            }
            Step::Ready(member, reply) => {
                let ready = self.ready(&member);
                // As with a claim; who asked waits for both.
                let _ = reply.send(ready);
                self.follow().await;
            }
            Step::Turn(reply) => drop(reply.send(())),
            Step::Create(network, subnet, told, reply) => {
                let created = self.create(network, subnet, told);
                self.follow().await;
                let _ = reply.send(created);
            }
            Step::Forget(network, reply) => {
                let forgotten = self.forget(network);
                self.follow().await;
                let _ = reply.send(forgotten);
            }
            Step::Forward(network, forward, reply) => {
                let set = self.set_forwarding(network, forward);
                self.follow().await;
                let _ = reply.send(set);
            }
            Step::Drain(draining, reply) => {
                let drained = self.drain(draining).await;
                self.follow().await;
                let _ = reply.send(drained);
            }
            Step::Release(member, reply) => {
                if !self.taken_over && self.journal.get(&member).is_none() {
                    self.disowned.insert(member.clone());
                }
                let (counter, until) = (self.ledger.next_counter(), Instant::now() + self.quarantine);
                self.journal().release(&member, counter, until);
                self.follow().await;
                let _ = reply.send(self.revision);
            }
        }
    }

    fn ask_judge(&mut self, judge: HostId, question: Question, reply: oneshot::Sender<Option<Answer>>) {
        let Some(gossip) = self.gossip.clone() else { return };
        let Ok(body) = serde_json::to_vec(&question) else { return };
        self.tasks.spawn(async move {
            let answer = gossip.ask(&judge, body, Told::BOUND).await;
            let _ = reply.send(answer.ok().and_then(|answer| serde_json::from_slice(&answer).ok()));
        });
    }

    fn inquire(
        &mut self,
        host: HostId,
        inquiry: Inquiry,
        bound: Duration,
        reply: oneshot::Sender<Result<Vec<u8>, String>>,
    ) {
        let (Some(gossip), Ok(body)) = (self.gossip.clone(), serde_json::to_vec(&Question::Inquiry(inquiry)))
        else {
            let _ = reply.send(Err("this host has not joined the region yet".to_owned()));
            return;
        };
        self.tasks.spawn(async move {
            let _ = reply.send(gossip.ask(&host, body, bound).await.map_err(|error| error.to_string()));
        });
    }

    fn ask_applied(
        &mut self,
        host: HostId,
        question: Question,
        wait: Duration,
        reply: oneshot::Sender<bool>,
    ) {
        let Some(gossip) = self.gossip.clone() else { return };
        let Ok(body) = serde_json::to_vec(&question) else { return };
        let (started, metrics) = (Instant::now(), self.metrics.clone());
        self.tasks.spawn(async move {
            let said = gossip.ask(&host, body, wait).await.is_ok_and(|answer| answer == b"true");
            if said {
                metrics.converged(started.elapsed());
            }
            let _ = reply.send(said);
        });
    }

    pub(super) async fn on_built(&mut self, built: &Built) {
        self.drop_refused_ipv6(built).await;
        if built.revision >= self.revision {
            let gone: Vec<MemberId> =
                self.journal.to_tear_down().into_iter().filter(|m| !built.failed.contains_key(m)).collect();
            if !gone.is_empty() {
                for member in &gone {
                    self.journal().mark_torn_down(member);
                }
                self.follow().await;
            }
        }
        self.answer_pending();
    }

    pub(super) async fn on_tick(&mut self) {
        self.bench.beat(Instant::now());
        self.tell_lonely();
        self.grow_up();
        self.readdresses_left = READDRESS_PER_TICK;
        self.settle_contested();
        if !self.taken_over {
            self.recall();
        }
        self.drop_unused();
        self.expire().await;
        if self.names.is_due(Instant::now()) {
            self.follow().await;
        }
        if self.watching.as_ref().is_none_or(tokio::task::AbortHandle::is_finished) {
            self.watch_containers();
        }
    }

    /// Forgets released members whose quarantine is over.
    async fn expire(&mut self) {
        let now = Instant::now();
        if !self.journal.any_expired(now) {
            return;
        }
        for entry in self.journal().expire(now) {
            let store = self.store.clone();
            self.tasks.spawn(async move {
                if let Err(error) = store.remove(&entry.member).await {
                    tracing::error!(member = %entry.member, "journal: {error}");
                }
            });
        }
        self.follow().await;
    }

    fn watch_containers(&mut self) {
        let live: Vec<Entry> = self.journal.durable().cloned().collect();
        if live.is_empty() {
            return;
        }
        let (context, kernel) = (self.context.clone(), self.kernel.clone());
        self.watching = Some(self.tasks.spawn(async move {
            for entry in live {
                match due(&entry, kernel.alive(&entry.netns, entry.inode).await) {
                    Due::Look => _ = context.look_into_sandbox(&entry).await,
                    Due::Finish => {
                        if let Err(refusal) = context.finish(&entry.member).await {
                            tracing::warn!(member = %entry.member, "not whole yet: {refusal}");
                        }
                    }
                    Due::Detach => {
                        tracing::info!(member = %entry.member, container = %entry.container, "container is gone: detaching");
                        if let Err(error) = context.clone().detach(entry).await {
                            tracing::warn!("detach of a gone container: {error}");
                        }
                    }
                    Due::Nothing => {}
                }
            }
        }));
    }

    /// Says once a minute that no seed answers: the host serves its own containers meanwhile.
    fn tell_lonely(&mut self) {
        let now = Instant::now();
        let answered = self.view.answering().any(|(host, _)| *host != self.here.host);
        let early = self.joined_at.is_none_or(|joined| now - joined < self.timings.hold);
        if answered || early || self.seeds.is_empty() {
            self.lonely_told = None;
        } else if self.lonely_told.is_none_or(|told| now - told >= LONELY) {
            self.lonely_told = Some(now);
            let seeds = self.seeds.join(", ");
            tracing::warn!(
                "no other host answers: trying the seeds ({seeds}) for ever, serving this host's containers"
            );
        }
    }

    /// Writes down the other hosts, and closes the books nobody looks into.
    pub(super) fn remember(&mut self) {
        let mut keep: BTreeSet<_> = self.journal.networks();
        keep.append(&mut self.asked);
        self.ledger.close_others(&keep);
        let now = Instant::now();
        if self.gossip.is_none() || self.remember_from.is_some_and(|then| now < then) {
            return;
        }
        let versions: Vec<(u64, u64)> = self.view.hosts.values().map(|h| (h.generation, h.version)).collect();
        if versions == self.remembered {
            return;
        }
        // A large region is written down less often: it takes longer, and is missed less.
        self.remember_from = Some(now + REMEMBER_HOST * versions.len() as u32);
        self.remembered = versions;
        let (store, own, view) = (self.store.clone(), self.here.host.clone(), self.view.clone());
        self.tasks.spawn(async move {
            if let Err(error) = store.set_known(&own, view).await {
                tracing::warn!("the last view was not kept: {error}");
            }
        });
    }
}

/// What a look at a member's container calls for.
#[derive(Debug, PartialEq)]
enum Due {
    /// Its runtime may have taken the interface meanwhile.
    Look,
    /// The agent was restarted between the two halves of its attach.
    Finish,
    /// The container is gone.
    Detach,
    Nothing,
}

/// `alive` says whether the namespace is there that the entry names: the host's own, as long as the interface is held.
fn due(entry: &Entry, alive: bool) -> Due {
    if entry.is_held() {
        Due::Look
    } else if !alive {
        Due::Detach
    } else if entry.is_unfinished() && entry.is_named() {
        Due::Finish
    } else {
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use gossip::record::MemberState;

    use super::*;
    use crate::project::fixtures;
    use crate::store::Endpoint;

    #[test]
    fn a_container_that_is_gone_is_detached_whatever_was_left_to_do() {
        let held = || Endpoint::Held { id: "e".into(), sandbox: "/run/s".into() };
        let taken = || Endpoint::Taken { id: "e".into() };
        for (state, endpoint, is_named, alive, expected) in [
            (MemberState::Ready, None, true, true, Due::Nothing),
            (MemberState::Ready, None, true, false, Due::Detach),
            (MemberState::Joining, Some(held()), true, true, Due::Look),
            (MemberState::Joining, Some(taken()), true, true, Due::Finish),
            (MemberState::Joining, Some(taken()), true, false, Due::Detach),
            (MemberState::Joining, Some(taken()), false, true, Due::Nothing),
            (MemberState::Joining, Some(taken()), false, false, Due::Detach),
            (MemberState::Ready, Some(taken()), true, true, Due::Nothing),
        ] {
            let mut entry = Entry { endpoint, ..fixtures::entry(1, state) };
            if !is_named {
                entry.app = Entry::nobody();
            }
            assert_eq!(due(&entry, alive), expected, "{:?}, named {is_named}, alive {alive}", entry.endpoint);
        }
    }
}
