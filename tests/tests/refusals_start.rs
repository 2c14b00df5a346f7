//! Agents that cannot start as told, and agents that start in hard times: one clear sentence, an
//! exit code, nothing half-made.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::ids::{AP, AP2, PN, name};
use tests::{Host, Lab, eventually, process, seconds, want};

/// The agent of `host` refuses to start with this setting.
#[track_caller]
fn refuses(host: &Host, settings: &[(&str, &str)], code: i32, words: &[&str]) {
    for (key, value) in settings {
        host.set(key, value);
    }
    host.try_agent().refused(code, words);
    host.unset();
    assert!(!host.socket().exists(), "a refused agent leaves a socket: {settings:?}");
}

/// A filesystem in memory over a directory, until the laboratory goes.
fn tmpfs(dir: &Path, flags: MountFlags, options: &std::ffi::CStr) {
    fs::create_dir_all(dir).unwrap();
    mount("tmpfs", dir, "tmpfs", flags, options).unwrap();
}

#[test]
fn bad_configuration() {
    let lab = Lab::new("config");
    let host = lab.host("a");
    let key = lab.dir().join("region/a.key").display().to_string();
    // Setting, value, exit code, what is said.
    let cases: &[(&str, &str, i32, &[&str])] = &[
        ("regoin", "x", 2, &["regoin", "did you mean `region`"]),
        ("gossip.sead", "[]", 2, &["did you mean `seeds`"]),
        ("dns.tll_s", "5", 2, &["did you mean `ttl_s`"]),
        ("region", "Not A Region", 2, &["Not A Region"]),
        ("gossip.seeds", "[\"nowhere\"]", 2, &["gossip.seeds", "address:port"]),
        ("gossip.listen", "everywhere", 2, &["everywhere"]),
        ("gossip.listen", "0.0.0.0:7946", 2, &["gossip.advertise"]),
        ("gossip.interval_ms", "1", 2, &["gossip.interval_ms", "20 to 60000"]),
        ("gossip.interval_ms", "\"soon\"", 2, &["soon"]),
        ("dns.listen", "10.0.0.1", 2, &["dns.listen", "127.0.0.0/8"]),
        ("dns.zone", "..", 2, &["dns.zone"]),
        ("wireguard.backend", "carrier-pigeon", 2, &["carrier-pigeon", "userspace"]),
        ("tls.cert", "/no/such/cert.pem", 1, &["/no/such/cert.pem", "warren region issue"]),
        ("tls.ca", "/no/such/ca.pem", 1, &["/no/such/ca.pem"]),
        ("tls.cert", key.as_str(), 1, &["a.key"]),
        ("region", "elsewhere", 1, &["region lab", "elsewhere"]),
        ("host", "someone", 1, &["host a", "someone"]),
        ("underlay.address", "192.0.2.99", 1, &["192.0.2.99", "underlay.address"]),
    ];
    for (key, value, code, words) in cases {
        refuses(&host, &[(key, value)], *code, words);
    }
    let warren = process::warren().display().to_string();
    let agent = |args: &[&str]| host.run(&warren, &[&["agent"], args].concat());
    agent(&["--config", "/no/such/agent.toml"]).refused(2, &["/no/such/agent.toml"]);
    let broken = lab.dir().join("broken.toml");
    fs::write(&broken, "region = [unfinished").unwrap();
    agent(&["--config", &broken.display().to_string()]).refused(2, &["broken.toml", "TOML"]);
    agent(&["--set", "gossip"]).refused(2, &["KEY=VALUE"]);
    lab.assert_clean();
}

#[test]
fn bad_certificates() {
    let lab = Lab::new("certificates");
    let host = lab.host("a");
    let region = lab.dir().join("region");
    host.issue(&region, &[]).refused(6, &["a.key", "exists"]);
    host.issue(&region, &["--force", "--days", "0"]).ok();
    // Certificates count in whole seconds.
    tests::wait::pause(seconds(2));
    refuses(&host, &[], 1, &["expired"]);
    host.issue(&region, &["--force"]).ok();
    let other = lab.make_region("other");
    host.issue(&other, &[]).ok();
    let [cert, key] = ["a.pem", "a.key"].map(|file| other.join(file).display().to_string());
    // A key of another certificate, and a certificate of another CA.
    refuses(&host, &[("tls.key", &key)], 1, &["a.key"]);
    refuses(&host, &[("tls.cert", &cert), ("tls.key", &key)], 1, &["CA"]);
    host.start_agent();
    host.wait_ready();
}

#[test]
fn taken_ports() {
    let lab = Lab::new("ports");
    let host = lab.host("a");
    let gossip = host.netns().enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7946))).unwrap();
    refuses(&host, &[], 1, &["192.0.2.1:7946", "gossip.listen"]);
    drop(gossip);
    let http = host.netns().enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 9479))).unwrap();
    refuses(&host, &[], 1, &["127.0.0.1:9479", "http.listen"]);
    drop(http);
    host.start_agent();
    host.wait_ready();
    // A second agent on the same run_dir.
    let (warren, config) =
        (process::warren().display().to_string(), host.write_config().display().to_string());
    let mut args = vec!["agent", "--config", &config, "--set", "gossip.listen=192.0.2.1:7947"];
    args.extend(["--set", "http.listen=127.0.0.1:9480"]);
    let state = format!("state_dir={}", lab.dir().join("elsewhere").display());
    args.extend(["--set", &state]);
    host.run(&warren, &args).refused(1, &["another agent", "run_dir"]);
    host.warren(&["status"]).ok();
}

#[test]
fn no_root() {
    process::need(&[("setpriv", "util-linux")]);
    let lab = Lab::new("no-root");
    let host = lab.host("a");
    let config = host.write_config().display().to_string();
    let warren = process::warren().display().to_string();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&lab.dir().join("region/a.key"), 0o644);
    open(host.dir(), 0o777);
    // In a user namespace there is no other user: there it is root without capabilities.
    let mapped = fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().last() != Some("1");
    let nobody: &[&str] = match mapped {
        true => &["--reuid", "65534", "--regid", "65534", "--clear-groups"],
        false => &["--bounding-set", "-all"],
    };
    let refused = host.run("setpriv", &[nobody, &[&warren, "agent", "--config", &config]].concat());
    assert!([1, 5].contains(&refused.code), "{refused:?}");
    refused.refused(refused.code, &["root"]);
    let sentences = refused.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert_eq!(sentences, 1, "one sentence: {}", refused.stderr);
    host.start_agent();
    host.wait_ready();
    if mapped {
        let socket = host.socket().display().to_string();
        let status = host.run("setpriv", &[nobody, &[&warren, "--socket", &socket, "status"]].concat());
        status.refused(5, &["root"]);
    }
}

#[test]
fn a_store_that_cannot_be_written() {
    let lab = Lab::new("store");
    let host = lab.host("a");
    let state = host.dir().join("state");
    tmpfs(&state, MountFlags::RDONLY, c"");
    refuses(&host, &[], 1, &["state_dir", &state.display().to_string()]);
    unmount(&state, UnmountFlags::empty()).unwrap();

    tmpfs(&state, MountFlags::empty(), c"size=256k");
    host.start_agent();
    host.wait_ready();
    let before = host.container("before");
    let kept = before.join(PN, AP, "web");
    fs::write(state.join("ballast"), vec![0; 1 << 20]).unwrap_err();
    let refused = host.container("refused");
    refused.attach(PN, AP2, &[]).refused(1, &["journal", "state_dir"]);
    assert!(refused.addresses(&name(AP, PN)).is_empty(), "nothing is left in the container");
    eventually(seconds(5), "nothing is left of the refused one", || {
        let members: Vec<_> = host.members().into_iter().filter(|m| m["state"] != "released").collect();
        let bindings = fs::read_dir(host.dir().join("run/netns")).unwrap().count();
        want(members.len() == 1 && bindings == 2, (members, bindings))
    });
    assert_eq!(before.addresses(&kept.names[0]), [IpAddr::from(kept.address)], "the other goes on");
    fs::remove_file(state.join("ballast")).unwrap();
    refused.join(PN, AP2, "web");
    for container in [&before, &refused] {
        container.detach(PN).ok();
    }
    lab.assert_clean();
}

#[test]
fn an_unreachable_seed() {
    let lab = Lab::new("seed");
    let hosts = [lab.host("a"), lab.host("b")];
    hosts[0].start_agent();
    hosts[0].wait_serving();
    let container = hosts[0].container("c1");
    let member = container.join(PN, AP, "web");
    assert_eq!(container.addresses(&name(AP, PN)), [IpAddr::from(member.address)], "it serves locally");
    eventually(seconds(15), "the agent says which seed does not answer", || {
        let log = hosts[0].log();
        want(log.lines().any(|line| line.contains("192.0.2.2:7946")), log)
    });
    hosts[1].start_agent();
    for host in &hosts {
        host.wait_ready();
        host.wait_hosts(2);
    }
    let other = hosts[1].container("c2");
    other.join(PN, AP, "web");
    eventually(seconds(5), "the names of both are known", || {
        let found = container.addresses(&name(AP, PN));
        want(found.len() == 2, found)
    });
}

#[test]
fn a_crash_looping_agent() {
    let lab = Lab::new("loop");
    let hosts = lab.region(&["a", "b"]);
    let container = hosts[0].container("c1");
    let member = container.join(PN, AP, "web");
    eventually(seconds(10), "the agent remembers the other host", || {
        let view = fs::read_to_string(hosts[0].dir().join("state/view.json")).map_err(|e| e.to_string())?;
        want(view.contains("192.0.2.2:7946"), view)
    });
    for _ in 0..3 {
        hosts[0].kill_agent();
        hosts[0].start_agent();
        hosts[0].wait_serving();
    }
    hosts[0].kill_agent();
    hosts[0].start_agent();
    hosts[0].wait_serving();
    eventually(seconds(2), "it says that it joins later", || {
        let log = hosts[0].log();
        want(log.contains("joining later, serving locally"), log)
    });
    assert_eq!(hosts[0].get("/readyz").unwrap().status, 503);
    eventually(seconds(3), "it serves its own meanwhile", || {
        let found = container.addresses(&member.names[0]);
        want(found == [IpAddr::from(member.address)], found)
    });
    hosts[0].wait_ready();
    hosts[0].wait_hosts(2);
    hosts[1].wait_hosts(2);
}

#[test]
fn a_host_name_of_forty_bytes() {
    let lab = Lab::new("long");
    let long = "a-host-with-a-name-of-forty-bytes-at-all";
    assert_eq!(long.len(), 40);
    let hosts = lab.region(&[long, "b"]);
    let (c1, c2) = (hosts[0].container("c1"), hosts[1].container("c2"));
    let (one, _) = (c1.join(PN, AP, "web"), c2.join(PN, AP, "web"));
    let _echo = c1.echo(8080);
    assert_eq!(c2.ask_tcp(one.address, 8080).unwrap(), "c1");
    assert!(hosts[1].warren(&["hosts", "-o", "name"]).ok().stdout.lines().any(|line| line == long));
}

#[test]
fn a_host_that_lost_its_state() {
    let lab = Lab::new("amnesia");
    let hosts = lab.region(&["a", "b"]);
    let (old, far) = (hosts[0].container("old"), hosts[1].container("far"));
    let (lost, _) = (old.join(PN, AP, "web"), far.join(PN, AP2, "web"));
    let generation = || {
        let rows = hosts[1].warren(&["hosts", "-o", "json"]).rows();
        rows.iter().find(|row| row["host"] == "a").and_then(|row| row["generation"].as_u64()).unwrap_or(0)
    };
    let before = generation();
    hosts[0].kill_agent();
    fs::remove_dir_all(hosts[0].dir().join("state")).unwrap();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    eventually(seconds(10), "the others take up the new generation", || want(generation() > before, before));
    let new = hosts[0].container("new");
    let fresh = new.join(PN, AP, "web");
    assert_ne!(fresh.address, lost.address, "what was given is not given again at once");
    let _echo = new.echo(8080);
    assert_eq!(far.ask_tcp(fresh.address, 8080).unwrap(), "new");
    // The region remembers its member, and the engine its key: the runtime that attaches its running containers
    // again finds it.
    let again = old.join(PN, AP, "web");
    assert_eq!((&again.member, again.address), (&lost.member, lost.address));
    let _echo = old.echo(8080);
    assert_eq!(far.ask_tcp(lost.address, 8080).unwrap(), "old");
    assert_eq!(old.addresses(&lost.names[0]), [IpAddr::from(lost.address)]);
    // Its name for the container is lost: the member's stands in.
    hosts[0].warren(&["detach", "--network", PN, &lost.member]).ok();
    for container in [&new, &far] {
        container.detach(PN).ok();
    }
    lab.assert_clean();
}

#[test]
fn a_host_that_lost_its_state_and_its_engine() {
    let lab = Lab::new("wiped");
    let hosts = lab.region(&["a", "b"]);
    let (old, far) = (hosts[0].container("old"), hosts[1].container("far"));
    let (_, _) = (old.join(PN, AP, "web"), far.join(PN, AP2, "web"));
    hosts[0].kill_agent();
    hosts[0].kill_engine();
    fs::remove_dir_all(hosts[0].dir().join("state")).unwrap();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    // The runtime attaches its running containers again; leftovers of the agent's own do not stand in the way.
    let again = old.join(PN, AP, "web");
    let _echo = old.echo(8080);
    assert_eq!(far.ask_tcp(again.address, 8080).unwrap(), "old");
    for container in [&old, &far] {
        container.detach(PN).ok();
    }
    lab.assert_clean();
}
