//! The timelines by which the rules were found.

mod world;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::record::{MemberState, NetworkRecord};
use gossip::standing::Standing;
use proptest::prelude::*;
use tokio::time::Instant;

use super::desk::{Number, ROUNDS_MAX, Refused, Wanted};
use super::fixtures::*;
use super::ledger::Phase;
use super::*;
use world::{HOLD, World};

fn need() -> Need {
    Need {
        network: pn(),
        subnet: DEFAULT_SUBNET,
        address: Wanted::Any,
        number: Some(Number { app: AP.parse().unwrap(), process: "web".parse().unwrap(), chosen: None }),
    }
}

fn address_question(preferred: Ipv4Addr, chosen: bool) -> Question {
    Question::Address { network: pn(), subnet: DEFAULT_SUBNET, preferred, chosen }
}

/// The host that ranks highest for a thing.
fn top(names: &[&str], thing: &Thing) -> HostId {
    names.iter().map(|n| host(n)).max_by_key(|h| rank(thing.hash(), hash(h.as_str().as_bytes()))).unwrap()
}

fn judged_by(names: &[&str], judge: &str) -> Ipv4Addr {
    let mut addresses = DEFAULT_SUBNET.hosts();
    addresses.find(|a| top(names, &Thing::Address(pn(), *a)).as_str() == judge).unwrap()
}

/// 1: two hosts want one thing before either has heard of the other's claim.
#[tokio::test(start_paused = true)]
async fn one_judge_gives_a_thing_once() {
    let region = Region::of(&["a", "b", "c"]);
    let mut world = World::settled(&["a", "b", "c"], &region);
    let wanted = judged_by(&["a", "b", "c"], "c");
    let first = world.judge(&host("c"), &host("a"), &address_question(wanted, false));
    assert_eq!(first, Some(Answer::Address(wanted)));
    let Some(Answer::Address(second)) = world.judge(&host("c"), &host("b"), &address_question(wanted, false))
    else {
        panic!("c has more to give");
    };
    assert_ne!(second, wanted);
    let chosen = world.judge(&host("c"), &host("b"), &address_question(wanted, true));
    assert_eq!(chosen, Some(Answer::Taken { host: host("a"), member: None }), "the refusal says who has it");
    // The answer was lost; a asks again.
    let again = world.judge(&host("c"), &host("a"), &address_question(wanted, true));
    assert_eq!(again, Some(Answer::Address(wanted)));
}

/// 2: a new host outranks others for things that are in use for weeks.
#[tokio::test(start_paused = true)]
async fn giving_up_is_at_once_and_taking_up_late() {
    let mut region = Region::of(&["a", "b"]);
    let mut world = World::settled(&["a", "b"], &region);
    region.host("new");
    let wanted = judged_by(&["a", "b", "new"], "new");
    let thing = Thing::Address(pn(), wanted);
    let before = top(&["a", "b"], &thing);
    assert_eq!(
        world.judge(&before, &host("a"), &address_question(wanted, true)),
        Some(Answer::Address(wanted))
    );
    world.show_all(&region);
    world.start("new", &region);
    assert_eq!(
        world.judge(&before, &host("a"), &address_question(wanted, true)),
        Some(Answer::NotMine(host("new"))),
        "a and b give up at once"
    );
    let early = world.judge(&host("new"), &host("b"), &address_question(wanted, true));
    assert!(matches!(early, Some(Answer::NotYet(_))), "{early:?}");
    world.pass(HOLD);
    let late = world.judge(&host("new"), &host("b"), &address_question(wanted, true));
    assert_eq!(late, Some(Answer::Address(wanted)), "what a claims is in the view by now, or was given up");
}

/// 2: fifty attaches on a host that has only just started, while the others redeploy.
#[tokio::test(start_paused = true)]
async fn a_new_host_asks_the_others_and_waits_for_nobody() {
    let mut region = Region::of(&["a", "b", "c"]);
    let mut world = World::settled(&["a", "b", "c"], &region);
    world.attach("a", &need(), &mut region).unwrap();
    world.show_all(&region);
    region.host("new");
    world.show_all(&region);
    world.start("new", &region);
    let began = world.now;
    let addresses_only = Need { number: None, ..need() };
    for _ in 0..50 {
        for name in ["new", "a", "b"] {
            world.attach(name, &addresses_only, &mut region).unwrap();
            world.show_all(&region);
        }
    }
    assert!(world.now - began < Duration::from_millis(1500), "took {:?}", world.now - began);
    let ledger = Ledger::of(&region.view);
    assert_eq!((ledger.claims(pn()).tally().held, ledger.claims(pn()).tally().contested), (151, 0));
}

/// 4: five hosts attach ten members of one app each at once, and hear of each other later.
#[tokio::test(start_paused = true)]
async fn numbers_are_handed_out_by_one() {
    let names = ["a", "b", "c", "d", "e"];
    let mut region = Region::of(&names);
    region.put_network("a", PN, claim(1, 42));
    let mut world = World::settled(&names, &region);
    let mut claims = region.clone();
    let mut numbers = Vec::new();
    for name in names.iter().cycle().take(50) {
        numbers.push(world.attach(name, &need(), &mut claims).unwrap().1.ordinal.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    world.show_all(&claims);
    // A number is free at once: the redeployed first is the first again.
    let first = claims.view.hosts.iter().find_map(|(name, h)| {
        let found = h.records.members.iter().find(|(_, r)| r.ordinal == Some(1))?;
        Some((name.clone(), u64::from_str_radix(found.0.1.as_str(), 16).unwrap(), found.1.clone()))
    });
    let (name, id, mut gone) = first.unwrap();
    gone.state = MemberState::Released;
    claims.put(name.as_str(), id, gone);
    world.show_all(&claims);
    assert_eq!(world.attach("d", &need(), &mut claims).unwrap().1.ordinal, Some(1));
}

/// 5: a network is attached first on two hosts at once, with another subnet on each.
#[tokio::test(start_paused = true)]
async fn a_network_is_told_one_vni_and_one_subnet() {
    let region = Region::of(&["a", "b", "c"]);
    let mut world = World::settled(&["a", "b", "c"], &region);
    let other = Need { subnet: "10.99.0.0/24".parse().unwrap(), ..need() };
    let (first, _) = world.get("a", &need());
    let (second, _) = world.get("b", &other);
    assert_eq!(first.unwrap().claim, second.unwrap().claim);
    // Another network whose first candidate that would be gets its next one.
    let vni = vni_candidate(pn(), 0);
    let question = Question::Network { network: PN2.parse().unwrap(), vni, subnet: DEFAULT_SUBNET };
    let judge = top(&["a", "b", "c"], &Thing::Vni(vni));
    assert_eq!(world.judge(&judge, &host("a"), &question), Some(Answer::Held(pn())));
}

/// 6 and 8: what vanished with its host, or from its host's next generation, is not given.
#[tokio::test(start_paused = true)]
async fn ghosts_are_kept_until_nothing_else_is_left() {
    let mut region = Region::of(&["a", "gone"]);
    region.put_network("a", PN, claim(1, 42));
    region.put("gone", 1, record(1, 1, Some(1), MemberState::Ready));
    region.stand("gone", Standing::Gone, Instant::now());
    let vanished =
        gossip::view::Vanished { record: record(2, 2, Some(2), MemberState::Ready), since: Instant::now() };
    region.view.vanished.insert((host("b"), pn(), member(2)), vanished);
    let mut world = World::settled(&["a"], &region);
    let (_, things) = world.attach("a", &need(), &mut region).unwrap();
    assert_eq!(things.ordinal, Some(3), "ghosts keep their numbers");
    for last in 3..1023 {
        if Ledger::of(&region.view).claims(pn()).at(address(last)).is_none() {
            region.put("a", 5000 + u64::from(last), record(5, last, None, MemberState::Ready));
        }
    }
    world.show_all(&region);
    let mut given = Vec::new();
    for _ in 0..2 {
        given.push(
            world.attach("a", &Need { number: None, ..need() }, &mut region).unwrap().1.address.unwrap(),
        );
        world.show_all(&region);
    }
    given.sort();
    assert_eq!(given, [address(1), address(2)], "then the ghosts, the oldest first");
    let (full, _) = world.get("a", &need());
    let full = full.unwrap_err();
    assert!(matches!(full, Refused::Full { .. }), "{full}");
    assert!(full.to_string().contains("of 1022 addresses of 10.240.0.0/22 1022 are held"), "{full}");
}

/// 10: 600 live members are replaced while what they held rests.
#[tokio::test(start_paused = true)]
async fn a_whole_app_is_replaced_within_the_quarantine() {
    let names = ["a", "b", "c"];
    let mut region = Region::of(&names);
    region.put_network("a", PN, claim(1, 42));
    let mut world = World::settled(&names, &region);
    let addresses_only = Need { number: None, ..need() };
    let mut live = Vec::new();
    for (i, name) in names.iter().cycle().take(600).enumerate() {
        live.push((*name, world.attach(name, &addresses_only, &mut region).unwrap().0));
        if i % 20 == 0 {
            world.show_all(&region);
        }
    }
    for (name, id) in live {
        let mut released = region.view.hosts[&host(name)].records.members[&(pn(), member(id))].clone();
        released.state = MemberState::Released;
        released.counter = Ledger::of(&region.view).next_counter();
        region.put(name, id, released);
        world.show_all(&region);
        world.attach(name, &addresses_only, &mut region).unwrap();
        world.show_all(&region);
    }
    let tally = Ledger::of(&region.view).claims(pn()).tally();
    assert_eq!((tally.held, tally.contested), (600, 0));
    assert_eq!(
        tally.held + tally.released,
        1022,
        "all that rested was left alone as long as there was another"
    );
}

/// Every last address is given, though the judges hear of each other's claims late.
#[tokio::test(start_paused = true)]
async fn a_network_fills_to_its_last_address() {
    let names = ["a", "b", "c", "d"];
    let mut region = Region::of(&names);
    region.put_network("a", PN, claim(1, 42));
    let mut world = World::settled(&names, &region);
    let addresses_only = Need { number: None, ..need() };
    for (i, name) in names.iter().cycle().take(1022).enumerate() {
        if let Err(refused) = world.attach(name, &addresses_only, &mut region) {
            panic!("{i} are held: {refused}");
        }
        if i % 7 == 0 {
            world.show_all(&region);
        }
    }
    world.show_all(&region);
    let tally = Ledger::of(&region.view).claims(pn()).tally();
    assert_eq!((tally.held, tally.contested), (1022, 0));
    assert!(matches!(world.get("b", &addresses_only).0, Err(Refused::Full { .. })));
}

/// A judge that does not answer costs 300 ms, five of them the attach.
#[tokio::test(start_paused = true)]
async fn silence_is_bounded() {
    let names = ["a", "b", "c"];
    let mut region = Region::of(&names);
    region.put_network("a", PN, claim(1, 42));
    let mut world = World::settled(&names, &region);
    world.deaf = BTreeSet::from([host("b"), host("c")]);
    for _ in 0..20 {
        let (things, took) = world.get("a", &need());
        assert!(things.unwrap().ordinal.is_some(), "the lowest free in the view");
        assert!(took <= Duration::from_millis(1500), "{took:?}");
    }
    let wanted = judged_by(&names, "b");
    let (refused, took) = world.get("a", &Need { address: Wanted::Chosen(wanted), ..need() });
    let refused = refused.unwrap_err();
    assert!(
        matches!(&refused, Refused::Unreachable { judge, rounds: ROUNDS_MAX, .. } if *judge == host("b")),
        "{refused}"
    );
    assert_eq!(took, Duration::from_millis(1500));
}

/// All hosts start at once: nobody judges for T_hold, and everybody has what it needs right after.
#[tokio::test(start_paused = true)]
async fn a_cold_start_waits_once() {
    for hosts in [1, 5, 20] {
        let names: Vec<String> = (0..hosts).map(|n| format!("h{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let region = Region::of(&names);
        let mut world = World::empty();
        let began = world.now;
        names.iter().for_each(|name| world.start(name, &region));
        for name in names {
            let (things, took) = world.get(name, &need());
            assert!(things.is_ok(), "{things:?}");
            assert!(took < HOLD + Duration::from_millis(1500), "{took:?} of {hosts} hosts");
        }
        assert!(world.now - began >= HOLD);
    }
}

/// Nobody that could give a thing may judge in time: an attach ends with the reason.
#[tokio::test(start_paused = true)]
async fn waiting_is_bounded() {
    let mut region = Region::of(&["a", "b"]);
    region.view.whole = false;
    let mut world = World::settled(&["a"], &region);
    world.deaf.insert(host("b"));
    let (refused, took) = world.get("a", &Need { number: None, ..need() });
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, Refused::Unfit { why, .. } if why.contains("whole")), "{refused}");
    assert!(took <= HOLD + Duration::from_millis(1500), "{took:?}");
}

/// A cut has healed: who was judged by on the other side is not asked for T_hold, once a minute.
#[tokio::test(start_paused = true)]
async fn a_host_back_in_its_generation_suspends_the_judges_once_a_minute() {
    let mut region = Region::of(&["a", "b"]);
    let mut world = World::settled(&["a"], &region);
    let fit = |world: &mut World| {
        let now = world.now;
        world.node("a").bench.fit(now).is_ok()
    };
    let mut cut = |world: &mut World, generation: u64, lasting: Duration| {
        let now = world.now;
        region.stand("b", Standing::Dead, now);
        world.show_all(&region);
        world.pass(lasting);
        region.host("b").generation = generation;
        region.stand("b", Standing::Answering, now);
        world.show_all(&region);
    };
    cut(&mut world, 1, HOLD / 2);
    assert!(fit(&mut world), "shorter than T_hold nobody took up what b judges");
    cut(&mut world, 1, HOLD);
    assert!(!fit(&mut world));
    world.pass(HOLD);
    assert!(fit(&mut world));
    cut(&mut world, 1, HOLD);
    assert!(fit(&mut world), "b comes and goes: once a minute");
    world.pass(Duration::from_secs(60));
    cut(&mut world, 2, HOLD);
    assert!(fit(&mut world), "b has restarted, and judges nothing itself yet");
    cut(&mut world, 2, HOLD);
    assert!(!fit(&mut world));
}

/// A loop that stood still knows as little as one behind a cut.
#[tokio::test(start_paused = true)]
async fn a_stall_suspends() {
    let region = Region::of(&["a"]);
    let mut world = World::settled(&["a"], &region);
    let later = world.now + HOLD * 100;
    let bench = &mut world.node("a").bench;
    bench.beat(later);
    assert!(bench.fit(later).is_err());
    bench.beat(later + HOLD / 2);
    bench.beat(later + HOLD);
    assert!(bench.fit(later + HOLD).is_ok());
}

/// Two sides of a cut each give what no known host outranks them for, as long as there is such.
#[tokio::test(start_paused = true)]
async fn two_sides_of_a_cut_collide_last() {
    let names = ["a", "b"];
    let mut region = Region::of(&names);
    region.put_network("a", PN, claim(1, 42));
    let mut world = World::settled(&names, &region);
    let now = world.now;
    let (mut left, mut right) = (region.clone(), region.clone());
    left.stand("b", Standing::Dead, now);
    right.stand("a", Standing::Dead, now);
    world.show("a", &left);
    world.show("b", &right);
    world.pass(HOLD);
    let addresses_only = Need { number: None, ..need() };
    for _ in 0..200 {
        world.attach("a", &addresses_only, &mut left).unwrap();
        world.show("a", &left);
        world.attach("b", &addresses_only, &mut right).unwrap();
        world.show("b", &right);
    }
    left.view.hosts.insert(host("b"), right.view.hosts[&host("b")].clone());
    assert_eq!(Ledger::of(&left.view).claims(pn()).tally().contested, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Law 1: whatever is asked, by whom and in which order, one judge gives one thing once within
    /// T_hold; law 8: what is released is the only thing that changes hands.
    #[test]
    fn a_judge_gives_nothing_twice(asks in prop::collection::vec((0u8..3, 0u16..12, any::<bool>(), any::<bool>()), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut region = Region::of(&["a", "b", "c"]);
            region.put_network("a", PN, claim(1, 42));
            let mut world = World::settled(&["a", "b", "c"], &region);
            let mut given = BTreeSet::new();
            let subnet = "10.240.0.0/28".parse().unwrap();
            for (judge, preferred, chosen, number) in asks {
                let (judge, asker) = (host(["a", "b", "c"][judge as usize]), host(if number { "x" } else { "y" }));
                let question = if number {
                    Question::Ordinal { network: pn(), app: AP.parse().unwrap(), process: "web".parse().unwrap(), chosen: None }
                } else {
                    Question::Address { network: pn(), subnet, preferred: address(preferred + 1), chosen: chosen && given.is_empty() }
                };
                match world.judge(&judge, &asker, &question) {
                    Some(Answer::Address(address)) => assert!(given.insert((judge, address.to_string())), "{address} twice"),
                    Some(Answer::Ordinal(number)) => assert!(given.insert((judge, number.to_string())), "{number} twice"),
                    _ => {}
                }
            }
            // Nor do two judges give one thing: each is judged by one.
            let things: BTreeSet<&String> = given.iter().map(|(_, thing)| thing).collect();
            assert_eq!(things.len(), given.len());
        });
    }

    /// Law 6, without time: after any attaches and detaches, held and released are what is live and
    /// what rests, and nothing is contested while everybody is heard (law 2).
    #[test]
    fn books_balance(acts in prop::collection::vec((0usize..3, any::<bool>(), 0usize..8), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let names = ["a", "b", "c"];
            let mut region = Region::of(&names);
            let mut world = World::settled(&names, &region);
            let (mut live, mut released) = (Vec::new(), 0);
            for (host_number, attach, which) in acts {
                if attach || live.is_empty() {
                    let name = names[host_number];
                    live.push((name, world.attach(name, &need(), &mut region).unwrap().0));
                } else {
                    let (name, id) = live.swap_remove(which % live.len());
                    let mut record = region.view.hosts[&host(name)].records.members[&(pn(), member(id))].clone();
                    record.state = MemberState::Released;
                    region.put(name, id, record);
                    released += 1;
                }
                world.show_all(&region);
            }
            let ledger = Ledger::of(&region.view);
            let tally = ledger.claims(pn()).tally();
            assert_eq!((tally.held, tally.released, tally.contested), (live.len(), released, 0));
            assert_eq!(ledger.claims(pn()).numbers(), (live.len(), 0));
            assert!(ledger.claims(pn()).addresses().all(|(_, c)| !matches!(c.phase, Phase::Ghost(_))));
            let subnets: BTreeSet<_> = ledger.networks.iter().map(|(_, r): (_, NetworkRecord)| r.vni).collect();
            assert_eq!(subnets.len(), ledger.networks.len());
        });
    }
}
