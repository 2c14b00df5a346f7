//! Problems: what a request that was refused is answered (RFC 9457).

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::BODY_BYTES_MAX;
use crate::attach::{Refusal, RefusalKind};

/// A problem as RFC 9457 has it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A URI naming the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A refusal with the HTTP status that says it best.
pub(super) struct Rejected {
    status: StatusCode,
    refusal: Refusal,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Rejected {
        let status = match refusal.kind {
            RefusalKind::Malformed => StatusCode::BAD_REQUEST,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Denied => StatusCode::FORBIDDEN,
            RefusalKind::Unready => StatusCode::SERVICE_UNAVAILABLE,
            RefusalKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Rejected { status, refusal }
    }
}

impl From<JsonRejection> for Rejected {
    fn from(rejection: JsonRejection) -> Rejected {
        let refusal = malformed(rejection.body_text());
        match rejection.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => Rejected {
                status,
                refusal: refusal.hint(format!("a request has at most {BODY_BYTES_MAX} bytes")),
            },
            status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => Rejected { status, refusal },
            _ => refusal.into(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        Rejected::from(self).into_response()
    }
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        let Rejected { status, refusal } = self;
        let (name, title) = match refusal.kind {
            RefusalKind::Malformed => ("malformed", "The request makes no sense"),
            RefusalKind::NotFound => ("not-found", "It is not there"),
            RefusalKind::Conflict => ("conflict", "Something stands in the way"),
            RefusalKind::Denied => ("denied", "Not permitted"),
            RefusalKind::Unready => ("unready", "Not now"),
            RefusalKind::Timeout => ("timeout", "It did not end in time"),
            RefusalKind::Failed => ("failed", "It was tried and failed"),
        };
        let problem = Problem {
            kind: format!("urn:warren:problem:{name}"),
            title: title.into(),
            status: status.as_u16(),
            detail: refusal.detail,
            hint: refusal.hint,
        };
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
    }
}

pub(super) fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Malformed, detail)
}

pub(super) async fn nothing() -> Refusal {
    Refusal::new(RefusalKind::NotFound, "there is nothing at this path").hint("paths start with /v1/")
}

pub(super) async fn no_method() -> Rejected {
    let refusal =
        malformed("this path does not take that method").hint("the `allow` header lists those it takes");
    Rejected { status: StatusCode::METHOD_NOT_ALLOWED, refusal }
}
