//! What anybody on the host may read: figures, health and the status page.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Html;

use super::Served;
use super::rows::{status_of, unready};
use crate::attach::{Refusal, RefusalKind};
use crate::project;
use crate::store::Store;

/// What figures are written in.
pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn metrics<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
) -> Result<([(HeaderName, &'static str); 1], String), Refusal> {
    let snapshot = served.snapshot.borrow().clone();
    let traffic = served.context.kernel.traffic(&project::ours(snapshot.journal.durable())).await;
    let text = served.metrics.encode(&snapshot, &traffic);
    let text = text.map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text))
}

/// For how long the agent's loop may be busy with one thing.
const BUSY_MAX: Duration = Duration::from_secs(5);

pub(super) async fn health<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
) -> (StatusCode, String) {
    if served.context.turns(BUSY_MAX).await {
        return (StatusCode::OK, "ok\n".into());
    }
    let text = format!("the agent's loop has not answered in {} s\n", BUSY_MAX.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

pub(super) async fn ready<K, S: Clone>(State(served): State<Served<K, S>>) -> (StatusCode, String) {
    match unready(&served.snapshot.borrow()) {
        None => (StatusCode::OK, "ready\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

pub(super) async fn page<K, S: Clone>(State(served): State<Served<K, S>>) -> Html<String> {
    Html(crate::page::render(&status_of(&served), &served.snapshot.borrow()))
}
