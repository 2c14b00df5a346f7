//! Endpoints for Docker: a member whose interface Docker takes into the container itself.

use gossip::id::NetworkId;
use netplumb::Kernel;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::engine::{self, Network};
use super::wire::{self, CONNECTED, InterfaceName, Joined, StaticRoute};
use super::{Desk, ipam, labels, value};
use crate::attach::{Binding, Refusal, RefusalKind};
use crate::store::Store;

/// What the interface's name begins with in the container.
const PREFIX: &str = "wg";

/// A network without our addresses would have members nobody else knows.
pub(super) fn create_network(asked: &wire::CreateNetwork) -> Result<Value, Refusal> {
    let generic = asked.options.as_ref().and_then(|options| options.get(wire::GENERIC));
    if let Some(named) = generic.and_then(|options| options.get("network")) {
        let named = named.as_str().unwrap_or_default();
        named.parse::<NetworkId>().map_err(|e| Refusal::new(RefusalKind::Malformed, e.to_string()))?;
    }
    let pools = asked.ipv4.iter().flatten();
    if !pools.clone().any(|pool| pool.address_space == ipam::ADDRESS_SPACE) {
        return Err(Refusal::new(RefusalKind::Malformed, "the network's addresses are not the region's")
            .hint("add --ipam-driver warren --ipam-opt network=pn-<uuid>"));
    }
    Ok(json!({}))
}

/// Nothing is made yet: whose endpoint it is can be asked only in Join.
pub(super) fn create_endpoint(asked: &wire::CreateEndpoint) -> Result<Value, Refusal> {
    match &asked.interface {
        Some(interface) if !interface.address.is_empty() => Ok(json!({ "Interface": {} })),
        _ => Err(Refusal::new(RefusalKind::Malformed, "the endpoint has no address")
            .hint("create the network with --ipam-driver warren")),
    }
}

impl<K: Kernel, S: Store + Clone> Desk<K, S> {
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

    /// Who joins: Docker does not say, and must not be asked for the container itself, whose lock it holds meanwhile.
    /// The network's endpoints and the list of containers are free.
    async fn binding(&self, asked: &wire::Join) -> Result<Binding, Refusal> {
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
        let wish = labels::wish(&endpoint.name, &listed.labels.unwrap_or_default())?;
        Ok(Binding {
            network: id,
            address,
            container: endpoint.name.clone(),
            endpoint: asked.endpoint.clone(),
            sandbox: asked.sandbox.clone(),
            app: wish.app,
            process: wish.process,
            ordinal: wish.ordinal,
            insists: wish.insists,
            ports: wish.ports,
        })
    }

    /// Leave comes while the interface is in the container, DeleteEndpoint when it is out of it: the first takes the
    /// member away, the second finds nothing to do.
    pub(super) async fn leave(&self, asked: wire::Leave) -> Result<Value, Refusal> {
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
