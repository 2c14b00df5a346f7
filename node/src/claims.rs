//! Scarce things without a controller: who holds which address, VNI and ordinal, who is asked for
//! one, and what is contested. Pure: views, questions and `now` in, answers out.
//!
//! A live record holds, a released one rests, one that vanished with its host is a ghost, nothing
//! else: there is no pending state. Each thing has one judge, the answering host that ranks highest
//! for it; whoever wants the thing asks the judge, which is how one host at a time gives it. When a
//! cut has let two judges give one thing, the lowest (counter, host, member) holds it in every view,
//! and the others are contested: out of everybody's names and datapath until they have a thing of
//! their own.

pub mod ask;
pub mod bench;
pub mod changes;
pub mod desk;
pub mod grants;
pub mod ledger;
pub mod networks;

use std::net::Ipv4Addr;

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use ipnet::Ipv4Net;

pub use ask::{Answer, Question};
pub use bench::Bench;
pub use changes::Changes;
pub use desk::{Desk, Need, Next, Things, Told};
pub use grants::Grants;
pub use ledger::Ledger;

/// The subnet of a network nobody gave another.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 22);

/// A member as the ledger names it.
pub type MemberKey = (HostId, NetworkId, MemberId);

/// What has one judge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// An address of a network.
    Address(NetworkId, Ipv4Addr),
    /// All numbers of (app, type) in a network: one judge hands them out in order.
    Ordinals(NetworkId, AppId, ProcessType),
    /// A VXLAN network identifier.
    Vni(u32),
}

impl Thing {
    /// Where the thing stands in the ranking of judges.
    fn hash(&self) -> u64 {
        match self {
            // Not hashed: a choice of address looks at a thousand of them, and ranking mixes them.
            Thing::Address(network, address) => {
                let network = u128::from_be_bytes(*network.as_bytes());
                let address = u64::from(u32::from(*address)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (network >> 64) as u64 ^ (network as u64).rotate_left(32) ^ address
            }
            Thing::Ordinals(network, app, process) => {
                hash(&[network.as_bytes(), app.as_bytes(), process.as_str().as_bytes()].concat())
            }
            Thing::Vni(vni) => hash(&vni.to_be_bytes()),
        }
    }
}

/// The i-th VNI a network tries: 24 bits of a hash, never 0, 1 (used by hand everywhere) or all
/// ones (reserved, RFC 7348 leaves it to implementations).
pub fn vni_candidate(network: NetworkId, i: u32) -> u32 {
    let mut bytes = network.as_bytes().to_vec();
    bytes.extend(i.to_be_bytes());
    2 + (hash(&bytes) % (0xff_ffff - 2)) as u32
}

/// How high a host ranks as the judge of a thing (rendezvous hashing): every host computes the same.
fn rank(thing: u64, host: u64) -> u64 {
    // splitmix64's finalizer: both halves are already hashes, they only need mixing.
    let mut z = thing ^ host;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(Blake2b::<U8>::digest(bytes).into())
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod timelines;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_stay_in_24_bits_and_off_the_reserved() {
        for i in 0..10_000 {
            let vni = vni_candidate(fixtures::pn(), i);
            assert!((2..0xff_ffff).contains(&vni));
        }
    }

    #[test]
    fn every_host_judges_its_share() {
        let hosts: Vec<u64> = (0..10).map(|i| hash(format!("h{i}").as_bytes())).collect();
        let mut judged = [0; 10];
        for address in DEFAULT_SUBNET.hosts() {
            let thing = Thing::Address(fixtures::pn(), address).hash();
            let top = (0..10).max_by_key(|i| rank(thing, hosts[*i])).unwrap();
            judged[top] += 1;
        }
        assert!(judged.iter().all(|share| (60..150).contains(share)), "{judged:?}");
    }
}
