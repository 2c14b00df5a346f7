//! `warren top`: what this host's members send and receive, every second anew.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use gossip::id::{HostId, MemberId};
use serde::Serialize;
use tokio::time::Instant;

use super::Failure;
use super::client::Client;
use super::output::{Output, columns};
use crate::api::{Exchange, MemberTraffic};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Show what this host's members send and receive, every second anew, the busiest first.\n\nRates count \
                  WireGuard's bytes, headers included. Where the output is no terminal the tables follow each other; \
                  with `-o json` JSON documents do."
)]
pub struct Args {
    /// Measure once, print it and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(short, long, default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
}

/// What the members did between two looks.
#[derive(Debug, Serialize)]
struct Frame {
    host: HostId,
    received_per_s: u64,
    sent_per_s: u64,
    queries_per_s: BTreeMap<String, f64>,
    members: Vec<Line>,
}

/// One member, the busiest first.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    member: MemberTraffic,
    received_per_s: u64,
    sent_per_s: u64,
}

/// One look, and when it was taken.
struct Look {
    at: Instant,
    exchange: Exchange,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    let redraws = !args.once && out.is_for_people() && io::stdout().is_terminal();
    let mut last = look(client)?;
    loop {
        super::pause(Duration::from_secs_f64(args.interval));
        let next = look(client)?;
        let frame = frame(&last.exchange, &next.exchange, next.at - last.at);
        let text = out.text(&frame, frame.host.as_str(), || text(&frame));
        let text = if redraws { in_place(&text, size()) } else { format!("{text}\n") };
        let mut stdout = io::stdout();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        // A reader that has seen enough closes the pipe.
        if args.once || written.is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        last = next;
    }
}

fn look(client: &Client) -> Result<Look, Failure> {
    let exchange = client.get("/v1/traffic")?;
    Ok(Look { at: Instant::now(), exchange })
}

/// What was counted anew is less than what was counted before it: nothing is known of that time then.
fn frame(last: &Exchange, next: &Exchange, time: Duration) -> Frame {
    let per_s = |before: u64, now: u64| now.saturating_sub(before) as f64 / time.as_secs_f64().max(0.001);
    let before: BTreeMap<&MemberId, &MemberTraffic> = last.members.iter().map(|m| (&m.member, m)).collect();
    let line = |member: &MemberTraffic| {
        // A new one has all it has exchanged from this time.
        let (received, sent) = before.get(&member.member).map_or((0, 0), |m| (m.received, m.sent));
        Line {
            member: member.clone(),
            received_per_s: per_s(received, member.received) as u64,
            sent_per_s: per_s(sent, member.sent) as u64,
        }
    };
    let mut members: Vec<Line> = next.members.iter().map(line).collect();
    members.sort_by_cached_key(|l| (u64::MAX - l.received_per_s - l.sent_per_s, l.member.container.clone()));
    let queries = next.queries.iter().map(|(network, now)| {
        let before = last.queries.get(network).copied().unwrap_or(0);
        (network.clone(), per_s(before, *now))
    });
    Frame {
        host: next.host.clone(),
        received_per_s: members.iter().map(|l| l.received_per_s).sum(),
        sent_per_s: members.iter().map(|l| l.sent_per_s).sum(),
        queries_per_s: queries.collect(),
        members,
    }
}

fn text(frame: &Frame) -> String {
    let queries: f64 = frame.queries_per_s.values().sum();
    let summary = format!(
        "{}: {} members, in {}, out {}, {queries:.0} DNS queries/s\n",
        frame.host,
        frame.members.len(),
        rate(frame.received_per_s),
        rate(frame.sent_per_s)
    );
    let head = ["MEMBER", "NAME", "NETWORK", "IN", "OUT", "PEERS", "SESSIONS", "HANDSHAKE", "CONTAINER"];
    let rows: Vec<Vec<String>> = frame.members.iter().map(row).collect();
    std::iter::once(summary).chain(columns(&head, &rows)).collect::<Vec<_>>().join("\n")
}

fn row(Line { member: m, received_per_s, sent_per_s }: &Line) -> Vec<String> {
    let ordinal = m.ordinal.map(|n| format!("{n}.")).unwrap_or_default();
    vec![
        m.member.to_string(),
        format!("{ordinal}{}.{:.11}", m.process, m.app.to_string()),
        format!("{:.11}", m.network.to_string()),
        rate(*received_per_s),
        rate(*sent_per_s),
        m.peers.to_string(),
        m.sessions.to_string(),
        m.handshake_s.map_or("never".to_owned(), |age| format!("{age} s ago")),
        m.container.clone(),
    ]
}

/// Bytes a second as people read them.
fn rate(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB/s"), (1_000_000, "MB/s"), (1_000, "kB/s")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B/s"),
    }
}

/// A text over the one before it: from the first line of the screen, each to its end, as much as fits.
fn in_place(text: &str, (lines, width): (usize, usize)) -> String {
    // The cursor stays on the last line.
    let shown = text.lines().take(lines.saturating_sub(1));
    let shown: String =
        shown.map(|line| format!("{}\x1b[K\n", line.chars().take(width).collect::<String>())).collect();
    format!("\x1b[H{shown}\x1b[J")
}

/// Lines and columns of the terminal.
fn size() -> (usize, usize) {
    let found = rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0);
    found.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 3600 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(members: &[(&str, u64, u64)], queries: u64) -> Exchange {
        let member = |(id, received, sent): &(&str, u64, u64)| MemberTraffic {
            member: format!("{id:0>16}").parse().unwrap(),
            container: format!("c{id}"),
            network: "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c".parse().unwrap(),
            app: "ap-a71da13f-7c70-4c00-a644-eee8558d8053".parse().unwrap(),
            process: "web".parse().unwrap(),
            ordinal: Some(3),
            address: [10, 240, 0, 1].into(),
            ifname: "wg0".into(),
            peers: 7,
            sessions: 2,
            handshake_s: (*received > 0).then_some(12),
            received: *received,
            sent: *sent,
        };
        Exchange {
            host: "host-a".parse().unwrap(),
            members: members.iter().map(member).collect(),
            queries: BTreeMap::from([("pn".to_owned(), queries)]),
        }
    }

    fn rates(last: &Exchange, next: &Exchange, seconds: u64) -> Vec<(String, u64, u64)> {
        let lines = frame(last, next, Duration::from_secs(seconds)).members.into_iter();
        lines.map(|l| (l.member.container, l.received_per_s, l.sent_per_s)).collect()
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let check = |last: &[(&str, u64, u64)], next: &[(&str, u64, u64)], expected: &[(&str, u64, u64)]| {
            let expected: Vec<_> = expected.iter().map(|(id, r, s)| (format!("c{id}"), *r, *s)).collect();
            assert_eq!(rates(&exchange(last, 0), &exchange(next, 0), 2), expected);
        };
        check(&[("1", 10, 20)], &[("1", 30, 20)], &[("1", 10, 0)]);
        check(&[], &[("1", 30, 0)], &[("1", 15, 0)]);
        check(&[("1", 1, 1), ("2", 1, 1)], &[("2", 5, 1)], &[("2", 2, 0)]);
        // An engine that was replaced counts from nothing.
        check(&[("1", 1000, 1000)], &[("1", 10, 2000)], &[("1", 0, 500)]);
        // The busiest first, then by their names.
        let next = [("1", 0, 0), ("2", 0, 8), ("3", 0, 0), ("4", 20, 0)];
        check(&[], &next, &[("4", 10, 0), ("2", 0, 4), ("1", 0, 0), ("3", 0, 0)]);
    }

    #[test]
    fn people_see_a_table_that_fits() {
        let (last, next) = (exchange(&[], 4), exchange(&[("1", 2_500_000, 999), ("2", 0, 0)], 10));
        let text = text(&frame(&last, &next, Duration::from_secs(1)));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0].join(" "), "host-a: 2 members, in 2.5 MB/s, out 999 B/s, 6 DNS queries/s");
        let first = "0000000000000001 3.web.ap-a71da13f pn-ad0fd6a1 2.5 MB/s 999 B/s 7 2 12 s ago c1";
        assert_eq!(lines[3].join(" "), first);
        assert!(lines[4].join(" ").ends_with("0 B/s 0 B/s 7 2 never c2"), "{text}");
        assert_eq!(lines.len(), 5);
        assert_eq!(in_place("abc\nd\ne", (3, 2)), "\x1b[Hab\x1b[K\nd\x1b[K\n\x1b[J");
        assert_eq!(in_place("abc", (0, 0)), "\x1b[H\x1b[J");
    }

    #[test]
    fn bytes_have_the_unit_people_expect() {
        for (bytes, expected) in [
            (0, "0 B/s"),
            (999, "999 B/s"),
            (1_000, "1.0 kB/s"),
            (1_250_000, "1.2 MB/s"),
            (3_000_000_000, "3.0 GB/s"),
        ] {
            assert_eq!(rate(bytes), expected);
        }
    }
}
