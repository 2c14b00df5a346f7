//! What joining a region takes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::id::{HostId, Region};
use crate::interner::Interner;
use crate::merge::ViewBuilder;
use crate::record::{Key, Record};
use crate::standing::Timings;
use crate::view::View;

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
    /// Whether digests are left uncompressed, in the whole region. chitchat compresses its own for each SYN to
    /// know how much room its answer has; where messages travel as values that is all it is compressed for.
    /// For regions of a thousand hosts at most: chitchat panics where a digest outgrows a datagram.
    pub plain_digests: bool,
    /// What all agents of one process share: [`Interner::default`] for one agent, copies of one
    /// [`Interner::shared`] for many.
    pub parsed: Interner,
    /// The wall clock: nanoseconds since 1970. Used for generations only. [`unix_ns`] but in the
    /// simulation.
    pub now_ns: WallClock,
}

impl Config {
    /// The view of an agent that has heard nobody yet: the other hosts as they were persisted.
    pub fn known_view(&self) -> View {
        // What is malformed is counted when it is joined with.
        let counters = Arc::default();
        let (known, parsed) = (&self.known, self.parsed.clone());
        let mut builder = ViewBuilder::new(&self.host, known, self.timings, counters, parsed, Instant::now());
        builder.build();
        View { whole: false, ..(**builder.view()).clone() }
    }
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

impl KnownHost {
    /// Its tunnel end's address; none where its host record cannot be read.
    pub fn vtep(&self) -> Option<IpAddr> {
        let value = self.key_values.get(&Key::Host.to_string())?;
        match Record::decode(&self.host.node_id(), &Key::Host.to_string(), value) {
            Ok(Record::Host(record)) => Some(record.vtep),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Standing;
    use crate::fixtures::{host, member};
    use crate::view::Via;

    fn known(name: &str, key_values: &[(&str, String)]) -> KnownHost {
        let key_values = key_values.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let address = SocketAddr::from(([192, 0, 2, 9], 7946));
        KnownHost { host: name.parse().unwrap(), address, generation: 7, version: 3, key_values }
    }

    #[tokio::test(start_paused = true)]
    async fn others_answer_as_they_were_persisted_until_somebody_is_heard() {
        let record = member(1);
        let member_key = record.key().to_string();
        let whole = [("host", host("b").encode()), (&member_key, record.encode()), ("mem/odd", "?".into())];
        let without_host = [(member_key.as_str(), record.encode())];
        let address = SocketAddr::from(([192, 0, 2, 1], 7946));
        let interval = Duration::from_millis(500);
        let config = Config {
            region: "r".parse().unwrap(),
            host: "a".parse().unwrap(),
            listen: address,
            advertise: address,
            seeds: Vec::new(),
            interval,
            known: vec![
                known("a", &[("host", host("a").encode())]),
                known("b", &whole),
                known("c", &without_host),
            ],
            generation_floor: 0,
            timings: Timings::of(interval),
            eager: true,
            plain_digests: false,
            parsed: Interner::default(),
            now_ns: Arc::new(|| 0),
        };
        let view = config.known_view();
        // Not this host itself, nor one without its `host` record; malformed records are skipped.
        let names: Vec<_> = view.hosts.keys().map(HostId::as_str).collect();
        assert_eq!(names, ["b"]);
        let other = &view.hosts[&"b".parse::<HostId>().unwrap()];
        assert_eq!((other.generation, other.standing, other.via), (7, Standing::Answering, Via::Disk));
        assert_eq!(other.records.members.len(), 1);
        assert!(!view.whole && !view.cut_off);
        // Knowing nobody is no knowledge of the region either.
        assert!(!Config { known: Vec::new(), ..config }.known_view().whole);
    }
}
