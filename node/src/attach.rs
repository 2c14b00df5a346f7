//! Attaching a container: what a caller asks for and is told, and what refuses it.

mod context;
mod endpoint;
mod room;
mod round;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::port::{PORTS_MAX, Port};
use ipnet::Ipv4Net;
use netplumb::kernel::Container;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

pub(crate) use context::unwritten;
pub use context::{Applied, Claimed, Context};
pub use endpoint::{Binding, Naming, Reservation};
pub use room::Room;
pub use round::{Halt, Round};

/// What a caller asks for.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AttachRequest")]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The app.
    #[schemars(with = "schema::AppId")]
    pub app: AppId,
    /// The process type; `web` is what the app's own name means.
    #[serde(rename = "type", default = "web")]
    #[schemars(with = "schema::ProcessType")]
    pub process: ProcessType,
    /// The number within (app, type); the lowest free one when not given.
    #[serde(default)]
    pub ordinal: Option<u32>,
    /// Name of the interface in the container; the first free `wgN` when not given.
    #[serde(default)]
    pub ifname: Option<String>,
    /// The address, when the caller has chosen one.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// The ports it publishes: SRV records.
    #[serde(default)]
    #[schemars(with = "Vec<schema::Port>")]
    pub ports: Vec<Port>,
    /// Whether other names are passed on for all of the network's containers from now on; as it is when not given.
    #[serde(default)]
    pub forward: Option<bool>,
    /// The container's namespace.
    pub netns: Netns,
    /// Milliseconds to wait for the other hosts; 250 when not given.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

pub(crate) fn web() -> ProcessType {
    "web".parse().expect("`web` is a process type")
}

/// How a caller names a network namespace.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Netns {
    /// The path of a mounted namespace.
    Path(PathBuf),
    /// A process in it.
    Pid {
        /// Process id.
        id: u32,
        /// Inode of its namespace as the caller saw it: refuses a recycled pid.
        #[serde(default)]
        inode: Option<u64>,
    },
}

/// What a caller gets.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// The member.
    #[schemars(with = "schema::MemberId")]
    pub member: MemberId,
    /// The name its caller gave it.
    pub container: String,
    /// Its network.
    #[schemars(with = "schema::NetworkId")]
    pub network: NetworkId,
    /// Its app.
    #[schemars(with = "schema::AppId")]
    pub app: AppId,
    /// Its process type.
    #[serde(rename = "type")]
    #[schemars(with = "schema::ProcessType")]
    pub process: ProcessType,
    /// Its number; null while none could be had.
    pub ordinal: Option<u32>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its address in the network's ULA, where the container has IPv6.
    pub address6: Option<Ipv6Addr>,
    /// MAC of its end of the overlay.
    pub mac: String,
    /// Its WireGuard public key.
    pub public_key: String,
    /// Its interface in the container.
    pub ifname: String,
    /// MTU of the interface, in bytes.
    pub mtu: u32,
    /// The network's VXLAN identifier.
    pub vni: u32,
    /// The network's subnet.
    #[schemars(with = "schema::Ipv4Net")]
    pub subnet: Ipv4Net,
    /// What belongs into its resolv.conf.
    pub dns: Resolv,
    /// What belongs into its environment.
    pub env: BTreeMap<String, String>,
    /// The ports it publishes.
    #[serde(default)]
    #[schemars(with = "Vec<schema::Port>")]
    pub ports: Vec<Port>,
    /// The names it is found by.
    pub names: Vec<String>,
    /// Other hosts of the network that have it in their kernel.
    #[schemars(with = "Vec<schema::HostId>")]
    pub applied: Vec<HostId>,
    /// Other hosts of the network that did not say so in time.
    #[schemars(with = "Vec<schema::HostId>")]
    pub missing: Vec<HostId>,
}

/// The lines of a resolv.conf.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Resolv {
    /// `nameserver`.
    pub nameserver: Ipv4Addr,
    /// `search`.
    pub search: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// Why an attach or detach was refused: what happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// What kind of refusal; decides status and exit code.
    pub kind: RefusalKind,
    /// What happened.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request makes no sense.
    Malformed,
    /// What it names is not there.
    NotFound,
    /// Something stands in the way, or nothing is left.
    Conflict,
    /// Not permitted.
    Denied,
    /// Not now.
    Unready,
    /// It did not end in time.
    Timeout,
    /// It was tried and failed.
    Failed,
}

impl RefusalKind {
    /// What a command exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            RefusalKind::Malformed => 2,
            RefusalKind::NotFound => 4,
            RefusalKind::Denied => 5,
            RefusalKind::Conflict => 6,
            RefusalKind::Unready => 7,
            RefusalKind::Timeout => 124,
            RefusalKind::Failed => 1,
        }
    }
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(kind: RefusalKind, detail: impl Into<String>) -> Refusal {
        Refusal { kind, detail: detail.into(), hint: None }
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = Some(hint.into());
        self
    }
}

impl From<&netplumb::Error> for Refusal {
    fn from(error: &netplumb::Error) -> Refusal {
        use netplumb::Error as E;
        let kind = match error {
            E::NetnsGone(_) | E::ProcessGone(_) | E::NotNetns(_) => RefusalKind::NotFound,
            E::NetnsRecycled(_) | E::VniInUse { .. } | E::PortInUse { .. } | E::NameTaken { .. } => {
                RefusalKind::Conflict
            }
            E::NotPermitted { .. } => RefusalKind::Denied,
            _ => RefusalKind::Failed,
        };
        Refusal::new(kind, error.to_string())
    }
}

/// A request with its place.
#[derive(Debug, Clone)]
pub struct Call {
    /// The network to join.
    pub network: NetworkId,
    /// The caller's name for the container.
    pub container: String,
    /// The rest.
    pub request: Request,
}

/// Longest interface name (IFNAMSIZ - 1).
const IFNAME_BYTES_MAX: usize = 15;

fn check_request(call: &Call) -> Result<(), Refusal> {
    let malformed = |detail: String| Err(Refusal::new(RefusalKind::Malformed, detail));
    if call.container.is_empty()
        || call.container.len() > 128
        || !call.container.bytes().all(|b| b.is_ascii_graphic())
    {
        return malformed(format!("container id {:?} is not 1 to 128 printable characters", call.container));
    }
    if call.request.ordinal.is_some_and(|n| n == 0 || n > 1_000_000) {
        return malformed("ordinal is not 1 to 1000000".into());
    }
    if call.request.ports.len() > PORTS_MAX {
        return malformed(format!("{} published ports: at most {PORTS_MAX}", call.request.ports.len()));
    }
    if let Some(name) = &call.request.ifname {
        let fits = !name.is_empty()
            && name.len() <= IFNAME_BYTES_MAX
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && name != "."
            && name != "..";
        if !fits {
            return malformed(format!(
                "interface name {name:?} is not 1 to 15 characters of a-z, A-Z, 0-9, '-', '_', '.'"
            ));
        }
    }
    Ok(())
}

/// The interface to make, given what stands in the container; `ours` are names promised to members
/// that are not built yet.
pub fn interface(
    asked: Option<&str>,
    container: &Container,
    ours: impl Fn(&str) -> bool,
) -> Result<String, Refusal> {
    let taken = |name: &str| container.links.contains(name) || ours(name);
    match asked {
        Some(name) if taken(name) => {
            Err(Refusal::new(RefusalKind::Conflict, format!("the container has an interface {name} already"))
                .hint("leave --ifname out for the first free wgN"))
        }
        Some(name) => Ok(name.to_owned()),
        None => Ok((0..).map(|n| format!("wg{n}")).find(|name| !taken(name)).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(links: &[&str]) -> Container {
        Container {
            netns: netplumb::state::NetnsRef { path: "/run/netns/x".into(), cookie: 1 },
            inode: 1,
            own: false,
            links: links.iter().map(|l| l.to_string()).collect(),
            addresses: Vec::new(),
            routes: Vec::new(),
            ipv6: true,
            nf_tables: true,
            leftovers: false,
        }
    }

    fn call(container: &str, ifname: Option<&str>, ordinal: Option<u32>) -> Call {
        Call {
            network: NetworkId::random(),
            container: container.into(),
            request: Request {
                app: AppId::random(),
                process: web(),
                ordinal,
                ifname: ifname.map(Into::into),
                address: None,
                ports: Vec::new(),
                forward: None,
                netns: Netns::Path("/run/netns/x".into()),
                wait_ms: None,
            },
        }
    }

    #[test]
    fn requests_are_checked() {
        assert!(check_request(&call("c1", Some("wg0"), Some(1))).is_ok());
        assert!(check_request(&call("c1", Some("exactly15chars_"), None)).is_ok());
        let bad = [
            call("", None, None),
            call("a b", None, None),
            call(&"x".repeat(129), None, None),
            call("c1", Some("sixteen_chars_16"), None),
            call("c1", Some("a/b"), None),
            call("c1", Some(""), None),
            call("c1", Some(".."), None),
            call("c1", None, Some(0)),
        ];
        for call in bad {
            let refusal = check_request(&call).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Malformed, "{call:?}");
        }
    }

    #[test]
    fn the_first_free_interface_is_taken() {
        let some = container(&["lo", "eth0", "wg0"]);
        assert_eq!(interface(None, &some, |_| false).unwrap(), "wg1");
        assert_eq!(interface(None, &some, |name| name == "wg1").unwrap(), "wg2");
        assert_eq!(interface(Some("net0"), &some, |_| false).unwrap(), "net0");
        assert_eq!(interface(Some("wg0"), &some, |_| false).unwrap_err().kind, RefusalKind::Conflict);
    }
}
