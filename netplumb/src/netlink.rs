//! The kernel by netlink.

pub mod nft;
