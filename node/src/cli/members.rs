//! `warren attach`, `detach` and `env`.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use gossip::id::{AppId, NetworkId, ProcessType};
use gossip::port::Port;

use super::Failure;
use super::client::Client;
use super::docker::{DockerHost, podman_netns};
use super::network::Switch;
use super::output::Output;
use crate::attach::{Attached, Netns, Request};
use crate::http::segment;

#[derive(Debug, Args)]
pub struct AttachArgs {
    #[command(flatten)]
    pub what: What,
    #[command(flatten)]
    netns: NetnsArgs,
    /// Your name for the container [default: its runtime's, or from its namespace]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    id: Option<String>,
}

/// What to attach a container as.
#[derive(Debug, Args)]
pub struct What {
    /// The private network, pn-<uuid>
    #[arg(long)]
    pub network: NetworkId,
    /// The app the container runs, ap-<uuid>
    #[arg(long)]
    pub app: AppId,
    /// Its process type; `web` is what the app's own name resolves to
    #[arg(long = "type", default_value = "web")]
    pub process: ProcessType,
    /// Its number within app and type [default: the lowest free one]
    #[arg(long)]
    pub ordinal: Option<u32>,
    /// Name of the interface in the container [default: the first free wgN]
    #[arg(long)]
    pub ifname: Option<String>,
    /// Its address [default: any free one]
    #[arg(long)]
    pub address: Option<Ipv4Addr>,
    /// A port it serves, for SRV records: tcp/3000 or udp/53:dns; may be given again
    #[arg(long = "publish", value_name = "PROTOCOL/PORT[:NAME]")]
    pub ports: Vec<Port>,
    /// Whether the network's containers, all of them, resolve other names than private ones [default: as it is, on
    /// at first]
    #[arg(long)]
    pub forward: Option<Switch>,
    /// Milliseconds to wait for the other hosts of the network
    #[arg(long, default_value_t = 250, value_name = "MS")]
    pub wait: u64,
}

#[derive(Debug, Args)]
struct NetnsArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    docker_host: DockerHost,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The container's network namespace, such as /run/netns/NAME
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// A process in the container
    #[arg(long)]
    pid: Option<u32>,
    /// A running container of Docker's, by name or id
    #[arg(long, value_name = "NAME")]
    docker: Option<String>,
    /// A running container of Podman's, by name or id
    #[arg(long, value_name = "NAME")]
    podman: Option<String>,
}

#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The private network, pn-<uuid>
    #[arg(long)]
    network: NetworkId,
    /// The member, or the container as named at attach
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
}

#[derive(Debug, Args)]
pub struct EnvArgs {
    /// The private network, pn-<uuid>
    #[arg(long)]
    network: NetworkId,
    /// The member, or the container as named at attach
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
}

pub fn attach(client: &Client, args: AttachArgs, out: &Output) -> Result<ExitCode, Failure> {
    let (netns, default_id) = args.netns.resolve()?;
    let attached = call(client, args.what, netns, &args.id.unwrap_or(default_id))?;
    out.one(&attached, attached.member.as_str(), || text(&attached));
    Ok(ExitCode::SUCCESS)
}

/// Attaches through the API.
pub fn call(client: &Client, what: What, netns: Netns, id: &str) -> Result<Attached, Failure> {
    let request = Request {
        app: what.app,
        process: what.process,
        ordinal: what.ordinal,
        ifname: what.ifname,
        address: what.address,
        ports: what.ports,
        forward: what.forward.map(|forward| forward == Switch::On),
        netns,
        wait_ms: Some(what.wait),
    };
    client.put(&member_path(what.network, id), &request)
}

/// Where a member stands in the API.
pub fn member_path(network: NetworkId, id: &str) -> String {
    format!("/v1/networks/{network}/members/{}", segment(id))
}

impl NetnsArgs {
    /// The namespace, and a name for its container that stays the same as long as it does.
    fn resolve(&self) -> Result<(Netns, String), Failure> {
        let inode = |path: &PathBuf| std::fs::metadata(path).map(|m| m.ino());
        match &self.which {
            Which { netns: Some(path), .. } => {
                let path = std::path::absolute(path).map_err(|e| Failure::new(e.to_string()))?;
                let inode = inode(&path).map_err(|e| {
                    Failure::new(format!("no network namespace at {}: {e}", path.display())).code(4)
                })?;
                Ok((Netns::Path(path), format!("netns-{inode}")))
            }
            Which { pid: Some(id), .. } => {
                let inode = inode(&format!("/proc/{id}/ns/net").into())
                    .map_err(|e| Failure::new(format!("no process {id}: {e}")).code(4))?;
                Ok((Netns::Pid { id: *id, inode: Some(inode) }, format!("netns-{inode}")))
            }
            Which { docker: Some(name), .. } => self.docker_host.netns(name),
            Which { podman: Some(name), .. } => podman_netns(name),
            _ => Err(Failure::new("one of --netns, --pid, --docker and --podman is needed").code(2)),
        }
    }
}

fn text(attached: &Attached) -> String {
    let missing: Vec<&str> = attached.missing.iter().map(|h| h.as_str()).collect();
    let late = match missing.as_slice() {
        [] => String::new(),
        hosts => format!("\nnot yet on  {}", hosts.join(", ")),
    };
    format!(
        "member      {}\naddress     {}{}\ninterface   {} (mtu {})\nnameserver  {}\nnames       {}{late}",
        attached.member,
        attached.address,
        attached.address6.map(|a| format!(", {a}")).unwrap_or_default(),
        attached.ifname,
        attached.mtu,
        attached.dns.nameserver,
        attached.names.join("\n            "),
    )
}

pub fn detach(client: &Client, args: DetachArgs, out: &Output) -> Result<ExitCode, Failure> {
    client.delete(&member_path(args.network, &args.id))?;
    out.one(&serde_json::json!({ "detached": args.id }), &args.id, || format!("detached {}", args.id));
    Ok(ExitCode::SUCCESS)
}

pub fn env(client: &Client, args: EnvArgs, out: &Output) -> Result<ExitCode, Failure> {
    let attached: Attached = client.get(&member_path(args.network, &args.id))?;
    let lines: Vec<String> = attached.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    out.one(&attached.env, &lines.join("\n"), || lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}
