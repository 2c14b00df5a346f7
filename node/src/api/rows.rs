//! What the API shows: the agent, the region and the names as rows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Json;
use axum::extract::State;
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::{MemberState, NetworkRecord};
use gossip::standing::Standing;
use netplumb::engine::Facts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Served;
use super::input::Query;
use crate::agent::{Built, Event, Snapshot};
use crate::attach::Refusal;
use crate::claims::Ledger;
use crate::config::Config;
use crate::lookup::{self, Lookup};
use crate::project;
use crate::schema;

/// The agent in figures.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its region.
    pub region: String,
    /// Its host.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// The generation it publishes in; 0 before the join.
    pub generation: u64,
    /// Whether it is ready: joined, the view whole, not cut off.
    pub ready: bool,
    /// Whether it takes no new members, and names lead to those it has no more.
    pub draining: bool,
    /// What is wrong, in sentences; empty when nothing is.
    pub problems: Vec<String>,
    /// Hosts by standing.
    pub hosts: BTreeMap<String, usize>,
    /// Networks in the region.
    pub networks: usize,
    /// Members on this host.
    pub members: usize,
    /// Claims by kind and state.
    pub claims: BTreeMap<String, usize>,
    /// The claims of each network.
    pub addresses: Vec<NetworkClaims>,
    /// When the host's certificate expires, in seconds since 1970.
    pub certificate_expires: i64,
    /// Who does WireGuard here: `kernel` or `userspace`.
    pub wireguard: String,
    /// The process that holds the containers' descriptors.
    pub engine: Option<EngineRow>,
    /// The name server of every container.
    pub name_server: Ipv4Addr,
    /// The zone all private names end in.
    pub zone: String,
}

/// The engine's process.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct EngineRow {
    /// Its process id; none while another one is being started.
    pub pid: Option<u32>,
    /// For how long it has been running, in seconds.
    pub uptime_s: u64,
    /// Engines that ended and were replaced since the agent started.
    pub replaced: u64,
    /// WireGuard interfaces it serves; none where the kernel does.
    pub interfaces: usize,
    /// Threads that it spreads new interfaces over, `wireguard.threads`; each stays on the one it was born on.
    pub threads: u16,
    /// Containers whose DNS sockets it holds.
    pub listeners: usize,
}

impl From<Facts> for EngineRow {
    fn from(facts: Facts) -> EngineRow {
        EngineRow {
            pid: facts.process.map(|(pid, _)| pid),
            uptime_s: facts.process.map_or(0, |(_, uptime)| uptime.as_secs()),
            replaced: facts.replaced,
            interfaces: facts.interfaces,
            threads: facts.threads,
            listeners: facts.kept,
        }
    }
}

/// The claims of one network, counted.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NetworkClaims {
    /// The network.
    #[schemars(with = "schema::NetworkId")]
    pub network: NetworkId,
    /// Addresses held by live members.
    pub held: usize,
    /// Addresses resting after a detach.
    pub released: usize,
    /// Addresses kept for members that vanished with their hosts.
    pub ghosts: usize,
    /// Addresses nobody has.
    pub free: usize,
    /// Live members whose address another one holds.
    pub contested: usize,
    /// Numbers held.
    pub ordinals: usize,
    /// Live members whose number another one holds.
    pub ordinals_contested: usize,
}

pub(super) fn claims_of(ledger: &Ledger, network: NetworkId, record: &NetworkRecord) -> NetworkClaims {
    let claims = ledger.claims(network);
    let (tally, (ordinals, ordinals_contested)) = (claims.tally(), claims.numbers());
    let used = tally.held + tally.released + tally.ghosts;
    NetworkClaims {
        network,
        held: tally.held,
        released: tally.released,
        ghosts: tally.ghosts,
        free: record.subnet.hosts().count().saturating_sub(used),
        contested: tally.contested,
        ordinals,
        ordinals_contested,
    }
}

pub(super) async fn status<K, S: Clone>(State(served): State<Served<K, S>>) -> Json<Status> {
    Json(status_of(&served))
}

pub(super) fn status_of<K, S: Clone>(served: &Served<K, S>) -> Status {
    let snapshot = served.snapshot.borrow().clone();
    let mut hosts = BTreeMap::new();
    for host in snapshot.view.hosts.values() {
        *hosts.entry(host.standing.as_str().to_owned()).or_default() += 1;
    }
    let ledger = snapshot.ledger();
    let networks: Vec<NetworkClaims> =
        ledger.networks.iter().map(|(id, r)| claims_of(&ledger, id, &r)).collect();
    let sum = |count: fn(&NetworkClaims) -> usize| networks.iter().map(count).sum();
    let claims = [
        ("addresses held", sum(|n| n.held)),
        ("addresses released", sum(|n| n.released)),
        ("addresses ghosts", sum(|n| n.ghosts)),
        ("addresses contested", sum(|n| n.contested)),
        ("ordinals held", sum(|n| n.ordinals)),
        ("ordinals contested", sum(|n| n.ordinals_contested)),
        ("vnis held", ledger.networks.len()),
        ("vnis contested", ledger.networks.moved().len()),
    ];
    let engine = served.metrics.engine().map(EngineRow::from);
    let mut problems = problems(&snapshot, sum(|n| n.contested), &served.context.built.borrow());
    problems.extend(strangers(&snapshot, &served.config));
    problems.extend(overlaps(&snapshot));
    if engine.as_ref().is_some_and(|engine| engine.pid.is_none()) {
        problems.push("the engine's process does not answer: see the agent's log".to_owned());
    }
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        region: served.config.region.to_string(),
        host: served.config.host.clone(),
        generation: snapshot.generation,
        ready: unready(&snapshot).is_none(),
        draining: snapshot.journal.draining(),
        problems,
        hosts,
        networks: ledger.networks.len(),
        members: snapshot.journal.live().count(),
        claims: claims.map(|(name, count)| (name.to_owned(), count)).into(),
        addresses: networks,
        certificate_expires: served.metrics.certificate_expiry(),
        wireguard: served.wireguard.to_owned(),
        engine,
        name_server: served.config.dns.listen,
        zone: served.config.dns.zone.clone(),
    }
}

pub(super) fn unready(snapshot: &Snapshot) -> Option<String> {
    if let Some(why) = &snapshot.unjoined {
        return Some(format!("not joined: {why}"));
    }
    if let Some(twin) = snapshot.view.twin {
        return Some(format!("fenced: another machine at {twin} uses this host's name"));
    }
    if !snapshot.view.whole {
        return Some("the region's records are not known whole yet: no seed has answered".into());
    }
    snapshot.view.cut_off.then(|| "cut off: no other host answers, names are frozen".into())
}

fn problems(snapshot: &Snapshot, contested: usize, built: &Built) -> Vec<String> {
    let contested = (contested > 0).then(|| format!("{contested} members wait for an address of their own"));
    let flushed = built.flushed.iter().filter_map(|(member, repaired)| {
        let entry = snapshot.journal.get(member)?;
        let minutes = repaired.elapsed().as_secs() / 60;
        Some(format!(
            "somebody removed our rules in {}: without guard and names until put back {minutes} min ago",
            entry.container
        ))
    });
    unready(snapshot)
        .into_iter()
        .chain(contested)
        .chain(flushed)
        .chain(built.errors.iter().cloned())
        .collect()
}

/// Hosts that this one cannot tunnel to.
fn strangers(snapshot: &Snapshot, config: &Config) -> impl Iterator<Item = String> {
    let from = config.underlay.address;
    let others = snapshot
        .view
        .hosts
        .iter()
        .filter(move |(_, h)| h.standing != Standing::Gone && !project::same_family(h, from));
    others.map(move |(host, h)| project::stranger(from, host, h.records.host.vtep))
}

/// Containers whose networks got overlapping subnets on two sides of a cut.
fn overlaps(snapshot: &Snapshot) -> Vec<String> {
    let eclipsed = snapshot.journal.eclipsed();
    let pairs = eclipsed.iter().filter_map(|(member, by)| {
        let (entry, by) = (snapshot.journal.get(member)?, snapshot.journal.get(by)?);
        Some(format!(
            "container {} is in {} ({}) and {} ({}), which overlap since a cut healed: it has neither addresses nor \
             names of {}; detach it from one of them, and attach it to a network with another subnet",
            entry.container, by.network, by.claim.subnet, entry.network, entry.claim.subnet, entry.network
        ))
    });
    pairs.collect()
}

/// One host of the region.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct HostRow {
    /// Its name.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// How it stands with the agent asked.
    pub standing: String,
    /// Whether it takes no new members, and names lead to those it has no more.
    pub draining: bool,
    /// Where its agent gossips.
    pub address: SocketAddr,
    /// Its tunnel end.
    pub vtep: SocketAddr,
    /// Its underlay's MTU in bytes.
    pub mtu: u32,
    /// Its live members.
    pub members: usize,
    /// Its generation.
    pub generation: u64,
}

pub(super) async fn hosts<K, S: Clone>(State(served): State<Served<K, S>>) -> Json<Vec<HostRow>> {
    let snapshot = served.snapshot.borrow().clone();
    let row = |(host, h): (&HostId, &gossip::view::Host)| HostRow {
        host: host.clone(),
        standing: h.standing.as_str().into(),
        draining: h.records.host.draining,
        address: h.address,
        vtep: SocketAddr::new(h.records.host.vtep, h.records.host.port),
        mtu: h.records.host.mtu,
        members: h.records.members.values().filter(|m| m.state != MemberState::Released).count(),
        generation: h.generation,
    };
    Json(snapshot.view.hosts.iter().map(row).collect())
}

/// One network of the region.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkRow {
    /// Its id.
    #[schemars(with = "schema::NetworkId")]
    pub network: NetworkId,
    /// Its VXLAN identifier.
    pub vni: u32,
    /// Its subnet.
    pub subnet: String,
    /// Its live members in the region.
    pub members: usize,
    /// Those on this host.
    pub here: usize,
    /// Hosts with live members of it.
    pub hosts: usize,
    /// Whether other names are passed on for its containers.
    pub forward: bool,
}

pub(super) async fn networks<K, S: Clone>(State(served): State<Served<K, S>>) -> Json<Vec<NetworkRow>> {
    Json(networks_of(&served))
}

pub(super) fn networks_of<K, S: Clone>(served: &Served<K, S>) -> Vec<NetworkRow> {
    let snapshot = served.snapshot.borrow().clone();
    let ledger = snapshot.ledger();
    let rows = ledger.networks.iter().map(|(network, record)| {
        let of = |h: &gossip::view::Host| {
            h.records
                .members
                .iter()
                .filter(|((pn, _), m)| *pn == network && m.state != MemberState::Released)
                .count()
        };
        NetworkRow {
            network,
            vni: record.vni,
            subnet: record.subnet.to_string(),
            members: snapshot.view.hosts.values().map(of).sum(),
            here: snapshot.view.hosts.get(&served.config.host).map_or(0, of),
            hosts: snapshot.view.hosts.values().filter(|h| of(h) > 0).count(),
            forward: record.forwards(),
        }
    });
    rows.collect()
}

/// One member of the region.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct MemberRow {
    /// The member.
    #[schemars(with = "schema::MemberId")]
    pub member: MemberId,
    /// Its host.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// Its host's standing.
    pub standing: String,
    /// Whether its host is being drained, so that names do not lead to it.
    pub draining: bool,
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
    /// Its address in the ULA.
    pub address6: Option<Ipv6Addr>,
    /// The ports it publishes.
    pub ports: Vec<String>,
    /// Where in its life it is.
    #[schemars(with = "schema::MemberState")]
    pub state: MemberState,
    /// Whether another member holds its address or ordinal.
    pub contested: bool,
    /// Its container, when it is on the host asked.
    pub container: Option<String>,
    /// Its interface, when it is on the host asked.
    pub ifname: Option<String>,
}

pub(super) async fn members<K, S: Clone>(State(served): State<Served<K, S>>) -> Json<Vec<MemberRow>> {
    let snapshot = served.snapshot.borrow().clone();
    let ledger = snapshot.ledger();
    let rows = snapshot.view.members().map(|(host, standing, network, member, record)| {
        let key = (host.clone(), *network, member.clone());
        let own = snapshot.journal.get(member);
        MemberRow {
            member: member.clone(),
            host: host.clone(),
            standing: standing.as_str().into(),
            draining: snapshot.view.hosts.get(host).is_some_and(|h| h.records.host.draining),
            network: *network,
            app: record.app,
            process: record.process.clone(),
            ordinal: record.ordinal,
            address: record.address,
            address6: record.address6,
            ports: record.ports.clone(),
            state: record.state,
            contested: record.state != MemberState::Released
                && (ledger.address_contested(&key, record) || ledger.ordinal_contested(&key, record)),
            container: own.map(|e| e.container.clone()),
            ifname: own.map(|e| e.ifname.clone()),
        }
    });
    Json(rows.collect())
}

/// One name and what it resolves to.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct NameRow {
    /// The name.
    pub name: String,
    /// Its A records.
    pub addresses: Vec<Ipv4Addr>,
    /// Its AAAA records.
    pub addresses6: Vec<Ipv6Addr>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamesQuery {
    /// Only names of this app.
    #[schemars(with = "Option<schema::AppId>")]
    app: Option<AppId>,
}

pub(super) async fn names<K, S: Clone>(
    State(served): State<Served<K, S>>,
    Query(query): Query<NamesQuery>,
) -> Result<Json<Vec<NameRow>>, Refusal> {
    let app = query.app.map(|app| format!("{app}."));
    let zones = served.snapshot.borrow().zones.clone();
    let wanted = |name: &str| app.as_ref().is_none_or(|app| name.contains(app.as_str()));
    let rows = zones.values().flat_map(|zone| zone.names()).filter(|n| wanted(&n.name)).map(|n| NameRow {
        name: n.name,
        addresses: n.addresses,
        addresses6: n.addresses6,
    });
    Ok(Json(rows.collect()))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LookupQuery {
    /// The name to look up.
    name: String,
    /// For which member or container of this host; one in all of its networks when not given.
    #[serde(rename = "as")]
    asker: Option<String>,
}

pub(super) async fn look_up<K, S: Clone>(
    State(served): State<Served<K, S>>,
    Query(query): Query<LookupQuery>,
) -> Result<Json<Lookup>, Refusal> {
    let snapshot = served.snapshot.borrow().clone();
    lookup::look_up(&served.config.dns, &snapshot, &query.name, query.asker.as_deref()).map(Json)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only events with a higher number.
    #[serde(default)]
    after: u64,
}

pub(super) async fn events<K, S: Clone>(
    State(served): State<Served<K, S>>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<Event>>, Refusal> {
    let events = served.snapshot.borrow().events.clone();
    Ok(Json(events.iter().filter(|event| event.number > query.after).cloned().collect()))
}
