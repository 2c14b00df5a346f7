//! What an agent is told at start: flags over environment over file over defaults, parsed and
//! checked once.

mod sources;
mod written;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use gossip::id::{HostId, Region};

use self::written::Written;

/// Where the agent looks for its configuration when not told.
pub const DEFAULT_PATH: &str = "/etc/warren/agent.toml";
/// Where the agent's API socket stands when not told.
pub const DEFAULT_SOCKET: &str = "/run/warren/warren.sock";
/// Where the engine's socket stands when not told.
pub const DEFAULT_ENGINE_SOCKET: &str = "/run/warren/engine.sock";

/// Where Docker looks for the plugin `warren`.
pub const DEFAULT_PLUGIN: &str = "/run/docker/plugins/warren.sock";

/// Where engines look for devices, of which every private network is one.
pub const DEFAULT_CDI: &str = "/run/cdi/warren.json";

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
    /// The file of devices by which engines call the hook (CDI); none where it is not written.
    pub cdi: Option<PathBuf>,
    /// Where `/metrics`, `/healthz`, `/readyz` and the status page are served.
    pub http: SocketAddr,
    /// Which WireGuard.
    pub backend: netplumb::Backend,
    /// Over how many threads the engine spreads its interfaces.
    pub threads: u16,
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
            if let Some(key) = variable.strip_prefix("WARREN_").and_then(sources::key_of_variable) {
                sources::set(&mut table, key, &value)?;
            }
        }
        for (key, value) in overrides {
            sources::set(&mut table, key, value)?;
        }
        let written: Written =
            table.clone().try_into().map_err(|e| anyhow::anyhow!(sources::explain(&e, &table)))?;
        written.check(path.parent().unwrap_or(Path::new(".")))
    }
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
            ("[tls]", "[wireguard]\nthreads = 0\n[tls]", "1 to 64"),
            ("[tls]", "[wireguard]\nthreads = 65\n[tls]", "1 to 64"),
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
