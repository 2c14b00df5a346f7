//! What one host's write costs another in a large region: `cargo test --release -p node --lib
//! claims::scale -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use gossip::View;
use gossip::id::{AppId, NetworkId};
use gossip::record::{MemberRecord, MemberState, NetworkRecord};
use gossip::view::HostRecords;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::fixtures::*;
use super::*;
use crate::project::{self, Here};

const HOSTS: u64 = 1000;
const MEMBERS: u64 = 20;
const NETWORKS: u64 = 200;
const ROUNDS: u32 = 200;

/// A region of 1,000 hosts with 20 members each, 100 in each network.
fn region() -> (Region, Vec<NetworkId>) {
    let networks: Vec<NetworkId> = (0..NETWORKS).map(|_| NetworkId::random()).collect();
    let app = AppId::random();
    let mut region = Region::default();
    region.view.whole = true;
    for host in 0..HOSTS {
        let h = region.host(&format!("host-{host}"));
        let mut records = HostRecords::clone(&h.records);
        for i in 0..MEMBERS {
            let number = host * MEMBERS + i;
            let network = networks[(number % NETWORKS) as usize];
            let last = (number / NETWORKS) as u16 + 1;
            let mut member_record = record(number, last, Some(u32::from(last)), MemberState::Ready);
            member_record.app = app;
            records.members.insert((network, member(number)), member_record);
            let claim = NetworkRecord {
                counter: 1,
                vni: 10 + (number % NETWORKS) as u32,
                subnet: DEFAULT_SUBNET,
                forwarding: None,
                unknown: BTreeMap::new(),
            };
            records.networks.insert(network, claim);
        }
        h.records = Arc::new(records);
    }
    (region, networks)
}

fn time(what: &str, mut work: impl FnMut(u32)) -> Duration {
    let began = Instant::now();
    (0..ROUNDS).for_each(&mut work);
    let each = began.elapsed() / ROUNDS;
    println!("{what}: {each:?}");
    each
}

/// The view after one member of the last host changed its address.
fn written(view: &View, network: NetworkId, round: u32) -> View {
    let mut view = view.clone();
    let h = view.hosts.get_mut(&host("host-999")).unwrap();
    let mut records = HostRecords::clone(&h.records);
    let changed: &mut MemberRecord =
        records.members.iter_mut().find(|((pn, _), _)| *pn == network).map(|(_, r)| r).unwrap();
    changed.address = Ipv4Addr::from_bits(changed.address.to_bits() ^ (0x200 + (round & 1)));
    (h.records, h.version) = (Arc::new(records), h.version + 1);
    view
}

#[test]
#[ignore = "measures; run it alone, in release"]
fn one_write_in_a_region_of_a_thousand_hosts() {
    let (region, networks) = region();
    let mine = networks[(999 * MEMBERS % NETWORKS) as usize];
    let views: Vec<View> = std::iter::successors(Some((region.view.clone(), 0)), |(view, round)| {
        Some((written(view, mine, *round), round + 1))
    })
    .take(ROUNDS as usize + 1)
    .map(|(view, _)| view)
    .collect();
    let mut ledger = Ledger::default();
    let mut bench = Bench::new(host("host-0"), Duration::from_secs(5), Instant::now());
    let nothing = View::default();
    let first = Changes::between(&nothing, &views[0]);
    let began = Instant::now();
    ledger.follow(&first);
    bench.follow(&first, Instant::now());
    ledger.open(mine, &views[0]);
    println!("the first view: {:?}", began.elapsed());
    time("the books of all networks anew", |_| drop(black_box(Ledger::of(&views[0]))));
    let changes = time("what changed", |i| {
        drop(black_box(Changes::between(&views[i as usize], &views[i as usize + 1])));
    });
    let followed = time("what changed, ledger and bench", |i| {
        let changes = Changes::between(&views[i as usize], &views[i as usize + 1]);
        black_box(ledger.follow(&changes));
        bench.follow(&changes, Instant::now());
    });
    let here = Here {
        region: "r".parse().unwrap(),
        host: host("host-0"),
        vtep: netplumb::state::Vtep { address: "192.0.2.1".parse().unwrap(), port: 4789 },
        underlay_mtu: 1500,
        guard: netplumb::state::Guard::None,
    };
    let addresses: Vec<Ipv4Addr> = ledger.claims(mine).addresses().map(|(address, _)| address).collect();
    time("the names of the network", |_| {
        for address in &addresses {
            drop(black_box(project::zone_member(&views[0], &ledger, mine, *address)));
        }
    });
    time("the MTU", |_| _ = black_box(project::fabric_mtu(&views[0], &here)));
    bench.publish(Instant::now());
    let (mut grants, mut rng) = (Grants::new(Duration::from_secs(5)), SmallRng::seed_from_u64(1));
    let need = Need {
        network: mine,
        subnet: DEFAULT_SUBNET,
        address: desk::Wanted::Any,
        number: Some(desk::Number { app: AppId::random(), process: "web".parse().unwrap(), chosen: None }),
    };
    time("whom to ask for an address and a number", |_| {
        let now = Instant::now() + Duration::from_secs(5);
        let mut desk = Desk { ledger: &ledger, bench: &bench, grants: &mut grants, now };
        drop(black_box(desk.next(&need, &mut Told::default(), &mut rng)));
    });
    assert!(followed < changes + Duration::from_micros(200), "{followed:?}");
}
