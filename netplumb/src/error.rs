//! What can go wrong with the kernel, one variant for each answer a caller can give.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::netlink::nft::NftError;

/// Why the kernel did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CAP_NET_ADMIN or CAP_SYS_ADMIN is missing.
    #[error("not permitted to {what}: run the agent as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    NotPermitted {
        /// What was tried.
        what: String,
    },
    /// The container's namespace does not exist any more.
    #[error("the container's network namespace {} is gone: has the container stopped?", .0.display())]
    NetnsGone(PathBuf),
    /// Another namespace stands where the container's was.
    #[error("{} is another network namespace now: the container was replaced, attach it again", .0.display())]
    NetnsRecycled(PathBuf),
    /// The process to attach ended or was replaced by another while it was looked at.
    #[error("process {0} ended while it was attached: start the container and attach it again")]
    ProcessGone(u32),
    /// A path that is not a network namespace.
    #[error("{} is no network namespace: give /proc/<pid>/ns/net, or the path of a mounted one", .0.display())]
    NotNetns(PathBuf),
    /// EEXIST for a VXLAN device: one host netns holds one VNI once for each port.
    #[error(
        "VNI {vni} on UDP port {port} is used on this host by something else (another agent, Docker Swarm, \
         flannel): set `underlay.vxlan_port` to a port of your own in the whole region"
    )]
    VniInUse {
        /// The network's VNI.
        vni: u32,
        /// The UDP port of the tunnel end.
        port: u16,
    },
    /// EADDRINUSE: the underlay's VXLAN port, or WireGuard's in a binding namespace.
    #[error("UDP port {port} is used on this host by something else: free it, or choose another port")]
    PortInUse {
        /// The UDP port.
        port: u16,
    },
    /// The kernel has no VXLAN devices.
    #[error("this kernel has no VXLAN: load the module `vxlan`")]
    NoVxlan,
    /// The kernel has no WireGuard devices, and the backend is not `userspace`.
    #[error(
        "this kernel has no WireGuard: load the module `wireguard`, or set `wireguard.backend` to `auto`"
    )]
    NoWireguard,
    /// No TUN devices.
    #[error("no TUN devices ({0}): load the module `tun`, and give the agent access to /dev/net/tun")]
    NoTun(io::Error),
    /// No nf_tables: the private address cannot be guarded.
    #[error("{0}")]
    NoNfTables(NftError),
    /// An interface of this name that is not ours stands in the container.
    #[error("an interface {ifname} that is not ours exists in the container: choose another name (--ifname)")]
    NameTaken {
        /// The interface's name.
        ifname: String,
    },
    /// No interface of this host has the underlay address.
    #[error("no interface of this host has the address {0}: set `underlay.address` to one that has")]
    NoSuchAddress(IpAddr),
    /// IPv6 addresses on an interface whose IPv6 is off.
    #[error("IPv6 is off on {ifname}: the member has no IPv6 address")]
    NoIpv6 {
        /// The interface's name.
        ifname: String,
    },
    /// A parent of the object is missing; the next observation sees it.
    #[error("{what} is missing: something removed it, the next reconciliation makes it anew")]
    Missing {
        /// The missing object.
        what: String,
    },
    /// A name that cannot be a file's or an interface's.
    #[error("{0:?} cannot be used as a name: no slash, no NUL, not empty, not longer than the kernel allows")]
    BadName(String),
    /// The table in the container.
    #[error(transparent)]
    Nft(NftError),
    /// The userspace engine.
    #[error("the WireGuard engine refused: {0}")]
    Engine(#[from] EngineError),
    /// Every other answer of the kernel.
    #[error("the kernel refused to {what}: {source}")]
    Netlink {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Gives an errno the meaning it has for `what`.
    pub(crate) fn kernel(what: impl Into<String>, source: io::Error) -> Error {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Error::NotPermitted { what },
            Some(libc::ENODEV | libc::ENXIO) => Error::Missing { what: format!("what is needed to {what}") },
            _ => Error::Netlink { what, source },
        }
    }
}

impl From<NftError> for Error {
    fn from(error: NftError) -> Error {
        match error {
            NftError::Unsupported(_) => Error::NoNfTables(error),
            _ => Error::Nft(error),
        }
    }
}
