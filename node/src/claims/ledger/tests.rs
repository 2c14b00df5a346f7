use std::time::Duration;

use gossip::record::{Forwarding, NetworkRecord};
use proptest::prelude::*;

use super::super::fixtures::*;
use super::super::vni_candidate;
use super::*;

fn key(name: &str, id: u64) -> MemberKey {
    (host(name), pn(), member(id))
}

#[test]
fn the_lower_counter_then_host_then_member_holds() {
    use MemberState::*;
    let cases = [
        ("counter", ("b", 1, record(4, 1, Some(1), Ready)), ("a", 2, record(5, 1, Some(1), Ready))),
        ("host", ("a", 2, record(5, 1, Some(1), Ready)), ("b", 1, record(5, 1, Some(1), Joining))),
        ("member", ("a", 1, record(5, 1, Some(1), Joining)), ("a", 2, record(5, 1, Some(1), Ready))),
    ];
    for (what, winner, loser) in cases {
        for order in [[&winner, &loser], [&loser, &winner]] {
            let mut region = Region::default();
            for (name, id, record) in order {
                region.put(name, *id, record.clone());
            }
            let ledger = Ledger::of(&region.view);
            let holder = ledger.claims(pn()).holder(winner.2.address).unwrap();
            assert_eq!((&holder.host, &holder.member), (&host(winner.0), &member(winner.1)), "{what}");
            assert!(ledger.address_contested(&key(loser.0, loser.1), &loser.2), "{what}");
            assert!(ledger.ordinal_contested(&key(loser.0, loser.1), &loser.2), "{what}");
            assert!(!ledger.address_contested(&key(winner.0, winner.1), &winner.2), "{what}");
        }
    }
}

#[test]
fn a_released_member_holds_nothing_but_its_address_rests() {
    let mut region = Region::default();
    region.put("a", 1, record(4, 1, Some(1), MemberState::Released));
    let ledger = Ledger::of(&region.view);
    let claims = ledger.claims(pn());
    assert!(claims.holder(address(1)).is_none());
    assert_eq!(claims.at(address(1)).unwrap().phase, Phase::Released);
    let (app, web) = (AP.parse().unwrap(), "web".parse().unwrap());
    assert!(claims.at_number(app, &web, 1).is_none(), "a number is free at once");
    assert_eq!(ledger.next_counter(), 5, "a released claim still counts");
}

#[tokio::test(start_paused = true)]
async fn what_a_host_held_that_is_gone_are_ghosts_and_come_after_what_rests() {
    let start = Instant::now();
    let mut region = Region::of(&["a", "b"]);
    region.put("a", 1, record(1, 1, None, MemberState::Ready));
    region.put("a", 2, record(2, 2, None, MemberState::Released));
    region.put("b", 3, record(9, 3, None, MemberState::Released));
    region.put("b", 4, record(8, 4, None, MemberState::Released));
    region.stand("a", Standing::Gone, start);
    let ledger = Ledger::of(&region.view);
    let claims = ledger.claims(pn());
    assert!(claims.holder(address(1)).is_none());
    assert!(claims.at(address(2)).is_none(), "nobody's cache knows it any more");
    let spent: Vec<Ipv4Addr> = claims.spent(super::super::DEFAULT_SUBNET).iter().map(|(a, _)| *a).collect();
    assert_eq!(spent, [address(4), address(3), address(1)]);
    assert_eq!(claims.tally(), Tally { released: 2, ghosts: 1, ..Tally::default() });
}

#[test]
fn networks_agree_on_the_lowest_claim() {
    let mut region = Region::of(&["a", "b", "c"]);
    region.put_network("b", PN, claim(3, 30));
    region.put_network("a", PN, claim(4, 40));
    region.put_network("c", PN2, claim(9, 30));
    let ledger = Ledger::of(&region.view);
    assert_eq!(ledger.networks.get(pn()).unwrap().vni, 30);
    let other: NetworkId = PN2.parse().unwrap();
    let moved = ledger.networks.get(other).unwrap();
    assert_eq!((moved.vni, moved.counter), (vni_candidate(other, 0), 9), "the younger network moves on");
    assert_eq!(ledger.networks.holder(moved.vni), Some(other));
    // Its host has followed; nobody has to move again.
    region.put_network("c", PN2, moved.clone());
    assert_eq!(Ledger::of(&region.view).networks.get(other), Some(moved));
}

#[test]
fn a_host_that_is_gone_has_no_word_where_another_has() {
    let mut region = Region::of(&["a", "b"]);
    region.put_network("a", PN, claim(1, 10));
    region.put_network("b", PN, claim(2, 20));
    region.host("a").standing = Standing::Gone;
    assert_eq!(Ledger::of(&region.view).networks.get(pn()).unwrap().vni, 20);
    region.remove_network("b", PN);
    assert_eq!(Ledger::of(&region.view).networks.get(pn()).unwrap().vni, 10);
}

#[test]
fn what_is_said_last_of_other_names_holds() {
    let mut region = Region::of(&["a", "b", "c"]);
    let said = |counter, off| Some(Forwarding { counter, off });
    region.put_network("a", PN, claim(1, 10));
    region.put_network("b", PN, NetworkRecord { forwarding: said(7, true), ..claim(2, 20) });
    let mut ledger = Ledger::of(&region.view);
    assert_eq!(
        ledger.networks.get(pn()),
        Some(NetworkRecord { forwarding: said(7, true), ..claim(1, 10) }),
        "whoever has the lowest claim"
    );
    assert_eq!(ledger.next_counter(), 8, "the next word is later");
    let mut follow = |region: &Region, before: &View| {
        let touched = ledger.follow(&Changes::between(before, &region.view)).touched;
        (touched.of(&pn()).is_some(), ledger.networks.get(pn()).unwrap().forwards())
    };
    let before = region.view.clone();
    region.put_network("c", PN, NetworkRecord { forwarding: said(8, false), ..claim(9, 10) });
    assert_eq!(follow(&region, &before), (true, true));
    let before = region.view.clone();
    region.host("c").standing = Standing::Gone;
    assert!(follow(&region, &before).1, "it has not been taken back");
    let before = region.view.clone();
    region.put_network("a", PN, NetworkRecord { forwarding: said(8, true), ..claim(1, 10) });
    assert_eq!(follow(&region, &before), (true, false), "said at once, \"off\" holds");
}

#[test]
fn only_open_networks_are_kept() {
    let mut region = Region::of(&["a"]);
    let mut ledger = Ledger::default();
    let before = region.view.clone();
    region.put("a", 1, record(1, 1, None, MemberState::Ready));
    let touched = ledger.follow(&Changes::between(&before, &region.view)).touched;
    assert!(touched.of(&pn()).is_some(), "what is not open is told of all the same");
    assert!(ledger.claims(pn()).holder(address(1)).is_none());
    assert!(ledger.open(pn(), &region.view).holder(address(1)).is_some());
    ledger.close_others(&BTreeSet::new());
    assert!(ledger.claims(pn()).holder(address(1)).is_none());
    assert_eq!(ledger.counter_max, 1);
}

proptest! {
    /// However a view came about, its books are the same: what a host follows step by step is what
    /// one that starts now reads off.
    #[test]
    fn following_is_reading_anew(edits in prop::collection::vec(edit(), 1..40), pause in 0usize..4) {
        let start = Instant::now();
        let mut region = Region::default();
        let mut followed = region.view.clone();
        let mut ledger = Ledger { open: Open::All, ..Ledger::default() };
        let count = edits.len();
        for (i, edit) in edits.into_iter().enumerate() {
            apply(&mut region, edit, start + Duration::from_secs(i as u64));
            if i % (pause + 1) == 0 || i + 1 == count {
                ledger.follow(&Changes::between(&followed, &region.view));
                followed = region.view.clone();
            }
        }
        let mut anew = Ledger::of(&region.view);
        prop_assert!(ledger.counter_max >= anew.counter_max, "a counter once seen is not given again");
        anew.counter_max = ledger.counter_max;
        for ledger in [&mut ledger, &mut anew] {
            ledger.claims.retain(|_, claims| *claims != Claims::default());
        }
        prop_assert_eq!(ledger, anew);
    }

    /// Law 4, in any view: an address has one holder, and who does not hold is contested.
    #[test]
    fn any_view_has_one_holder_for_each_thing(edits in prop::collection::vec(edit(), 1..40)) {
        let start = Instant::now();
        let mut region = Region::default();
        edits.into_iter().for_each(|edit| apply(&mut region, edit, start));
        let ledger = Ledger::of(&region.view);
        let mut held = 0;
        for (name, h) in region.view.hosts.iter().filter(|(_, h)| h.standing != Standing::Gone) {
            for ((pn, id), record) in h.records.members.iter().filter(|(_, r)| r.state != MemberState::Released) {
                let key = (name.clone(), *pn, id.clone());
                let holder = ledger.claims(*pn).holder(record.address).unwrap();
                let holds = (&holder.host, &holder.member) == (name, id);
                prop_assert_eq!(!holds, ledger.address_contested(&key, record));
                held += usize::from(holds);
            }
        }
        let vnis: BTreeSet<u32> = ledger.networks.iter().map(|(_, record)| record.vni).collect();
        prop_assert_eq!(vnis.len(), ledger.networks.len(), "one network for each VNI");
        prop_assert_eq!(held, ledger.claims(pn()).tally().held);
    }
}
