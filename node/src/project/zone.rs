//! The members of one network, as names lead to them.

use std::net::{Ipv4Addr, Ipv6Addr};

use blake2::Blake2b;
use blake2::digest::{Digest as _, consts::U8};
use gossip::View;
use gossip::id::NetworkId;
use gossip::record::{MemberRecord, MemberState};
use gossip::standing::Standing;
use resolver::{Facts, ZoneMember};

use super::network::held;
use crate::claims::{Ledger, MemberKey};

/// The member of a network that names lead to this address: ready, holding it, on a host that
/// answers and is not being drained; while this host is the one cut off, on a dead host too, for then it is the others that
/// can answer. A contested ordinal is left out of the numbered name only.
pub fn zone_member(
    view: &View,
    ledger: &Ledger,
    network: NetworkId,
    address: Ipv4Addr,
) -> Option<ZoneMember> {
    let (key, host, record) = held(view, network, ledger.claims(network).holder(address)?)?;
    let standing = host.standing;
    let answered = standing.answers() || (view.cut_off && standing == Standing::Dead);
    if record.state != MemberState::Ready || !answered || host.records.host.draining {
        return None;
    }
    let ports = record.ports().map(|port| resolver::Port {
        service: port.service(),
        protocol: port.protocol.as_str(),
        number: port.number.get(),
    });
    Some(ZoneMember {
        app: record.app.to_string(),
        process: record.process.to_string(),
        ordinal: record.ordinal.filter(|_| !ledger.ordinal_contested(&key, record)),
        address: record.address,
        address6: record.address6,
        ports: ports.collect(),
        facts: facts(&key, record),
        late: matches!(standing, Standing::Late | Standing::Dead),
    })
}

/// What a TXT record tells a person of a member.
fn facts(key: &MemberKey, record: &MemberRecord) -> Facts {
    let (host, _, member) = key;
    let ports = record.ports.iter().map(|port| format!("port={port}"));
    [format!("member={member}"), format!("host={host}"), format!("address={}", record.address)]
        .into_iter()
        .chain(ports)
        .collect()
}

/// A SOA serial that is equal wherever the zone is, from the sum of its members' prints: they come in any order.
pub fn serial(prints: u64) -> u32 {
    (prints >> 32) as u32
}

/// What of a member its zone's serial follows.
pub fn print(member: &ZoneMember) -> u64 {
    let mut hash = Blake2b::<U8>::new();
    for label in [&member.app, &member.process] {
        hash.update((label.len() as u64).to_le_bytes());
        hash.update(label);
    }
    hash.update(member.ordinal.unwrap_or_default().to_le_bytes());
    hash.update(member.address.octets());
    hash.update(member.address6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    for port in &member.ports {
        hash.update((port.service.len() as u64).to_le_bytes());
        hash.update(&port.service);
        hash.update(port.protocol);
        hash.update(port.number.to_le_bytes());
    }
    u64::from_be_bytes(hash.finalize().into())
}
