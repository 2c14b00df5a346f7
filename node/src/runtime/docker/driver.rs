//! Endpoints for Docker: a member whose interface Docker takes into the container itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::id::NetworkId;
use netplumb::Kernel;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::engine::{self, Network};
use super::wire::{self, CONNECTED, InterfaceName, Joined, StaticRoute};
use super::{Desk, ipam, labels, value};
use crate::attach::{Binding, Naming, Refusal, RefusalKind};
use crate::journal::Journal;
use crate::store::{Entry, Store};

/// What the interface's name begins with in the container.
const PREFIX: &str = "wg";
/// How often Docker is asked for names, at first and at last.
const PACE: Duration = Duration::from_millis(250);
const PACE_MAX: Duration = Duration::from_secs(5);

/// How long a call of Docker's may wait for Docker's own API, which is not served while it starts.
const BOUND: Duration = Duration::from_secs(2);

/// Which private network a new one is. A network without our addresses would have members nobody else knows.
fn made_of(asked: &wire::CreateNetwork) -> Result<NetworkId, Refusal> {
    let malformed = |detail: String| Refusal::new(RefusalKind::Malformed, detail);
    let pools = asked.ipv4.iter().flatten();
    if !pools.clone().any(|pool| pool.address_space == ipam::ADDRESS_SPACE) {
        return Err(malformed("the network's addresses are not the region's".to_owned())
            .hint("add --ipam-driver warren --ipam-opt network=pn-<uuid>"));
    }
    let generic = asked.options.as_ref().and_then(|options| options.get(wire::GENERIC));
    let named = generic.and_then(|options| options.get(engine::NETWORK)).and_then(Value::as_str);
    let named = named.ok_or_else(|| {
        malformed("which private network it is is not said".to_owned()).hint("add --opt network=pn-<uuid>")
    })?;
    named.parse().map_err(|e| malformed(format!("{e}")))
}

impl<K: Kernel, S: Store + Clone> Desk<K, S> {
    /// Written down: when Docker starts its containers again, it cannot be asked.
    pub(super) async fn create_network(&self, asked: wire::CreateNetwork) -> Result<Value, Refusal> {
        let network = made_of(&asked)?;
        self.write_down(&asked.network, network).await?;
        Ok(json!({}))
    }

    async fn write_down(&self, id: &str, network: NetworkId) -> Result<(), Refusal> {
        let written = self.served.context.store.put_docker(id, network).await;
        written.map_err(|e| Refusal::new(RefusalKind::Failed, e.to_string()))
    }

    pub(super) async fn delete_network(&self, asked: wire::DeleteNetwork) -> Result<Value, Refusal> {
        let removed = self.served.context.store.remove_docker(&asked.network).await;
        removed.map_err(|e| Refusal::new(RefusalKind::Failed, e.to_string()))?;
        Ok(json!({}))
    }

    /// Nothing is made yet: whose endpoint it is can be asked only in Join, which does not say the address.
    pub(super) fn create_endpoint(&self, asked: wire::CreateEndpoint) -> Result<Value, Refusal> {
        let address = asked.interface.as_ref().and_then(wire::Interface::address).ok_or_else(|| {
            Refusal::new(RefusalKind::Malformed, "the endpoint has no address")
                .hint("create the network with --ipam-driver warren")
        })?;
        self.created.send_modify(|created| _ = created.insert(asked.endpoint, address));
        Ok(json!({ "Interface": {} }))
    }

    pub(super) async fn join(&self, asked: wire::Join) -> Result<Value, Refusal> {
        let started = Instant::now();
        let joined = self.bound(asked).await;
        self.served.metrics.attached("docker", started.elapsed(), joined.is_ok());
        value(joined?)
    }

    async fn bound(&self, asked: wire::Join) -> Result<Joined, Refusal> {
        let binding = self.binding(&asked).await?;
        let context = self.served.context.clone();
        let bind = {
            let context = context.clone();
            async move { context.bind(binding).await }
        };
        let (entry, _) = super::apart(bind).await?;
        let joined = Joined {
            interface: InterfaceName { source: entry.ifname.clone(), prefix: PREFIX },
            routes: vec![StaticRoute {
                destination: entry.claim.subnet.to_string(),
                kind: CONNECTED,
                next_hop: "",
            }],
            no_gateway: false,
        };
        // It comes to the container after the answer, and before the container's first process.
        tokio::spawn(context.follow_sandbox(entry));
        Ok(joined)
    }

    /// What joins. While Docker starts it says nothing of it; the member is named when it does.
    async fn binding(&self, asked: &wire::Join) -> Result<Binding, Refusal> {
        let created = self.created.borrow().get(&asked.endpoint).copied();
        self.created.send_modify(|created| _ = created.remove(&asked.endpoint));
        let written = self.served.context.store.docker(&asked.network).ok().flatten();
        let silent = || Refusal::new(RefusalKind::Timeout, "Docker does not say whose endpoint it is");
        let said = tokio::time::timeout(BOUND, self.said(asked)).await.unwrap_or_else(|_| Err(silent()));
        let (network, address, naming) = match (said, written, created) {
            (Ok((network, address, naming)), ..) => (network, address, Some(naming)),
            (Err(refusal), Some(network), Some(address)) if is_silence(&refusal) => (network, address, None),
            (Err(refusal), ..) => return Err(refusal),
        };
        if written.is_none() {
            self.write_down(&asked.network, network).await?;
        }
        let (endpoint, sandbox) = (asked.endpoint.clone(), asked.sandbox.clone());
        Ok(Binding { network, address, endpoint, sandbox, naming })
    }

    /// What Docker says of who joins: not in the call, and it must not be asked for the container itself, whose lock
    /// it holds meanwhile. The network's endpoints and the list of containers are free.
    async fn said(&self, asked: &wire::Join) -> Result<(NetworkId, Ipv4Addr, Naming), Refusal> {
        let network = self.engine.network(&asked.network).await?;
        let id = private_network(&network)?;
        let endpoint = network.containers.values().find(|e| e.endpoint == asked.endpoint);
        let endpoint = endpoint.ok_or_else(|| {
            let detail = format!("Docker knows no endpoint {} in {}", asked.endpoint, network.name);
            Refusal::new(RefusalKind::NotFound, detail)
        })?;
        let address = endpoint.address().ok_or_else(|| {
            Refusal::new(RefusalKind::Malformed, format!("container {} has no address", endpoint.name))
        })?;
        let listed = self.engine.listed(&endpoint.name).await?;
        Ok((id, address, labels::naming(&endpoint.name, &listed.labels.unwrap_or_default())?))
    }

    /// Names members that were bound while Docker did not answer, as soon as it does. It ends with the agent.
    pub(super) async fn name_the_unnamed(self) {
        let mut snapshot = self.served.snapshot.clone();
        let mut pace = PACE;
        while snapshot.wait_for(|now| unnamed(&now.journal).next().is_some()).await.is_ok() {
            let waiting: Vec<Entry> = unnamed(&snapshot.borrow().journal).cloned().collect();
            pace = match self.name_all(&waiting).await {
                Ok(()) => PACE,
                Err(refusal) => {
                    tracing::info!(members = waiting.len(), "not named yet: {refusal}");
                    PACE_MAX.min(pace * 2)
                }
            };
            tokio::time::sleep(pace).await;
        }
    }

    async fn name_all(&self, waiting: &[Entry]) -> Result<(), Refusal> {
        let listed = self.engine.all().await?;
        let mut refused = None;
        for entry in waiting {
            let container = listed.iter().find(|c| entry.endpoint_id().is_some_and(|id| c.has_endpoint(id)));
            let named = match container {
                Some(container) => self.name(entry, container).await,
                None => Err(Refusal::new(RefusalKind::NotFound, format!("no {} in Docker", entry.container))),
            };
            refused = named.err().or(refused);
        }
        refused.map_or(Ok(()), Err)
    }

    async fn name(&self, entry: &Entry, container: &engine::Listed) -> Result<(), Refusal> {
        let naming = labels::naming(container.name(), &container.labels.clone().unwrap_or_default())?;
        self.served.context.name(&entry.member, naming).await
    }

    /// Leave comes while the interface is in the container, DeleteEndpoint when it is out of it: the first takes the
    /// member away, the second finds nothing to do.
    pub(super) async fn leave(&self, asked: wire::Leave) -> Result<Value, Refusal> {
        self.created.send_modify(|created| _ = created.remove(&asked.endpoint));
        let entry = {
            let snapshot = self.served.snapshot.borrow();
            snapshot.journal.live().find(|e| e.endpoint_id() == Some(&asked.endpoint)).cloned()
        };
        if let Some(entry) = entry {
            super::apart(self.served.context.clone().detach(entry)).await?;
        }
        Ok(json!({}))
    }
}

/// Whether it is the engine that gave no answer, rather than one that refuses.
fn is_silence(refusal: &Refusal) -> bool {
    matches!(refusal.kind, RefusalKind::Timeout | RefusalKind::Failed)
}

/// Members of Docker's whose container is not known yet.
fn unnamed(journal: &Journal) -> impl Iterator<Item = &Entry> {
    journal.live().filter(|entry| entry.endpoint_id().is_some() && !entry.is_named())
}

/// Which private network one of Docker's is.
fn private_network(network: &Network) -> Result<NetworkId, Refusal> {
    let (addresses, links) = (network.ipam_option(engine::NETWORK), network.option(engine::NETWORK));
    let malformed = |detail: String| Refusal::new(RefusalKind::Malformed, detail);
    let named =
        addresses.or(links).ok_or_else(|| malformed(format!("{} names no private network", network.name)))?;
    if let (Some(addresses), Some(links)) = (addresses, links)
        && addresses != links
    {
        let detail = format!("{} has addresses of {addresses} and links of {links}", network.name);
        return Err(malformed(detail).hint("create it anew, with one id for --opt and --ipam-opt"));
    }
    named.parse().map_err(|e| malformed(format!("{}: {e}", network.name)))
}
