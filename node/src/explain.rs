//! Why one container does not reach another: what both hosts know and have, walked step by step. Pure; the agent
//! collects the facts ([`Sight`], [`Probes`]), here they become [`Step`]s.

mod find;
mod sight;
mod steps;

use std::net::{IpAddr, Ipv4Addr};

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::MemberState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

pub use find::{End, find, pair};
pub use sight::Before;
pub use steps::walk;

/// What a host is asked about one of its members and another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Their network.
    pub network: NetworkId,
    /// The host's own member.
    pub member: MemberId,
    /// The other's host.
    pub other_host: HostId,
    /// The other.
    pub other: MemberId,
    /// A name of the other, to be looked up.
    pub name: Option<String>,
}

/// What a host knows and has of its member towards another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// The member as the host's journal has it; none when it is not there.
    pub own: Option<Own>,
    /// The other's record as it arrived here.
    pub other: Option<Known>,
    /// What the name asked for resolves to in the container; none when no name was asked for.
    pub resolves: Option<Vec<IpAddr>>,
    /// What stands in the kernel, or why nobody can say.
    pub kernel: Result<Stands, String>,
    /// MTU of the underlay: as the host has published it.
    pub underlay_mtu: u32,
    /// MTU of the underlay: as it is now.
    pub underlay_mtu_now: Option<u32>,
    /// Echo requests that have arrived in the member's binding namespace so far.
    pub heard: u64,
}

/// An own member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// Its caller's name for the container.
    pub container: String,
    /// Its interface there.
    pub ifname: String,
    /// Where in its life it is.
    pub state: MemberState,
    /// Its address.
    pub address: Ipv4Addr,
    /// It holds its address, by what this host knows.
    pub holds: bool,
    /// MTU the interface should have, in bytes.
    pub mtu: u32,
    /// MTU of the fabric, in bytes.
    pub fabric_mtu: u32,
    /// This host's tunnel end.
    pub vtep: String,
}

/// Another host's member, as its record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Where in its life it is.
    pub state: MemberState,
    /// Its address.
    pub address: Ipv4Addr,
    /// It holds its address, by what this host knows.
    pub holds: bool,
    /// How its host stands.
    pub standing: String,
}

/// What stands in a host's kernel of its member towards the other one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stands {
    /// What a reconciliation would mend, by the step it belongs to.
    pub wrong: Vec<Wrong>,
    /// Where frames for the other go: a tunnel end, or a port of this host.
    pub row: Fact,
    /// The other's MAC in the binding namespace.
    pub neighbour: Fact,
    /// The other's endpoint and addresses in WireGuard.
    pub peer: Fact,
    /// Seconds since the last handshake with it.
    pub handshake_s: Option<u64>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// The step that breaks by it.
    pub step: Kind,
    /// What, in words.
    pub what: String,
}

/// What should be, and what is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// As the region's records have it.
    pub should: Option<String>,
    /// As the kernel has it.
    pub is: Option<String>,
}

/// What a host is asked to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The network.
    pub network: NetworkId,
    /// The host's own member.
    pub member: MemberId,
    /// The other's address.
    pub to: Ipv4Addr,
}

/// What came of echoes to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Through bridge and VXLAN, a small one.
    pub fabric: Answer,
    /// The same, as long as the fabric's MTU.
    pub fabric_full: Answer,
    /// The longest packet that passed there, in bytes; none when none was tried.
    pub passes: Option<u32>,
    /// From container to container, through WireGuard, a small one.
    pub inside: Answer,
    /// The same, as long as the interface's MTU.
    pub inside_full: Answer,
}

/// What came of one echo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "EchoAnswer")]
pub enum Answer {
    /// It was back after so many microseconds.
    Micros(u64),
    /// Nothing came back.
    Silent,
    /// It was refused on its way.
    Refused(String),
}

impl Answer {
    /// It came back.
    pub fn arrived(&self) -> bool {
        matches!(self, Answer::Micros(_))
    }
}

/// All that is known of one host's side.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// What it had before anything was sent, or why it did not say.
    pub sight: Result<Sight, String>,
    /// What came of its echoes.
    pub probes: Option<Probes>,
    /// How many echo requests it had heard afterwards.
    pub heard: Option<u64>,
}

/// One step of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "StepKind")]
pub enum Kind {
    /// Name → address.
    Name,
    /// The records of both have arrived at the other's host.
    Record,
    /// Both hold their addresses.
    Claim,
    /// The agents answer.
    Agent,
    /// `wgN`, its addresses, routes and guard in the container.
    Interface,
    /// Each is the other's WireGuard peer.
    Peer,
    /// Bridge, VXLAN device, veth.
    Fabric,
    /// MAC → tunnel end or port.
    Row,
    /// Address → MAC.
    Neighbour,
    /// VXLAN packets go and come between the hosts.
    Underlay,
    /// So do those of full length.
    Mtu,
    /// WireGuard has a session.
    Handshake,
    /// Container to container.
    Echo,
}

impl Kind {
    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Name => "name",
            Kind::Record => "record",
            Kind::Claim => "claim",
            Kind::Agent => "agent",
            Kind::Interface => "interface",
            Kind::Peer => "peer",
            Kind::Fabric => "fabric",
            Kind::Row => "row",
            Kind::Neighbour => "neighbour",
            Kind::Underlay => "underlay",
            Kind::Mtu => "mtu",
            Kind::Handshake => "handshake",
            Kind::Echo => "echo",
        }
    }
}

/// How a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "StepState")]
pub enum State {
    /// As it should be.
    Ok,
    /// Not.
    Broken,
    /// Nobody could say.
    Unknown,
}

/// One step with what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Which.
    pub step: Kind,
    /// On which host; none for what is between both.
    #[schemars(with = "Option<schema::HostId>")]
    pub host: Option<HostId>,
    /// How it is.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do, where it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub hint: Option<String>,
}

/// The whole way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// From whom.
    pub from: End,
    /// To whom.
    pub to: End,
    /// Nothing is broken.
    pub ok: bool,
    /// The first broken step: the others may be broken by it.
    pub broken: Option<Kind>,
    /// The way, in its order.
    pub steps: Vec<Step>,
}

#[cfg(test)]
mod tests;
