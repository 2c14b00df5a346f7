//! A run looked at once a second, for the page that shows it.

use std::time::Duration;

use gossip::record::MemberState;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::report::chart::{Axis, Chart, Look, Scale, Series};
use crate::report::{Page, human_bytes};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What was seen of a run.
pub struct Chronicle {
    began: Instant,
    moments: Vec<Moment>,
    /// What each host's agent had sent at the last look.
    sent: Vec<u64>,
}

/// One look.
#[derive(Debug, Default)]
struct Moment {
    at_s: f64,
    live: f64,
    released: f64,
    ghosts: f64,
    contested: f64,
    running: f64,
    /// On average over the views of those that run.
    answering: f64,
    /// Bytes a host that runs sent in a second.
    bytes: f64,
}

impl Chronicle {
    /// Begins now.
    pub fn begin() -> Chronicle {
        Chronicle { began: Instant::now(), moments: Vec::new(), sent: Vec::new() }
    }

    /// Looks, if a second has passed.
    pub fn look(&mut self, cluster: &Cluster) {
        let at_s = self.began.elapsed().as_secs_f64();
        let since_s = at_s - self.moments.last().map_or(f64::NEG_INFINITY, |moment| moment.at_s);
        if since_s < PAUSE.as_secs_f64() {
            return;
        }
        let mut moment = Moment { at_s, ..Moment::default() };
        moment.count_claims(cluster);
        let answering: usize = cluster.live().map(|(_, _, shown)| shown.view.answering().count()).sum();
        moment.running = cluster.live().count() as f64;
        moment.answering = answering as f64 / moment.running.max(1.0);
        // An agent that started anew counts from 0.
        let now: Vec<u64> = cluster.hosts.iter().map(|host| host.sent()).collect();
        let before = self.sent.iter().copied().chain(std::iter::repeat(0));
        let sent: u64 =
            now.iter().zip(before).map(|(now, before)| now.checked_sub(before).unwrap_or(*now)).sum();
        if since_s.is_finite() {
            moment.bytes = sent as f64 / since_s / moment.running.max(1.0);
        }
        self.sent = now;
        self.moments.push(moment);
    }

    /// The drawings of it.
    pub fn show(&self, page: &mut Page) {
        page.section(
            "Over time",
            "Claims as the first running host sees them: live members hold an address, released ones let theirs rest, \
             ghosts are claims whose host vanished without releasing them, contested ones lost against another. \
             Hosts: where fewer answer than run, the region is cut or a host is not yet believed; where more do, a \
             dead one is not yet found.",
        );
        let line = |name, look, of: fn(&Moment) -> f64| {
            Series::line(name, look, self.moments.iter().map(|moment| (moment.at_s, of(moment))).collect())
        };
        let chart = |title: &str, label, number, series| {
            let x = Axis { label: "virtual seconds", scale: Scale::Linear, number: |at| format!("{at:.0}") };
            Chart { title: title.into(), x, y: Axis { label, scale: Scale::Linear, number }, series }
        };
        let count: fn(f64) -> String = |count| format!("{count:.1}").trim_end_matches(".0").to_owned();
        let claims = vec![
            line("live", Look::Ours, |m| m.live),
            line("released", Look::Plain, |m| m.released),
            line("ghosts", Look::Peer, |m| m.ghosts),
            line("contested", Look::Bad, |m| m.contested),
        ];
        let hosts = vec![
            line("agents that run", Look::Plain, |m| m.running),
            line("answer, as the others see it", Look::Ours, |m| m.answering),
        ];
        let bytes = vec![line("gossip sent by a host", Look::Ours, |m| m.bytes)];
        page.charts([
            chart("Claims", "members", count, claims),
            chart("Hosts", "hosts", count, hosts),
            chart("Bytes", "a second, before QUIC", human_bytes, bytes),
        ]);
    }
}

impl Moment {
    /// As the first host sees them that runs.
    fn count_claims(&mut self, cluster: &Cluster) {
        let Some((_, _, shown)) = cluster.live().next() else { return };
        let ledger = shown.ledger();
        for (host, _, network, member, record) in shown.view.members() {
            match record.state {
                MemberState::Released => self.released += 1.0,
                _ => self.live += 1.0,
            }
            let key = (host.clone(), *network, member.clone());
            if record.state != MemberState::Released
                && (ledger.address_contested(&key, record) || ledger.ordinal_contested(&key, record))
            {
                self.contested += 1.0;
            }
        }
        self.ghosts = shown.view.ghosts().count() as f64;
    }
}
