//! A laboratory: network namespaces as hosts and containers, the real `warren` as their agents.
//!
//! It sees the product as its users do, through the binary, its API and the packets: it imports no
//! crate of the product. Nothing is made in the machine's own network namespace, and everything is
//! gone when the [`Lab`] is dropped. Set-up that fails panics with what to do; what a test asks
//! about (an echo, an answer, an exit code) is returned.
//!
//! Needs root, or `unshare -Urnmpf --mount-proc` with a private tmpfs on `/run`; and `ip`, `bridge`
//! (Debian: iproute2), `nft` (nftables), `dig` (bind9-dnsutils), `ping` (iputils-ping).

pub mod bulk;
pub mod chaos;
pub mod cli;
pub mod container;
pub mod dns;
pub mod docker;
pub mod flow;
pub mod footprint;
pub mod forge;
pub mod host;
pub mod http;
pub mod ids;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod podman;
pub mod process;
pub mod pulse;
pub mod sabotage;
pub mod sniffer;
pub mod stage;
pub mod traffic;
pub mod wait;

pub use cli::{Attached, Outcome};
pub use container::Container;
pub use host::Host;
pub use lab::Lab;
pub use netns::Netns;
pub use wait::{eventually, seconds, want};
