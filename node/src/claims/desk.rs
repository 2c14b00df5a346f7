//! The desk of a judge, and of the one who asks: what is given to whom, and whom to ask for what.
//! Pure: ledger, bench, grants, a question and `now` in, an answer or the next question out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use gossip::id::{AppId, HostId, MemberId, NetworkId, ProcessType};
use gossip::record::NetworkRecord;
use ipnet::Ipv4Net;
use rand::Rng;
use rand::seq::{IteratorRandom as _, SliceRandom as _};
use tokio::time::Instant;

use super::grants::Given;
use super::ledger::{Claimant, Claims, Phase, Tally};
use super::{Answer, Bench, Grants, Ledger, Question, Thing, vni_candidate};

/// How often judges are asked before an attach is refused.
pub const ROUNDS_MAX: u32 = 5;

/// Everything a decision looks at.
pub struct Desk<'a> {
    /// Who holds what; the network asked about is open.
    pub ledger: &'a Ledger,
    /// Who judges.
    pub bench: &'a Bench,
    /// What this host gave a short while ago.
    pub grants: &'a mut Grants,
    /// The time.
    pub now: Instant,
}

/// What a member needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Need {
    /// Its network.
    pub network: NetworkId,
    /// The subnet, should nobody have a word on the network yet.
    pub subnet: Ipv4Net,
    /// Its app.
    pub app: AppId,
    /// Its process type.
    pub process: ProcessType,
    /// The address.
    pub address: Wanted<Ipv4Addr>,
    /// The number.
    pub ordinal: Wanted<u32>,
}

/// Whether a thing is needed, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<T> {
    /// Any.
    Any,
    /// The one the caller chose.
    Chosen(T),
    /// The member has it.
    Nothing,
}

/// What a member gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Things {
    /// What to publish of its network.
    pub claim: NetworkRecord,
    /// Its address, where one was needed.
    pub address: Option<Ipv4Addr>,
    /// Its number, where one was needed.
    pub ordinal: Option<u32>,
}

/// What has been given so far, and by whom not: goes with the one who asks from round to round.
#[derive(Debug, Clone, Default)]
pub struct Told {
    claim: Option<Held<NetworkRecord>>,
    address: Option<Held<Ipv4Addr>>,
    ordinal: Option<Held<u32>>,
    /// Rounds of questions so far.
    rounds: u32,
    /// Hosts that gave no address, and what they said.
    declined: BTreeSet<HostId>,
    /// Questions that nobody answered in time.
    unreachable: usize,
    /// The judge of the numbers does not answer.
    ordinals_silent: bool,
    /// The VNI candidate asked for.
    candidate: u32,
    /// Until when the judge of something is waited for.
    not_before: Option<Instant>,
    /// When the first of those that declined because they judge nothing yet can be asked again.
    later: Option<Instant>,
    /// They were waited for already.
    waited: bool,
    /// How long a question waits whose judge says that another one judges: in all rounds together
    /// T_hold, by when the views agree.
    pause: Duration,
    /// What the judge of a chosen thing said against it.
    taken: Option<Refused>,
}

#[derive(Debug, Clone)]
struct Held<T> {
    thing: T,
    asked: Instant,
}

/// What the one who asks does next.
#[derive(Debug)]
pub enum Next {
    /// Everything is there: claim it.
    Have(Things),
    /// Ask these hosts, all at once, and come back with [`Told::hear`].
    Ask(Vec<(HostId, Question)>),
    /// Come back then; why, in words.
    Wait(Instant, String),
    /// It cannot be had.
    Refused(Refused),
}

/// Why a member cannot have what it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Outside the subnet, or its network or broadcast address.
    #[error("{0} is not a member address of {1}")]
    Outside(Ipv4Addr, Ipv4Net),
    /// The chosen address has a holder.
    #[error("{address} is held by {holder}")]
    AddressHeld {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        holder: Holder,
    },
    /// The chosen number has a holder.
    #[error("{number}.{process} is held by {holder}")]
    OrdinalHeld {
        /// The number.
        number: u32,
        /// Of this process type.
        process: ProcessType,
        /// Who has it.
        holder: Holder,
    },
    /// No address is left.
    #[error(
        "network {network} is full: of {size} addresses of {subnet} {} are held, {} rest after a detach and {} \
         are kept for members that vanished; {unreachable} judges did not answer in {rounds} rounds",
        tally.held, tally.released, tally.ghosts
    )]
    Full {
        /// The network.
        network: NetworkId,
        /// Its subnet.
        subnet: Ipv4Net,
        /// How many addresses that is.
        size: usize,
        /// What became of them.
        tally: Tally,
        /// How many judges did not answer.
        unreachable: usize,
        /// How often was asked.
        rounds: u32,
    },
    /// There may be something left, and nobody who could give it answers.
    #[error(
        "nobody gave {what}: {unreachable} judges did not answer in {rounds} rounds, the last asked for it was {judge}"
    )]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Who judges it.
        judge: HostId,
        /// How many judges did not answer.
        unreachable: usize,
        /// How often was asked.
        rounds: u32,
    },
}

/// Who has a thing, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its host.
    pub host: HostId,
    /// The member; none while it was given and is not claimed yet.
    pub member: Option<MemberId>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.member {
            Some(member) => write!(f, "member {member} on host {}", self.host),
            None => write!(f, "a member that host {} is attaching", self.host),
        }
    }
}

/// As a judge.
impl Desk<'_> {
    /// Judges a question of a host, which may be this one.
    pub fn judge(&mut self, asker: &HostId, question: &Question, rng: &mut impl Rng) -> Answer {
        let thing = question.thing();
        if let Err(unfit) = self.bench.fit(self.now) {
            let wait =
                unfit.until.map_or(self.bench.hold(), |until| until.saturating_duration_since(self.now));
            return Answer::NotYet(millis(wait) + 1);
        }
        match question {
            Question::Address { network, subnet, preferred, chosen: false } => {
                self.judge_address(asker, *network, *subnet, *preferred, rng)
            }
            _ if !self.bench.judges(&thing, self.now) => self.not_mine(&thing),
            Question::Address { network, preferred, .. } => self.judge_chosen(asker, *network, *preferred),
            Question::Ordinal { network, app, process, chosen } => {
                self.judge_ordinal(asker, (*network, *app, process), *chosen)
            }
            Question::Network { network, vni, subnet } => self.judge_network(*network, *vni, *subnet),
        }
    }

    fn not_mine(&self, thing: &Thing) -> Answer {
        let judge = self.bench.judge_of(thing);
        // It ranks highest of those that answer, and one that answered a short while ago may still
        // have given it.
        if judge == self.bench.me() {
            Answer::NotYet(millis(self.bench.hold()))
        } else {
            Answer::NotMine(judge.clone())
        }
    }

    /// One that is free, the preferred one if that is; else what has rested longest, else what
    /// vanished first, once nothing is free anywhere.
    fn judge_address(
        &mut self,
        asker: &HostId,
        network: NetworkId,
        subnet: Ipv4Net,
        preferred: Ipv4Addr,
        rng: &mut impl Rng,
    ) -> Answer {
        let claims = self.ledger.claims(network);
        let judged = |address: &Ipv4Addr| self.bench.judges(&Thing::Address(network, *address), self.now);
        let granted =
            |address: &Ipv4Addr| self.grants.of(&Given::Address(network, *address), self.now).is_some();
        let fits = is_member_address(subnet, preferred) && claims.at(preferred).is_none();
        let mut given = (fits && !granted(&preferred) && judged(&preferred)).then_some(preferred);
        if given.is_none() {
            let free = free(claims, subnet);
            let mut untold: Vec<Ipv4Addr> = free.into_iter().filter(|address| !granted(address)).collect();
            untold.shuffle(rng);
            let home = |address: &&Ipv4Addr| self.bench.is_home(&Thing::Address(network, **address));
            given = untold.iter().find(home).or_else(|| untold.iter().find(|a| judged(a))).copied();
            if given.is_none() && untold.is_empty() {
                let spent = claims.spent(subnet).into_iter().map(|(address, _)| address);
                given = spent.filter(|address| !granted(address)).find(judged);
            }
            if given.is_none() && !untold.is_empty() {
                return self.not_mine_but(&untold, network, rng);
            }
        }
        match given {
            Some(address) => {
                self.grants.give(Given::Address(network, address), asker, self.now);
                Answer::Address(address)
            }
            None => claims.tally().into(),
        }
    }

    fn not_mine_but(&self, free: &[Ipv4Addr], network: NetworkId, rng: &mut impl Rng) -> Answer {
        let other = free.iter().choose(rng).map(|address| Thing::Address(network, *address));
        other.map_or(Answer::NotYet(1), |thing| self.not_mine(&thing))
    }

    fn judge_chosen(&mut self, asker: &HostId, network: NetworkId, address: Ipv4Addr) -> Answer {
        let given = Given::Address(network, address);
        if let Some(other) = self.given_to_another(asker, &given) {
            return other;
        }
        match self.ledger.claims(network).at(address) {
            // The caller wants this one, and says so: names that led to it lead to it again.
            None | Some(Claimant { phase: Phase::Released, .. }) => {
                self.grants.give(given, asker, self.now);
                Answer::Address(address)
            }
            Some(holder) => taken(holder),
        }
    }

    /// A chosen thing may be asked for again by the same host, should the answer have been lost:
    /// between its own members that host decides itself.
    fn given_to_another(&self, asker: &HostId, given: &Given) -> Option<Answer> {
        let other = self.grants.of(given, self.now).filter(|to| *to != asker)?;
        Some(Answer::Taken { host: other.clone(), member: None })
    }

    fn judge_ordinal(
        &mut self,
        asker: &HostId,
        (network, app, process): (NetworkId, AppId, &ProcessType),
        chosen: Option<u32>,
    ) -> Answer {
        let given = |number| Given::Ordinal(network, app, process.clone(), number);
        let claims = self.ledger.claims(network);
        let number = match chosen {
            None => self.lowest_free((network, app, process)),
            Some(number) => match claims.at_number(app, process, number) {
                Some(holder) => return taken(holder),
                None => number,
            },
        };
        if let Some(other) = self.given_to_another(asker, &given(number)) {
            return other;
        }
        self.grants.give(given(number), asker, self.now);
        Answer::Ordinal(number)
    }

    fn judge_network(&mut self, network: NetworkId, vni: u32, subnet: Ipv4Net) -> Answer {
        let told = self.grants.network(network, self.now).cloned();
        if let Some(record) = self.ledger.networks.get(network).or(told) {
            return Answer::Network(record);
        }
        match self.ledger.networks.holder(vni).or_else(|| self.grants.holder(vni, self.now)) {
            Some(holder) => Answer::Held(holder),
            None => {
                let counter = self.ledger.next_counter();
                let record = NetworkRecord { counter, vni, subnet, unknown: Default::default() };
                self.grants.tell(network, record.clone(), self.now);
                Answer::Network(record)
            }
        }
    }

    fn lowest_free(&self, (network, app, process): (NetworkId, AppId, &ProcessType)) -> u32 {
        let claims = self.ledger.claims(network);
        let free = |number: &u32| {
            claims.at_number(app, process, *number).is_none()
                && self.grants.of(&Given::Ordinal(network, app, process.clone(), *number), self.now).is_none()
        };
        (1..).find(free).unwrap_or(u32::MAX)
    }
}

/// As the one who asks.
impl Desk<'_> {
    /// What a member does next to get what it needs. What this host judges itself is decided here.
    pub fn next(&mut self, need: &Need, told: &mut Told, rng: &mut impl Rng) -> Next {
        told.pause = self.bench.hold() / ROUNDS_MAX;
        told.drop_stale(self, need);
        let mut questions = Vec::new();
        for _ in 0..2 * ROUNDS_MAX {
            questions = match self.missing(need, told, rng) {
                Ok(questions) => questions,
                Err(refused) => return Next::Refused(refused),
            };
            let me = self.bench.me().clone();
            let fit = self.bench.fit(self.now).is_ok();
            let (mine, others): (Vec<_>, Vec<_>) =
                questions.drain(..).partition(|(judge, _)| fit && *judge == me);
            questions = others;
            if mine.is_empty() {
                break;
            }
            for (judge, question) in mine {
                let answer = self.judge(&me, &question, rng);
                told.hear(&judge, &question, Some(answer), self.now);
            }
            if told.taken.is_some() || told.waits(self.now) {
                break;
            }
        }
        if let Some(refused) = told.taken.take() {
            return Next::Refused(refused);
        }
        match told.not_before.filter(|then| *then > self.now) {
            Some(then) => {
                Next::Wait(then, "its judge has only just started, or is another one now".to_owned())
            }
            None if questions.is_empty() => self.have(need, told),
            None => {
                // What this host would judge, did it judge already, waits for that.
                let me = self.bench.me();
                match self.bench.fit(self.now) {
                    Err(unfit) if questions.iter().all(|(judge, _)| judge == me) => {
                        Next::Wait(unfit.until.unwrap_or(self.now + self.bench.hold() / 10), unfit.why)
                    }
                    _ => {
                        questions.retain(|(judge, _)| judge != me);
                        told.rounds += 1;
                        Next::Ask(questions)
                    }
                }
            }
        }
    }

    fn have(&self, need: &Need, told: &Told) -> Next {
        let claim = self
            .ledger
            .networks
            .get(need.network)
            .or_else(|| told.claim.as_ref().map(|held| held.thing.clone()));
        match claim {
            Some(claim) => Next::Have(Things {
                claim,
                address: told.address.as_ref().map(|held| held.thing),
                ordinal: told.ordinal.as_ref().map(|held| held.thing),
            }),
            None => Next::Wait(self.now, "the network has just gone".to_owned()),
        }
    }

    /// The questions that are still to be asked, each with its judge.
    fn missing(
        &mut self,
        need: &Need,
        told: &mut Told,
        rng: &mut impl Rng,
    ) -> Result<Vec<(HostId, Question)>, Refused> {
        let mut questions = Vec::new();
        if self.ledger.networks.get(need.network).is_none() && told.claim.is_none() {
            questions.push(self.network_question(need, told)?);
        }
        if need.address != Wanted::Nothing && told.address.is_none() {
            match self.address_question(need, told, rng) {
                // Those that will judge soon are asked again then, once.
                Err(_) if told.ask_again() => {}
                question => questions.push(question?),
            }
        }
        if need.ordinal != Wanted::Nothing && told.ordinal.is_none() {
            questions.extend(self.ordinal_question(need, told)?);
        }
        Ok(questions)
    }

    fn network_question(&self, need: &Need, told: &Told) -> Result<(HostId, Question), Refused> {
        let vni = vni_candidate(need.network, told.candidate);
        let question = Question::Network { network: need.network, vni, subnet: need.subnet };
        self.to_judge(question, told, || format!("network {} a VNI", need.network))
    }

    fn ordinal_question(
        &mut self,
        need: &Need,
        told: &mut Told,
    ) -> Result<Option<(HostId, Question)>, Refused> {
        let chosen = match need.ordinal {
            Wanted::Chosen(number) => Some(number),
            _ => None,
        };
        let (network, app, process) = (need.network, need.app, need.process.clone());
        if !told.ordinals_silent && told.rounds < ROUNDS_MAX {
            let question = Question::Ordinal { network, app, process, chosen };
            return Ok(Some((self.bench.judge_of(&question.thing()).clone(), question)));
        }
        // Whoever else does the same is found out by the merge: numbers are settled again.
        let number = chosen.unwrap_or_else(|| self.lowest_free((network, app, &process)));
        if let Some(holder) = self.ledger.claims(network).at_number(app, &process, number) {
            let holder = Holder { host: holder.host.clone(), member: Some(holder.member.clone()) };
            return Err(Refused::OrdinalHeld { number, process, holder });
        }
        self.grants.give(Given::Ordinal(network, app, process, number), self.bench.me(), self.now);
        told.ordinal = Some(Held { thing: number, asked: self.now });
        Ok(None)
    }

    fn address_question(
        &self,
        need: &Need,
        told: &Told,
        rng: &mut impl Rng,
    ) -> Result<(HostId, Question), Refused> {
        let network = need.network;
        let claim =
            self.ledger.networks.get(network).or_else(|| told.claim.as_ref().map(|held| held.thing.clone()));
        let subnet = claim.map_or(need.subnet, |claim| claim.subnet);
        let ask = |preferred, chosen| Question::Address { network, subnet, preferred, chosen };
        if let Wanted::Chosen(address) = need.address {
            if !is_member_address(subnet, address) {
                return Err(Refused::Outside(address, subnet));
            }
            return self.to_judge(ask(address, true), told, || format!("address {address}"));
        }
        match self.candidate(network, subnet, told, rng) {
            Some((judge, address)) if told.rounds < ROUNDS_MAX => Ok((judge, ask(address, false))),
            _ => Err(self.full(network, subnet, told)),
        }
    }

    /// An address to ask for, with its judge: a free one of this host's own if it may judge, else
    /// any free one whose judge has not declined, else what has rested longest.
    fn candidate(
        &self,
        network: NetworkId,
        subnet: Ipv4Net,
        told: &Told,
        rng: &mut impl Rng,
    ) -> Option<(HostId, Ipv4Addr)> {
        let claims = self.ledger.claims(network);
        let me = self.bench.me();
        let granted =
            |address: &Ipv4Addr| self.grants.of(&Given::Address(network, *address), self.now).is_some();
        let mut free: Vec<Ipv4Addr> = free(claims, subnet).into_iter().filter(|a| !granted(a)).collect();
        free.shuffle(rng);
        let fit = self.bench.fit(self.now).is_ok() && !told.declined.contains(me);
        let thing = |address: &Ipv4Addr| Thing::Address(network, *address);
        if fit {
            let home = free.iter().find(|address| self.bench.is_home(&thing(address)));
            if let Some(address) =
                home.or_else(|| free.iter().find(|a| self.bench.judges(&thing(a), self.now)))
            {
                return Some((me.clone(), *address));
            }
        }
        let spent = || claims.spent(subnet).into_iter().map(|(address, _)| address).filter(|a| !granted(a));
        let with_judge = |address: Ipv4Addr| (self.bench.judge_of(&thing(&address)).clone(), address);
        let willing =
            |(judge, _): &(HostId, Ipv4Addr)| !told.declined.contains(judge) && (fit || judge != me);
        // Before this host judges, what only it could give is the last choice: that is a wait.
        let waiting = || {
            free.first().map(|address| (me.clone(), *address)).filter(|_| !fit && !told.declined.contains(me))
        };
        free.iter()
            .copied()
            .map(with_judge)
            .find(willing)
            .or_else(|| spent().map(with_judge).find(willing))
            .or_else(waiting)
    }

    fn full(&self, network: NetworkId, subnet: Ipv4Net, told: &Told) -> Refused {
        let (tally, size) = (self.ledger.claims(network).tally(), subnet.hosts().count());
        let (unreachable, rounds) = (told.unreachable, told.rounds);
        if tally.held + tally.released + tally.ghosts < size {
            let any = free(self.ledger.claims(network), subnet).into_iter().next();
            let judge = any.map(|address| self.bench.judge_of(&Thing::Address(network, address)).clone());
            let judge = judge.unwrap_or_else(|| self.bench.me().clone());
            return Refused::Unreachable {
                what: format!("an address of {network}"),
                judge,
                unreachable,
                rounds,
            };
        }
        Refused::Full { network, subnet, size, tally, unreachable, rounds }
    }

    /// A question about one thing goes to its judge, as often as there are rounds.
    fn to_judge(
        &self,
        question: Question,
        told: &Told,
        what: impl FnOnce() -> String,
    ) -> Result<(HostId, Question), Refused> {
        let judge = self.bench.judge_of(&question.thing()).clone();
        if told.rounds < ROUNDS_MAX {
            return Ok((judge, question));
        }
        let (unreachable, rounds) = (told.unreachable, told.rounds);
        Err(Refused::Unreachable { what: what(), judge, unreachable, rounds })
    }
}

impl Told {
    /// Takes a judge's answer into account; none means that it did not answer in time.
    pub fn hear(&mut self, judge: &HostId, question: &Question, answer: Option<Answer>, asked: Instant) {
        self.unreachable += usize::from(answer.is_none());
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
                if let Some(Answer::NotYet(ms)) = answer {
                    let then = asked + Duration::from_millis(ms);
                    self.later = Some(self.later.map_or(then, |other| other.min(then)));
                }
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

    fn waits(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|then| then > now)
    }

    /// Whether there is something to wait for before the addresses are given up.
    fn ask_again(&mut self) -> bool {
        let Some(then) = self.later.take().filter(|_| !self.waited) else { return false };
        self.waited = true;
        self.declined.clear();
        self.rounds = 0;
        self.not_before = self.not_before.max(Some(then));
        true
    }

    /// What was given long ago may have been given to another since, and what stands in the view
    /// stands there whatever was given.
    fn drop_stale(&mut self, desk: &Desk, need: &Need) {
        let bound = desk.bench.hold() / 2;
        let fresh = |asked: Instant| desk.now < asked + bound;
        let claims = desk.ledger.claims(need.network);
        self.claim.take_if(|held| !fresh(held.asked));
        self.address.take_if(|held| !fresh(held.asked) || claims.holder(held.thing).is_some());
        let numbered = |number| claims.numbered(need.app, &need.process, number).is_some();
        self.ordinal.take_if(|held| !fresh(held.asked) || numbered(held.thing));
    }
}

fn taken(holder: &Claimant) -> Answer {
    Answer::Taken { host: holder.host.clone(), member: Some(holder.member.clone()) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Addresses of a subnet on which nothing stands, in order.
fn free(claims: &Claims, subnet: Ipv4Net) -> Vec<Ipv4Addr> {
    subnet.hosts().filter(|address| claims.at(*address).is_none()).collect()
}

fn is_member_address(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}
