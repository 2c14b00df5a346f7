//! What a region takes of its machines: to be the same after a while as before it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::container::Container;
use crate::host::Host;
use crate::lab::link_names;
use crate::wait::{eventually, seconds, want};

/// A restarted agent may have a few connections more at one moment than at another.
const SLACK: usize = 8;

/// Namespaces, links, tables, routes and processes by name, and how many descriptors each process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    things: BTreeSet<String>,
    descriptors: Vec<(String, usize)>,
}

impl Footprint {
    /// What is there now. Every agent runs, and its engine.
    pub fn of(hosts: &[Host], containers: &[&Container]) -> Footprint {
        let things = hosts.iter().flat_map(of_host).chain(containers.iter().flat_map(|c| of_container(c)));
        Footprint { things: things.collect(), descriptors: hosts.iter().flat_map(descriptors).collect() }
    }

    /// Waits until it is as it was; panics with what is more or less.
    #[track_caller]
    pub fn is_back(&self, hosts: &[Host], containers: &[&Container]) -> Footprint {
        eventually(seconds(20), "what is taken is what was taken", || {
            let now = Footprint::of(hosts, containers);
            let changed: Vec<&String> = now.things.symmetric_difference(&self.things).collect();
            want(changed.is_empty(), changed)?;
            let more = self.descriptors.iter().zip(&now.descriptors).any(|(was, is)| is.1 > was.1 + SLACK);
            want(!more, (&self.descriptors, &now.descriptors))?;
            Ok(now)
        })
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} things; descriptors:", self.things.len())?;
        self.descriptors.iter().try_for_each(|(whose, count)| write!(f, " {whose} {count}"))
    }
}

fn of_host(host: &Host) -> Vec<String> {
    let name = host.name();
    let inner = entries(&host.dir().join("run/netns"));
    let links = |netns: &str| link_names(&host.inner(netns)).join(" ");
    let mut things: Vec<String> =
        inner.iter().map(|netns| format!("{name}: {netns} with {}", links(netns))).collect();
    things.push(format!("{name}: links {}", link_names(host.netns()).join(" ")));
    things.push(format!("{name}: tables {:?}", host.netns().run("nft list tables")));
    things.push(format!("{name}: {} engines", engines(host).len()));
    things
}

/// Line by line: in which order the kernel shows them says nothing.
fn of_container(container: &Container) -> Vec<String> {
    let netns = container.netns();
    // eth0 has routes of its own, which the kernel adds when it likes.
    let routes = ["ip -4 route show table all proto 87", "ip -6 route show table all proto 87"];
    let looks = [routes[0], routes[1], "nft list tables", "ss -Hlntu"];
    let seen = looks.map(|look| (look, netns.run(look)));
    let lines = seen.iter().flat_map(|(look, text)| text.lines().map(move |line| format!("{look}: {line}")));
    let links = link_names(netns).into_iter().map(|link| format!("link {link}"));
    lines.chain(links).map(|thing| format!("{}: {thing}", container.name())).collect()
}

fn descriptors(host: &Host) -> Vec<(String, usize)> {
    let count = |pid: String| entries(&Path::new("/proc").join(pid).join("fd")).len();
    let agent = (format!("agent-{}", host.name()), count(host.agent_pid().to_string()));
    let engine = engines(host).into_iter().map(|pid| (format!("engine-{}", host.name()), count(pid)));
    [agent].into_iter().chain(engine).collect()
}

/// The pids of all engines that were started for this host and have not ended.
fn engines(host: &Host) -> Vec<String> {
    let socket = host.dir().join("run/engine.sock").display().to_string();
    let serves = |pid: &String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&b"engine".as_slice()) && words.contains(&socket.as_bytes())
    };
    entries(Path::new("/proc"))
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(serves)
        .collect()
}

/// The names in a directory, in order; none where it is gone.
fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let names: BTreeSet<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.into_iter().collect()
}
