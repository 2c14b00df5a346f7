//! Resetting in the API: this host's members are ended, the agent goes on.

use axum::Json;
use axum::extract::State;
use gossip::id::HostId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Served;
use super::input::Body;
use crate::attach::{Refusal, RefusalKind};
use crate::schema;
use crate::store::{Entry, Store};

/// Which host is meant.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    /// The name of the host asked: who reaches another one than they thought ends nothing there.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
}

/// What was ended.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reset {
    /// How many members were detached.
    pub members: usize,
}

pub(super) async fn reset<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    Body(request): Body<ResetRequest>,
) -> Result<Json<Reset>, Refusal> {
    let here = &served.config.host;
    if request.host != *here {
        let detail = format!("this is host {here}, not {}", request.host);
        return Err(Refusal::new(RefusalKind::Conflict, detail)
            .hint("say the name of the host whose members are to end"));
    }
    let members: Vec<Entry> = served.snapshot.borrow().journal.live().cloned().collect();
    let reset = Reset { members: members.len() };
    // A task of its own: a caller that hangs up does not stop halfway.
    let ended = tokio::spawn(served.context.clone().end_all(members)).await;
    ended.unwrap_or_else(|e| Err(Refusal::new(RefusalKind::Failed, format!("reset broke: {e}"))))?;
    Ok(Json(reset))
}
