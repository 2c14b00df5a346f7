//! What anybody on the host may read: figures, health and the status page.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::Served;
use super::rows::{status_of, unready};
use crate::attach::{Refusal, RefusalKind};
use crate::project;
use crate::store::Store;

pub(super) async fn metrics<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
) -> Response {
    let snapshot = served.snapshot.borrow().clone();
    let traffic = served.context.kernel.traffic(&project::ours(snapshot.journal.durable())).await;
    match served.metrics.encode(&snapshot, &traffic) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => Refusal::new(RefusalKind::Failed, error.to_string()).into_response(),
    }
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
