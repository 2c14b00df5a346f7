//! netavark: `warren` as a plugin for Podman's networks (`podman network create --driver warren`), asked by arguments
//! and standard input (netavark's `plugin-API.md`). Podman says a container's name and aliases, not its labels.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;

use gossip::id::{AppId, NetworkId, ProcessType};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::attach::{Attached, Netns, Request};
use crate::cli::client::{Client, Failure};
use crate::cli::members::member_path;
use crate::cli::output::Output;

/// The directory in which netavark looks for plugins.
const DIRECTORY: &str = "netavark";
/// The protocol's own version.
const API_VERSION: &str = "1.0.0";

/// A network as Podman keeps it. Fields that nobody here needs are left out.
#[derive(Debug, Deserialize)]
struct Network {
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    subnets: Option<Vec<Value>>,
}

/// What `setup` and `teardown` are told.
#[derive(Debug, Deserialize)]
struct Exec {
    container_name: String,
    network: Network,
    network_options: Wish,
}

/// What `podman run --network NAME:…` says.
#[derive(Debug, Deserialize)]
struct Wish {
    interface_name: String,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
}

/// Who a container is: the options of its network, and an alias that says it for one container.
#[derive(Debug, Default, Clone, PartialEq)]
struct Identity {
    app: Option<AppId>,
    process: Option<ProcessType>,
    ordinal: Option<u32>,
}

/// Whether this process was started as netavark's plugin.
pub fn is_asked() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program).parent().and_then(Path::file_name).is_some_and(|directory| directory == DIRECTORY)
}

/// Answers the one call this process was started for.
pub fn run(out: &Output) -> ExitCode {
    let socket = std::env::var_os("WARREN_SOCKET").unwrap_or_else(|| crate::config::DEFAULT_SOCKET.into());
    let client = Client::new(socket.into());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut text = String::new();
    // `info` has no input, and would wait for some.
    let read = match arguments[..] {
        ["create" | "setup" | "teardown", ..] => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        _ => Ok(()),
    };
    let read = read.map_err(|e| Failure::new(format!("standard input: {e}")));
    match read.and_then(|()| answer(&client, &arguments, &text)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => {
            out.line(&answer.to_string());
            ExitCode::SUCCESS
        }
        Err(Failure { message, hint, .. }) => {
            let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
            out.line(&json!({ "error": format!("{message}{hint}") }).to_string());
            ExitCode::FAILURE
        }
    }
}

fn answer(client: &Client, arguments: &[&str], text: &str) -> Result<Option<Value>, Failure> {
    match arguments {
        ["create"] => create(read(text)?).map(Some),
        ["setup", netns] => setup(client, netns, &read(text)?).map(Some),
        ["teardown", _] => teardown(client, &read(text)?).map(|()| None),
        ["info"] | [] => {
            Ok(Some(json!({ "version": env!("CARGO_PKG_VERSION"), "api_version": API_VERSION })))
        }
        _ => Err(Failure::new("netavark calls create, setup NETNS, teardown NETNS or info").code(2)),
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text)
        .map_err(|e| Failure::new(format!("this is no request of netavark's: {e}")).code(2))
}

/// The network as Podman shall keep it: addresses and names are the region's.
fn create(mut whole: Map<String, Value>) -> Result<Value, Failure> {
    let network: Network = serde_json::from_value(whole.clone().into())
        .map_err(|e| Failure::new(format!("this is no network of Podman's: {e}")).code(2))?;
    private_network(&network)?;
    of_options(&network)?;
    if network.subnets.is_some_and(|subnets| !subnets.is_empty()) {
        let failure = Failure::new("a private network has its subnet in the region, not here").code(2);
        return Err(failure.hint("leave --subnet out; `warren network create PN --subnet` chooses one"));
    }
    whole.insert("dns_enabled".into(), json!(false));
    whole.insert("ipam_options".into(), json!({ "driver": "none" }));
    Ok(whole.into())
}

fn setup(client: &Client, netns: &str, exec: &Exec) -> Result<Value, Failure> {
    let network = private_network(&exec.network)?;
    let Identity { app, process, ordinal } = identity(exec)?;
    let app = app.ok_or_else(|| {
        let message = format!("which app container {} runs is not said", exec.container_name);
        let hint =
            "--network NAME:alias=<type>.ap-<uuid>, or --opt app=ap-<uuid> when the network is created";
        Failure::new(message).code(2).hint(hint)
    })?;
    let request = Request {
        app,
        process: process.unwrap_or_else(crate::attach::web),
        ordinal,
        ifname: Some(exec.network_options.interface_name.clone()),
        address: chosen(&exec.network_options),
        ports: Vec::new(),
        forward: None,
        netns: Netns::Path(netns.into()),
        wait_ms: None,
    };
    let attached: Attached = client.put(&member_path(network, &exec.container_name), &request)?;
    Ok(status(&attached))
}

fn teardown(client: &Client, exec: &Exec) -> Result<(), Failure> {
    client.delete(&member_path(private_network(&exec.network)?, &exec.container_name))
}

/// What Podman is told: the name server goes into resolv.conf, the rest into `podman inspect`.
fn status(attached: &Attached) -> Value {
    let subnets = json!([{ "ipnet": format!("{}/32", attached.address) }]);
    json!({
        "dns_server_ips": [attached.dns.nameserver],
        "dns_search_domains": attached.dns.search,
        "interfaces": { attached.ifname.as_str(): { "mac_address": attached.mac, "subnets": subnets } },
    })
}

fn private_network(network: &Network) -> Result<NetworkId, Failure> {
    let named = network.options.as_ref().and_then(|options| options.get("network")).ok_or_else(|| {
        Failure::new("the network names no private one")
            .code(2)
            .hint("create it with --opt network=pn-<uuid>")
    })?;
    named.parse().map_err(|e| Failure::new(format!("option network: {e}")).code(2))
}

/// What all containers of a network of Podman's are, unless they say otherwise.
fn of_options(network: &Network) -> Result<Identity, Failure> {
    let mut identity = Identity::default();
    for (key, value) in network.options.iter().flatten() {
        let unread = |e: &dyn std::fmt::Display| Failure::new(format!("option {key}: {e}")).code(2);
        match key.as_str() {
            "network" => {}
            "app" => identity.app = Some(value.parse().map_err(|e| unread(&e))?),
            "type" => identity.process = Some(value.parse().map_err(|e| unread(&e))?),
            _ => return Err(unread(&"it is not known; there are network, app and type")),
        }
    }
    Ok(identity)
}

fn identity(exec: &Exec) -> Result<Identity, Failure> {
    let general = of_options(&exec.network)?;
    let mut own = exec.network_options.aliases.iter().flatten().filter_map(|alias| of_alias(alias));
    Ok(match own.next() {
        Some(own) => Identity { process: own.process.or(general.process), ..own },
        None => general,
    })
}

/// An alias that is a container's name within its network: `<n>.<type>.<app>`, the first ones left out or not.
fn of_alias(alias: &str) -> Option<Identity> {
    let mut labels = alias.rsplitn(3, '.');
    let app = Some(labels.next()?.parse().ok()?);
    let process = labels.next().map(str::parse).transpose().ok()?;
    let ordinal = labels.next().map(str::parse).transpose().ok()?;
    Some(Identity { app, process, ordinal })
}

fn chosen(wish: &Wish) -> Option<Ipv4Addr> {
    wish.static_ips.iter().flatten().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

    fn golden(line: usize) -> Value {
        let text = include_str!("../../../tests/golden/netavark-1.14.jsonl");
        serde_json::from_str(text.lines().nth(line).unwrap()).unwrap()
    }

    #[test]
    fn an_alias_is_a_name_within_the_network() {
        let of = |alias: &str| of_alias(alias).map(|i| (i.process.map(|p| p.to_string()), i.ordinal));
        assert_eq!(of(AP), Some((None, None)));
        assert_eq!(of(&format!("worker.{AP}")), Some((Some("worker".into()), None)));
        assert_eq!(of(&format!("3.worker.{AP}")), Some((Some("worker".into()), Some(3))));
        for other in ["752947ff91f9", "web", "x.worker.shop", &format!("first.worker.{AP}")] {
            assert_eq!(of_alias(other), None, "{other}");
        }
    }

    #[test]
    fn what_podman_asks_is_read() {
        let asked = golden(0)["stdin"].clone();
        let kept = create(asked.as_object().unwrap().clone()).unwrap();
        assert_eq!((&kept["dns_enabled"], &kept["ipam_options"]["driver"]), (&json!(false), &json!("none")));
        for same in ["name", "id", "driver", "options"] {
            assert_eq!(kept[same], asked[same], "Podman refuses a plugin that changes {same}");
        }
        let exec: Exec = serde_json::from_value(golden(1)["stdin"].clone()).unwrap();
        assert!(private_network(&exec.network).is_ok() && identity(&exec).unwrap().app.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_asked() {
        let client = Client::new("/nonexistent/warren.sock".into());
        let network =
            |options: Value| json!({ "name": "n", "id": "1", "driver": "warren", "options": options });
        let exec = |options: Value| {
            let wish = json!({ "interface_name": "eth0", "aliases": ["c1"] });
            json!({ "container_id": "1", "container_name": "c", "network": network(options), "network_options": wish })
        };
        let pn = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
        let mut with_subnet = network(json!({ "network": pn }));
        with_subnet["subnets"] = json!([{ "subnet": "10.0.0.0/16" }]);
        for (arguments, input, says) in [
            (vec!["create"], network(json!(null)), "names no private one"),
            (vec!["create"], network(json!({ "network": "shop" })), "option network"),
            (vec!["create"], network(json!({ "network": pn, "ap": AP })), "not known"),
            (vec!["create"], with_subnet, "in the region"),
            (vec!["create"], json!([{ "network": pn }]), "no request"),
            (vec!["setup", "/run/netns/x"], json!({}), "no request"),
            (vec!["setup", "/run/netns/x"], exec(json!({ "network": pn })), "which app"),
            (vec!["setup"], json!({}), "netavark calls"),
            (vec!["teardown", "/run/netns/x"], exec(json!({})), "names no private one"),
            (vec!["jump"], json!({}), "netavark calls"),
        ] {
            let failure = answer(&client, &arguments, &input.to_string()).unwrap_err();
            assert!(failure.message.contains(says), "{arguments:?} {input}: {}", failure.message);
        }
        let info = answer(&client, &["info"], "").unwrap().unwrap();
        assert_eq!(info["api_version"], API_VERSION);
    }
}
