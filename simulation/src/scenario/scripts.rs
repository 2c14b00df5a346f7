//! What happens in each scenario.

use std::ops::Range;
use std::time::Duration;

use super::Size;
use crate::cluster::{AWAY, FORGET, GONE, GRACE, QUARANTINE};
use crate::operation::Operation::{self, *};
use crate::operation::{Lie, Place, Sabotage};

const WEB: Place = Place { network: 0, app: 0, worker: false };
const WORKER: Place = Place { network: 0, app: 0, worker: true };
const API: Place = Place { network: 1, app: 1, worker: false };
/// Addresses of a subnet that members can have.
const ADDRESSES: usize = 1022;

fn seconds(seconds: u64) -> Operation {
    Wait(Duration::from_secs(seconds))
}

/// Long enough for everybody to be found dead, gone and forgotten.
fn forgotten() -> Operation {
    Wait(GONE + FORGET + GRACE)
}

fn start(hosts: Range<usize>) -> Vec<Operation> {
    hosts.flat_map(|host| [Start(host), Wait(Duration::from_millis(100))]).collect()
}

fn attach(hosts: Range<usize>, place: Place) -> Vec<Operation> {
    hosts.map(|host| Attach(host, place)).collect()
}

/// Hosts with a member of each kind, quiet.
fn region(hosts: usize) -> Vec<Operation> {
    let members = [WEB, WORKER, API].into_iter().flat_map(|place| attach(0..hosts, place));
    start(0..hosts).into_iter().chain(members).chain([Settle]).collect()
}

fn halves(hosts: usize) -> Operation {
    Split(vec![(0..hosts / 2).collect(), (hosts / 2..hosts).collect()])
}

pub(super) fn life(Size { hosts, .. }: Size) -> Vec<Operation> {
    let last = hosts - 1;
    [
        region(hosts),
        vec![Detach(0, 0), Settle, Crash(last), seconds(8), Start(last), Settle],
        // So soon that nobody misses it.
        vec![seconds(60), Restart(last), Settle],
        vec![Kill(0, 0), seconds(2), Settle, Rest, NobodyMoved],
    ]
    .concat()
}

pub(super) fn cold_start(Size { hosts, .. }: Size) -> Vec<Operation> {
    let starts = (0..hosts).map(Start).collect();
    [starts, attach(0..hosts, WEB), vec![Settle, Members(0, hosts), Rest]].concat()
}

/// Its networks have a hundred members, no two of one host. Its hosts start within a second, and once they may
/// judge they attach a member each, second after second: rounds of gossip that all fall on one instant are nobody's.
pub(super) fn large_region(Size { hosts, members }: Size) -> Vec<Operation> {
    let networks = (hosts * members).div_ceil(100).max(members);
    let pause = Wait(Duration::from_secs(1) / hosts.max(1) as u32);
    let starts = (0..hosts).flat_map(|host| [Start(host), pause.clone()]).collect();
    let attaches = (0..members).flat_map(|member| [AttachEverywhere(networks, member), seconds(1)]).collect();
    let rest = seconds(60_u64.saturating_sub(JUDGING.as_secs() + members as u64));
    [starts, vec![Wait(JUDGING)], attaches, vec![rest, Settle]].concat()
}

/// From its start on a host of a region of any size judges within so long.
const JUDGING: Duration = Duration::from_secs(8);

pub(super) fn region_split(Size { hosts, .. }: Size) -> Vec<Operation> {
    let far = hosts - 1;
    [
        region(hosts),
        vec![halves(hosts), seconds(1)],
        attach(0..hosts, WEB),
        // Each side finds the other one dead, and gives the same address.
        vec![seconds(10), AttachAt(0, WEB, 1), AttachAt(far, API, 1), AttachAt(far, WEB, 1), seconds(10)],
        attach(0..hosts, WORKER),
        vec![seconds(10), Mend, Settle, Members(0, 4 * hosts + 2), Rest],
    ]
    .concat()
}

pub(super) fn rolling_restart(Size { hosts, .. }: Size) -> Vec<Operation> {
    let gracefully =
        (0..hosts).flat_map(|host| [Stop(host), seconds(AWAY.as_secs() / 3), Start(host), seconds(6)]);
    let killed = (0..hosts).flat_map(|host| [Restart(host), seconds(6)]);
    let both = gracefully.chain([Settle]).chain(killed).chain([Settle, Rest, NobodyMoved]).collect();
    [region(hosts), both].concat()
}

pub(super) fn drained_host(Size { hosts, .. }: Size) -> Vec<Operation> {
    let last = hosts - 1;
    [
        start(0..hosts),
        vec![Settle],
        attach(0..hosts, WEB),
        attach(0..hosts, WORKER),
        vec![Settle, Refused(0..=0), Drain(last), Settle, Attach(last, WEB), seconds(1), Refused(1..=1)],
        vec![Detach(last, 0), Settle],
        // It stays so, however its agent ended.
        vec![Restart(last), Settle, Stop(last), seconds(6), Start(last), Settle, Members(0, 2 * hosts - 1)],
        vec![Undrain(last), Settle, Attach(last, WEB), Settle, Members(0, 2 * hosts), Rest, NobodyMoved],
    ]
    .concat()
}

pub(super) fn mass_redeploy(Size { hosts, .. }: Size) -> Vec<Operation> {
    let many = (0..hosts - 1).map(|host| AttachMany(host, WEB, 50)).collect();
    [
        region(hosts),
        many,
        vec![Settle, Redeploy(0), Settle, Refused(0..=0), Members(0, 50 * (hosts - 1) + 2 * hosts), Rest],
    ]
    .concat()
}

pub(super) fn big_redeploy(Size { hosts, .. }: Size) -> Vec<Operation> {
    let many = (0..hosts).map(|host| AttachMany(host, WEB, 600 / hosts)).collect();
    [
        start(0..hosts),
        vec![Settle],
        many,
        vec![Settle, Members(0, 600 / hosts * hosts)],
        // 1,022 - 600 are free: the others get the addresses that have rested longest, or are refused with the
        // numbers and called again.
        vec![Redeploy(0), seconds(20), Refused(0..=600), Settle, Wait(QUARANTINE), Rest],
    ]
    .concat()
}

pub(super) fn full_network(Size { hosts, .. }: Size) -> Vec<Operation> {
    let most = ADDRESSES / hosts;
    let many = (0..hosts).map(|host| AttachMany(host, WEB, most)).collect();
    [
        start(0..hosts),
        vec![Settle],
        many,
        vec![seconds(30), AttachMany(0, WEB, ADDRESSES - most * hosts), seconds(30), Settle],
        vec![Members(0, ADDRESSES), Refused(0..=0), Attach(0, WEB), seconds(10), Refused(1..=1)],
        // What rests is given when nothing else is left.
        vec![Detach(1, 7), seconds(2), Attach(0, WEB), seconds(10), Members(0, ADDRESSES), Settle],
    ]
    .concat()
}

pub(super) fn flapping_host(Size { hosts, .. }: Size) -> Vec<Operation> {
    let flaps =
        (0..8).flat_map(|n| [Crash(1), seconds(1 + n % 4 * 3), Start(1), seconds(2 + n), Attach(0, WEB)]);
    let flaps = flaps.collect();
    [region(hosts), flaps, vec![Settle, Rest, NobodyMoved]].concat()
}

pub(super) fn seeds_gone(Size { hosts, .. }: Size) -> Vec<Operation> {
    [
        region(hosts),
        vec![Scrap(0), Scrap(1), seconds(10), Crash(2), seconds(10), Start(2), Attach(3, WEB), Settle],
        vec![Split(vec![vec![2, 3], (4..hosts).collect()]), seconds(20), Attach(2, WEB), Attach(4, WEB)],
        vec![seconds(20), Mend, Settle, Restart(3), Settle, Rest],
    ]
    .concat()
}

pub(super) fn new_machine(Size { hosts, .. }: Size) -> Vec<Operation> {
    let next = hosts;
    [
        region(hosts),
        vec![Replace(2), seconds(5), Attach(next, WEB), Attach(next, API), Settle, Crash(next), seconds(10)],
        vec![Start(next), Settle, Rest, NobodyMoved],
    ]
    .concat()
}

pub(super) fn kernel_sabotage(Size { hosts, .. }: Size) -> Vec<Operation> {
    let sabotages = Sabotage::ALL.into_iter().enumerate();
    let sabotages =
        sabotages.flat_map(|(n, what)| [Operation::Sabotage(n % hosts, what), seconds(3)]).collect();
    let refusals = (0..hosts).map(|host| Refuse(host, 3)).collect();
    let churn = vec![Attach(0, WEB), Detach(1, 0), Kill(2, 1), seconds(5)];
    let over = (0..hosts).map(|host| Refuse(host, 0)).collect();
    [region(hosts), sabotages, vec![Settle], refusals, churn, over, vec![Settle, Rest, NobodyMoved]].concat()
}

pub(super) fn scale_out(Size { hosts, .. }: Size) -> Vec<Operation> {
    let last = hosts - 1;
    let many = (0..last).map(|host| AttachMany(host, WEB, 40)).collect();
    [
        start(0..last),
        vec![Settle],
        many,
        vec![Settle, seconds(10), Redeploy(0), Start(last), AttachMany(last, WEB, 50), Settle],
        vec![NobodyMoved, Refused(0..=0), Members(0, 40 * last + 50), Rest],
    ]
    .concat()
}

pub(super) fn long_cut(Size { hosts, .. }: Size) -> Vec<Operation> {
    let (near, far) = ((2..hosts / 2 + 1).collect::<Vec<_>>(), (hosts / 2 + 1..hosts).collect::<Vec<_>>());
    let (here, there) = (near[0], far[0]);
    [
        region(hosts),
        vec![Scrap(0), Scrap(1), seconds(8), Split(vec![near, far]), Wait(GONE + GRACE)],
        vec![
            Attach(here, WEB),
            Attach(there, WEB),
            AttachAt(here, WEB, 1),
            AttachAt(there, WEB, 1),
            seconds(10),
        ],
        vec![Mend, Settle, Rest],
    ]
    .concat()
}

pub(super) fn old_counters(Size { hosts, .. }: Size) -> Vec<Operation> {
    let last = hosts - 1;
    [
        start(0..hosts),
        // The last host's claim is the oldest of all, its number too.
        vec![Settle, AttachAt(last, WEB, 7), seconds(2)],
        attach(0..last, WEB),
        vec![Settle, Crash(last), forgotten(), AttachAt(0, WEB, 7), seconds(5), Start(last), Settle],
        // Who has served it meanwhile keeps it, the returner yields.
        vec![Moved(1), Rest],
    ]
    .concat()
}

pub(super) fn suspended(Size { hosts, .. }: Size) -> Vec<Operation> {
    [
        region(hosts),
        vec![Suspend(1), seconds(60), Attach(0, WEB), Detach(2, 0), seconds(240), JumpClock(1, -300)],
        vec![Resume(1), Settle, Attach(1, WEB), Settle, Rest],
    ]
    .concat()
}

pub(super) fn cloned(Size { hosts, .. }: Size) -> Vec<Operation> {
    [
        region(hosts),
        vec![Clone(1), seconds(10), Attach(0, WEB), Detach(2, 0), seconds(20), Attach(1, WEB), seconds(20)],
        vec![Heal, Settle, Attach(1, API), Settle, Rest],
    ]
    .concat()
}

pub(super) fn crash_loop(Size { hosts, .. }: Size) -> Vec<Operation> {
    let looping = (0..40).flat_map(|_| (0..4).map(Restart).chain([seconds(1)])).collect();
    [region(hosts), looping, vec![Attach(hosts - 1, WEB), Settle, seconds(60), Settle, Rest, NobodyMoved]]
        .concat()
}

pub(super) fn forged(Size { hosts, .. }: Size) -> Vec<Operation> {
    [
        region(hosts),
        vec![Lie(Lie::Forge), seconds(2), Attach(0, WEB), seconds(10), Silence, Settle, Rest, NobodyMoved],
    ]
    .concat()
}

pub(super) fn nonsense(Size { hosts, .. }: Size) -> Vec<Operation> {
    [
        region(hosts),
        vec![Lie(Lie::Nonsense), seconds(5), Settle],
        attach(0..hosts, WEB),
        vec![Detach(0, 0), seconds(10), Restart(1), Settle, Silence, seconds(10), Settle, Rest],
    ]
    .concat()
}

pub(super) fn turned(Size { hosts, .. }: Size) -> Vec<Operation> {
    let churn = (0..10).flat_map(|n| [Attach(n % hosts, WEB), seconds(1)]).collect();
    [region(hosts), vec![Lie(Lie::Turn)], churn, vec![Silence, Wait(GRACE), Settle, Rest]].concat()
}

/// So many hosts that their digest is longer than new ones are let into.
const CROWD: u64 = 1_450;

pub(super) fn near_the_wall(Size { hosts, .. }: Size) -> Vec<Operation> {
    let last = hosts - 1;
    [
        start(0..last),
        attach(0..last, WEB),
        vec![
            Settle,
            Lie(Lie::Crowd(CROWD)),
            seconds(10),
            Start(last),
            seconds(5),
            Attach(0, WEB),
            seconds(5),
        ],
        // Who does not exist is forgotten, and the new host let in.
        vec![Silence, Wait(2 * GRACE), Settle, Attach(last, WEB), Settle, Rest],
    ]
    .concat()
}
