//! When something kept packets between two hosts from arriving. Pure.

use std::ops::Range;
use std::time::{Duration, Instant};

/// From when to when.
pub type Span = Range<Instant>;

/// What an agent whose engine is gone, too, takes to have everything built again: it waits for the region first, 2 s at
/// most. One that ends before starts over.
const REBUILT: Duration = Duration::from_secs(2);

/// What has befallen hosts, by their numbers.
#[derive(Debug, Default)]
pub struct Troubles {
    /// Engines that were killed.
    pub killed: Vec<(usize, Span)>,
    /// Hosts without an agent, which would have the engine replaced.
    pub headless: Vec<(usize, Span)>,
    /// Hosts of which one did not hear the other.
    pub deaf: Vec<([usize; 2], Span)>,
}

impl Troubles {
    /// The longest part of `span` in which packets between the two could have arrived.
    pub fn calm(&self, hosts: [usize; 2], span: &Span) -> Duration {
        let mut troubles = self.between(hosts);
        troubles.sort_by_key(|trouble| trouble.start);
        let (mut calm, mut from) = (Duration::ZERO, span.start);
        for trouble in troubles {
            calm = calm.max(trouble.start.min(span.end).saturating_duration_since(from));
            from = from.max(trouble.end);
        }
        calm.max(span.end.saturating_duration_since(from))
    }

    fn between(&self, hosts: [usize; 2]) -> Vec<Span> {
        let killed = self.killed.iter().filter(|(host, _)| hosts.contains(host));
        let killed = killed.map(|(host, span)| span.start..self.served_again(*host, span.end));
        let deaf = self.deaf.iter().filter(|(pair, _)| pair.iter().all(|host| hosts.contains(host)));
        killed.chain(deaf.map(|(_, span)| span.clone())).collect()
    }

    /// When an engine killed at `at` was replaced, or an agent had been there for long enough to build everything anew.
    fn served_again(&self, host: usize, at: Instant) -> Instant {
        let missed = |at: &Instant| {
            let ends = self
                .headless
                .iter()
                .filter(|(of, span)| *of == host && span.start <= *at + REBUILT && span.end > *at);
            ends.map(|(_, span)| span.end).max()
        };
        let last = std::iter::successors(Some(at), missed).last().unwrap_or(at);
        if last == at { at } else { last + REBUILT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::clock;

    #[test]
    fn what_is_calm_lies_between_troubles_of_these_two() {
        let start = clock();
        let at = |ms| start + Duration::from_millis(ms);
        let troubles = Troubles {
            killed: vec![(0, at(1000)..at(1100)), (2, at(0)..at(9000)), (1, at(6000)..at(6100))],
            // While its engine was killed the host had no agent, and the next one did not last.
            headless: vec![(1, at(5900)..at(7000)), (1, at(8000)..at(8500)), (1, at(11_000)..at(12_000))],
            deaf: vec![([0, 1], at(1050)..at(3000)), ([1, 2], at(0)..at(9000))],
        };
        for (span, calm) in [
            (0..900, 900),
            (0..5000, 2000),
            (500..3500, 500),
            (1500..2500, 0),
            (2900..6000, 3000),
            (6000..8000, 0),
            (7900..9700, 0),
            (5000..11_500, 1000),
        ] {
            let found = troubles.calm([0, 1], &(at(span.start)..at(span.end)));
            assert_eq!(found, Duration::from_millis(calm), "{span:?}");
        }
    }
}
