//! CDI: a file that names a device for each private network, by which engines call `warren hook` before a container's
//! first process runs (Container Device Interface, `SPEC.md`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gossip::id::NetworkId;
use gossip::{Standing, View};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::agent::Snapshot;
use crate::store;

/// What devices are called: `--device warren.dev/network=pn-…`.
const KIND: &str = "warren.dev/network";
/// How often the file is written at most.
const PACE: Duration = Duration::from_millis(500);

/// What a device makes its engine do.
#[derive(Debug, Clone)]
pub struct Hook {
    /// The command, absolute.
    pub warren: PathBuf,
    /// The agent's API socket.
    pub socket: PathBuf,
}

/// Keeps `file` as the region's networks come and go, until the agent ends. The file outlives it: a container that is
/// started while no agent runs is refused by the hook, which says why.
pub async fn follow(file: PathBuf, hook: Hook, mut snapshot: watch::Receiver<Snapshot>) {
    let mut written = None;
    let mut told = None;
    while snapshot.changed().await.is_ok() {
        let networks = {
            let now = snapshot.borrow_and_update();
            // Before it has joined, it knows less than the file may say.
            (now.generation > 0).then(|| networks(&now.view))
        };
        if let Some(networks) = networks
            && written.as_ref() != Some(&networks)
        {
            match write(&file, &hook, &networks) {
                Ok(()) => (written, told) = (Some(networks), None),
                // Said once: it is tried again whenever the region changes.
                Err(error) if told == Some(error.kind()) => {}
                Err(error) => {
                    tracing::warn!("devices for containers: cannot write {}: {error}", file.display());
                    told = Some(error.kind());
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The networks that somebody has who is not gone.
fn networks(view: &View) -> BTreeSet<NetworkId> {
    let there = view.hosts.values().filter(|host| host.standing != Standing::Gone);
    there.flat_map(|host| host.records.networks.keys().copied()).collect()
}

/// A file without devices would be malformed.
fn write(file: &Path, hook: &Hook, networks: &BTreeSet<NetworkId>) -> io::Result<()> {
    if networks.is_empty() {
        return match std::fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    store::publish(file, spec(hook, networks).to_string().as_bytes())
}

/// The file's content. Pure.
fn spec(hook: &Hook, networks: &BTreeSet<NetworkId>) -> Value {
    let devices: Vec<Value> = networks.iter().map(|network| device(hook, *network)).collect();
    json!({ "cdiVersion": "0.5.0", "kind": KIND, "devices": devices })
}

fn device(hook: &Hook, network: NetworkId) -> Value {
    let network = network.to_string();
    let call = |name: &str| {
        let args = ["warren", "--socket", &hook.socket.to_string_lossy(), "hook", "--network", &network];
        json!({ "hookName": name, "path": hook.warren, "args": args })
    };
    json!({
        "name": network,
        "containerEdits": {
            "env": [format!("WARREN_NETWORK_ID={network}")],
            "hooks": [call("createRuntime"), call("poststop")],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::fixtures;

    fn hook() -> Hook {
        Hook { warren: "/usr/bin/warren".into(), socket: "/run/warren/warren.sock".into() }
    }

    #[test]
    fn each_network_is_a_device() {
        let network = fixtures::pn();
        let expected = json!({
            "cdiVersion": "0.5.0",
            "kind": "warren.dev/network",
            "devices": [{
                "name": network.to_string(),
                "containerEdits": {
                    "env": [format!("WARREN_NETWORK_ID={network}")],
                    "hooks": [
                        { "hookName": "createRuntime", "path": "/usr/bin/warren", "args":
                          ["warren", "--socket", "/run/warren/warren.sock", "hook", "--network", network.to_string()] },
                        { "hookName": "poststop", "path": "/usr/bin/warren", "args":
                          ["warren", "--socket", "/run/warren/warren.sock", "hook", "--network", network.to_string()] },
                    ],
                },
            }],
        });
        assert_eq!(spec(&hook(), &BTreeSet::from([network])), expected);
    }

    #[test]
    fn without_networks_there_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cdi/warren.json");
        write(&file, &hook(), &BTreeSet::new()).unwrap();
        write(&file, &hook(), &BTreeSet::from([fixtures::pn()])).unwrap();
        let names = || std::fs::read_dir(dir.path().join("cdi")).unwrap().count();
        assert_eq!(names(), 1, "what it was written beside is gone");
        write(&file, &hook(), &BTreeSet::new()).unwrap();
        assert_eq!(names(), 0);
    }
}
