//! What `warren` answers on the command line.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Output;

use serde_json::Value;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command, for messages.
    pub command: String,
    /// The exit code; 128 + N after signal N.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The outcome of a process that was run to its end.
    pub fn of(command: String, output: &Output) -> Outcome {
        use std::os::unix::process::ExitStatusExt as _;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome { command, code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Panics unless the command succeeded.
    #[track_caller]
    pub fn ok(&self) -> &Outcome {
        assert_eq!(self.code, 0, "`{}` failed: {}{}", self.command, self.stderr, self.stdout);
        self
    }

    /// Panics unless the command was refused with this exit code, in one sentence for people that
    /// has each of `words`.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) -> &Outcome {
        assert_eq!(self.code, code, "`{}`: {}{}", self.command, self.stderr, self.stdout);
        assert!(!self.stderr.contains("panicked"), "`{}`: {}", self.command, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{}` does not say {word:?}: {}", self.command, self.stderr);
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.ok();
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("`{}` printed no JSON ({e}): {}", self.command, self.stdout))
    }

    /// Standard output as JSON, an array.
    #[track_caller]
    pub fn rows(&self) -> Vec<Value> {
        self.json().as_array().unwrap_or_else(|| panic!("`{}` printed no array", self.command)).clone()
    }
}

/// What an attach answered.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The member.
    pub member: String,
    /// Its network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its address in the ULA.
    pub address6: Option<Ipv6Addr>,
    /// Its interface in the container.
    pub ifname: String,
    /// MTU of the interface, in bytes.
    pub mtu: usize,
    /// MAC of its end of the overlay.
    pub mac: String,
    /// Its number.
    pub ordinal: Option<u64>,
    /// The names it is found by.
    pub names: Vec<String>,
    /// Other hosts of the network that did not say in time that they have it.
    pub missing: Vec<String>,
    /// All of it.
    pub json: Value,
}

impl From<Value> for Attached {
    fn from(json: Value) -> Attached {
        let text = |key: &str| json[key].as_str().unwrap_or_else(|| panic!("no {key} in {json}")).to_owned();
        let list = |key: &str| {
            let values = json[key].as_array().unwrap_or_else(|| panic!("no {key} in {json}"));
            values.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        Attached {
            member: text("member"),
            network: text("network"),
            address: text("address").parse().expect("an IPv4 address"),
            address6: json["address6"].as_str().map(|a| a.parse().expect("an IPv6 address")),
            ifname: text("ifname"),
            mtu: json["mtu"].as_u64().expect("an MTU") as usize,
            mac: text("mac"),
            ordinal: json["ordinal"].as_u64(),
            names: list("names"),
            missing: list("missing"),
            json,
        }
    }
}
