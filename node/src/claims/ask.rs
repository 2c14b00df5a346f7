//! What a judge is asked, and what it answers: the node's own messages between hosts.

use std::net::Ipv4Addr;

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::NetworkRecord;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Thing;
use super::ledger::Tally;

/// A question to the judge of a thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// An address for a member.
    Address {
        /// Its network.
        network: NetworkId,
        /// The network's subnet.
        subnet: Ipv4Net,
        /// The address the judge was chosen for.
        preferred: Ipv4Addr,
        /// No other address will do: the caller chose it.
        chosen: bool,
    },
    /// A number for a member of (app, type).
    Ordinal {
        /// Its network.
        network: NetworkId,
        /// Its app.
        app: AppId,
        /// Its process type.
        #[serde(rename = "type")]
        process: ProcessType,
        /// The number the caller chose; the lowest free one without it.
        chosen: Option<u32>,
    },
    /// A VNI for a network nobody has a word on yet.
    Network {
        /// The network.
        network: NetworkId,
        /// The candidate the judge was chosen for.
        vni: u32,
        /// The subnet it shall have.
        subnet: Ipv4Net,
    },
}

/// A judge's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The address is the asker's for T_hold, and as long as its claim is in the view.
    Address(Ipv4Addr),
    /// The number is.
    Ordinal(u32),
    /// The network is to be published so.
    Network(NetworkRecord),
    /// The chosen thing has a holder.
    Taken {
        /// The holder's host.
        host: HostId,
        /// The holder; none while it is given and not claimed yet.
        member: Option<MemberId>,
    },
    /// The VNI is another network's.
    Held(NetworkId),
    /// Another host judges this.
    NotMine(HostId),
    /// This host judges it, but not before so many milliseconds.
    NotYet(u64),
    /// Nothing is left that this host could give.
    Full {
        /// Addresses held by live members.
        used: usize,
        /// Addresses resting after a release.
        released: usize,
        /// Addresses kept for members that vanished.
        ghosts: usize,
    },
}

impl Question {
    /// The network it is for.
    pub fn network(&self) -> NetworkId {
        match self {
            Question::Address { network, .. }
            | Question::Ordinal { network, .. }
            | Question::Network { network, .. } => *network,
        }
    }

    /// The thing it is about: decides who is asked.
    pub fn thing(&self) -> Thing {
        match self {
            Question::Address { network, preferred, .. } => Thing::Address(*network, *preferred),
            Question::Ordinal { network, app, process, .. } => {
                Thing::Ordinals(*network, *app, process.clone())
            }
            Question::Network { vni, .. } => Thing::Vni(*vni),
        }
    }
}

impl From<Tally> for Answer {
    fn from(tally: Tally) -> Answer {
        Answer::Full { used: tally.held, released: tally.released, ghosts: tally.ghosts }
    }
}
