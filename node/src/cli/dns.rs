//! `warren dns`: what a container would be answered.

use std::process::ExitCode;

use clap::Subcommand;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::http::segment;
use crate::lookup::Lookup;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Look a name up as a container of this host would
    Lookup {
        /// The name
        name: String,
        /// The member or container that asks [default: one in all networks with members here]
        #[arg(long = "as", value_name = "MEMBER")]
        asker: Option<String>,
    },
}

pub fn run(client: &Client, verb: Verb, out: &Output) -> Result<ExitCode, Failure> {
    let Verb::Lookup { name, asker } = verb;
    let asker = asker.map(|a| format!("&as={}", segment(&a))).unwrap_or_default();
    let lookup: Lookup = client.get(&format!("/v1/lookup?name={}{asker}", segment(&name)))?;
    let addresses: Vec<String> = lookup.addresses.iter().map(ToString::to_string).collect();
    let services =
        lookup.services.iter().map(|target| format!("{}:{}", target.name.trim_end_matches('.'), target.port));
    let found: Vec<String> = addresses.iter().cloned().chain(services).chain(lookup.facts.clone()).collect();
    out.one(&lookup, &addresses.join("\n"), || match (lookup.rcode.as_str(), found.is_empty()) {
        ("NOERROR", false) => found.join("\n"),
        ("NOERROR", true) => format!("{}: nothing at this name, only below it", lookup.name),
        ("FORWARD", _) => format!("{}: not a private name; the host's resolvers are asked", lookup.name),
        (rcode, _) => format!("{}: {rcode}", lookup.name),
    });
    Ok(if lookup.rcode == "NXDOMAIN" { ExitCode::from(4) } else { ExitCode::SUCCESS })
}
