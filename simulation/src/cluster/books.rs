//! The oracle's own books: what was asked, what was promised, and how it ended. Nothing in them comes from a
//! view; what a member is called and which key it has is copied from the answer of its attach.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use gossip::id::{AppId, MemberId, NetworkId, ProcessType};
use node::attach::{Call, Refusal};
use node::store::Entry;
use tokio::time::Instant;

use super::{Host, QUARANTINE};
use crate::history::History;

/// A call to attach.
#[derive(Clone)]
pub struct Attempt {
    /// The machine.
    pub host: usize,
    /// What is asked.
    pub call: Call,
    /// The container's namespace.
    pub path: PathBuf,
    /// When it was asked.
    pub began: Instant,
}

/// A call to attach that has come to its end, or not yet.
pub struct Answered {
    /// The machine.
    pub host: usize,
    /// When it was asked.
    pub began: Instant,
    /// When it was answered; now, while it is not.
    pub at: Instant,
    /// What it was refused for.
    pub refusal: Option<Refusal>,
}

/// An address that several members had at once, in some view.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Who had it, at any time.
    pub claimants: BTreeSet<MemberId>,
    /// Who has another one since.
    pub left: BTreeSet<MemberId>,
}

/// An acknowledged attach that holds until its member is detached or its container ends.
#[derive(Clone)]
pub struct Promise {
    /// The machine.
    pub host: usize,
    /// As acknowledged.
    pub entry: Entry,
    /// The container's namespace.
    pub path: PathBuf,
    /// Whether its caller chose the address.
    pub address_chosen: bool,
    /// When it was asked for.
    pub began: Instant,
    /// When it was acknowledged.
    pub since: Instant,
    /// How often its address or number has changed.
    pub moves: usize,
    /// A detach has begun, or failed: it is a member or it is not.
    pub leaving: bool,
}

/// Why a member ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was detached.
    Detached,
    /// Its container ended.
    Died,
    /// Its machine is no more.
    Scrapped,
}

/// A member that is none any more.
#[derive(Clone)]
pub struct Ended {
    /// What it was.
    pub promise: Promise,
    /// Why it ended.
    pub why: End,
    /// When.
    pub at: Instant,
}

/// What a member's container runs, by any agent's journal: known from its claim on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its network.
    pub network: NetworkId,
    /// Its app.
    pub app: AppId,
    /// Its process type.
    pub process: ProcessType,
}

/// What tasks tell the books.
#[derive(Default)]
pub struct Shared {
    /// What calls came to, and when, by the lane they were made in.
    outcomes: BTreeMap<usize, Vec<(u64, Instant, Outcome)>>,
    /// What every member ever claimed runs.
    pub(super) origins: BTreeMap<MemberId, Origin>,
    /// When an agent last saw a host not answer any more.
    pub(super) stirred: Option<Instant>,
    /// When each host's agent joined.
    pub(super) joined: BTreeMap<String, Instant>,
    /// Every address that was contested in a view, or left by a member.
    pub(crate) conflicts: BTreeMap<(NetworkId, Ipv4Addr), Conflict>,
    /// Prints of the views whose zones were looked at and follow them.
    pub(super) followed: BTreeSet<u64>,
    /// Laws that a view broke by itself, by when that was and whose it was.
    pub(super) broken: BTreeMap<(Instant, String), anyhow::Error>,
}

enum Outcome {
    Attached(Result<Box<Entry>, Refusal>),
    Detached(Result<(), Refusal>),
}

enum Asked {
    Attach(Box<Attempt>),
    Detach { host: usize, member: MemberId, began: Instant },
}

impl Asked {
    fn host(&self) -> usize {
        match self {
            Asked::Attach(attempt) => attempt.host,
            Asked::Detach { host, .. } => *host,
        }
    }
}

/// Where a call tells its outcome.
pub struct Teller {
    call: u64,
    lane: usize,
    shared: Arc<Mutex<Shared>>,
}

impl Teller {
    pub(super) fn attached(self, result: Result<Entry, Refusal>) {
        self.tell(Outcome::Attached(result.map(Box::new)));
    }

    pub(super) fn detached(self, result: Result<(), Refusal>) {
        self.tell(Outcome::Detached(result));
    }

    fn tell(self, outcome: Outcome) {
        let outcome = (self.call, Instant::now(), outcome);
        lock(&self.shared).outcomes.entry(self.lane).or_default().push(outcome);
    }
}

/// What was asked and what came of it.
pub struct Books {
    /// Every member that is one.
    pub promises: BTreeMap<MemberId, Promise>,
    /// Members that ended, in order.
    pub ended: Vec<Ended>,
    /// Attaches that were refused, with the host and the time they took.
    pub refused: Vec<(usize, Refusal, Duration)>,
    /// Attaches that came to their end, not yet looked at by the laws.
    pub answered: Vec<Answered>,
    /// How many attaches were acknowledged.
    pub acknowledged: usize,
    /// The longest an acknowledged attach has taken.
    pub slowest: Duration,
    /// Members just acknowledged, not yet looked at by the laws.
    pub fresh: BTreeSet<MemberId>,
    /// Pairs of members of which the first one has reached the second, where they were then.
    pub paths: BTreeMap<(MemberId, MemberId), Ipv4Addr>,
    pub(crate) shared: Arc<Mutex<Shared>>,
    asked: BTreeMap<u64, Asked>,
    calls: u64,
}

impl Books {
    pub(super) fn new() -> Books {
        Books {
            promises: BTreeMap::new(),
            ended: Vec::new(),
            refused: Vec::new(),
            answered: Vec::new(),
            acknowledged: 0,
            slowest: Duration::ZERO,
            fresh: BTreeSet::new(),
            paths: BTreeMap::new(),
            shared: Arc::default(),
            asked: BTreeMap::new(),
            calls: 0,
        }
    }

    pub(super) fn begin(&mut self, attempt: &Attempt, lane: usize) -> Teller {
        self.ask(Asked::Attach(Box::new(attempt.clone())), lane)
    }

    pub(super) fn begin_detach(&mut self, member: &MemberId, lane: usize) -> Teller {
        let host = self.promises.get_mut(member).map_or(0, |promise| {
            promise.leaving = true;
            promise.host
        });
        self.ask(Asked::Detach { host, member: member.clone(), began: Instant::now() }, lane)
    }

    fn ask(&mut self, asked: Asked, lane: usize) -> Teller {
        self.calls += 1;
        self.asked.insert(self.calls, asked);
        Teller { call: self.calls, lane, shared: self.shared.clone() }
    }

    /// How many calls have no outcome yet.
    pub fn in_flight(&self) -> usize {
        self.asked.len()
    }

    /// What a member's container runs.
    pub fn origin(&self, member: &MemberId) -> Option<Origin> {
        lock(&self.shared).origins.get(member).cloned()
    }

    /// When an agent last saw another set of hosts answer.
    pub fn stirred(&self) -> Option<Instant> {
        lock(&self.shared).stirred
    }

    /// When a host's agent joined.
    pub fn joined(&self, label: &str) -> Option<Instant> {
        lock(&self.shared).joined.get(label).copied()
    }

    pub(super) fn starts(&self, label: &str) {
        lock(&self.shared).joined.remove(label);
    }

    /// Looks at every address that was ever contested.
    pub fn each_conflict(
        &self,
        mut look: impl FnMut(NetworkId, Ipv4Addr, &Conflict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let shared = lock(&self.shared);
        shared
            .conflicts
            .iter()
            .try_for_each(|((network, address), conflict)| look(*network, *address, conflict))
    }

    /// Attaches that were not answered yet.
    pub fn unanswered(&self) -> Vec<Answered> {
        let attach = |asked: &Asked| match asked {
            Asked::Attach(attempt) => {
                let Attempt { host, began, .. } = **attempt;
                Some(Answered { host, began, at: Instant::now(), refusal: None })
            }
            Asked::Detach { .. } => None,
        };
        self.asked.values().filter_map(attach).collect()
    }

    /// Detaches that were not answered yet: on which machine, and since when.
    pub fn detaching(&self) -> impl Iterator<Item = (usize, Instant)> {
        self.asked.values().filter_map(|asked| match asked {
            Asked::Detach { host, began, .. } => Some((*host, *began)),
            Asked::Attach(_) => None,
        })
    }

    /// The calls of an agent that ended: nobody gets an answer, and what was answered was answered.
    pub(super) fn calls_ended(&mut self, host: usize) {
        let answered: BTreeSet<u64> =
            lock(&self.shared).outcomes.values().flatten().map(|(call, ..)| *call).collect();
        self.asked.retain(|call, asked| asked.host() != host || answered.contains(call));
    }

    /// Every container of a machine ended.
    pub(super) fn host_ended(&mut self, host: usize, why: End) {
        let members: Vec<MemberId> =
            self.promises.iter().filter(|(_, p)| p.host == host).map(|(m, _)| m.clone()).collect();
        members.iter().for_each(|member| self.end(member, why));
    }

    pub(super) fn end(&mut self, member: &MemberId, why: End) {
        if let Some(promise) = self.promises.remove(member) {
            self.ended.push(Ended { promise, why, at: Instant::now() });
        }
    }

    /// Takes in what tasks have told since the last time.
    pub(super) fn collect(&mut self, history: &History, hosts: &[Host]) -> anyhow::Result<()> {
        if let Some(((_, label), broken)) = lock(&self.shared).broken.pop_first() {
            return Err(broken
                .context(label)
                .context("law 4 broken: an address has one name set in any view"));
        }
        let outcomes = std::mem::take(&mut lock(&self.shared).outcomes);
        for (call, at, outcome) in outcomes.into_values().flatten() {
            match (self.asked.remove(&call), outcome) {
                (Some(Asked::Attach(attempt)), Outcome::Attached(result)) => {
                    self.attached(*attempt, at, result, history, hosts)?;
                }
                (Some(Asked::Detach { host, member, .. }), Outcome::Detached(Ok(()))) => {
                    history.note(format_args!("{} detached {member}", hosts[host].label()));
                    self.end(&member, End::Detached);
                }
                (Some(Asked::Detach { host, member, .. }), Outcome::Detached(Err(refusal))) => {
                    history.note(format_args!("{} did not detach {member}: {refusal}", hosts[host].label()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn attached(
        &mut self,
        Attempt { host, call, path, began }: Attempt,
        at: Instant,
        result: Result<Box<Entry>, Refusal>,
        history: &History,
        hosts: &[Host],
    ) -> anyhow::Result<()> {
        let label = hosts[host].label();
        let took = at - began;
        let refusal = result.as_ref().err().cloned();
        self.answered.push(Answered { host, began, at, refusal });
        match result {
            Ok(entry) => {
                let Entry { member, address, ordinal, .. } = &*entry;
                history.note(format_args!("{label} attached {member}: {address}, ordinal {ordinal:?}"));
                self.slowest = self.slowest.max(took);
                self.acknowledged += 1;
                if self.promises.contains_key(member) {
                    bail!("law 4 broken: two attaches were acknowledged as {member}");
                }
                self.fresh.insert(member.clone());
                let member = member.clone();
                let promise = Promise {
                    host,
                    entry: *entry,
                    path,
                    address_chosen: call.request.address.is_some(),
                    began,
                    since: Instant::now(),
                    moves: 0,
                    leaving: false,
                };
                self.promises.insert(member, promise);
            }
            Err(refusal) => {
                history.note(format_args!("{label} refused an attach: {refusal}"));
                hosts[host].kernel.stop_container(&path);
                self.refused.push((host, refusal, took));
            }
        }
        Ok(())
    }

    /// Addresses that rest after a detach, at most so long ago as they must.
    pub fn resting(&self, network: NetworkId) -> BTreeSet<Ipv4Addr> {
        let rests = |ended: &&Ended| {
            ended.promise.entry.network == network
                && ended.why == End::Detached
                && ended.at.elapsed() < QUARANTINE
        };
        self.ended.iter().filter(rests).map(|ended| ended.promise.entry.address).collect()
    }
}

pub fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
