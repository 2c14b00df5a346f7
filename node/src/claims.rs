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
pub mod touched;

use std::net::Ipv4Addr;

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::SUBNET_PREFIXES;
use ipnet::Ipv4Net;

pub use ask::{Answer, Question};
pub use bench::Bench;
pub use changes::Changes;
pub use desk::{Desk, Need, Next, Things, Told};
pub use grants::Grants;
pub use ledger::{Claimant, Ledger};
pub use touched::{Extent, Touched};

/// The subnet of a network nobody gave another.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 22);

/// What no network can have: this network, loopback, link-local, multicast and reserved addresses.
const UNUSABLE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Reads a network's subnet as a caller writes it.
///
/// # Errors
/// In words: no subnet, too large or too small, or of addresses no container can have.
pub fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let subnet: Ipv4Net =
        text.parse().map_err(|_| format!("{text:?} is no IPv4 subnet such as {DEFAULT_SUBNET}"))?;
    if subnet.trunc() != subnet {
        return Err(format!("{subnet} has bits behind its prefix: did you mean {}?", subnet.trunc()));
    }
    if !SUBNET_PREFIXES.contains(&subnet.prefix_len()) {
        let (most, least) = (SUBNET_PREFIXES.start(), SUBNET_PREFIXES.end());
        return Err(format!("{subnet} has the wrong size: a network has /{most} to /{least}"));
    }
    match UNUSABLE.iter().find(|unusable| unusable.contains(&subnet)) {
        Some(unusable) => Err(format!("{subnet} lies in {unusable}, which no container can use")),
        None => Ok(subnet),
    }
}

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
pub(crate) mod fixtures;
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
    fn a_subnet_is_read_or_refused_in_words() {
        for text in ["10.240.0.0/22", "10.0.0.0/16", "192.168.4.8/29", "100.64.0.0/20"] {
            assert_eq!(subnet(text).unwrap().to_string(), text);
        }
        for (text, words) in [
            ("10.240.0.0", "such as"),
            ("fd00::/64", "no IPv4 subnet"),
            ("10.240.1.0/22", "did you mean 10.240.0.0/22"),
            ("10.0.0.0/15", "/16 to /29"),
            ("10.0.0.0/30", "/16 to /29"),
            ("127.240.0.0/24", "127.0.0.0/8"),
            ("224.0.0.0/16", "224.0.0.0/3"),
            ("255.255.0.0/16", "224.0.0.0/3"),
            ("169.254.0.0/16", "169.254"),
        ] {
            let refused = subnet(text).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
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
