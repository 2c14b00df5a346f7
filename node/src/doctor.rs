//! What is wrong with a host, judged by facts that were collected on it and by its agent. Pure.

mod ports;
#[cfg(test)]
mod tests;

use std::time::Duration;

use gossip::id::HostId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use ports::{Holder, held};

use crate::explain::Answer;
use crate::schema;

/// Oldest kernel: SO_NETNS_COOKIE.
const KERNEL_MIN: (u32, u32) = (5, 14);
/// A certificate with less time than this should be replaced soon, in days.
const CERTIFICATE_DAYS: i64 = 14;
/// Free bytes of the state directory below which a journal may soon not be written.
const DISK_BYTES: u64 = 64 << 20;
/// How far clocks may be apart: generations and certificates stand it, people who compare logs do not.
const CLOCK_MS: i64 = 2_000;
/// The smallest fabric that carries IPv6 inside (RFC 8200 §5), as an underlay: 1280 + 60 + 50.
const UNDERLAY_IPV6: u32 = 1390;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// Nobody could say.
    Unknown,
    /// It works, and will not for long, or not for everybody.
    Warning,
    /// It does not work.
    Broken,
}

impl Health {
    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Unknown => "unknown",
            Health::Warning => "warning",
            Health::Broken => "broken",
        }
    }
}

/// What the agent says when it is asked how the host is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "HostSaid")]
pub struct Said {
    /// What a reconciliation would mend now, in words.
    pub drift: Vec<String>,
    /// The other hosts.
    pub others: Vec<Other>,
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtherHost")]
pub struct Other {
    /// Which.
    #[schemars(with = "schema::HostId")]
    pub host: HostId,
    /// How far its clock is ahead, in milliseconds; none where it did not answer.
    pub clock_ahead_ms: Option<i64>,
    /// What came of an echo by VXLAN; none without a network that both are in.
    pub vxlan: Option<Answer>,
}

fn finding(check: &str, state: Health, detail: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), state, detail: detail.into(), hint: None }
}

impl Finding {
    fn hint(self, hint: impl Into<String>) -> Finding {
        Finding { hint: Some(hint.into()), ..self }
    }
}

/// `release` is that of uname(2).
pub fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    match version {
        Some(version) if version >= KERNEL_MIN => finding("kernel", Health::Ok, format!("Linux {release}")),
        Some(_) => finding("kernel", Health::Broken, format!("Linux {release} is too old"))
            .hint("5.14 is the oldest that works: it tells namespaces apart"),
        None => finding("kernel", Health::Unknown, format!("{release:?} is no version of Linux")),
    }
}

/// One thing the kernel should be able to do; `missing` says what happened when it was tried.
pub fn feature(name: &str, missing: Option<&str>, needed: bool) -> Finding {
    match missing {
        None => finding(name, Health::Ok, "there"),
        Some(why) if needed => {
            finding(name, Health::Broken, why).hint(format!("load its module: `modprobe {name}`"))
        }
        Some(why) => finding(name, Health::Ok, format!("not there ({why}); not needed")),
    }
}

/// `until_s` and `now_s` are seconds since 1970.
pub fn certificate(identity: Result<(&str, i64), &str>, now_s: i64) -> Finding {
    let (who, until_s) = match identity {
        Ok(identity) => identity,
        Err(why) => {
            return finding("certificate", Health::Broken, why)
                .hint("`warren region issue` makes a host's certificate; copy it, its key and ca.pem here");
        }
    };
    let days = (until_s - now_s) / 86_400;
    let detail = format!("{who}, for {days} days more");
    if days >= CERTIFICATE_DAYS {
        return finding("certificate", Health::Ok, detail);
    }
    finding("certificate", Health::Warning, detail)
        .hint("issue a new one with `warren region issue`, and restart the agent")
}

/// The interface with the underlay's address.
pub fn underlay(address: &str, mtu: Result<u32, &str>) -> Finding {
    match mtu {
        Ok(mtu) if mtu < UNDERLAY_IPV6 => finding(
            "underlay",
            Health::Warning,
            format!("{address}, MTU {mtu}: too small for IPv6 in containers"),
        )
        .hint(format!("{UNDERLAY_IPV6} or more carry it; the region takes its smallest")),
        Ok(mtu) => finding("underlay", Health::Ok, format!("{address}, MTU {mtu}")),
        Err(why) => {
            finding("underlay", Health::Broken, why).hint("set `underlay.address` to an address of this host")
        }
    }
}

/// Whoever holds gossip's port, which should be an agent where one runs.
pub fn gossip_port(port: u16, holders: &[Holder], agent: bool) -> Finding {
    let who = list(holders.iter().map(ToString::to_string));
    let ours = holders
        .iter()
        .any(|holder| matches!(holder, Holder::Process { name, .. } if name.starts_with("warren")));
    match (holders.is_empty(), ours, agent) {
        (true, _, false) => finding("gossip port", Health::Ok, format!("UDP {port} is free")),
        (false, true, _) => finding("gossip port", Health::Ok, format!("UDP {port} is {who}'s")),
        (true, ..) => finding("gossip port", Health::Broken, format!("nobody listens on UDP {port}"))
            .hint("the agent gossips on another port than this configuration says: restart it"),
        (false, ..) => finding("gossip port", Health::Broken, format!("UDP {port} is {who}'s"))
            .hint("end that process, or set gossip.listen to another port"),
    }
}

/// Whoever holds VXLAN's port: nobody, or the kernel.
pub fn vxlan_port(port: u16, holders: &[Holder]) -> Finding {
    let process = holders.iter().find(|holder| matches!(holder, Holder::Process { .. }));
    match (process, holders.is_empty()) {
        (Some(process), _) => finding("vxlan port", Health::Broken, format!("UDP {port} is {process}'s"))
            .hint("end that process, or set underlay.vxlan_port to another port on every host"),
        (None, true) => finding("vxlan port", Health::Ok, format!("UDP {port} is free: no member is here")),
        (None, false) => finding("vxlan port", Health::Ok, format!("UDP {port} is the kernel's VXLAN")),
    }
}

/// Free space of the state directory.
pub fn disk(path: &str, free: Result<u64, &str>) -> Finding {
    match free {
        Ok(free) if free < DISK_BYTES => {
            finding("disk", Health::Warning, format!("{} MB free in {path}", free >> 20))
                .hint("make room: without it attach and detach are refused")
        }
        Ok(free) => finding("disk", Health::Ok, format!("{} MB free in {path}", free >> 20)),
        Err(why) => finding("disk", Health::Broken, format!("{path}: {why}"))
            .hint("set `state_dir` to a directory that can be made and written"),
    }
}

/// Other names are nobody's business here.
pub fn forwards_nothing() -> Finding {
    finding("resolver", Health::Ok, "other names are not passed on (dns.forward)")
}

/// Whether other names are answered.
pub fn resolver(upstreams: usize, answers: Option<Duration>) -> Finding {
    match (upstreams, answers) {
        (0, _) => finding("resolver", Health::Warning, "no name server for other names")
            .hint("set dns.upstreams, or a nameserver in /etc/resolv.conf that is not 127.240.0.53"),
        (_, Some(after)) => finding(
            "resolver",
            Health::Ok,
            format!("other names are answered after {} ms", after.as_millis()),
        ),
        (n, None) => finding("resolver", Health::Warning, format!("none of {n} name servers answers"))
            .hint("private names work all the same; set dns.upstreams to servers that this host reaches"),
    }
}

/// What the agent says of itself, in its own words; `unreachable` when there is none.
pub fn agent(problems: Result<&[String], &str>) -> Vec<Finding> {
    match problems {
        Err(why) => vec![
            finding("agent", Health::Broken, why)
                .hint("start it with `warren agent`; what needs it was not looked at"),
        ],
        Ok([]) => vec![finding("agent", Health::Ok, "ready")],
        Ok(problems) => {
            let problem = |text: &String| {
                finding("agent", Health::Broken, text).hint("see `warren status` and its log")
            };
            problems.iter().map(problem).collect()
        }
    }
}

/// What an agent said.
pub fn said(said: &Said, vxlan_port: u16) -> Vec<Finding> {
    let drift = match said.drift.as_slice() {
        [] => finding("drift", Health::Ok, "the kernel is as it should be"),
        wrong => finding("drift", Health::Warning, list(wrong.iter().cloned()))
            .hint("it is put back within 30 s; where it comes again, somebody else manages these objects"),
    };
    let others = said.others.iter().flat_map(|other| [clock(other), vxlan(other, vxlan_port)]);
    [drift].into_iter().chain(others).collect()
}

fn clock(other: &Other) -> Finding {
    let host = &other.host;
    match other.clock_ahead_ms {
        None => finding("clock", Health::Unknown, format!("{host} does not answer"))
            .hint("see `warren hosts`; let UDP 7946 pass between the hosts"),
        Some(ms) if ms.abs() > CLOCK_MS => finding(
            "clock",
            Health::Warning,
            format!("{host} is {} s {}", ms.abs() / 1000, if ms > 0 { "ahead" } else { "behind" }),
        )
        .hint("have both hosts' clocks set by NTP: certificates are checked by them"),
        Some(ms) => finding("clock", Health::Ok, format!("{host} is {} ms apart", ms.abs())),
    }
}

fn vxlan(other: &Other, port: u16) -> Finding {
    let host = &other.host;
    match &other.vxlan {
        None => finding("vxlan", Health::Unknown, format!("no network has members both here and on {host}")),
        Some(Answer::Micros(micros)) => finding(
            "vxlan",
            Health::Ok,
            format!("to {host} and back in {}.{:02} ms", micros / 1000, micros % 1000 / 10),
        ),
        Some(answer) => {
            let why = match answer {
                Answer::Refused(why) => why.as_str(),
                _ => "nothing comes back",
            };
            finding("vxlan", Health::Broken, format!("to {host}: {why}")).hint(format!(
                "let UDP {port} pass between both, both ways; `warren explain` says which way is shut"
            ))
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
