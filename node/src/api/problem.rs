//! Problems: what a request that was refused is answered (RFC 9457).

use aide::OperationOutput;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BODY_BYTES_MAX;
use crate::attach::{Refusal, RefusalKind};

/// What a problem is written in.
pub(super) const JSON: &str = "application/problem+json";

/// A problem as RFC 9457 has it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
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
    #[schemars(with = "String")]
    pub hint: Option<String>,
}

/// A refusal with the HTTP status that says it best.
pub(super) struct Rejected {
    status: StatusCode,
    refusal: Refusal,
}

/// What a kind of refusal is to HTTP: its status, the end of its URI, its title.
fn told(kind: RefusalKind) -> (StatusCode, &'static str, &'static str) {
    match kind {
        RefusalKind::Malformed => (StatusCode::BAD_REQUEST, "malformed", "The request makes no sense"),
        RefusalKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "It is not there"),
        RefusalKind::Conflict => (StatusCode::CONFLICT, "conflict", "Something stands in the way"),
        RefusalKind::Denied => (StatusCode::FORBIDDEN, "denied", "Not permitted"),
        RefusalKind::Unready => (StatusCode::SERVICE_UNAVAILABLE, "unready", "Not now"),
        RefusalKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout", "It did not end in time"),
        RefusalKind::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed", "It was tried and failed"),
    }
}

/// The HTTP status of a kind of refusal.
pub(super) fn status(kind: RefusalKind) -> StatusCode {
    told(kind).0
}

/// Every status that a problem of a described operation may have, in words.
pub(super) fn statuses() -> [(StatusCode, &'static str); 9] {
    let titled = |kind| (told(kind).0, told(kind).2);
    [
        titled(RefusalKind::Malformed),
        titled(RefusalKind::Denied),
        titled(RefusalKind::NotFound),
        titled(RefusalKind::Conflict),
        (StatusCode::PAYLOAD_TOO_LARGE, "The body is too long"),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not said to be JSON"),
        titled(RefusalKind::Failed),
        titled(RefusalKind::Unready),
        titled(RefusalKind::Timeout),
    ]
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Rejected {
        Rejected { status: status(refusal.kind), refusal }
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

// How an operation may be refused is said where it is routed.
impl OperationOutput for Refusal {
    type Inner = Problem;
}

impl OperationOutput for Rejected {
    type Inner = Problem;
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        Rejected::from(self).into_response()
    }
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        let Rejected { status, refusal } = self;
        let (_, name, title) = told(refusal.kind);
        let problem = Problem {
            kind: format!("urn:warren:problem:{name}"),
            title: title.into(),
            status: status.as_u16(),
            detail: refusal.detail,
            hint: refusal.hint,
        };
        (status, [(header::CONTENT_TYPE, JSON)], Json(problem)).into_response()
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
