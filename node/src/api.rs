//! The API: HTTP and JSON on a Unix socket; metrics, health and the status page on TCP, read only.

mod drain;
mod explain;
mod network;
mod rows;
mod traffic;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use gossip::id::{MemberId, NetworkId};
use netplumb::state::Mac;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use drain::{DrainRequest, Drained};
pub use explain::Pinged;
pub use network::{NetworkChange, NetworkDetail, NetworkRequest};
pub use rows::{HostRow, MemberRow, NameRow, NetworkClaims, NetworkRow, Status};
pub use traffic::{Exchange, MemberTraffic};

use crate::agent::Snapshot;
use crate::attach::{Applied, Attached, Call, Context, Refusal, RefusalKind, Request, Resolv};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::project;
use crate::store::{Entry, Store};
use rows::{events, hosts, look_up, members, names, networks, status, status_of, unready};

/// Longest request body in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What the API serves from.
pub struct Served<K, S> {
    /// How the agent was configured.
    pub config: Arc<Config>,
    /// To attach and detach by.
    pub context: Context<K, S>,
    /// To read from.
    pub snapshot: watch::Receiver<Snapshot>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Who does WireGuard here: `kernel` or `userspace`.
    pub wireguard: &'static str,
}

impl<K, S: Clone> Clone for Served<K, S> {
    fn clone(&self) -> Self {
        Served {
            config: self.config.clone(),
            context: self.context.clone(),
            snapshot: self.snapshot.clone(),
            metrics: self.metrics.clone(),
            wireguard: self.wireguard,
        }
    }
}

/// The listeners of one agent; they end when dropped.
pub struct Api {
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Api {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Api {
    /// Serves on `socket`, or else on the configured one (root alone), and on the TCP address.
    ///
    /// # Errors
    /// The socket's place or the address cannot be bound.
    pub async fn serve<K, S>(
        served: Served<K, S>,
        socket: Option<std::os::unix::net::UnixListener>,
    ) -> anyhow::Result<Api>
    where
        K: netplumb::Kernel,
        S: Store + Clone,
    {
        let address = served.config.http;
        let public = TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve metrics on {address}; set http.listen to a free address")
        })?;
        // Last, because it leaves a file behind.
        let socket = match socket {
            Some(socket) => adopt(socket)?,
            None => bind(&served.config.socket())?,
        };
        let (private, public_routes) = (private(served.clone()), public_of(served));
        let tasks = vec![
            tokio::spawn(async move {
                let _ = axum::serve(socket, private).await;
            }),
            tokio::spawn(async move {
                let _ = axum::serve(public, public_routes).await;
            }),
        ];
        Ok(Api { tasks })
    }
}

/// A listener that was open before this process began.
pub(crate) fn adopt(socket: std::os::unix::net::UnixListener) -> anyhow::Result<UnixListener> {
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from_std(socket)?)
}

/// A listener at `path`, for its owner alone, in place of what a killed agent left.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    // What an agent that was killed left behind: the run directory is locked, nobody serves it.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner_only)
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}

fn private<K: netplumb::Kernel, S: Store + Clone>(served: Served<K, S>) -> Router {
    Router::new()
        .route(
            "/v1/networks/{network}/members/{id}",
            get(member::<K, S>).put(attach::<K, S>).delete(detach::<K, S>),
        )
        .route("/v1/status", get(status::<K, S>))
        .route("/v1/hosts", get(hosts::<K, S>))
        .route("/v1/networks", get(networks::<K, S>))
        .route(
            "/v1/networks/{network}",
            get(network::inspect::<K, S>)
                .put(network::create::<K, S>)
                .patch(network::change::<K, S>)
                .delete(network::forget::<K, S>),
        )
        .route("/v1/members", get(members::<K, S>))
        .route("/v1/traffic", get(traffic::traffic::<K, S>))
        .route("/v1/names", get(names::<K, S>))
        .route("/v1/lookup", get(look_up::<K, S>))
        .route("/v1/events", get(events::<K, S>))
        .route("/v1/drain", post(drain::drain::<K, S>))
        .route("/v1/explain", get(explain::explain::<K, S>))
        .route("/v1/doctor", get(explain::doctor::<K, S>))
        .route("/v1/ping", get(explain::ping::<K, S>))
        .route("/metrics", get(metrics::<K, S>))
        .fallback(nothing)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(served)
}

fn public_of<K: netplumb::Kernel, S: Store + Clone>(served: Served<K, S>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<K, S>))
        .route("/healthz", get(health::<K, S>))
        .route("/readyz", get(ready::<K, S>))
        .route("/", get(page::<K, S>))
        .fallback(nothing)
        .with_state(served)
}

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
struct Rejected {
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

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Malformed, detail)
}

async fn nothing() -> Refusal {
    Refusal::new(RefusalKind::NotFound, "there is nothing at this path").hint("paths start with /v1/")
}

async fn no_method() -> Rejected {
    let refusal =
        malformed("this path does not take that method").hint("the `allow` header lists those it takes");
    Rejected { status: StatusCode::METHOD_NOT_ALLOWED, refusal }
}

type MemberPath = Result<UrlPath<(NetworkId, String)>, PathRejection>;

fn member_path(path: MemberPath) -> Result<(NetworkId, String), Refusal> {
    path.map(|UrlPath(pair)| pair).map_err(|e| malformed(e.body_text()))
}

async fn attach<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    path: MemberPath,
    body: Result<Json<Request>, JsonRejection>,
) -> Result<Json<Attached>, Rejected> {
    let (network, container) = member_path(path)?;
    let Json(request) = body?;
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

async fn detach<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
    path: MemberPath,
) -> Result<StatusCode, Refusal> {
    let (network, id) = member_path(path)?;
    let entry = served.snapshot.borrow().journal.find(network, &id).cloned();
    if let Some(entry) = entry {
        let detached = tokio::spawn(served.context.clone().detach(entry)).await;
        detached.unwrap_or_else(|e| Err(Refusal::new(RefusalKind::Failed, format!("detach broke: {e}"))))?;
    }
    // Detach is idempotent: what is not there is detached.
    else if let Ok(member) = id.parse::<MemberId>() {
        served.context.clone().disown(member).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn member<K, S: Clone>(
    State(served): State<Served<K, S>>,
    path: MemberPath,
) -> Result<Json<Attached>, Refusal> {
    let (network, id) = member_path(path)?;
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

async fn metrics<K: netplumb::Kernel, S: Store + Clone>(State(served): State<Served<K, S>>) -> Response {
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

async fn health<K: netplumb::Kernel, S: Store + Clone>(
    State(served): State<Served<K, S>>,
) -> (StatusCode, String) {
    if served.context.turns(BUSY_MAX).await {
        return (StatusCode::OK, "ok\n".into());
    }
    let text = format!("the agent's loop has not answered in {} s\n", BUSY_MAX.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn ready<K, S: Clone>(State(served): State<Served<K, S>>) -> (StatusCode, String) {
    match unready(&served.snapshot.borrow()) {
        None => (StatusCode::OK, "ready\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn page<K, S: Clone>(State(served): State<Served<K, S>>) -> Html<String> {
    Html(crate::page::render(&status_of(&served), &served.snapshot.borrow()))
}
