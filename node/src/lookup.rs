//! What a container would be answered, asked at the agent: the same `answer` on the same zones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr as _;

use gossip::id::{MemberId, NetworkId};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use resolver::{Outcome, Transport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::Snapshot;
use crate::attach::{Refusal, RefusalKind};
use crate::config::Dns;
use crate::store::Entry;

/// An answer in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lookup {
    /// The name asked.
    pub name: String,
    /// The response code, `NOERROR` or the like; `FORWARD` where upstreams would be asked.
    pub rcode: String,
    /// Addresses, A before AAAA, shuffled as for a container.
    pub addresses: Vec<IpAddr>,
    /// Where the service is to be had, when the name is a service's (SRV records).
    pub services: Vec<Target>,
    /// What a container's own name says of it (TXT records).
    pub facts: Vec<String>,
    /// Seconds a client may keep them.
    pub ttl_s: Option<u32>,
}

/// Where a service is to be had (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceTarget")]
pub struct Target {
    /// The name.
    pub name: String,
    /// The port.
    pub port: u16,
    /// The lowest is tried first.
    pub priority: u16,
}

/// Answers `name` as the container of `asker` would be, a member or container id; without one, as
/// a container in all networks with members here.
pub fn look_up(dns: &Dns, snapshot: &Snapshot, name: &str, asker: Option<&str>) -> Result<Lookup, Refusal> {
    let name =
        Name::from_str(name).map_err(|e| Refusal::new(RefusalKind::Malformed, format!("{name:?}: {e}")))?;
    let is_asker = |e: &&Entry| {
        asker.is_none_or(|asker| {
            asker.parse::<MemberId>().is_ok_and(|member| member == e.member) || e.container == asker
        })
    };
    let networks: BTreeMap<NetworkId, bool> =
        snapshot.journal.live().filter(is_asker).map(|e| (e.network, e.claim.forwards())).collect();
    if let (Some(asker), true) = (asker, networks.is_empty()) {
        let detail = format!("{asker} is no member on this host");
        return Err(Refusal::new(RefusalKind::NotFound, detail).hint("`warren ps` lists this host's members"));
    }
    let zones = networks.keys().filter_map(|network| snapshot.zones.get(network).cloned()).collect();
    let forward = networks.values().all(|forward| *forward);
    let synced = snapshot.view.whole || snapshot.view.hosts.len() > 1;
    let scope = crate::names::scope(dns, zones, synced, forward);
    let mut lookup = Lookup { name: name.to_string(), ..Lookup::default() };
    for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT] {
        let mut reply = Vec::new();
        let query = query(&name, kind)?;
        match resolver::answer(&query, &scope, Transport::Tcp, &mut rand::rng(), &mut reply) {
            Outcome::Reply { .. } => read(&reply, &mut lookup)?,
            Outcome::Forward => lookup.rcode = "FORWARD".into(),
            Outcome::Drop(_) => {
                return Err(Refusal::new(RefusalKind::Failed, "the resolver dropped the query"));
            }
        }
    }
    Ok(lookup)
}

fn query(name: &Name, kind: RecordType) -> Result<Vec<u8>, Refusal> {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    message.to_vec().map_err(|e| Refusal::new(RefusalKind::Malformed, e.to_string()))
}

fn read(reply: &[u8], lookup: &mut Lookup) -> Result<(), Refusal> {
    let message = Message::from_vec(reply).map_err(|e| Refusal::new(RefusalKind::Failed, e.to_string()))?;
    lookup.rcode = match message.metadata.response_code {
        hickory_proto::op::ResponseCode::NoError => "NOERROR".into(),
        hickory_proto::op::ResponseCode::NXDomain => "NXDOMAIN".into(),
        hickory_proto::op::ResponseCode::ServFail => "SERVFAIL".into(),
        hickory_proto::op::ResponseCode::Refused => "REFUSED".into(),
        other => other.to_string(),
    };
    for record in &message.answers {
        match &record.data {
            RData::A(a) => lookup.addresses.push(a.0.into()),
            RData::AAAA(a) => lookup.addresses.push(a.0.into()),
            RData::SRV(srv) => lookup.services.push(Target {
                name: srv.target.to_string(),
                port: srv.port,
                priority: srv.priority,
            }),
            RData::TXT(txt) => {
                lookup
                    .facts
                    .extend(txt.txt_data.iter().map(|text| String::from_utf8_lossy(text).into_owned()));
            }
            _ => continue,
        }
        lookup.ttl_s = Some(record.ttl);
    }
    Ok(())
}
