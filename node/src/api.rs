//! The API: HTTP and JSON on a Unix socket; metrics, health and the status page on TCP, read only.

mod description;
mod drain;
mod explain;
mod input;
mod member;
mod network;
mod problem;
mod public;
mod reset;
mod routes;
mod rows;
mod traffic;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use description::describe;
pub use drain::{DrainRequest, Drained};
pub use explain::Pinged;
pub use network::{NetworkChange, NetworkDetail, NetworkRequest};
pub use problem::Problem;
pub use reset::{Reset, ResetRequest};
pub use rows::{HostRow, MemberRow, NameRow, NetworkClaims, NetworkRow, Status};
pub use traffic::{Exchange, MemberTraffic};

use crate::agent::Snapshot;
use crate::attach::Context;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::Store;
use problem::{no_method, nothing};

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
        let tcp = TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve metrics on {address}; set http.listen to a free address")
        })?;
        // Last, because it leaves a file behind.
        let socket = match socket {
            Some(socket) => adopt(socket)?,
            None => bind(&served.config.socket())?,
        };
        let (on_socket, on_tcp) = (private(served.clone()), public(served));
        let tasks = vec![
            tokio::spawn(async move {
                let _ = axum::serve(socket, on_socket).await;
            }),
            tokio::spawn(async move {
                let _ = axum::serve(tcp, on_tcp).await;
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
    Router::from(routes::private())
        .fallback(nothing)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(served)
}

fn public<K: netplumb::Kernel, S: Store + Clone>(served: Served<K, S>) -> Router {
    Router::from(routes::public()).fallback(nothing).with_state(served)
}
