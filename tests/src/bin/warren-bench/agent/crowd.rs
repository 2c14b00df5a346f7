//! The other hosts of a large region: seats that gossip as agents do, on QUIC with certificates of their own, and have
//! no containers. All are in one namespace, on ports of their own.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use gossip::id::{HostId, NetworkId};
use gossip::quic::Quic;
use gossip::record::{HostRecord, MemberRecord, MemberState, NetworkRecord, PublicKey, Record};
use gossip::{Arrival, Ask, Config, Gossip, Identity, Interner, Timings};
use serde_json::{Value, json};
use tests::host::GOSSIP_PORT;
use tests::lab::{REGION, warren};
use tests::wait::{eventually, seconds, want};
use tests::{Host, Lab};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Between two rounds of gossip.
const INTERVAL: Duration = Duration::from_millis(500);
/// How many join at once.
const DOOR: usize = 12;
/// VNI of the first network.
const VNI: u32 = 5000;

/// How large a region is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Its hosts, the one that is no part of the crowd included.
    pub hosts: usize,
    /// Members of each host in each network.
    pub members: usize,
    /// Its networks.
    pub networks: usize,
}

/// Seats that are taken; they end with it.
pub struct Crowd {
    seats: Vec<Gossip>,
    _runtime: Runtime,
}

/// The region's networks by number.
pub fn network(number: usize) -> String {
    format!("pn-00000000-0000-4000-8000-{number:012x}")
}

/// The one app of a network.
pub fn app(number: usize) -> String {
    format!("ap-00000000-0000-4000-8000-{number:012x}")
}

impl Crowd {
    /// Takes all seats of a region but one, in the namespace of a host without an agent, whose address and certificate
    /// the first one has. All see each other when this returns.
    pub fn join(lab: &Lab, place: &Host, size: Size) -> io::Result<Crowd> {
        let (region, address) = (lab.dir().join("region"), place.address());
        let identities = identities(&region, place, size.hosts - 1)?;
        let netns = place.netns().clone();
        // Threads have the namespace of the one that starts them.
        let joining = std::thread::spawn(move || -> io::Result<Crowd> {
            netns.enter_for_good()?;
            let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let seats = runtime.block_on(take_all(identities, address, size))?;
            Ok(Crowd { seats, _runtime: runtime })
        });
        let crowd = joining.join().map_err(|_| io::Error::other("the crowd's thread panicked"))??;
        // Meanwhile each connects to each, 4,851 pairs.
        eventually(seconds(300), "the crowd sees itself", || {
            let seen = crowd.seats.iter().map(|seat| seat.view().borrow().answering().count()).min();
            want(seen == Some(size.hosts - 1), seen)
        });
        Ok(crowd)
    }
}

fn identities(region: &Path, place: &Host, count: usize) -> io::Result<Vec<Identity>> {
    let (dir, address) = (region.display().to_string(), place.address().to_string());
    let name = |number: usize| match number {
        0 => place.name().to_owned(),
        number => format!("{}-{number:03}", place.name()),
    };
    let load = |number: usize| {
        let name = name(number);
        if number > 0 {
            warren(&["region", "issue", "--dir", &dir, "--host", &name, "--address", &address]).ok();
        }
        let [cert, key] = ["pem", "key"].map(|kind| region.join(format!("{name}.{kind}")));
        Identity::load(&region.join("ca.pem"), &cert, &key).map_err(io::Error::other)
    };
    (0..count).map(load).collect()
}

async fn take_all(identities: Vec<Identity>, address: IpAddr, size: Size) -> io::Result<Vec<Gossip>> {
    let (mut seats, mut joining) = (Vec::new(), JoinSet::new());
    let numbers = AtomicU32::new((size.hosts * size.members) as u32);
    let shared = (Interner::shared(), Arc::new(numbers));
    for (number, identity) in identities.into_iter().enumerate() {
        eprint!("\r{number} hosts have joined  ");
        // The second one joins by the first one.
        if joining.len() == DOOR || number == 1 {
            seats.extend(joining.join_next().await.transpose()?.transpose()?);
        }
        joining.spawn(take(number, identity, address, size, shared.clone()));
    }
    while let Some(seat) = joining.join_next().await {
        seats.push(seat??);
    }
    eprintln!();
    Ok(seats)
}

async fn take(
    number: usize,
    identity: Identity,
    address: IpAddr,
    size: Size,
    (parsed, numbers): (Interner, Arc<AtomicU32>),
) -> io::Result<Gossip> {
    let place = |number: usize| SocketAddr::new(address, GOSSIP_PORT + number as u16);
    let at = place(number);
    let config = Config {
        region: REGION.parse().map_err(io::Error::other)?,
        host: identity.host.clone(),
        listen: at,
        advertise: at,
        seeds: [0, number.saturating_sub(DOOR + 1)].map(|seed| place(seed).to_string()).into(),
        interval: INTERVAL,
        known: Vec::new(),
        generation_floor: 0,
        timings: Timings::of(INTERVAL),
        // What all publish as they join would be pushed to everybody eight times.
        eager: false,
        plain_digests: false,
        parsed,
        now_ns: Arc::new(gossip::unix_ns),
    };
    let records = records(number, &identity.host, size)?;
    let wire = Quic::bind(at, at, &identity).await.map_err(io::Error::other)?;
    let arrival = Arrival::at(config, wire).await.map_err(io::Error::other)?;
    let (gossip, asks) = arrival.join(records, |_| Ok(())).await.map_err(io::Error::other)?;
    tokio::spawn(judge(asks, numbers));
    // The next ones find it among those that know the region.
    let heard = |view: &Arc<gossip::View>| number == 0 || view.answering().count() > 1;
    let mut views = gossip.view();
    views.wait_for(heard).await.map_err(io::Error::other)?;
    drop(views);
    Ok(gossip)
}

/// There is no agent behind it, but it is a judge: what its asker found free is given, for nobody else asks.
async fn judge(mut asks: mpsc::Receiver<Ask>, numbers: Arc<AtomicU32>) {
    while let Some(ask) = asks.recv().await {
        if let Some(answer) = answer(&ask.body, &numbers) {
            // It fails when the asker has given up.
            let _ = ask.reply.send(answer);
        }
    }
}

fn answer(question: &[u8], numbers: &AtomicU32) -> Option<Vec<u8>> {
    let question: Value = serde_json::from_slice(question).ok()?;
    let claim = question.get("claim")?;
    let answer = match claim.get("address") {
        Some(asked) => json!({ "address": asked["preferred"] }),
        None => claim.get("ordinal").map(|_| json!({ "ordinal": numbers.fetch_add(1, Relaxed) }))?,
    };
    serde_json::to_vec(&answer).ok()
}

fn records(number: usize, host: &HostId, size: Size) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for network in 0..size.networks {
        let id: NetworkId = self::network(network).parse().map_err(io::Error::other)?;
        let subnet = "10.240.0.0/22".parse().map_err(io::Error::other)?;
        let vni = VNI + network as u32;
        let word = NetworkRecord { counter: 1, vni, subnet, forwarding: None, unknown: BTreeMap::new() };
        records.push(Record::Network(id, word));
        for member in 0..size.members {
            let place = number * size.members + member;
            let name = format!("{number:04x}{network:04x}{member:08x}").parse().map_err(io::Error::other)?;
            records.push(Record::Member(id, name, self::member(network, place)?));
        }
    }
    // Nobody sends there: tunnel ends are in a documentation network (RFC 5737).
    let end = Ipv4Addr::from_bits(Ipv4Addr::new(198, 51, 100, 1).to_bits() + number as u32);
    let vtep = SocketAddr::from((end, 4789));
    records.push(Record::Host(HostRecord { counter: 1, ..HostRecord::new(host.clone(), vtep, 1500) }));
    Ok(records)
}

/// The member at the so-manieth address of a network.
fn member(network: usize, place: usize) -> io::Result<MemberRecord> {
    let mut key = [0; 32];
    rand::fill(&mut key);
    Ok(MemberRecord {
        counter: 1,
        state: MemberState::Ready,
        app: self::app(network).parse().map_err(io::Error::other)?,
        process: "web".parse().map_err(io::Error::other)?,
        ordinal: Some(place as u32 + 1),
        ordinal_chosen: false,
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 240, 0, 1).to_bits() + place as u32),
        address6: None,
        key: PublicKey(key),
        ports: Vec::new(),
        unknown: BTreeMap::new(),
    })
}
