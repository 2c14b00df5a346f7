//! The kernel by netlink.

pub mod nft;

use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::Error;
use crate::kernel::{Container, Kernel, NetnsSource, Problem, Traffic};
use crate::observed::Observed;
use crate::plan::Op;
use crate::state::{NetnsRef, Ours};

/// Who does WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernel if it can, else the engine.
    Auto,
    /// The kernel's module.
    Kernel,
    /// [`crate::engine`].
    Userspace,
}

/// The kernel of this host.
pub struct NetlinkKernel {}

impl NetlinkKernel {
    /// Namespaces of ours are mounts in `<run_dir>/netns/`. The host's namespace is the calling
    /// thread's.
    ///
    /// Errors: [`Error::NotPermitted`], [`Error::NoWireguard`].
    pub fn new(run_dir: impl Into<PathBuf>, backend: Backend) -> Result<NetlinkKernel, Error> {
        unimplemented!("{:?} {backend:?}", run_dir.into())
    }
}

impl Kernel for NetlinkKernel {
    async fn preflight(&self) -> Vec<Problem> {
        unimplemented!()
    }
    async fn underlay_mtu(&self, _address: IpAddr) -> Result<u32, Error> {
        unimplemented!()
    }
    async fn identify(&self, _source: &NetnsSource) -> Result<Container, Error> {
        unimplemented!()
    }
    async fn alive(&self, _netns: &NetnsRef, _inode: u64) -> bool {
        unimplemented!()
    }
    async fn observe(&self, _ours: &Ours) -> Result<Observed, Error> {
        unimplemented!()
    }
    async fn apply(&self, _op: &Op) -> Result<(), Error> {
        unimplemented!()
    }
    async fn traffic(&self, _ours: &Ours) -> Vec<Traffic> {
        unimplemented!()
    }
}
