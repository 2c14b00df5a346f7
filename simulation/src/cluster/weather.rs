//! What the network does to messages, and since when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use gossip::memory::{Link, MemoryNetwork};
use tokio::time::Instant;

/// More loss than this, and silence may be mistaken for death.
const LOSS_MAX: f64 = 0.11;

/// The network's faults, with what the laws need to know of them.
pub struct Weather {
    /// The network itself.
    pub network: MemoryNetwork,
    /// What all links do but for cuts and slow hosts.
    sky: Link,
    /// Directed links over which nothing passes.
    cuts: BTreeSet<(usize, usize)>,
    /// Since when there are none.
    whole_since: Option<Instant>,
    /// When a link between two machines last changed, by the lower and the higher number.
    changed: BTreeMap<(usize, usize), Instant>,
    /// Machines all of whose messages take longer.
    slow: BTreeMap<usize, Duration>,
    /// When any link last changed.
    last: Option<Instant>,
    /// When what was held up or kept from arriving last could arrive after all.
    released: Option<Instant>,
    /// When so many messages last were lost that silence may be mistaken for death.
    lossy: Option<Instant>,
    /// When anything but a join last happened that may move a judge or hide a claim.
    stirred: Instant,
}

impl Weather {
    pub(super) fn new(network: MemoryNetwork) -> Weather {
        Weather {
            network,
            sky: Link::default(),
            cuts: BTreeSet::new(),
            whole_since: Some(Instant::now()),
            changed: BTreeMap::new(),
            slow: BTreeMap::new(),
            last: None,
            released: None,
            lossy: None,
            stirred: Instant::now(),
        }
    }

    /// Something happened that may move a judge or hide a claim. A join does not: who is outranked gives up at
    /// once, and who outranks takes up late.
    pub fn stir(&mut self) {
        self.stirred = Instant::now();
    }

    /// When that was.
    pub fn stirred(&self) -> Instant {
        self.stirred
    }

    /// Whether all messages travel as they should.
    pub fn is_fair(&self) -> bool {
        !self.is_rough() && self.cuts.is_empty()
    }

    /// Whether messages are lost, late or out of order beyond what cuts do.
    pub fn is_rough(&self) -> bool {
        self.sky != Link::default() || !self.slow.is_empty()
    }

    /// Whether so many messages are lost that silence may be mistaken for death, or were less than `bound` ago.
    pub fn is_lossy_within(&self, bound: Duration) -> bool {
        self.is_lossy() || self.lossy.is_some_and(|at| at.elapsed() < bound)
    }

    fn is_lossy(&self) -> bool {
        self.sky.loss_delay.is_none() && self.sky.loss > LOSS_MAX
    }

    /// Lets nothing pass from one machine to another.
    pub fn cut(&mut self, (from, at): (usize, SocketAddr), (to, there): (usize, SocketAddr)) {
        self.network.cut(at, there);
        let was_open = self.is_open(from, to);
        self.cuts.insert((from, to));
        self.whole_since = None;
        if was_open {
            self.change(from, to);
        }
    }

    /// Lets everything pass between all machines again; loss and delays stay.
    pub fn mend(&mut self) {
        self.network.heal();
        self.whole_since.get_or_insert_with(Instant::now);
        for (from, to) in std::mem::take(&mut self.cuts) {
            self.change(from, to);
            self.released = Some(Instant::now());
        }
    }

    fn change(&mut self, a: usize, b: usize) {
        self.changed.insert((a.min(b), a.max(b)), Instant::now());
        self.last = Some(Instant::now());
        self.stir();
    }

    /// From now on all links are so.
    pub fn set_sky(&mut self, sky: Link) {
        self.network.set_links(sky.clone());
        if self.is_lossy() {
            self.lossy = Some(Instant::now());
        }
        self.sky = sky;
        (self.last, self.released) = (Some(Instant::now()), Some(Instant::now()));
        self.stir();
    }

    /// Makes all messages from and to a machine take so much longer; not at zero.
    pub fn set_slow(&mut self, (host, at): (usize, SocketAddr), longer: Duration) {
        if longer.is_zero() {
            self.network.set_slow(at, None);
            self.slow.remove(&host);
        } else {
            self.network.set_slow(at, Some(longer));
            self.slow.insert(host, longer);
        }
        (self.last, self.released) = (Some(Instant::now()), Some(Instant::now()));
        self.stir();
    }

    /// Whether messages pass both ways between two machines.
    pub fn is_open(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a, b)) && !self.cuts.contains(&(b, a))
    }

    /// Since when messages pass both ways between two machines, of which neither is slow; none while not.
    pub fn open_since(&self, a: usize, b: usize) -> Option<Option<Instant>> {
        let slow = self.slow.contains_key(&a) || self.slow.contains_key(&b);
        (self.is_open(a, b) && !slow).then(|| self.changed.get(&(a.min(b), a.max(b))).copied())
    }

    /// Since when messages pass between any two machines; none while they do not.
    pub fn whole_since(&self) -> Option<Instant> {
        self.whole_since
    }

    /// When what was held up or kept from arriving last could arrive after all: words of the dead among it.
    pub fn last_release(&self) -> Option<Instant> {
        self.released
    }

    /// When any link last changed.
    pub fn last_change(&self) -> Option<Instant> {
        self.last
    }
}
