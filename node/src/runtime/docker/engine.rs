//! Docker's own API, for what it does not say to its plugins and for the commands.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::attach::{Refusal, RefusalKind};
use crate::http::{self, Reply, segment};

/// Where Docker listens when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// The option of a network that names the private one.
pub const NETWORK: &str = "network";
/// How long it may take; a call that waits for a lock of the plugin's own caller would wait for ever.
const BOUND: Duration = Duration::from_secs(3);

/// A Docker engine.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: Arc<PathBuf>,
}

/// One of its networks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its driver.
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAM", default)]
    ipam: Option<Ipam>,
    /// Its endpoints by container; in lists it is empty.
    #[serde(default)]
    pub containers: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

/// A container's end in a network.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoint {
    /// The container's name.
    #[serde(rename = "Name")]
    pub name: String,
    /// Its id.
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(rename = "IPv4Address", default)]
    address: String,
}

/// A container as it stands in the list of all.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    #[serde(default)]
    names: Vec<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    network_settings: Settings,
}

/// The networks of a listed container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    #[serde(default)]
    networks: Option<BTreeMap<String, End>>,
}

#[derive(Debug, Clone, Deserialize)]
struct End {
    #[serde(rename = "EndpointID", default)]
    endpoint: String,
}

impl Listed {
    /// Whether it has that endpoint in one of its networks.
    pub fn has_endpoint(&self, id: &str) -> bool {
        self.network_settings.networks.iter().flatten().any(|(_, end)| end.endpoint == id)
    }

    /// Its name; a link of another container's has a second slash.
    pub fn name(&self) -> &str {
        let mut names = self.names.iter().map(|name| name.trim_start_matches('/'));
        names.find(|name| !name.contains('/')).unwrap_or_default()
    }
}

/// A container, looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name, with a slash before it.
    pub name: String,
    /// Whether it runs, and as which process.
    pub state: ContainerState,
    /// How it was started.
    #[serde(default)]
    pub host_config: HostConfig,
    /// What it was made of.
    #[serde(default)]
    pub config: ContainerConfig,
}

/// What a container was made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// Its labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Whether a container runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerState {
    /// Its first process; 0 when it does not run.
    pub pid: u32,
}

/// How a container was started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// Its network: `host`, `container:<id>`, a network's name.
    #[serde(default)]
    pub network_mode: String,
}

impl Network {
    /// What was given with `--opt`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.as_ref()?.get(key).map(String::as_str)
    }

    /// What was given with `--ipam-opt`.
    pub fn ipam_option(&self, key: &str) -> Option<&str> {
        self.ipam.as_ref()?.options.as_ref()?.get(key).map(String::as_str)
    }
}

impl Endpoint {
    /// Its address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address.split('/').next()?.parse().ok()
    }
}

impl Engine {
    /// The engine at a socket.
    pub fn new(socket: impl AsRef<Path>) -> Engine {
        Engine { socket: Arc::new(socket.as_ref().to_owned()) }
    }

    /// A network by name or id, with its endpoints.
    ///
    /// # Errors
    /// It is not there, or the engine does not answer.
    pub async fn network(&self, id: &str) -> Result<Network, Refusal> {
        self.get(&format!("/networks/{}", segment(id)), &format!("network {id}")).await
    }

    /// The networks of one driver.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn networks(&self, driver: &str) -> Result<Vec<Network>, Refusal> {
        let filters = json!({ "driver": [driver] }).to_string();
        let path = format!("/networks?filters={}", segment(&filters));
        let networks: Vec<Network> = self.get(&path, "its networks").await?;
        // Engines that cannot filter by a driver give all.
        Ok(networks.into_iter().filter(|network| network.driver == driver).collect())
    }

    /// Makes a network of `driver`, which is the IPAM driver too, of the private network `id`.
    ///
    /// # Errors
    /// It is there already, the driver refused, or the engine does not answer.
    pub async fn create_network(&self, name: &str, driver: &str, id: &str) -> Result<(), Refusal> {
        let options = json!({ NETWORK: id });
        let body = json!({
            "Name": name, "Driver": driver, "CheckDuplicate": true, "Options": options,
            "IPAM": { "Driver": driver, "Options": options },
        });
        self.send(Method::POST, "/networks/create", &body, name).await.map(|_| ())
    }

    /// A container as it is listed. The list is there while the container's own lock is held.
    ///
    /// # Errors
    /// It is not there, or the engine does not answer.
    pub async fn listed(&self, name: &str) -> Result<Listed, Refusal> {
        let filters = json!({ "name": [format!("^/{name}$")] }).to_string();
        let path = format!("/containers/json?all=1&filters={}", segment(&filters));
        let listed: Vec<Listed> = self.get(&path, "its containers").await?;
        // The filter is a pattern, in which a dot is any letter.
        let whole = format!("/{name}");
        let found = listed.into_iter().find(|container| container.names.contains(&whole));
        found.ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("Docker has no container {name}")))
    }

    /// All containers as they are listed.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn all(&self) -> Result<Vec<Listed>, Refusal> {
        self.get("/containers/json?all=1", "its containers").await
    }

    /// A container by name or id. Never from within Join: it waits there for that very call.
    ///
    /// # Errors
    /// It is not there, or the engine does not answer.
    pub async fn container(&self, name: &str) -> Result<Container, Refusal> {
        self.get(&format!("/containers/{}/json", segment(name)), &format!("container {name}")).await
    }

    /// The ids of the running containers that have a label.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn running_with(&self, label: &str) -> Result<Vec<String>, Refusal> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
        }
        let filters = json!({ "label": [label], "status": ["running"] }).to_string();
        let path = format!("/containers/json?filters={}", segment(&filters));
        let rows: Vec<Row> = self.get(&path, "its containers").await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// The containers that are started from now on, and those since then, in seconds since 1970.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn starts(&self, since: u64) -> Result<Starts, Refusal> {
        let filters = json!({ "type": ["container"], "event": ["start"] }).to_string();
        let path = format!("/events?since={since}&filters={}", segment(&filters));
        let asked = http::open(&self.socket, Method::GET, &path, Bytes::new());
        // An engine may answer only with its first event.
        let response = asked.await.map_err(|error| self.absent(&error))?;
        if !response.status().is_success() {
            let detail = format!("Docker refused its events: {}", response.status());
            return Err(Refusal::new(RefusalKind::Failed, detail));
        }
        Ok(Starts { body: response.into_body(), read: Vec::new() })
    }

    fn absent(&self, error: &http::Unanswered) -> Refusal {
        let detail = format!("no Docker at {}: {error}", self.socket.display());
        Refusal::new(RefusalKind::Failed, detail).hint("start it, or set `docker.socket` (DOCKER_HOST)")
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, Refusal> {
        let body = self.send(Method::GET, path, &(), what).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let detail = format!("what Docker says of {what} is not understood: {error}");
            Refusal::new(RefusalKind::Failed, detail)
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        what: &str,
    ) -> Result<Bytes, Refusal> {
        let body =
            if method == Method::GET { Vec::new() } else { serde_json::to_vec(body).unwrap_or_default() };
        let asked = http::ask(&self.socket, method, path, body.into());
        let Ok(answer) = tokio::time::timeout(BOUND, asked).await else {
            let detail = format!("Docker does not answer for {what} within {} s", BOUND.as_secs());
            return Err(Refusal::new(RefusalKind::Timeout, detail));
        };
        let Reply { status, body } = answer.map_err(|error| self.absent(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let kind = match status {
            StatusCode::NOT_FOUND => RefusalKind::NotFound,
            StatusCode::CONFLICT => RefusalKind::Conflict,
            _ => RefusalKind::Failed,
        };
        Err(Refusal::new(kind, format!("Docker refused {what}: {}", message(&body))))
    }
}

/// An engine's word on which containers it has started.
pub struct Starts {
    body: Incoming,
    /// What has come of the next line.
    read: Vec<u8>,
}

impl Starts {
    /// The id of the next one; none when the engine has ended. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<String> {
        #[derive(Deserialize)]
        struct Event {
            id: String,
        }
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice::<Event>(&line) {
                    return Some(event.id);
                }
            }
            let frame = self.body.frame().await?.ok()?;
            self.read.extend(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}

/// What an error of Docker's says.
fn message(body: &[u8]) -> String {
    let error: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = error.as_ref().and_then(|error| error["message"].as_str()).map(str::to_owned);
    text.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned())
}
