//! `GET /v1/explain` and `GET /v1/ping`: both hosts are asked, what they say is walked.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use gossip::id::HostId;
use netplumb::Kernel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Served, malformed};
use crate::agent::{Inquiry, ping as echo};
use crate::attach::{Refusal, RefusalKind};
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    from: String,
    to: String,
}

pub(super) async fn explain<K: Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Explanation>, Refusal> {
    let Query(query) = query.map_err(|e| malformed(e.body_text()))?;
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

async fn asked<K: Kernel, S: Store + Clone, T: DeserializeOwned>(
    served: &Served<K, S>,
    host: HostId,
    inquiry: Inquiry,
    bound: Duration,
) -> Result<T, String> {
    let answer = served.context.inquire(host, inquiry, bound).await?;
    serde_json::from_slice(&answer).map_err(|_| "its answer is of another version of warren".to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PingQuery {
    /// A member or container of this host; any of the other's network when not given.
    from: Option<String>,
    to: String,
    /// Length of the packet, IP header included.
    bytes: Option<u32>,
    /// How long to wait.
    wait_ms: Option<u64>,
}

/// One echo.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    query: Result<Query<PingQuery>, QueryRejection>,
) -> Result<Json<Pinged>, Refusal> {
    let Query(query) = query.map_err(|e| malformed(e.body_text()))?;
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
