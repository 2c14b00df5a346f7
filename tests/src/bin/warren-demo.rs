//! `make demo`: three hosts of namespaces on this machine, and what the product promises, proved
//! line by line. Exit 0 only if every line held. `WARREN_JSON=1` prints the lines as JSON.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::io::{IsTerminal as _, Write as _};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tests::ids::{AP, PN, PN2, name};
use tests::sniffer::{Kind, Sniffer};
use tests::traffic::Echo;
use tests::wait::{eventually, seconds, timed, want};
use tests::{Attached, Container, Host, Lab, stage};

/// Travels through the network and is searched for on the wire.
const CLEARTEXT: &[u8] = b"the-secret-that-must-never-be-seen-on-the-wire";
/// Where the demo's apps listen.
const PORT: u16 = 3000;
/// Set for the demo inside its own namespaces.
const INSIDE: &str = "WARREN_DEMO_INSIDE";

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() {
        return enter();
    }
    if let Err(error) = stage::own_run() {
        eprintln!("the demo needs a /run of its own and cannot mount one: {error}");
        return ExitCode::FAILURE;
    }
    let mut story = Story::new();
    // A step that fails panics with what was expected and seen; it is told on its line.
    std::panic::set_hook(Box::new(|_| {}));
    tell(&mut story);
    story.end()
}

fn enter() -> ExitCode {
    match stage::run_inside(INSIDE, "1") {
        Ok(status) => ExitCode::from(status.code().unwrap_or(1) as u8),
        Err(needs) => {
            eprintln!("the demo cannot run: {needs}");
            ExitCode::FAILURE
        }
    }
}

/// The lines, and how far the telling is.
struct Story {
    json: bool,
    terminal: bool,
    colour: bool,
    told: usize,
    failed: usize,
}

/// How many lines the demo has, for the progress display.
const STEPS: usize = 14;

impl Story {
    fn new() -> Story {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        let terminal = std::io::stdout().is_terminal();
        let story = Story {
            json: set("WARREN_JSON"),
            terminal,
            colour: terminal && !set("NO_COLOR"),
            told: 0,
            failed: 0,
        };
        if !story.json {
            println!("warren: private networks for containers, without a controller\n");
        }
        story
    }

    /// Does one step; none when it failed, so that what stands on it is not tried.
    fn step<T>(&mut self, what: &str, work: impl FnOnce() -> (T, String)) -> Option<T> {
        if self.terminal && !self.json {
            print!("  [{:2}/{STEPS}] {what} …", self.told + 1);
            let _ = std::io::stdout().flush();
        }
        let (result, took) = timed(|| catch_unwind(AssertUnwindSafe(work)));
        self.told += 1;
        let (value, detail) = match result {
            Ok((value, detail)) => (Some(value), detail),
            Err(panic) => (None, words(panic.as_ref())),
        };
        self.failed += usize::from(value.is_none());
        self.line(what, value.is_some(), took, &detail);
        value
    }

    fn line(&self, what: &str, ok: bool, took: Duration, detail: &str) {
        let ms = took.as_millis() as u64;
        if self.json {
            println!("{}", serde_json::json!({ "step": what, "ok": ok, "ms": ms, "detail": detail }));
            return;
        }
        let (colour, plain) = match (self.colour, ok) {
            (true, true) => ("\x1b[32m", "\x1b[0m"),
            (true, false) => ("\x1b[31m", "\x1b[0m"),
            (false, _) => ("", ""),
        };
        let mark = if ok { "ok " } else { "NOT" };
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{start}  {colour}{mark}{plain} {what:<50} {ms:>5} ms   {detail}");
    }

    fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    fn end(self) -> ExitCode {
        let left = STEPS - self.told.min(STEPS);
        if self.failed == 0 && left == 0 {
            self.say("\nEvery line held.");
            return ExitCode::SUCCESS;
        }
        self.say(&format!("\n{} lines did not hold, {left} were not reached.", self.failed));
        ExitCode::FAILURE
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
    text.lines().take(3).collect::<Vec<_>>().join(" ")
}

/// What the story plays with. Fields go in order: containers before hosts before the laboratory.
struct Cast {
    web1: Container,
    web2: Container,
    worker: Container,
    stranger: Container,
    neighbour: Container,
    hosts: Vec<Host>,
    lab: Lab,
}

struct Members {
    web1: Attached,
    web2: Attached,
    worker: Attached,
    stranger: Attached,
}

fn tell(story: &mut Story) -> Option<()> {
    let cast = story.step("three hosts, their certificates, five containers", set_stage)?;
    story.step("three agents find each other by gossip", || gather(&cast))?;
    let members = story.step("containers join two private networks", || join(&cast))?;
    story.step("every form of name resolves on every host", || names(&cast, &members))?;
    let _echoes = story.step("TCP and UDP cross hosts, full-size packets too", || cross(&cast, &members))?;
    story.step("the wire shows VXLAN with WireGuard inside", || wire(&cast, &members))?;
    story.step("another network sees and reaches nothing", || strangers(&cast, &members))?;
    story.step("a neighbour outside reaches nothing", || neighbours(&cast, &members))?;
    story.step("an agent is killed: names and addresses stay", || agent_killed(&cast, &members))?;
    let picture = picture(&cast);
    story.step("a host dies: its names go, the others stay", || host_dies(&cast, &members))?;
    story.step("it comes back: names return, packets flow", || host_returns(&cast, &members))?;
    story.step("a container dies: it leaves names and kernel", || container_dies(&cast, &members))?;
    story.step("the rest is detached", || detach(&cast))?;
    story.step("nothing is left on any host", || nothing_left(&cast))?;
    story.say(&format!("\nWhat stood in the middle of it:\n{picture}"));
    Some(())
}

fn set_stage() -> (Cast, String) {
    let lab = Lab::new("demo");
    let hosts: Vec<Host> = ["alpha", "beta", "gamma"].iter().map(|name| lab.host(name)).collect();
    let cast = Cast {
        web1: hosts[0].container("web-1"),
        web2: hosts[1].container("web-2"),
        worker: hosts[2].container("worker-1"),
        stranger: hosts[0].container("stranger"),
        neighbour: hosts[0].container("neighbour"),
        hosts,
        lab,
    };
    (cast, "one switch, no controller".into())
}

fn gather(cast: &Cast) -> ((), String) {
    cast.hosts.iter().for_each(Host::start_agent);
    cast.hosts.iter().for_each(Host::wait_ready);
    cast.hosts.iter().for_each(|host| host.wait_hosts(3));
    ((), "QUIC, mutual TLS; two of the three are seeds".into())
}

fn join(cast: &Cast) -> (Members, String) {
    let members = Members {
        web1: cast.web1.join(PN, AP, "web"),
        web2: cast.web2.join(PN, AP, "web"),
        worker: cast.worker.join(PN, AP, "worker"),
        stranger: cast.stranger.join(PN2, AP, "web"),
    };
    let detail = format!("{}, {}, {}", members.web1.address, members.web2.address, members.worker.address);
    (members, detail)
}

fn names(cast: &Cast, members: &Members) -> ((), String) {
    let both = sorted([members.web1.address, members.web2.address]);
    let forms = [
        (name(AP, PN), both.clone()),
        (name(&format!("web.{AP}"), PN), both),
        (name(&format!("worker.{AP}"), PN), vec![members.worker.address]),
        (name(&format!("1.web.{AP}"), PN), vec![members.web1.address]),
        (name(&format!("1.worker.{AP}"), PN), vec![members.worker.address]),
    ];
    for container in [&cast.web1, &cast.web2, &cast.worker] {
        for (name, addresses) in &forms {
            resolves(container, name, addresses, seconds(3));
        }
    }
    ((), format!("{} names on 3 hosts", forms.len()))
}

fn resolves(container: &Container, name: &str, addresses: &[Ipv4Addr], bound: Duration) {
    let wanted: Vec<std::net::IpAddr> = addresses.iter().map(|a| (*a).into()).collect();
    eventually(bound, &format!("{} resolves {name} to {wanted:?}", container.name()), || {
        let seen = container.addresses(name);
        want(seen == wanted, seen)
    });
}

fn sorted<const N: usize>(mut addresses: [Ipv4Addr; N]) -> Vec<Ipv4Addr> {
    addresses.sort();
    addresses.to_vec()
}

fn cross(cast: &Cast, members: &Members) -> (Vec<Echo>, String) {
    let all = [(&cast.web1, &members.web1), (&cast.web2, &members.web2), (&cast.worker, &members.worker)];
    let echoes: Vec<Echo> = all.iter().map(|(container, _)| container.echo(PORT)).collect();
    let mut passed = 0;
    for (from, _) in all {
        for (to, member) in all.iter().filter(|(to, _)| to.name() != from.name()) {
            let by_tcp = from.ask_tcp(member.address, PORT);
            assert_eq!(by_tcp.as_deref().ok(), Some(to.name()), "TCP {} to {}", from.name(), to.name());
            // IP and UDP headers take 28 bytes of the interface's MTU.
            let by_udp = from.ask_udp(member.address, PORT, member.mtu - 28);
            assert_eq!(by_udp.as_deref().ok(), Some(to.name()), "UDP {} to {}", from.name(), to.name());
            assert!(from.ping(member.address, member.mtu - 28), "ping {} to {}", from.name(), to.name());
            passed += 3;
        }
    }
    (echoes, format!("{passed} exchanges, MTU {}", members.web1.mtu))
}

fn wire(cast: &Cast, members: &Members) -> ((), String) {
    let inside = Sniffer::start(cast.web1.netns(), Some(&members.web1.ifname));
    let outside = Sniffer::start(cast.lab.underlay(), None);
    let server = std::net::SocketAddr::new(members.web2.address.into(), PORT);
    for _ in 0..20 {
        cast.web1.netns().enter(|| tests::traffic::ask_tcp(server, CLEARTEXT)).expect("the echo answers");
    }
    let (inside, outside) = (inside.stop(), outside.stop());
    let seen = inside.iter().filter(|frame| frame.contains(CLEARTEXT)).count();
    assert!(seen > 0, "the search does not work: nothing found where the text is in clear");
    let leaked = outside.iter().filter(|frame| frame.contains(CLEARTEXT)).count();
    assert_eq!(leaked, 0, "the text was seen on the underlay");
    let (mut wireguard, mut gossip) = (0, 0);
    for frame in &outside {
        match frame.kind() {
            Kind::Wireguard(_) => wireguard += 1,
            Kind::Gossip => gossip += 1,
            Kind::Neighbours | Kind::Unreachable => {}
            Kind::Other(what) => panic!("something else is on the underlay: {what}"),
        }
    }
    assert!(wireguard > 0, "no WireGuard was seen on the underlay");
    ((), format!("{wireguard} encrypted frames, {gossip} of gossip; in clear: {seen} inside, 0 outside"))
}

fn strangers(cast: &Cast, members: &Members) -> ((), String) {
    let asked = name(&format!("web.{AP}"), PN);
    let answer = cast.stranger.lookup(&asked, RecordType::A).expect("the name server answers");
    assert_eq!(answer.code, ResponseCode::NXDomain, "{asked} exists for another network");
    for member in [&members.web1, &members.web2, &members.worker] {
        // Both networks have the same subnet: an address that the stranger's own network uses is its own.
        if member.address != members.stranger.address {
            assert!(cast.stranger.ask_tcp(member.address, PORT).is_err(), "{} answered", member.address);
        }
    }
    ((), "NXDOMAIN for the names, unreachable for the addresses".into())
}

fn neighbours(cast: &Cast, members: &Members) -> ((), String) {
    let via = cast.web1.docker_address();
    cast.neighbour.netns().run(&format!("ip route add {} via {via}", members.web1.address));
    assert!(cast.neighbour.ask_tcp(members.web1.address, PORT).is_err(), "the neighbour got through");
    assert_eq!(
        cast.neighbour.ask_tcp(via, PORT).as_deref().ok(),
        Some("web-1"),
        "eth0 itself stays as the runtime made it"
    );
    ((), "by a route over the container's own eth0".into())
}

fn agent_killed(cast: &Cast, members: &Members) -> ((), String) {
    let poll = tests::dns::Poll::start(cast.web1.netns(), &name(&format!("1.worker.{AP}"), PN));
    cast.hosts[2].kill_agent();
    cast.hosts[2].start_agent();
    cast.hosts[2].wait_ready();
    eventually(seconds(5), "packets flow again", || {
        want(cast.web1.ask_tcp(members.worker.address, PORT).is_ok(), "no echo")
    });
    let answers = poll.stop();
    let right = |a: &&Result<tests::dns::Answer, String>| {
        a.as_ref().is_ok_and(|a| a.addresses == [members.worker.address])
    };
    let good = answers.iter().filter(right).count();
    assert_eq!(good, answers.len(), "a lookup failed while an agent was restarted: {answers:?}");
    ((), format!("{good} of {good} lookups on another host answered"))
}

fn host_dies(cast: &Cast, members: &Members) -> ((), String) {
    cast.hosts[1].cut();
    cast.hosts[1].kill_agent();
    let ((), took) = timed(|| {
        resolves(&cast.worker, &name(&format!("web.{AP}"), PN), &[members.web1.address], seconds(10));
    });
    assert_eq!(cast.worker.ask_tcp(members.web1.address, PORT).as_deref().ok(), Some("web-1"));
    ((), format!("out of the names after {:.1} s (gossip every 0.2 s)", took.as_secs_f32()))
}

fn host_returns(cast: &Cast, members: &Members) -> ((), String) {
    cast.hosts[1].heal();
    cast.hosts[1].start_agent();
    cast.hosts[1].wait_ready();
    let both = sorted([members.web1.address, members.web2.address]);
    let ((), named) = timed(|| resolves(&cast.worker, &name(&format!("web.{AP}"), PN), &both, seconds(10)));
    let ((), reached) = timed(|| {
        eventually(seconds(5), "packets flow again", || {
            let answer = cast.worker.ask_tcp(members.web2.address, PORT);
            want(answer.as_deref().ok() == Some("web-2"), answer)
        });
    });
    let (named, reached) = (named.as_secs_f32(), reached.as_secs_f32());
    ((), format!("same address, key and name; in answers after {named:.1} s, reached {reached:.1} s later"))
}

fn container_dies(cast: &Cast, members: &Members) -> ((), String) {
    cast.web1.destroy();
    resolves(&cast.worker, &name(&format!("web.{AP}"), PN), &[members.web2.address], seconds(5));
    let binding = cast.hosts[0].inner(&format!("bind-{}", members.web1.member));
    eventually(seconds(5), "its namespace is gone", || want(!binding.exists(), "still there"));
    ((), "nobody called detach".into())
}

fn detach(cast: &Cast) -> ((), String) {
    for (container, network) in [(&cast.web2, PN), (&cast.worker, PN), (&cast.stranger, PN2)] {
        container.detach(network).ok();
    }
    ((), "3 calls".into())
}

fn nothing_left(cast: &Cast) -> ((), String) {
    cast.lab.assert_clean();
    for host in &cast.hosts {
        assert_eq!(host.stop_agent(), 0, "the agent of {} did not stop well", host.name());
    }
    ((), "no link, namespace, route, rule, socket or member".into())
}

/// Hosts, networks and members as the agents know them.
fn picture(cast: &Cast) -> String {
    let members = cast.hosts[0].members();
    let text = |member: &serde_json::Value, key: &str| member[key].as_str().unwrap_or("?").to_owned();
    let boxes: Vec<Vec<String>> = cast
        .hosts
        .iter()
        .map(|host| {
            let mut lines = vec![format!("{}  {}", host.name(), host.address())];
            for member in members.iter().filter(|m| text(m, "host") == host.name()) {
                let network = if text(member, "network") == PN { "net 1" } else { "net 2" };
                let number = member["ordinal"].as_u64().map(|n| format!("{n}.")).unwrap_or_default();
                lines.push(format!(
                    "{network}  {number}{:<7} {}",
                    text(member, "type"),
                    text(member, "address")
                ));
            }
            lines
        })
        .collect();
    let height = boxes.iter().map(Vec::len).max().unwrap_or(0);
    let rule = |left: &str, middle: &str, right: &str| {
        let cells: Vec<String> = boxes.iter().map(|_| "─".repeat(32)).collect();
        format!("  {left}{}{right}\n", cells.join(middle))
    };
    let mut picture = rule("┌", "┐ ┌", "┐");
    for row in 0..height {
        let cells: Vec<String> =
            boxes.iter().map(|lines| format!(" {:<31}", lines.get(row).map_or("", String::as_str))).collect();
        picture.push_str(&format!("  │{}│\n", cells.join("│ │")));
    }
    picture.push_str(&rule("└", "┘ └", "┘"));
    let tail: Vec<String> =
        boxes.iter().map(|_| format!("{:^34}", "│ QUIC gossip + VXLAN(WireGuard)")).collect();
    picture.push_str(&format!("  {}\n  {}\n", tail.join(" "), "═".repeat(36 * boxes.len() - 2)));
    picture.push_str(&format!("  net 1 = {PN}\n  net 2 = {PN2}"));
    picture
}
