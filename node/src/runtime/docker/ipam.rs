//! Addresses for Docker: a pool is a private network's subnet, an address a claim in the region.

use std::net::Ipv4Addr;
use std::str::FromStr;

use gossip::id::NetworkId;
use ipnet::Ipv4Net;
use netplumb::Kernel;
use serde_json::{Value, json};

use super::{Desk, wire};
use crate::attach::{Refusal, RefusalKind};
use crate::claims::DEFAULT_SUBNET;
use crate::store::{Endpoint, Store};

/// By what this driver's pools are told from others'.
pub(super) const ADDRESS_SPACE: &str = "warren";

/// A pool's id says all that there is to know of it: nothing is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolId {
    pub(super) network: NetworkId,
    pub(super) subnet: Ipv4Net,
}

impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.subnet)
    }
}

impl FromStr for PoolId {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<PoolId, Refusal> {
        let (network, subnet) = text.split_once('/').unwrap_or((text, ""));
        let malformed =
            || Refusal::new(RefusalKind::Malformed, format!("{text:?} is no pool of this driver's"));
        let network = network.parse().map_err(|_| malformed())?;
        Ok(PoolId { network, subnet: subnet.parse().map_err(|_| malformed())? })
    }
}

impl<K: Kernel, S: Store + Clone> Desk<K, S> {
    pub(super) fn request_pool(&self, asked: &wire::RequestPool) -> Result<Value, Refusal> {
        let network = asked.options.as_ref().and_then(|options| options.get("network")).ok_or_else(|| {
            Refusal::new(RefusalKind::Malformed, "which private network the addresses are of is not said")
                .hint("add --ipam-opt network=pn-<uuid>, and --opt network=pn-<uuid>")
        })?;
        let network: NetworkId = network.parse().map_err(|e| malformed(format!("{e}")))?;
        if asked.v6 {
            return Err(
                malformed("a private network has an IPv6 prefix of its own").hint("create it without --ipv6")
            );
        }
        if !asked.sub_pool.is_empty() {
            return Err(malformed("addresses are given by the whole region, not by this host")
                .hint("create the network without --ip-range"));
        }
        let known = self.served.snapshot.borrow().ledger().networks.get(network).map(|claim| claim.subnet);
        let wanted = match asked.pool.as_str() {
            "" => None,
            text => Some(text.parse::<Ipv4Net>().map_err(|e| malformed(format!("subnet {text:?}: {e}")))?),
        };
        let subnet = match (known, wanted) {
            (Some(known), Some(wanted)) if known != wanted => {
                let detail = format!("{network} has the subnet {known} in this region");
                return Err(
                    Refusal::new(RefusalKind::Conflict, detail).hint("leave --subnet out, or give that one")
                );
            }
            (known, wanted) => known.or(wanted).unwrap_or(DEFAULT_SUBNET),
        };
        let pool = PoolId { network, subnet };
        Ok(json!({ "PoolID": pool.to_string(), "Pool": subnet.to_string(), "Data": {} }))
    }

    pub(super) async fn request_address(&self, asked: wire::Address) -> Result<Value, Refusal> {
        let pool: PoolId = asked.pool.parse()?;
        let (key, gateway) = wire::GATEWAY;
        if asked.options.as_ref().is_some_and(|o| o.get(key).is_some_and(|kind| kind == gateway)) {
            // Nobody routes there; the one address no member can have.
            let none = Ipv4Net::new_assert(pool.subnet.network(), pool.subnet.prefix_len());
            return Ok(json!({ "Address": none.to_string(), "Data": {} }));
        }
        let chosen = match asked.address.as_str() {
            "" => None,
            text => Some(text.parse::<Ipv4Addr>().map_err(|e| malformed(format!("address {text:?}: {e}")))?),
        };
        let address = match chosen {
            Some(chosen) if self.has(pool.network, chosen) => chosen,
            chosen => {
                let context = self.served.context.clone();
                let reserve = async move { context.reserve(pool.network, Some(pool.subnet), chosen).await };
                super::apart(reserve).await?.address
            }
        };
        Ok(json!({ "Address": format!("{address}/32"), "Data": {} }))
    }

    /// Whether an endpoint here has the address: an engine that was restarted asks for what its containers have.
    fn has(&self, network: NetworkId, address: Ipv4Addr) -> bool {
        let snapshot = self.served.snapshot.borrow();
        let mut here = snapshot.journal.live().filter(|e| e.network == network && e.address == address);
        here.any(|e| e.endpoint.is_some())
    }

    /// What a container has is freed with its endpoint.
    pub(super) async fn release_address(&self, asked: wire::Address) -> Result<Value, Refusal> {
        let pool: PoolId = asked.pool.parse()?;
        let address: Ipv4Addr = asked.address.parse().map_err(|e| malformed(format!("address: {e}")))?;
        let reserved = {
            let snapshot = self.served.snapshot.borrow();
            let mut here =
                snapshot.journal.live().filter(|e| e.network == pool.network && e.address == address);
            here.find(|e| e.endpoint == Some(Endpoint::Reserved)).map(|e| e.member.clone())
        };
        if let Some(member) = reserved {
            super::apart(self.served.context.clone().unreserve(member)).await?;
        }
        Ok(json!({}))
    }
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Malformed, detail)
}
