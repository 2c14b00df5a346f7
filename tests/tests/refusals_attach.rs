//! Attaches that cannot be: each is refused with one sentence and an exit code, and leaves nothing
//! in the container or on the host.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Child;

use tests::ids::{AP, AP2, PN, PN2};
use tests::{Attached, Container, Host, Lab, Netns, Outcome, eventually, seconds, want};

const PORT: u16 = 8080;

/// The attach is refused, and nothing of ours is left on hosts without members.
#[track_caller]
fn refused(lab: &Lab, container: &Container, network: &str, more: &[&str], code: i32, words: &[&str]) {
    container.attach(network, AP, more).refused(code, words);
    lab.assert_clean();
}

#[test]
fn bad_arguments() {
    let lab = Lab::new("arguments");
    let hosts = lab.region(&["a"]);
    let c1 = hosts[0].container("c1");
    let long_id = "x".repeat(129);
    // Arguments beside a good network, exit code, what is said.
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--type", "Web!"], 2, &["Web!"]),
        (&["--type", ""], 2, &["--type"]),
        (&["--ordinal", "0"], 2, &["ordinal"]),
        (&["--ordinal", "minus"], 2, &["minus"]),
        (&["--ifname", "sixteen-chars-16"], 2, &["interface name", "15"]),
        (&["--ifname", "a/b"], 2, &["interface name"]),
        (&["--ifname", ""], 2, &["interface name"]),
        (&["--ifname", "eth0"], 6, &["eth0", "--ifname"]),
        (&["--ifname", "lo"], 6, &["lo"]),
        (&["--id", ""], 2, &["--id"]),
        (&["--id", "two words"], 2, &["container id"]),
        (&["--id", &long_id], 2, &["container id"]),
        (&["--address", "10.250.0.1"], 6, &["10.250.0.1", "10.240.0.0/22"]),
        (&["--address", "10.240.0.0"], 6, &["10.240.0.0"]),
        (&["--address", "10.240.3.255"], 6, &["10.240.3.255"]),
        (&["--address", "10.240.0.256"], 2, &["10.240.0.256"]),
        (&["--wait", "long"], 2, &["long"]),
    ];
    for (more, code, words) in cases {
        refused(&lab, &c1, PN, more, *code, words);
    }
    for network in ["pn-xyz", "", "ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c", "pn-AD0FD6A1", AP] {
        refused(&lab, &c1, network, &[], 2, &[]);
    }
    c1.attach(PN, "ap-1", &[]).refused(2, &["ap-1"]);
    let member = c1.join(PN, AP, "web");
    assert_eq!(member.ifname, "wg0");
    c1.detach(PN).ok();
    lab.assert_clean();
    let gone = tests::lab::warren(&["--socket", "/no/such.sock", "status"]);
    gone.refused(3, &["/no/such.sock", "warren agent"]);
}

#[test]
fn bad_namespaces() {
    let lab = Lab::new("namespaces");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    let attach = |more: &[&str]| host.warren(&[&["attach", "--network", PN, "--app", AP], more].concat());
    let unmounted = host.bare_container("unmounted");
    unmounted.destroy();
    let unmounted = unmounted.netns().path().display().to_string();
    let own = host.netns().path().display().to_string();
    let ended = host.container_of_process("ended");
    let pid = ended.pid().to_string();
    ended.destroy();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--netns", "/no/such/netns"], 4, &["/no/such/netns"]),
        (&["--netns", &unmounted], 4, &[&unmounted]),
        (&["--netns", "/proc/self/ns/mnt"], 4, &["no network namespace"]),
        (&["--netns", &own], 6, &["host's own", "--network host"]),
        (&["--pid", &pid], 4, &[&pid]),
        (&["--pid", "0"], 4, &["0"]),
        (&["--pid", "4294967295"], 4, &["4294967295"]),
        (&[], 2, &["--netns", "--pid"]),
        (&["--pid", "1", "--netns", "/x"], 2, &["cannot be used with"]),
    ];
    for (more, code, words) in cases {
        attach(more).refused(*code, words);
        lab.assert_clean();
    }
    // A pid that was given to another process since the caller looked.
    let c1 = host.container_of_process("c1");
    let body = format!(r#"{{"app":"{AP}","netns":{{"pid":{{"id":{},"inode":1}}}}}}"#, c1.pid());
    let path = format!("/v1/networks/{PN}/members/c1");
    let answer = host.api("PUT", &path, "application/json", body.as_bytes()).unwrap();
    assert_eq!(answer.status, 409, "{answer:?}");
    lab.assert_clean();
}

#[test]
fn a_namespace_replaced_at_its_path_is_another_container() {
    let lab = Lab::new("replaced");
    let hosts = lab.region(&["a", "b"]);
    let (c1, far) = (hosts[0].container("c1"), hosts[1].container("far"));
    let (old, _) = (c1.join(PN, AP, "web"), far.join(PN, AP2, "web"));
    let inode = c1.netns().inode();
    c1.netns().unmount();
    // The kernel hands inodes out again: try until it does, or believe it after some.
    let mut tries = 0;
    let replaced = loop {
        let replaced = Netns::make(c1.netns().path());
        tries += 1;
        if replaced.inode() == inode || tries == 20 {
            break replaced;
        }
        replaced.unmount();
    };
    eventually(seconds(10), "the old member ends", || {
        let rows = hosts[1].members();
        want(rows.iter().all(|m| m["member"] != old.member.as_str() || m["state"] == "released"), rows)
    });
    assert!(
        !tests::lab::link_names(&replaced).iter().any(|link| link.starts_with("wg")),
        "nothing appears in the new one"
    );
    let new = c1.join(PN, AP, "web");
    assert_ne!(new.member, old.member);
    let _echo = c1.echo(PORT);
    assert_eq!(far.ask_tcp(new.address, PORT).unwrap(), "c1");
}

#[test]
fn things_in_the_way() {
    let lab = Lab::new("in-the-way");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    // What stands in the container, and what is said.
    let cases: &[(&str, &[&str])] = &[
        ("ip address add 10.240.1.7/24 dev eth0", &["10.240.1.7/24", "10.240.0.0/22"]),
        ("ip route add 10.240.0.0/16 dev eth0", &["10.240.0.0/16"]),
        ("ip route add 10.0.0.0/8 dev eth0", &["10.0.0.0/8"]),
        ("ip route add blackhole 10.240.2.0/24", &["10.240.2.0/24"]),
    ];
    for (i, (line, words)) in cases.iter().enumerate() {
        let container = host.container(&format!("c{i}"));
        container.netns().run(line);
        refused(&lab, &container, PN, &[], 6, words);
        container.netns().run(&line.replace(" add ", " del "));
        container.join(PN, AP, "web");
        container.detach(PN).ok();
        lab.assert_clean();
    }
    // The app has a VPN of its own.
    let vpn = host.container("vpn");
    vpn.netns().run("ip link add wg0 type bridge");
    refused_but_for_wg0(&vpn, &["--ifname", "wg0"], 6, &["wg0", "--ifname"]);
    assert_eq!(vpn.join(PN, AP, "web").ifname, "wg1");
    vpn.detach(PN).ok();
    assert!(tests::lab::link_names(vpn.netns()).contains(&"wg0".to_owned()), "the app's stays");
    // Another listener where names are served.
    let listener = host.container("listener");
    listener.netns().run("ip link set lo up");
    let taken = listener.netns().enter(|| UdpSocket::bind(("127.240.0.53", 61053))).unwrap();
    refused_but_for_wg0(&listener, &[], 1, &["127.240.0.53", "dns.listen"]);
    drop(taken);
    listener.join(PN, AP, "web");
}

/// Refused, in a laboratory where something else than the product is called wg0.
#[track_caller]
fn refused_but_for_wg0(container: &Container, more: &[&str], code: i32, words: &[&str]) {
    container.attach(PN, AP, more).refused(code, words);
    let links = tests::lab::link_names(container.netns());
    assert!(!links.iter().any(|link| link.starts_with("wg") && link != "wg0"), "{links:?}");
    let tables = container.netns().run("nft list tables");
    assert!(!tables.contains("warren"), "{tables}");
    assert!(container.netns().run("ip route show table all proto 87").is_empty());
}

#[test]
fn taken_things() {
    let lab = Lab::new("taken");
    let hosts = lab.region(&["a", "b"]);
    let (c1, far) = (hosts[0].container("c1"), hosts[1].container("far"));
    let held = c1.attach(PN, AP, &["--ordinal", "7", "--address", "10.240.0.7"]).json();
    let member = held["member"].as_str().unwrap();
    let (there, here) = (hosts[1].container("there"), hosts[0].container("here"));
    eventually(seconds(5), "the other host knows", || {
        let rows = hosts[1].members();
        want(rows.iter().any(|row| row["member"] == member), rows)
    });
    for container in [&there, &here] {
        container.attach(PN, AP, &["--ordinal", "7"]).refused(6, &["7.web", member, "host a"]);
        container.attach(PN, AP, &["--address", "10.240.0.7"]).refused(6, &["10.240.0.7", member]);
    }
    here.attach(PN, AP, &["--id", "c1"]).refused(6, &["c1", "another namespace"]);
    // The same number of another type or app is another thing, and so is another network's address.
    far.attach(PN, AP, &["--type", "worker", "--ordinal", "7"]).ok();
    there.attach(PN, AP2, &["--ordinal", "7"]).ok();
    here.attach(PN2, AP, &["--ordinal", "7", "--address", "10.240.0.7"]).ok();
    for (container, network) in [(&c1, PN), (&far, PN), (&there, PN), (&here, PN2)] {
        container.detach(network).ok();
    }
    lab.assert_clean();
}

/// Attach on the second host is refused while `taken` stands, and goes when `free` has been run.
#[track_caller]
fn in_the_way_on_the_host(lab: &Lab, host: &Host, words: &[&str], free: impl FnOnce()) {
    let container = host.container("blocked");
    container.attach(PN, AP, &[]).refused(6, words);
    let left: Vec<String> =
        lab.left().into_iter().filter(|w| w.contains("blocked") || w.contains("/b/")).collect();
    // The thing in the way is a link of the host that is not ours.
    let ours: Vec<&String> = left.iter().filter(|what| !what.contains("vx9")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    free();
    let member = container.join(PN, AP, "web");
    let _echo = container.echo(PORT);
    assert_eq!(container.ask_tcp(member.address, PORT).unwrap(), "blocked");
}

#[test]
fn a_vni_used_by_somebody_else_on_the_host() {
    let lab = Lab::new("vni");
    let hosts = lab.region(&["a", "b"]);
    hosts[0].container("c1").join(PN, AP2, "web");
    eventually(seconds(5), "the network is known", || {
        let rows = hosts[1].warren(&["networks", "-o", "json"]).rows();
        want(rows.len() == 1, rows)
    });
    let vni = hosts[1].warren(&["networks", "-o", "json"]).rows()[0]["vni"].to_string();
    hosts[1].netns().run(&format!("ip link add vx9 type vxlan id {vni} dstport 4789 local 192.0.2.2"));
    in_the_way_on_the_host(&lab, &hosts[1], &[&format!("VNI {vni}"), "underlay.vxlan_port"], || {
        hosts[1].netns().run("ip link del vx9");
    });
}

#[test]
fn a_vxlan_port_used_by_somebody_else_on_the_host() {
    let lab = Lab::new("vxlan-port");
    let hosts = lab.region(&["a", "b"]);
    let words = ["UDP port 4789"];
    let mut socket = Some(hosts[1].netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4789))).unwrap());
    in_the_way_on_the_host(&lab, &hosts[1], &words, || drop(socket.take()));
}

#[test]
fn a_metadata_vxlan_device_on_the_host() {
    let lab = Lab::new("metadata");
    let hosts = lab.region(&["a", "b"]);
    hosts[1].netns().run("ip link add vx9 type vxlan external dstport 4789");
    hosts[1].netns().run("ip link set vx9 up");
    in_the_way_on_the_host(&lab, &hosts[1], &["4789"], || {
        hosts[1].netns().run("ip link del vx9");
    });
}

/// Another agent on a host, of a region of its own; ended and cleaned up when it is dropped.
struct Second<'a> {
    host: &'a Host,
    dir: PathBuf,
    child: Child,
}

impl<'a> Second<'a> {
    fn start(lab: &Lab, host: &'a Host, vxlan_port: u16) -> Second<'a> {
        let dir = lab.dir().join("second");
        std::fs::create_dir_all(&dir).unwrap();
        let region = lab.make_region(&format!("region-{vxlan_port}"));
        host.issue(&region, &[]).ok();
        let (dir_text, region, name) = (dir.display(), region.display(), host.name());
        let config = format!(
            "region = \"lab\"\nhost = \"{name}\"\nstate_dir = \"{dir_text}/state\"\nrun_dir = \"{dir_text}/run\"\n\
             [gossip]\nlisten = \"{}:7950\"\n[underlay]\nvxlan_port = {vxlan_port}\n\
             [tls]\nca = \"{region}/ca.pem\"\ncert = \"{region}/{name}.pem\"\nkey = \"{region}/{name}.key\"\n\
             [http]\nlisten = \"127.0.0.1:9480\"\n[docker]\nplugin = \"{dir_text}/run/docker.sock\"\n",
            host.address(),
        );
        std::fs::write(dir.join("agent.toml"), config).unwrap();
        let mut command = host.netns().command(&tests::process::warren().display().to_string());
        command.arg("agent").arg("--config").arg(dir.join("agent.toml"));
        let child = tests::process::spawn(command).unwrap();
        let second = Second { host, dir, child };
        eventually(seconds(20), "the second agent serves", || {
            let status = second.warren(&["status", "-o", "json"]);
            want(status.code == 0, status)
        });
        second
    }

    fn warren(&self, args: &[&str]) -> Outcome {
        let socket = self.dir.join("run/warren.sock").display().to_string();
        tests::lab::warren(&[&["--socket", &socket], args].concat())
    }

    fn attach(&self, container: &Container) -> Outcome {
        let netns = container.netns().path().display().to_string();
        let of = ["attach", "--network", PN, "--app", AP, "-o", "json", "--netns", &netns, "--id"];
        self.warren(&[&of[..], &[container.name()]].concat())
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        tests::process::signal(&self.child, rustix::process::Signal::KILL);
        let _ = self.child.wait();
        let config = self.dir.join("agent.toml").display().to_string();
        let warren = tests::process::warren().display().to_string();
        let reset = self.host.run(&warren, &["reset", "--config", &config]);
        assert!(std::thread::panicking() || reset.code == 0, "{reset:?}");
    }
}

#[test]
fn a_second_agent_on_the_host_with_a_network_of_the_same_name() {
    let lab = Lab::new("second-agent");
    let hosts = lab.region(&["a", "b"]);
    let (c1, c2) = (hosts[0].container("c1"), hosts[1].container("c2"));
    c1.join(PN, AP, "web");
    let two = c2.join(PN, AP, "web");
    let vni = tests::forge::vni(&hosts[1], PN);
    let _echo = c2.echo(PORT);
    let theirs = hosts[1].container("theirs");
    {
        let second = Second::start(&lab, &hosts[1], 4789);
        second.attach(&theirs).refused(6, &[&format!("VNI {vni}"), "underlay.vxlan_port"]);
        assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2", "the first agent's goes on");
    }
    {
        // With a port of its own it has namespaces of its own, and nobody in common with the first one's.
        let second = Second::start(&lab, &hosts[1], 4790);
        let member: Attached = second.attach(&theirs).json().into();
        let echo = theirs.echo(PORT);
        assert_eq!(theirs.ask_tcp(member.address, PORT).unwrap(), "theirs");
        if member.address != two.address {
            theirs.ask_tcp(two.address, PORT).unwrap_err();
            c2.ask_tcp(member.address, PORT).unwrap_err();
        }
        drop(echo);
    }
    assert_eq!(c1.ask_tcp(two.address, PORT).unwrap(), "c2");
    c1.detach(PN).ok();
    c2.detach(PN).ok();
    lab.assert_clean();
}
