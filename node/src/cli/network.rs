//! `warren networks` and `warren network set`.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use gossip::id::NetworkId;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::api::{NetworkChange, NetworkRow};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Change a network with containers on this host, for all of its hosts
    Set {
        /// The private network, pn-<uuid>
        network: NetworkId,
        /// Whether its containers resolve other names than private ones
        #[arg(long)]
        forward: Switch,
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
        None => table(&client.get::<Vec<NetworkRow>>("/v1/networks")?, out),
        Some(Verb::Set { network, forward }) => {
            let change = NetworkChange { forward: forward == Switch::On };
            let changed: NetworkRow = client.put(&format!("/v1/networks/{network}"), &change)?;
            table(&[changed], out);
        }
    }
    Ok(ExitCode::SUCCESS)
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
            if n.forward { "on" } else { "off" }.to_owned(),
        ]
    });
}
