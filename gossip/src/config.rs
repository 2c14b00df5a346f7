//! What joining a region takes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::id::{HostId, Region};
use crate::interner::Interner;
use crate::standing::Timings;

/// Everything [`Arrival::at`](crate::Arrival::at) needs to know.
#[derive(Clone)]
pub struct Config {
    /// The region to join; its name is the gossip cluster's id.
    pub region: Region,
    /// This host's name, as its certificate says.
    pub host: HostId,
    /// Where the wire listens.
    pub listen: SocketAddr,
    /// Where others reach this agent.
    pub advertise: SocketAddr,
    /// First hosts to ask, as `ip:port` or `name:port`; tried for ever, names resolved anew.
    pub seeds: Vec<String>,
    /// Gossip interval, the same in the whole region; never changes after the start.
    pub interval: Duration,
    /// Other hosts as last persisted; served until gossip says otherwise.
    pub known: Vec<KnownHost>,
    /// The lowest generation to use: one more than the last persisted one.
    pub generation_floor: u64,
    /// Bounds for the standing of hosts.
    pub timings: Timings,
    /// Whether changes are pushed at once. Without it chitchat's rounds alone carry them; the
    /// simulation compares.
    pub eager: bool,
    /// Parsed records, shared by all agents of one process: [`Interner::default`] for one agent,
    /// copies of one for many.
    pub parsed: Interner,
    /// The wall clock: nanoseconds since 1970. Used for generations only. [`unix_ns`] but in the
    /// simulation.
    pub now_ns: WallClock,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("region", &self.region)
            .field("host", &self.host)
            .field("advertise", &self.advertise)
            .field("seeds", &self.seeds)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// A wall clock: nanoseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's wall clock.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a node persists of another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHost {
    /// The host.
    pub host: HostId,
    /// Where its agent gossiped.
    pub address: SocketAddr,
    /// The generation the records are of.
    pub generation: u64,
    /// The version of that generation the records were complete up to.
    #[serde(default)]
    pub version: u64,
    /// Its records, in wire form.
    pub key_values: BTreeMap<String, String>,
}
