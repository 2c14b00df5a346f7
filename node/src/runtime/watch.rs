//! Containers that join by a label alone, `warren.network`: those that run already when the agent or the engine starts,
//! and those that are started later. The engine's events say when to look; what is attached is attached by the one call
//! there is, and ends like every member, with its namespace.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use gossip::id::NetworkId;
use netplumb::Kernel;
use tokio::time::Instant;

use super::docker::engine::{Container, Engine, Starts};
use super::docker::labels;
use crate::api::Served;
use crate::attach::{Call, Netns, Refusal, RefusalKind, Request};
use crate::store::Store;

/// The label that names the private network.
const NETWORK: &str = "warren.network";
/// How soon an engine that does not answer is asked again.
const RECONNECT: Duration = Duration::from_secs(2);
/// How soon a container that could not be attached is tried again, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// Watches the engine at a socket, Docker's or Podman's, whether it runs already or not. It does not return.
pub async fn follow<K: Kernel, S: Store + Clone>(served: Served<K, S>, socket: PathBuf) {
    Watcher { served, engine: Engine::new(&socket), failed: BTreeMap::new() }.run().await;
}

/// A container that could not be attached.
struct Failed {
    why: String,
    pause: Duration,
    next: Instant,
}

struct Watcher<K, S> {
    served: Served<K, S>,
    engine: Engine,
    /// By the container's id.
    failed: BTreeMap<String, Failed>,
}

impl<K: Kernel, S: Store + Clone> Watcher<K, S> {
    async fn run(mut self) {
        loop {
            if let Err(refusal) = self.follow().await {
                tracing::debug!("no containers are watched: {refusal}");
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Adopts what runs, then what is started, until the engine ends.
    async fn follow(&mut self) -> Result<(), Refusal> {
        // What starts while the list is read is told of afterwards; what is told of twice is attached once.
        let since = gossip::unix_ns() / 1_000_000_000;
        for id in self.engine.running_with(NETWORK).await? {
            self.adopt(&id).await;
        }
        let mut starts = self.engine.starts(since).await?;
        while let Some(id) = self.next(&mut starts).await {
            self.adopt(&id).await;
        }
        Ok(())
    }

    /// Who is to be looked at next; none when the engine ended.
    async fn next(&self, starts: &mut Starts) -> Option<String> {
        let due = self.failed.iter().min_by_key(|(_, failed)| failed.next);
        let wait = async {
            match due {
                Some((id, failed)) => {
                    tokio::time::sleep_until(failed.next).await;
                    id.clone()
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            started = starts.next() => started,
            id = wait => Some(id),
        }
    }

    async fn adopt(&mut self, id: &str) {
        match self.attach(id).await {
            Ok(()) => {
                self.failed.remove(id);
            }
            Err(refusal) => self.note(id, &refusal),
        }
    }

    /// Remembers a failure that may pass, and says it once.
    fn note(&mut self, id: &str, refusal: &Refusal) {
        let before = self.failed.remove(id);
        if refusal.kind == RefusalKind::NotFound {
            return;
        }
        let why = refusal.to_string();
        if before.as_ref().is_none_or(|failed| failed.why != why) {
            let hint = refusal.hint.as_deref().unwrap_or_default();
            tracing::warn!(container = id, hint, "a labelled container cannot join: {why}");
        }
        if refusal.kind == RefusalKind::Malformed {
            return;
        }
        let pause = before.map_or(AGAIN[0], |failed| (failed.pause * 2).min(AGAIN[1]));
        self.failed.insert(id.to_owned(), Failed { why, pause, next: Instant::now() + pause });
    }

    async fn attach(&self, id: &str) -> Result<(), Refusal> {
        let container = self.engine.container(id).await?;
        let Some(call) = call(&container)? else { return Ok(()) };
        let started = Instant::now();
        let attached = self.served.context.clone().attach(call).await;
        self.served.metrics.attached("label", started.elapsed(), attached.is_ok());
        attached.map(|_| ())
    }
}

/// What a container's labels ask for; nothing if it has none of ours, or does not run any more.
fn call(container: &Container) -> Result<Option<Call>, Refusal> {
    let labels = container.config.labels.clone().unwrap_or_default();
    let Some(network) = labels.get(NETWORK).filter(|_| container.state.pid != 0) else { return Ok(None) };
    let name = container.name.trim_start_matches('/');
    if container.host_config.network_mode == "host" {
        let detail = format!("container {name} uses the host's own network");
        return Err(Refusal::new(RefusalKind::Malformed, detail).hint("start it without --network host"));
    }
    let network: NetworkId = network.parse().map_err(|e| {
        Refusal::new(RefusalKind::Malformed, format!("label {NETWORK} of container {name}: {e}"))
    })?;
    let said = labels::naming(name, &labels)?;
    let request = Request {
        app: said.app,
        process: said.process,
        ordinal: said.ordinal.filter(|_| said.insists),
        ifname: None,
        address: None,
        ports: said.ports,
        forward: None,
        netns: Netns::Pid { id: container.state.pid, inode: None },
        wait_ms: None,
    };
    Ok(Some(Call { network, container: name.to_owned(), request }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PN: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
    const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

    fn of(mode: &str, pid: u32, labels: &[(&str, &str)]) -> Result<Option<Call>, Refusal> {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let container = serde_json::json!({
            "Id": "4f66", "Name": "/front", "State": { "Pid": pid }, "HostConfig": { "NetworkMode": mode },
            "Config": { "Labels": labels },
        });
        call(&serde_json::from_value(container).unwrap())
    }

    #[test]
    fn labels_say_which_network_and_as_what() {
        let labels = [(NETWORK, PN), ("warren.app", AP), ("warren.type", "worker"), ("warren.ordinal", "3")];
        let call = of("bridge", 7, &labels).unwrap().unwrap();
        assert_eq!((call.network.to_string().as_str(), call.container.as_str()), (PN, "front"));
        assert_eq!((call.request.process.as_str(), call.request.ordinal), ("worker", Some(3)));
        let compose = [(NETWORK, PN), ("warren.app", AP), ("com.docker.compose.container-number", "2")];
        assert_eq!(
            of("bridge", 7, &compose).unwrap().unwrap().request.ordinal,
            None,
            "another host has a 2 too"
        );
    }

    #[test]
    fn who_is_not_meant_is_left_alone_and_who_cannot_join_is_told() {
        assert!(of("bridge", 7, &[("warren.app", AP)]).unwrap().is_none(), "the driver's");
        assert!(of("bridge", 0, &[(NETWORK, PN), ("warren.app", AP)]).unwrap().is_none(), "it has ended");
        for (mode, labels, says) in [
            ("host", vec![(NETWORK, PN), ("warren.app", AP)], "host's own"),
            ("bridge", vec![(NETWORK, PN)], "which app"),
            ("bridge", vec![(NETWORK, "shop"), ("warren.app", AP)], "warren.network of container front"),
        ] {
            let refusal = of(mode, 7, &labels).unwrap_err();
            assert!(refusal.kind == RefusalKind::Malformed && refusal.detail.contains(says), "{refusal}");
        }
    }
}
