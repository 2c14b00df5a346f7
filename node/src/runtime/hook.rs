//! An OCI runtime's hook: `createRuntime` attaches a container before its first process runs, `poststop` detaches it
//! (OCI runtime specification, "POSIX-platform Hooks"). What fails here keeps the container from starting.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use gossip::id::NetworkId;
use serde::Deserialize;

use crate::attach::{Attached, Netns, Request};
use crate::cli::client::{Client, Failure};
use crate::cli::members::member_path;

/// What the hook's own arguments say; the rest is the container's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The private network, pn-<uuid> [default: the annotation warren.network, or WARREN_NETWORK_ID]
    #[arg(long)]
    network: Option<NetworkId>,
}

/// The container's state, on standard input.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    pid: u32,
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What of the container's own configuration is read.
#[derive(Debug, Default, Deserialize)]
struct Bundle {
    #[serde(default)]
    process: Process,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default)]
    env: Vec<String>,
}

/// Does what the runtime asks for; the state says which hook this is.
pub fn run(client: &Client, args: &Args) -> Result<ExitCode, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text).map_err(|e| e.to_string());
    let state = read.and_then(|_| serde_json::from_str::<State>(&text).map_err(|e| e.to_string()));
    let state =
        state.map_err(|e| Failure::new(format!("standard input is no container's state: {e}")).code(2))?;
    let wish = Wish { env: environment(&state.bundle), annotations: &state.annotations };
    let network = match args.network {
        Some(network) => network,
        None => wish.need("network", "WARREN_NETWORK_ID")?,
    };
    let member = member_path(network, &state.id);
    // After its end it has no process; before its beginning it is being created.
    if state.pid == 0 || state.status == "stopped" {
        client.delete(&member)?;
        return Ok(ExitCode::SUCCESS);
    }
    let request = Request {
        app: wish.need("app", "WARREN_APP_ID")?,
        process: wish.get("type", "WARREN_TYPE")?.unwrap_or_else(crate::attach::web),
        ordinal: wish.get("ordinal", "WARREN_ORDINAL")?,
        ifname: None,
        address: None,
        ports: Vec::new(),
        forward: None,
        netns: Netns::Pid { id: state.pid, inode: None },
        wait_ms: None,
    };
    let _: Attached = client.put(&member, &request)?;
    Ok(ExitCode::SUCCESS)
}

fn environment(bundle: &std::path::Path) -> BTreeMap<String, String> {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let bundle: Bundle = serde_json::from_slice(&text).unwrap_or_default();
    let pairs = bundle.process.env.iter().filter_map(|variable| variable.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What the container says it is, by annotations before environment.
struct Wish<'a> {
    annotations: &'a BTreeMap<String, String>,
    env: BTreeMap<String, String>,
}

impl Wish<'_> {
    fn get<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        annotation: &str,
        variable: &str,
    ) -> Result<Option<T>, Failure> {
        let said = self.annotations.get(&format!("warren.{annotation}")).or_else(|| self.env.get(variable));
        let read = said.map(|text| text.parse());
        read.transpose()
            .map_err(|e| Failure::new(format!("warren.{annotation} of the container: {e}")).code(2))
    }

    fn need<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        annotation: &str,
        variable: &str,
    ) -> Result<T, Failure> {
        self.get(annotation, variable)?.ok_or_else(|| {
            Failure::new(format!("the container's {annotation} is not said"))
                .code(2)
                .hint(format!("give it --annotation warren.{annotation}=… or --env {variable}=…"))
        })
    }
}
