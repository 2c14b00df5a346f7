//! Docker: network and IPAM driver by libnetwork's remote plugin protocol, HTTP and JSON on a Unix socket
//! (moby's `libnetwork/docs/remote.md` and `ipam.md`). Everything it has to remember is in the journal, in the ids it
//! gives out, or asked of the engine.

mod driver;
pub mod engine;
mod ipam;
pub(super) mod labels;
mod wire;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, Served};
use crate::attach::{Refusal, RefusalKind};
use crate::store::Store;
use engine::Engine;

/// What answers are, of the version of the protocol.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The plugin's listener; it ends when dropped.
pub struct Plugin {
    tasks: [JoinHandle<()>; 2],
    /// The socket's file, where it does not outlive this process.
    file: Option<PathBuf>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// What the plugin answers from.
struct Desk<K, S> {
    served: Served<K, S>,
    engine: Engine,
    /// Endpoints that were created and have not joined, and their addresses.
    created: watch::Sender<BTreeMap<String, Ipv4Addr>>,
}

impl<K, S: Clone> Clone for Desk<K, S> {
    fn clone(&self) -> Self {
        let Desk { served, engine, created } = self;
        Desk { served: served.clone(), engine: engine.clone(), created: created.clone() }
    }
}

impl Plugin {
    /// Serves on `socket`, whose file name is the driver's name, or on what was `open` there before this process, and
    /// asks the engine at `engine`.
    ///
    /// # Errors
    /// The socket's place cannot be made, or another agent serves there.
    pub fn serve<K, S>(
        served: Served<K, S>,
        open: Option<UnixListener>,
        socket: &Path,
        engine: &Path,
    ) -> anyhow::Result<Plugin>
    where
        K: netplumb::Kernel,
        S: Store + Clone,
    {
        let file = open.is_none().then(|| socket.to_owned());
        let listener = match open {
            Some(listener) => api::adopt(listener)?,
            None => Plugin::bind(socket)?,
        };
        let desk = Desk { served, engine: Engine::new(engine), created: watch::Sender::default() };
        let routes = Router::new().route("/{method}", post(call::<K, S>)).with_state(desk.clone());
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Plugin { tasks: [serving, tokio::spawn(desk.name_the_unnamed())], file })
    }

    fn bind(socket: &Path) -> anyhow::Result<tokio::net::UnixListener> {
        if UnixStream::connect(socket).is_ok() {
            bail!("another agent serves Docker at {}; give this one its own docker.plugin", socket.display());
        }
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        api::bind(socket)
    }
}

/// One call of the engine. What is not answered is of a later protocol, and may be left unanswered with 404.
async fn call<K: netplumb::Kernel, S: Store + Clone>(
    State(desk): State<Desk<K, S>>,
    UrlPath(method): UrlPath<String>,
    body: Bytes,
) -> Response {
    let nothing = || Ok(json!({}));
    let answer = match method.as_str() {
        "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
        "NetworkDriver.GetCapabilities" => {
            Ok(json!({ "Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": true }))
        }
        "NetworkDriver.GwAllocCheck" => Ok(json!({ "SkipIPv4": true, "SkipIPv6": true })),
        "NetworkDriver.CreateNetwork" => with(&body, |request| desk.create_network(request)).await,
        "NetworkDriver.DeleteNetwork" => with(&body, |request| desk.delete_network(request)).await,
        "NetworkDriver.CreateEndpoint" => read(&body).and_then(|request| desk.create_endpoint(request)),
        "NetworkDriver.Join" => with(&body, |request| desk.join(request)).await,
        "NetworkDriver.Leave" | "NetworkDriver.DeleteEndpoint" => {
            with(&body, |request| desk.leave(request)).await
        }
        "NetworkDriver.EndpointOperInfo" => Ok(json!({ "Value": {} })),
        "NetworkDriver.DiscoverNew"
        | "NetworkDriver.DiscoverDelete"
        | "NetworkDriver.ProgramExternalConnectivity"
        | "NetworkDriver.RevokeExternalConnectivity" => nothing(),
        "IpamDriver.GetCapabilities" => {
            Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": true }))
        }
        "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
            "LocalDefaultAddressSpace": ipam::ADDRESS_SPACE, "GlobalDefaultAddressSpace": ipam::ADDRESS_SPACE
        })),
        "IpamDriver.RequestPool" => read(&body).and_then(|request| desk.request_pool(&request)),
        "IpamDriver.ReleasePool" => nothing(),
        "IpamDriver.RequestAddress" => with(&body, |request| desk.request_address(request)).await,
        "IpamDriver.ReleaseAddress" => with(&body, |request| desk.release_address(request)).await,
        _ => return (StatusCode::NOT_FOUND, Json(json!({}))).into_response(),
    };
    let answer = answer.unwrap_or_else(|refusal| told(&method, &refusal));
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], Json(answer)).into_response()
}

/// A refusal as the protocol has it; the engine shows the text to its user.
fn told(method: &str, refusal: &Refusal) -> Value {
    let hint = refusal.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    let text = format!("{refusal}{hint}");
    tracing::warn!(method, "Docker was refused: {text}");
    // The two halves of the protocol name it differently.
    if method.starts_with("IpamDriver.") { json!({ "Error": text }) } else { json!({ "Err": text }) }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() {
        // It has spent the content on the call that nobody answered.
        let detail = "Docker asked again without saying what, as it does when no agent answered before";
        return Err(Refusal::new(RefusalKind::Malformed, detail).hint("try again"));
    }
    let malformed = |error| {
        let detail = format!("this is no request of the plugin protocol: {error}");
        Refusal::new(RefusalKind::Malformed, detail)
    };
    serde_json::from_slice(body).map_err(malformed)
}

async fn with<T: DeserializeOwned, A: Future<Output = Result<Value, Refusal>>>(
    body: &[u8],
    work: impl FnOnce(T) -> A,
) -> Result<Value, Refusal> {
    work(read(body)?).await
}

fn value(answer: impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|e| Refusal::new(RefusalKind::Failed, e.to_string()))
}

/// Does `work` in a task of its own: an engine that hangs up does not leave half of it.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let broken = |e| Err(Refusal::new(RefusalKind::Failed, format!("the call broke: {e}")));
    tokio::spawn(work).await.unwrap_or_else(broken)
}
