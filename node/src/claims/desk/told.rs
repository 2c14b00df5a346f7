//! What the one who asks has been told, from round to round.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::id::HostId;
use gossip::record::NetworkRecord;
use tokio::time::Instant;

use super::{Desk, Holder, Need, ROUNDS_MAX, Refused};
use crate::claims::{Answer, Question};

/// What has been given so far, and by whom not: goes with the one who asks from round to round.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub(super) claim: Option<Held<NetworkRecord>>,
    pub(super) address: Option<Held<Ipv4Addr>>,
    pub(super) ordinal: Option<Held<u32>>,
    /// When it has to come to an end; none before the first question.
    pub(super) bound: Option<Instant>,
    /// Rounds of questions so far.
    pub(super) rounds: u32,
    /// Of these, rounds since the last wait: so many hosts are asked for an address at most.
    pub(super) tries: u32,
    /// Rounds in which somebody did not answer in time: these are what an attach has time for.
    pub(super) silent: u32,
    /// The last round was one.
    pub(super) unheard: bool,
    /// Hosts that gave no address, and what they said.
    pub(super) declined: BTreeSet<HostId>,
    /// Questions that nobody answered in time.
    pub(super) unreachable: usize,
    /// The judge of the numbers does not answer.
    pub(super) ordinals_silent: bool,
    /// The VNI candidate asked for.
    pub(super) candidate: u32,
    /// Until when the judge of something is waited for.
    pub(super) not_before: Option<Instant>,
    /// When the first of those that declined for now can be asked again.
    pub(super) later: Option<Instant>,
    /// How long a question waits whose judge says that another one judges: in all rounds together
    /// T_hold, by when the views agree.
    pub(super) pause: Duration,
    /// What the judge of a chosen thing said against it.
    pub(super) taken: Option<Refused>,
}

#[derive(Debug, Clone)]
pub(super) struct Held<T> {
    pub(super) thing: T,
    pub(super) asked: Instant,
}

impl Told {
    /// How long a judge has to answer.
    pub const BOUND: Duration = Duration::from_millis(300);

    /// The next round begins: returns when the last one has to have ended. Who does not answer costs
    /// time, and who judges only later T_hold.
    pub(super) fn begin_round(&mut self, hold: Duration, now: Instant) -> Instant {
        self.pause = hold / ROUNDS_MAX;
        self.silent += u32::from(std::mem::take(&mut self.unheard));
        *self.bound.get_or_insert(now + hold + Self::BOUND * ROUNDS_MAX)
    }

    /// Whether there is no time for another round.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.silent >= ROUNDS_MAX || self.bound.is_some_and(|bound| now >= bound)
    }

    /// Takes a judge's answer into account; none means that it did not answer in time.
    pub fn hear(&mut self, judge: &HostId, question: &Question, answer: Option<Answer>, asked: Instant) {
        self.unreachable += usize::from(answer.is_none());
        self.unheard |= answer.is_none();
        match question {
            Question::Address { chosen: false, .. } => self.hear_address(judge, answer, asked),
            Question::Address { preferred, .. } => match answer {
                Some(Answer::Address(thing)) => self.address = Some(Held { thing, asked }),
                Some(Answer::Taken { host, member }) => {
                    let holder = Holder { host, member };
                    self.taken = Some(Refused::AddressHeld { address: *preferred, holder });
                }
                other => self.hear_no(other, asked),
            },
            Question::Ordinal { process, chosen, .. } => match (answer, chosen) {
                (Some(Answer::Ordinal(thing)), _) => self.ordinal = Some(Held { thing, asked }),
                (Some(Answer::Taken { host, member }), Some(number)) => {
                    let (number, process, holder) = (*number, process.clone(), Holder { host, member });
                    self.taken = Some(Refused::OrdinalHeld { number, process, holder });
                }
                (None, _) => self.ordinals_silent = true,
                (other, _) => self.hear_no(other, asked),
            },
            Question::Network { .. } => match answer {
                Some(Answer::Network(thing)) => self.claim = Some(Held { thing, asked }),
                None | Some(Answer::Held(_)) => self.candidate += 1,
                other => self.hear_no(other, asked),
            },
        }
    }

    /// An address is asked for elsewhere.
    fn hear_address(&mut self, judge: &HostId, answer: Option<Answer>, asked: Instant) {
        match answer {
            Some(Answer::Address(thing)) => self.address = Some(Held { thing, asked }),
            answer => {
                let pause = match answer {
                    Some(Answer::NotYet(ms)) => Some(Duration::from_millis(ms)),
                    Some(Answer::NotMine(_)) => Some(self.pause),
                    _ => None,
                };
                let then = pause.map(|pause| asked + pause);
                self.later = self.later.into_iter().chain(then).min();
                self.declined.insert(judge.clone());
            }
        }
    }

    /// What has one judge alone waits for it, or for the views to agree who that is.
    fn hear_no(&mut self, answer: Option<Answer>, asked: Instant) {
        let pause = match answer {
            Some(Answer::NotYet(ms)) => Duration::from_millis(ms),
            Some(_) => self.pause,
            None => return,
        };
        self.not_before = self.not_before.max(Some(asked + pause));
    }

    pub(super) fn waits(&self, now: Instant) -> bool {
        !self.is_over(now) && self.not_before.is_some_and(|then| then > now)
    }

    /// Those that declined an address for now are asked again then; whether there are any, and time.
    pub(super) fn ask_again(&mut self) -> bool {
        let in_time = |then: &Instant| self.bound.is_none_or(|bound| *then < bound);
        let Some(then) = self.later.take().filter(in_time) else { return false };
        self.declined.clear();
        self.tries = 0;
        self.not_before = self.not_before.max(Some(then));
        true
    }

    /// What was given long ago may have been given to another since, and what stands in the view
    /// stands there whatever was given.
    pub(super) fn drop_stale(&mut self, desk: &Desk, need: &Need) {
        let bound = desk.bench.hold() / 2;
        let fresh = |asked: Instant| desk.now < asked + bound;
        let claims = desk.ledger.claims(need.network);
        self.claim.take_if(|held| !fresh(held.asked));
        self.address.take_if(|held| !fresh(held.asked) || claims.holder(held.thing).is_some());
        let numbered = |number| {
            need.number.as_ref().is_some_and(|of| claims.numbered(of.app, &of.process, number).is_some())
        };
        self.ordinal.take_if(|held| !fresh(held.asked) || numbered(held.thing));
    }
}
