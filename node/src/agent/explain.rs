//! What another host is told when it asks why two containers do not reach each other: what is known here, what
//! stands in the kernel, and what comes back of echoes.

use std::sync::Arc;
use std::time::Duration;

use gossip::record::MemberState;
use netplumb::kernel::{Echo, EchoFrom, EchoRequest, Kernel};
use netplumb::plan::diff;
use netplumb::state::{Key, NetnsRef};
use serde::Serialize;
use tokio::sync::oneshot;

use super::Agent;
use crate::claims::MemberKey;
use crate::explain::{Answer, Before, Known, Look, Own, Probe, Probes};
use crate::project;
use crate::store::{Entry, Store};

/// How long the first echo is waited for: a handshake of WireGuard and its first repetitions fit in.
const FIRST_BOUND: Duration = Duration::from_millis(1_500);
/// How long one is waited for where another one has just been answered.
const NEXT_BOUND: Duration = Duration::from_millis(250);
/// Length of a small packet in bytes, that of `ping`.
const SMALL: u32 = 84;

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Says what is here of one of its members towards another.
    pub(super) fn hear_look(&mut self, look: Look, reply: oneshot::Sender<Vec<u8>>) {
        let (before, kernel) = (self.before(look), self.kernel.clone());
        let underlay = self.here.vtep.address;
        self.tasks.spawn(async move {
            let observed = match kernel.observe(&before.ours).await {
                Ok(observed) => Ok((observed, kernel.traffic(&before.ours).await)),
                Err(error) => Err(error.to_string()),
            };
            let heard = kernel.echoes_heard(before.look.member.as_str()).await.unwrap_or(0);
            let mtu = kernel.underlay_mtu(underlay).await.ok();
            say(&before.seen(observed, mtu, heard), reply);
        });
    }

    /// Sends echoes from one of its members to another.
    pub(super) fn hear_probe(&mut self, probe: &Probe, reply: oneshot::Sender<Vec<u8>>) {
        let entry = self.journal.durable().find(|e| e.member == probe.member && e.network == probe.network);
        // Dropping the reply says that there is no such member.
        let Some(entry) = entry.cloned() else { return };
        let (kernel, fabric) = (self.kernel.clone(), self.mtu);
        let (to, inside) = (probe.to, netplumb::state::wg_mtu(self.mtu));
        self.tasks.spawn(async move {
            let binding = Mouth { kernel: &kernel, from: EchoFrom::Binding(entry.member.to_string()), to };
            let container = Mouth { kernel: &kernel, from: EchoFrom::Container(entry.netns.clone()), to };
            let (outer, inner) = tokio::join!(binding.two(fabric), container.two(inside));
            let short = outer.0.arrived() && !outer.1.arrived();
            let passes = if short { Some(binding.longest(fabric).await) } else { None };
            let probes = Probes {
                fabric: outer.0,
                fabric_full: outer.1,
                passes,
                inside: inner.0,
                inside_full: inner.1,
            };
            say(&probes, reply);
        });
    }

    /// Says what of the kernel is not as it should be.
    pub(super) fn hear_drift(&mut self, reply: oneshot::Sender<Vec<u8>>) {
        let (kernel, wanted) = (self.kernel.clone(), self.want.borrow().clone());
        self.tasks.spawn(async move {
            let words: Vec<String> = match kernel.observe(&wanted.ours).await {
                Ok(observed) => {
                    let plan = diff(&observed, &wanted.desired, &wanted.ours, wanted.prune);
                    plan.ops.iter().map(|op| format!("{} in {}", op.kind(), op.network())).collect()
                }
                Err(error) => vec![error.to_string()],
            };
            say(&words, reply);
        });
    }

    /// What the loop knows, before the kernel is looked at.
    fn before(&self, look: Look) -> Before {
        let entry = self.journal.durable().find(|e| e.member == look.member && e.network == look.network);
        let key = |host: &gossip::id::HostId, member: &gossip::id::MemberId| -> MemberKey {
            (host.clone(), look.network, member.clone())
        };
        let host = self.followed.hosts.get(&look.other_host);
        let record = host.and_then(|h| h.records.members.get(&(look.network, look.other.clone())));
        let record = record.filter(|record| record.state != MemberState::Released);
        let other = host.zip(record).map(|(host, record)| Known {
            state: record.state,
            address: record.address,
            holds: !self.ledger.address_contested(&key(&look.other_host, &look.other), record),
            standing: host.standing.as_str().to_owned(),
        });
        let own = entry.map(|entry| {
            let record = project::record(entry);
            self.own_member(
                entry,
                !self.ledger.address_contested(&key(&self.here.host, &look.member), &record),
            )
        });
        Before {
            own,
            other,
            key: record.map(|record| Key(record.key.0)),
            resolves: look.name.as_ref().map(|name| self.resolves(&look, name)),
            network: self.desired.networks.get(&look.network.to_string()).map(Arc::clone),
            ours: project::ours(entry),
            underlay_mtu: self.here.underlay_mtu,
            look,
        }
    }

    fn own_member(&self, entry: &Entry, holds: bool) -> Own {
        Own {
            container: entry.container.clone(),
            ifname: entry.ifname.clone(),
            state: entry.state,
            address: entry.address,
            holds,
            mtu: netplumb::state::wg_mtu(self.mtu),
            fabric_mtu: self.mtu,
            vtep: std::net::SocketAddr::new(self.here.vtep.address, self.here.vtep.port).to_string(),
        }
    }

    fn resolves(&self, look: &Look, name: &str) -> Vec<std::net::IpAddr> {
        let zones = self.names.zones();
        let names = zones.get(&look.network).map(|zone| zone.names()).unwrap_or_default();
        let found = names.into_iter().filter(|found| found.name.eq_ignore_ascii_case(name));
        found.flat_map(|found| found.addresses).map(Into::into).collect()
    }
}

fn say(answer: &impl Serialize, reply: oneshot::Sender<Vec<u8>>) {
    if let Ok(body) = serde_json::to_vec(answer) {
        let _ = reply.send(body);
    }
}

/// Where echoes leave, and where they go.
struct Mouth<'a, K> {
    kernel: &'a K,
    from: EchoFrom,
    to: std::net::Ipv4Addr,
}

impl<K: Kernel> Mouth<'_, K> {
    /// A small packet and one of full length, which is not tried where the small one is lost.
    async fn two(&self, full: u32) -> (Answer, Answer) {
        let small = self.one(SMALL, FIRST_BOUND).await;
        let long = if small.arrived() { self.one(full, NEXT_BOUND).await } else { Answer::Silent };
        // One more, as a lost packet is no short one.
        let long = if small.arrived() && !long.arrived() { self.one(full, NEXT_BOUND).await } else { long };
        (small, long)
    }

    /// The longest packet that passes, of less than `full` bytes.
    async fn longest(&self, full: u32) -> u32 {
        let (mut passes, mut fails) = (SMALL, full);
        while fails - passes > 1 {
            let middle = passes.midpoint(fails);
            if self.one(middle, NEXT_BOUND).await.arrived() { passes = middle } else { fails = middle }
        }
        passes
    }

    async fn one(&self, packet_bytes: u32, bound: Duration) -> Answer {
        let request = EchoRequest { from: self.from.clone(), to: self.to, packet_bytes, bound };
        answer(self.kernel.echo(&request).await)
    }
}

fn answer(echo: Result<Echo, netplumb::Error>) -> Answer {
    match echo {
        Ok(Echo::Answered(after)) => Answer::Micros(after.as_micros() as u64),
        Ok(Echo::Silent) => Answer::Silent,
        Ok(Echo::Refused(why)) => Answer::Refused(why),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// One echo from a container of this host to an address.
pub async fn ping<K: Kernel>(
    kernel: &K,
    netns: NetnsRef,
    to: std::net::Ipv4Addr,
    packet_bytes: u32,
    bound: Duration,
) -> Answer {
    let from = EchoFrom::Container(netns);
    answer(kernel.echo(&EchoRequest { from, to, packet_bytes, bound }).await)
}
