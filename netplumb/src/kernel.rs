//! The seam between what should be and the kernel that has it: [`crate::NetlinkKernel`] and
//! [`crate::MemoryKernel`] obey the same rules, held to them by one contract suite.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::error::Error;
use crate::observed::{Observed, ObservedMember};
use crate::plan::Op;
use crate::state::{Key, NetnsRef, Ours, PrivateKey, Trace};

/// A host's kernel.
pub trait Kernel: Send + Sync + 'static {
    /// What this host lacks, one clear sentence each; nothing is changed.
    fn preflight(&self) -> impl Future<Output = Vec<Problem>> + Send;

    /// MTU in bytes of the underlay at `address`: of the interface that has the address, or the
    /// lowest that a route through it sets. Never a cached path MTU: one forged ICMP message would
    /// lower the whole region.
    ///
    /// Errors: [`Error::NoSuchAddress`].
    fn underlay_mtu(&self, address: IpAddr) -> impl Future<Output = Result<u32, Error>> + Send;

    /// Takes hold of a container's namespace for a moment and says what is there.
    ///
    /// Errors: [`Error::NetnsGone`], [`Error::NotNetns`], [`Error::ProcessGone`].
    fn identify(&self, source: &NetnsSource) -> impl Future<Output = Result<Container, Error>> + Send;

    /// Whether the namespace at `netns.path` has still this inode. As cheap as one `stat`, and
    /// enough while sockets of ours pin the namespace: an inode in use is not given twice.
    fn alive(&self, netns: &NetnsRef, inode: u64) -> impl Future<Output = bool> + Send;

    /// Removes the namespaces in the run directory that `ours` does not name, and what the engine serves of
    /// others: what an earlier life of this agent left. Both are this agent's alone.
    fn sweep(&self, ours: &Ours) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes what bears our mark in a container that no journal entry names, see
    /// [`Container::leftovers`].
    ///
    /// Errors: [`Error::NetnsGone`], [`Error::NetnsRecycled`].
    fn clean(&self, netns: &NetnsRef) -> impl Future<Output = Result<(), Error>> + Send;

    /// Where the interfaces of these members stand, named by member id and public key, in whatever
    /// container: how an agent whose journal is lost finds its members again. Interface and key
    /// outlive the agent, in the kernel or with the engine.
    fn find(&self, members: &BTreeMap<String, Key>) -> impl Future<Output = Vec<Found>> + Send;

    /// What stands of `ours`.
    fn observe(&self, ours: &Ours) -> impl Future<Output = Result<Observed, Error>> + Send;

    /// What stands of these members alone, without their network's own namespace.
    fn observe_members(
        &self,
        traces: &BTreeMap<String, Trace>,
    ) -> impl Future<Output = Result<BTreeMap<String, ObservedMember>, Error>> + Send;

    /// Does one Op; doing it twice is as good as once.
    fn apply(&self, op: &Op) -> impl Future<Output = Result<(), Error>> + Send;

    /// Does many Ops in their order. After an essential one that failed none is tried: there are as many answers as
    /// Ops that were.
    fn apply_all(&self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), Error>>> + Send {
        async move {
            let mut results = Vec::with_capacity(ops.len());
            for op in ops {
                let result = self.apply(op).await;
                let stop = result.is_err() && op.essential();
                results.push(result);
                if stop {
                    break;
                }
            }
            results
        }
    }

    /// Has the namespaces of `ours` heard by [`Kernel::changed`], and no others.
    fn watch(&self, ours: &Ours) -> impl Future<Output = ()> + Send;

    /// Waits until something has changed in a namespace that is heard, whoever has changed it: where to look. Links,
    /// their flags, addresses, routes and rows are told of; WireGuard's peers, neighbours and the guard are not.
    /// Cancel safe: what was not given is given to the next call.
    fn changed(&self) -> impl Future<Output = BTreeSet<Place>> + Send;

    /// What each member of `ours` exchanged with each of its peers; what cannot be read is left out.
    fn traffic(&self, ours: &Ours) -> impl Future<Output = Vec<Traffic>> + Send;

    /// Sends one ICMP echo request that may not be fragmented, and waits for its reply.
    ///
    /// Errors: [`Error::NetnsGone`], [`Error::NetnsRecycled`], [`Error::NotPermitted`]. Silence is an answer.
    fn echo(&self, request: &EchoRequest) -> impl Future<Output = Result<Echo, Error>> + Send;

    /// How many echo requests arrived in a member's binding namespace so far.
    ///
    /// Errors: [`Error::Missing`] without such a namespace.
    fn echoes_heard(&self, member: &str) -> impl Future<Output = Result<u64, Error>> + Send;
}

impl<K: Kernel> Kernel for Arc<K> {
    fn preflight(&self) -> impl Future<Output = Vec<Problem>> + Send {
        (**self).preflight()
    }

    fn underlay_mtu(&self, address: IpAddr) -> impl Future<Output = Result<u32, Error>> + Send {
        (**self).underlay_mtu(address)
    }

    fn identify(&self, source: &NetnsSource) -> impl Future<Output = Result<Container, Error>> + Send {
        (**self).identify(source)
    }

    fn alive(&self, netns: &NetnsRef, inode: u64) -> impl Future<Output = bool> + Send {
        (**self).alive(netns, inode)
    }

    fn sweep(&self, ours: &Ours) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).sweep(ours)
    }

    fn clean(&self, netns: &NetnsRef) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).clean(netns)
    }

    fn find(&self, members: &BTreeMap<String, Key>) -> impl Future<Output = Vec<Found>> + Send {
        (**self).find(members)
    }

    fn observe(&self, ours: &Ours) -> impl Future<Output = Result<Observed, Error>> + Send {
        (**self).observe(ours)
    }

    fn observe_members(
        &self,
        traces: &BTreeMap<String, Trace>,
    ) -> impl Future<Output = Result<BTreeMap<String, ObservedMember>, Error>> + Send {
        (**self).observe_members(traces)
    }

    fn apply(&self, op: &Op) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).apply(op)
    }

    fn apply_all(&self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), Error>>> + Send {
        (**self).apply_all(ops)
    }

    fn watch(&self, ours: &Ours) -> impl Future<Output = ()> + Send {
        (**self).watch(ours)
    }

    fn changed(&self) -> impl Future<Output = BTreeSet<Place>> + Send {
        (**self).changed()
    }

    fn traffic(&self, ours: &Ours) -> impl Future<Output = Vec<Traffic>> + Send {
        (**self).traffic(ours)
    }

    fn echo(&self, request: &EchoRequest) -> impl Future<Output = Result<Echo, Error>> + Send {
        (**self).echo(request)
    }

    fn echoes_heard(&self, member: &str) -> impl Future<Output = Result<u64, Error>> + Send {
        (**self).echoes_heard(member)
    }
}

/// Where something has changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The network.
    pub network: String,
    /// The member, in its binding namespace or its container; None for the network's own namespace.
    pub member: Option<String>,
}

/// An ICMP echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoRequest {
    /// The namespace it leaves from.
    pub from: EchoFrom,
    /// Who shall answer.
    pub to: Ipv4Addr,
    /// Length of the packet, IP header included, in bytes; at least 28.
    pub packet_bytes: u32,
    /// How long to wait.
    pub bound: Duration,
}

/// Where an echo request leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EchoFrom {
    /// A member's binding namespace: through bridge and VXLAN alone, answered by the other binding namespace.
    Binding(String),
    /// A container: through WireGuard as well, answered by the other container.
    Container(NetnsRef),
}

/// What came of an echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Echo {
    /// The reply was there after so long.
    Answered(Duration),
    /// No reply in time.
    Silent,
    /// This host or somebody on the way refused it.
    Refused(String),
}

/// How a caller names a container's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsSource {
    /// That of a process.
    Pid {
        /// The process, as the agent sees it.
        pid: u32,
        /// The namespace's inode if the caller knows it: another one is [`Error::NetnsRecycled`].
        inode: Option<u64>,
    },
    /// A mounted namespace, or `/proc/<pid>/ns/net`.
    Path(PathBuf),
}

/// A container's namespace, looked at before it is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// How to find it again.
    pub netns: NetnsRef,
    /// Inode of the namespace, for [`Kernel::alive`].
    pub inode: u64,
    /// It is the agent's own or the host's: never to be attached.
    pub own: bool,
    /// Names of its interfaces.
    pub links: BTreeSet<String>,
    /// Its addresses with their prefixes.
    pub addresses: Vec<IpNet>,
    /// Its routes but for default ones, those that bear our mark, and the kernel's own of `local`
    /// tables.
    pub routes: Vec<Route>,
    /// It has IPv6 at all; single interfaces may have it off.
    pub ipv6: bool,
    /// The guard can be installed there.
    pub nf_tables: bool,
    /// Routes or rules that bear our mark stand there: a member's, or what is left of one.
    pub leftovers: bool,
}

/// A member's interface as [`Kernel::find`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The member.
    pub member: String,
    /// The container's namespace.
    pub netns: NetnsRef,
    /// Inode of the namespace.
    pub inode: u64,
    /// Name of the interface there.
    pub ifname: String,
    /// Its key, as the kernel keeps it.
    pub private_key: PrivateKey,
    /// The network's subnet, as its route there has it; None without that route.
    pub subnet: Option<Ipv4Net>,
}

/// A route found in a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The interface; None for `unreachable` and the like.
    pub device: Option<String>,
}

/// Something this host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One sentence with the remedy.
    pub what: String,
    /// Nothing can be attached on this host.
    pub fatal: bool,
}

/// What went between a member and one of its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The network.
    pub network: String,
    /// The member on this host.
    pub member: String,
    /// The peer's public key.
    pub peer: Key,
    /// Time since the last handshake.
    pub handshake: Option<Duration>,
    /// Bytes received from the peer, WireGuard's headers included.
    pub received: u64,
    /// Bytes sent to the peer, WireGuard's headers included.
    pub sent: u64,
}
