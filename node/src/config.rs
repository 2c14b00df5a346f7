//! What an agent is told at start: flags over environment over file over defaults, parsed and
//! checked once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use gossip::id::{HostId, Region};
use serde::Deserialize;

use crate::runtime::docker::engine;
use crate::runtime::podman;

/// Where the agent looks for its configuration when not told.
pub const DEFAULT_PATH: &str = "/etc/warren/agent.toml";
/// Where the agent's API socket stands when not told.
pub const DEFAULT_SOCKET: &str = "/run/warren/warren.sock";
/// Where the engine's socket stands when not told.
pub const DEFAULT_ENGINE_SOCKET: &str = "/run/warren/engine.sock";

/// Where Docker looks for the plugin `warren`.
pub const DEFAULT_PLUGIN: &str = "/run/docker/plugins/warren.sock";

/// Everything an agent is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The gossip cluster this host belongs to.
    pub region: Region,
    /// This host's name, as its certificate carries it.
    pub host: HostId,
    /// Members, keys, generation and last view: survives a restart.
    pub state_dir: PathBuf,
    /// API socket and namespaces: gone at boot.
    pub run_dir: PathBuf,
    /// Membership.
    pub gossip: Gossip,
    /// Certificates.
    pub tls: Tls,
    /// This host's end of the VXLAN tunnels.
    pub underlay: Underlay,
    /// Names.
    pub dns: Dns,
    /// How Docker finds this agent, and it Docker.
    pub docker: Docker,
    /// Sockets of the engines whose labelled containers join.
    pub watch: Vec<PathBuf>,
    /// Where `/metrics`, `/healthz`, `/readyz` and the status page are served.
    pub http: SocketAddr,
    /// Which WireGuard.
    pub backend: netplumb::Backend,
    /// Attach without the guard's table, for kernels without nf_tables.
    pub unguarded: bool,
    /// Bounds that follow from the rest; the file cannot set them.
    pub thresholds: Thresholds,
}

/// Bounds that follow from the gossip interval and the TTL unless they are given. Not in the file:
/// the simulation shortens them, so that an hour's wait does not take an hour.
#[derive(Debug, Clone)]
pub struct Thresholds {
    /// Bounds for the standing of hosts, T_hold among them; [`gossip::Timings::of`] the interval.
    pub timings: Option<gossip::Timings>,
    /// How long the address of a detached member rests; TTL + 5 s.
    pub quarantine: Option<Duration>,
    /// Whether changes are pushed at once; without it gossip's rounds alone carry them.
    pub eager: bool,
    /// Whether gossip's digests are left uncompressed: see [`gossip::Config::plain_digests`].
    pub plain_digests: bool,
    /// Parsed records, shared by all agents of one process.
    pub parsed: gossip::Interner,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            timings: None,
            quarantine: None,
            eager: true,
            plain_digests: false,
            parsed: gossip::Interner::default(),
        }
    }
}

/// Where this agent gossips, and with whom first.
#[derive(Debug, Clone)]
pub struct Gossip {
    /// Address and UDP port to listen on.
    pub listen: SocketAddr,
    /// Address and UDP port the other agents reach this one by.
    pub advertise: SocketAddr,
    /// Peers to join by: `address:port` or `name:port`.
    pub seeds: Vec<String>,
    /// Time between gossip rounds; by region size when not given.
    pub interval: Option<Duration>,
}

/// Certificate files in PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The region's certificate authority.
    pub ca: PathBuf,
    /// This host's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// This host's tunnel end.
#[derive(Debug, Clone)]
pub struct Underlay {
    /// Address of the interface the other hosts reach.
    pub address: IpAddr,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
}

/// How Docker finds this agent, and it Docker.
#[derive(Debug, Clone)]
pub struct Docker {
    /// The plugin's socket, whose file name is the driver's name; none where it is not served.
    pub plugin: Option<PathBuf>,
    /// The engine's socket.
    pub socket: PathBuf,
}

/// How names are served.
#[derive(Debug, Clone)]
pub struct Dns {
    /// The zone all private names end in.
    pub zone: String,
    /// Time to live of answers, in seconds.
    pub ttl_s: u32,
    /// Address of the name server in each container.
    pub listen: Ipv4Addr,
    /// Port the name server is bound to there: the guard's table rewrites port 53 to it, so that
    /// the app keeps its own. Without the table it is port 53 itself.
    pub port: u16,
    /// Where other names go; the host's resolv.conf when none is given.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Whether other names are resolved at all.
    pub forward: bool,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            zone: "private-network.internal".into(),
            ttl_s: 30,
            listen: Ipv4Addr::new(127, 240, 0, 53),
            port: 61053,
            upstreams: None,
            forward: true,
        }
    }
}

impl Dns {
    /// Where the listener is bound in a container.
    pub fn listener(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.listen, self.port)
    }
}

impl Config {
    /// The API socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("warren.sock")
    }

    /// The engine's socket.
    pub fn engine_socket(&self) -> PathBuf {
        self.run_dir.join("engine.sock")
    }

    /// The gossip interval of a region in which `known` other hosts were known last.
    pub fn interval(&self, known: usize) -> Duration {
        let by_size = if known > 500 { Duration::from_secs(1) } else { Duration::from_millis(500) };
        self.gossip.interval.unwrap_or(by_size)
    }

    /// How long the address of a detached member rests: as long as clients may hold its name, and
    /// a little longer.
    pub fn quarantine(&self) -> Duration {
        self.thresholds.quarantine.unwrap_or(Duration::from_secs(u64::from(self.dns.ttl_s) + 5))
    }

    /// Reads the file (if there is one), the environment and the flags' overrides, in rising rank.
    ///
    /// `file` is an error when it was named and cannot be read; the default file may be missing.
    /// Errors name the key and what would be accepted.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> anyhow::Result<Config> {
        let (path, named) = match file {
            Some(path) => (path.to_owned(), true),
            None => (PathBuf::from(DEFAULT_PATH), false),
        };
        let mut table = match std::fs::read_to_string(&path) {
            Ok(text) => {
                text.parse::<toml::Table>().with_context(|| format!("{} is not TOML", path.display()))?
            }
            Err(e) if !named && e.kind() == std::io::ErrorKind::NotFound => toml::Table::new(),
            Err(e) => {
                return Err(e).with_context(|| {
                    format!("cannot read the configuration {}; name it with --config", path.display())
                });
            }
        };
        for (variable, value) in environment {
            if let Some(key) = variable.strip_prefix("WARREN_").and_then(key_of_variable) {
                set(&mut table, key, &value)?;
            }
        }
        for (key, value) in overrides {
            set(&mut table, key, value)?;
        }
        let written: Written = table.clone().try_into().map_err(|e| anyhow::anyhow!(explain(&e, &table)))?;
        written.check(path.parent().unwrap_or(Path::new(".")))
    }
}

/// Every key by its dotted name; `WARREN_` with dots as underscores is its environment variable.
const KEYS: &[&str] = &[
    "region",
    "host",
    "state_dir",
    "run_dir",
    "gossip.listen",
    "gossip.advertise",
    "gossip.seeds",
    "gossip.interval_ms",
    "tls.ca",
    "tls.cert",
    "tls.key",
    "underlay.address",
    "underlay.vxlan_port",
    "dns.zone",
    "dns.ttl_s",
    "dns.listen",
    "dns.upstreams",
    "dns.forward",
    "docker.plugin",
    "docker.socket",
    "watch.sockets",
    "http.listen",
    "wireguard.backend",
    "unguarded",
];

fn key_of_variable(rest: &str) -> Option<&'static str> {
    KEYS.iter().find(|key| key.replace('.', "_").to_uppercase() == rest).copied()
}

/// Puts a value given as text under a dotted key: TOML where it parses, a list where the key is
/// one, else a string.
fn set(table: &mut toml::Table, key: &str, text: &str) -> anyhow::Result<()> {
    let value = match text.parse::<toml::Value>() {
        Ok(value) => value,
        Err(_) if ["seeds", "upstreams", "sockets"].iter().any(|list| key.ends_with(list)) => {
            toml::Value::Array(
                text.split(',')
                    .map(|s| s.trim().to_owned())
                    .filter(|s| !s.is_empty())
                    .map(toml::Value::String)
                    .collect(),
            )
        }
        Err(_) => toml::Value::String(text.to_owned()),
    };
    let mut place = table;
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or(key);
    for part in parts {
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .with_context(|| format!("`{part}` is not a section"))?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// serde's message with the key and the value it is about; an unknown key with the likeliest meant.
fn explain(error: &toml::de::Error, table: &toml::Table) -> String {
    let message = explain_unknown(error.message());
    let text = error.to_string();
    let Some(key) = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`')) else {
        return message;
    };
    let mut parts = key.split('.');
    let first = parts.next().and_then(|part| table.get(part));
    match parts.try_fold(first, |value, part| Some(value?.get(part))).flatten() {
        Some(value) if !value.is_table() => format!("{key} is {value}: {message}"),
        _ => format!("{key}: {message}"),
    }
}

/// serde's "unknown field `x`, expected one of `a`, `b`" with the likeliest meant.
fn explain_unknown(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let meant = message
        .starts_with("unknown field")
        .then(|| {
            let unknown = quoted.next()?;
            quoted
                .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
                .filter(|(distance, _)| *distance <= 3)
                .min()
        })
        .flatten();
    match meant {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// The file as written, before defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
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
struct WrittenHttp {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWireguard {
    backend: Option<WrittenBackend>,
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
    fn check(self, base: &Path) -> anyhow::Result<Config> {
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
        let plugin = self.docker.plugin.unwrap_or_else(|| DEFAULT_PLUGIN.into());
        let docker = Docker {
            plugin: Some(plugin).filter(|path| !path.as_os_str().is_empty()),
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
            http: self.http.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9479))),
            backend: match self.wireguard.backend.unwrap_or(WrittenBackend::Auto) {
                WrittenBackend::Auto => netplumb::Backend::Auto,
                WrittenBackend::Kernel => netplumb::Backend::Kernel,
                WrittenBackend::Userspace => netplumb::Backend::Userspace,
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        region = "osc-fr1"
        host = "host-a"
        [gossip]
        listen = "192.0.2.1:7946"
        [tls]
        ca = "ca.pem"
        cert = "/etc/x/host.pem"
        key = "host.key"
    "#;

    fn load(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let own = |(k, v): &(&str, &str)| (k.to_string(), v.to_string());
        let flags: Vec<_> = flags.iter().map(own).collect();
        Config::load(Some(&path), environment.iter().map(own), &flags)
    }

    #[test]
    fn defaults_follow_from_the_least_file() {
        let config = load(MINIMAL, &[], &[]).unwrap();
        assert_eq!(config.gossip.advertise, config.gossip.listen);
        assert_eq!(config.underlay.address.to_string(), "192.0.2.1");
        assert_eq!(config.underlay.vxlan_port, 4789);
        assert_eq!(config.dns.listener().to_string(), "127.240.0.53:61053");
        assert_eq!(config.http.to_string(), "127.0.0.1:9479");
        assert_eq!(config.socket(), Path::new("/run/warren/warren.sock"));
        assert_eq!(config.watch, [Path::new("/var/run/docker.sock"), Path::new("/run/podman/podman.sock")]);
        assert!(config.tls.ca.is_absolute(), "relative paths start at the file");
        assert_eq!(config.tls.cert, Path::new("/etc/x/host.pem"));
    }

    #[test]
    fn addresses_may_be_of_either_family() {
        let flags =
            [("gossip.listen", "[2001:db8::1]:7946"), ("gossip.seeds", "[2001:db8::2]:7946,b.example:7946")];
        let config = load(MINIMAL, &[], &flags).unwrap();
        assert_eq!(config.underlay.address.to_string(), "2001:db8::1");
        assert_eq!(config.gossip.seeds.len(), 2);
        // Every address of the host, told by one of them; tunnels elsewhere.
        let any = [
            ("gossip.listen", "[::]:7946"),
            ("gossip.advertise", "[2001:db8::1]:7946"),
            ("underlay.address", "192.0.2.1"),
        ];
        assert!(load(MINIMAL, &[], &any).unwrap().underlay.address.is_ipv4());
    }

    #[test]
    fn flags_beat_environment_beats_file() {
        let environment =
            [("WARREN_HOST", "host-e"), ("WARREN_GOSSIP_SEEDS", "192.0.2.2:7946, b.example:7946")];
        let config = load(MINIMAL, &environment, &[("host", "host-f"), ("dns.ttl_s", "7")]).unwrap();
        assert_eq!(config.host.as_str(), "host-f");
        assert_eq!(config.gossip.seeds, ["192.0.2.2:7946", "b.example:7946"]);
        assert_eq!(config.dns.ttl_s, 7);
    }

    #[test]
    fn a_container_variable_is_not_a_key() {
        assert!(load(MINIMAL, &[("WARREN_NETWORK_ID", "pn-x"), ("WARREN_SOCKET", "/x")], &[]).is_ok());
    }

    #[test]
    fn bad_input_says_what_would_do() {
        let cases: &[(&str, &str, &str)] = &[
            ("", "regoin = \"x\"", "did you mean `region`"),
            ("", "[gossip]\nlisten = \"192.0.2.1:1\"\nsead = []", "did you mean `seeds`"),
            ("region = \"osc-fr1\"", "region = \"Fr 1\"", "a-z, 0-9"),
            ("192.0.2.1:7946", "0.0.0.0:7946", "gossip.advertise"),
            ("192.0.2.1:7946", "nonsense", "invalid socket address"),
            ("[tls]", "seeds = [\"b\"]\n[tls]", "not `address:port`"),
            ("[tls]", "interval_ms = 1\n[tls]", "20 to 60000"),
            ("[tls]", "advertise = \"[2001:db8::1]:1\"\n[tls]", "two address families"),
            ("[tls]", "seeds = [\"[2001:db8::1]:1\"]\n[tls]", "expected an IPv4"),
            ("[tls]", "[underlay]\naddress = \"fe80::1\"\n[tls]", "underlay.address"),
            ("[tls]", "[dns]\nlisten = \"10.0.0.1\"\n[tls]", "127.0.0.0/8"),
            ("[tls]", "[wireguard]\nbackend = \"fast\"\n[tls]", "unknown variant"),
            ("[tls]", "[tls", "not TOML"),
        ];
        for (old, new, expected) in cases {
            let text = if old.is_empty() { format!("{new}\n{MINIMAL}") } else { MINIMAL.replace(old, new) };
            // A section given twice is caught by the TOML parser; keep one.
            let text = if new.starts_with("[gossip]") {
                MINIMAL.replace("[gossip]\n        listen = \"192.0.2.1:7946\"", new)
            } else {
                text
            };
            let error = format!("{:#}", load(&text, &[], &[]).unwrap_err());
            assert!(error.contains(expected), "{new:?} gave {error:?}, expected {expected:?}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let error =
            Config::load(Some(Path::new("/nonexistent/agent.toml")), std::iter::empty(), &[]).unwrap_err();
        assert!(error.to_string().contains("--config"));
    }
}
