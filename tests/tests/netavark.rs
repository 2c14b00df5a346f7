//! netavark's plugin protocol as Podman speaks it, and networks of a Podman that is new enough to have plugins.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tests::docker::IMAGE;
use tests::ids::{AP, AP2, PN, name};
use tests::podman::Podman;
use tests::traffic::{Echo, ask_tcp};
use tests::{Host, Lab, dns, process, seconds};

const PORT: u16 = 3000;

/// One call of the plugin, as netavark and Podman make it: whether it succeeded, and what it said.
fn call(host: &Host, arguments: &[&str], input: &Value) -> (bool, Value) {
    let directory = host.dir().join("netavark");
    fs::create_dir_all(&directory).unwrap();
    let link = directory.join("warren");
    if !link.exists() {
        symlink(process::warren(), &link).unwrap();
    }
    let mut plugin = process::command(&link.display().to_string(), process::Place::Here);
    plugin.env("WARREN_SOCKET", host.socket()).args(arguments);
    let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // What takes no input answers without reading it.
    let _ = child.stdin.take().unwrap().write_all(input.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (output.status.success(), said)
}

/// What a real Podman asked: of `create`, of `setup`, of `teardown`; with another network and interface.
fn golden(line: usize) -> Value {
    let text = include_str!("../golden/netavark-1.14.jsonl");
    let mut asked: Value = serde_json::from_str(text.lines().nth(line).unwrap()).unwrap();
    asked["stdin"].take()
}

#[test]
fn what_podman_asks_is_done() {
    let lab = Lab::new("netavark");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    let (ok, info) = call(host, &["info"], &Value::Null);
    assert!(ok && info["api_version"] == "1.0.0", "{info}");
    let (ok, network) = call(host, &["create"], &golden(0));
    assert!(
        ok && network["ipam_options"]["driver"] == "none" && network["dns_enabled"] == false,
        "{network}"
    );

    let container = host.bare_container("c1");
    let path = container.netns().path().display().to_string();
    let (setup, teardown) = (golden(1), golden(2));
    let (ok, said) = call(host, &["setup", &path], &setup);
    assert!(ok, "{said}");
    let interface = setup["network_options"]["interface_name"].as_str().unwrap();
    let address = said["interfaces"][interface]["subnets"][0]["ipnet"].as_str().unwrap();
    let shown = container.netns().run(&format!("ip -o -4 address show dev {interface}"));
    assert!(shown.contains(address), "{address}: {shown}");
    assert_eq!(said["dns_server_ips"], json!(["127.240.0.53"]));
    let member = &host.members()[0];
    assert_eq!((&member["container"], &member["type"]), (&setup["container_name"], &json!("worker")));
    assert_eq!(call(host, &["setup", &path], &setup), (true, said), "a second time it changes nothing");

    // Requests that make no sense are told so in the protocol's own words, and change nothing.
    let mut unknown = setup.clone();
    unknown["network"]["options"]["app"] = json!("shop");
    unknown["container_name"] = json!("c2");
    for (arguments, input) in [
        (vec!["setup", &*path], json!({ "container_id": 7 })),
        (vec!["setup", &*path], unknown),
        (vec!["setup", "/nowhere"], setup.clone()),
        (vec!["setup"], setup.clone()),
        (vec!["teardown", &*path], json!([])),
        (vec!["create"], json!({ "name": "n" })),
        (vec!["jump"], Value::Null),
    ] {
        let (ok, said) = call(host, &arguments, &input);
        assert!(!ok && said["error"].is_string(), "{arguments:?}: {said}");
    }
    let live = host.members().iter().filter(|m| m["state"] == "ready").count();
    assert_eq!(live, 1);

    assert_eq!(call(host, &["teardown", &path], &teardown), (true, Value::Null));
    assert_eq!(call(host, &["teardown", "/nowhere"], &teardown), (true, Value::Null), "what is gone is gone");
    host.stop_agent();
    let (ok, said) = call(host, &["setup", &path], &setup);
    assert!(!ok && said["error"].as_str().unwrap().contains("no agent"), "{said}");
    host.start_agent();
    host.wait_ready();
    lab.assert_clean();
}

#[test]
fn containers_of_podmans_networks_find_each_other() {
    let lab = Lab::new("podnet");
    let hosts = lab.region(&["a", "b"]);
    let podmans: Vec<Podman> = hosts.iter().map(Podman::new).collect();
    let [a, b] = &podmans[..] else { unreachable!() };
    if let Err(why) = a.has_plugins() {
        return process::left_out("netavark::containers_of_podmans_networks_find_each_other", &why);
    }
    let option = format!("network={PN}");
    for podman in &podmans {
        podman.run(&["network", "create", "--driver", "warren", "--opt", &option, "shop"]).ok();
    }
    let refused = a.run(&["network", "create", "--driver", "warren", "--opt", "network=shop", "bad"]);
    assert!(refused.code != 0 && refused.stderr.contains("option network"), "{}", refused.stderr);
    let run = |podman: &Podman, container: &str, who: &str, more: &[&str], command: &[&str]| {
        let network = format!("shop:alias={who}");
        podman.run(&[&["run", "--name", container, "--network", &network], more, &[IMAGE], command].concat())
    };
    run(b, "back", &format!("worker.{AP2}"), &["-d"], &["sleep", "100000"]).ok();
    let _echo = Echo::serve(&b.netns("back"), "back", PORT);
    let full_name = name(&format!("1.worker.{AP2}"), PN);

    // The very first process has the interface, and its resolver finds the other one.
    let script = format!("ip -o -4 address show dev eth0; nslookup {full_name}");
    let once = run(a, "front", AP, &["--rm"], &["sh", "-c", &script]);
    let said = once.ok().stdout.clone();
    assert!(said.contains("10.240.") && said.contains(&format!("Name:\t{full_name}")), "{said}");

    run(a, "stays", AP, &["-d"], &["sleep", "100000"]).ok();
    let netns = a.netns("stays");
    let answer = netns.enter(|| dns::lookup(&full_name, RecordType::A, seconds(2))).unwrap();
    let echoed = netns.enter(|| ask_tcp((answer.addresses[0], PORT).into(), b"ping")).unwrap();
    assert_eq!(echoed, "back");
    let refused = run(a, "nobody", "somebody", &["--rm"], &["sleep", "1"]);
    assert!(refused.code != 0 && refused.stderr.contains("which app"), "{}", refused.stderr);

    a.run(&["rm", "-f", "-t", "0", "stays"]).ok();
    b.run(&["rm", "-f", "-t", "0", "back"]).ok();
    lab.assert_clean();
}
