//! Containers of real Docker engines join by `docker run --network`, and whoever dies meanwhile costs nobody else.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tests::docker::{Docker, IMAGE};
use tests::ids::{AP, AP2, PN, PN2, name};
use tests::traffic::{Echo, ask_tcp, ask_udp};
use tests::{Host, Lab, Netns, eventually, http, seconds, want};

const PORT: u16 = 3000;
/// `wg0` on an underlay of 1500 bytes, without IPv4 and UDP headers.
const DATAGRAM_MAX: usize = 1390 - 28;

/// A host with its engine. The engine goes first.
struct Machine {
    docker: Docker,
    host: Host,
}

fn machines(lab: &Lab, names: &[&str]) -> Vec<Machine> {
    let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
    let dockers: Vec<Docker> = hosts.iter().map(Docker::start).collect();
    tests::lab::start(&hosts);
    dockers.into_iter().zip(hosts).map(|(docker, host)| Machine { docker, host }).collect()
}

impl Machine {
    /// A container that sleeps, as a user would start it.
    #[track_caller]
    fn run(&self, container: &str, network: &str, app: &str, more: &[&str]) {
        let app = format!("warren.app={app}");
        let args = ["run", "-d", "--name", container, "--network", network, "--dns", "127.240.0.53"];
        let command = [IMAGE, "sleep", "1000000"];
        self.docker.run(&[&args[..], &["--label", &app], more, &command].concat()).ok();
    }

    /// The container's address, once the region has the member as ready.
    #[track_caller]
    fn address(&self, container: &str) -> Ipv4Addr {
        eventually(seconds(10), &format!("{container} is a ready member"), || {
            let members = self.host.members();
            let found = members.iter().find(|m| m["container"] == container && m["state"] == "ready");
            found.and_then(|m| m["address"].as_str()?.parse().ok()).ok_or_else(|| format!("{members:?}"))
        })
    }

    /// What the container's own resolver says, by Docker's at 127.0.0.11.
    fn resolve(&self, container: &str, name: &str) -> Vec<String> {
        let said = self.docker.run(&["exec", container, "nslookup", name]).stdout;
        let answer = said.split_once("Name:").map(|(_, answer)| answer.to_owned()).unwrap_or_default();
        let addresses = answer.lines().filter_map(|line| line.strip_prefix("Address:"));
        let mut found: Vec<String> =
            addresses.map(|a| a.trim().to_owned()).filter(|a| !a.contains(':')).collect();
        found.sort();
        found
    }

    #[track_caller]
    fn resolves(&self, container: &str, name: &str, to: &[Ipv4Addr]) {
        let mut expected: Vec<String> = to.iter().map(Ipv4Addr::to_string).collect();
        expected.sort();
        eventually(seconds(10), &format!("{name} is {expected:?} for {container}"), || {
            let found = self.resolve(container, name);
            want(found == expected, found)
        });
    }

    /// TCP, and datagrams up to the largest, to an echo server.
    #[track_caller]
    fn reaches(&self, container: &str, to: Ipv4Addr, server: &str) {
        let to = SocketAddr::from((to, PORT));
        let netns = self.docker.container(container);
        netns.enter(|| {
            let tcp =
                ask_tcp(to, b"ping").unwrap_or_else(|e| panic!("TCP from {container} to {server}: {e}"));
            assert_eq!(tcp, server);
            for bytes in [64, DATAGRAM_MAX] {
                let udp = ask_udp(to, bytes);
                let udp = udp.unwrap_or_else(|e| panic!("{bytes} bytes from {container} to {server}: {e}"));
                assert_eq!(udp, server);
            }
        });
    }

    fn echo(&self, container: &str) -> Echo {
        Echo::serve(&self.docker.container(container), container, PORT)
    }

    #[track_caller]
    fn has_members(&self, containers: &[&str]) {
        eventually(seconds(15), &format!("members are {containers:?}"), || {
            let members = self.host.members();
            let ready = members.iter().filter(|m| m["state"] != "released");
            let mut found: Vec<&str> = ready.filter_map(|m| m["container"].as_str()).collect();
            found.sort_unstable();
            want(found == containers, found)
        });
    }
}

/// TCP, and datagrams up to the largest, to an echo server.
#[track_caller]
fn reaches(from: &Netns, to: Ipv4Addr, server: &str) {
    let to = SocketAddr::from((to, PORT));
    from.enter(|| {
        let tcp = ask_tcp(to, b"ping").unwrap_or_else(|e| panic!("TCP to {server}: {e}"));
        assert_eq!(tcp, server);
        for bytes in [64, DATAGRAM_MAX] {
            let udp = ask_udp(to, bytes).unwrap_or_else(|e| panic!("{bytes} bytes to {server}: {e}"));
            assert_eq!(udp, server);
        }
    });
}

#[test]
fn containers_of_two_hosts_find_each_other() {
    let lab = Lab::new("docker");
    let machines = machines(&lab, &["a", "b"]);
    let [a, b] = &machines[..] else { unreachable!() };
    for machine in &machines {
        machine.docker.network("pn1", PN, &[]);
        machine.docker.network("pn2", PN2, &[]);
    }
    a.run("front", "pn1", AP, &[]);
    b.run("back", "pn1", AP2, &["--label", "warren.type=worker", "--label", "warren.publish=tcp/3000:http"]);
    b.run("stranger", "pn2", AP2, &["--label", "warren.type=worker"]);
    let (front, back, stranger) = (a.address("front"), b.address("back"), b.address("stranger"));
    let _echoes = [a.echo("front"), b.echo("back"), b.echo("stranger")];

    a.resolves("front", &name(AP, PN), &[front]);
    a.resolves("front", &name(&format!("worker.{AP2}"), PN), &[back]);
    a.resolves("front", &name(&format!("1.worker.{AP2}"), PN), &[back]);
    b.resolves("back", &name(&format!("web.{AP}"), PN), &[front]);
    a.reaches("front", back, "back");
    b.reaches("back", front, "front");

    // The other network has names and packets of its own.
    a.resolves("front", &name(&format!("worker.{AP2}"), PN2), &[]);
    let across = a.docker.container("front").enter(|| ask_tcp((stranger, PORT).into(), b"ping"));
    assert_ne!(across.unwrap_or_default(), "stranger");

    // Docker tells its user what it was given, and nothing more of it is in the container.
    let networks = a.docker.inspect("front")["NetworkSettings"]["Networks"]["pn1"].clone();
    assert_eq!(networks["IPAddress"], front.to_string());
    assert_eq!(networks["IPPrefixLen"], 32, "every address of the subnet is a member's");
    let links = a.docker.container("front").run("ip -o address show dev wg0");
    assert!(!links.contains("fe80"), "no link-local address: {links}");

    a.docker.run(&["rm", "-f", "front"]).ok();
    b.resolves("back", &name(AP, PN), &[]);
    b.docker.run(&["rm", "-f", "back", "stranger"]).ok();
    lab.assert_clean();
}

#[test]
fn docker_says_what_was_wrong_and_nothing_is_left() {
    let lab = Lab::new("docker-wrong");
    let machines = machines(&lab, &["a"]);
    let Machine { docker, host } = &machines[0];
    docker.network("pn1", PN, &[]);
    let refused = |args: &[&str], says: &str| {
        let outcome = docker.run(args);
        assert_ne!(outcome.code, 0, "{}", outcome.command);
        assert!(outcome.stderr.contains(says), "{}: {}", outcome.command, outcome.stderr);
        lab.assert_clean();
    };
    refused(&["run", "--rm", "--network", "pn1", IMAGE, "sleep", "1"], "--label warren.app=ap-<uuid>");
    let label = format!("warren.app={AP}");
    let of = |more: &[&'static str]| -> Vec<String> {
        let args = ["run", "--rm", "--network", "pn1", "--label", &label];
        args.iter().chain(more).chain(&[IMAGE, "sleep", "1"]).map(|s| (*s).to_owned()).collect()
    };
    let words = of(&["--label", "warren.type=Web!"]);
    refused(&words.iter().map(String::as_str).collect::<Vec<_>>(), "warren.type");

    let driver = docker.driver();
    let option = format!("network={PN}");
    refused(&["network", "create", "-d", driver, "--opt", &option, "x"], "--ipam-opt network=pn-<uuid>");
    refused(
        &["network", "create", "-d", driver, "--ipam-driver", driver, "x"],
        "--ipam-opt network=pn-<uuid>",
    );
    let more = ["--subnet", "10.99.0.0/24", "--ip-range", "10.99.0.128/25"];
    let create = ["network", "create", "-d", driver, "--ipam-driver", driver, "--ipam-opt", &option];
    refused(&[&create[..], &more, &["x"]].concat(), "--ip-range");

    malformed_requests_change_nothing(docker, host);
}

fn call(docker: &Docker, method: &str, body: &[u8]) -> Value {
    let stream = UnixStream::connect(docker.plugin()).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    http::ask(stream, "POST", &format!("/{method}"), "application/json", body).unwrap().json()
}

/// What a real engine sent, cut short and bent; and the same whole, where it asks for nothing of the engine's own.
#[track_caller]
fn malformed_requests_change_nothing(docker: &Docker, host: &Host) {
    let golden = include_str!("../golden/docker-20.10.jsonl");
    let lines: Vec<Value> = golden.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in lines.iter().filter(|line| line["request"].is_object()) {
        let method = line["call"].as_str().unwrap();
        let key = if method.starts_with("IpamDriver") { "Error" } else { "Err" };
        let text = line["request"].to_string();
        let said = |answer: &Value| answer[key].as_str().is_some_and(|text| !text.is_empty());
        let idle = ["DeleteNetwork", "ReleasePool"].iter().any(|m| method.ends_with(m));
        for bent in [
            &text[..text.len() / 2],
            "",
            "[]",
            "{\"Pool\":7,\"PoolID\":7,\"EndpointID\":7,\"Interface\":7,\"Options\":7}",
        ] {
            let answer = call(docker, method, bent.as_bytes());
            assert!(idle || said(&answer), "{method} {bent}: {answer}");
        }
    }
    let answer = call(docker, "IpamDriver.RequestAddress", br#"{"PoolID":"pn-1/10.0.0.0/8"}"#);
    assert!(answer["Error"].is_string(), "{answer}");
    assert_eq!(host.members(), Vec::<Value>::new());
    for line in lines.iter().filter(|line| line["call"] != "NetworkDriver.Join") {
        let answer = call(docker, line["call"].as_str().unwrap(), line["request"].to_string().as_bytes());
        let mut expected = line["answer"].clone();
        if let Some(space) = expected.get_mut("LocalDefaultAddressSpace") {
            *space = json!("warren");
        }
        assert_eq!(answer, expected, "{}", line["call"]);
    }
    eventually(seconds(10), "the address that nobody joined with is free", || {
        let members = host.members();
        want(members.iter().all(|m| m["state"] == "released"), members)
    });
}

#[test]
fn whatever_dies_loses_nobody() {
    let lab = Lab::new("docker-deaths");
    let machines = machines(&lab, &["a", "b"]);
    let [a, b] = &machines[..] else { unreachable!() };
    machines.iter().for_each(|machine| machine.docker.network("pn1", PN, &[]));
    b.run("peer", "pn1", AP2, &[]);
    a.run("stays", "pn1", AP, &[]);
    a.run("goes", "pn1", AP, &[]);
    let peer = b.address("peer");
    let _echo = b.echo("peer");
    a.reaches("stays", peer, "peer");

    // A container's own death.
    let pid = a.docker.inspect("goes")["State"]["Pid"].to_string();
    let killed = a.host.run("kill", &["-9", &pid]);
    killed.ok();
    a.has_members(&["stays"]);

    // The agent's: the container is reached meanwhile and after, and Docker's calls find the next agent.
    a.host.kill_agent();
    a.reaches("stays", peer, "peer");
    a.host.start_agent();
    a.host.wait_ready();
    a.has_members(&["stays"]);
    a.reaches("stays", peer, "peer");
    a.run("again", "pn1", AP, &[]);
    a.reaches("again", peer, "peer");
    a.docker.run(&["rm", "-f", "again"]).ok();

    // The engine's: it comes back and ends what it had left running.
    let stays = a.docker.container("stays");
    a.docker.kill_daemon();
    reaches(&stays, peer, "peer");
    a.docker.start_daemon();
    back_again(a, peer);

    // Both.
    a.docker.kill_daemon();
    a.host.kill_agent();
    a.host.start_agent();
    a.docker.start_daemon();
    a.host.wait_ready();
    back_again(a, peer);

    // Containers that outlive their engine keep their membership.
    a.docker.stop_daemon();
    a.docker.set_live_restore(true);
    a.docker.start_daemon();
    back_again(a, peer);
    let (before, stays) = (a.address("stays"), a.docker.container("stays"));
    a.docker.kill_daemon();
    reaches(&stays, peer, "peer");
    a.docker.start_daemon();
    a.reaches("stays", peer, "peer");
    assert_eq!(a.address("stays"), before);

    a.docker.run(&["rm", "-f", "stays"]).ok();
    b.docker.run(&["rm", "-f", "peer"]).ok();
    lab.assert_clean();
}

/// Docker starts them before it answers anybody's question, so nobody can say at first whose endpoint it is.
#[test]
fn containers_that_always_restart_come_back() {
    let lab = Lab::new("docker-always");
    let machines = machines(&lab, &["a", "b"]);
    let [a, b] = &machines[..] else { unreachable!() };
    machines.iter().for_each(|machine| machine.docker.network("pn1", PN, &[]));
    a.docker.network("pn2", PN2, &["--subnet", "10.241.0.0/22"]);
    b.run("peer", "pn1", AP2, &[]);
    a.run("always", "pn1", AP, &["--restart=always", "--stop-signal=SIGKILL", "--label", "warren.ordinal=7"]);
    a.run(
        "other",
        "pn2",
        AP2,
        &["--restart=always", "--stop-signal=SIGKILL", "--label", "warren.type=worker"],
    );
    let peer = b.address("peer");
    let _echo = b.echo("peer");
    let came_back = |what: &str| {
        eventually(seconds(30), &format!("both run again after {what}"), || {
            let running = a.docker.run(&["ps", "--format", "{{.Names}}"]).stdout;
            want(running.lines().count() == 2, running)
        });
        a.has_members(&["always", "other"]);
        let (address, other) = (a.address("always"), a.address("other"));
        b.resolves("peer", &name(&format!("7.web.{AP}"), PN), &[address]);
        a.resolves("always", &name(AP2, PN), &[peer]);
        a.resolves("other", &name(&format!("worker.{AP2}"), PN2), &[other]);
        a.reaches("always", peer, "peer");
    };
    came_back("its first start");

    a.docker.stop_daemon();
    a.docker.start_daemon();
    came_back("Docker's restart");

    a.docker.kill_daemon();
    a.docker.start_daemon();
    came_back("Docker was killed");

    a.docker.stop_daemon();
    a.host.kill_agent();
    a.host.start_agent();
    a.docker.start_daemon();
    a.host.wait_ready();
    came_back("both were restarted");

    a.docker.run(&["rm", "-f", "always", "other"]).ok();
    b.docker.run(&["rm", "-f", "peer"]).ok();
    lab.assert_clean();
}

/// `stays` has ended with its engine, and started again it is a member under one address and reaches its peer.
#[track_caller]
fn back_again(machine: &Machine, peer: Ipv4Addr) {
    machine.has_members(&[]);
    machine.docker.run(&["start", "stays"]).ok();
    machine.has_members(&["stays"]);
    machine.address("stays");
    machine.reaches("stays", peer, "peer");
}

#[test]
fn containers_that_run_already_are_attached_by_name() {
    let lab = Lab::new("docker-attach");
    let machines = machines(&lab, &["a"]);
    let Machine { docker, host } = &machines[0];
    let socket = format!("unix://{}", docker.socket().display());
    let attach = |name: &str| {
        let more = ["--docker", name, "--docker-host", &socket, "-o", "json"];
        host.warren(&[&["attach", "--network", PN, "--app", AP], &more[..]].concat())
    };
    docker.run(&["run", "-d", "--name", "one", IMAGE, "sleep", "1000"]).ok();
    docker.run(&["run", "-d", "--name", "beside", "--network", "container:one", IMAGE, "sleep", "1000"]).ok();
    docker.run(&["run", "-d", "--name", "naked", "--network", "host", IMAGE, "sleep", "1000"]).ok();
    docker.run(&["create", "--name", "asleep", IMAGE, "sleep", "1000"]).ok();

    let one = attach("one").json();
    assert_eq!(one["container"], "one");
    assert_eq!(attach("beside").json()["member"], one["member"], "one namespace is one membership");
    attach("naked").refused(6, &["host", "--network host"]);
    attach("asleep").refused(6, &["does not run", "docker start asleep"]);
    attach("nobody").refused(4, &["nobody"]);
    docker.run(&["exec", "one", "ip", "address", "show", "dev", "wg0"]).ok();

    docker.run(&["rm", "-f", "one", "beside", "naked", "asleep"]).ok();
    lab.assert_clean();
}

#[test]
fn docker_networks_follow_private_ones() {
    let lab = Lab::new("docker-sync");
    let machines = machines(&lab, &["a"]);
    let [a] = &machines[..] else { unreachable!() };
    let socket = format!("unix://{}", a.docker.socket().display());
    let of = ["--docker-host", &socket, "--driver", a.docker.driver()];
    let what = ["--network", PN, "--app", AP, "--type", "worker"];
    let args = || a.host.warren(&[&["docker-args"], &what[..], &of].concat());
    args().refused(4, &["warren docker sync"]);
    a.host.warren(&[&["docker", "sync", PN], &of[..]].concat()).ok();
    // What is there is left alone.
    a.host.warren(&[&["docker", "sync", PN], &of[..]].concat()).ok();

    let args = args().ok().stdout.clone();
    let words: Vec<&str> = args.split_whitespace().collect();
    let run = ["run", "-d", "--name", "it"];
    a.docker.run(&[&run[..], &words, &[IMAGE, "sleep", "1000"]].concat()).ok();
    let address = a.address("it");
    a.resolves("it", &name(&format!("1.worker.{AP}"), PN), &[address]);
    let env =
        a.docker.run(&["exec", "it", "sh", "-c", "echo $WARREN_NETWORK_ID $WARREN_APP_ID $WARREN_DOMAIN"]);
    assert_eq!(env.stdout.trim(), format!("{PN} {AP} {AP}.{PN}.private-network.internal"));
    a.docker.run(&["rm", "-f", "it"]).ok();
    lab.assert_clean();
}
