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
    /// T_hold: how long a host must be live again after it was dead, and how long a judge waits
    /// before it takes up judging.
    pub hold: Duration,
    /// Detection bound: within it a silent agent is found dead, and a new one found live.
    pub detection: Duration,
    /// How long a host is dead before it is gone.
    pub gone: Duration,
    /// How long a gone host is remembered.
    pub forget: Duration,
    /// Longest `away` a host is granted, whatever its record says.
    pub away_max: Duration,
}

impl Timings {
    /// The defaults for a gossip interval: hold 5 intervals, detection 12 (chitchat with phi 8
    /// was measured to find a dead host within 6 s at 500 ms and within 12 s at 1 s), gone after
    /// 15 min, forgotten after 24 h, away for 120 s at most.
    pub fn of(interval: Duration) -> Self {
        Self {
            hold: 5 * interval,
            detection: 12 * interval,
            gone: Duration::from_secs(15 * 60),
            forget: Duration::from_secs(24 * 3600),
            away_max: Duration::from_secs(120),
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
    /// The last heartbeat with its generation, and when it changed.
    heartbeat: (Option<u64>, u64),
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
            heartbeat: (None, 0),
            heard: now,
            live_since: None,
            away_since: None,
            dead_since: None,
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

    /// Whether the host was gone for so long that nothing of it is kept.
    pub fn is_forgotten(&self, now: Instant, timings: &Timings) -> bool {
        self.dead_since.is_some_and(|since| now >= since + timings.gone + timings.forget)
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
        if (sign.live, sign.heartbeat) != self.heartbeat {
            self.heartbeat = (sign.live, sign.heartbeat);
            self.heard = now;
        }
        self.live_since = if sign.live.is_some() { self.live_since.or(Some(now)) } else { None };
        self.away_since = if sign.away.is_some() { self.away_since.or(Some(now)) } else { None };
    }

    fn judge(&self, sign: &Sign, now: Instant, timings: &Timings) -> Standing {
        if let (Some(seconds), Some(since)) = (sign.away, self.away_since) {
            let bound = Duration::from_secs(seconds.into()).min(timings.away_max);
            // It has said goodbye: a heartbeat still on its way does not call it back.
            return if now < since + bound { Standing::Away } else { self.dead(now, timings) };
        }
        let proven = match (self.dead_since, self.live_since) {
            (Some(_), Some(since)) => now >= since + timings.hold,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if proven {
            let late = sign.timeout.is_some_and(|timeout| now >= self.heard + timeout / 2);
            return if late { Standing::Late } else { Standing::Answering };
        }
        if self.dead_since.is_none() && now < self.born + timings.detection {
            return Standing::Answering;
        }
        self.dead(now, timings)
    }

    fn dead(&self, now: Instant, timings: &Timings) -> Standing {
        match self.dead_since {
            Some(since) if now >= since + timings.gone => Standing::Gone,
            _ => Standing::Dead,
        }
    }
}
