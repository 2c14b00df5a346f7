//! CNI: the plugin's protocol as runtimes speak it, and containers of a real containerd.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tests::docker::{Docker, IMAGE};
use tests::ids::{AP, AP2, PN, name};
use tests::traffic::{Echo, ask_tcp, ask_udp};
use tests::{Container, Host, Lab, Netns, dns, eventually, process, seconds, want};

const PORT: u16 = 3000;

/// One call of the plugin, as a runtime makes it: whether it succeeded, and what it said.
fn call(command: &str, config: &Value, environment: &[(&str, &str)]) -> (bool, Value) {
    let mut plugin = process::command(&process::warren().display().to_string(), process::Place::Here);
    plugin.env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin").envs(environment.iter().copied());
    let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (output.status.success(), said)
}

fn config(host: &Host, version: &str) -> Value {
    let socket = host.socket().display().to_string();
    json!({ "cniVersion": version, "name": "shop", "type": "warren", "network": PN, "app": AP, "socket": socket })
}

fn of<'a>(container: &'a Container, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("CNI_CONTAINERID", container.name()), ("CNI_NETNS", path), ("CNI_IFNAME", "eth1")]
}

#[test]
fn every_verb_of_every_version() {
    let lab = Lab::new("cni");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    let (ok, versions) = call("VERSION", &json!({ "cniVersion": "1.0.0" }), &[]);
    assert!(ok && versions["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")), "{versions}");
    for (number, version) in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].iter().enumerate() {
        let container = host.bare_container(&format!("c{number}"));
        let path = container.netns().path().display().to_string();
        let (config, of) = (config(host, version), of(&container, &path));
        let (ok, result) = call("ADD", &config, &of);
        assert!(ok, "{version}: {result}");
        assert_eq!(call("ADD", &config, &of), (true, result.clone()), "a second time it changes nothing");
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(container.netns().run("ip -o -4 address show dev eth1").contains(address), "{address}");
        assert!(container.netns().run("ip link show lo").contains("UP"));
        assert!(call("CHECK", &config, &of).0, "{version}");
        assert_eq!(call("DEL", &config, &of), (true, Value::Null), "{version}");
        let gone = [("CNI_CONTAINERID", container.name()), ("CNI_NETNS", ""), ("CNI_IFNAME", "eth1")];
        assert_eq!(call("DEL", &config, &gone), (true, Value::Null), "what is gone is deleted");
        assert!(!call("CHECK", &config, &of).0, "{version}");
    }
    lab.assert_clean();
}

#[test]
fn chained_it_adds_an_interface_and_gc_takes_away_what_no_runtime_knows() {
    let lab = Lab::new("cni-chain");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    let mut config = config(host, "1.1.0");
    let before = json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "eth0" }], "ips": [], "dns": {} });
    config["prevResult"] = before.clone();
    let containers = ["kept", "lost"].map(|name| host.container(name));
    for container in &containers {
        let path = container.netns().path().display().to_string();
        let mut of = of(container, &path);
        of.push(("CNI_ARGS", "IgnoreUnknown=1;WARREN_TYPE=worker"));
        let (ok, result) = call("ADD", &config, &of);
        assert!(ok, "{result}");
        assert_eq!(result["interfaces"], json!([{ "name": "eth0" }, result["interfaces"][1].clone()]));
        assert_eq!(
            result["ips"], before["ips"],
            "an address here is looked for on the other plugin's interface"
        );
    }
    assert!(host.members().iter().all(|member| member["type"] == "worker"));
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth1" }]);
    assert_eq!(call("GC", &config, &[]), (true, Value::Null));
    eventually(seconds(5), "one member is left", || {
        let members = host.members();
        let left: Vec<&Value> = members.iter().filter(|m| m["state"] == "ready").collect();
        want(left.len() == 1 && left[0]["container"] == "cni-kept", left)
    });

    assert_eq!(call("STATUS", &config, &[]), (true, Value::Null));
    host.stop_agent();
    let (ok, said) = call("STATUS", &config, &[]);
    assert!(!ok && said["code"] == 50, "{said}");
    let path = containers[0].netns().path().display().to_string();
    let (ok, said) = call("DEL", &config, &of(&containers[0], &path));
    assert!(!ok && said["code"] == 11, "the runtime tries again: {said}");
}

/// Nomad was not run: no registry has it. These are its arguments (client/allocrunner/networking_cni.go), and a group of
/// two whose first allocation is replaced.
#[test]
fn nomads_job_group_and_index_are_app_type_and_number() {
    let lab = Lab::new("cni-nomad");
    let hosts = lab.region(&["a"]);
    let host = &hosts[0];
    let mut config = config(host, "1.0.0");
    config.as_object_mut().unwrap().remove("app");
    let add = |container: &Container, index: u32| {
        let path = container.netns().path().display().to_string();
        let arguments = format!(
            "NOMAD_GROUP_NAME=worker;IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_JOB_ID={AP};NOMAD_NAMESPACE=default;\
             NOMAD_ALLOC_ID={};NOMAD_ALLOC_INDEX={index}",
            container.name()
        );
        let of = [
            ("CNI_CONTAINERID", container.name()),
            ("CNI_NETNS", &path),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
        ];
        let (ok, said) = call("ADD", &config, &of);
        assert!(ok, "{said}");
        let members = host.members();
        let member = members.iter().find(|m| m["container"] == format!("cni-{}", container.name()));
        let member = member.unwrap_or_else(|| panic!("{members:?}"));
        assert_eq!((&member["app"], &member["type"]), (&json!(AP), &json!("worker")));
        member["ordinal"].clone()
    };
    let [second, first, next] =
        ["7cd08c6c-second", "7cd08c6c-first", "7cd08c6c-next"].map(|name| host.bare_container(name));
    assert_eq!(add(&second, 1), 2);
    assert_eq!(add(&first, 0), 1);
    assert_eq!(add(&next, 0), 3, "the one that it replaces is still there");
    for container in [&first, &second, &next] {
        // Without CNI_ARGS, as Nomad does.
        let path = container.netns().path().display().to_string();
        assert_eq!(call("DEL", &config, &of(container, &path)), (true, Value::Null));
    }
    lab.assert_clean();
}

/// A container of containerd's, started by `ctr run --cni` in a view of the file system of its own: that reads
/// `/etc/cni` and `/opt/cni` alone.
struct Ctr<'a> {
    docker: &'a Docker,
    id: &'static str,
    child: Child,
}

impl<'a> Ctr<'a> {
    #[track_caller]
    fn run(host: &Host, docker: &'a Docker, id: &'static str, config: &Value) -> Ctr<'a> {
        let dir = host.dir().join(format!("ctr-{id}"));
        let at = |name: &str| -> PathBuf {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (bin, net, upper, work) = (at("opt/cni/bin"), at("etc/cni/net.d"), at("etc"), at("work"));
        symlink(process::warren(), bin.join("warren")).unwrap();
        let list = json!({ "cniVersion": "1.0.0", "name": "shop", "plugins": [config] });
        fs::write(net.join("10-warren.conflist"), list.to_string()).unwrap();
        let tar = dir.join("image.tar").display().to_string();
        docker.run(&["save", "-o", &tar, IMAGE]).ok();
        let script = format!(
            "set -e; mount --bind {opt} /opt; \
             mount -t overlay o -o lowerdir=/etc,upperdir={upper},workdir={work} /etc; \
             ctr -a {socket} -n lab image import {tar} >/dev/null; \
             exec ctr -a {socket} -n lab run --cni --rm docker.io/library/{IMAGE} {id} sleep 100000",
            opt = dir.join("opt").display(),
            upper = upper.display(),
            work = work.display(),
            socket = docker.containerd().display(),
        );
        let mut command = host.netns().command("unshare");
        command.args(["-m", "sh", "-c", &script]).stdin(Stdio::null());
        Ctr { docker, id, child: process::spawn(command).unwrap() }
    }

    fn ctr(&self, args: &str) -> String {
        let socket = self.docker.containerd().display().to_string();
        let mut command = process::command("ctr", process::Place::Here);
        let output = command.args(["-a", &socket, "-n", "lab"]).args(args.split(' ')).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn netns(&self) -> Netns {
        let pid = eventually(seconds(30), &format!("{} runs", self.id), || {
            let list = self.ctr("task ls");
            let line = list.lines().find(|line| line.starts_with(self.id) && line.contains("RUNNING"));
            line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned).ok_or(list.clone())
        });
        Netns::at(format!("/proc/{pid}/ns/net"))
    }

    /// Ends it; `ctr` calls the plugin's DEL then.
    fn end(mut self) {
        self.ctr(&format!("task kill -s SIGKILL {}", self.id));
        eventually(seconds(30), "ctr ends with its container", || {
            want(matches!(self.child.try_wait(), Ok(Some(_))), "")
        });
    }
}

#[test]
fn containers_of_containerd_find_each_other() {
    let lab = Lab::new("cni-ctr");
    let hosts = [lab.host("a"), lab.host("b")];
    let dockers: Vec<Docker> = hosts.iter().map(Docker::start).collect();
    tests::lab::start(&hosts);
    let mut second = config(&hosts[1], "1.0.0");
    second["app"] = json!(AP2);
    let front = Ctr::run(&hosts[0], &dockers[0], "front", &config(&hosts[0], "1.0.0"));
    let back = Ctr::run(&hosts[1], &dockers[1], "back", &second);
    let (from, to) = (front.netns(), back.netns());
    let _echo = Echo::serve(&to, "back", PORT);
    let address = eventually(seconds(10), "the other one has a name", || {
        let asked = || dns::lookup(&name(AP2, PN), RecordType::A, seconds(2));
        let answer = from.try_enter(asked).map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        answer.addresses.first().copied().ok_or_else(|| format!("{answer:?}"))
    });
    from.enter(|| {
        assert_eq!(ask_tcp((address, PORT).into(), b"ping").unwrap(), "back");
        assert_eq!(ask_udp((address, PORT).into(), 1390 - 28).unwrap(), "back");
    });
    drop((from, to));
    front.end();
    back.end();
    drop(dockers);
    lab.assert_clean();
}
