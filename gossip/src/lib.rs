//! Membership and replicated records: who is in the region and what each host says.
//!
//! An [`Arrival`] joins a region over a [`Wire`]; the [`Gossip`] it becomes publishes its own host's records and merges
//! everybody's into a [`View`], which its reader watches. chitchat replicates; this crate decides
//! what counts: which generation of a host, which of its records, and whether it still answers.
//!
//! It never looks at what records mean for the kernel or for DNS, and it never writes a file.

mod apply;
mod arrival;
mod codec;
pub mod config;
pub mod counters;
mod eager;
#[cfg(test)]
mod fixtures;
mod greeting;
pub mod id;
pub mod identity;
mod interner;
pub mod memory;
mod merge;
mod own;
mod packed;
pub mod port;
mod pull;
mod queue;
pub mod quic;
pub mod record;
mod seat;
mod seeds;
mod snapshot;
pub mod standing;
mod stretch;
mod transport;
pub mod view;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time;

pub use arrival::Arrival;
pub use config::{Config, KnownHost, unix_ns};
pub use counters::Counters;
pub use identity::{Identity, IdentityError};
pub use interner::Interner;
pub use standing::{Standing, Timings};
pub use view::View;
pub use wire::{AskError, Refusal, Wire};

use greeting::Purpose;
use id::HostId;
use record::{Key, MEMBERS_MAX, MalformedRecord, Record};
use seat::Command;
use wire::Question;

/// Commands of the handles that may wait; the next one waits to be accepted.
const COMMANDS_WAITING_MAX: usize = 256;
/// Questions that may wait for the node; the next one is not answered.
const ASKS_WAITING_MAX: usize = 256;

/// This host's seat in its region.
///
/// Made by [`Arrival::join`]; every copy is the same seat. [`leave`](Self::leave) gives it up
/// with a goodbye, dropping the last copy is a crash to the others.
#[derive(Clone)]
pub struct Gossip {
    seat: Arc<Inner>,
}

struct Inner {
    host: HostId,
    wire: Arc<dyn Wire>,
    views: watch::Receiver<Arc<View>>,
    generation: Arc<AtomicU64>,
    commands: mpsc::Sender<Command>,
    asks: mpsc::Sender<Ask>,
    /// Ends them all when dropped.
    _tasks: JoinSet<()>,
}

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
    /// The region holds as many hosts as gossip can carry.
    #[error(
        "the region is full: its digest has {bytes} bytes, new hosts are let in up to {}; retire hosts, or make \
         another region",
        transport::ADMISSION_BYTES_MAX
    )]
    RegionFull {
        /// Length of the digest in bytes.
        bytes: usize,
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
    /// All hosts' records, merged; published when it changed.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.seat.views.clone()
    }

    /// Makes changes to this host's records; the own view shows them when this returns, and some
    /// other hosts are told at once.
    pub async fn publish(&self, changes: Vec<Change>) -> Result<(), PublishError> {
        let (done, published) = oneshot::channel();
        self.command(Command::Publish { changes, done }).await;
        published.await.unwrap_or(Err(PublishError::Ended))
    }

    /// Asks another host's node and waits for its answer for at most `bound`.
    pub async fn ask(&self, host: &HostId, body: Vec<u8>, bound: Duration) -> Result<Vec<u8>, AskError> {
        let asking = async {
            if *host == self.seat.host {
                return self.ask_own_node(body).await;
            }
            let address = self.address(host).ok_or_else(|| AskError::Unknown(host.clone()))?;
            self.seat.wire.ask(address, Purpose::Node.wrap(body)).await
        };
        time::timeout(bound, asking).await.unwrap_or(Err(AskError::Timeout))
    }

    /// Asks a host for what is new of it now, instead of when chance picks it.
    pub fn pull(&self, host: &HostId) {
        if let Some(address) = self.address(host) {
            // A seat too busy to take it gossips anyway.
            _ = self.seat.commands.try_send(Command::Pull { node_id: host.node_id(), address });
        }
    }

    /// The other hosts as to be persisted for [`Config::known`].
    pub fn known(&self) -> Vec<KnownHost> {
        self.seat.views.borrow().known(&self.seat.host)
    }

    /// Leaves the region, within 1 s: for `away` seconds this host's containers stay in answers,
    /// `None` takes them out at once.
    pub async fn leave(self, away: Option<u32>) {
        let (done, left) = oneshot::channel();
        self.command(Command::Leave { away, done }).await;
        // It fails when the region was left before.
        _ = left.await;
    }

    /// The generation this host's records are published in.
    pub fn generation(&self) -> u64 {
        self.seat.generation.load(Ordering::Relaxed)
    }

    /// What was counted so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.seat.wire.counters()
    }

    /// A seat that was left drops the command, and with it the channel its answer would come by.
    async fn command(&self, command: Command) {
        _ = self.seat.commands.send(command).await;
    }

    async fn ask_own_node(&self, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        let unanswered = || AskError::Unanswered("this host's node is not listening".into());
        let (reply, answer) = oneshot::channel();
        let ask = Ask { from: self.seat.host.clone(), body, reply };
        self.seat.asks.send(ask).await.map_err(|_| unanswered())?;
        answer.await.map_err(|_| unanswered())
    }

    fn address(&self, host: &HostId) -> Option<SocketAddr> {
        self.seat.views.borrow().hosts.get(host).map(|host| host.address)
    }
}

/// Sorts questions from the wire: greetings and snapshots to the seat, the rest to the node.
async fn hear_questions(wire: Arc<dyn Wire>, commands: mpsc::Sender<Command>, asks: mpsc::Sender<Ask>) {
    while let Some(mut question) = wire.asked().await {
        let purpose = Purpose::unwrap(&mut question);
        let Question { from, address, body, reply } = question;
        let heard = match purpose {
            Some(Purpose::Greeting) => commands.try_send(Command::Greet { from, address, reply }).is_ok(),
            Some(Purpose::Snapshot) => commands.try_send(Command::Serve { to: address, body, reply }).is_ok(),
            Some(Purpose::Records) => commands.try_send(Command::Tell { body, reply }).is_ok(),
            Some(Purpose::Node) => asks.try_send(Ask { from, body, reply }).is_ok(),
            None => false,
        };
        if !heard {
            wire.counters().dropped("ask");
        }
    }
}
