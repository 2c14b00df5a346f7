//! Programs of others that ask our name server: the stub resolvers apps come with, and checkers of zones.
//!
//! They run in a namespace as a container has it: resolv.conf names our address, and `wg0` has a /32, without which
//! glibc would sort by prefix (RFC 6724 §5, rule 9) what was shuffled. The slow ones are `make clients`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use resolver::{
    Answers, Counters, Facts, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone, ZoneMember,
};
use rustix::mount::{UnmountFlags, unmount};
use tests::ids::{AP, PN, ZONE, name};
use tests::{Netns, dns, process};

/// How many containers the types have.
const COUNTS: [usize; 5] = [1, 20, 30, 100, 1022];
/// Lookups of the type of 20, whose first addresses are counted.
const REPEATED: usize = 400;
/// Chi-squared with 19 degrees of freedom exceeds this once in ten million times.
const CHI_SQUARED_MAX: f64 = 70.0;

/// A namespace with our name server in it, and a directory for what is compiled.
struct Place {
    dir: PathBuf,
    netns: Netns,
    _listener: Listener,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        process::need(&[("ip", "iproute2"), ("unshare", "util-linux")]);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/run/warren-clients-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)
            .unwrap_or_else(|e| panic!("cannot make {}: {e}; run as root", dir.display()));
        let netns = Netns::make(&dir.join("netns"));
        for line in [
            "ip link set lo up",
            "ip link add wg0 type veth peer name far0",
            "ip address add 10.240.3.255/32 dev wg0",
            "ip link set wg0 up",
            "ip link set far0 up",
            "ip route add 10.240.0.0/12 dev wg0 src 10.240.3.255",
        ] {
            netns.run(line);
        }
        let resolv_conf = format!("nameserver {}\noptions edns0 timeout:2 attempts:3\n", dns::SERVER.ip());
        fs::write(dir.join("resolv.conf"), resolv_conf).expect("a file can be written");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = {
            let _entered = runtime.enter();
            serve(&netns)
        };
        Place { dir, netns, _listener: listener, _runtime: runtime }
    }

    /// What a program prints in the container.
    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let shell = "mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"";
        let mut command = self.netns.command("unshare");
        command.current_dir(&self.dir).args(["--mount", "sh", "-c", shell, "sh", program]).args(arguments);
        printed(command)
    }

    /// Runs a compiler: a program beside what the tests brought.
    #[track_caller]
    fn compile(&self, program: &str, arguments: &[&str]) {
        let mut command = process::command(program, process::Place::Here);
        command.current_dir(&self.dir).args(arguments);
        printed(command);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = unmount(self.dir.join("netns"), UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a program to its end, which has to be a good one.
#[track_caller]
fn printed(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Serves a type `n<count>` for each of [`COUNTS`] in the namespace.
fn serve(netns: &Netns) -> Listener {
    let member = |count: usize, n: u32| ZoneMember {
        app: AP.into(),
        process: format!("n{count}"),
        ordinal: Some(n),
        address: address(count, n),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    };
    let members: Vec<_> =
        COUNTS.iter().flat_map(|count| (1..=*count as u32).map(|n| member(*count, n))).collect();
    let subnet = "10.240.0.0/12".parse().expect("a subnet");
    let zone = Zone::build(PN, ZONE, 30, 7, subnet, &members).expect("a zone");
    let scope = Scope::new(ZONE, *dns::SERVER.ip(), Answers::Zones(vec![Arc::new(zone)]), false);
    let scope = tokio::sync::watch::channel(Arc::new(scope.expect("a scope"))).1;
    let netns = fs::File::open(netns.path()).expect("the namespace is there");
    let sockets = Sockets::open(netns.as_fd(), dns::SERVER).expect("port 53 is free");
    let service = Service {
        forwarder: Forwarder::none(),
        counters: Arc::new(Counters::default()),
        limits: Limits::default(),
    };
    Listener::serve(sockets, scope, service).expect("sockets can be served")
}

/// The nth address of a type: from 10.240.0.1 on for the first of [`COUNTS`], a /16 for each.
fn address(count: usize, n: u32) -> Ipv4Addr {
    let place = COUNTS.iter().position(|other| *other == count).expect("one of them") as u8;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 240 + place, 0, 0)) + n)
}

fn of_type(process: &str) -> String {
    name(&format!("{process}.{AP}"), PN)
}

/// Runs a stub resolver: each of the types once, a type that is missing, and the one of 20 many times.
///
/// `takes` says how many addresses of so many it is to get.
#[track_caller]
fn check_stub(place: &Place, what: &str, command: &[&str], takes: fn(usize) -> BTreeSet<usize>) {
    let names: Vec<String> = COUNTS.iter().map(|count| of_type(&format!("n{count}"))).collect();
    let (missing, repeated) = (of_type("gone"), REPEATED.to_string());
    let mut arguments: Vec<&str> = command[1..].to_vec();
    names.iter().for_each(|name| arguments.extend(["1", name]));
    arguments.extend(["1", &missing, &repeated, &names[1]]);
    let text = place.run(command[0], &arguments);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), COUNTS.len() + 1 + REPEATED, "{what}: {text}");
    for (count, line) in COUNTS.iter().zip(&lines) {
        let found = addresses(line, *count);
        assert!(takes(*count).contains(&found.len()), "{what}: {} of {count}: {line}", found.len());
    }
    assert_eq!(lines[COUNTS.len()], "missing", "{what}");
    check_flat(what, &lines[COUNTS.len() + 1..]);
}

/// Where other names are not passed on, a private one is still found behind a search list, which is tried first
/// (ndots), and any other is missing at once.
#[track_caller]
fn check_search_list(place: &Place, what: &str, program: &str) {
    let resolv_conf = format!("nameserver {}\nsearch example.org\noptions ndots:9\n", dns::SERVER.ip());
    fs::write(place.dir.join("resolv.conf"), resolv_conf).expect("a file can be written");
    let text = place.run(program, &["1", &of_type("n20"), "1", "www.example.com"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((addresses(lines[0], 20).len(), lines[1]), (20, "missing"), "{what}");
}

/// The addresses of a line: each once, and of those that there are.
#[track_caller]
fn addresses(line: &str, count: usize) -> BTreeSet<Ipv4Addr> {
    let listed: Vec<Ipv4Addr> = line
        .split_whitespace()
        .map(|word| word.parse().unwrap_or_else(|_| panic!("no address: {line}")))
        .collect();
    let found: BTreeSet<Ipv4Addr> = listed.iter().copied().collect();
    assert_eq!(found.len(), listed.len(), "twice: {line}");
    let range = address(count, 1)..=address(count, count as u32);
    assert!(found.iter().all(|a| range.contains(a)), "foreign: {line}");
    found
}

/// Whether each of 20 addresses comes first about as often as any other.
#[track_caller]
fn check_flat(what: &str, lines: &[&str]) {
    let mut first: BTreeMap<&str, f64> = BTreeMap::new();
    for line in lines {
        assert_eq!(addresses(line, 20).len(), 20, "{what}: {line}");
        *first.entry(line.split(' ').next().unwrap_or_default()).or_default() += 1.0;
    }
    let expected = lines.len() as f64 / 20.0;
    let seen = first.values().map(|n| (n - expected).powi(2) / expected).sum::<f64>();
    let chi_squared = seen + (20 - first.len()) as f64 * expected;
    assert!(chi_squared < CHI_SQUARED_MAX, "{what}: {chi_squared}: {first:?}");
}

fn all(count: usize) -> BTreeSet<usize> {
    BTreeSet::from([count])
}

fn source(file: &str) -> String {
    format!("{}/tests/clients/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn glibc_gets_every_address() {
    process::need(&[("cc", "gcc")]);
    let place = Place::new();
    place.compile("cc", &["-o", "glibc", &source("stub.c")]);
    check_stub(&place, "glibc", &["./glibc"], all);
    check_search_list(&place, "glibc", "./glibc");
}

/// musl has room for 48 addresses. Before 1.2.4 it does not ask again by TCP either, and lives with the 24 that fit
/// into a datagram without EDNS, which it does not speak.
#[test]
fn musl_gets_what_it_has_room_for() {
    process::need(&[("musl-gcc", "musl-tools")]);
    let place = Place::new();
    place.compile("musl-gcc", &["-static", "-o", "musl", &source("stub.c")]);
    check_stub(&place, "musl", &["./musl"], |count| BTreeSet::from([count.min(24), count.min(48)]));
    check_search_list(&place, "musl", "./musl");
}

#[test]
#[ignore = "needs Go, Node and a JDK: make clients"]
fn go_node_and_java_get_every_address() {
    process::need(&[("go", "golang-go"), ("node", "nodejs"), ("javac", "default-jdk-headless")]);
    let place = Place::new();
    let (cache, go) = (format!("GOCACHE={}/cache", place.dir.display()), source("stub.go"));
    place.compile("env", &[&cache, "CGO_ENABLED=0", "go", "build", "-o", "go", &go]);
    place.compile("env", &[&cache, "CGO_ENABLED=1", "go", "build", "-o", "cgo", &go]);
    place.compile("javac", &["-d", ".", &source("Stub.java")]);
    let node = source("stub.mjs");
    check_stub(&place, "Go", &["./go"], all);
    check_stub(&place, "Go with libc", &["env", "GODEBUG=netdns=cgo", "./cgo"], all);
    check_stub(&place, "Node, lookup", &["node", &node, "lookup"], all);
    check_stub(&place, "Node, resolve4", &["node", &node, "resolve4"], all);
    check_stub(&place, "Java", &["java", "-cp", ".", "Stub"], all);
}

/// What zonemaster remarks on a name server that is in the container itself and asked by nobody else.
const REMARKS: &[(&str, &str)] = &[
    (
        "NAMESERVER_IP_PRIVATE_NETWORK",
        "it is on loopback, so that no other container can ask in this one's name",
    ),
    ("NAMESERVER_IP_WITHOUT_REVERSE", "127.in-addr.arpa is not ours to answer"),
    ("NEITHER_DNSKEY_NOR_DS", "answers do not leave the container: there is nobody to sign for"),
    ("NOT_SIGNED", "as above"),
    ("NOT_ENOUGH_NS_DEL", "each container has its own server; a second one would be the same process"),
    ("NOT_ENOUGH_NS_CHILD", "as above"),
    ("NOT_ENOUGH_IPV4_NS_DEL", "as above"),
    ("NOT_ENOUGH_IPV4_NS_CHILD", "as above"),
    ("NO_IPV6_NS_DEL", "loopback's IPv4 is there in every container, its IPv6 is not"),
    ("NO_IPV6_NS_CHILD", "as above"),
    ("IS_A_RECURSOR", "other names are passed on, and Go takes a server without RA for a lame one"),
    ("RNAME_MAIL_DOMAIN_INVALID", "nobody gets mail there"),
    ("Z09_MISSING_MAIL_TARGET", "as above"),
    ("REFRESH_MINIMUM_VALUE_LOWER", "there are no secondaries, to whom the SOA record's timers speak"),
    ("RETRY_MINIMUM_VALUE_LOWER", "as above"),
    ("EXPIRE_MINIMUM_VALUE_LOWER", "as above"),
    (
        "SOA_DEFAULT_TTL_MAXIMUM_VALUE_LOWER",
        "a name is believed missing for 5 s, or a new container is not found",
    ),
];

#[test]
#[ignore = "needs zonemaster and dnsviz: make clients"]
fn zonemaster_remarks_what_is_meant() {
    process::need(&[("zonemaster-cli", "zonemaster-cli")]);
    let (place, server) = (Place::new(), dns::SERVER.ip());
    // Our server in place of the root's: it is the only one there is.
    let hints = format!(". 3600 IN NS ns.{ZONE}.\nns.{ZONE}. 3600 IN A {server}\n");
    fs::write(place.dir.join("hints"), hints).expect("a file can be written");
    let ns = format!("ns.{ZONE}/{server}");
    for zone in [ZONE.to_owned(), format!("{PN}.{ZONE}")] {
        let options = ["--raw", "--level=INFO", "--no-ipv6", "--hints=hints", "--ns", &ns, &zone];
        let found = place.run("zonemaster-cli", &options);
        assert!(found.contains("CASE_QUERIES_RESULTS_OK"), "it got to the end: {found}");
        let is_remark = |line: &&str| !line.contains(" INFO ") && !line.trim().is_empty();
        let meant = |line: &&str| REMARKS.iter().any(|(tag, _)| line.contains(&format!(" {tag} ")));
        let unmeant: Vec<_> = found.lines().filter(is_remark).filter(|line| !meant(line)).collect();
        assert_eq!(unmeant, Vec::<&str>::new(), "{zone}");
    }
}

#[test]
#[ignore = "needs zonemaster and dnsviz: make clients"]
fn dnsviz_has_nothing_to_warn_of() {
    process::need(&[("dnsviz", "dnsviz")]);
    let place = Place::new();
    let zone = format!("{PN}.{ZONE}");
    let names =
        [(ZONE.to_owned(), ZONE), (zone.clone(), &zone), (of_type("n1022"), &zone), (of_type("gone"), &zone)];
    for (name, zone) in &names {
        let server = format!("{zone}+:ns.{ZONE}={}", dns::SERVER.ip());
        let probe = ["probe", "-4", "-A", "-E", "-a", zone, "-x", &server, "-o", "probe.json", name];
        place.run("dnsviz", &probe);
        let grok = |level: &str| place.run("dnsviz", &["grok", "-l", level, "-r", "probe.json"]);
        assert_eq!(grok("warning").trim(), "", "{name}");
        assert!(grok("info").contains(&format!("{name}./IN/")), "it was asked about");
    }
}
