//! Whom a caller means: a member, a container, an address or a name. Pure.

use std::net::{IpAddr, Ipv4Addr};

use gossip::View;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{MemberRecord, MemberState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::Snapshot;
use crate::attach::{Refusal, RefusalKind};
use crate::project;
use crate::schema;

/// One end of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct End {
    /// The member.
    #[schemars(with = "schema::MemberId")]
    pub member: MemberId,
    /// Its host.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// Its network.
    #[schemars(with = "schema::NetworkId")]
    pub network: NetworkId,
    /// Its address.
    pub address: Ipv4Addr,
    /// The longest of its names, or the one it was asked by.
    pub name: String,
    /// Its container, when it is on the host asked.
    pub container: Option<String>,
}

/// The live members that `text` may mean; ready ones first.
pub fn find(snapshot: &Snapshot, zone: &str, text: &str) -> Vec<End> {
    let text = text.trim_end_matches('.');
    let name = Named::parse(text, zone);
    let address: Option<IpAddr> = text.parse().ok();
    let means = |network: &NetworkId, member: &MemberId, record: &MemberRecord| {
        let container = snapshot.journal.get(member).is_some_and(|entry| entry.container == text);
        let is_address =
            address.is_some_and(|a| a == record.address || Some(a) == record.address6.map(IpAddr::V6));
        let named = name.as_ref().is_some_and(|name| name.means(*network, record));
        member.as_str() == text || container || is_address || named
    };
    let mut ends: Vec<(bool, End)> = live(&snapshot.view)
        .filter(|(_, network, member, record)| means(network, member, record))
        .map(|(host, network, member, record)| {
            let asked = name.as_ref().map(|_| text.to_owned());
            let end = end(snapshot, zone, (host, *network, member, record), asked);
            (record.state != MemberState::Ready, end)
        })
        .collect();
    ends.sort_by_key(|(unready, _)| *unready);
    ends.into_iter().map(|(_, end)| end).collect()
}

/// The pair a caller means: in one network, and two of them.
///
/// # Errors
/// One of them is nobody, or they have no network in common.
pub fn pair(snapshot: &Snapshot, zone: &str, from: &str, to: &str) -> Result<(End, End), Refusal> {
    let (froms, tos) = (known(snapshot, zone, from)?, known(snapshot, zone, to)?);
    let pairs = froms.iter().flat_map(|a| tos.iter().map(move |b| (a, b)));
    let mut pairs = pairs.filter(|(a, b)| a.network == b.network && a.member != b.member);
    if let Some((a, b)) = pairs.next() {
        return Ok((a.clone(), b.clone()));
    }
    let same = froms.iter().any(|a| tos.contains(a));
    let (detail, hint) = if same {
        (format!("{from} and {to} are the same container"), "name two of them".to_owned())
    } else {
        let networks = |ends: &[End]| ends.first().map(|end| end.network.to_string()).unwrap_or_default();
        let detail = format!("{from} is in {}, {to} in {}", networks(&froms), networks(&tos));
        (
            detail,
            "containers reach each other inside a network only: attach one of them to the other's".to_owned(),
        )
    };
    Err(Refusal::new(RefusalKind::NotFound, detail).hint(hint))
}

fn known(snapshot: &Snapshot, zone: &str, text: &str) -> Result<Vec<End>, Refusal> {
    let ends = find(snapshot, zone, text);
    if ends.is_empty() {
        let detail = format!("{text:?} is no member, container of this host, address or private name");
        return Err(Refusal::new(RefusalKind::NotFound, detail).hint("`warren ps -a` lists all members"));
    }
    Ok(ends)
}

fn live(view: &View) -> impl Iterator<Item = (&HostId, &NetworkId, &MemberId, &MemberRecord)> {
    let members = view.members().filter(|(.., record)| record.state != MemberState::Released);
    members.map(|(host, _, network, member, record)| (host, network, member, record))
}

fn end(
    snapshot: &Snapshot,
    zone: &str,
    (host, network, member, record): (&HostId, NetworkId, &MemberId, &MemberRecord),
    asked: Option<String>,
) -> End {
    let (app, process) = (record.app.to_string(), record.process.as_str());
    let longest = || project::names(&app, process, record.ordinal, network, zone).into_iter().next();
    End {
        member: member.clone(),
        host: host.clone(),
        network,
        address: record.address,
        name: asked.or_else(longest).unwrap_or_default(),
        container: snapshot.journal.get(member).map(|entry| entry.container.clone()),
    }
}

/// A private name, taken apart.
struct Named {
    ordinal: Option<u32>,
    process: ProcessType,
    app: AppId,
    network: NetworkId,
}

impl Named {
    /// `[[<n>.]<type>.]<app>.<network>.<zone>`.
    fn parse(text: &str, zone: &str) -> Option<Named> {
        let labels: Vec<&str> = text.strip_suffix(zone)?.strip_suffix('.')?.split('.').collect();
        let (front, [app, network]) = labels.split_last_chunk()?;
        let (ordinal, process) = match front {
            [] => (None, "web"),
            [process] => (None, *process),
            [ordinal, process] => (Some(ordinal.parse().ok()?), *process),
            _ => return None,
        };
        Some(Named {
            ordinal,
            process: process.parse().ok()?,
            app: app.parse().ok()?,
            network: network.parse().ok()?,
        })
    }

    fn means(&self, network: NetworkId, record: &MemberRecord) -> bool {
        (self.network, self.app, &self.process) == (network, record.app, &record.process)
            && self.ordinal.is_none_or(|ordinal| record.ordinal == Some(ordinal))
    }
}
