//! What this host's members have exchanged so far: two looks make a rate.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use netplumb::kernel::Traffic;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Served;
use crate::journal::Journal;
use crate::project;
use crate::schema;
use crate::store::{Entry, Store};

/// For how long WireGuard uses a session (REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);

/// What a host's members have exchanged so far.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Exchange {
    /// The host.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// Its members.
    pub members: Vec<MemberTraffic>,
    /// DNS queries answered, by the network whose name was asked for, or else by the first one of the container.
    pub queries: BTreeMap<String, u64>,
}

/// What one member has exchanged since its interface was made.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MemberTraffic {
    /// The member.
    #[schemars(with = "schema::MemberId")]
    pub member: MemberId,
    /// Its container.
    pub container: String,
    /// Its network.
    #[schemars(with = "schema::NetworkId")]
    pub network: NetworkId,
    /// Its app.
    #[schemars(with = "schema::AppId")]
    pub app: AppId,
    /// Its process type.
    #[serde(rename = "type")]
    #[schemars(with = "schema::ProcessType")]
    pub process: ProcessType,
    /// Its number.
    pub ordinal: Option<u32>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its interface.
    pub ifname: String,
    /// Members it can talk to.
    pub peers: usize,
    /// Those it has a WireGuard session with.
    pub sessions: usize,
    /// Seconds since its last handshake.
    pub handshake_s: Option<u64>,
    /// Bytes received from them, WireGuard's headers included.
    pub received: u64,
    /// Bytes sent to them, WireGuard's headers included.
    pub sent: u64,
}

pub(super) async fn traffic<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
) -> Json<Exchange> {
    let journal = served.snapshot.borrow().journal.clone();
    let traffic = served.context.kernel.traffic(&project::ours(journal.durable())).await;
    Json(Exchange {
        host: served.config.host.clone(),
        members: members(&journal, &traffic),
        queries: served.metrics.queries(),
    })
}

fn members(journal: &Journal, traffic: &[Traffic]) -> Vec<MemberTraffic> {
    let mut peers: BTreeMap<&str, Vec<&Traffic>> = BTreeMap::new();
    for with_one in traffic {
        peers.entry(&with_one.member).or_default().push(with_one);
    }
    let of = |entry: &Entry| peers.get(entry.member.as_str()).map_or(&[][..], Vec::as_slice);
    journal.durable().map(|entry| sum(entry, of(entry))).collect()
}

fn sum(entry: &Entry, peers: &[&Traffic]) -> MemberTraffic {
    let handshakes = || peers.iter().filter_map(|peer| peer.handshake);
    MemberTraffic {
        member: entry.member.clone(),
        container: entry.container.clone(),
        network: entry.network,
        app: entry.app,
        process: entry.process.clone(),
        ordinal: entry.ordinal,
        address: entry.address,
        ifname: entry.ifname.clone(),
        peers: peers.len(),
        sessions: handshakes().filter(|age| *age < SESSION).count(),
        handshake_s: handshakes().min().map(|age| age.as_secs()),
        received: peers.iter().map(|peer| peer.received).sum(),
        sent: peers.iter().map(|peer| peer.sent).sum(),
    }
}

#[cfg(test)]
mod tests {
    use gossip::record::MemberState;
    use netplumb::state::Key;

    use super::*;
    use crate::project::fixtures::{entry, pn};

    #[test]
    fn a_member_has_the_sum_of_its_peers() {
        let entries = [1, 2].map(|n| entry(n, MemberState::Ready));
        let mut journal = Journal::default();
        for entry in &entries {
            journal.insert(entry.clone());
            journal.mark_durable(&entry.member);
        }
        let with = |peer: u8, handshake: Option<u64>, received, sent| Traffic {
            network: pn().to_string(),
            member: entries[0].member.to_string(),
            peer: Key([peer; 32]),
            handshake: handshake.map(Duration::from_secs),
            received,
            sent,
        };
        let traffic = [with(1, None, 0, 148), with(2, Some(181), 10, 20), with(3, Some(7), 1, 2)];
        let rows = members(&journal, &traffic);
        let told = |row: &MemberTraffic| {
            (row.container.clone(), row.peers, row.sessions, row.handshake_s, row.received, row.sent)
        };
        let expected = [("c1".to_owned(), 3, 1, Some(7), 11, 170), ("c2".to_owned(), 0, 0, None, 0, 0)];
        assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), expected);
    }
}
