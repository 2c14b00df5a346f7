//! The side of the one who asks: what is still needed, and whom to ask for it.

use std::net::Ipv4Addr;

use gossip::id::{HostId, NetworkId};
use ipnet::Ipv4Net;
use rand::Rng;
use rand::seq::SliceRandom as _;

use super::told::Held;
use super::{
    Desk, Holder, Need, Next, Number, ROUNDS_MAX, Refused, Things, Told, Wanted, free, is_member_address,
};
use crate::claims::grants::Given;
use crate::claims::{Question, Thing, vni_candidate};

impl Desk<'_> {
    /// What a member does next to get what it needs. What this host judges itself is decided here.
    pub fn next(&mut self, need: &Need, told: &mut Told, rng: &mut impl Rng) -> Next {
        let bound = told.begin_round(self.bench.hold(), self.now);
        told.drop_stale(self, need);
        let mut questions = match self.decide_own(need, told, rng) {
            Ok(questions) => questions,
            Err(refused) => return Next::Refused(refused),
        };
        if told.waits(self.now) {
            let then = told.not_before.unwrap_or(bound).min(bound);
            return Next::Wait(then, "its judge has only just started, or is another one now".to_owned());
        }
        if questions.is_empty() {
            return self.have(need, told);
        }
        // What this host would judge, did it judge already, waits for that.
        let me = self.bench.me();
        if let Err(unfit) = self.bench.fit(self.now)
            && questions.iter().all(|(judge, _)| judge == me)
        {
            let then = unfit.until.unwrap_or(self.now + self.bench.hold() / 10);
            return Next::Wait(then.min(bound), unfit.why);
        }
        questions.retain(|(judge, _)| judge != me);
        told.rounds += 1;
        told.tries += 1;
        Next::Ask(questions)
    }

    /// Decides what this host judges itself; returns what is to be asked of others, and of this host
    /// while it does not judge yet.
    fn decide_own(
        &mut self,
        need: &Need,
        told: &mut Told,
        rng: &mut impl Rng,
    ) -> Result<Vec<(HostId, Question)>, Refused> {
        let me = self.bench.me().clone();
        let fit = self.bench.fit(self.now).is_ok();
        let mut questions = Vec::new();
        for _ in 0..2 * ROUNDS_MAX {
            let (mine, others): (Vec<_>, Vec<_>) =
                self.missing(need, told, rng)?.into_iter().partition(|(judge, _)| fit && *judge == me);
            questions = others;
            if mine.is_empty() {
                break;
            }
            for (judge, question) in mine {
                let answer = self.judge(&me, &question, rng);
                told.hear(&judge, &question, Some(answer), self.now);
            }
            if let Some(refused) = told.taken.take() {
                return Err(refused);
            }
            if told.waits(self.now) {
                break;
            }
        }
        told.taken.take().map_or(Ok(questions), Err)
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
        if let Some(number) = need.number.as_ref().filter(|_| told.ordinal.is_none()) {
            questions.extend(self.ordinal_question(need.network, number, told)?);
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
        network: NetworkId,
        number: &Number,
        told: &mut Told,
    ) -> Result<Option<(HostId, Question)>, Refused> {
        let Number { app, process, chosen } = number.clone();
        if !told.ordinals_silent {
            let question = Question::Ordinal { network, app, process, chosen };
            return self.to_judge(question, told, || format!("a number of {}", number.process)).map(Some);
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
            Some((judge, address)) if told.tries < ROUNDS_MAX && !told.is_over(self.now) => {
                Ok((judge, ask(address, false)))
            }
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
            return self.unreachable(format!("an address of {network}"), judge, told);
        }
        Refused::Full { network, subnet, size, tally, unreachable, rounds }
    }

    /// A question about one thing goes to its judge, as long as there is time.
    fn to_judge(
        &self,
        question: Question,
        told: &Told,
        what: impl FnOnce() -> String,
    ) -> Result<(HostId, Question), Refused> {
        let judge = self.bench.judge_of(&question.thing()).clone();
        if !told.is_over(self.now) {
            return Ok((judge, question));
        }
        Err(self.unreachable(what(), judge, told))
    }

    fn unreachable(&self, what: String, judge: HostId, told: &Told) -> Refused {
        match self.bench.fit(self.now) {
            Err(unfit) if judge == *self.bench.me() => Refused::Unfit { what, why: unfit.why },
            _ => {
                let (unreachable, rounds) = (told.unreachable, told.rounds);
                Refused::Unreachable { what, judge, unreachable, rounds }
            }
        }
    }
}
