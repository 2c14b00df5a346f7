//! The seeds' addresses: names are resolved for ever, a seed may appear or move at any time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;

/// Pause before a name is looked up again, after an answer and after none.
const RESOLVED_PAUSE: Duration = Duration::from_secs(60);
const UNRESOLVED_PAUSE: Duration = Duration::from_secs(5);

/// What is known of the seeds' addresses at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) addresses: BTreeSet<SocketAddr>,
    /// Some name has no address yet.
    pub(crate) unresolved: bool,
}

/// Follows the seeds' addresses, by a task when one of them is a name; `own` is no seed.
pub(crate) fn follow(seeds: &[String], own: SocketAddr, tasks: &mut JoinSet<()>) -> watch::Receiver<Seeds> {
    let literal: BTreeSet<SocketAddr> =
        seeds.iter().filter_map(|seed| seed.parse().ok()).filter(|a| *a != own).collect();
    let names: Vec<String> =
        seeds.iter().filter(|seed| seed.parse::<SocketAddr>().is_err()).cloned().collect();
    let (sender, receiver) =
        watch::channel(Seeds { addresses: literal.clone(), unresolved: !names.is_empty() });
    if !names.is_empty() {
        tasks.spawn(resolve(names, literal, own, sender));
    }
    receiver
}

async fn resolve(
    names: Vec<String>,
    literal: BTreeSet<SocketAddr>,
    own: SocketAddr,
    seeds: watch::Sender<Seeds>,
) {
    loop {
        let mut now = Seeds { addresses: literal.clone(), unresolved: false };
        for name in &names {
            match lookup_host(name).await {
                Ok(addresses) => now.addresses.extend(addresses.filter(|address| *address != own)),
                Err(error) => {
                    tracing::info!(seed = name, %error, "seed has no address; trying again");
                    now.unresolved = true;
                }
            }
        }
        let pause = if now.unresolved { UNRESOLVED_PAUSE } else { RESOLVED_PAUSE };
        seeds.send_replace(now);
        time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_seeds_and_oneself_is_not() {
        let own: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut tasks = JoinSet::new();
        let seeds = ["127.0.0.1:1", "127.0.0.1:2", "localhost:3"].map(String::from);
        let mut seeds = follow(&seeds, own, &mut tasks);
        let found = seeds.wait_for(|seeds| seeds.addresses.iter().any(|address| address.port() == 3));
        let found = time::timeout(Duration::from_secs(5), found).await.unwrap().unwrap().clone();
        assert!(!found.unresolved);
        assert!(found.addresses.contains(&"127.0.0.1:2".parse().unwrap()));
        assert!(!found.addresses.contains(&own));
    }
}
