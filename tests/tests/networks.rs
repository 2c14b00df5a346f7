//! Networks with subnets of their own, and containers in several of them.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::json;
use tests::ids::{AP, AP2, PN, PN2, PN3};
use tests::{Attached, Container, Host, Lab, eventually, seconds, want};

const PORT: u16 = 8080;

/// Makes a network on a host.
#[track_caller]
fn create(host: &Host, network: &str, subnet: &str) {
    let made = host.warren(&["network", "create", network, "--subnet", subnet, "-o", "json"]).json();
    assert_eq!((&made["subnet"], &made["made_here"]), (&json!(subnet), &json!(true)), "{made}");
}

/// Waits until `name` resolves to this address for `from`.
#[track_caller]
fn finds(from: &Container, name: &str, address: Ipv4Addr) {
    eventually(seconds(5), &format!("{name} is {address} for {}", from.name()), || {
        let found = from.addresses(name);
        want(found == [IpAddr::from(address)], found)
    });
}

/// The name under which an address has its PTR record.
fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

/// Everything of ours in a container: routes, rules, interfaces with their addresses and peers' number.
fn inside(container: &Container) -> String {
    let lines = [
        "ip route show table all proto 87",
        "ip -6 route show table all proto 87",
        "nft list ruleset",
        "ip -o address show scope global",
    ];
    let netns = container.netns();
    lines.iter().map(|line| netns.run(line)).collect::<Vec<_>>().join("\n")
}

/// A container in two networks, and one of each of them on another host.
struct Bridgehead {
    both: Container,
    /// Its memberships.
    one: Attached,
    two: Attached,
    far_one: (Container, Attached),
    far_two: (Container, Attached),
}

fn bridgehead(hosts: &[Host]) -> Bridgehead {
    create(&hosts[0], PN2, "10.241.0.0/24");
    let both = hosts[0].container("both");
    let (one, two) = (both.join(PN, AP, "web"), both.join(PN2, AP2, "web"));
    let far = |name, network, app| {
        let container = hosts[1].container(name);
        let attached = container.join(network, app, "worker");
        (container, attached)
    };
    Bridgehead { one, two, far_one: far("far-one", PN, AP), far_two: far("far-two", PN2, AP2), both }
}

#[test]
fn a_container_in_two_networks_is_in_both_and_joins_them_not() {
    let lab = Lab::new("two");
    let hosts = lab.region(&["a", "b"]);
    let Bridgehead { both, one, two, far_one, far_two } = bridgehead(&hosts);
    assert_eq!((one.ifname.as_str(), two.ifname.as_str()), ("wg0", "wg1"));
    assert!(two.address.octets().starts_with(&[10, 241, 0]), "{two:?}");
    assert_eq!(two.json["subnet"], "10.241.0.0/24");
    let env = both_env(&hosts[0], PN2);
    assert!(env.contains(&format!("WARREN_NETWORK_ID={PN2}")), "{env}");
    assert!(env.contains(&format!("WARREN_NETWORK_IDS={PN},{PN2}")), "{env}");

    let _echoes = [both.echo(PORT), far_one.0.echo(PORT), far_two.0.echo(PORT)];
    for ((far, there), here) in [(&far_one, &one), (&far_two, &two)] {
        // Both ways by name, full size, and back from the address to the name.
        finds(&both, &there.names[0], there.address);
        finds(far, &here.names[0], here.address);
        assert_eq!(both.ask_tcp(there.address, PORT).unwrap(), far.name());
        assert_eq!(far.ask_tcp(here.address, PORT).unwrap(), "both");
        assert_eq!(both.ask_udp(there.address, PORT, there.mtu - 28).unwrap(), far.name());
        assert_eq!(both.ask_udp(there.address6.unwrap(), PORT, 64).unwrap(), far.name());
        let dig = both.dig(&format!("+short -x {}", there.address));
        assert_eq!(dig.trim(), format!("{}.", there.names[0]));
        let back = far.lookup(&reverse(here.address), RecordType::PTR).unwrap();
        assert_eq!(back.names, [here.names[0].clone()]);
    }
    // The names of the one do not exist in the other.
    for (from, names) in [(&far_one.0, &two.names), (&far_two.0, &one.names)] {
        assert_eq!(from.lookup(&names[0], RecordType::A).unwrap().code, ResponseCode::NXDomain);
    }

    // Whatever the container would do as a router, and whatever its peers send it.
    both.netns().sysctl("net/ipv4/ip_forward", "1");
    both.netns().sysctl("net/ipv6/conf/all/forwarding", "1");
    far_one.0.netns().run("ip route add 10.241.0.0/24 dev wg0");
    far_two.0.netns().run("ip route add 10.240.0.0/22 dev wg0");
    for (from, to) in
        [(&far_one.0, [two.address, far_two.1.address]), (&far_two.0, [one.address, far_one.1.address])]
    {
        for to in to {
            from.ask_tcp(to, PORT).unwrap_err();
            assert!(!from.ping(to, 56), "{} reaches {to}", from.name());
        }
    }
    assert_eq!(far_one.0.ask_tcp(one.address, PORT).unwrap(), "both", "and it goes on in its own");
}

fn both_env(host: &Host, network: &str) -> String {
    host.warren(&["env", "--network", network, "both"]).ok().stdout.clone()
}

#[test]
fn what_happens_to_one_network_of_a_container_leaves_the_other_alone() {
    let lab = Lab::new("beside");
    let hosts = lab.region(&["a", "b"]);
    let Bridgehead { both, one, two, far_one, far_two } = bridgehead(&hosts);
    let _echoes = [both.echo(PORT), far_one.0.echo(PORT), far_two.0.echo(PORT)];
    assert_eq!(both.ask_tcp(far_one.1.address, PORT).unwrap(), "far-one");

    // A new agent finds both as they should be, and writes nothing there.
    let before = inside(&both);
    hosts[0].kill_agent();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    // What it built is built after it has looked.
    let another = hosts[0].container("another");
    another.join(PN, AP, "web");
    let ops = |kind: &str| hosts[0].metric("warren_reconcile_ops_total", &[&format!("kind=\"{kind}\"")]);
    assert_eq!((ops("unreachable"), ops("drop-unreachable"), ops("guard")), (1.0, 0.0, 1.0));
    assert_eq!(inside(&both), before);

    both.detach(PN).ok();
    let after = eventually(seconds(5), "the one is gone", || {
        let after = inside(&both);
        want(!after.contains("wg0") && !after.contains("10.240."), &after).map(|()| after)
    });
    for line in before.lines().filter(|line| line.contains("wg1") || line.contains("10.241.0.0/24")) {
        assert!(after.contains(line), "{line} went with the other network:\n{after}");
    }
    assert_eq!(both.ask_tcp(far_two.1.address, PORT).unwrap(), "far-two");
    assert_eq!(far_two.0.ask_udp(two.address, PORT, 64).unwrap(), "both");
    eventually(seconds(5), "the names of the one are gone, those of the other stay", || {
        let [gone, stays] = [&far_one.1, &far_two.1].map(|far| both.lookup(&far.names[0], RecordType::A));
        let held = gone.as_ref().is_ok_and(|a| a.code == ResponseCode::NXDomain)
            && stays.as_ref().is_ok_and(|a| a.addresses == [IpAddr::from(far_two.1.address)]);
        want(held, (gone, stays))
    });
    far_one.0.ask_tcp(one.address, PORT).unwrap_err();

    // Back at once, with the first free interface.
    let again = both.join(PN, AP, "web");
    assert_eq!(again.ifname, "wg0");
    eventually(seconds(5), "and it is there", || {
        let reached = both.ask_tcp(far_one.1.address, PORT).map_err(|e| e.to_string())?;
        want(reached == "far-one", reached)
    });

    // Reset takes both, and the network that was made here.
    assert_eq!(hosts[0].stop_agent(), 0);
    let config = hosts[0].write_config().display().to_string();
    hosts[0].run(&tests::process::warren().display().to_string(), &["reset", "--config", &config]).ok();
    assert_eq!(std::fs::read_dir(hosts[0].dir().join("state/networks")).unwrap().count(), 0);
    let left: Vec<String> = lab.left().into_iter().filter(|what| what.contains("both")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn networks_that_overlap_are_refused_with_the_way_out() {
    let lab = Lab::new("clash");
    let hosts = lab.region(&["a"]);
    let container = hosts[0].container("c1");
    container.join(PN, AP, "web");
    let refused = container.attach(PN2, AP2, &[]);
    refused
        .refused(6, &[PN, "10.240.0.0/22", &format!("warren network create {PN2} --subnet 10.240.4.0/22")]);
    // A wider network around the first one overlaps too, though no address of it does.
    create(&hosts[0], PN3, "10.240.0.0/16");
    container
        .attach(PN3, AP2, &[])
        .refused(6, &[PN3, "10.240.0.0/16", "keeps its subnet", "warren network create PN --subnet"]);
    assert_eq!(hosts[0].members().len(), 1, "nothing is left of what was refused");

    // As told.
    create(&hosts[0], PN2, "10.240.4.0/22");
    assert_eq!(container.join(PN2, AP2, "web").ifname, "wg1");
    // A subnet that the container uses by itself.
    let other = hosts[0].container("c2");
    other.netns().run("ip route add 10.240.5.0/24 via 172.18.1.1");
    other.attach(PN2, AP2, &[]).refused(6, &["10.240.5.0/24", "overlaps"]);
}

/// The two sides of a cut give a network different subnets; the one that holds overlaps another network of a container.
#[test]
fn a_subnet_that_was_given_twice_never_leads_into_another_network() {
    let lab = Lab::new("twice");
    let hosts = lab.region(&["a", "b"]);
    create(&hosts[0], PN, "10.60.0.0/24");
    let (both, far_one) = (hosts[1].container("both"), hosts[0].container("far-one"));
    let (one, one_there) = (both.join(PN, AP, "web"), far_one.join(PN, AP, "worker"));
    let _echoes = [both.echo(PORT), far_one.echo(PORT)];
    assert_eq!(both.ask_tcp(one_there.address, PORT).unwrap(), "far-one");

    hosts[1].cut();
    hosts.iter().for_each(|host| host.wait_hosts(1));
    create(&hosts[0], PN2, "10.60.0.0/24");
    create(&hosts[1], PN2, "10.61.0.0/24");
    // The address that the other network has here, too.
    let far_two = hosts[0].container("far-two");
    let address = one_there.address.to_string();
    far_two.attach(PN2, AP2, &["--type", "worker", "--address", &address]).ok();
    let _echo = far_two.echo(PORT);
    let two = both.join(PN2, AP2, "web");
    assert!(two.address.octets().starts_with(&[10, 61]), "{two:?}");

    hosts[1].heal();
    hosts.iter().for_each(|host| host.wait_hosts(2));
    eventually(seconds(20), "it says which container is in both, and what to do", || {
        let status = hosts[1].warren(&["status", "-o", "json"]).json();
        let said = status["problems"].to_string();
        want(["both", PN, PN2, "overlap", "detach"].iter().all(|word| said.contains(word)), said)
    });
    let events = hosts[1].warren(&["events"]).ok().stdout.clone();
    assert!(events.contains("10.61.0.0/24 became 10.60.0.0/24"), "{events}");
    // The network that it was in before is as it was, and the other one is not there: no route, no name.
    let names = format!("worker.{AP2}.{PN2}.private-network.internal");
    let stays = || {
        let routes = both.netns().run("ip route show proto 87 10.60.0.0/24");
        let code = both.lookup(&names, RecordType::A).map_err(|e| e.to_string())?.code;
        let only = routes.lines().filter(|line| line.contains("dev wg")).all(|line| line.contains("dev wg0"));
        want(only && code == ResponseCode::NXDomain, (routes, code))
    };
    eventually(seconds(10), "one network alone is left in it", stays);
    for _ in 0..30 {
        assert_eq!(both.ask_tcp(one_there.address, PORT).unwrap(), "far-one");
        assert_eq!(far_one.ask_tcp(one.address, PORT).unwrap(), "both");
        stays().unwrap();
        tests::wait::pause(Duration::from_millis(50));
    }

    // A look at the container finds what was made there, and nothing to put back but what is wrong.
    both.netns().run("ip link set wg0 mtu 1300");
    eventually(seconds(5), "the MTU is put back", || {
        let link = both.netns().run("ip link show wg0");
        want(link.contains(&format!("mtu {}", one.mtu)), link)
    });
    assert_eq!(hosts[1].metric("warren_drift_total", &["kind=\"unreachable\""]), 0.0);

    // As told.
    both.detach(PN).ok();
    eventually(seconds(10), "now it is in the other one", || {
        let found = both.addresses(&names);
        want(found == [IpAddr::V4(one_there.address)], found)?;
        let answered = both.ask_tcp(one_there.address, PORT).map_err(|e| e.to_string())?;
        want(answered == "far-two", answered)
    });
    assert_eq!(hosts[1].warren(&["status", "-o", "json"]).json()["problems"], json!([]));
}

#[test]
fn networks_are_made_shown_and_forgotten() {
    let lab = Lab::new("made");
    let hosts = lab.region(&["a", "b"]);
    let network = |host: &Host, args: &[&str]| host.warren(&[&["network"], args].concat());
    let subnets = |host: &Host| -> Vec<String> {
        let rows = host.warren(&["networks", "-o", "json"]).rows();
        rows.iter().map(|row| row["subnet"].as_str().unwrap().to_owned()).collect()
    };
    for (subnet, words) in [
        ("10.0.0.0/15", "/16 to /29"),
        ("10.0.0.0/30", "/16 to /29"),
        ("10.240.1.0/22", "did you mean 10.240.0.0/22"),
        ("127.0.0.0/16", "127.0.0.0/8"),
        ("fd00::/64", "IPv4"),
    ] {
        network(&hosts[0], &["create", PN, "--subnet", subnet]).refused(2, &[words]);
    }
    network(&hosts[0], &["inspect", PN]).refused(4, &[PN, "warren network create"]);

    create(&hosts[0], PN, "10.99.0.0/20");
    create(&hosts[0], PN, "10.99.0.0/20");
    eventually(seconds(5), "the other host knows it", || {
        want(subnets(&hosts[1]) == ["10.99.0.0/20"], subnets(&hosts[1]))
    });
    network(&hosts[1], &["create", PN, "--subnet", "10.98.0.0/20"]).refused(6, &["10.99.0.0/20 already"]);
    network(&hosts[1], &["rm", PN]).refused(4, &["on a"]);
    let set = network(&hosts[0], &["set", PN, "--forward", "off", "-o", "json"]).json();
    assert_eq!(set["forward"], false);

    // It outlives its agent, and an attach on another host goes by it.
    hosts[0].kill_agent();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    let container = hosts[1].container("c1");
    let attached = container.join(PN, AP, "web");
    assert_eq!(attached.json["subnet"], "10.99.0.0/20");
    assert!(attached.address.octets().starts_with(&[10, 99]), "{attached:?}");
    eventually(seconds(5), "the other host sees its member", || {
        let shown = network(&hosts[0], &["inspect", PN, "-o", "json"]).json();
        let held = shown["members_by_host"] == json!({ "b": 1 }) && shown["claims"]["free"] == 4093;
        want(held && shown["made_here"] == true && shown["forward"] == false, shown)
    });
    network(&hosts[0], &["rm", PN]).refused(6, &["1 members", "detach"]);
    container.detach(PN).ok();
    eventually(seconds(5), "it is forgotten without members", || {
        let removed = network(&hosts[0], &["rm", PN]);
        want(removed.code == 0, removed)
    });
    network(&hosts[0], &["rm", PN]).ok();
    assert!(!hosts[0].dir().join(format!("state/networks/{PN}.json")).exists());
    // Its address rests on the other host, and the network as long.
    network(&hosts[0], &["create", PN, "--subnet", "10.98.0.0/20"]).refused(6, &["10.99.0.0/20", "rested"]);
    // An attach makes a network as well; then its subnet stands.
    container.join(PN2, AP, "web");
    network(&hosts[1], &["create", PN2, "--subnet", "10.98.0.0/20"]).refused(6, &["10.240.0.0/22 already"]);
    network(&hosts[1], &["create", PN2]).ok();
}

#[test]
fn the_smallest_network_fills_and_the_largest_works() {
    let lab = Lab::new("sizes");
    let hosts = lab.region(&["a", "b"]);
    create(&hosts[0], PN, "10.9.8.0/29");
    create(&hosts[0], PN2, "10.77.0.0/16");
    let containers: Vec<Container> = (0..6).map(|i| hosts[i % 2].container(&format!("c{i}"))).collect();
    let mut members: Vec<Attached> = containers.iter().map(|c| c.join(PN, AP, "web")).collect();
    let full = hosts[0].container("full").attach(PN, AP, &[]);
    full.refused(6, &["full", "of 6 addresses of 10.9.8.0/29 6 are held"]);
    members.sort_by_key(|m| m.address);
    let given: Vec<Ipv4Addr> = members.iter().map(|m| m.address).collect();
    assert_eq!(given, (1..7).map(|i| Ipv4Addr::new(10, 9, 8, i)).collect::<Vec<_>>());
    let echo = containers[5].echo(PORT);
    for member in &members {
        eventually(seconds(5), "everybody has a PTR record", || {
            let found =
                containers[0].lookup(&reverse(member.address), RecordType::PTR).map_err(|e| e.to_string())?;
            want(found.names == [member.names[0].clone()], found)
        });
    }
    for outside in ["9.8.9.10.in-addr.arpa", "0.0.77.10.in-addr.arpa"] {
        let answer = containers[0].lookup(outside, RecordType::PTR).unwrap();
        assert_ne!(answer.code, ResponseCode::NoError, "{outside} is not of this network");
    }
    let last: Vec<&Container> = containers.iter().collect();
    let address = members.iter().find(|m| m.json["container"] == "c5").unwrap().address;
    assert!(last.iter().all(|c| c.ask_tcp(address, PORT).is_ok_and(|name| name == "c5")));
    drop(echo);

    // Addresses of both ends of a /16, in containers that are in the small network as well.
    let ends = ["10.77.0.1", "10.77.255.254"];
    let _echoes: Vec<_> = containers[..2].iter().map(|c| c.echo(PORT)).collect();
    let large: Vec<Attached> = containers
        .iter()
        .zip(ends)
        .map(|(c, address)| Attached::from(c.attach(PN2, AP2, &["--address", address]).json()))
        .collect();
    assert_eq!(containers[0].ask_tcp(large[1].address, PORT).unwrap(), "c1");
    assert_eq!(containers[1].ask_udp(large[0].address, PORT, 64).unwrap(), "c0");
    finds(&containers[0], &large[1].names[0], large[1].address);
    let back = containers[0].lookup(&reverse(large[1].address), RecordType::PTR).unwrap();
    assert_eq!(back.names, [large[1].names[0].clone()]);
    let free = hosts[1].warren(&["network", "inspect", PN2, "-o", "json"]).json()["claims"]["free"].clone();
    assert_eq!(free, 65_532);
}

#[test]
fn an_agent_that_lost_its_state_finds_the_subnet_where_its_members_are() {
    let lab = Lab::new("lost");
    let hosts = lab.region(&["a", "b"]);
    create(&hosts[0], PN, "10.99.0.0/24");
    let (c1, c2) = (hosts[0].container("c1"), hosts[0].container("c2"));
    let [one, two] = [&c1, &c2].map(|container| container.join(PN, AP, "web"));
    let _echo = c2.echo(PORT);
    eventually(seconds(5), "the other host knows of them", || {
        want(hosts[1].members().len() == 2, hosts[1].members())
    });
    hosts[0].cut();
    hosts[0].kill_agent();
    std::fs::remove_dir_all(hosts[0].dir().join("state")).unwrap();
    hosts[0].start_agent();
    hosts[0].wait_serving();
    hosts[0].heal();
    eventually(seconds(40), "its members are taken over as they were", || {
        let rows = hosts[0].members();
        let addresses: Vec<_> = rows.iter().filter_map(|row| row["address"].as_str()).collect();
        let held = [one.address, two.address].iter().all(|a| addresses.contains(&a.to_string().as_str()));
        want(rows.len() == 2 && held, rows)
    });
    assert_eq!(hosts[0].warren(&["networks", "-o", "json"]).rows()[0]["subnet"], "10.99.0.0/24");
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
}
