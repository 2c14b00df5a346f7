//! DNS for containers, answered from the names of their own networks.
//!
//! A [`Zone`] holds the names of one network, encoded once when the network changes. A [`Scope`] is what one
//! container may see: its networks' zones and whether other names are relayed. [`answer`] turns a query and a
//! scope into a reply without allocating or waiting. A [`Listener`] does the IO on [`Sockets`] that live in the
//! container's network namespace; a [`Forwarder`] relays everything outside the zone, byte for byte.
//!
//! Who asks is known by the *socket* alone, never by a source address: a container cannot name another's network.
//!
//! What this crate never does: read the gossiped view, use netlink, cache upstream answers, log a queried name.

mod answer;
mod counters;
mod datagrams;
mod desk;
#[cfg(test)]
mod fixture;
mod forward;
mod limits;
mod listener;
mod name;
mod odd;
mod question;
mod records;
mod reply;
mod reverse;
mod scope;
mod services;
mod socket;
mod stream;
mod upstreams;
mod zone;

pub use answer::{DropReason, Outcome, Transport, answer};
pub use counters::{Counters, Durations, Label};
pub use forward::Forwarder;
pub use limits::Limits;
pub use listener::{Listener, Service};
pub use records::Facts;
pub use scope::{Answers, Scope};
pub use services::Port;
pub use socket::Sockets;
pub use upstreams::{follow_upstreams, system_upstreams};
pub use zone::{Draft, NamedAddresses, Zone, ZoneError, ZoneMember};
