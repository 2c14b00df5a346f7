//! The kernel side of warren.
//!
//! netns, veth, bridge, VXLAN, FDB, neighbours and WireGuard. It never reads the gossiped view.

pub mod engine;
pub mod netlink;
pub mod state;
