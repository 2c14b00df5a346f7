//! Several desks that ask each other.

use std::collections::BTreeSet;
use std::time::Duration;

use gossip::View;
use gossip::id::HostId;
use gossip::record::MemberState;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::claims::desk::Refused;
use crate::claims::fixtures::*;
use crate::claims::*;

pub const HOLD: Duration = Duration::from_millis(2500);

/// One host's books.
pub struct Node {
    pub name: HostId,
    pub followed: View,
    pub ledger: Ledger,
    pub bench: Bench,
    pub grants: Grants,
}

/// Several hosts. Each sees what it is shown, and answers those it is let hear.
pub struct World {
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub rng: SmallRng,
    pub deaf: BTreeSet<HostId>,
    pub members: u64,
}

impl World {
    /// Hosts that published at the beginning of time and have seen this region ever since.
    pub fn settled(names: &[&str], region: &Region) -> World {
        let mut world = World::empty();
        for name in names {
            world.start(name, region);
        }
        world.pass(HOLD);
        world
    }

    pub fn empty() -> World {
        let (nodes, deaf) = (Vec::new(), BTreeSet::new());
        World { now: Instant::now(), nodes, rng: SmallRng::seed_from_u64(7), deaf, members: 1000 }
    }

    pub fn start(&mut self, name: &str, region: &Region) {
        let bench = Bench::new(host(name), HOLD, self.now);
        let (followed, ledger) = (View::default(), Ledger::default());
        let grants = Grants::new(HOLD);
        self.nodes.push(Node { name: host(name), followed, ledger, bench, grants });
        self.show(name, region);
        let now = self.now;
        self.node(name).bench.publish(now);
    }

    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name.as_str() == name).unwrap()
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + HOLD / 2);
            let now = self.now;
            self.nodes.iter_mut().for_each(|node| node.bench.beat(now));
        }
    }

    pub fn show(&mut self, name: &str, region: &Region) {
        let now = self.now;
        let node = self.node(name);
        let changes = Changes::between(&node.followed, &region.view);
        node.bench.follow(&changes, now);
        node.ledger.follow(&changes);
        for (_, h) in region.view.hosts.iter() {
            for ((network, _), record) in
                h.records.members.iter().filter(|(_, r)| r.state != MemberState::Released)
            {
                node.grants.claimed(*network, record);
            }
        }
        node.followed = region.view.clone();
        node.ledger.open(pn(), &region.view);
    }

    pub fn show_all(&mut self, region: &Region) {
        let names: Vec<HostId> = self.nodes.iter().map(|node| node.name.clone()).collect();
        names.iter().for_each(|name| self.show(name.as_str(), region));
    }

    pub fn judge(&mut self, judge: &HostId, asker: &HostId, question: &Question) -> Option<Answer> {
        let (now, mut rng) = (self.now, self.rng.clone());
        let node = self.nodes.iter_mut().find(|node| node.name == *judge)?;
        if self.deaf.contains(judge) && judge != asker {
            return None;
        }
        let mut desk = Desk { ledger: &node.ledger, bench: &node.bench, grants: &mut node.grants, now };
        let answer = desk.judge(asker, question, &mut rng);
        self.rng = rng;
        Some(answer)
    }

    /// What a member of a host gets, and how long that takes; silence costs 300 ms.
    pub fn get(&mut self, name: &str, need: &Need) -> (Result<Things, Refused>, Duration) {
        let (began, mut told) = (self.now, Told::default());
        for _ in 0..100 {
            let (now, mut rng) = (self.now, self.rng.clone());
            let node = self.node(name);
            let mut desk = Desk { ledger: &node.ledger, bench: &node.bench, grants: &mut node.grants, now };
            let next = desk.next(need, &mut told, &mut rng);
            self.rng = rng;
            match next {
                Next::Have(things) => return (Ok(things), self.now - began),
                Next::Refused(refused) => return (Err(refused), self.now - began),
                Next::Wait(then, _) => {
                    let pause = then - self.now;
                    self.pass(pause);
                }
                Next::Ask(questions) => {
                    let me = host(name);
                    let mut silent = false;
                    for (judge, question) in questions {
                        let answer = self.judge(&judge, &me, &question);
                        silent |= answer.is_none();
                        told.hear(&judge, &question, answer, now);
                    }
                    self.pass(Duration::from_millis(if silent { 300 } else { 1 }));
                }
            }
        }
        panic!("{name} asks for ever")
    }

    /// Gets what a member needs and writes its claim into the region.
    pub fn attach(&mut self, name: &str, need: &Need, region: &mut Region) -> Result<(u64, Things), Refused> {
        let things = self.get(name, need).0?;
        self.members += 1;
        let mut claim = record(self.node(name).ledger.next_counter(), 0, things.ordinal, MemberState::Ready);
        claim.address = things.address.unwrap();
        region.put(name, self.members, claim);
        region.put_network(name, PN, things.claim.clone());
        Ok((self.members, things))
    }
}
