//! What agent and engine say to each other. Pure.
//!
//! The engine greets with the version it speaks; the agent repeats it, or goes away with an error. Both say which
//! process they are: a socket that a service manager opened names that one. From then on the agent asks and the engine answers, one frame each; only [`Request::Inventory`] has many answers, the last being
//! [`Reply::All`]. Descriptors travel with their frame. Within a version no variant or field is moved, removed or
//! added.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{EngineError, InterfaceState};
use crate::state::{Addresses, Key, PrivateKey};

/// What an engine of this build speaks.
///
/// 3 has the frames of 2, [`Request::Spread`] and [`Request::SetPeersOf`].
pub(super) const VERSION: u16 = 3;
/// The oldest engine that an agent of this build speaks with: that of the version before.
pub(super) const OLDEST: u16 = 2;

const MAGIC: [u8; 14] = *b"warren-engine\0";
/// Length of a greeting.
pub(super) const GREETING_BYTES: usize = MAGIC.len() + 6;

/// The first bytes in either direction, the same for all versions to come.
pub(super) fn greeting(version: u16, process: u32) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..][..2].copy_from_slice(&version.to_le_bytes());
    bytes[MAGIC.len() + 2..].copy_from_slice(&process.to_le_bytes());
    bytes
}

/// The version and the process in a greeting; None if it is none.
pub(super) fn greeted(bytes: &[u8; GREETING_BYTES]) -> Option<(u16, u32)> {
    let (magic, said) = bytes.split_at(MAGIC.len());
    let [v0, v1, process @ ..] = said else { return None };
    let process = u32::from_le_bytes(process.try_into().ok()?);
    (magic == MAGIC).then_some((u16::from_le_bytes([*v0, *v1]), process))
}

/// An interface without its descriptors.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    private_key: [u8; 32],
    pub(super) mtu: u32,
    pub(super) address: Ipv4Addr,
    pub(super) address6: Option<Ipv6Addr>,
}

/// A peer as the engine shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Its public key.
    pub key: Key,
    /// Where its messages go; address or port zero means nowhere.
    pub endpoint: SocketAddrV4,
    /// Its addresses: the only inner sources taken from it and destinations sent to it.
    pub allowed: Addresses,
    /// Send an initiation at once, unless there is a session.
    pub greet: bool,
}

/// What an agent asks for.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    /// Everything that the engine holds, with its descriptors.
    Inventory,
    /// Serve an interface; with a TUN, a UDP socket and, if `wg show` shall work, the socket that it asks.
    Add { id: String, config: Config, peers: Vec<PeerConfig> },
    /// Forget an interface and close its descriptors.
    Remove { id: String },
    /// Change how long a padded packet may be.
    SetMtu { id: String, mtu: u32 },
    /// Change where ICMP errors come from.
    SetAddress { id: String, address: Ipv4Addr, address6: Option<Ipv6Addr> },
    /// Add peers or change them.
    SetPeers { id: String, peers: Vec<PeerConfig> },
    /// Remove peers; absent ones are as good.
    RemovePeers { id: String, peers: Vec<Key> },
    /// The interface with its peers and counters.
    Observe { id: String },
    /// Hold descriptors that are none of the engine's business.
    Keep { name: String },
    /// Close what is held under the name.
    Release { name: String },
    /// Close everything and end.
    End,
    /// Serve interfaces that are added from now on by so many threads.
    Spread { threads: u16 },
    /// As `SetPeers`, for several interfaces.
    SetPeersOf { interfaces: Vec<(String, Vec<PeerConfig>)> },
}

/// What the engine answers.
#[derive(Serialize, Deserialize)]
pub(super) enum Reply {
    /// It is so.
    Done,
    /// It is not.
    Refused(Refusal),
    /// An interface of the inventory; with the same descriptors as it was added with.
    Interface { id: String, config: Config, peers: Vec<PeerConfig> },
    /// Something held for the agent; with its descriptors.
    Kept { name: String },
    /// The inventory ends; for how long this engine has been running.
    All { uptime: Duration },
    /// What was to be observed, if there is such an interface.
    State(Option<InterfaceState>),
}

/// [`EngineError`] as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    NoInterface(String),
    Exists(String),
    Full(String),
    Ended,
    /// An errno, or 0.
    Io(i32),
}

impl Config {
    pub(super) fn new(
        private_key: &PrivateKey,
        mtu: u32,
        address: Ipv4Addr,
        address6: Option<Ipv6Addr>,
    ) -> Config {
        Config { private_key: private_key.0, mtu, address, address6 }
    }

    pub(super) fn private_key(&self) -> PrivateKey {
        PrivateKey(self.private_key)
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Refusal {
        match error {
            EngineError::NoInterface(id) => Refusal::NoInterface(id),
            EngineError::Exists(id) => Refusal::Exists(id),
            EngineError::Full(id) => Refusal::Full(id),
            EngineError::Io(error) => Refusal::Io(error.raw_os_error().unwrap_or_default()),
            EngineError::Ended | EngineError::Version { .. } | EngineError::Unreachable(_) => Refusal::Ended,
        }
    }
}

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> EngineError {
        match refusal {
            Refusal::NoInterface(id) => EngineError::NoInterface(id),
            Refusal::Exists(id) => EngineError::Exists(id),
            Refusal::Full(id) => EngineError::Full(id),
            Refusal::Ended => EngineError::Ended,
            Refusal::Io(errno) => EngineError::Io(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(frame: &impl Serialize) -> String {
        postcard::to_allocvec(frame).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn greetings_are_as_they_always_were() {
        assert_eq!(&greeting(0x0201, 0x0403), b"warren-engine\0\x01\x02\x03\x04\0\0");
        for (bytes, said) in [
            (greeting(7, 1234), Some((7, 1234))),
            (*b"GET / HTTP/1.1\r\n\r\n\r\n", None),
            ([0; GREETING_BYTES], None),
        ] {
            assert_eq!(greeted(&bytes), said, "{bytes:?}");
        }
    }

    /// An engine outlives the agent that started it: these bytes are read by builds to come.
    #[test]
    fn frames_of_versions_2_and_3_are_as_they_always_were() {
        assert_eq!(VERSION, 3, "a new version gets vectors of its own, and these stay");
        let id = || "m".to_owned();
        let (address, address6) = ([10, 240, 0, 1].into(), Some("fd00::1".parse().unwrap()));
        let config = || Config::new(&PrivateKey([7; 32]), 1390, address, address6);
        let key = Key([9; 32]);
        let peer = || PeerConfig {
            key,
            endpoint: "10.240.0.2:51820".parse().unwrap(),
            allowed: ["10.240.0.2".parse().unwrap(), "fd00::2".parse().unwrap()].into(),
            greet: true,
        };
        let (k7, k9) = ("07".repeat(32), "09".repeat(32));
        let ula = |n: u8| format!("fd{}{n:02x}", "00".repeat(14));
        let of_config = format!("{k7}ee0a0af0000101{}", ula(1));
        let of_peer = format!("{k9}0af00002ec940302000af0000201{}01", ula(2));
        let requests = [
            (Request::Inventory, "00".to_owned()),
            (
                Request::Add { id: id(), config: config(), peers: vec![peer()] },
                format!("01016d{of_config}01{of_peer}"),
            ),
            (Request::Remove { id: id() }, "02016d".to_owned()),
            (Request::SetMtu { id: id(), mtu: 1390 }, "03016dee0a".to_owned()),
            (Request::SetAddress { id: id(), address, address6: None }, "04016d0af0000100".to_owned()),
            (Request::SetPeers { id: id(), peers: vec![peer()] }, format!("05016d01{of_peer}")),
            (Request::RemovePeers { id: id(), peers: vec![key] }, format!("06016d01{k9}")),
            (Request::Observe { id: id() }, "07016d".to_owned()),
            (Request::Keep { name: id() }, "08016d".to_owned()),
            (Request::Release { name: id() }, "09016d".to_owned()),
            (Request::End, "0a".to_owned()),
            (Request::Spread { threads: 300 }, "0bac02".to_owned()),
            (Request::SetPeersOf { interfaces: vec![(id(), vec![peer()])] }, format!("0c01016d01{of_peer}")),
        ];
        for (number, (frame, expected)) in requests.iter().enumerate() {
            assert_eq!(hex(frame), *expected, "request {number}");
        }
        let replies = [
            (Reply::Done, "00".to_owned()),
            (Reply::Refused(Refusal::Exists(id())), "0101016d".to_owned()),
            (Reply::Interface { id: id(), config: config(), peers: vec![] }, format!("02016d{of_config}00")),
            (Reply::Kept { name: id() }, "03016d".to_owned()),
            (Reply::All { uptime: Duration::from_millis(1500) }, "040180cab5ee01".to_owned()),
            (Reply::State(None), "0500".to_owned()),
        ];
        for (number, (frame, expected)) in replies.iter().enumerate() {
            assert_eq!(hex(frame), *expected, "reply {number}");
        }
    }

    #[test]
    fn refusals_come_back_as_what_they_were() {
        for error in [
            EngineError::NoInterface("a".into()),
            EngineError::Exists("a".into()),
            EngineError::Full("a".into()),
            EngineError::Ended,
            EngineError::Io(io::Error::from_raw_os_error(libc::EPERM)),
        ] {
            let text = error.to_string();
            assert_eq!(EngineError::from(Refusal::from(error)).to_string(), text);
        }
    }
}
