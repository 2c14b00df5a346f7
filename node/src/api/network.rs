//! Networks in the API: made, looked at, changed and forgotten.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use gossip::id::{HostId, NetworkId};
use gossip::record::MemberState;
use ipnet::Ipv6Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Served;
use super::input::{Body, Path};
use super::problem::malformed;
use super::rows::{NetworkClaims, NetworkRow, claims_of, networks_of};
use crate::attach::{Refusal, RefusalKind};
use crate::claims;
use crate::project;
use crate::schema;
use crate::store::Store;

/// A network as a caller wants it.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// Its subnet; when not given the one it has, or 10.240.0.0/22.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Whether other names are passed on for its containers; as it is when not given.
    #[serde(default)]
    pub forward: Option<bool>,
}

/// What can be changed of a network.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkChange {
    /// Whether other names are passed on for its containers.
    pub forward: bool,
}

/// Everything about a network.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkDetail {
    /// As it is listed.
    #[serde(flatten)]
    pub row: NetworkRow,
    /// Its IPv6 prefix.
    #[schemars(with = "schema::Ipv6Net")]
    pub ula: Ipv6Net,
    /// It was made on the host asked, and stays without members.
    pub made_here: bool,
    /// Its live members by host.
    #[schemars(with = "BTreeMap<String, usize>")]
    pub members_by_host: BTreeMap<HostId, usize>,
    /// Its claims, counted.
    pub claims: NetworkClaims,
}

/// Which network.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Place {
    /// The network.
    #[schemars(with = "schema::NetworkId")]
    network: NetworkId,
}

/// One that is there already is as good, with the same subnet.
pub(super) async fn create<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network }): Path<Place>,
    Body(request): Body<NetworkRequest>,
) -> Result<Json<NetworkDetail>, Refusal> {
    let subnet = request.subnet.as_deref().map(claims::subnet).transpose().map_err(malformed)?;
    served.context.clone().create(network, subnet).await?;
    if let Some(forward) = request.forward {
        served.context.clone().forward(network, forward).await?;
    }
    Ok(Json(detail(&served, network)?))
}

pub(super) async fn change<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network }): Path<Place>,
    Body(change): Body<NetworkChange>,
) -> Result<Json<NetworkDetail>, Refusal> {
    served.context.clone().forward(network, change.forward).await?;
    Ok(Json(detail(&served, network)?))
}

pub(super) async fn inspect<K, S: Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network }): Path<Place>,
) -> Result<Json<NetworkDetail>, Refusal> {
    detail(&served, network).map(Json)
}

pub(super) async fn forget<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Path(Place { network }): Path<Place>,
) -> Result<NoContent, Refusal> {
    served.context.clone().forget(network).await?;
    Ok(NoContent)
}

fn detail<K, S: Clone>(served: &Served<K, S>, network: NetworkId) -> Result<NetworkDetail, Refusal> {
    let row = networks_of(served).into_iter().find(|row| row.network == network);
    let snapshot = served.snapshot.borrow().clone();
    let ledger = snapshot.ledger();
    let (Some(row), Some(record)) = (row, ledger.networks.get(network)) else {
        let detail = format!("nobody in the region has a word on {network}");
        return Err(Refusal::new(RefusalKind::NotFound, detail)
            .hint("`warren network create` makes it, and so does the first attach to it"));
    };
    let mut members_by_host = BTreeMap::new();
    for (host, _, of, _, member) in snapshot.view.members() {
        if *of == network && member.state != MemberState::Released {
            *members_by_host.entry(host.clone()).or_default() += 1;
        }
    }
    Ok(NetworkDetail {
        row,
        ula: project::ula(network),
        made_here: snapshot.journal.created().contains_key(&network),
        members_by_host,
        claims: claims_of(&ledger, network, &record),
    })
}
