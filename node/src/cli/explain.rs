//! `warren explain`: the way from one container to another, step by step.

use std::process::ExitCode;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::explain::{End, Explanation, State, Step};
use crate::http::segment;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Both are members, containers of this host, addresses or private names. Exits with 7 when a step is \
                  broken. The first broken step is the one to mend: what follows may be broken by it."
)]
pub struct Args {
    /// Who wants to reach
    from: String,
    /// whom
    to: String,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    let (from, to) = (segment(&args.from), segment(&args.to));
    let explanation: Explanation = client.get(&format!("/v1/explain?from={from}&to={to}"))?;
    let name = explanation.broken.map_or("ok", |kind| kind.as_str());
    out.one(&explanation, name, || text(&explanation, out.colours()));
    Ok(if explanation.ok { ExitCode::SUCCESS } else { ExitCode::from(7) })
}

fn text(explanation: &Explanation, colours: bool) -> String {
    let Explanation { from, to, steps, broken, .. } = explanation;
    let first = steps.iter().position(|step| step.state == State::Broken);
    let hosts = steps.iter().filter_map(|step| step.host.as_ref()).map(|host| host.as_str().chars().count());
    let width = hosts.max().unwrap_or(0);
    let mut lines = [end("from", from), end("to", to)].concat();
    lines.push(String::new());
    let mut last = None;
    for (i, step) in steps.iter().enumerate() {
        let name = if last == Some(step.step) { "" } else { step.step.as_str() };
        last = Some(step.step);
        lines.push(line(name, step, width, colours));
        if let (Some(hint), true) = (&step.hint, first == Some(i)) {
            lines.push(format!("{:>19}{hint}", "→ "));
        }
    }
    lines.push(String::new());
    lines.push(match broken {
        None => "nothing is broken".to_owned(),
        Some(kind) => format!("broken at {}: mend it first, what follows may be broken by it", kind.as_str()),
    });
    lines.join("\n")
}

fn end(role: &str, end: &End) -> Vec<String> {
    let container = end.container.as_ref().map(|name| format!(", container {name}")).unwrap_or_default();
    let who = format!("{role:<6}{} on {}, member {}{container}", end.address, end.host, end.member);
    vec![who, format!("      {}", end.name)]
}

fn line(name: &str, step: &Step, width: usize, colours: bool) -> String {
    let (word, colour) = match step.state {
        State::Ok => ("ok", "\x1b[32m"),
        State::Broken => ("broken", "\x1b[31m"),
        State::Unknown => ("?", "\x1b[33m"),
    };
    let plain = if colours { "\x1b[0m" } else { "" };
    let colour = if colours { colour } else { "" };
    let host = step.host.as_ref().map_or("", |host| host.as_str());
    format!("{name:<10}{colour}{word:<7}{plain}{host:<width$}  {}", step.detail)
}
