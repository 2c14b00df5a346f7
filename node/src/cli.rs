//! The command line: one file for each group of verbs.

mod agent;
pub(crate) mod client;
mod config;
mod dns;
mod docker;
mod doctor;
mod drain;
mod engine;
mod explain;
mod log;
pub(crate) mod members;
mod network;
pub(crate) mod output;
mod ping;
mod region;
mod reset;
mod run;
mod service;
mod show;
mod top;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use client::Failure;
use netplumb::NetlinkKernel;

use crate::api;
use crate::runtime::{cni, hook, netavark};
use crate::store::DirStore;

/// Private networks for containers, without a controller.
#[derive(Debug, Parser)]
#[command(name = "warren", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 agent unreachable, 4 not found, 5 denied, \
                        6 conflict or full, 7 degraded, 124 timeout.")]
struct Cli {
    /// How to print: a table for people, JSON for programs, names for shells
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: output::Format,
    /// The agent's API socket
    #[arg(long, global = true, env = "WARREN_SOCKET", default_value = crate::config::DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run this host's agent
    Agent(agent::Args),
    /// Hold the descriptors of this host's containers; the agent starts it
    Engine(engine::Args),
    /// Make a region: its certificate authority and its hosts' certificates
    #[command(subcommand)]
    Region(region::Verb),
    /// Attach a container to a private network
    Attach(members::AttachArgs),
    /// Detach a container from a private network
    Detach(members::DetachArgs),
    /// Run a command in a namespace of its own, attached to a private network
    Run(run::Args),
    /// List members: this host's, or the region's
    Ps(show::PsArgs),
    /// List the region's hosts
    Hosts,
    /// List the region's networks, make one, look at one, change one
    #[command(name = "network", visible_alias = "networks")]
    Networks(network::Args),
    /// List the names that resolve inside the networks with members here
    DomainNames(show::DomainNamesArgs),
    /// Say how the agent and its region are
    Status(show::StatusArgs),
    /// Say what is wrong with this host, and what to do
    Doctor(doctor::Args),
    /// Take no new containers on this host, and lead names to those it has no more
    Drain(drain::Args),
    /// Walk the way from one container to another, on both hosts, and say what is broken
    Explain(explain::Args),
    /// Measure round trips inside a private network
    Ping(ping::Args),
    /// Show what this host's members send and receive, every second anew
    Top(top::Args),
    /// List what happened on this host that is worth telling
    Events(show::EventsArgs),
    /// Print the agent's metrics in OpenMetrics
    Metrics,
    /// Print a member's environment, for `docker run --env-file` and the like
    Env(members::EnvArgs),
    /// Ask the agent what a container would be answered
    #[command(subcommand)]
    Dns(dns::Verb),
    /// Docker's networks
    #[command(subcommand)]
    Docker(docker::Verb),
    /// Print what makes `docker run` start a container as a member
    DockerArgs(docker::ArgsArgs),
    /// Attach or detach a container as its runtime's OCI hook, `createRuntime` and `poststop`
    Hook(hook::Args),
    /// Answer as a CNI plugin, as this program also does when CNI_COMMAND is set and nothing else is said
    Cni,
    /// Remove everything the agent has made on this host; the agent must not run
    Reset(reset::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the description of the agent's API: OpenAPI 3.1
    Openapi,
    /// Print a manual page, or write those of all verbs into a directory
    Man {
        /// The directory
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if cni::is_asked() {
        return cni::run(&output::Output::new(output::Format::Json));
    }
    if netavark::is_asked() {
        return netavark::run(&output::Output::new(output::Format::Json));
    }
    run_with(std::env::args_os())
}

fn run_with(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // clap exits 2 on usage errors and prints what would be right.
    let cli = Cli::parse_from(arguments);
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::error(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let client = client::Client::new(cli.socket);
    let out = output::Output::new(cli.output);
    match cli.verb {
        Verb::Agent(args) => agent::run(args),
        Verb::Engine(args) => engine::run(args),
        Verb::Reset(args) => reset::run(args),
        Verb::Region(verb) => region::run(verb, &out),
        Verb::Attach(args) => members::attach(&client, args, &out),
        Verb::Detach(args) => members::detach(&client, args, &out),
        Verb::Run(args) => run::run(&client, args),
        Verb::Ps(args) => show::ps(&client, &args, &out),
        Verb::Hosts => show::hosts(&client, &out),
        Verb::Networks(args) => network::run(&client, &args, &out),
        Verb::DomainNames(args) => show::domain_names(&client, &args, &out),
        Verb::Status(args) => show::status(&client, &args, &out),
        Verb::Drain(args) => drain::run(&client, &args, &out),
        Verb::Doctor(args) => doctor::run(&client, &args, &out),
        Verb::Metrics => {
            out.line(client.text("/metrics")?.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Explain(args) => explain::run(&client, &args, &out),
        Verb::Ping(args) => ping::run(&client, &args, &out),
        Verb::Top(args) => top::run(&client, &args, &out),
        Verb::Events(args) => show::events(&client, &args, &out),
        Verb::Env(args) => members::env(&client, args, &out),
        Verb::Dns(verb) => dns::run(&client, verb, &out),
        Verb::Docker(verb) => docker::run(&client, verb, &out),
        Verb::Hook(args) => hook::run(&client, &args),
        Verb::Cni => Ok(cni::run(&out)),
        Verb::DockerArgs(args) => docker::args(&client, &args, &out),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "warren", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Openapi => {
            out.line(&api::describe::<NetlinkKernel, DirStore>().to_string());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Man { dir } => man(dir.as_deref()),
        Verb::Version => {
            out.line(&format!("warren {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn man(dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let written = match dir {
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir),
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()),
    };
    written.map_err(|e| Failure::new(format!("no manual: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command has no runtime, and the agent does not call it back"
)]
fn pause(duration: std::time::Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
