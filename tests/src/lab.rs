//! One laboratory: a directory, a region, an underlay, and what must be left of it in the end.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mount::{UnmountFlags, unmount};

use crate::cli::Outcome;
use crate::host::Host;
use crate::netns::Netns;
use crate::process::{self, Place};
use crate::wait::{eventually, seconds};

/// The region's name.
pub const REGION: &str = "lab";

/// A region on one switch. Hosts and containers keep what they need of it alive; the directory and
/// the namespaces go with the last of them.
pub struct Lab {
    site: Arc<Site>,
}

/// The address family of an underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// What everything in one laboratory stands on.
pub(crate) struct Site {
    pub(crate) dir: PathBuf,
    pub(crate) underlay: Netns,
    family: Family,
    /// Names of the hosts in the order they were made: the first is 192.0.2.1, or 2001:db8::1.
    pub(crate) hosts: Mutex<Vec<String>>,
    /// Containers that were not destroyed, by host.
    pub(crate) containers: Mutex<Vec<(String, Netns)>>,
}

impl Lab {
    /// A new laboratory with an underlay of IPv4; `name` is for its directory.
    pub fn new(name: &str) -> Lab {
        Lab::on(name, Family::V4)
    }

    /// As [`Lab::new`], with an underlay of IPv6 alone.
    pub fn on_ipv6(name: &str) -> Lab {
        Lab::on(name, Family::V6)
    }

    fn on(name: &str, family: Family) -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        process::need(&[("ip", "iproute2"), ("bridge", "iproute2")]);
        assert!(
            rustix::process::geteuid().is_root(),
            "the laboratory needs root, or `unshare -Urnmpf --mount-proc` with a tmpfs on /run"
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/run/warren-lab-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        let underlay = Netns::make(&dir.join("underlay"));
        underlay.run("ip link set lo up");
        underlay.run("ip link add br0 type bridge mcast_snooping 0");
        underlay.run("ip link set br0 up");
        let site = Site { dir, underlay, family, hosts: Mutex::default(), containers: Mutex::default() };
        let lab = Lab { site: Arc::new(site) };
        lab.make_region("region");
        lab
    }

    /// The laboratory's directory.
    pub fn dir(&self) -> &Path {
        &self.site.dir
    }

    /// The switch: every frame between hosts passes here.
    pub fn underlay(&self) -> &Netns {
        &self.site.underlay
    }

    /// A CA of its own in the directory `name`, for a region of the same name as everybody's.
    pub fn make_region(&self, name: &str) -> PathBuf {
        let dir = self.site.dir.join(name);
        warren(&["region", "init", "--region", REGION, "--dir", &dir.display().to_string()]).ok();
        dir
    }

    /// A host with an MTU of 1500 on the underlay; its agent is not started.
    pub fn host(&self, name: &str) -> Host {
        self.host_with_mtu(name, 1500)
    }

    /// A host with another MTU.
    pub fn host_with_mtu(&self, name: &str, mtu: u32) -> Host {
        let mut hosts = self.site.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.push(name.to_owned());
        Host::new(self.site.clone(), name, hosts.len() as u8, mtu)
    }

    /// Hosts with these names, each with its agent ready and every agent seeing all of them.
    pub fn region(&self, names: &[&str]) -> Vec<Host> {
        let hosts: Vec<Host> = names.iter().map(|name| self.host(name)).collect();
        start(&hosts);
        hosts
    }

    /// Panics when anything of the product is left: namespaces of its own, links, tables, routes and
    /// sockets in containers, links in hosts, members that are not released. Agents that were asked
    /// to detach everything clean up within a second.
    #[track_caller]
    pub fn assert_clean(&self) {
        eventually(seconds(5), "nothing of the product is left", || {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
        });
    }

    /// What is left of the product, in words.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for host in self.site.hosts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            left.extend(left_on_host(&self.site.dir.join(host)));
        }
        for (host, netns) in self.site.containers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if netns.exists() {
                left.extend(
                    left_in_container(netns).map(|what| format!("{host} {}: {what}", netns.path().display())),
                );
            }
        }
        left
    }
}

/// Starts all agents together, and waits until each is ready and sees all of them.
#[track_caller]
pub fn start(hosts: &[Host]) {
    hosts.iter().for_each(Host::start_agent);
    hosts.iter().for_each(Host::wait_ready);
    hosts.iter().for_each(|host| host.wait_hosts(hosts.len()));
}

/// Runs `warren` outside of any host.
pub fn warren(args: &[&str]) -> Outcome {
    let mut command = process::command(&process::warren().display().to_string(), Place::Here);
    let output = command.args(args).output().unwrap_or_else(|e| panic!("cannot run warren: {e}"));
    Outcome::of(format!("warren {}", args.join(" ")), &output)
}

fn left_on_host(dir: &Path) -> Vec<String> {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    let namespaces = entries(dir.join("run/netns")).map(|path| {
        let what = if Netns::at(&path).exists() { "namespace" } else { "empty file" };
        format!("{what} {}", path.display())
    });
    let released = |path: &PathBuf| {
        fs::read_to_string(path).is_ok_and(|text| text.replace(' ', "").contains(r#""state":"released""#))
    };
    let members = entries(dir.join("state/members"))
        .filter(|path| !released(path))
        .map(|path| format!("member {}", path.display()));
    let netns = Netns::at(dir.join("netns"));
    let ours = |name: &&str| {
        !matches!(*name, "lo" | "eth0" | "docker0" | "docker_gwbridge") && !name.starts_with("to-")
    };
    let links = if netns.exists() { link_names(&netns) } else { Vec::new() };
    let links = links.iter().map(String::as_str).filter(ours).map(|name| format!("link {name} in the host"));
    namespaces.chain(members).chain(links).collect()
}

fn left_in_container(netns: &Netns) -> impl Iterator<Item = String> + use<> {
    process::need(&[("nft", "nftables"), ("ss", "iproute2")]);
    let tables = netns.run("nft list tables");
    let routes =
        netns.run("ip route show table all proto 87") + &netns.run("ip -6 route show table all proto 87");
    let sockets = netns.run("ss -Hlntu");
    let lines = |text: &str, what: &str, mark: &str| -> Vec<String> {
        text.lines().filter(|l| l.contains(mark)).map(|l| format!("{what} {}", l.trim())).collect()
    };
    let links =
        link_names(netns).into_iter().filter(|name| name.starts_with("wg")).map(|n| format!("link {n}"));
    let found =
        [lines(&tables, "", "warren"), lines(&routes, "route", ""), lines(&sockets, "socket", ":61053")];
    found.into_iter().flatten().chain(links)
}

/// The names of the links in a namespace.
pub fn link_names(netns: &Netns) -> Vec<String> {
    let links = netns.run("ip -o link show");
    let name = |line: &str| line.split(": ").nth(1)?.split('@').next().map(str::to_owned);
    links.lines().filter_map(name).collect()
}

impl Site {
    /// The address of the host with this number.
    pub(crate) fn address(&self, number: u8) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// Reads every agent's log.
    fn logs(&self) -> Vec<(String, String)> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let log =
            |host: &String| fs::read_to_string(self.dir.join(host).join("agent.log")).unwrap_or_default();
        hosts.iter().map(|host| (host.clone(), log(host))).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let logs = self.logs();
        unmount_under(&self.dir);
        if std::thread::panicking() {
            for (host, log) in &logs {
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("--- agent of {host}, last lines of its log:\n{tail}");
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            for (host, log) in &logs {
                assert!(!log.contains("panicked"), "the agent of {host} panicked:\n{log}");
            }
        }
    }
}

/// Unmounts everything below `dir`, last first.
fn unmount_under(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for target in targets.filter(|target| Path::new(target).starts_with(dir)) {
        // Best effort: a mount that went by itself is fine.
        let _ = unmount(target, UnmountFlags::DETACH);
    }
}
