//! Records for tests.

use std::net::Ipv4Addr;

use crate::id::MemberId;
use crate::record::{HostRecord, MemberRecord, MemberState, PublicKey, Record};

pub(crate) const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
pub(crate) const APP: &str = "ap-0f2bd1c4-5a4e-4a43-9d7e-6f6a3b2c1d0e";

/// The `host` record of a host.
pub(crate) fn host(name: &str) -> Record {
    let host = HostRecord::new(name.parse().unwrap(), "192.0.2.1:4789".parse().unwrap(), 1500);
    Record::Host(HostRecord { counter: 1, ..host })
}

/// A member told apart by its number.
pub(crate) fn member(number: u32) -> Record {
    let id: MemberId = format!("{number:016x}").parse().unwrap();
    let record = MemberRecord {
        counter: number.into(),
        state: MemberState::Ready,
        app: APP.parse().unwrap(),
        process: "web".parse().unwrap(),
        ordinal: Some(number),
        ordinal_chosen: false,
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 240, 0, 0).to_bits() + number),
        address6: None,
        key: PublicKey([7; 32]),
        ports: Vec::new(),
        unknown: Default::default(),
    };
    Record::Member(NETWORK.parse().unwrap(), id, record)
}
