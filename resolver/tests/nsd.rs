//! Answers beside NSD's: the same names in both, and tens of thousands of questions that nobody thought of.
//!
//! The master files are written here from the members, not from the zone under test. Only two things differ on
//! purpose: RA is always set (Go calls a server lame that neither recurses nor answers), and a truncated answer
//! holds whole records (old musl fails on an empty one). What NSD refuses because it has no such zone is passed on.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _, SeedableRng};
use resolver::{Answers, Outcome, Port, Scope, Transport, Zone, ZoneMember, answer};

const QUESTIONS: u32 = 30_000;
const SUFFIX: &str = "private-network.internal";
const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
const APPS: [&str; 2] =
    ["ap-a71da13f-7c70-4c00-a644-eee8558d8053", "ap-b71da13f-7c70-4c00-a644-eee8558d8053"];
const SOA: &str =
    "5 IN SOA ns.private-network.internal. hostmaster.private-network.internal. 7 3600 600 86400 5";

const ANY: u16 = 255;
const IN: u16 = 1;
const REFUSED: u16 = 5;

/// Web and workers, some with IPv6, ports and facts; one type has more members than fit into 512 bytes.
fn members() -> Vec<ZoneMember> {
    let member = |n: u16| {
        let app = APPS[usize::from(n.is_multiple_of(5))];
        let process = ["web", "worker", "worker"][usize::from(n % 3)];
        ZoneMember {
            app: app.into(),
            process: process.into(),
            ordinal: (!n.is_multiple_of(7)).then_some(u32::from(n)),
            address: Ipv4Addr::new(10, 240, (n >> 8) as u8, n as u8),
            address6: n.is_multiple_of(2).then(|| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)),
            ports: if n.is_multiple_of(4) {
                vec![port("http", "tcp", 3000), port("53", "udp", 53)]
            } else {
                Vec::new()
            },
            facts: [&format!("member={n}"), "host=host-a"].into_iter().collect(),
            late: n.is_multiple_of(11),
        }
    };
    (1..300).step_by(4).chain(1..40).collect::<BTreeSet<u16>>().into_iter().map(member).collect()
}

fn port(service: &str, protocol: &'static str, number: u16) -> Port {
    Port { service: service.into(), protocol, number }
}

fn scope(members: &[ZoneMember]) -> Scope {
    let zone = Zone::build(NETWORK, SUFFIX, 30, 7, "10.240.0.0/22".parse().unwrap(), members).unwrap();
    Scope::new(SUFFIX, Ipv4Addr::new(127, 240, 0, 53), Answers::Zones(vec![Arc::new(zone)]), true).unwrap()
}

/// The names a member is found by, longest first.
fn names(member: &ZoneMember) -> Vec<String> {
    let app = format!("{}.{NETWORK}.{SUFFIX}.", member.app);
    let typed = format!("{}.{app}", member.process);
    let numbered = member.ordinal.map(|n| format!("{n}.{typed}"));
    let bare = (member.process == "web").then(|| app.clone());
    numbered.into_iter().chain([typed]).chain(bare).collect()
}

/// The network's records as lines of a master file (RFC 1035 §5).
fn network_file(members: &[ZoneMember]) -> String {
    let mut lines = BTreeSet::new();
    for member in members {
        let names = names(member);
        for name in &names {
            lines.insert(format!("{name} 30 IN A {}", member.address));
            lines.extend(member.address6.map(|address| format!("{name} 30 IN AAAA {address}")));
            for port in &member.ports {
                // Of members that share a name it is prompt as long as one of them is.
                let same = |other: &&ZoneMember| {
                    other.ports.contains(port)
                        && self::names(other)[0] == names[0]
                        && self::names(other).contains(name)
                };
                let late = members.iter().filter(same).all(|other| other.late);
                let (service, target) = (format!("_{}._{}", port.service, port.protocol), &names[0]);
                lines.insert(format!(
                    "{service}.{name} 30 IN SRV {} 1 {} {target}",
                    u8::from(late),
                    port.number
                ));
            }
        }
        if member.ordinal.is_some() {
            let facts: Vec<_> =
                member.facts.iter().map(|fact| format!("\"{}\"", fact.escape_ascii())).collect();
            lines.insert(format!("{} 30 IN TXT {}", names[0], facts.join(" ")));
        }
    }
    let apex = format!("{NETWORK}.{SUFFIX}.");
    let head = format!("{apex} {SOA}\n{apex} 5 IN NS ns.{SUFFIX}.\n");
    lines.into_iter().fold(head, |file, line| file + &line + "\n")
}

/// The zones' names and master files.
fn zones(members: &[ZoneMember]) -> Vec<(String, String)> {
    let suffix = format!(
        "{SUFFIX}. {SOA}\n{SUFFIX}. 5 IN NS ns.{SUFFIX}.\nns.{SUFFIX}. 5 IN A 127.240.0.53\n\
         {NETWORK}.{SUFFIX}. 5 IN NS ns.{SUFFIX}.\n"
    );
    let mut zones = vec![(SUFFIX.into(), suffix), (format!("{NETWORK}.{SUFFIX}"), network_file(members))];
    for third in 0..4 {
        let apex = format!("{third}.240.10.in-addr.arpa");
        let mut file = format!("{apex}. {SOA}\n{apex}. 5 IN NS ns.{SUFFIX}.\n");
        for member in members.iter().filter(|member| member.address.octets()[2] == third) {
            let _ = writeln!(file, "{}.{apex}. 30 IN PTR {}", member.address.octets()[3], names(member)[0]);
        }
        zones.push((apex, file));
    }
    zones
}

/// NSD with these zones, on a port of its own.
struct Nsd {
    child: Child,
    socket: UdpSocket,
}

impl Nsd {
    fn start(dir: &Path, zones: &[(String, String)]) -> Nsd {
        // Free a moment ago: nobody else binds ports here.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.display();
        let mut config = format!(
            "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{at}\"\n \
             database: \"\"\n pidfile: \"{at}/pid\"\n xfrdfile: \"{at}/xfrd\"\n zonelistfile: \"{at}/list\"\n \
             rrl-ratelimit: 0\n minimal-responses: yes\n ipv4-edns-size: 1232\n\
             remote-control:\n control-enable: no\n"
        );
        for (name, file) in zones {
            fs::write(dir.join(name), file).unwrap();
            let _ = write!(config, "zone:\n name: {name}\n zonefile: {at}/{name}\n");
        }
        fs::write(dir.join("nsd.conf"), config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("nsd");
        command
            .arg("-d")
            .arg("-c")
            .arg(dir.join("nsd.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().expect("`nsd` runs (apt-get install nsd)");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let nsd = Nsd { child, socket };
        let ask = Ask { name: SUFFIX.into(), rtype: 6, class: IN, flags: [0, 0], edns: None }.bytes();
        let answers = || {
            let answered = nsd.ask(&ask).is_some_and(|reply| reply[3] & 0xf == 0);
            // A closed port is refused at once.
            if !answered {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            answered
        };
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!((0..200).any(|_| answers()), "NSD does not answer: {}", log());
        nsd
    }

    fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(query).ok()?;
        let mut reply = vec![0; 65_535];
        let length = self.socket.recv(&mut reply).ok()?;
        reply.truncate(length);
        Some(reply)
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // Its children end with it on SIGTERM, not on SIGKILL.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A question in its usual frame.
#[derive(Clone, Debug)]
struct Ask {
    name: String,
    rtype: u16,
    class: u16,
    flags: [u8; 2],
    /// Payload size, version, DO.
    edns: Option<(u16, u8, bool)>,
}

impl Ask {
    fn bytes(&self) -> Vec<u8> {
        let [first, second] = self.flags;
        let mut bytes = vec![0x12, 0x34, first, second, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())];
        for label in self.name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend([self.rtype.to_be_bytes(), self.class.to_be_bytes()].concat());
        if let Some((size, version, dnssec_ok)) = self.edns {
            bytes.extend([&[0, 0, 41][..], &size.to_be_bytes()].concat());
            bytes.extend([0, version, u8::from(dnssec_ok) << 7, 0, 0, 0]);
        }
        bytes
    }

    /// A question in or around the zone.
    fn random(known: &[String], rng: &mut impl Rng) -> Ask {
        let types = [1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 65, ANY, 257, 1000];
        let mut name = known.choose(rng).cloned().unwrap_or_default();
        for _ in 0..rng.random_range(0..3) {
            name = changed(&name, rng);
        }
        let fits = name.len() < 254 && name.split('.').all(|label| label.len() < 64);
        let sizes = [0, 511, 512, 513, 700, 1231, 1232, 1233, 4096, 65_535];
        let size = *sizes.choose(rng).unwrap_or(&1232);
        Ask {
            name: if fits { name } else { SUFFIX.into() },
            rtype: *types.choose(rng).unwrap_or(&1),
            class: if rng.random_ratio(1, 50) { *[2, 4, 254].choose(rng).unwrap_or(&4) } else { IN },
            flags: [rng.random_range(0..2), 0x10 * rng.random_range(0..2)],
            edns: rng
                .random_bool(0.5)
                .then(|| (size, u8::from(rng.random_ratio(1, 50)), rng.random_bool(0.3))),
        }
    }
}

/// A name near a name: other case, a label less, more, twice, or spelled otherwise.
fn changed(name: &str, rng: &mut impl Rng) -> String {
    let mut labels: Vec<String> = name.split('.').map(Into::into).collect();
    let at = rng.random_range(0..labels.len());
    match rng.random_range(0..8) {
        0 | 1 => {
            return name
                .chars()
                .map(|c| if rng.random_bool(0.5) { c.to_ascii_uppercase() } else { c })
                .collect();
        }
        2 => drop(labels.remove(at)),
        3 => {
            labels.insert(at, ["x", "1", "_tcp", "web", "01"].choose(rng).map_or("y".into(), |l| (*l).into()))
        }
        4 => labels.insert(at, "l".repeat(rng.random_range(1..64))),
        5 => labels.insert(at, labels[at].clone()),
        6 => labels[at].push(rng.random_range('a'..='z')),
        _ => labels.truncate(at),
    }
    labels.join(".")
}

/// What a reply says.
#[derive(Debug, PartialEq)]
struct Said {
    rcode: u16,
    authoritative: bool,
    truncated: bool,
    answers: BTreeSet<String>,
    authorities: BTreeSet<String>,
}

fn said(reply: &[u8]) -> Said {
    let message = Message::from_vec(reply).unwrap_or_else(|error| panic!("{error}: {reply:x?}"));
    let lines = |records: &[Record]| -> BTreeSet<String> {
        let line = |record: &Record| {
            format!("{} {} {:?}", record.name.to_lowercase(), record.ttl, record.data).to_lowercase()
        };
        records.iter().map(line).collect()
    };
    Said {
        rcode: u16::from(message.metadata.response_code),
        authoritative: message.metadata.authoritative,
        truncated: message.metadata.truncation,
        answers: lines(&message.answers),
        authorities: lines(&message.authorities),
    }
}

#[test]
fn nsd_would_have_said_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let members = members();
    let scope = scope(&members);
    let zones = zones(&members);
    let nsd = Nsd::start(dir.path(), &zones);
    let mut known: Vec<String> = ["", "ns.", "x."].iter().map(|label| format!("{label}{SUFFIX}")).collect();
    known.extend(
        zones
            .iter()
            .flat_map(|(_, file)| file.lines())
            .filter_map(|line| line.split(' ').next().map(|name| name.trim_end_matches('.').to_owned())),
    );
    let (mut rng, mut reply) = (SmallRng::seed_from_u64(4), Vec::new());
    let mut cut = 0;
    for _ in 0..QUESTIONS {
        let ask = Ask::random(&known, &mut rng);
        let query = ask.bytes();
        let outcome = answer(&query, &scope, Transport::Udp, &mut rng, &mut reply);
        let theirs = said(&nsd.ask(&query).unwrap_or_else(|| panic!("NSD does not answer {ask:?}")));
        if outcome == Outcome::Forward {
            assert_eq!(theirs.rcode, REFUSED, "{ask:?}");
            continue;
        }
        assert!(matches!(outcome, Outcome::Reply { .. }), "{ask:?}: {outcome:?}");
        let mut ours = said(&reply);
        if ours.truncated && theirs.truncated {
            cut += 1;
            assert!(theirs.answers.is_empty() && !ours.answers.is_empty(), "{ask:?}");
            ours.answers.clear();
        }
        assert_eq!(ours, theirs, "{ask:?}");
    }
    assert!(cut > 100, "only {cut} truncated answers");
}
