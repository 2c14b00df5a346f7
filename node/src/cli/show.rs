//! `warren ps`, `hosts`, `domain-names`, `status` and `events`.

use std::process::ExitCode;

use clap::Args;
use gossip::id::{AppId, NetworkId};
use gossip::record::MemberState;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::agent::Event;
use crate::api::{HostRow, MemberRow, NameRow, Status};

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Members of all hosts, not only this one's
    #[arg(short, long)]
    all: bool,
    /// Only members of this network
    #[arg(long)]
    network: Option<NetworkId>,
}

#[derive(Debug, Args)]
pub struct DomainNamesArgs {
    /// Only names of this app
    #[arg(long)]
    app: Option<AppId>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit with 7 when something is wrong
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
}

pub fn events(client: &Client, args: &EventsArgs, out: &Output) -> Result<ExitCode, Failure> {
    let mut after = 0;
    loop {
        let events: Vec<Event> = client.get(&format!("/v1/events?after={after}"))?;
        if after == 0 || !events.is_empty() {
            out.rows(&events, &["NUMBER", "MS SINCE 1970", "KIND", "WHAT"], |e| {
                vec![e.number.to_string(), e.at_ms.to_string(), e.kind.as_str().to_owned(), e.detail.clone()]
            });
        }
        after = events.last().map_or(after, |event| event.number);
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        super::pause(std::time::Duration::from_secs(1));
    }
}

pub fn ps(client: &Client, args: &PsArgs, out: &Output) -> Result<ExitCode, Failure> {
    let mut members: Vec<MemberRow> = client.get("/v1/members")?;
    members.retain(|m| m.state != MemberState::Released && (args.all || m.container.is_some()));
    members.retain(|m| args.network.is_none_or(|network| m.network == network));
    let head = ["MEMBER", "NETWORK", "NAME", "ADDRESS", "STATE", "HOST", "INTERFACE", "CONTAINER"];
    out.rows(&members, &head, |m| {
        let ordinal = m.ordinal.map(|n| format!("{n}.")).unwrap_or_default();
        let state = match (m.state, m.contested) {
            (_, true) => "contested",
            (MemberState::Joining, _) => "joining",
            (MemberState::Ready, _) if m.draining => "draining",
            (MemberState::Ready, _) => "ready",
            (MemberState::Released, _) => "released",
        };
        vec![
            m.member.to_string(),
            m.network.to_string(),
            format!("{ordinal}{}.{}", m.process, m.app),
            m.address.to_string(),
            state.to_owned(),
            m.host.to_string(),
            m.ifname.clone().unwrap_or_else(|| "-".into()),
            m.container.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    Ok(ExitCode::SUCCESS)
}

pub fn hosts(client: &Client, out: &Output) -> Result<ExitCode, Failure> {
    let hosts: Vec<HostRow> = client.get("/v1/hosts")?;
    out.rows(&hosts, &["HOST", "STANDING", "GOSSIP", "VTEP", "MTU", "MEMBERS"], |h| {
        vec![
            h.host.to_string(),
            if h.draining { format!("{},draining", h.standing) } else { h.standing.clone() },
            h.address.to_string(),
            h.vtep.to_string(),
            h.mtu.to_string(),
            h.members.to_string(),
        ]
    });
    Ok(ExitCode::SUCCESS)
}

pub fn domain_names(client: &Client, args: &DomainNamesArgs, out: &Output) -> Result<ExitCode, Failure> {
    let query = args.app.map(|app| format!("?app={app}")).unwrap_or_default();
    let names: Vec<NameRow> = client.get(&format!("/v1/names{query}"))?;
    out.rows(&names, &["NAME", "ADDRESSES"], |n| {
        let addresses: Vec<String> = n.addresses.iter().map(ToString::to_string).collect();
        vec![n.name.clone(), addresses.join(" ")]
    });
    Ok(ExitCode::SUCCESS)
}

pub fn status(client: &Client, args: &StatusArgs, out: &Output) -> Result<ExitCode, Failure> {
    let status: Status = client.get("/v1/status")?;
    out.one(&status, if status.ready { "ready" } else { "unready" }, || text(&status));
    let bad = args.check && !(status.ready && status.problems.is_empty());
    Ok(if bad { ExitCode::from(7) } else { ExitCode::SUCCESS })
}

fn text(status: &Status) -> String {
    let list = |pairs: Vec<String>| if pairs.is_empty() { "none".to_owned() } else { pairs.join(", ") };
    let hosts = list(status.hosts.iter().map(|(standing, n)| format!("{n} {standing}")).collect());
    let claims = list(status.claims.iter().map(|(kind, n)| format!("{n} {kind}")).collect());
    let draining = if status.draining { ", draining: `warren drain --off` takes it back" } else { "" };
    let mut lines = vec![
        format!("warren {} on {} in {}", status.version, status.host, status.region),
        format!("state      {}{draining}", if status.ready { "ready" } else { "not ready" }),
        format!("hosts      {hosts}"),
        format!("networks   {}", status.networks),
        format!("members    {} on this host", status.members),
        format!("claims     {claims}"),
        format!("wireguard  {}", status.wireguard),
    ];
    lines.extend(status.engine.as_ref().map(|engine| {
        let process =
            engine.pid.map_or("none".to_owned(), |pid| format!("process {pid}, up {} s", engine.uptime_s));
        let threads =
            if engine.threads > 1 { format!(" on {} threads", engine.threads) } else { String::new() };
        format!(
            "engine     {process}, {} interfaces{threads}, {} listeners",
            engine.interfaces, engine.listeners
        )
    }));
    lines.extend(status.addresses.iter().map(|n| {
        let (held, released, ghosts) = (n.held, n.released, n.ghosts);
        let (free, contested) = (n.free, n.contested);
        format!(
            "addresses  {}: {held} held, {released} released, {ghosts} ghosts, {contested} contested, {free} free",
            n.network
        )
    }));
    lines.extend(status.problems.iter().map(|problem| format!("problem    {problem}")));
    lines.join("\n")
}
