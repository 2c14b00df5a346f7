//! The file as it may be written, its defaults, and what is checked of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use gossip::id::{HostId, Region};
use serde::Deserialize;

use super::{Config, DEFAULT_CDI, DEFAULT_PLUGIN, Dns, Docker, Gossip, Thresholds, Tls, Underlay};
use crate::runtime::docker::engine;
use crate::runtime::podman;

/// More threads than any host has use for.
const THREADS_MAX: u16 = 64;

/// The file as written, before defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    region: Region,
    host: Option<HostId>,
    #[serde(default = "state_dir")]
    state_dir: PathBuf,
    #[serde(default = "run_dir")]
    run_dir: PathBuf,
    gossip: WrittenGossip,
    tls: WrittenTls,
    #[serde(default)]
    underlay: WrittenUnderlay,
    #[serde(default)]
    dns: WrittenDns,
    #[serde(default)]
    docker: WrittenDocker,
    #[serde(default)]
    watch: WrittenWatch,
    #[serde(default)]
    cdi: WrittenCdi,
    #[serde(default)]
    http: WrittenHttp,
    #[serde(default)]
    wireguard: WrittenWireguard,
    #[serde(default)]
    unguarded: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGossip {
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
    #[serde(default)]
    seeds: Vec<String>,
    interval_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUnderlay {
    address: Option<IpAddr>,
    vxlan_port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDns {
    zone: Option<String>,
    ttl_s: Option<u32>,
    listen: Option<Ipv4Addr>,
    upstreams: Option<Vec<Upstream>>,
    forward: Option<bool>,
}

/// An upstream with or without its port.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Upstream {
    Socket(SocketAddr),
    Address(IpAddr),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDocker {
    plugin: Option<PathBuf>,
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWatch {
    sockets: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCdi {
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHttp {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWireguard {
    backend: Option<WrittenBackend>,
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenBackend {
    Auto,
    Kernel,
    Userspace,
}

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/warren")
}

fn run_dir() -> PathBuf {
    PathBuf::from("/run/warren")
}

impl Written {
    pub(super) fn check(self, base: &Path) -> anyhow::Result<Config> {
        let host = match self.host {
            Some(host) => host,
            None => hostname()?,
        };
        let advertise = self.gossip.advertise.unwrap_or(self.gossip.listen);
        if advertise.ip().is_unspecified() || advertise.port() == 0 {
            bail!(
                "gossip.advertise is {advertise}: set it to the address and port other hosts reach this one by"
            );
        }
        check_family("gossip.listen", self.gossip.listen.ip(), advertise.ip())?;
        for seed in &self.gossip.seeds {
            let port = seed.rsplit_once(':').and_then(|(name, port)| (!name.is_empty()).then_some(port));
            if port.and_then(|p| p.parse::<u16>().ok()).is_none_or(|p| p == 0) {
                bail!("gossip.seeds: {seed:?} is not `address:port` or `name:port`");
            }
            if let Ok(seed) = seed.parse::<SocketAddr>() {
                check_family("gossip.seeds", seed.ip(), advertise.ip())?;
            }
        }
        let interval = match self.gossip.interval_ms {
            Some(ms) if !(20..=60_000).contains(&ms) => {
                bail!("gossip.interval_ms is {ms}: expected 20 to 60000")
            }
            ms => ms.map(Duration::from_millis),
        };
        let underlay = Underlay {
            address: self.underlay.address.unwrap_or(advertise.ip()),
            vxlan_port: self.underlay.vxlan_port.unwrap_or(4789),
        };
        if underlay.address.to_canonical() != underlay.address || is_link_local(underlay.address) {
            bail!(
                "underlay.address is {}: expected an address that other hosts reach this one by, not of one link alone",
                underlay.address
            );
        }
        let default = Dns::default();
        let dns = Dns {
            zone: self.dns.zone.unwrap_or(default.zone),
            ttl_s: self.dns.ttl_s.unwrap_or(default.ttl_s),
            listen: self.dns.listen.unwrap_or(default.listen),
            port: if self.unguarded { 53 } else { default.port },
            upstreams: self.dns.upstreams.map(|list| {
                list.into_iter()
                    .map(|upstream| match upstream {
                        Upstream::Socket(socket) => socket,
                        Upstream::Address(address) => SocketAddr::new(address, 53),
                    })
                    .collect()
            }),
            forward: self.dns.forward.unwrap_or(default.forward),
        };
        if !dns.listen.is_loopback() {
            bail!("dns.listen is {}: expected an address of 127.0.0.0/8", dns.listen);
        }
        resolver::Scope::new(&dns.zone, dns.listen, resolver::Answers::NotReady, dns.forward)
            .with_context(|| format!("dns.zone is {:?}", dns.zone))?;
        if dns.ttl_s == 0 || dns.ttl_s > 86_400 {
            bail!("dns.ttl_s is {}: expected 1 to 86400", dns.ttl_s);
        }
        let threads = self.wireguard.threads.unwrap_or(1);
        if !(1..=THREADS_MAX).contains(&threads) {
            bail!("wireguard.threads is {threads}: expected 1 to {THREADS_MAX}");
        }
        let some = |path: PathBuf| Some(path).filter(|path| !path.as_os_str().is_empty());
        let docker = Docker {
            plugin: some(self.docker.plugin.unwrap_or_else(|| DEFAULT_PLUGIN.into())),
            socket: self.docker.socket.unwrap_or_else(|| engine::DEFAULT_SOCKET.into()),
        };
        let watch = self.watch.sockets;
        let watch = watch.unwrap_or_else(|| vec![docker.socket.clone(), podman::DEFAULT_SOCKET.into()]);
        Ok(Config {
            region: self.region,
            host,
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            gossip: Gossip { listen: self.gossip.listen, advertise, seeds: self.gossip.seeds, interval },
            tls: Tls {
                ca: base.join(self.tls.ca),
                cert: base.join(self.tls.cert),
                key: base.join(self.tls.key),
            },
            underlay,
            dns,
            docker,
            watch,
            cdi: some(self.cdi.file.unwrap_or_else(|| DEFAULT_CDI.into())),
            http: self.http.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9479))),
            backend: match self.wireguard.backend.unwrap_or(WrittenBackend::Auto) {
                WrittenBackend::Auto => netplumb::Backend::Auto,
                WrittenBackend::Kernel => netplumb::Backend::Kernel,
                WrittenBackend::Userspace => netplumb::Backend::Userspace,
            },
            threads,
            unguarded: self.unguarded,
            thresholds: Thresholds::default(),
        })
    }
}

/// Agents of one region gossip over one address family: a socket of the one does not reach the other.
fn check_family(key: &str, address: IpAddr, advertise: IpAddr) -> anyhow::Result<()> {
    let any = address == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    if !any && address.is_ipv6() != advertise.is_ipv6() {
        let family = if advertise.is_ipv6() { "IPv6" } else { "IPv4" };
        bail!(
            "{key}: {address} and gossip.advertise, {advertise}, are of two address families: expected an {family} \
             address"
        );
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn hostname() -> anyhow::Result<HostId> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.parse().with_context(|| "this machine's hostname cannot be a host name here: set `host`")
}
