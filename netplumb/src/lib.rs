//! The kernel side of warren.
//!
//! netns, veth, bridge, VXLAN, FDB, neighbours and WireGuard. It never reads the gossiped view: a
//! caller says what should be ([`state::Desired`]) and what may be touched ([`state::Ours`]), and a
//! [`reconciler::Reconciler`] makes the kernel so.

pub mod engine;
pub mod error;
pub mod kernel;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod observed;
pub mod plan;
pub mod reconciler;
pub mod state;

pub use error::Error;
pub use kernel::{
    Container, Echo, EchoFrom, EchoRequest, Found, Kernel, NetnsSource, Place, Problem, Traffic,
};
pub use memory::MemoryKernel;
pub use netlink::probe::{Feature, survey};
pub use netlink::{Backend, NetlinkKernel};
pub use reconciler::{Reconciler, Report};
