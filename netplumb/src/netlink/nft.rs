//! The nft table `inet warren` in a container, by netlink.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use ipnet::{Ipv4Net, Ipv6Net};

/// What protects one member's private address, and where its container's DNS listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The member's WireGuard interface, at most 15 bytes.
    pub ifname: String,
    /// Its private address: packets for it enter by `ifname` or `lo` only.
    pub address: Ipv4Addr,
    /// Its network: packets from it enter by `ifname` or `lo` only.
    pub subnet: Ipv4Net,
    /// As `address`, in IPv6.
    pub address6: Option<Ipv6Addr>,
    /// As `subnet`, in IPv6.
    pub ula: Option<Ipv6Net>,
    /// Where the DNS listener is bound: port 53 of its address is rewritten to its port.
    pub listener: SocketAddrV4,
}

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or not all the expressions the rules need.
    #[error(
        "this kernel has no usable nf_tables ({0}): load the modules nf_tables and nf_tables_inet, or set `unguarded`"
    )]
    Unsupported(io::Error),
    /// A member id or an interface name that the kernel cannot hold.
    #[error("{0:?} is too long or empty: a member id has 1 to 100 bytes, an interface name 1 to 15")]
    Name(String),
    /// The kernel refused.
    #[error("nf_tables refused to {action}: {source}; is CAP_NET_ADMIN held in this network namespace?")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Makes `member`'s chain and the shared DNS rewrite exactly as `rules` say, in one transaction, in
/// the calling thread's network namespace. Other members' chains stay.
pub fn install(member: &str, rules: &Rules) -> Result<(), NftError> {
    unimplemented!("{member} {rules:?}")
}

/// Removes `member`'s chain; the last one takes the table along. An absent chain is no error.
pub fn remove(member: &str) -> Result<(), NftError> {
    unimplemented!("{member}")
}

/// The members whose rules stand whole in the calling thread's network namespace. A chain that was
/// flushed or edited, by whomever, is not among them.
pub fn observe() -> Result<BTreeMap<String, Rules>, NftError> {
    unimplemented!()
}

/// Whether this kernel has nf_tables, seen from the calling thread's network namespace.
pub fn supported() -> bool {
    unimplemented!()
}
