//! `GET /v1/explain`, `/v1/ping` and `/v1/doctor`: hosts are asked what they have and what comes back of echoes.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use gossip::id::HostId;
use gossip::record::MemberState;
use gossip::standing::Standing;
use netplumb::Kernel;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Served;
use super::input::Query;
use super::problem::malformed;
use crate::agent::{Inquiry, Snapshot, ping as echo};
use crate::attach::{Refusal, RefusalKind};
use crate::doctor::{Other, Said};
use crate::explain::{self, Answer, End, Explanation, Look, Probe, Probes, Side, Sight};
use crate::store::Store;

/// How long a host may take to say what it has.
const LOOK_BOUND: Duration = Duration::from_secs(3);
/// How long it may take to send echoes: the first ones may be lost, and then the longest that passes is sought.
const PROBE_BOUND: Duration = Duration::from_secs(9);
/// Longest packet in bytes.
const PACKET_BYTES_MAX: u32 = 65_535;
/// Shortest packet in bytes: headers of IP and ICMP.
const PACKET_BYTES_MIN: u32 = 28;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    /// From whom: a member, a container, an address or a name.
    from: String,
    /// To whom.
    to: String,
}

pub(super) async fn explain<K: Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Explanation>, Refusal> {
    let snapshot = served.snapshot.borrow().clone();
    let (from, to) = explain::pair(&snapshot, &served.config.dns.zone, &query.from, &query.to)?;
    let (near, far) = sides(&served, &from, &to).await;
    Ok(Json(explain::walk(from, to, &near, &far)))
}

/// Asks both hosts for what they have, has both send, and asks how many of them arrived where that is in question.
pub(super) async fn sides<K: Kernel, S: Store + Clone>(
    served: &Served<K, S>,
    from: &End,
    to: &End,
) -> (Side, Side) {
    let look = |here: &End, there: &End, name: Option<&End>| {
        Inquiry::Look(Look {
            network: here.network,
            member: here.member.clone(),
            other_host: there.host.clone(),
            other: there.member.clone(),
            name: name.map(|end| end.name.clone()),
        })
    };
    let sight = |here: &End, inquiry| asked::<_, _, Sight>(served, here.host.clone(), inquiry, LOOK_BOUND);
    let (near, far) = tokio::join!(sight(from, look(from, to, Some(to))), sight(to, look(to, from, None)));
    let probe = async |side: &Result<Sight, String>, here: &End, there: &End| {
        side.as_ref().ok().filter(|sight| sight.own.is_some())?;
        let probe = Probe { network: here.network, member: here.member.clone(), to: there.address };
        asked::<_, _, Probes>(served, here.host.clone(), Inquiry::Probe(probe), PROBE_BOUND).await.ok()
    };
    let (near_probes, far_probes) = tokio::join!(probe(&near, from, to), probe(&far, to, from));
    let (mut near_heard, mut far_heard) = (None, None);
    if near_probes.as_ref().is_some_and(|probes| !probes.fabric.arrived()) {
        let (near, far) = tokio::join!(sight(from, look(from, to, None)), sight(to, look(to, from, None)));
        (near_heard, far_heard) = (near.ok().map(|s| s.heard), far.ok().map(|s| s.heard));
    }
    (
        Side { sight: near, probes: near_probes, heard: near_heard },
        Side { sight: far, probes: far_probes, heard: far_heard },
    )
}

pub(super) async fn doctor<K: Kernel, S: Store + Clone>(State(served): State<Served<K, S>>) -> Json<Said> {
    let here = &served.config.host;
    let drift = asked(&served, here.clone(), Inquiry::Drift, PROBE_BOUND).await;
    let drift = drift.unwrap_or_else(|why| vec![why]);
    let snapshot = served.snapshot.borrow().clone();
    let others = snapshot.view.hosts.iter().filter(|(host, _)| *host != here);
    let others = others.filter(|(_, h)| !matches!(h.standing, Standing::Gone | Standing::Away));
    let others = others.map(|(host, _)| other(&served, &snapshot, host));
    Json(Said { drift, others: futures::future::join_all(others).await })
}

/// How another host's clock and the way to it are.
async fn other<K: Kernel, S: Store + Clone>(
    served: &Served<K, S>,
    snapshot: &Snapshot,
    host: &HostId,
) -> Other {
    let ahead = async {
        let before = i64::try_from(gossip::unix_ns() / 1_000_000).ok()?;
        let theirs: i64 = asked(served, host.clone(), Inquiry::Clock, LOOK_BOUND).await.ok()?;
        let after = i64::try_from(gossip::unix_ns() / 1_000_000).ok()?;
        Some(theirs - before.midpoint(after))
    };
    let vxlan = async {
        let probe = common(snapshot, &served.config.host, host)?;
        let probes =
            asked::<_, _, Probes>(served, served.config.host.clone(), Inquiry::Probe(probe), PROBE_BOUND);
        probes.await.ok().map(|probes| probes.fabric)
    };
    let (clock_ahead_ms, vxlan) = tokio::join!(ahead, vxlan);
    Other { host: host.clone(), clock_ahead_ms, vxlan }
}

/// A member here and one there, in one network.
fn common(snapshot: &Snapshot, here: &HostId, there: &HostId) -> Option<Probe> {
    let ready = |host: &HostId| {
        let members = snapshot.view.hosts.get(host).map(|h| &h.records.members).into_iter().flatten();
        members.filter(|(_, record)| record.state == MemberState::Ready)
    };
    ready(there).find_map(|((network, _), theirs)| {
        let ((_, member), _) = ready(here).find(|((own, _), _)| own == network)?;
        Some(Probe { network: *network, member: member.clone(), to: theirs.address })
    })
}

async fn asked<K: Kernel, S: Store + Clone, T: DeserializeOwned>(
    served: &Served<K, S>,
    host: HostId,
    inquiry: Inquiry,
    bound: Duration,
) -> Result<T, String> {
    let answer = served.context.inquire(host, inquiry, bound).await?;
    serde_json::from_slice(&answer).map_err(|_| "its answer is of another version of warren".to_owned())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PingQuery {
    /// A member or container of this host; any of the other's network when not given.
    from: Option<String>,
    /// To whom: a member, a container, an address or a name.
    to: String,
    /// Length of the packet in bytes, IP header included; 84 when not given.
    bytes: Option<u32>,
    /// How long to wait, in milliseconds; 1000 when not given, 10000 at most.
    wait_ms: Option<u64>,
}

/// One echo.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Pinged {
    /// From whom.
    pub from: End,
    /// To whom.
    pub to: End,
    /// Length of the packet, in bytes.
    pub bytes: u32,
    /// What came of it.
    pub answer: Answer,
}

pub(super) async fn ping<K: Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Query(query): Query<PingQuery>,
) -> Result<Json<Pinged>, Refusal> {
    let bytes = query.bytes.unwrap_or(84);
    if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes) {
        return Err(malformed(format!("a packet has {PACKET_BYTES_MIN} to {PACKET_BYTES_MAX} bytes")));
    }
    let (from, to) = ends(&served, &query)?;
    let snapshot = served.snapshot.borrow().clone();
    let elsewhere = || {
        Refusal::new(RefusalKind::NotFound, format!("{} is on host {}", from.member, from.host))
            .hint(format!("ping from a container of this host, or run it on {}", from.host))
    };
    let entry = snapshot.journal.get(&from.member).ok_or_else(elsewhere)?;
    let bound = Duration::from_millis(query.wait_ms.unwrap_or(1_000).min(10_000));
    let answer = echo(&*served.context.kernel, entry.netns.clone(), to.address, bytes, bound).await;
    Ok(Json(Pinged { from, to, bytes, answer }))
}

fn ends<K, S: Clone>(served: &Served<K, S>, query: &PingQuery) -> Result<(End, End), Refusal> {
    let (snapshot, zone) = (served.snapshot.borrow().clone(), &served.config.dns.zone);
    if let Some(from) = &query.from {
        return explain::pair(&snapshot, zone, from, &query.to);
    }
    let to = explain::find(&snapshot, zone, &query.to).into_iter();
    let near = |to: &End| {
        let same = |member: &&gossip::id::MemberId| **member != to.member;
        let here =
            snapshot.journal.live().filter(|e| e.network == to.network).map(|e| &e.member).find(same)?;
        explain::find(&snapshot, zone, here.as_str()).into_iter().next()
    };
    let mut pairs = to.filter_map(|to| Some((near(&to)?, to)));
    pairs.next().ok_or_else(|| {
        let detail = format!("no container of this host is in a network with {}", query.to);
        Refusal::new(RefusalKind::NotFound, detail)
            .hint("name the container to ping from: `warren ping FROM TO`")
    })
}
