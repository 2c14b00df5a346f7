//! `warren doctor`: what is wrong with this host, and what to do about it.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use resolver::{Forwarder, system_upstreams};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Failure;
use super::client::Client;
use super::config::ConfigArgs;
use super::output::Output;
use crate::api::Status;
use crate::config::Config;
use crate::doctor::{self, Finding, Health, Holder, Said};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Works with an agent and without one; run it as root, where the agent runs. Exits with 7 when something \
                  is broken or will be soon."
)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    let config = args.config.load()?;
    let status: Result<Status, Failure> = client.get("/v1/status");
    let mut findings = on_this_host(&config, status.is_ok())?;
    let problems = status.as_ref().map(|status| status.problems.as_slice());
    findings.extend(doctor::agent(problems.map_err(|failure| failure.message.as_str())));
    if status.is_ok() {
        let said: Said = client.get("/v1/doctor")?;
        findings.extend(doctor::said(&said, config.underlay.vxlan_port));
    }
    let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(Health::Ok);
    out.rows(&findings, &["CHECK", "STATE", "FOUND"], |finding| {
        let state = finding.state.as_str().to_owned();
        vec![finding.check.clone(), state, finding.detail.clone()]
    });
    if out.is_for_people() {
        hints(&findings).into_iter().for_each(|line| out.line(&line));
    }
    Ok(if worst >= Health::Warning { ExitCode::from(7) } else { ExitCode::SUCCESS })
}

/// What to do, once for each.
fn hints(findings: &[Finding]) -> Vec<String> {
    let wrong = findings.iter().filter(|finding| finding.state >= Health::Warning);
    let told = wrong.filter_map(|finding| Some(format!("{}: {}", finding.check, finding.hint.as_ref()?)));
    let told: BTreeSet<String> = told.collect();
    if told.is_empty() {
        return vec![String::new(), "nothing is wrong".to_owned()];
    }
    [String::new(), "what to do".to_owned()]
        .into_iter()
        .chain(told.into_iter().map(|line| format!("  {line}")))
        .collect()
}

fn on_this_host(config: &Config, agent: bool) -> Result<Vec<Finding>, Failure> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = vec![doctor::kernel(&release)];
    findings.extend(features(config));
    findings.push(certificate(config));
    let mtu = netplumb::netlink::underlay_mtu(config.underlay.address).map_err(|error| error.to_string());
    let address = config.underlay.address.to_string();
    findings.push(doctor::underlay(&address, mtu.as_ref().copied().map_err(String::as_str)));
    let port = config.gossip.listen.port();
    findings.push(doctor::gossip_port(port, &holders(port), agent));
    let port = config.underlay.vxlan_port;
    findings.push(doctor::vxlan_port(port, &holders(port)));
    let free = free_bytes(config).map_err(|error| error.to_string());
    findings.push(doctor::disk(
        &config.state_dir.display().to_string(),
        free.as_ref().copied().map_err(String::as_str),
    ));
    findings.push(other_names(config)?);
    Ok(findings)
}

fn features(config: &Config) -> impl Iterator<Item = Finding> + use<> {
    let features = netplumb::survey();
    let in_kernel = features.iter().any(|feature| feature.name == "wireguard" && feature.missing.is_none());
    let (backend, unguarded) = (config.backend, config.unguarded);
    let needed = move |name: &str| match name {
        "wireguard" => backend == netplumb::Backend::Kernel,
        "tun" => backend == netplumb::Backend::Userspace || !in_kernel,
        "nf_tables" => !unguarded,
        _ => true,
    };
    features
        .into_iter()
        .map(move |feature| doctor::feature(feature.name, feature.missing.as_deref(), needed(feature.name)))
}

fn certificate(config: &Config) -> Finding {
    let identity = super::agent::identity(config);
    let now_s = i64::try_from(gossip::unix_ns() / 1_000_000_000).unwrap_or(i64::MAX);
    match &identity {
        Ok(identity) => {
            let who = format!("host {} of {}", identity.host, identity.region);
            doctor::certificate(Ok((&who, identity.expires)), now_s)
        }
        Err(failure) => doctor::certificate(Err(&failure.message), now_s),
    }
}

fn free_bytes(config: &Config) -> std::io::Result<u64> {
    // It need not be there before the first start.
    let there = config.state_dir.ancestors().find(|path| path.exists()).unwrap_or(&config.state_dir);
    let found = rustix::fs::statvfs(there)?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Who has a socket on a UDP port of this network namespace.
fn holders(port: u16) -> Vec<Holder> {
    let table = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let inodes: BTreeSet<u64> =
        ["udp", "udp6"].iter().flat_map(|name| doctor::held(&table(name), port)).collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    let mut found: BTreeSet<Holder> = inodes.contains(&0).then_some(Holder::Kernel).into_iter().collect();
    let wanted: BTreeSet<String> =
        inodes.iter().filter(|i| **i != 0).map(|i| format!("socket:[{i}]")).collect();
    found.extend(
        processes().filter(|pid| has_any(*pid, &wanted)).map(|pid| Holder::Process { pid, name: name(pid) }),
    );
    if found.is_empty() {
        found.insert(Holder::Hidden);
    }
    found.into_iter().collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_any(pid: u32, sockets: &BTreeSet<String>) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn other_names(config: &Config) -> Result<Finding, Failure> {
    if !config.dns.forward {
        return Ok(doctor::forwards_nothing());
    }
    let upstreams = match &config.dns.upstreams {
        Some(upstreams) => upstreams.clone(),
        None => system_upstreams("/etc/resolv.conf".as_ref()).unwrap_or_default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    let count = upstreams.len();
    let forwarder = Forwarder::new(watch::channel(upstreams).1);
    let answers = runtime.block_on(async {
        let started = Instant::now();
        forwarder.answers().await.then(|| started.elapsed())
    });
    Ok(doctor::resolver(count, answers))
}
