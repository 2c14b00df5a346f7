//! `warren docker sync` and `docker-args`; containers of Docker and Podman by name.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use gossip::id::{AppId, NetworkId, ProcessType};
use gossip::port::Port;

use super::Failure;
use super::client::{Client, block_on};
use super::output::Output;
use crate::api::{NetworkRow, Status};
use crate::attach::{Netns, Refusal};
use crate::runtime::docker::engine::{Container, DEFAULT_SOCKET, Engine, NETWORK, Network};
use crate::runtime::podman;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a Docker network of every private network of the region, and of those named; they are called as it is
    Sync(SyncArgs),
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Private networks that nobody is in yet, pn-<uuid>
    networks: Vec<NetworkId>,
    #[command(flatten)]
    docker: DockerArgs,
}

/// What a container shall be, for `docker run`.
#[derive(Debug, Args)]
pub struct ArgsArgs {
    /// The private network, pn-<uuid>
    #[arg(long)]
    network: NetworkId,
    /// The app the container runs, ap-<uuid>
    #[arg(long)]
    app: AppId,
    /// Its process type; `web` is what the app's own name resolves to
    #[arg(long = "type", default_value = "web")]
    process: ProcessType,
    /// Its number within app and type [default: the lowest free one]
    #[arg(long)]
    ordinal: Option<u32>,
    /// A port it serves, for SRV records: tcp/3000 or udp/53:dns; may be given again
    #[arg(long = "publish", value_name = "PROTOCOL/PORT[:NAME]")]
    ports: Vec<Port>,
    #[command(flatten)]
    docker: DockerArgs,
}

#[derive(Debug, Args)]
pub struct DockerArgs {
    #[command(flatten)]
    host: DockerHost,
    /// The name of the agent's driver, the file name of `docker.plugin`
    #[arg(long, default_value = "warren")]
    driver: String,
}

/// Where Docker is.
#[derive(Debug, Args)]
pub struct DockerHost {
    /// Docker's socket
    #[arg(long, env = "DOCKER_HOST", value_name = "unix://PATH", default_value_t = format!("unix://{DEFAULT_SOCKET}"))]
    docker_host: String,
}

impl DockerHost {
    fn engine(&self) -> Result<Engine, Failure> {
        let path = self.docker_host.strip_prefix("unix://").unwrap_or(&self.docker_host);
        if !path.starts_with('/') {
            let message = format!("Docker at {} is another host's, or none", self.docker_host);
            return Err(Failure::new(message)
                .code(2)
                .hint("give its socket here: --docker-host unix:///var/run/docker.sock"));
        }
        Ok(Engine::new(PathBuf::from(path)))
    }

    /// The namespace of a running container of Docker's, and its name.
    pub fn netns(&self, name: &str) -> Result<(Netns, String), Failure> {
        let engine = self.engine()?;
        running(block_on(async { engine.container(name).await })??, name, "docker")
    }
}

/// The namespace of a running container of Podman's, and its name.
pub fn podman_netns(name: &str) -> Result<(Netns, String), Failure> {
    running(podman::container(name)?, name, "podman")
}

fn running(container: Container, asked: &str, tool: &str) -> Result<(Netns, String), Failure> {
    if container.host_config.network_mode == "host" {
        let message =
            format!("container {asked} uses the host's own network: a private network is for containers");
        return Err(Failure::new(message).code(6).hint("start it without --network host"));
    }
    if container.state.pid == 0 {
        let message = format!("container {asked} does not run");
        return Err(Failure::new(message).code(6).hint(format!("{tool} start {asked}")));
    }
    let netns = Netns::Pid { id: container.state.pid, inode: None };
    Ok((netns, container.name.trim_start_matches('/').to_owned()))
}

pub fn run(client: &Client, verb: Verb, out: &Output) -> Result<ExitCode, Failure> {
    let Verb::Sync(args) = verb;
    let (engine, driver) = (args.docker.host.engine()?, &args.docker.driver);
    let known: Vec<NetworkRow> = client.get("/v1/networks")?;
    let mut wanted: Vec<NetworkId> = known.iter().map(|row| row.network).chain(args.networks).collect();
    wanted.sort();
    wanted.dedup();
    let made = block_on(async {
        let there = engine.networks(driver).await?;
        let mut made = Vec::new();
        for network in wanted {
            if find(&there, network).is_none() {
                let name = network.to_string();
                engine.create_network(&name, driver, &name).await?;
                made.push(name);
            }
        }
        Ok::<_, Refusal>(made)
    })??;
    out.rows(&made, &["MADE"], |name| vec![name.clone()]);
    Ok(ExitCode::SUCCESS)
}

/// Prints what makes `docker run` start a member, in one line.
pub fn args(client: &Client, args: &ArgsArgs, out: &Output) -> Result<ExitCode, Failure> {
    let (engine, network) = (args.docker.host.engine()?, args.network);
    let there = block_on(async { engine.networks(&args.docker.driver).await })??;
    let name = find(&there, network).ok_or_else(|| {
        let hint = format!("`warren docker sync {network}` makes one");
        Failure::new(format!("Docker has no network of {network} here")).code(4).hint(hint)
    })?;
    let status: Status = client.get("/v1/status")?;
    let app = args.app;
    let labels = [
        Some(format!("warren.app={app}")),
        Some(format!("warren.type={}", args.process)),
        args.ordinal.map(|n| format!("warren.ordinal={n}")),
        (!args.ports.is_empty()).then(|| {
            let ports: Vec<String> = args.ports.iter().map(Port::to_string).collect();
            format!("warren.publish={}", ports.join(","))
        }),
    ];
    let env = [
        format!("WARREN_APP_ID={app}"),
        format!("WARREN_NETWORK_ID={network}"),
        format!("WARREN_DOMAIN={app}.{network}.{}", status.zone),
    ];
    let mut words =
        vec!["--network".to_owned(), name.to_owned(), "--dns".to_owned(), status.name_server.to_string()];
    words.extend(labels.into_iter().flatten().flat_map(|label| ["--label".to_owned(), label]));
    words.extend(env.into_iter().flat_map(|variable| ["--env".to_owned(), variable]));
    let line = words.join(" ");
    out.one(&words, &line, || line.clone());
    Ok(ExitCode::SUCCESS)
}

/// What Docker calls a private network.
fn find(there: &[Network], network: NetworkId) -> Option<&str> {
    let id = network.to_string();
    let found = there.iter().find(|n| n.ipam_option(NETWORK).or(n.option(NETWORK)) == Some(&id))?;
    Some(&found.name)
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let Refusal { kind, detail, hint } = refusal;
        Failure { code: kind.exit_code(), message: detail, hint }
    }
}
