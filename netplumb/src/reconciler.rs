//! Makes the kernel as desired and says what it did: observe, diff, apply, report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::Error;
use crate::kernel::{Kernel, Place};
use crate::observed::Observed;
use crate::plan::{Op, Plan, Prune, diff};
use crate::state::{Desired, Key, Network, Ours, Trace};

/// Owns what is known of the kernel. One at a time for each kernel.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    /// As last observed, advanced by every Op that succeeded; forgotten where one failed.
    known: Observed,
    /// Where the containers' sides of what is known were looked for.
    traces: BTreeMap<String, BTreeMap<String, Trace>>,
    /// Networks that are known to be as desired, with what was desired of them.
    settled: BTreeMap<String, Settled>,
    /// The network audited last.
    audited: Option<String>,
    /// Whom to greet was desired last, of each network.
    greeted: BTreeMap<String, BTreeSet<Key>>,
}

/// What a network was found to be in no need of.
#[derive(Debug)]
struct Settled {
    network: Option<Arc<Network>>,
    traces: BTreeMap<String, Trace>,
    prune: Prune,
}

/// What one reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// Every Op of the plan, in order.
    pub steps: Vec<Step>,
    /// Networks that could not be observed; nothing was done there.
    pub unseen: Vec<(String, Error)>,
    /// The Ops that repaired what somebody else had changed. Only an audit sees them.
    pub drift: Vec<Op>,
}

/// One Op and what came of it.
#[derive(Debug)]
pub struct Step {
    /// What was planned.
    pub op: Op,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an Op.
#[derive(Debug)]
pub enum Outcome {
    /// The kernel is so.
    Done,
    /// The kernel refused.
    Failed(Error),
    /// Not tried: an essential Op before it failed.
    Skipped,
}

impl<K: Kernel> Reconciler<K> {
    /// Knows nothing yet: the first reconciliation observes.
    pub fn new(kernel: K) -> Reconciler<K> {
        Reconciler {
            kernel,
            known: Observed::default(),
            traces: BTreeMap::new(),
            settled: BTreeMap::new(),
            audited: None,
            greeted: BTreeMap::new(),
        }
    }

    /// The kernel, for what is not reconciled.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Makes the kernel as `desired`, within `ours`. Only what is not known yet is observed, so an
    /// unchanged `desired` costs the kernel nothing.
    pub async fn reconcile(&mut self, desired: &Desired, ours: &Ours, prune: Prune) -> Report {
        let mut report = Report::default();
        let mut ours = self.observe_unknown(ours, &mut report).await;
        ours.networks.retain(|name, traces| !self.is_settled(name, traces, desired, prune));
        self.forget_the_greeted(desired, &ours);
        let plan = diff(&self.known, desired, &ours, prune);
        self.note_settled(&plan, desired, ours, prune);
        self.apply(plan, &mut report).await;
        report
    }

    /// Who is to be greeted from now on is told to the members once more, whether they have it already or not: a peer
    /// is greeted when it is set.
    fn forget_the_greeted(&mut self, desired: &Desired, ours: &Ours) {
        self.greeted.retain(|name, _| desired.networks.contains_key(name));
        let desired = desired.networks.iter().filter(|(name, _)| ours.networks.contains_key(*name));
        for (name, network) in desired {
            let greeted: BTreeSet<Key> =
                network.peers.iter().filter(|(_, peer)| peer.greet).map(|(key, _)| *key).collect();
            // At first sight whoever is there has been greeted, or is spoken to already.
            let Some(before) = self.greeted.insert(name.clone(), greeted.clone()) else { continue };
            let new: BTreeSet<Key> = greeted.difference(&before).copied().collect();
            let known =
                self.known.networks.get_mut(name).into_iter().flat_map(|known| known.members.values_mut());
            let devices = known.filter_map(|member| member.inside.as_mut()?.device.as_mut());
            devices.for_each(|device| device.peers.remove_all(&new));
        }
    }

    fn is_settled(
        &self,
        name: &str,
        traces: &BTreeMap<String, Trace>,
        desired: &Desired,
        prune: Prune,
    ) -> bool {
        let Some(settled) = self.settled.get(name) else { return false };
        let same = match (&settled.network, desired.networks.get(name)) {
            (Some(was), Some(is)) => Arc::ptr_eq(was, is),
            (was, is) => was.is_none() && is.is_none(),
        };
        same && settled.prune == prune && settled.traces == *traces
    }

    /// A network without an Op is as desired until something is desired of it, or found there, that
    /// is not.
    fn note_settled(&mut self, plan: &Plan, desired: &Desired, ours: Ours, prune: Prune) {
        let busy: BTreeSet<&str> = plan.ops.iter().map(Op::network).collect();
        for (name, traces) in ours.networks {
            if busy.contains(name.as_str()) {
                self.settled.remove(&name);
            } else {
                let network = desired.networks.get(&name).cloned();
                self.settled.insert(name, Settled { network, traces, prune });
            }
        }
    }

    /// Looks at the next network anew, whatever is known, and repairs it. Called in turn it goes
    /// round all networks.
    pub async fn audit(&mut self, desired: &Desired, ours: &Ours, prune: Prune) -> Report {
        let mut report = Report::default();
        let after = |name: &&String| self.audited.as_ref().is_none_or(|last| *name > last);
        let next = ours.networks.keys().find(after).or(ours.networks.keys().next()).cloned();
        let Some(name) = next else { return report };
        self.audited = Some(name.clone());
        let all = ours.networks[&name].keys().cloned().collect();
        self.inspect(&name, all, (desired, ours, prune), &mut report).await;
        report
    }

    /// Looks at these places anew, and repairs their networks.
    pub async fn look_again(
        &mut self,
        places: &BTreeSet<Place>,
        desired: &Desired,
        ours: &Ours,
        prune: Prune,
    ) -> Report {
        let mut report = Report::default();
        let mut members: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for place in places {
            members.entry(&place.network).or_default().extend(place.member.clone());
        }
        for (name, members) in members {
            self.inspect(name, members, (desired, ours, prune), &mut report).await;
        }
        report
    }

    /// Looks at a network's own namespace and at these members anew, whatever is known, and repairs the network.
    async fn inspect(
        &mut self,
        name: &str,
        members: BTreeSet<String>,
        (desired, ours, prune): (&Desired, &Ours, Prune),
        report: &mut Report,
    ) {
        let Some(traces) = ours.networks.get(name) else { return };
        let turn = Ours { networks: BTreeMap::from([(name.to_owned(), traces.clone())]) };
        self.settled.remove(name);
        let complete = self.knows(&turn);
        let expected = diff(&self.known, desired, &turn, prune);
        let moved = |id: &String, trace: &Trace| {
            self.traces.get(name).and_then(|looked_for| looked_for.get(id)) != Some(trace)
        };
        let again =
            traces.iter().filter(|(id, trace)| !complete || members.contains(*id) || moved(id, trace));
        let again = again.map(|(id, trace)| (id.clone(), trace.clone())).collect();
        if let Err(error) = self.learn(name, again).await {
            report.unseen.push((name.to_owned(), error));
            return;
        }
        let plan = diff(&self.known, desired, &turn, prune);
        if complete {
            report.drift.extend(drift(&expected, &plan));
        }
        self.apply(plan, report).await;
    }

    /// Observes these members of a network that is known.
    async fn learn_members(&mut self, name: &str, traces: BTreeMap<String, Trace>) -> Result<(), Error> {
        match self.kernel.observe_members(&traces).await {
            Ok(members) => {
                self.known.networks.entry(name.to_owned()).or_default().members.extend(members);
                self.traces.entry(name.to_owned()).or_default().extend(traces);
                Ok(())
            }
            Err(error) => {
                self.known.networks.remove(name);
                Err(error)
            }
        }
    }

    /// Observes a network's own namespace and these members; what is known of others stays.
    async fn learn(&mut self, name: &str, traces: BTreeMap<String, Trace>) -> Result<(), Error> {
        let part = Ours { networks: BTreeMap::from([(name.to_owned(), traces.clone())]) };
        match self.kernel.observe(&part).await {
            Ok(mut observed) => {
                let observed = observed.networks.remove(name).unwrap_or_default();
                let known = self.known.networks.entry(name.to_owned()).or_default();
                known.fabric = observed.fabric;
                known.members.extend(observed.members);
                self.traces.entry(name.to_owned()).or_default().extend(traces);
                Ok(())
            }
            Err(error) => {
                self.known.networks.remove(name);
                Err(error)
            }
        }
    }

    fn knows(&self, ours: &Ours) -> bool {
        ours.networks.iter().all(|(name, traces)| {
            let known = self.known.networks.get(name);
            known.is_some_and(|known| traces.keys().all(|id| known.members.contains_key(id)))
        })
    }

    /// Observes what is in `ours` and not known, forgets what is known and not in `ours`, or was seen in another
    /// place. Gives back that part of `ours` which is known now.
    async fn observe_unknown(&mut self, ours: &Ours, report: &mut Report) -> Ours {
        let mut seen = ours.clone();
        self.known.networks.retain(|name, _| ours.networks.contains_key(name));
        self.settled.retain(|name, _| ours.networks.contains_key(name));
        self.traces.retain(|name, _| ours.networks.contains_key(name));
        for (name, traces) in &ours.networks {
            let mut unknown = traces.clone();
            let known = self.known.networks.get_mut(name).map(|known| {
                let looked_for = self.traces.get(name);
                known.members.retain(|id, _| {
                    traces.get(id).is_some_and(|trace| looked_for.and_then(|of| of.get(id)) == Some(trace))
                });
                unknown.retain(|id, _| !known.members.contains_key(id));
            });
            if known.is_some() && unknown.is_empty() {
                continue;
            }
            self.settled.remove(name);
            let learnt = match known {
                Some(()) => self.learn_members(name, unknown).await,
                None => self.learn(name, unknown).await,
            };
            if let Err(error) = learnt {
                seen.networks.remove(name);
                report.unseen.push((name.clone(), error));
            }
        }
        seen
    }

    /// Applies the whole plan, but for what depends on an essential Op that failed.
    async fn apply(&mut self, plan: Plan, report: &mut Report) {
        let mut broken: BTreeSet<(String, Option<String>)> = BTreeSet::new();
        let mut doubtful: BTreeSet<String> = BTreeSet::new();
        let mut ops = plan.ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            let place = |op: &Op| (op.network().to_owned(), op.member().map(str::to_owned));
            let is_broken =
                |op: &Op| broken.contains(&place(op)) || broken.contains(&(op.network().to_owned(), None));
            if is_broken(&op) {
                report.steps.push(Step { op, outcome: Outcome::Skipped });
                continue;
            }
            let (first, mut essential) = (place(&op), op.essential());
            let mut run = vec![op];
            // They go to the kernel together: what is done for one member, and what nothing waits for, such as the
            // rows that a new member gets at each of the others.
            let joins = |next: &Op, essential| {
                !is_broken(next) && (place(next) == first || !(essential || next.essential()))
            };
            while let Some(next) = ops.next_if(|next| joins(next, essential)) {
                essential |= next.essential();
                run.push(next);
            }
            let mut results = self.kernel.apply_all(&run).await.into_iter();
            for op in run {
                let outcome = match results.next() {
                    None => Outcome::Skipped,
                    Some(Ok(())) => {
                        self.known.apply(&op);
                        Outcome::Done
                    }
                    Some(Err(error)) => {
                        let (network, member) = place(&op);
                        tracing::info!(network, member, kind = op.kind(), %error, "op failed");
                        doubtful.insert(network.clone());
                        if op.essential() {
                            broken.insert((network, member));
                        }
                        Outcome::Failed(error)
                    }
                };
                report.steps.push(Step { op, outcome });
            }
        }
        self.known.networks.retain(|name, _| !doubtful.contains(name));
    }
}

/// The Ops that `known` did not call for: somebody else changed something.
fn drift(expected: &Plan, found: &Plan) -> Vec<Op> {
    found.ops.iter().filter(|op| !expected.ops.contains(op)).cloned().collect()
}

impl Report {
    /// How many Ops the kernel did.
    pub fn writes(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.outcome, Outcome::Done)).count()
    }

    /// The first error that concerns this member: its own, or one of what it shares with the other
    /// members of the network. A missing IPv6 address is none: see [`Report::without_ipv6`].
    pub fn failed(&self, network: &str, member: &str) -> Option<&Error> {
        let unseen = self.unseen.iter().find(|(name, _)| name == network).map(|(_, error)| error);
        unseen.or_else(|| {
            self.errors()
                .filter(|(op, _)| op.network() == network && op.member().is_none_or(|id| id == member))
                .find(|(op, _)| !op.only_ipv6())
                .map(|(_, error)| error)
        })
    }

    /// The member's IPv6 address or route was refused: its record must not name one.
    pub fn without_ipv6(&self, network: &str, member: &str) -> bool {
        self.errors().any(|(op, _)| op.network() == network && op.member() == Some(member) && op.only_ipv6())
    }

    /// Members whose rules somebody had removed: until the audit they had neither guard nor names.
    pub fn flushed(&self) -> impl Iterator<Item = &str> {
        self.drift.iter().filter(|op| op.is_guard()).filter_map(Op::member)
    }

    /// Every Op that failed, with its error.
    pub fn errors(&self) -> impl Iterator<Item = (&Op, &Error)> {
        self.steps.iter().filter_map(|step| match &step.outcome {
            Outcome::Failed(error) => Some((&step.op, error)),
            Outcome::Done | Outcome::Skipped => None,
        })
    }

    /// Nothing failed.
    pub fn is_clean(&self) -> bool {
        self.unseen.is_empty() && self.errors().next().is_none()
    }
}
