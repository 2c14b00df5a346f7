//! What is kept of one member of this host.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use gossip::id::{AppId, MemberId, NetworkId, ProcessType};
use gossip::port::Port;
use gossip::record::{MemberState, NetworkRecord, PublicKey};
use netplumb::state::{NetnsRef, PrivateKey};
use serde::{Deserialize, Serialize};

/// One journal entry: a member of this host from the claim of its address until the end of its
/// quarantine. It names everything of ours in the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The member.
    pub member: MemberId,
    /// The name its caller knows it by.
    pub container: String,
    /// Its network.
    pub network: NetworkId,
    /// The network's VNI and subnet as last published.
    pub claim: NetworkRecord,
    /// Its app.
    pub app: AppId,
    /// Its process type.
    pub process: ProcessType,
    /// Its number.
    pub ordinal: Option<u32>,
    /// Whether the caller chose the number.
    pub ordinal_chosen: bool,
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Inode of the namespace: cannot be used again while our DNS sockets stand in it.
    pub inode: u64,
    /// The boot the namespace belongs to.
    pub boot: String,
    /// Interface in the container.
    pub ifname: String,
    /// Claimed address.
    pub address: Ipv4Addr,
    /// Address in the ULA, where it is programmed.
    pub address6: Option<Ipv6Addr>,
    /// The container takes IPv6 addresses; whether it has one depends on the region's MTU.
    #[serde(default)]
    pub ipv6: bool,
    /// WireGuard private key in base64; the file is readable by root alone.
    #[serde(with = "private_key")]
    pub private_key: PrivateKey,
    /// Its public half: deriving it takes a scalar multiplication, and every look at the journal
    /// needs it.
    pub public_key: PublicKey,
    /// The ports it publishes.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Where in its life it is.
    pub state: MemberState,
    /// The counter of the claim.
    pub counter: u64,
    /// How far its runtime is with it, where that asks by libnetwork's protocol.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
}

/// A member whose runtime asks for an address first, names the container then, and takes the interface into it last
/// (libnetwork).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// The address was asked for; whose it is will be said.
    Reserved,
    /// The interface waits in the host's namespace.
    Held {
        /// The runtime's id of the endpoint.
        id: String,
        /// Where the container's namespace will be.
        sandbox: PathBuf,
    },
    /// The runtime has taken the interface into the container.
    Taken {
        /// The runtime's id of the endpoint.
        id: String,
    },
}

impl Entry {
    /// Its interface waits in the host's namespace for the runtime.
    pub fn is_held(&self) -> bool {
        matches!(self.endpoint, Some(Endpoint::Held { .. }))
    }

    /// Its runtime has said who it is.
    pub fn is_named(&self) -> bool {
        self.app != Entry::nobody()
    }

    /// Its runtime has taken it into the container, and it is not published as ready.
    pub fn is_unfinished(&self) -> bool {
        self.state == MemberState::Joining && matches!(self.endpoint, Some(Endpoint::Taken { .. }))
    }

    /// The app of a member whose runtime has not said who it is.
    pub fn nobody() -> AppId {
        "ap-00000000-0000-0000-0000-000000000000".parse().expect("a nil id is an id")
    }

    /// The runtime's id of it.
    pub fn endpoint_id(&self) -> Option<&str> {
        match &self.endpoint {
            Some(Endpoint::Held { id, .. } | Endpoint::Taken { id }) => Some(id),
            Some(Endpoint::Reserved) | None => None,
        }
    }
}

mod private_key {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use netplumb::state::PrivateKey;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(key: &PrivateKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(key.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrivateKey, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(PrivateKey).ok_or_else(|| D::Error::custom("private key is not 32 bytes of base64"))
    }
}
