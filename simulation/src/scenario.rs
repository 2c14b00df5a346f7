//! Scenarios by name: each a short script.

mod scripts;

use crate::operation::Operation;

/// A script with a name.
pub struct Scenario {
    /// What `--scenario` takes.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// How many hosts it is told with, when not said.
    pub hosts: u16,
    /// Its script, for a region of that size.
    pub script: fn(Size) -> Vec<Operation>,
}

/// How large a scenario's region is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Its hosts.
    pub hosts: usize,
    /// Members of each; most scripts have their own number.
    pub members: usize,
}

macro_rules! scenarios {
    ($($name:literal, $hosts:literal, $script:ident, $about:literal;)*) => {
        &[$(Scenario { name: $name, about: $about, hosts: $hosts, script: scripts::$script },)*]
    };
}

/// All of them.
pub const SCENARIOS: &[Scenario] = scenarios![
    "life", 5, life, "hosts start, containers come and go, a host crashes and comes back";
    "cold-start", 50, cold_start, "all hosts start at once, and attach at once";
    "large-region", 1000, large_region, "the first minute of a region; --members says how many each host has";
    "region-split", 6, region_split, "two halves for half a minute, both attach, both give one address";
    "rolling-restart", 6, rolling_restart, "every agent stops and starts, then every agent is killed: no name is missed";
    "drained-host", 4, drained_host, "a host is drained, refuses a container, restarts as it was, and is taken back";
    "mass-redeploy", 5, mass_redeploy, "50 containers at once on several hosts, and all of them anew";
    "big-redeploy", 6, big_redeploy, "600 live members replaced within the quarantine of their addresses";
    "full-network", 2, full_network, "1,022 of 1,022 addresses, one more, and one again";
    "flapping-host", 5, flapping_host, "a host crashes and starts again and again";
    "seeds-gone", 6, seeds_gone, "both seeds are gone for ever; the others crash, part and meet";
    "same-name-new-machine", 5, new_machine, "a machine burns down, another one gets its name";
    "kernel-sabotage", 4, kernel_sabotage, "somebody deletes and turns what agents have made";
    "scale-out-during-redeploy", 5, scale_out, "a new host gets 50 attaches at its start while an app is redeployed";
    "long-cut", 6, long_cut, "a cut longer than anybody is remembered, with the seeds gone";
    "old-counters", 5, old_counters, "a host comes back with old claims that others hold by now";
    "suspended-vm", 5, suspended, "a virtual machine stands still for five minutes";
    "cloned-host", 5, cloned, "two machines with one name and one disk";
    "crash-loop", 8, crash_loop, "four hosts start every second";
    "forged-records", 5, forged, "everybody's records are written over with the highest version";
    "nonsense", 5, nonsense, "a host of malformed records, and noise for frames and answers";
    "turned-frames", 5, turned, "a host that turns a byte in the frames of others";
    "near-the-wall", 5, near_the_wall, "a digest near what gossip can carry: nobody panics, nobody new is let in";
];

/// The scenario of a name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
