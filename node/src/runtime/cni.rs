//! CNI: `warren` as a plugin binary, asked by environment and standard input (CNI specification 1.1). Alone it makes the
//! container's interface; chained behind another plugin it adds one and leaves that plugin's result as it is.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use gossip::id::{AppId, NetworkId, ProcessType};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{MemberRow, Status};
use crate::attach::{Attached, Netns, Request};
use crate::cli::client::{Client, Failure};
use crate::cli::members::member_path;
use crate::cli::output::Output;

/// What is spoken, oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Before the names of members, so that GC knows its own.
const PREFIX: &str = "cni-";

/// Error codes of the specification.
const UNSUPPORTED_VERSION: u32 = 1;
const BAD_ENVIRONMENT: u32 = 4;
const UNDECODABLE: u32 = 6;
const BAD_CONFIG: u32 = 7;
const TRY_AGAIN: u32 = 11;
const UNAVAILABLE: u32 = 50;
/// From here on codes are the plugin's own: this and the command line's exit code.
const OWN: u32 = 100;

/// The network's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    cni_version: String,
    network: Option<String>,
    app: Option<AppId>,
    #[serde(rename = "processType")]
    process: Option<ProcessType>,
    /// The interface's name when chained.
    ifname: Option<String>,
    socket: Option<PathBuf>,
    prev_result: Option<Value>,
    runtime_config: RuntimeConfig,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// Why a call failed, as the protocol has it.
#[derive(Debug)]
struct Fault {
    code: u32,
    message: String,
    details: String,
}

impl Fault {
    fn new(code: u32, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), details: String::new() }
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        let code = match failure.code {
            3 | 7 | 124 => TRY_AGAIN,
            2 => BAD_CONFIG,
            code => OWN + u32::from(code),
        };
        Fault { code, message: failure.message, details: failure.hint.unwrap_or_default() }
    }
}

/// Whether this process was started as a CNI plugin.
pub fn is_asked() -> bool {
    std::env::args_os().len() == 1 && std::env::var_os("CNI_COMMAND").is_some()
}

/// Answers the one call this process was started for.
pub fn run(out: &Output) -> ExitCode {
    let mut text = String::new();
    let environment: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| name.starts_with("CNI_")).collect();
    let read = std::io::stdin().read_to_string(&mut text);
    let read = read.map_err(|e| Fault::new(UNDECODABLE, format!("standard input: {e}")));
    let config = read.and_then(|_| config(&text, &environment));
    let version = config.as_ref().map_or(VERSIONS[2], |config| config.cni_version.as_str()).to_owned();
    match config.and_then(|config| Call { environment, config }.answer()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => {
            out.line(&answer.to_string());
            ExitCode::SUCCESS
        }
        Err(Fault { code, message, details }) => {
            let fault = json!({ "cniVersion": version, "code": code, "msg": message, "details": details });
            out.line(&fault.to_string());
            ExitCode::FAILURE
        }
    }
}

fn config(text: &str, environment: &BTreeMap<String, String>) -> Result<Config, Fault> {
    // VERSION alone may come without a configuration.
    let text = if text.trim().is_empty() && environment.get("CNI_COMMAND").is_some_and(|c| c == "VERSION") {
        "{}"
    } else {
        text
    };
    let mut config: Config =
        serde_json::from_str(text).map_err(|e| Fault::new(UNDECODABLE, format!("the configuration: {e}")))?;
    if config.cni_version.is_empty() {
        config.cni_version = VERSIONS[0].to_owned();
    }
    Ok(config)
}

/// What a container shall be.
#[derive(Debug, PartialEq)]
struct Wish {
    app: AppId,
    process: ProcessType,
    /// The number it must have.
    ordinal: Option<u32>,
    /// The number it has if that is free.
    index: Option<u32>,
}

struct Call {
    environment: BTreeMap<String, String>,
    config: Config,
}

impl Call {
    fn answer(&self) -> Result<Option<Value>, Fault> {
        let command = self.variable("CNI_COMMAND")?;
        if command == "VERSION" {
            let newest = VERSIONS[VERSIONS.len() - 1];
            return Ok(Some(json!({ "cniVersion": newest, "supportedVersions": VERSIONS })));
        }
        let version = self.config.cni_version.as_str();
        if !VERSIONS.contains(&version) {
            let message = format!("CNI {version} is not spoken here: {}", VERSIONS.join(", "));
            return Err(Fault::new(UNSUPPORTED_VERSION, message));
        }
        match command {
            "ADD" => self.add().map(Some),
            "DEL" => self.delete().map(|()| None),
            "CHECK" => self.check().map(|()| None),
            "GC" => self.collect().map(|()| None),
            "STATUS" => self.status().map(|()| None),
            other => Err(Fault::new(BAD_ENVIRONMENT, format!("CNI_COMMAND is {other:?}"))),
        }
    }

    fn add(&self) -> Result<Value, Fault> {
        let wish = self.wish()?;
        let chained = self.config.prev_result.is_some();
        let alone = (!chained).then(|| self.variable("CNI_IFNAME").map(str::to_owned)).transpose()?;
        let request = Request {
            app: wish.app,
            process: wish.process,
            ordinal: wish.ordinal.or(wish.index),
            ifname: alone.or_else(|| self.config.ifname.clone()),
            address: None,
            ports: Vec::new(),
            forward: None,
            netns: Netns::Path(self.variable("CNI_NETNS")?.into()),
            wait_ms: None,
        };
        let (client, member) = (self.client(), self.member()?);
        let attached: Result<Attached, Failure> = client.put(&member, &request);
        let attached = match attached {
            // The one that is replaced may still have the number.
            Err(Failure { code: 6, .. }) if wish.ordinal.is_none() && wish.index.is_some() => {
                client.put(&member, &Request { ordinal: None, ..request })?
            }
            attached => attached?,
        };
        Ok(self.result(&attached))
    }

    /// What the container is: its annotations before CNI_ARGS before Nomad's, and before the configuration's.
    fn wish(&self) -> Result<Wish, Fault> {
        let arguments = self.arguments();
        let said = |key: &str| {
            let annotation = self.config.runtime_config.annotations.get(&format!("warren.{key}"));
            annotation.or_else(|| arguments.get(&format!("WARREN_{}", key.to_uppercase()))).cloned()
        };
        let bad =
            |what: &str, error: &dyn std::fmt::Display| Fault::new(BAD_CONFIG, format!("{what}: {error}"));
        let app = match said("app") {
            Some(app) => Some(app.parse().map_err(|e| bad("app", &e))?),
            None => self.config.app.or_else(|| arguments.get("NOMAD_JOB_ID")?.parse().ok()),
        };
        let app = app.ok_or_else(|| {
            Fault::new(
                BAD_CONFIG,
                "which app the container runs is not said: set \"app\" in the configuration, \
                 WARREN_APP in CNI_ARGS or the annotation warren.app, or call Nomad's job ap-<uuid>",
            )
        })?;
        let process = said("type").or_else(|| arguments.get("NOMAD_GROUP_NAME").cloned());
        let process = process.map(|text| text.parse().map_err(|e| bad("type", &e))).transpose()?;
        // Nomad counts from nought.
        let index: Option<u32> = arguments.get("NOMAD_ALLOC_INDEX").and_then(|index| index.parse().ok());
        Ok(Wish {
            app,
            process: process.or_else(|| self.config.process.clone()).unwrap_or_else(crate::attach::web),
            ordinal: said("ordinal").map(|text| text.parse().map_err(|e| bad("ordinal", &e))).transpose()?,
            index: index.and_then(|index| index.checked_add(1)),
        })
    }

    /// What the next plugin or the runtime is told.
    fn result(&self, attached: &Attached) -> Value {
        let version = &self.config.cni_version;
        let netns = self.environment.get("CNI_NETNS").cloned().unwrap_or_default();
        let interface = json!({ "name": attached.ifname, "mac": "", "sandbox": netns });
        if let Some(previous) = &self.config.prev_result {
            // An address here would make the other plugin's CHECK look for it on its own interface.
            let mut result = previous.clone();
            result["cniVersion"] = json!(version);
            match result["interfaces"].as_array_mut() {
                Some(interfaces) => interfaces.push(interface),
                None => result["interfaces"] = json!([interface]),
            }
            return result;
        }
        let mut address = json!({ "address": format!("{}/32", attached.address), "interface": 0 });
        if version.starts_with("0.") {
            address["version"] = json!("4");
        }
        json!({
            "cniVersion": version,
            "interfaces": [interface],
            "ips": [address],
            "routes": [{ "dst": attached.subnet.to_string() }],
            "dns": {
                "nameservers": [attached.dns.nameserver.to_string()],
                "search": attached.dns.search,
                "options": attached.dns.options,
            },
        })
    }

    fn delete(&self) -> Result<(), Fault> {
        Ok(self.client().delete(&self.member()?)?)
    }

    fn check(&self) -> Result<(), Fault> {
        let _: Attached = self.client().get(&self.member()?)?;
        Ok(())
    }

    /// Detaches what no runtime knows any more.
    fn collect(&self) -> Result<(), Fault> {
        let network = self.network()?;
        let valid = self.config.valid.as_deref().unwrap_or_default();
        let valid: Vec<String> = valid.iter().map(|v| format!("{PREFIX}{}", v.container_id)).collect();
        let members: Vec<MemberRow> = self.client().get("/v1/members")?;
        let ours = members.into_iter().filter(|member| member.network == network);
        for container in ours.filter_map(|member| member.container) {
            if container.starts_with(PREFIX) && !valid.contains(&container) {
                self.client().delete(&member_path(network, &container))?;
            }
        }
        Ok(())
    }

    fn status(&self) -> Result<(), Fault> {
        let status: Result<Status, Failure> = self.client().get("/v1/status");
        match status {
            Ok(status) if status.ready => Ok(()),
            Ok(status) => Err(Fault::new(UNAVAILABLE, status.problems.join("; "))),
            Err(failure) => Err(Fault { code: UNAVAILABLE, ..failure.into() }),
        }
    }

    fn client(&self) -> Client {
        let socket = self.config.socket.clone();
        Client::new(socket.unwrap_or_else(|| crate::config::DEFAULT_SOCKET.into()))
    }

    fn network(&self) -> Result<NetworkId, Fault> {
        let named = self.config.network.as_deref();
        let named = named
            .ok_or_else(|| Fault::new(BAD_CONFIG, "the configuration has no \"network\": \"pn-<uuid>\""))?;
        named.parse().map_err(|e| Fault::new(BAD_CONFIG, format!("{e}")))
    }

    fn member(&self) -> Result<String, Fault> {
        Ok(member_path(self.network()?, &format!("{PREFIX}{}", self.variable("CNI_CONTAINERID")?)))
    }

    /// CNI_ARGS: `K=V;K=V`.
    fn arguments(&self) -> BTreeMap<String, String> {
        let text = self.environment.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn variable(&self, name: &str) -> Result<&str, Fault> {
        let found = self.environment.get(name).filter(|value| !value.is_empty());
        found.map(String::as_str).ok_or_else(|| Fault::new(BAD_ENVIRONMENT, format!("{name} is not set")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(config: &str, environment: &[(&str, &str)]) -> Call {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Call { config: super::config(config, &environment).unwrap(), environment }
    }

    fn attached() -> Attached {
        serde_json::from_value(json!({
            "member": "00000000000000aa", "container": "cni-c1", "network": "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c",
            "app": "ap-a71da13f-7c70-4c00-a644-eee8558d8053", "type": "web", "ordinal": 1, "address": "10.240.0.5",
            "address6": null, "mac": "02:00:00:00:00:01", "public_key": "", "ifname": "wg0", "mtu": 1390, "vni": 7,
            "subnet": "10.240.0.0/22", "names": [], "applied": [], "missing": [], "env": {},
            "dns": { "nameserver": "127.240.0.53", "search": [], "options": ["edns0"] },
        }))
        .unwrap()
    }

    #[test]
    fn results_are_of_the_version_asked_for() {
        for version in VERSIONS {
            let config = format!(r#"{{"cniVersion":"{version}","network":"pn-x"}}"#);
            let result = call(&config, &[("CNI_NETNS", "/run/netns/x")]).result(&attached());
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["address"], "10.240.0.5/32");
            assert_eq!(result["ips"][0]["version"].is_string(), version.starts_with('0'), "{version}");
            assert_eq!(result["interfaces"][0]["sandbox"], "/run/netns/x");
            assert_eq!(result["dns"]["nameservers"][0], "127.240.0.53");
        }
    }

    #[test]
    fn a_chained_result_keeps_what_came_before_and_adds_no_address() {
        let before = json!({
            "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "10.88.0.5/16", "interface": 0 }], "routes": [{ "dst": "0.0.0.0/0" }], "dns": {},
        });
        let config = json!({ "cniVersion": "1.0.0", "prevResult": before }).to_string();
        let result = call(&config, &[("CNI_NETNS", "/run/netns/x")]).result(&attached());
        assert_eq!((&result["ips"], &result["routes"]), (&before["ips"], &before["routes"]));
        assert_eq!(result["interfaces"][0], before["interfaces"][0]);
        assert_eq!(result["interfaces"][1]["name"], "wg0");
    }

    #[test]
    fn job_group_and_index_of_nomads_say_what_a_container_is() {
        const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";
        let of = |config: &str, more: &str| {
            let arguments = format!(
                "IgnoreUnknown=true;NOMAD_ALLOC_ID=7cd08c6c-86c8-0bfa-f7ca-338466447711;NOMAD_GROUP_NAME=worker;\
                 NOMAD_JOB_ID={AP};NOMAD_NAMESPACE=default;NOMAD_REGION=global{more}"
            );
            call(config, &[("CNI_ARGS", &arguments)]).wish()
        };
        let (app, worker) = (AP.parse().unwrap(), "worker".parse::<ProcessType>().unwrap());
        let expected = Wish { app, process: worker.clone(), ordinal: None, index: None };
        assert_eq!(of("{}", "").unwrap(), expected);
        assert_eq!(of("{}", ";NOMAD_ALLOC_INDEX=0").unwrap(), Wish { index: Some(1), ..expected });
        let other = "ap-5c1ad8a5-5d2c-4ab2-8a0d-7f2f0f5e9f10";
        let said = of("{}", &format!(";WARREN_APP={other};WARREN_TYPE=web;WARREN_ORDINAL=7")).unwrap();
        assert_eq!(
            (said.app.to_string().as_str(), said.process.as_str(), said.ordinal),
            (other, "web", Some(7))
        );
        let configured = of(&format!(r#"{{"app":"{other}","processType":"web"}}"#), "").unwrap();
        assert_eq!((configured.app.to_string().as_str(), configured.process), (other, worker));
    }

    #[test]
    fn what_is_missing_is_said_by_the_codes_of_the_specification() {
        let none = super::config("{", &BTreeMap::new()).unwrap_err();
        assert_eq!(none.code, UNDECODABLE);
        for (config, environment, code) in [
            (r#"{"cniVersion":"1.0.0"}"#, vec![], BAD_ENVIRONMENT),
            (r#"{"cniVersion":"0.2.0"}"#, vec![("CNI_COMMAND", "ADD")], UNSUPPORTED_VERSION),
            (r#"{"cniVersion":"1.0.0"}"#, vec![("CNI_COMMAND", "JUMP")], BAD_ENVIRONMENT),
            (r#"{"cniVersion":"1.0.0"}"#, vec![("CNI_COMMAND", "DEL")], BAD_CONFIG),
            (r#"{"cniVersion":"1.0.0","network":"pn-1"}"#, vec![("CNI_COMMAND", "ADD")], BAD_CONFIG),
        ] {
            let fault = call(config, &environment).answer().unwrap_err();
            assert_eq!(fault.code, code, "{config} {environment:?}: {}", fault.message);
        }
    }
}
