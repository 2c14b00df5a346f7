//! Members in the API: attached, looked at and detached.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use gossip::id::{MemberId, NetworkId};
use netplumb::state::Mac;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::Served;
use super::input::{Body, Path};
use crate::agent::Snapshot;
use crate::attach::{Applied, Attached, Call, Refusal, RefusalKind, Request, Resolv};
use crate::config::Config;
use crate::project;
use crate::schema;
use crate::store::{Entry, Store};

/// Which member.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Place {
    /// The network.
    #[schemars(with = "schema::NetworkId")]
    network: NetworkId,
    /// What its caller calls the container, or the member.
    id: String,
}

pub(super) async fn attach<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network, id: container }): Path<Place>,
    Body(request): Body<Request>,
) -> Result<Json<Attached>, Refusal> {
    let started = Instant::now();
    let call = Call { network, container, request };
    // A task of its own: a caller that hangs up does not leave a half-made member.
    let context = served.context.clone();
    let attached = tokio::spawn(context.attach(call)).await;
    let attached =
        attached.unwrap_or_else(|e| Err(Refusal::new(RefusalKind::Failed, format!("attach broke: {e}"))));
    served.metrics.attached("api", started.elapsed(), attached.is_ok());
    let (entry, applied) = attached?;
    Ok(Json(told(&served.config, &served.snapshot.borrow(), &entry, applied)))
}

pub(super) async fn detach<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network, id }): Path<Place>,
) -> Result<NoContent, Refusal> {
    let entry = served.snapshot.borrow().journal.find(network, &id).cloned();
    if let Some(entry) = entry {
        let detached = tokio::spawn(served.context.clone().detach(entry)).await;
        detached.unwrap_or_else(|e| Err(Refusal::new(RefusalKind::Failed, format!("detach broke: {e}"))))?;
    }
    // Detach is idempotent: what is not there is detached.
    else if let Ok(member) = id.parse::<MemberId>() {
        served.context.clone().disown(member).await?;
    }
    Ok(NoContent)
}

pub(super) async fn member<K, S: Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network, id }): Path<Place>,
) -> Result<Json<Attached>, Refusal> {
    let snapshot = served.snapshot.borrow().clone();
    let entry = snapshot.journal.find(network, &id).ok_or_else(|| {
        Refusal::new(RefusalKind::NotFound, format!("{id} is no member of {network} on this host"))
            .hint("`warren ps` lists this host's members")
    })?;
    Ok(Json(told(&served.config, &snapshot, entry, Applied::default())))
}

fn told(config: &Config, snapshot: &Snapshot, entry: &Entry, applied: Applied) -> Attached {
    let app = entry.app.to_string();
    let domain = format!("{app}.{}.{}", entry.network, config.dns.zone);
    Attached {
        member: entry.member.clone(),
        container: entry.container.clone(),
        network: entry.network,
        app: entry.app,
        process: entry.process.clone(),
        ordinal: entry.ordinal,
        address: entry.address,
        address6: entry.address6,
        mac: Mac::of_key(&netplumb::state::Key(entry.public_key.0)).to_string(),
        public_key: String::from(entry.public_key),
        ifname: entry.ifname.clone(),
        mtu: snapshot.mtu,
        vni: entry.claim.vni,
        subnet: entry.claim.subnet,
        dns: Resolv {
            nameserver: config.dns.listen,
            search: Vec::new(),
            options: ["edns0", "timeout:2", "attempts:3"].map(Into::into).to_vec(),
        },
        env: BTreeMap::from([
            ("WARREN_APP_ID".into(), app.clone()),
            ("WARREN_NETWORK_ID".into(), entry.network.to_string()),
            ("WARREN_NETWORK_IDS".into(), networks_beside(snapshot, entry).join(",")),
            ("WARREN_DOMAIN".into(), domain),
            ("WARREN_ADDRESS".into(), entry.address.to_string()),
        ]),
        ports: entry.ports.clone(),
        names: project::names(&app, entry.process.as_str(), entry.ordinal, entry.network, &config.dns.zone),
        applied: applied.applied,
        missing: applied.missing,
    }
}

/// The networks of a member's container, in the order of its interfaces.
fn networks_beside(snapshot: &Snapshot, entry: &Entry) -> Vec<String> {
    let same = |e: &&Entry| (e.netns.cookie, &e.boot) == (entry.netns.cookie, &entry.boot);
    let mut beside: Vec<&Entry> = snapshot.journal.live().filter(same).collect();
    // wg10 comes after wg9.
    beside.sort_by_key(|e| (e.ifname.len(), &e.ifname));
    beside.iter().map(|e| e.network.to_string()).collect()
}
