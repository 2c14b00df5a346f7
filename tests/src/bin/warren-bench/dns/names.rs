//! One zone for every server, and the questions they are asked.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;

use resolver::{Facts, Zone, ZoneMember};

/// The network's zone, as long as real ones.
pub const ORIGIN: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c.private-network.internal";
const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
/// Below which our names live.
pub const SUFFIX: &str = "private-network.internal";
/// Applications, each with [`MEMBERS`] containers: twenty times what a network may have, so that nobody's cache
/// of the processor holds them all.
const APPS: u32 = 1000;
/// Containers of an application.
pub const MEMBERS: u32 = 20;
const TTL_S: u32 = 30;
/// An OPT record that offers 1232 bytes.
const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

/// Kinds of question.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One container: one A record.
    One,
    /// A type of twenty: twenty A records, asked with EDNS.
    Twenty,
    /// A container that is not there.
    Missing,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::One, Kind::Twenty, Kind::Missing];

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::One => "1 A",
            Kind::Twenty => "20 A, EDNS",
            Kind::Missing => "NXDOMAIN",
        }
    }

    /// Response code and answers of a right reply.
    pub fn expected(self) -> (u8, u16) {
        match self {
            Kind::One => (0, 1),
            Kind::Twenty => (0, MEMBERS as u16),
            Kind::Missing => (3, 0),
        }
    }
}

/// Questions of one kind, of all applications, in an order that is nobody's.
pub fn questions(kind: Kind) -> Vec<Vec<u8>> {
    // A stride prime to the number of applications visits each once.
    (0..APPS)
        .map(|n| {
            let app = app(n * 389 % APPS);
            match kind {
                Kind::One => query(&format!("{}.web.{app}.{ORIGIN}", n % MEMBERS + 1), &[]),
                Kind::Twenty => query(&format!("web.{app}.{ORIGIN}"), &OPT),
                Kind::Missing => query(&format!("{}.web.{app}.{ORIGIN}", MEMBERS + 1), &[]),
            }
        })
        .collect()
}

/// An A query with this behind the question.
fn query(name: &str, additional: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!additional.is_empty())];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes.extend(additional);
    bytes
}

fn app(n: u32) -> String {
    format!("ap-{n:08x}-7c70-4c00-a644-eee8558d8053")
}

/// The zone as warren serves it.
pub fn zone() -> Zone {
    let member = |n: u32| ZoneMember {
        app: app(n / MEMBERS),
        process: "web".into(),
        ordinal: Some(n % MEMBERS + 1),
        address: Ipv4Addr::from(0x0a00_0001 + n),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    };
    let members: Vec<_> = (0..APPS * MEMBERS).map(member).collect();
    let subnet = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
    Zone::build(NETWORK, SUFFIX, TTL_S, 1, subnet, &members)
        .unwrap_or_else(|error| panic!("the bench's zone: {error}"))
}

/// The same zone as a master file (RFC 1035 §5), as Unbound's local data, and as a hosts file.
pub fn write(zone: &Zone, dir: &Path) -> io::Result<()> {
    let mut master = io::BufWriter::new(fs::File::create(dir.join("zone"))?);
    let mut local = io::BufWriter::new(fs::File::create(dir.join("local-data"))?);
    let mut hosts = io::BufWriter::new(fs::File::create(dir.join("hosts"))?);
    writeln!(master, "{ORIGIN}. 5 IN SOA ns.{SUFFIX}. hostmaster.{SUFFIX}. 1 3600 600 86400 5")?;
    writeln!(master, "{ORIGIN}. 5 IN NS ns.{SUFFIX}.")?;
    writeln!(local, "local-zone: \"{ORIGIN}.\" static")?;
    let soa = format!("{ORIGIN}. 5 IN SOA ns.{SUFFIX}. hostmaster.{SUFFIX}. 1 3600 600 86400 5");
    writeln!(local, "local-data: \"{soa}\"")?;
    for name in zone.names() {
        for address in name.addresses {
            writeln!(master, "{}. {TTL_S} IN A {address}", name.name)?;
            writeln!(local, "local-data: \"{}. {TTL_S} IN A {address}\"", name.name)?;
            writeln!(hosts, "{address} {}", name.name)?;
        }
    }
    master.flush()?;
    local.flush()?;
    hosts.flush()
}
