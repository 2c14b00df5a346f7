//! Attach and detach in their steps, each a task of its own beside the agent's loop: take the
//! namespace, claim and journal, publish as joining, build, wait for the other hosts, publish as
//! ready. Any failure releases what was claimed.

use std::sync::Arc;
use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::MemberState;
use ipnet::Ipv4Net;
use netplumb::kernel::{Container, Kernel, NetnsSource};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Call, Netns, Refusal, RefusalKind, check_request};
use crate::agent::{Built, Inquiry, Step};
use crate::store::{Entry, Store};

/// How long the whole call may take, the wait for other hosts excluded.
pub(super) const ATTACH_BOUND: Duration = Duration::from_secs(15);
/// How long the kernel may take to be rid of all members.
const END_ALL_BOUND: Duration = Duration::from_secs(60);
/// How long an attach waits for the other hosts when the caller does not say.
pub(super) const APPLIED_WAIT_DEFAULT: Duration = Duration::from_millis(250);

/// What became of a claim.
pub enum Claimed {
    /// It is a member already.
    Existing(Box<Entry>),
    /// Claimed and published as joining; these hosts have members of the network.
    New(Box<Entry>, Vec<HostId>),
    /// Something of an earlier member stands in the container, and no journal entry names it.
    Leftovers,
    /// An earlier member is still being taken out of the container: look again then.
    Leaving(Instant),
}

/// What a task needs of the agent.
pub struct Context<K, S> {
    /// The kernel, to take the namespace.
    pub kernel: Arc<K>,
    /// The journal on disk.
    pub store: S,
    /// To the loop.
    pub steps: mpsc::Sender<Step>,
    /// What has been built.
    pub built: watch::Receiver<Arc<Built>>,
    /// Attach where nf_tables is missing.
    pub unguarded: bool,
}

impl<K, S: Clone> Clone for Context<K, S> {
    fn clone(&self) -> Self {
        Context {
            kernel: self.kernel.clone(),
            store: self.store.clone(),
            steps: self.steps.clone(),
            built: self.built.clone(),
            unguarded: self.unguarded,
        }
    }
}

impl<K: Kernel, S: Store> Context<K, S> {
    /// Attaches; the entry is ready, journalled and built when this returns.
    pub async fn attach(self, call: Call) -> Result<(Entry, Applied), Refusal> {
        let started = Instant::now();
        check_request(&call)?;
        let container = self.take(&call.request.netns).await?;
        let deadline = started + ATTACH_BOUND;
        let (entry, hosts) = match self.claim(&call, container, deadline).await? {
            (entry, Some(hosts)) => (entry, hosts),
            (entry, None) => return Ok((entry, Applied::default())),
        };
        let wait = call.request.wait_ms.map_or(APPLIED_WAIT_DEFAULT, Duration::from_millis);
        let applied = self.realize(&entry, hosts, wait, deadline).await?;
        match self.ready(&entry.member).await {
            Ok(entry) => Ok((entry, applied)),
            Err(refusal) => {
                self.release(entry).await;
                Err(refusal)
            }
        }
    }

    /// Whether the agent's loop answers within that time.
    pub async fn turns(&self, within: Duration) -> bool {
        tokio::time::timeout(within, self.step(Step::Turn)).await.is_ok_and(|turned| turned.is_ok())
    }

    /// Detaches: returns when the end is on disk, published, and out of DNS. The kernel follows at once, and a failure
    /// there is tried again; an attach into the same container waits for it.
    pub async fn detach(self, entry: Entry) -> Result<(), Refusal> {
        self.end(entry).await.map(|_| ())
    }

    /// Detaches all of these; returns when the kernel is rid of them.
    pub async fn end_all(self, entries: Vec<Entry>) -> Result<(), Refusal> {
        let members: Vec<MemberId> = entries.iter().map(|entry| entry.member.clone()).collect();
        let ended = futures::future::join_all(entries.into_iter().map(|entry| self.end(entry))).await;
        let revisions = ended.into_iter().collect::<Result<Vec<u64>, Refusal>>()?;
        let Some(last) = revisions.into_iter().max() else { return Ok(()) };
        let built = self.built(last, Instant::now() + END_ALL_BOUND).await?;
        members
            .iter()
            .find_map(|member| built.failed.get(member))
            .map_or(Ok(()), |failed| Err(failed.clone()))
    }

    /// The end of a member is on disk and published; the kernel has followed when it has this revision.
    async fn end(&self, mut entry: Entry) -> Result<u64, Refusal> {
        entry.state = MemberState::Released;
        self.store.put(&entry).await.map_err(|e| unwritten(&e))?;
        self.step(|reply| Step::Release(entry.member.clone(), reply)).await
    }

    /// Step 1: the namespace, and that nothing in it is in the way.
    async fn take(&self, netns: &Netns) -> Result<Container, Refusal> {
        let source = match netns {
            Netns::Path(path) => NetnsSource::Path(path.clone()),
            Netns::Pid { id, inode } => NetnsSource::Pid { pid: *id, inode: *inode },
        };
        let container = self.kernel.identify(&source).await.map_err(|e| Refusal::from(&e))?;
        if container.own {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                "this is the host's own network namespace: a private network is for containers",
            )
            .hint("run the container without --network host"));
        }
        if !container.nf_tables && !self.unguarded {
            return Err(unguardable());
        }
        Ok(container)
    }

    /// Steps 2 and 3: the loop claims the things and publishes the member as joining. With it the hosts that are to
    /// have it, unless it was a member already.
    async fn claim(
        &self,
        call: &Call,
        mut container: Container,
        deadline: Instant,
    ) -> Result<(Entry, Option<Vec<HostId>>), Refusal> {
        loop {
            let asked = Box::new((call.clone(), container));
            let claimed =
                self.rounds(Some(deadline), |told, reply| Step::Claim(asked.clone(), told, reply)).await?;
            match claimed {
                Claimed::Existing(entry) => return Ok((*entry, None)),
                Claimed::New(entry, hosts) => return Ok((*entry, Some(hosts))),
                Claimed::Leftovers => {
                    self.kernel.clean(&asked.1.netns).await.map_err(|e| Refusal::from(&e))?;
                }
                Claimed::Leaving(then) if then > deadline => {
                    let why = "an earlier member is still being taken out of the container";
                    return Err(Refusal::new(RefusalKind::Timeout, why)
                        .hint("see the agent's log for the operation that hangs"));
                }
                Claimed::Leaving(then) => tokio::time::sleep_until(then).await,
            }
            container = self.take(&call.request.netns).await?;
        }
    }

    /// Detaches a member that the journal does not name. There is none, unless the journal was lost
    /// and the region has not said yet what this host had: then it is not taken over.
    pub async fn disown(self, member: MemberId) -> Result<(), Refusal> {
        self.step(|reply| Step::Release(member, reply)).await.map(|_| ())
    }

    /// Asks a host, this one too; a reason when it does not answer.
    pub async fn inquire(&self, host: HostId, inquiry: Inquiry, bound: Duration) -> Result<Vec<u8>, String> {
        let asked = self.step(|reply| Step::Inquire { host, inquiry, bound, reply }).await;
        asked.unwrap_or_else(|refusal| Err(refusal.detail))
    }

    /// Makes a network, with this subnet or any; it is on disk when this returns.
    pub async fn create(self, network: NetworkId, subnet: Option<Ipv4Net>) -> Result<(), Refusal> {
        let deadline = Some(Instant::now() + ATTACH_BOUND);
        let make = |told, reply| Step::Create(network, subnet, told, reply);
        let claim = self.rounds(deadline, make).await?;
        if let Err(error) = self.store.put_network(network, &claim).await {
            // Its members, if it has any meanwhile, keep it.
            let _ = self.step(|reply| Step::Forget(network, reply)).await?;
            return Err(unwritten(&error));
        }
        Ok(())
    }

    /// Forgets a network made here; one that is not there is forgotten.
    pub async fn forget(self, network: NetworkId) -> Result<(), Refusal> {
        if self.step(|reply| Step::Forget(network, reply)).await?? {
            self.store.remove_network(network).await.map_err(|e| unwritten(&e))?;
        }
        Ok(())
    }

    /// Says whether other names are passed on for a network's containers.
    pub async fn forward(self, network: NetworkId, forward: bool) -> Result<(), Refusal> {
        let made = self.step(|reply| Step::Forward(network, forward, reply)).await??;
        match made {
            Some(claim) => self.store.put_network(network, &claim).await.map_err(|e| unwritten(&e)),
            None => Ok(()),
        }
    }

    /// Drains this host, or takes it back: published, on disk and in the names served here when this returns.
    pub async fn drain(self, draining: bool) -> Result<(), Refusal> {
        self.step(|reply| Step::Drain(draining, reply)).await?
    }

    /// Gives a contested member other things; it keeps its key and its names.
    pub async fn settle(self, member: MemberId) {
        let make = |told, reply| Step::Move(member.clone(), told, reply);
        // The loop has said why it refused; else the agent stops.
        let _ = self.rounds(None, make).await;
    }

    /// Steps 4 and 5, first half: a claimed member is journalled and built while the other hosts are asked whether
    /// they have it. It is released when it cannot be.
    pub(super) async fn realize(
        &self,
        entry: &Entry,
        hosts: Vec<HostId>,
        wait: Duration,
        deadline: Instant,
    ) -> Result<Applied, Refusal> {
        let made = async {
            self.store.put(entry).await.map_err(|e| unwritten(&e))?;
            self.build(&entry.member, deadline).await
        };
        let (made, applied) = tokio::join!(made, self.ask_applied(entry, hosts, wait));
        if let Err(refusal) = made {
            self.release(entry.clone()).await;
            return Err(refusal);
        }
        Ok(applied)
    }

    /// Step 4: the reconciler builds it.
    pub(super) async fn build(&self, member: &MemberId, deadline: Instant) -> Result<(), Refusal> {
        let asked = self.step(|reply| Step::Build(member.clone(), reply));
        let revision = tokio::time::timeout_at(deadline, asked).await.map_err(|_| unbuilt())??;
        let built = self.built(revision, deadline).await?;
        match built.failed.get(member) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Who has the member in its kernel, of the hosts that need it.
    async fn ask_applied(&self, entry: &Entry, hosts: Vec<HostId>, wait: Duration) -> Applied {
        let deadline = Instant::now() + wait;
        let asks = hosts.into_iter().map(|host| {
            let (reply, answer) = oneshot::channel();
            let ask = Step::AskApplied {
                host: host.clone(),
                network: entry.network,
                member: entry.member.clone(),
                counter: entry.counter,
                wait,
                reply,
            };
            async move {
                let sent = self.steps.send(ask).await.is_ok();
                let said = sent && matches!(tokio::time::timeout_at(deadline, answer).await, Ok(Ok(true)));
                (host, said)
            }
        });
        let mut applied = Applied::default();
        for (host, said) in futures::future::join_all(asks).await {
            if said { applied.applied.push(host) } else { applied.missing.push(host) }
        }
        applied
    }

    /// Step 5, second half: it is written down that the member is ready, and published.
    pub(super) async fn ready(&self, member: &MemberId) -> Result<Entry, Refusal> {
        let entry = self.step(|reply| Step::Ready(member.clone(), reply)).await??;
        // Written down while the loop publishes it; both have been done when this returns.
        let (written, published) = tokio::join!(self.store.put(&entry), self.step(Step::Turn));
        written.map_err(|e| unwritten(&e))?;
        published?;
        Ok(entry)
    }

    async fn release(&self, mut entry: Entry) {
        if let Ok(revision) = self.step(|reply| Step::Release(entry.member.clone(), reply)).await {
            entry.state = MemberState::Released;
            // Best effort, as the store may be what has failed: an entry that stays as joining is
            // released at the next start, and what is left is torn down from the journal.
            let _ = self.store.put(&entry).await;
            let _ = self.built(revision, Instant::now() + ATTACH_BOUND).await;
        }
    }

    pub(super) async fn step<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Step) -> Result<T, Refusal> {
        let stopping = || Refusal::new(RefusalKind::Unready, "the agent is stopping");
        let (reply, answer) = oneshot::channel();
        self.steps.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    async fn built(&self, revision: u64, deadline: Instant) -> Result<Arc<Built>, Refusal> {
        let mut built = self.built.clone();
        let reached = built.wait_for(|built| built.revision >= revision);
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(built)) => Ok(built.clone()),
            Ok(Err(_)) => Err(Refusal::new(RefusalKind::Unready, "the agent is stopping")),
            Err(_) => Err(unbuilt()),
        }
    }
}

/// Which hosts of the network said they have the new member.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Those that did.
    pub applied: Vec<HostId>,
    /// Those that did not in time.
    pub missing: Vec<HostId>,
}

fn unbuilt() -> Refusal {
    Refusal::new(RefusalKind::Timeout, "the kernel was not ready in time")
        .hint("see the agent's log for the operation that hangs")
}

/// Why a kernel without nf_tables attaches nothing.
pub(super) fn unguardable() -> Refusal {
    Refusal::new(
        RefusalKind::Failed,
        "this kernel has no nf_tables, so the private address cannot be protected from the container's other networks",
    )
    .hint("load the nf_tables module, or set `unguarded = true` to attach all the same")
}

pub(crate) fn unwritten(error: &std::io::Error) -> Refusal {
    Refusal::new(RefusalKind::Failed, format!("the journal cannot be written: {error}"))
        .hint("free space on state_dir, or make it writable")
}
