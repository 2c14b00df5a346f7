//! The desk of a judge, and of the one who asks: what is given to whom, and whom to ask for what.
//! Pure: ledger, bench, grants, a question and `now` in, an answer or the next question out.

mod asking;
mod judging;
mod told;

pub use told::Told;

use std::net::Ipv4Addr;

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::NetworkRecord;
use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::ledger::{Claims, Tally};
use super::{Bench, Grants, Ledger, Question};

/// How many rounds of questions may go unanswered before an attach is refused, and how many judges
/// are asked for an address one after another.
pub const ROUNDS_MAX: u32 = 5;

/// Everything a decision looks at.
pub struct Desk<'a> {
    /// Who holds what; the network asked about is open.
    pub ledger: &'a Ledger,
    /// Who judges.
    pub bench: &'a Bench,
    /// What this host gave a short while ago.
    pub grants: &'a mut Grants,
    /// The time.
    pub now: Instant,
}

/// What a member needs, or a network that is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Need {
    /// Its network.
    pub network: NetworkId,
    /// The subnet, should nobody have a word on the network yet.
    pub subnet: Ipv4Net,
    /// The address.
    pub address: Wanted<Ipv4Addr>,
    /// The number; none where it has one, or needs none.
    pub number: Option<Number>,
}

/// A number that is needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Number {
    /// Among the members of this app.
    pub app: AppId,
    /// Of this process type.
    pub process: ProcessType,
    /// The one the caller chose.
    pub chosen: Option<u32>,
}

/// Whether an address is needed, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<T> {
    /// Any.
    Any,
    /// The one the caller chose.
    Chosen(T),
    /// The member has it, or there is none.
    Nothing,
}

/// What a member gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Things {
    /// What to publish of its network.
    pub claim: NetworkRecord,
    /// Its address, where one was needed.
    pub address: Option<Ipv4Addr>,
    /// Its number, where one was needed.
    pub ordinal: Option<u32>,
}

/// What the one who asks does next.
#[derive(Debug)]
pub enum Next {
    /// Everything is there: claim it.
    Have(Things),
    /// Ask these hosts, all at once, and come back with [`Told::hear`].
    Ask(Vec<(HostId, Question)>),
    /// Come back then; why, in words.
    Wait(Instant, String),
    /// It cannot be had.
    Refused(Refused),
}

/// Why a member cannot have what it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Outside the subnet, or its network or broadcast address.
    #[error("{0} is not a member address of {1}")]
    Outside(Ipv4Addr, Ipv4Net),
    /// The chosen address has a holder.
    #[error("{address} is held by {holder}")]
    AddressHeld {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        holder: Holder,
    },
    /// The chosen number has a holder.
    #[error("{number}.{process} is held by {holder}")]
    OrdinalHeld {
        /// The number.
        number: u32,
        /// Of this process type.
        process: ProcessType,
        /// Who has it.
        holder: Holder,
    },
    /// No address is left.
    #[error(
        "network {network} is full: of {size} addresses of {subnet} {} are held, {} rest after a detach and {} \
         are kept for members that vanished; {unreachable} judges did not answer in {rounds} rounds",
        tally.held, tally.released, tally.ghosts
    )]
    Full {
        /// The network.
        network: NetworkId,
        /// Its subnet.
        subnet: Ipv4Net,
        /// How many addresses that is.
        size: usize,
        /// What became of them.
        tally: Tally,
        /// How many judges did not answer.
        unreachable: usize,
        /// How often was asked.
        rounds: u32,
    },
    /// This host is the one to ask, and judges nothing yet.
    #[error("nobody else can give {what}, and this host cannot yet: {why}")]
    Unfit {
        /// What was asked for.
        what: String,
        /// Why it judges nothing, in words.
        why: String,
    },
    /// There may be something left, and nobody who could give it answers.
    #[error(
        "nobody gave {what}: {unreachable} judges did not answer in {rounds} rounds, the last asked for it was {judge}"
    )]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Who judges it.
        judge: HostId,
        /// How many judges did not answer.
        unreachable: usize,
        /// How often was asked.
        rounds: u32,
    },
}

/// Who has a thing, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its host.
    pub host: HostId,
    /// The member; none while it was given and is not claimed yet.
    pub member: Option<MemberId>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.member {
            Some(member) => write!(f, "member {member} on host {}", self.host),
            None => write!(f, "a member that host {} is attaching", self.host),
        }
    }
}

/// Addresses of a subnet on which nothing stands, in order.
fn free(claims: &Claims, subnet: Ipv4Net) -> Vec<Ipv4Addr> {
    subnet.hosts().filter(|address| claims.at(*address).is_none()).collect()
}

fn is_member_address(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}
