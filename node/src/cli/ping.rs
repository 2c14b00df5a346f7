//! `warren ping`: round trips from container to container.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::api::Pinged;
use crate::explain::Answer;
use crate::http::segment;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Both are members, containers of this host, addresses or private names. Exits with 1 when nothing came \
                  back, with 7 when some were lost."
)]
pub struct Args {
    /// [FROM] TO: without FROM it is a container of this host in TO's network
    #[arg(required = true, num_args = 1..=2, value_names = ["FROM", "TO"])]
    ends: Vec<String>,
    /// How many
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Seconds between two
    #[arg(short, long, default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Length of the packets in bytes, IP header included; they are not fragmented
    #[arg(short, long, default_value_t = 84)]
    size: u32,
    /// Seconds to wait for each
    #[arg(short = 'W', long, default_value_t = 1.0, value_parser = seconds)]
    wait: f64,
}

/// All of them together.
#[derive(Debug, Clone, Serialize)]
struct Summary {
    from: String,
    to: String,
    bytes: u32,
    sent: usize,
    received: usize,
    /// Microseconds of each, null where nothing came back.
    micros: Vec<Option<u64>>,
    min_us: Option<u64>,
    median_us: Option<u64>,
    max_us: Option<u64>,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    let path = path(args);
    let mut answers: Vec<Option<u64>> = Vec::new();
    let mut last = None;
    for number in 1..=args.count {
        if number > 1 {
            super::pause(Duration::from_secs_f64(args.interval));
        }
        let pinged: Pinged = client.get(&path)?;
        if out.is_for_people() {
            out.line(&line(number, &pinged));
        }
        answers.push(match pinged.answer {
            Answer::Micros(micros) => Some(micros),
            Answer::Silent | Answer::Refused(_) => None,
        });
        last = Some(pinged);
    }
    let summary = summary(&last.ok_or_else(|| Failure::new("nothing was sent"))?, answers);
    out.one(&summary, &summary.received.to_string(), || text(&summary));
    Ok(match (summary.received, summary.sent) {
        (0, _) => ExitCode::FAILURE,
        (received, sent) if received < sent => ExitCode::from(7),
        _ => ExitCode::SUCCESS,
    })
}

fn path(args: &Args) -> String {
    let (from, to) = match args.ends.as_slice() {
        [from, to] => (format!("&from={}", segment(from)), to),
        ends => (String::new(), &ends[0]),
    };
    let wait_ms = (args.wait * 1000.0) as u64;
    format!("/v1/ping?to={}{from}&bytes={}&wait_ms={wait_ms}", segment(to), args.size)
}

fn line(number: u32, pinged: &Pinged) -> String {
    let Pinged { from, to, bytes, answer } = pinged;
    let what = match answer {
        Answer::Micros(micros) => format!("{} ms", millis(*micros)),
        Answer::Silent => "no answer".to_owned(),
        Answer::Refused(why) => format!("refused: {why}"),
    };
    format!("{} → {}  {bytes} bytes  {number}  {what}", from.address, to.address)
}

fn summary(last: &Pinged, micros: Vec<Option<u64>>) -> Summary {
    let mut back: Vec<u64> = micros.iter().flatten().copied().collect();
    back.sort_unstable();
    Summary {
        from: last.from.address.to_string(),
        to: last.to.address.to_string(),
        bytes: last.bytes,
        sent: micros.len(),
        received: back.len(),
        min_us: back.first().copied(),
        median_us: back.get(back.len() / 2).copied(),
        max_us: back.last().copied(),
        micros,
    }
}

fn text(summary: &Summary) -> String {
    let Summary { sent, received, .. } = summary;
    let times = match (summary.min_us, summary.median_us, summary.max_us) {
        (Some(min), Some(median), Some(max)) => {
            format!("; min {}, median {}, max {} ms", millis(min), millis(median), millis(max))
        }
        _ => String::new(),
    };
    format!("{sent} sent, {received} back, {} lost{times}", sent - received)
}

fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=10.0).contains(&seconds) => Ok(seconds),
        _ => Err("0 to 10 seconds".to_owned()),
    }
}
