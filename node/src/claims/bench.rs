//! The bench of judges: which hosts answer since when, who judges a thing, and whether this host may.
//! Pure: views and `now` in.
//!
//! *Give up at once, take up late.* A host stops judging a thing the moment it sees one that ranks
//! higher, and judges what another judged before only when that one has not answered for T_hold: by
//! then what it gave is in every view.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gossip::id::HostId;
use gossip::standing::Standing;
use gossip::view::{Host, HostChange};
use tokio::time::Instant;

use super::changes::Changes;
use super::{Thing, hash, rank};

/// How long a host that comes and goes cannot keep the others from judging a second time.
const SUSPENSION_PERIOD: Duration = Duration::from_secs(60);

/// Who judges.
#[derive(Debug, Clone)]
pub struct Bench {
    me: HostId,
    rank: u64,
    hold: Duration,
    /// The other hosts.
    seats: BTreeMap<HostId, Seat>,
    /// Since when this host's own record is published.
    published: Option<Instant>,
    /// Whether the view can be judged by: it is whole, or there is nobody it could be completed by.
    whole: bool,
    /// Where another machine with this host's name answers.
    twin: Option<SocketAddr>,
    /// Until when this host judges nothing, because it may have missed what others gave.
    suspended: Option<Instant>,
    /// When the loop was last seen to run.
    beat: Instant,
}

#[derive(Debug, Clone)]
struct Seat {
    rank: u64,
    generation: u64,
    sits: bool,
    /// When it last stopped answering.
    left: Option<Instant>,
    /// When its return last suspended this host.
    suspended: Option<Instant>,
}

/// Why this host judges nothing at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// From when on it will, when that is known.
    pub until: Option<Instant>,
    /// The reason in words.
    pub why: String,
}

impl Bench {
    /// A host that has published nothing yet and knows nobody.
    pub fn new(me: HostId, hold: Duration, now: Instant) -> Bench {
        let rank = hash(me.as_str().as_bytes());
        Bench {
            me,
            rank,
            hold,
            seats: BTreeMap::new(),
            published: None,
            whole: false,
            twin: None,
            suspended: None,
            beat: now,
        }
    }

    /// This host.
    pub fn me(&self) -> &HostId {
        &self.me
    }

    /// T_hold.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// This host's record is published from now on.
    pub fn publish(&mut self, now: Instant) {
        self.published = Some(now);
    }

    /// The loop runs. When it has not for longer than T_hold, what it knows is as old.
    pub fn beat(&mut self, now: Instant) {
        if now > self.beat + self.hold {
            self.suspended = Some(now + self.hold);
        }
        self.beat = now;
    }

    /// Notes who answers in a new view.
    pub fn follow(&mut self, changes: &Changes, now: Instant) {
        for HostChange { host, new, .. } in changes.hosts.iter().filter(|change| *change.host != self.me) {
            match (self.seats.get_mut(*host), new) {
                (Some(seat), Some(h)) => {
                    if seat.see(h, self.hold, now) {
                        self.suspended = Some(now + self.hold);
                    }
                }
                (None, Some(h)) => _ = self.seats.insert((*host).clone(), Seat::new(host, h)),
                (_, None) => _ = self.seats.remove(*host),
            }
        }
        // Where nobody answers, nobody can make the view whole: waiting would refuse every attach
        // until the others are gone.
        self.whole = changes.view.whole || !self.seats.values().any(|seat| seat.sits);
        self.twin = changes.view.twin;
    }

    /// Whether this host may judge at all.
    pub fn fit(&self, now: Instant) -> Result<(), Unfit> {
        let unfit = |until, why: &str| Err(Unfit { until, why: why.to_owned() });
        if let Some(twin) = self.twin {
            return unfit(None, &format!("another machine at {twin} uses this host's name"));
        }
        let Some(published) = self.published else {
            return unfit(None, "this host has not joined the region");
        };
        if !self.whole {
            return unfit(None, "the region's records are not known whole yet; are the seeds reachable?");
        }
        let settled = published + self.hold;
        match self.suspended.filter(|until| *until > settled).unwrap_or(settled) {
            until if until <= now => Ok(()),
            until if until == settled => unfit(Some(until), "this host has only just joined the region"),
            until => unfit(Some(until), "a cut has only just healed, or this host had stalled"),
        }
    }

    /// Who is to be asked for a thing: the answering host of highest rank.
    pub fn judge_of(&self, thing: &Thing) -> &HostId {
        let thing = thing.hash();
        let me = (rank(thing, self.rank), &self.me);
        let others = self.seats.iter().filter(|(_, seat)| seat.sits);
        others.map(|(host, seat)| (rank(thing, seat.rank), host)).fold(me, Ord::max).1
    }

    /// Whether this host judges a thing now: it outranks every host that answers, or stopped
    /// answering less than T_hold ago.
    pub fn judges(&self, thing: &Thing, now: Instant) -> bool {
        self.fit(now).is_ok()
            && self.outranks(thing, |seat| seat.sits || seat.left.is_some_and(|at| now < at + self.hold))
    }

    /// Whether no host that is known, whatever became of it, ranks higher for a thing: two sides of
    /// a cut have no such thing in common.
    pub fn is_home(&self, thing: &Thing) -> bool {
        self.outranks(thing, |_| true)
    }

    fn outranks(&self, thing: &Thing, counts: impl Fn(&Seat) -> bool) -> bool {
        let thing = thing.hash();
        let mine = (rank(thing, self.rank), &self.me);
        self.seats.iter().all(|(host, seat)| !counts(seat) || (rank(thing, seat.rank), host) < mine)
    }
}

impl Seat {
    fn new(host: &HostId, h: &Host) -> Seat {
        let rank = hash(host.as_str().as_bytes());
        Seat { rank, generation: h.generation, sits: sits(h.standing), left: None, suspended: None }
    }

    /// Whether it is back from behind a cut, where it has judged: in the same generation, after
    /// T_hold or longer.
    fn see(&mut self, h: &Host, hold: Duration, now: Instant) -> bool {
        let sits = sits(h.standing);
        let was_long_away = self.left.is_some_and(|at| now >= at + hold);
        let returns = sits && !self.sits && h.generation == self.generation && was_long_away;
        let counts = returns && self.suspended.is_none_or(|at| now >= at + SUSPENSION_PERIOD);
        if counts {
            self.suspended = Some(now);
        }
        if self.sits && !sits {
            self.left = Some(now);
        }
        if sits {
            self.generation = h.generation;
        }
        self.sits = sits;
        counts
    }
}

/// Whether a host can be asked. One that is away has stopped its agent, on purpose.
fn sits(standing: Standing) -> bool {
    matches!(standing, Standing::Answering | Standing::Late)
}
