//! `warren networks` and `warren network create`, `inspect`, `set` and `rm`.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use gossip::id::NetworkId;
use ipnet::Ipv4Net;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::api::{NetworkChange, NetworkDetail, NetworkRequest, NetworkRow};
use crate::claims;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the region's networks
    Ls,
    /// Make a network before its first container, with a subnet of its own
    #[command(
        long_about = "Make a network before its first container, with a subnet of its own. A network needs that only \
                      where 10.240.0.0/22 will not do: a container can be in several networks as long as their \
                      subnets do not overlap. It stays until `warren network rm`, on this host. One that is there \
                      already with the same subnet is as good."
    )]
    Create {
        /// The private network, pn-<uuid>
        network: NetworkId,
        /// Its addresses, /16 to /29 [default: as it has them, 10.240.0.0/22 at first]
        #[arg(long, value_parser = claims::subnet)]
        subnet: Option<Ipv4Net>,
        /// Whether its containers resolve other names than private ones [default: as it is, on at first]
        #[arg(long)]
        forward: Option<Switch>,
    },
    /// Show everything about a network
    Inspect {
        /// The private network, pn-<uuid>
        network: NetworkId,
    },
    /// Change a network with containers on this host, for all of its hosts
    Set {
        /// The private network, pn-<uuid>
        network: NetworkId,
        /// Whether its containers resolve other names than private ones
        #[arg(long)]
        forward: Switch,
    },
    /// Forget a network that was made on this host and has no containers any more
    Rm {
        /// The private network, pn-<uuid>
        network: NetworkId,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    match args.verb {
        None | Some(Verb::Ls) => table(&client.get::<Vec<NetworkRow>>("/v1/networks")?, out),
        Some(Verb::Create { network, subnet, forward }) => {
            let subnet = subnet.map(|subnet| subnet.to_string());
            let request = NetworkRequest { subnet, forward: forward.map(|on| on == Switch::On) };
            show(&client.put(&path(network), &request)?, out);
        }
        Some(Verb::Inspect { network }) => show(&client.get(&path(network))?, out),
        Some(Verb::Set { network, forward }) => {
            let change = NetworkChange { forward: forward == Switch::On };
            show(&client.patch(&path(network), &change)?, out);
        }
        Some(Verb::Rm { network }) => {
            client.delete(&path(network))?;
            let removed = serde_json::json!({ "removed": network });
            out.one(&removed, &network.to_string(), || format!("removed {network}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(network: NetworkId) -> String {
    format!("/v1/networks/{network}")
}

fn table(networks: &[NetworkRow], out: &Output) {
    out.rows(networks, &["NETWORK", "VNI", "SUBNET", "MEMBERS", "HERE", "HOSTS", "FORWARD"], |n| {
        vec![
            n.network.to_string(),
            n.vni.to_string(),
            n.subnet.clone(),
            n.members.to_string(),
            n.here.to_string(),
            n.hosts.to_string(),
            switch(n.forward).to_owned(),
        ]
    });
}

fn show(detail: &NetworkDetail, out: &Output) {
    out.one(detail, &detail.row.network.to_string(), || text(detail));
}

fn text(detail: &NetworkDetail) -> String {
    let NetworkDetail { row, ula, claims, .. } = detail;
    let by_host = detail.members_by_host.iter().map(|(host, members)| format!("{members} on {host}"));
    let by_host: Vec<String> = by_host.collect();
    let made = if detail.made_here {
        "here: it stays until `warren network rm`"
    } else {
        "by its containers, or elsewhere"
    };
    [
        format!("network    {}", row.network),
        format!("vni        {}", row.vni),
        format!("subnet     {}", row.subnet),
        format!("ula        {ula}"),
        format!("made       {made}"),
        format!("forward    {}", switch(row.forward)),
        format!("members    {}", if by_host.is_empty() { "none".to_owned() } else { by_host.join(", ") }),
        format!(
            "addresses  {} held, {} released, {} ghosts, {} contested, {} free",
            claims.held, claims.released, claims.ghosts, claims.contested, claims.free
        ),
    ]
    .join("\n")
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}
