//! A membership from attach to detach, and everything the commands say about it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::ids::{AP, AP2, PN, PN2, name};
use tests::lab::link_names;
use tests::wait::{patience, pause, timed};
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// The member's first name is its own, for `from`.
#[track_caller]
fn resolves(from: &Container, member: &Attached) {
    eventually(seconds(5), &format!("{} resolves for {}", member.names[0], from.name()), || {
        let found = from.addresses(&member.names[0]);
        want(found == [IpAddr::from(member.address)], found)
    });
}

/// Nothing names the member any more: rows of its MAC, neighbours of its address, names.
#[track_caller]
fn forgotten(hosts: &[Host], gone: &Attached, witness: &Container) {
    let address = gone.address.to_string();
    eventually(seconds(10), &format!("member {} is forgotten everywhere", gone.member), || {
        for host in hosts {
            let network = host.inner(&format!("net-{}", gone.network));
            let rows = if network.exists() { network.run("bridge fdb show") } else { String::new() };
            want(!rows.contains(&gone.mac), (host.name(), rows))?;
            let binding = host.inner(&format!("bind-{}", gone.member));
            want(!binding.path().exists(), binding.path())?;
            for row in
                host.members().iter().filter(|row| row["state"] != "released" && row["host"] == host.name())
            {
                let binding = host.inner(&format!("bind-{}", row["member"].as_str().unwrap_or_default()));
                let neighbours = binding.run("ip neighbour show");
                want(!neighbours.lines().any(|l| l.starts_with(&format!("{address} "))), neighbours)?;
            }
        }
        let names: Vec<_> = gone.names.iter().flat_map(|name| witness.addresses(name)).collect();
        want(!names.contains(&IpAddr::from(gone.address)), names)
    });
}

#[test]
fn a_running_agent_that_is_reset_ends_its_members_and_goes_on() {
    let lab = Lab::new("reset-running");
    let hosts = lab.region(&["a", "b"]);
    let containers = [hosts[0].container("c1"), hosts[0].container("c2")];
    let there = hosts[1].container("c3");
    let gone =
        ["web", "worker"].map(|process| containers[usize::from(process != "web")].join(PN, AP, process));
    there.join(PN, AP, "web");
    let reset = |host: &str| {
        let body = json!({ "host": host }).to_string();
        let answer = hosts[0].api("POST", "/v1/reset", "application/json", body.as_bytes());
        answer.unwrap_or_else(|e| panic!("no answer: {e}"))
    };
    assert_eq!(reset("b").status, 409, "another host is meant");
    gone.iter().for_each(|member| resolves(&there, member));

    assert_eq!(reset("a").json(), json!({ "members": 2 }));
    let of_b = |what: &String| what.contains("/b/") || what.starts_with("b ");
    let left: Vec<String> = lab.left().into_iter().filter(|what| !of_b(what)).collect();
    assert!(left.is_empty(), "answered when nothing is left: {left:?}");
    gone.iter().for_each(|member| forgotten(&hosts, member, &there));
    assert_eq!(reset("a").json(), json!({ "members": 0 }));

    let back = containers[0].join(PN, AP, "web");
    let _echo = containers[0].echo(PORT);
    assert_eq!(there.ask_tcp(back.address, PORT).ok().as_deref(), Some("c1"), "the agent goes on");
    containers[0].detach(PN).ok();
    there.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn attach_and_detach_are_idempotent() {
    let lab = Lab::new("idempotent");
    let hosts = lab.region(&["a", "b"]);
    let (c1, c2) = (hosts[0].container("c1"), hosts[1].container("c2"));
    let first = c1.join(PN, AP, "web");
    let again: Attached = c1.attach(PN, AP, &["--type", "web"]).json().into();
    assert_eq!(
        (again.member, again.address, again.ifname),
        (first.member.clone(), first.address, first.ifname.clone())
    );
    let by_another_name: Attached = c1.attach(PN, AP, &["--id", "the-same-netns"]).json().into();
    assert_eq!(by_another_name.member, first.member, "the key is (netns, network)");
    let second = c2.join(PN, AP, "web");
    let _echoes = [c1.echo(PORT), c2.echo(PORT)];
    assert_eq!(c2.ask_tcp(first.address, PORT).unwrap(), "c1");
    drop(_echoes);

    for _ in 0..2 {
        c1.detach(PN).ok();
    }
    forgotten(&hosts, &first, &c2);
    let back = c1.join(PN, AP, "web");
    assert_ne!(back.member, first.member);
    assert_ne!(back.address, first.address, "a released address rests");
    assert_eq!(back.ordinal, first.ordinal, "a number is free at once");
    c1.detach(PN).ok();
    c2.detach(PN).ok();
    assert!(second.missing.is_empty(), "{second:?}");
    lab.assert_clean();
}

#[test]
fn two_networks_need_two_subnets_in_one_container() {
    let lab = Lab::new("subnets");
    let hosts = lab.region(&["a"]);
    let c1 = hosts[0].container("c1");
    c1.join(PN, AP, "web");
    c1.attach(PN2, AP, &[]).refused(6, &["overlaps", "10.240.0.0/22"]);
    c1.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn a_container_dies_and_nothing_is_left_of_it() {
    let lab = Lab::new("death");
    let hosts = lab.region(&["a", "b"]);
    let witness = hosts[1].container("witness");
    witness.join(PN, AP2, "web");
    for container in [hosts[0].container("mounted"), hosts[0].container_of_process("process")] {
        let gone = container.join(PN, AP, "web");
        resolves(&witness, &gone);
        container.destroy();
        forgotten(&hosts, &gone, &witness);
        eventually(seconds(5), "its eth0's other end goes: nobody pins the namespace", || {
            let links = link_names(hosts[0].netns());
            want(!links.contains(&container.port()), links)
        });
        eventually(seconds(5), "nothing of it is left on its host", || {
            let left: Vec<String> = lab.left().into_iter().filter(|what| what.contains("/a/")).collect();
            want(left.is_empty(), left)
        });
    }
    witness.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn one_of_two_on_a_host_goes_the_other_stays() {
    let lab = Lab::new("stays");
    let hosts = lab.region(&["a", "b"]);
    let [goes, stays, far] =
        [("goes", 0), ("stays", 0), ("far", 1)].map(|(name, host)| hosts[host].container(name));
    let [gone, stayed, _] = [&goes, &stays, &far].map(|container| container.join(PN, AP, "web"));
    let _echoes = [stays.echo(PORT), far.echo(PORT)];
    assert_eq!(far.ask_tcp(stayed.address, PORT).unwrap(), "stays");
    goes.detach(PN).ok();
    assert_eq!(far.ask_tcp(stayed.address, PORT).unwrap(), "stays");
    forgotten(&hosts, &gone, &far);
    let all = name(AP, PN);
    assert_eq!(far.addresses(&all).len(), 2);
    assert_eq!(far.ask_udp(stayed.address, PORT, 64).unwrap(), "stays");
    assert!(goes.ask_tcp(stayed.address, PORT).is_err());
}

#[test]
fn run_gives_a_command_its_network() {
    let lab = Lab::new("run");
    let hosts = lab.region(&["a", "b"]);
    let c1 = hosts[0].container("c1");
    let peer = c1.join(PN, AP, "web");
    let run = |command: &[&str]| {
        hosts[1]
            .warren(&[&["run", "--network", PN, "--app", AP2, "--type", "worker", "--"], command].concat())
    };
    let env = run(&["env"]);
    env.ok();
    let app_id = format!("WARREN_APP_ID={AP2}");
    let domain = format!("WARREN_DOMAIN={}", name(AP2, PN));
    for line in [app_id, format!("WARREN_NETWORK_ID={PN}"), domain] {
        assert!(env.stdout.lines().any(|l| l == line), "no {line} in {}", env.stdout);
    }
    assert!(env.stdout.contains("WARREN_ADDRESS=10.240."), "{}", env.stdout);
    let resolv = run(&["cat", "/etc/resolv.conf"]);
    assert!(resolv.ok().stdout.starts_with("nameserver 127.240.0.53\n"), "{}", resolv.stdout);
    let resolved = run(&["getent", "ahostsv4", &name(AP, PN)]);
    assert!(resolved.ok().stdout.starts_with(&peer.address.to_string()), "{}", resolved.stdout);
    assert_eq!(run(&["sh", "-c", "exit 42"]).code, 42);
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).code, 137);
    run(&["/no/such/command"]).refused(127, &["/no/such/command"]);
    c1.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn the_commands_agree_in_every_format() {
    let lab = Lab::new("commands");
    let hosts = lab.region(&["a", "b"]);
    let (c1, c2) = (hosts[0].container("c1"), hosts[1].container("c2"));
    let (one, two) = (c1.join(PN, AP, "web"), c2.join(PN, AP2, "worker"));
    eventually(seconds(5), "the second is known on the first", || {
        want(hosts[0].members().iter().filter(|m| m["state"] == "ready").count() == 2, hosts[0].members())
    });
    let domain = name(AP, PN);
    // Command, a word of its table's head, what its names are.
    let cases: &[(&[&str], &str, Vec<&str>)] = &[
        (&["ps"], "MEMBER", vec![&one.member]),
        (&["ps", "--all"], "CONTAINER", vec![&one.member, &two.member]),
        (&["ps", "--all", "--network", PN2], "MEMBER", vec![]),
        (&["hosts"], "STANDING", vec!["a", "b"]),
        (&["networks"], "VNI", vec![PN]),
        (&["domain-names", "--app", AP], "NAME", one.names.iter().map(String::as_str).collect()),
    ];
    for (args, head, names) in cases {
        let with = |format: &str| hosts[0].warren(&[args, &["-o", format][..]].concat());
        let table = with("table").ok().stdout.clone();
        assert!(table.lines().next().is_some_and(|line| line.contains(head)), "{args:?}: {table}");
        let listed = with("name").ok().stdout.clone();
        let found: BTreeSet<&str> = listed.lines().map(|line| line.trim_end_matches('.')).collect();
        assert_eq!(found, names.iter().copied().collect(), "{args:?}");
        assert_eq!(with("json").rows().len(), names.len(), "{args:?}");
        assert_eq!(table.lines().count(), names.len() + 1, "{args:?}: {table}");
    }
    let status = hosts[0].warren(&["status", "--check", "-o", "json"]).json();
    assert_eq!(
        (&status["host"], &status["region"], &status["ready"]),
        (&"a".into(), &"lab".into(), &true.into())
    );
    assert_eq!((&status["members"], &status["networks"]), (&1.into(), &1.into()));
    assert_eq!(status["problems"], Value::Array(vec![]));
    assert!(hosts[0].warren(&["status"]).ok().stdout.contains("ready"));

    let env = hosts[0].warren(&["env", "--network", PN, "c1"]);
    assert!(env.ok().stdout.lines().any(|line| line == format!("WARREN_DOMAIN={domain}")), "{}", env.stdout);
    assert_eq!(
        hosts[0].warren(&["env", "--network", PN, &one.member, "-o", "json"]).json()["WARREN_APP_ID"],
        AP
    );
    let lookup = |more: &[&str]| hosts[0].warren(&[&["dns", "lookup"], more].concat());
    assert!(lookup(&[&domain]).ok().stdout.contains(&one.address.to_string()));
    let looked_up = lookup(&[&two.names[0], "--as", "c1", "-o", "json"]).json();
    assert_eq!(looked_up["addresses"][0], two.address.to_string());
    let short = lookup(&[&two.names[0], "-o", "name"]);
    assert!(short.ok().stdout.lines().any(|line| line == two.address.to_string()), "{}", short.stdout);
    assert_eq!(lookup(&[&name("web", PN2)]).code, 4);
    assert!(lookup(&["example.com"]).ok().stdout.contains("not a private name"));
    lookup(&[&domain, "--as", "nobody"]).refused(4, &["nobody"]);
    hosts[0].warren(&["env", "--network", PN, "nobody"]).refused(4, &["nobody"]);
}

#[test]
fn the_first_packet_does_not_wait_five_seconds() {
    let lab = Lab::new("first");
    let hosts = lab.region(&["a", "b"]);
    let server = hosts[0].container("server");
    let _echo = server.echo(PORT);
    let to = server.join(PN, AP, "web");
    // How long the other agent sleeps: not at all, into the attach, and until that has just waited long enough for it.
    for asleep_ms in [0, 200, 235, 250, 300] {
        let client = hosts[1].container(&format!("client{asleep_ms}"));
        if asleep_ms > 0 {
            hosts[0].signal_agent(Signal::STOP);
        }
        std::thread::scope(|scope| {
            if asleep_ms > 0 {
                scope.spawn(|| {
                    pause(Duration::from_millis(asleep_ms));
                    hosts[0].signal_agent(Signal::CONT);
                });
            }
            client.join(PN, AP2, "web");
            let (answer, took) = timed(|| client.ask_tcp(to.address, PORT));
            let answer = answer.unwrap_or_else(|e| panic!("asleep for {asleep_ms} ms: {e}"));
            assert_eq!(answer, "server");
            assert!(took < patience(Duration::from_millis(500)), "asleep for {asleep_ms} ms: {took:?}");
        });
        client.detach(PN).ok();
    }
}

#[test]
fn twenty_attach_at_once() {
    let lab = Lab::new("twenty");
    let hosts = lab.region(&["a", "b"]);
    let far = hosts[1].container("far");
    far.join(PN, AP2, "web");
    let containers: Vec<Container> = (0..20).map(|i| hosts[0].container(&format!("c{i}"))).collect();
    let (members, took): (Vec<Attached>, _) = timed(|| {
        std::thread::scope(|scope| {
            let joins: Vec<_> = containers.iter().map(|c| scope.spawn(|| c.join(PN, AP, "web"))).collect();
            joins.into_iter().map(|join| join.join().unwrap()).collect()
        })
    });
    assert!(took < patience(seconds(20)), "{took:?}");
    let distinct = |of: &dyn Fn(&Attached) -> String| members.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct(&|m| m.address.to_string()), 20);
    assert_eq!(distinct(&|m| format!("{:?}", m.ordinal)), 20);
    assert_eq!(distinct(&|m| m.mac.clone()), 20);
    eventually(seconds(5), "all are in the names", || {
        let found = far.lookup(&name(AP, PN), hickory_proto::rr::RecordType::A).map_err(|e| e.to_string())?;
        // Too many for one datagram without EDNS is fine; dig asks again by TCP.
        let dig = far.dig(&format!("+short {}", name(AP, PN)));
        want(dig.lines().count() == 20, (found.code, dig))
    });
    let echoes: Vec<_> = containers.iter().map(|c| c.echo(PORT)).collect();
    for (container, member) in containers.iter().zip(&members) {
        assert_eq!(far.ask_tcp(member.address, PORT).unwrap(), container.name());
    }
    drop(echoes);
    for container in &containers {
        container.detach(PN).ok();
    }
    far.detach(PN).ok();
    lab.assert_clean();
}

#[test]
fn one_host_alone_and_three_together_attach_soon_after_the_start() {
    // Five intervals of 200 ms, and what an attach takes.
    const BOUND: Duration = Duration::from_secs(3);
    for names in [&["a"][..], &["a", "b", "c"]] {
        let lab = Lab::new("soon");
        let hosts: Vec<Host> = names.iter().map(|name| lab.host(name)).collect();
        let containers: Vec<Container> = hosts.iter().map(|host| host.container("c1")).collect();
        hosts.iter().for_each(Host::start_agent);
        hosts.iter().for_each(Host::wait_serving);
        let (members, took): (Vec<Attached>, _) = timed(|| {
            std::thread::scope(|scope| {
                let joins: Vec<_> =
                    containers.iter().map(|c| scope.spawn(|| c.join(PN, AP, "web"))).collect();
                joins.into_iter().map(|join| join.join().unwrap()).collect()
            })
        });
        assert!(took < patience(BOUND), "{} hosts: {took:?}", names.len());
        let addresses: BTreeSet<_> = members.iter().map(|m| m.address).collect();
        assert_eq!(addresses.len(), names.len(), "no address is given twice");
        for container in &containers {
            eventually(seconds(5), "every name is known everywhere", || {
                let found = container.addresses(&name(AP, PN));
                want(found.len() == names.len(), found)
            });
        }
    }
}

#[test]
fn a_container_without_eth0_is_a_member_too() {
    let lab = Lab::new("bare");
    let hosts = lab.region(&["a", "b"]);
    let (bare, other) = (hosts[0].bare_container("bare"), hosts[1].container("other"));
    let (one, two) = (bare.join(PN, AP, "web"), other.join(PN, AP, "web"));
    let _echoes = [bare.echo(PORT), other.echo(PORT)];
    assert_eq!(bare.ask_tcp(two.address, PORT).unwrap(), "other");
    assert_eq!(other.ask_tcp(one.address, PORT).unwrap(), "bare");
    assert!(bare.netns().run("ip -o link show lo").contains("LOOPBACK,UP"), "lo was brought up");
    // The app keeps port 53 for itself.
    let own = bare.netns().enter(|| std::net::UdpSocket::bind(("0.0.0.0", 53)));
    assert!(own.is_ok(), "{own:?}");
    resolves(&bare, &two);
}
