//! What the engine asks and is answered, as libnetwork has it. Fields that nobody here needs are left out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// NetworkDriver.CreateNetwork.
#[derive(Debug, Deserialize)]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID", default)]
    pub(super) network: String,
    #[serde(rename = "Options", default)]
    pub(super) options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data", default)]
    pub(super) ipv4: Option<Vec<Pool>>,
}

/// An address range as an IPAM driver gave it.
#[derive(Debug, Deserialize)]
pub(super) struct Pool {
    #[serde(rename = "AddressSpace", default)]
    pub(super) address_space: String,
}

/// NetworkDriver.DeleteNetwork.
#[derive(Debug, Deserialize)]
pub(super) struct DeleteNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
}

/// NetworkDriver.CreateEndpoint.
#[derive(Debug, Deserialize)]
pub(super) struct CreateEndpoint {
    #[serde(rename = "EndpointID", default)]
    pub(super) endpoint: String,
    #[serde(rename = "Interface", default)]
    pub(super) interface: Option<Interface>,
}

/// What an endpoint has from the IPAM driver.
#[derive(Debug, Deserialize)]
pub(super) struct Interface {
    #[serde(rename = "Address", default)]
    address: String,
}

impl Interface {
    /// Its address without the prefix.
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.address.split('/').next()?.parse().ok()
    }
}

/// NetworkDriver.Join.
#[derive(Debug, Deserialize)]
pub(super) struct Join {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    #[serde(rename = "SandboxKey")]
    pub(super) sandbox: std::path::PathBuf,
}

/// NetworkDriver.Leave and DeleteEndpoint.
#[derive(Debug, Deserialize)]
pub(super) struct Leave {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
}

/// The answer to Join.
#[derive(Debug, Serialize)]
pub(super) struct Joined {
    #[serde(rename = "InterfaceName")]
    pub(super) interface: InterfaceName,
    #[serde(rename = "StaticRoutes")]
    pub(super) routes: Vec<StaticRoute>,
    /// Whether the container gets no way out by `docker_gwbridge`.
    #[serde(rename = "DisableGatewayService")]
    pub(super) no_gateway: bool,
}

/// The interface as it is on the host, and the beginning of its name in the container.
#[derive(Debug, Serialize)]
pub(super) struct InterfaceName {
    #[serde(rename = "SrcName")]
    pub(super) source: String,
    #[serde(rename = "DstPrefix")]
    pub(super) prefix: &'static str,
}

/// A route of the container's.
#[derive(Debug, Serialize)]
pub(super) struct StaticRoute {
    #[serde(rename = "Destination")]
    pub(super) destination: String,
    #[serde(rename = "RouteType")]
    pub(super) kind: u8,
    #[serde(rename = "NextHop")]
    pub(super) next_hop: &'static str,
}

/// By the interface, without a next hop (libnetwork's types.CONNECTED).
pub(super) const CONNECTED: u8 = 1;

/// IpamDriver.RequestPool.
#[derive(Debug, Deserialize)]
pub(super) struct RequestPool {
    #[serde(rename = "Pool", default)]
    pub(super) pool: String,
    #[serde(rename = "SubPool", default)]
    pub(super) sub_pool: String,
    #[serde(rename = "Options", default)]
    pub(super) options: Option<BTreeMap<String, String>>,
    #[serde(rename = "V6", default)]
    pub(super) v6: bool,
}

/// IpamDriver.RequestAddress and ReleaseAddress.
#[derive(Debug, Deserialize)]
pub(super) struct Address {
    #[serde(rename = "PoolID")]
    pub(super) pool: String,
    #[serde(rename = "Address", default)]
    pub(super) address: String,
    #[serde(rename = "Options", default)]
    pub(super) options: Option<BTreeMap<String, String>>,
}

/// Key and value by which a gateway's address is asked for.
pub(super) const GATEWAY: (&str, &str) = ("RequestAddressType", "com.docker.network.gateway");
/// Where CreateNetwork has what the user gave with `--opt`.
pub(super) const GENERIC: &str = "com.docker.network.generic";
