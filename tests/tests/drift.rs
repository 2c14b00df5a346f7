//! Somebody changes what is ours behind the agent's back: it is put back, counted and named; what is theirs stays.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use tests::ids::{AP, PN};
use tests::wait::timed;
use tests::{Container, Lab, Netns, eventually, seconds, want};

/// What is told of is repaired within 2 s; a loaded machine gets more, and less than an audit's 30 s.
const TOLD: std::time::Duration = seconds(12);

/// One thing that somebody does, and where it shows that it was undone.
struct Harm<'a> {
    netns: &'a Netns,
    does: String,
    /// The kind of the operation that repairs it.
    kind: &'static str,
    look: &'static str,
    shows: String,
}

#[test]
fn what_the_kernel_tells_of_is_put_back_at_once() {
    let lab = Lab::new("drift");
    let hosts = lab.region(&["a", "b"]);
    let (container, other) = (hosts[0].container("c-a"), hosts[1].container("c-b"));
    let (a, b) = (container.join(PN, AP, "web"), other.join(PN, AP, "web"));
    let _echo = other.echo(8080);
    let host = &hosts[0];
    let network = host.inner(&format!("net-{PN}"));
    let binding = host.inner(&format!("bind-{}", a.member));
    let inside = container.netns();

    // Theirs: never touched, whatever is repaired beside it.
    inside.run("ip link add theirs type bridge");
    inside.run("ip link set theirs up");
    inside.run("ip route add 198.51.100.0/24 dev eth0");
    inside.run("ip address add 203.0.113.9/32 dev lo");

    let links = network.run("ip -o link show type veth");
    let port = links.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
    let rows = "bridge fdb show dev vxlan0";
    let row = format!("{} dst 192.0.2.2", b.mac);
    let harm = |netns, does: &str, kind, look, shows: &str| Harm {
        netns,
        does: does.to_owned(),
        kind,
        look,
        shows: shows.to_owned(),
    };
    let (net, bind) = (&network, &binding);
    let cases = [
        harm(net, &format!("bridge fdb del {} dev vxlan0 self", b.mac), "rows", rows, &row),
        harm(
            net,
            &format!("bridge fdb replace {} dev vxlan0 self permanent dst 192.0.2.99", b.mac),
            "rows",
            rows,
            &row,
        ),
        harm(
            net,
            &format!("bridge fdb del {} dev {port} master", a.mac),
            "local-row",
            "bridge fdb show br br0",
            &a.mac,
        ),
        harm(
            net,
            "bridge link set dev vxlan0 learning on",
            "vxlan-port",
            "bridge -d link show dev vxlan0",
            "learning off",
        ),
        harm(net, &format!("bridge link set dev {port} flood on"), "port", "bridge -d link", " flood off"),
        harm(net, "ip link set vxlan0 down", "vxlan-port", "ip -o link show vxlan0", ",UP"),
        harm(net, "ip link del vxlan0", "vxlan", rows, &row),
        harm(net, "ip link set br0 mtu 1300", "bridge", "ip -o link show br0", "mtu 1450"),
        harm(net, "ip link del br0", "bridge", "ip -o link show vxlan0", "master br0"),
        harm(bind, "ip link del eth0", "veth", "ip -4 -o address show eth0", "10.240."),
        harm(bind, "ip address flush dev eth0", "ethernet", "ip -4 -o address show eth0", "10.240."),
        harm(bind, "ip link set eth0 mtu 1300", "veth", "ip -o link show eth0", "mtu 1450"),
        harm(inside, "ip route del 10.240.0.0/22 dev wg0", "route", "ip route", "10.240.0.0/22 dev wg0"),
        harm(
            inside,
            "ip route del unreachable 10.240.0.0/22 metric 4294967294",
            "unreachable",
            "ip route",
            "unreachable 10.240",
        ),
        harm(inside, "ip link set wg0 mtu 1300", "link-mtu", "ip -o link show wg0", "mtu 1390"),
        harm(inside, "ip link set wg0 down", "link-up", "ip route", "10.240.0.0/22 dev wg0"),
        harm(inside, "ip -4 address flush dev wg0", "address", "ip -4 -o address show wg0", "10.240."),
        harm(inside, "ip link del wg0", "link", "ip -4 -o address show wg0", "10.240."),
    ];
    for Harm { netns, does, kind, look, shows } in cases {
        let counted = || host.metric("warren_drift_total", &[&format!("kind=\"{kind}\"")]);
        let before = counted();
        netns.run(&does);
        let (_, took) = timed(|| {
            eventually(TOLD, &format!("`{does}` is undone"), || {
                let output = netns.try_run(look);
                let seen = String::from_utf8_lossy(&output.stdout).into_owned();
                want(seen.contains(&shows) && counted() > before, (&seen, counted(), before))
            })
        });
        eprintln!("`{does}` undone after {} ms", took.as_millis());
        assert!(host.log().contains(&format!("kind=\"{kind}\"")), "it is named in the log: {kind}");
    }
    eventually(seconds(20), "the other is reached", || {
        let reached = container.ask_tcp(b.address, 8080).map_err(|e| e.to_string())?;
        want(reached == "c-b", reached)
    });
    assert!(inside.run("ip -o link show theirs").contains(",UP"));
    assert!(inside.run("ip route").contains("198.51.100.0/24 dev eth0"));
    assert!(inside.run("ip address show lo").contains("203.0.113.9/32"));
}

/// Nobody tells of these.
#[test]
fn what_the_kernel_does_not_tell_of_is_put_back_by_the_audit() {
    let lab = Lab::new("drift-audit");
    let hosts = lab.region(&["a", "b"]);
    let containers = [hosts[0].container("c-a"), hosts[0].container("c-a2"), hosts[1].container("c-b")];
    let [a, a2, b] = containers.each_ref().map(|container| container.join(PN, AP, "web"));
    let [container, second, _] = &containers;
    let bindings = [&a, &a2].map(|member| hosts[0].inner(&format!("bind-{}", member.member)));
    let rules = |container: &Container| container.netns().run("nft -s list table inet warren");
    let as_they_were = rules(second);
    // Gone altogether in one, wrong in the other.
    bindings[0].run(&format!("ip neigh del {} dev eth0", b.address));
    container.netns().run("nft delete table inet warren");
    bindings[1].run(&format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", b.address, a.mac));
    second.netns().run("nft flush table inet warren");
    assert_ne!(rules(second), as_they_were);
    eventually(seconds(60), "neighbours and rules are back", || {
        let neighbours = bindings.each_ref().map(|binding| binding.run("ip neigh show dev eth0"));
        let tables = container.netns().run("nft list tables");
        want(
            neighbours.iter().all(|shown| shown.contains(&b.mac))
                && tables.contains("inet warren")
                && rules(second) == as_they_were,
            (neighbours, tables, rules(second)),
        )
    });
    for kind in ["neighbours", "guard"] {
        let counted = hosts[0].metric("warren_drift_total", &[&format!("kind=\"{kind}\"")]);
        assert!(counted >= 2.0, "{kind} is counted: {counted}");
    }
    // Where nothing changes nothing is written, however often it is looked at.
    let written = || hosts[0].metric("warren_reconcile_ops_total", &[]);
    let before = written();
    container.netns().run("ip link add theirs type bridge");
    tests::wait::pause(seconds(3));
    assert_eq!(written(), before, "a change of theirs has nothing written");
}
