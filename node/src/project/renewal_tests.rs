//! However a network came to be as it is, its projection is the same.

use std::collections::BTreeMap;
use std::time::Duration;

use gossip::record::PublicKey;
use netplumb::state::{Guard, Network, PrivateKey};
use proptest::prelude::*;
use resolver::ZoneMember;
use tokio::time::Instant;

use super::fixtures;
use super::*;
use crate::claims::fixtures::{Region, address, apply, edit, host, member, pn};
use crate::claims::{Changes, Extent};

/// Host `h0`, whose member 0 is on disk and may be on another's address.
fn own(region: &Region) -> Vec<Entry> {
    let records = region.view.hosts.get(&host("h0")).map(|h| &h.records.members);
    let record = records.and_then(|members| members.get(&(pn(), member(0))));
    let entry = |record: &MemberRecord| Entry {
        member: member(0),
        address: record.address,
        ordinal: record.ordinal,
        state: record.state,
        counter: record.counter,
        private_key: PrivateKey([7; 32]),
        public_key: PublicKey(record.key.0),
        ..fixtures::entry(1, record.state)
    };
    record.map(entry).into_iter().collect()
}

proptest! {
    #[test]
    fn renewing_is_projecting_whole(edits in prop::collection::vec(edit(), 1..40), pause in 0usize..4) {
        let here = Here {
            region: "r".parse().unwrap(),
            host: host("h0"),
            vtep: Vtep { address: "192.0.2.9".parse().unwrap(), port: 4789 },
            underlay_mtu: 1500,
            guard: Guard::None,
        };
        let start = Instant::now();
        let mut region = Region::default();
        let mut followed = region.view.clone();
        let mut ledger = Ledger::default();
        ledger.open(pn(), &followed);
        let mut last: Option<(Network, Vec<Entry>)> = None;
        let mut named: BTreeMap<Ipv4Addr, ZoneMember> = BTreeMap::new();
        for (i, edit) in edits.into_iter().enumerate() {
            apply(&mut region, edit, start + Duration::from_secs(i as u64));
            if i % (pause + 1) != 0 {
                continue;
            }
            let touched = ledger.follow(&Changes::between(&followed, &region.view)).touched;
            followed = region.view.clone();
            let names_of = |addresses: &mut dyn Iterator<Item = Ipv4Addr>| {
                let name = |address| Some((address, zone_member(&followed, &ledger, pn(), address)?));
                addresses.filter_map(name).collect::<BTreeMap<_, _>>()
            };
            let all = names_of(&mut (1..5).map(address));
            match touched.of(&pn()) {
                Some(Extent::Addresses(addresses)) => {
                    named.retain(|address, _| !addresses.contains(address));
                    named.extend(names_of(&mut addresses.iter().copied()));
                }
                Some(Extent::Whole) => named.clone_from(&all),
                None => {}
            }
            prop_assert_eq!(&named, &all);
            let entries = own(&region);
            let own: Vec<&Entry> = entries.iter().collect();
            let world = World { view: &followed, ledger: &ledger, here: &here, mtu: 1450, young: &|_| false };
            let anew = whole(&world, pn(), &own);
            // What the journal changes is projected whole, as in the agent.
            if let Some((last, _)) = last.take().filter(|(_, before)| *before == entries)
                && let Some(anew) = &anew
            {
                let network = match touched.of(&pn()) {
                    Some(Extent::Addresses(addresses)) => match renewed(&world, pn(), &own, &last, addresses) {
                        Renewed::Same => Some(last),
                        Renewed::Changed(network) => Some(network),
                        Renewed::Tangled => None,
                    },
                    Some(Extent::Whole) => None,
                    None => Some(last),
                };
                if let Some(network) = network {
                    prop_assert_eq!(&network, &anew.network);
                }
            }
            last = anew.filter(|anew| !anew.tangled).map(|anew| (anew.network, entries));
        }
    }
}
