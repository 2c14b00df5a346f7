//! Which hosts answer, are late, dead, gone or away. Pure, by the local monotonic clock only.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How a host stands with this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its agent answers, or is too new to be judged.
    Answering,
    /// It stopped its agent on purpose a short while ago; its containers go on.
    Away,
    /// It answers, but its last heartbeat is older than half the detection bound: last in answers.
    Late,
    /// Out of answers; its datapath is kept.
    Dead,
    /// Its datapath is removed; its claims remain as ghosts.
    Gone,
}

impl Standing {
    /// Whether the host's members are in answers.
    pub fn answers(self) -> bool {
        matches!(self, Standing::Answering | Standing::Away | Standing::Late)
    }

    /// The name as metrics and `warren hosts` print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Answering => "answering",
            Standing::Away => "away",
            Standing::Late => "late",
            Standing::Dead => "dead",
            Standing::Gone => "gone",
        }
    }
}

/// Bounds for the standing of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// T_hold: how long a host must be live again, with heartbeats to the end, after it was dead; and
    /// how long a judge waits before it takes up judging.
    pub hold: Duration,
    /// Detection bound: within it a silent agent is found dead, and a new one found live.
    pub detection: Duration,
    /// So short a silence is nobody's death, though chitchat's detector, which waits for eight times the
    /// mean of a host's last heartbeats, may call it one where they came often.
    pub patience: Duration,
    /// How long a host is dead before it is gone.
    pub gone: Duration,
    /// How long a gone host is remembered.
    pub forget: Duration,
    /// Longest `away` a host is granted, whatever its record says.
    pub away_max: Duration,
    /// How long a claim that vanished without being released is remembered.
    pub ghost: Duration,
    /// How long chitchat keeps a dead generation; in the first half of it others are told of it.
    pub grace: Duration,
}

impl Timings {
    /// The defaults for a gossip interval: hold 5 intervals, detection 12 (chitchat with phi 8
    /// was measured to find a dead host within 6 s at 500 ms and within 12 s at 1 s), patience 8 up to 500 ms,
    /// 4 s at least beyond, and 5¾ from 700 ms on (such regions are so large that the last heartbeat goes round for
    /// seconds, which come on top), gone after 15 min, forgotten after 24 h, away for 120 s at most, ghosts for 120 s,
    /// grace 4 min.
    pub fn of(interval: Duration) -> Self {
        Self {
            hold: 5 * interval,
            detection: 12 * interval,
            patience: (8 * interval).min((23 * interval / 4).max(Duration::from_secs(4))),
            gone: Duration::from_secs(15 * 60),
            forget: Duration::from_secs(24 * 3600),
            away_max: Duration::from_secs(120),
            ghost: Duration::from_secs(120),
            grace: Duration::from_secs(4 * 60),
        }
    }
}

/// What one look at chitchat says of a host, all its generations taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sign {
    /// The newest generation that is live to chitchat's failure detector.
    pub live: Option<u64>,
    /// The newest generation heard of.
    pub generation: u64,
    /// Heartbeat of the newest live generation.
    pub heartbeat: u64,
    /// Chitchat's failure detection timeout for that generation.
    pub timeout: Option<Duration>,
    /// `away` of the host's record, in seconds: its agent has stopped, on purpose.
    pub away: Option<u32>,
}

impl Sign {
    /// Adds one generation to it; it is live exactly when it has a `timeout`.
    pub fn add(&mut self, generation: u64, heartbeat: u64, timeout: Option<Duration>) {
        if timeout.is_some() && self.live.is_none_or(|live| live < generation) {
            (self.live, self.heartbeat, self.timeout) = (Some(generation), heartbeat, timeout);
        }
        self.generation = self.generation.max(generation);
    }
}

/// The life of one host as heard by this agent.
#[derive(Debug, Clone)]
pub struct Life {
    standing: Standing,
    /// The newest generation, and when it became known while the host was in answers.
    generation: u64,
    born: Instant,
    /// The highest heartbeat of a live generation with that generation, and when it came.
    heartbeat: Option<(u64, u64)>,
    heard: Instant,
    /// Since when chitchat has found it live without a break.
    live_since: Option<Instant>,
    /// Since when its record says `away`.
    away_since: Option<Instant>,
    /// Since when it is out of answers.
    dead_since: Option<Instant>,
}

impl Life {
    /// A host first heard of, or restored from disk, now.
    pub fn begin(generation: u64, now: Instant) -> Self {
        Self {
            standing: Standing::Answering,
            generation,
            born: now,
            heartbeat: None,
            heard: now,
            live_since: None,
            away_since: None,
            dead_since: None,
        }
    }

    /// A host that is out of answers elsewhere, `since` before now.
    pub fn silent(generation: u64, since: Instant, now: Instant) -> Self {
        let begun = Self::begin(generation, now);
        Self { standing: Standing::Dead, dead_since: Some(since), heard: since, ..begun }
    }

    /// Whoever listened has begun anew: a host in answers has one detection bound to be heard again.
    pub fn renew(&mut self, now: Instant) {
        if self.dead_since.is_none() {
            self.born = now;
        }
    }

    /// How the host stands since the last [`observe`](Self::observe).
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The newest generation heard of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Since when the host is out of answers.
    pub fn silent_since(&self) -> Option<Instant> {
        self.dead_since
    }

    /// Since when nothing is heard of a host that is out of answers. One that is heard again and not
    /// yet believed is on its way back, however long it was silent.
    pub fn unheard_since(&self) -> Option<Instant> {
        self.dead_since.map(|since| since.max(self.heard))
    }

    /// Whether its agent is live and was heard within the detection bound, believed or not: where
    /// heartbeats came rarely, chitchat waits for the next one beyond any bound.
    pub fn is_heard(&self, now: Instant, timings: &Timings) -> bool {
        self.live_since.is_some() && now < self.heard + timings.detection
    }

    /// Whether the host was gone for so long that nothing of it is kept.
    pub fn is_forgotten(&self, now: Instant, timings: &Timings) -> bool {
        self.unheard_since().is_some_and(|since| now >= since + timings.gone + timings.forget)
    }

    /// Takes one look into account and tells the standing.
    pub fn observe(&mut self, sign: &Sign, now: Instant, timings: &Timings) -> Standing {
        self.hear(sign, now);
        self.standing = self.judge(sign, now, timings);
        self.dead_since = if self.standing.answers() { None } else { self.dead_since.or(Some(now)) };
        self.standing
    }

    fn hear(&mut self, sign: &Sign, now: Instant) {
        if sign.generation > self.generation {
            self.generation = sign.generation;
            // A host in answers that restarts stays in answers while chitchat, which lists every
            // newborn as dead, makes up its mind. One that was out of them has to prove itself.
            if self.dead_since.is_none() {
                self.born = now;
            }
        }
        let heartbeat = sign.live.map(|generation| (generation, sign.heartbeat));
        // An older generation that outlives the newest one in chitchat says nothing new.
        if heartbeat > self.heartbeat {
            (self.heartbeat, self.heard) = (heartbeat, now);
        }
        self.live_since = heartbeat.and_then(|_| self.live_since.or(Some(now)));
        self.away_since = if sign.away.is_some() { self.away_since.or(Some(now)) } else { None };
    }

    fn judge(&self, sign: &Sign, now: Instant, timings: &Timings) -> Standing {
        if let (Some(seconds), Some(since)) = (sign.away, self.away_since) {
            let bound = Duration::from_secs(seconds.into()).min(timings.away_max);
            // It has said goodbye: a heartbeat still on its way does not call it back.
            return if now < since + bound { Standing::Away } else { self.dead(now, timings) };
        }
        let proven = match (self.dead_since, self.live_since) {
            // Heartbeats from before its death that come round by others end soon: live is whose
            // heartbeats go on.
            (Some(_), Some(since)) => now >= since + timings.hold && now < self.heard + timings.hold / 2,
            (None, _) => self.is_heard(now, timings),
            (_, None) => false,
        };
        if proven {
            let timeout = sign.timeout.map(|timeout| timeout.min(timings.detection));
            let late = timeout.is_some_and(|timeout| now >= self.heard + timeout / 2);
            return if late { Standing::Late } else { Standing::Answering };
        }
        if self.dead_since.is_none() && now < self.born + timings.detection {
            return Standing::Answering;
        }
        let missed = self.heartbeat.is_some() && now < self.heard + timings.patience;
        if self.dead_since.is_none() && missed {
            return Standing::Late;
        }
        self.dead(now, timings)
    }

    fn dead(&self, now: Instant, timings: &Timings) -> Standing {
        match self.unheard_since() {
            Some(since) if now >= since + timings.gone => Standing::Gone,
            _ => Standing::Dead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(500);

    /// What is seen of a host from a moment on, until the next line of a story.
    #[derive(Clone, Copy)]
    enum Seen {
        /// Generation that lives, with heartbeats.
        Live(u64),
        /// Known, and not live; chitchat lists newborns so too.
        Silent(u64),
        /// Its old generation does not live, a new one was heard of.
        Restarted(u64),
        /// Live, but its heartbeat stands still.
        Mute(u64),
        /// Its record says away for so many seconds.
        Goodbye(u64, u32),
    }

    fn sign(seen: Seen, tick: u64) -> Sign {
        let timeout = Some(Duration::from_secs(4));
        match seen {
            Seen::Live(generation) => {
                Sign { live: Some(generation), generation, heartbeat: tick, timeout, away: None }
            }
            Seen::Mute(generation) => {
                Sign { live: Some(generation), generation, heartbeat: 0, timeout, away: None }
            }
            Seen::Silent(generation) | Seen::Restarted(generation) => Sign { generation, ..Sign::default() },
            // The last heartbeats come round a while after it.
            Seen::Goodbye(generation, seconds) => {
                let heartbeat = tick.min(150);
                Sign { live: Some(generation), generation, heartbeat, timeout, away: Some(seconds) }
            }
        }
    }

    /// Plays a story of (from second, what is seen) up to each second of `expected`.
    fn check(story: &[(f64, Seen)], expected: &[(f64, Standing)]) {
        check_at(INTERVAL, story, expected);
    }

    fn check_at(interval: Duration, story: &[(f64, Seen)], expected: &[(f64, Standing)]) {
        let (start, timings) = (Instant::now(), Timings::of(interval));
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut life = Life::begin(1, start);
        let (mut tick, mut expected) = (0_u64, expected.iter().peekable());
        while let Some((second, standing)) = expected.peek() {
            let now = start + Duration::from_millis(100) * tick as u32;
            let seen = story.iter().rev().find(|(from, _)| at(*from) <= now).unwrap().1;
            life.observe(&sign(seen, tick), now, &timings);
            if now >= at(*second) {
                assert_eq!(life.standing(), *standing, "after {second} s");
                expected.next();
            }
            tick += 1;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn standings() {
        use Seen::*;
        use Standing::*;
        // 18: newborns are in answers for one detection bound (6 s), then must be live.
        check(&[(0.0, Silent(1))], &[(0.0, Answering), (5.9, Answering), (6.0, Dead)]);
        check(&[(0.0, Silent(1)), (2.0, Live(1))], &[(1.9, Answering), (20.0, Answering)]);
        // 18: a restart, down 3 s: the old generation is found dead before the new one is live.
        check(
            &[(0.0, Live(1)), (10.0, Restarted(2)), (12.5, Live(2))],
            &[(9.9, Answering), (10.0, Answering), (12.4, Answering), (30.0, Answering)],
        );
        // A crash: dead when chitchat says so, but not after a silence of less than eight intervals (4 s).
        check(&[(0.0, Live(1)), (10.0, Silent(1))], &[(9.9, Answering), (10.0, Late), (13.9, Dead)]);
        check(&[(0.0, Live(1)), (10.0, Mute(1)), (14.5, Silent(1))], &[(14.4, Late), (14.5, Dead)]);
        // In a region of one-second rounds five and three quarters are enough.
        let crash = [(0.0, Live(1)), (15.0, Silent(1))];
        check_at(2 * INTERVAL, &crash, &[(14.9, Answering), (15.0, Late), (20.6, Late), (20.7, Dead)]);
        // Chitchat gave it up after two seconds, and it is heard again: it was never out of answers.
        check(
            &[(0.0, Live(1)), (10.0, Mute(1)), (12.0, Silent(1)), (13.0, Live(1))],
            &[(12.0, Late), (12.9, Late), (13.0, Answering), (60.0, Answering)],
        );
        // 33: a heartbeat older than half of the timeout (4 s) is late.
        check(
            &[(0.0, Live(1)), (10.0, Mute(1)), (15.0, Live(1))],
            &[(11.5, Answering), (12.2, Late), (15.1, Answering)],
        );
        // 33: however long chitchat waits for the next heartbeat, the detection bound (6 s) ends it.
        check(&[(0.0, Live(1)), (10.0, Mute(1))], &[(15.8, Late), (16.0, Dead), (60.0, Dead)]);
        // 33: nor does an older generation that chitchat has not given up yet.
        check(
            &[(0.0, Live(1)), (10.0, Live(2)), (14.0, Live(1))],
            &[(16.0, Late), (19.8, Late), (20.0, Dead), (60.0, Dead)],
        );
        // 35: a host restored from disk that never speaks is dead, then gone, and nothing else.
        check(&[(0.0, Silent(1))], &[(6.0, Dead), (905.9, Dead), (906.0, Gone), (5000.0, Gone)]);
        // 36: back in answers after five intervals (2.5 s) of being live again.
        check(
            &[(0.0, Live(1)), (10.0, Silent(1)), (20.0, Live(1)), (22.0, Silent(1)), (23.0, Live(1))],
            &[(20.0, Dead), (21.9, Dead), (23.0, Dead), (25.4, Dead), (25.5, Answering)],
        );
        // 36: a new generation of a dead host is no shortcut.
        check(
            &[(0.0, Live(1)), (10.0, Silent(1)), (20.0, Restarted(2)), (21.0, Live(2))],
            &[(20.0, Dead), (23.4, Dead), (23.5, Answering)],
        );
        // What others still had of a crashed host, after a cut: live to chitchat, and never heard again.
        check(
            &[(0.0, Live(1)), (10.0, Silent(1)), (20.0, Live(1)), (21.0, Mute(1)), (26.0, Silent(1))],
            &[(20.0, Dead), (22.4, Dead), (22.6, Dead), (24.0, Dead), (30.0, Dead)],
        );
        // 35: a host that is heard is not gone, though it died before it was believed again; what others
        // still had of it counts as well, once.
        check(
            &[(0.0, Live(1)), (10.0, Silent(1)), (500.0, Live(1)), (502.0, Silent(1))],
            &[(500.0, Dead), (910.0, Dead), (1401.8, Dead), (1402.1, Gone)],
        );
        check(
            &[(0.0, Live(1)), (10.0, Silent(1)), (909.0, Live(1))],
            &[(909.0, Dead), (911.4, Dead), (911.6, Answering)],
        );
        // 31: a graceful stop keeps it in answers for 120 s, whatever is still heard of it.
        check(
            &[(0.0, Live(1)), (10.0, Goodbye(1, 120))],
            &[(10.0, Away), (129.9, Away), (130.0, Dead), (1030.0, Gone)],
        );
        // No record grants more than the bound, and 0 ends at once.
        check(&[(0.0, Live(1)), (10.0, Seen::Goodbye(1, u32::MAX))], &[(129.9, Away), (130.0, Dead)]);
        check(&[(0.0, Live(1)), (10.0, Seen::Goodbye(1, 0))], &[(9.9, Answering), (10.0, Dead)]);
        // 31: back from an upgrade in a new generation, within its time.
        check(
            &[(0.0, Live(1)), (10.0, Seen::Goodbye(1, 120)), (60.0, Restarted(2)), (62.0, Live(2))],
            &[(59.9, Away), (60.0, Answering), (61.9, Answering), (80.0, Answering)],
        );
    }

    #[test]
    fn who_gossips_less_often_is_given_up_no_sooner() {
        let patience = |ms| Timings::of(Duration::from_millis(ms)).patience;
        assert!((20..5000).all(|ms| patience(ms) <= patience(ms + 1)));
        assert_eq!(
            [500, 600, 1000].map(patience),
            [Duration::from_secs(4), Duration::from_secs(4), Duration::from_millis(5750)]
        );
    }

    #[test]
    fn only_the_newest_live_generation_is_heard() {
        let mut sign = Sign::default();
        let timeout = Some(Duration::from_secs(1));
        for (generation, heartbeat, timeout) in
            [(7, 70, timeout), (9, 90, None), (8, 80, timeout), (5, 50, timeout)]
        {
            sign.add(generation, heartbeat, timeout);
        }
        assert_eq!((sign.generation, sign.live, sign.heartbeat), (9, Some(8), 80));
    }
}
