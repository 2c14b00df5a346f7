//! What links do to messages: how late each arrives, and whether it does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, RngExt as _};
use tokio::time::Instant;

/// What one direction of a link does to every message.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// How long a message travels.
    pub delay: Delay,
    /// Which share of the messages is lost, 0 to 1.
    pub loss: f64,
    /// A lost message arrives so much later, as on a wire that repeats it; `None`: it never arrives.
    pub loss_delay: Option<Duration>,
    /// Which share of the messages arrives twice, 0 to 1. Only frames and chitchat's ACKs can: other
    /// envelopes cannot be copied, and a question is one stream.
    pub duplicate: f64,
    /// Which share of the messages travels eleven times as long, 0 to 1, so that others overtake it.
    pub reorder: f64,
    /// Bytes per second of the network cards at both ends, each of which serves one message at a time;
    /// `None`: as many as come.
    pub bandwidth: Option<u64>,
}

impl Default for Link {
    /// A link of a metropolitan region: 0.3 to 1.5 ms, and nothing is lost.
    fn default() -> Self {
        let delay = Delay::Uniform(Duration::from_micros(300)..=Duration::from_micros(1500));
        Self::of(delay)
    }
}

impl Link {
    /// A link that does nothing but take its time.
    pub fn of(delay: Delay) -> Self {
        Self { delay, loss: 0.0, loss_delay: None, duplicate: 0.0, reorder: 0.0, bandwidth: None }
    }
}

/// How long messages travel. tokio's timers make it whole milliseconds, rounded up.
#[derive(Debug, Clone, PartialEq)]
pub enum Delay {
    /// Each as long.
    Fixed(Duration),
    /// Any time of a range, all as likely.
    Uniform(RangeInclusive<Duration>),
    /// `base`; a `share` of the messages up to `tail` longer.
    LongTail {
        /// What every message takes.
        base: Duration,
        /// What some take at most beyond.
        tail: Duration,
        /// Which share of the messages that is, 0 to 1.
        share: f64,
    },
}

impl Delay {
    fn draw(&self, chance: &mut impl Rng) -> Duration {
        match self {
            Delay::Fixed(delay) => *delay,
            Delay::Uniform(range) => chance.random_range(range.clone()),
            Delay::LongTail { base, tail, share } if happens(*share, chance) => {
                *base + chance.random_range(Duration::ZERO..=*tail)
            }
            Delay::LongTail { base, .. } => *base,
        }
    }
}

/// No chance is drawn for what never happens: it costs time.
fn happens(share: f64, chance: &mut impl Rng) -> bool {
    share > 0.0 && chance.random_bool(share.min(1.0))
}

/// When a message arrives; nothing when it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Arrivals {
    pub(super) first: Option<Instant>,
    pub(super) second: Option<Instant>,
}

/// A message about to travel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Journey {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: usize,
    /// How long it waits for a network card at most; it is dropped beyond.
    pub(super) patience: Duration,
}

/// All links of a network.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) default: Link,
    /// Directed links that are not as the others.
    pub(super) special: BTreeMap<(SocketAddr, SocketAddr), Link>,
    /// Directed links over which nothing passes.
    pub(super) cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Hosts starved of CPU: everything to and from them is so much later.
    pub(super) slow: BTreeMap<SocketAddr, Duration>,
    cards: BTreeMap<SocketAddr, Card>,
}

/// Until when a host's network card is busy, either way.
#[derive(Debug, Default)]
struct Card {
    sends_until: Option<Instant>,
    receives_until: Option<Instant>,
}

impl Links {
    /// When a message that is sent now arrives.
    pub(super) fn travel(&mut self, now: Instant, journey: Journey, chance: &mut impl Rng) -> Arrivals {
        let Journey { from, to, .. } = journey;
        if self.cuts.contains(&(from, to)) {
            return Arrivals::default();
        }
        let link = self.special.get(&(from, to)).unwrap_or(&self.default).clone();
        let mut late = self.late(from) + self.late(to);
        if happens(link.loss, chance) {
            let Some(delay) = link.loss_delay else { return Arrivals::default() };
            late += delay;
        }
        let twice = happens(link.duplicate, chance);
        let mut arrive = || {
            let mut delay = link.delay.draw(chance);
            if happens(link.reorder, chance) {
                delay *= 11;
            }
            let at = self.pass_cards(now, &link, journey, delay)?;
            Some(at + late)
        };
        Arrivals { first: arrive(), second: twice.then(arrive).flatten() }
    }

    fn late(&self, host: SocketAddr) -> Duration {
        self.slow.get(&host).copied().unwrap_or_default()
    }

    /// When a message is through the cards at both ends; `None` when it would have to wait too long.
    fn pass_cards(
        &mut self,
        now: Instant,
        link: &Link,
        journey: Journey,
        delay: Duration,
    ) -> Option<Instant> {
        let Some(bandwidth) = link.bandwidth else { return Some(now + delay) };
        let takes = Duration::from_secs_f64(journey.bytes as f64 / bandwidth.max(1) as f64);
        let sender = &mut self.cards.entry(journey.from).or_default().sends_until;
        let begins = sender.map_or(now, |busy| busy.max(now));
        if begins - now > journey.patience {
            return None;
        }
        *sender = Some(begins + takes);
        let receiver = &mut self.cards.entry(journey.to).or_default().receives_until;
        // Its first byte may arrive while the last is still being sent.
        let begins = receiver.map_or(begins + delay, |busy| busy.max(begins + delay));
        *receiver = Some(begins + takes);
        Some(begins + takes)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn host(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 7946))
    }

    fn journey(from: u8, to: u8, bytes: usize) -> Journey {
        Journey { from: host(from), to: host(to), bytes, patience: Duration::from_secs(5) }
    }

    /// Arrivals in milliseconds from now, of messages (from, to, bytes) all sent now.
    fn arrivals(links: &mut Links, sent: &[(u8, u8, usize)]) -> Vec<(Option<u128>, Option<u128>)> {
        let (now, mut chance) = (Instant::now(), SmallRng::seed_from_u64(1));
        let ms = |at: Option<Instant>| at.map(|at| (at - now).as_millis());
        sent.iter()
            .map(|&(from, to, bytes)| links.travel(now, journey(from, to, bytes), &mut chance))
            .map(|arrivals| (ms(arrivals.first), ms(arrivals.second)))
            .collect()
    }

    fn fixed(change: impl FnOnce(&mut Link)) -> Links {
        let mut default = Link::of(Delay::Fixed(10 * MS));
        change(&mut default);
        Links { default, ..Links::default() }
    }

    #[test]
    fn what_a_link_does_to_one_message() {
        let once = |ms| (Some(ms), None);
        let lost = (None, None);
        let cases = [
            ("nothing", fixed(|_| ()), once(10)),
            ("no delay at all", fixed(|link| link.delay = Delay::Fixed(Duration::ZERO)), once(0)),
            ("loss", fixed(|link| link.loss = 1.0), lost),
            (
                "loss that is made good",
                fixed(|link| (link.loss, link.loss_delay) = (1.0, Some(200 * MS))),
                once(210),
            ),
            ("duplicate", fixed(|link| link.duplicate = 1.0), (Some(10), Some(10))),
            ("reorder", fixed(|link| link.reorder = 1.0), once(110)),
            (
                "tail of nobody",
                fixed(|link| link.delay = Delay::LongTail { base: 3 * MS, tail: 90 * MS, share: 0.0 }),
                once(3),
            ),
            ("bandwidth", fixed(|link| link.bandwidth = Some(1_000_000)), once(30)),
        ];
        for (case, mut links, expected) in cases {
            assert_eq!(arrivals(&mut links, &[(1, 2, 20_000)]), [expected], "{case}");
        }
    }

    #[test]
    fn a_tail_is_what_some_messages_take_longer() {
        let mut links =
            fixed(|link| link.delay = Delay::LongTail { base: 3 * MS, tail: 90 * MS, share: 0.1 });
        let taken = arrivals(&mut links, &[(1, 2, 0); 1000]);
        let late = taken.iter().filter(|(first, _)| first.unwrap() > 3).count();
        assert!((60..140).contains(&late), "{late}");
        assert!(taken.iter().all(|(first, _)| (3..=93).contains(&first.unwrap())));
    }

    #[test]
    fn a_cut_is_one_way_and_slowness_is_both_ways() {
        let mut links = fixed(|_| ());
        links.cuts.insert((host(1), host(2)));
        links.slow.insert(host(3), 50 * MS);
        let taken = arrivals(&mut links, &[(1, 2, 0), (2, 1, 0), (3, 1, 0), (1, 3, 0)]);
        assert_eq!(
            taken.iter().map(|(first, _)| *first).collect::<Vec<_>>(),
            [None, Some(10), Some(60), Some(60)]
        );
    }

    #[test]
    fn a_special_link_is_directed() {
        let mut links = fixed(|_| ());
        links.special.insert((host(1), host(2)), Link::of(Delay::Fixed(70 * MS)));
        assert_eq!(arrivals(&mut links, &[(1, 2, 0), (2, 1, 0)]), [(Some(70), None), (Some(10), None)]);
    }

    /// One card sends one message after another, whoever they are for, and receives them so, whoever
    /// they are from.
    #[test]
    fn a_card_serves_one_message_at_a_time() {
        let card = || fixed(|link| link.bandwidth = Some(1_000_000));
        let second = |sent| arrivals(&mut card(), sent)[1].0;
        assert_eq!(second(&[(1, 2, 20_000), (1, 3, 20_000)]), Some(50));
        assert_eq!(second(&[(1, 3, 20_000), (2, 3, 20_000)]), Some(50));
        assert_eq!(second(&[(1, 2, 20_000), (2, 1, 20_000)]), Some(30));
        assert_eq!(second(&[(1, 2, 20_000), (3, 4, 20_000)]), Some(30));
    }

    #[test]
    fn nobody_waits_for_ever_for_a_card() {
        let mut links = fixed(|link| link.bandwidth = Some(1_000));
        let taken = arrivals(&mut links, &[(1, 2, 6_000), (1, 2, 1)]);
        assert_eq!(taken, [(Some(6010), None), (None, None)]);
    }
}
