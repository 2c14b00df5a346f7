//! Draining in the API.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Served;
use super::input::Body;
use crate::attach::Refusal;
use crate::store::Store;

/// What is wanted of a host; without a body it is drained.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Whether it takes no new members, and names lead to those it has no more.
    pub draining: bool,
}

/// What a host does from now on.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Drained {
    /// Whether it takes no new members, and names lead to those it has no more.
    pub draining: bool,
    /// Members on it: they stay until they are detached.
    pub members: usize,
    /// For how long whoever asked before may use their addresses, in seconds.
    pub ttl_s: u32,
}

pub(super) async fn drain<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    body: Option<Body<DrainRequest>>,
) -> Result<Json<Drained>, Refusal> {
    let draining = body.is_none_or(|Body(request)| request.draining);
    served.context.clone().drain(draining).await?;
    let members = served.snapshot.borrow().journal.live().count();
    Ok(Json(Drained { draining, members, ttl_s: served.config.dns.ttl_s }))
}
