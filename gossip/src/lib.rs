//! Membership and replicated records: who is in the region and what each host says.
//!
//! A [`Gossip`] joins a region over a [`Wire`], publishes its own host's records and merges
//! everybody's into a [`View`], which its reader watches. chitchat replicates; this crate decides
//! what counts: which generation of a host, which of its records, and whether it still answers.
//!
//! It never looks at what records mean for the kernel or for DNS, and it never writes a file.

pub mod config;
pub mod counters;
pub mod id;
pub mod identity;
pub mod memory;
mod queue;
pub mod quic;
pub mod record;
pub mod standing;
pub mod view;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

pub use config::{Config, KnownHost, unix_ns};
pub use counters::Counters;
pub use identity::{Identity, IdentityError};
pub use standing::{Standing, Timings};
pub use view::View;
pub use wire::{AskError, Refusal, Wire};

use id::HostId;
use record::{Key, MEMBERS_MAX, MalformedRecord, Record};

/// This host's seat in its region.
///
/// Made by [`join`](Self::join); every copy is the same seat. [`leave`](Self::leave) gives it up
/// with a goodbye, dropping the last copy is a crash to the others.
#[derive(Clone)]
pub struct Gossip {}

/// A question another host's node asks this host's node. Dropping `reply` tells it there is no
/// answer.
#[derive(Debug)]
pub struct Ask {
    /// Who asks, as its certificate says.
    pub from: HostId,
    /// What it asks; the node's own encoding.
    pub body: Vec<u8>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Vec<u8>>,
}

/// One change of this host's own records.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Publish a record, or replace it.
    Put(Record),
    /// Remove a record; a key that is not there is no error.
    Delete(Key),
}

/// Why the region was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Another agent uses this host's name.
    #[error(
        "host name {host} is in use by a live agent at {address}; stop it, or give this machine a name and certificate of its own"
    )]
    Twin {
        /// The name.
        host: HostId,
        /// Where the other agent gossips.
        address: SocketAddr,
    },
    /// The generation could not be stored; without that a restart could reuse it.
    #[error("the generation cannot be persisted, so gossip is not joined: {0}")]
    Persist(#[source] io::Error),
    /// The records to start with break a bound.
    #[error("own records cannot be published: {0}")]
    Records(#[from] PublishError),
    /// chitchat did not start.
    #[error("gossip did not start: {0}")]
    Start(#[source] anyhow::Error),
}

/// Why records were not published; none of the changes was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// A record breaks a bound that every reader holds it to.
    #[error(transparent)]
    Malformed(#[from] MalformedRecord),
    /// The `host` record is missing, or about to be deleted.
    #[error("the host record must be there as long as the host is; leave the region instead")]
    NoHostRecord,
    /// More members than one host may have.
    #[error(
        "{0} members are more than the {MEMBERS_MAX} one host may publish; detach some, or use another host"
    )]
    TooManyMembers(usize),
    /// Gossip has ended.
    #[error("gossip has ended; join again")]
    Ended,
}

impl Gossip {
    /// Joins a region and returns the seat in it, and the questions other nodes ask.
    ///
    /// Asks seeds and known hosts, for 2 s at most, for the highest generation seen of this host;
    /// `persist` stores the chosen one before anything is published, and each later one.
    pub async fn join(
        config: Config,
        wire: impl Wire,
        records: Vec<Record>,
        persist: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(Gossip, mpsc::Receiver<Ask>), JoinError> {
        let _ = (config, wire, records, persist);
        todo!()
    }

    /// All hosts' records, merged; published when it changed.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        todo!()
    }

    /// Makes changes to this host's records; the own view shows them when this returns, and some
    /// other hosts are told at once.
    pub async fn publish(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        let _ = changes;
        todo!()
    }

    /// Asks another host's node and waits for its answer for at most `bound`.
    pub async fn ask(&self, host: &HostId, body: Vec<u8>, bound: Duration) -> Result<Vec<u8>, AskError> {
        let _ = (host, body, bound);
        todo!()
    }

    /// Gossips with a host now, instead of when chance picks it.
    pub fn pull(&self, host: &HostId) {
        let _ = host;
        todo!()
    }

    /// The other hosts as to be persisted for [`Config::known`].
    pub fn known(&self) -> Vec<KnownHost> {
        todo!()
    }

    /// Leaves the region, within 1 s: for `away` seconds this host's containers stay in answers,
    /// `None` takes them out at once.
    pub async fn leave(self, away: Option<u32>) {
        let _ = away;
        todo!()
    }

    /// The generation this host's records are published in.
    pub fn generation(&self) -> u64 {
        todo!()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Arc<Counters> {
        todo!()
    }
}
