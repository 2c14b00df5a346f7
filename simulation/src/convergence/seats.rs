//! A region of gossip seats without the agents above them.
//!
//! What is measured here is how news travels; an agent only looks at the view in the end. NetworkDB's
//! own harness leaves the overlay driver out too.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use gossip::config::WallClock;
use gossip::id::{AppId, HostId, MemberId, NetworkId, Region};
use gossip::memory::{Link, MemoryNetwork};
use gossip::record::{HostRecord, MemberRecord, MemberState, NetworkRecord, PublicKey, Record};
use gossip::{Arrival, Change, Config, Gossip, Interner, Timings, View};
use tokio::sync::watch;
use tokio::time::Instant;

/// Every host joins by the first two.
const SEEDS: usize = 2;

/// How the region's news travels.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What all links are like.
    pub links: Link,
    /// Whether changes are pushed at once; chitchat's rounds alone carry them otherwise.
    pub eager: bool,
    /// Between two rounds of chitchat.
    pub interval: Duration,
}

/// The seats of a region.
pub struct Seats {
    /// What they meet on.
    pub network: MemoryNetwork,
    /// The seats, taken or not, by number.
    pub seats: Vec<Option<Seat>>,
    region: Region,
    parsed: Interner,
    setting: Setting,
    clock: WallClock,
}

/// One host's seat.
pub struct Seat {
    /// Its name.
    pub id: HostId,
    gossip: Gossip,
    views: watch::Receiver<Arc<View>>,
}

impl Seat {
    /// What it sees now.
    pub fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// Bytes it has sent, of all kinds; payload, before QUIC.
    pub fn sent(&self) -> u64 {
        let counters = self.gossip.counters();
        let of_kind = |kind| counters.get("gossip_bytes_total", &[("direction", "out"), ("kind", kind)]);
        ["envelope", "frame", "ask", "answer"].map(of_kind).iter().sum()
    }

    /// Publishes changes of its own records.
    pub async fn publish(&self, changes: Vec<Change>) -> anyhow::Result<()> {
        Ok(self.gossip.publish(changes).await?)
    }
}

impl Seats {
    /// A region in which nobody has a seat yet.
    pub fn new(hosts: usize, setting: Setting) -> anyhow::Result<Seats> {
        let network = MemoryNetwork::new();
        network.set_links(setting.links.clone());
        let began = Instant::now();
        let clock = move || 1_700_000_000_000_000_000 + began.elapsed().as_nanos() as u64;
        Ok(Seats {
            network,
            seats: (0..hosts).map(|_| None).collect(),
            region: "simulated".parse()?,
            parsed: Interner::shared(),
            setting,
            clock: Arc::new(clock),
        })
    }

    /// What host `number` needs to take its seat with these members, for a task of its own.
    pub fn arrival(
        &self,
        number: usize,
        members: usize,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<Seat>> + Send + 'static> {
        let id = name(number)?;
        let address = address(number);
        let config = Config {
            region: self.region.clone(),
            host: id.clone(),
            listen: address,
            advertise: address,
            seeds: (0..SEEDS).map(|seed| self::address(seed).to_string()).collect(),
            interval: self.setting.interval,
            known: Vec::new(),
            generation_floor: 0,
            timings: Timings::of(self.setting.interval),
            eager: self.setting.eager,
            plain_digests: false,
            parsed: self.parsed.clone(),
            now_ns: self.clock.clone(),
        };
        let wire = self.network.wire(&self.region, &id, address);
        let records = records(number, members)?;
        Ok(async move {
            let arrival = Arrival::at(config, wire).await.with_context(|| id.to_string())?;
            let (gossip, _) = arrival.join(records, |_| Ok(())).await.with_context(|| id.to_string())?;
            let views = gossip.view();
            Ok(Seat { id, gossip, views })
        })
    }

    /// The seats that are taken, with their numbers.
    pub fn taken(&self) -> impl Iterator<Item = (usize, &Seat)> {
        self.seats.iter().enumerate().filter_map(|(number, seat)| Some((number, seat.as_ref()?)))
    }

    /// A seat that is taken.
    pub fn seat(&self, number: usize) -> anyhow::Result<&Seat> {
        self.seats.get(number).and_then(Option::as_ref).with_context(|| format!("host {number} has no seat"))
    }
}

/// A host's name: 12 hex digits that compress as badly as those of real machines, for digests are
/// compressed and their length is measured.
pub fn name(number: usize) -> anyhow::Result<HostId> {
    let scattered = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(format!("{:012x}", scattered >> 16).parse()?)
}

/// Where a host's agent gossips.
pub fn address(number: usize) -> SocketAddr {
    let [.., high, low] = number.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, 0, high, low), 7946))
}

/// The one network of the region.
pub fn network() -> NetworkId {
    "pn-00000000-0000-4000-8000-000000000001".parse().expect("a network's name")
}

/// The host's word on the network: it takes part in it.
pub fn takes_part() -> Record {
    let subnet = "10.240.0.0/22".parse().expect("a subnet");
    Record::Network(
        network(),
        NetworkRecord { counter: 1, vni: 4711, subnet, forwarding: None, unknown: BTreeMap::new() },
    )
}

/// The name of one of a host's members.
pub fn member_id(host: usize, number: usize) -> MemberId {
    format!("{host:08x}{number:08x}").parse().expect("a member's name")
}

/// One of a host's members.
pub fn member(host: usize, number: usize, counter: u64, state: MemberState) -> Record {
    let app: AppId = "ap-00000000-0000-4000-8000-000000000002".parse().expect("an app's name");
    let mut key = [0; 32];
    // Keys are as random as real ones, so that they compress as badly.
    rand::fill(&mut key);
    let record = MemberRecord {
        counter,
        state,
        app,
        process: "web".parse().expect("a process type"),
        ordinal: Some(number as u32 + 1),
        ordinal_chosen: false,
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 240, 0, 0).to_bits() + (host * 64 + number) as u32),
        address6: None,
        key: PublicKey(key),
        ports: Vec::new(),
        unknown: BTreeMap::new(),
    };
    Record::Member(network(), member_id(host, number), record)
}

/// What a host starts with; without members it takes no part in the network.
fn records(number: usize, members: usize) -> anyhow::Result<Vec<Record>> {
    let vtep = SocketAddr::new(address(number).ip(), 4789);
    let host = HostRecord { counter: 1, ..HostRecord::new(name(number)?, vtep, 1500) };
    let members = (0..members).map(|at| member(number, at, 1, MemberState::Ready));
    let part: Vec<Record> = members.collect();
    let part = if part.is_empty() { part } else { [vec![takes_part()], part].concat() };
    Ok([part, vec![Record::Host(host)]].concat())
}
