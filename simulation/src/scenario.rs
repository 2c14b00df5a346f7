//! Scenarios by name: each a short script.

use std::time::Duration;

use crate::operation::Operation::*;
use crate::operation::{Operation, Place, Sky};

/// A script with a name.
pub struct Scenario {
    /// What `--scenario` takes.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// How many hosts it is told with, when not said.
    pub hosts: u16,
    /// Its script, for so many hosts.
    pub script: fn(usize) -> Vec<Operation>,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "life",
        about: "hosts start, containers come and go, hosts crash and come back",
        hosts: 5,
        script: life,
    },
    Scenario {
        name: "region-split",
        about: "two halves for half a minute, both attach",
        hosts: 6,
        script: region_split,
    },
];

/// The scenario of a name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

const WEB: Place = Place { network: 0, app: 0, worker: false };
const API: Place = Place { network: 1, app: 1, worker: false };

fn seconds(seconds: u64) -> Operation {
    Wait(Duration::from_secs(seconds))
}

fn start(hosts: std::ops::Range<usize>) -> Vec<Operation> {
    hosts.flat_map(|host| [Start(host), Wait(Duration::from_millis(100))]).collect()
}

fn attach_everywhere(hosts: std::ops::Range<usize>, place: Place) -> Vec<Operation> {
    hosts.map(|host| Attach(host, place)).collect()
}

fn life(hosts: usize) -> Vec<Operation> {
    let last = hosts - 1;
    [
        start(0..hosts),
        vec![Settle],
        attach_everywhere(0..hosts, WEB),
        attach_everywhere(0..hosts, API),
        vec![Settle, Detach(0, 0), Settle],
        vec![Crash(last), seconds(8), Start(last), Settle],
        // So soon that nobody misses it.
        vec![seconds(60), Restart(last), Settle],
        vec![Kill(0, 0), seconds(2), Settle, Rest],
    ]
    .concat()
}

fn region_split(hosts: usize) -> Vec<Operation> {
    let (near, far) = (0..hosts / 2, hosts / 2..hosts);
    [
        start(0..hosts),
        attach_everywhere(0..hosts, WEB),
        vec![Settle, Split(vec![near.clone().collect(), far.clone().collect()]), seconds(1)],
        attach_everywhere(0..hosts, WEB),
        vec![seconds(20)],
        attach_everywhere(0..hosts, WEB),
        vec![seconds(10), Heal, Settle, Weather(Sky::Fair), Rest],
    ]
    .concat()
}
