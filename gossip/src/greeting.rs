//! Before joining: ask whoever lives which generations of this host were seen.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::config::Config;
use crate::id::HostId;
use crate::seeds::Seeds;
use crate::snapshot;
use crate::wire::{AskError, Question, Refusal, Wire};

/// Bound on the whole greeting: an agent alone must start too.
const BOUND: Duration = Duration::from_secs(2);
/// How long others may still answer after the first.
const OTHERS_PAUSE: Duration = Duration::from_millis(200);
/// Most hosts of the last view that are greeted beside the seeds.
const KNOWN_MAX: usize = 8;

/// What a peer answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The highest generation seen of the asker.
    pub(crate) generation: Option<u64>,
    /// Where an agent of the asker's name is live, when that is not the asker's own address.
    pub(crate) twin: Option<SocketAddr>,
    /// Length in bytes of the region's digest, when it is too long for a host it does not hold yet.
    #[serde(default)]
    pub(crate) full: Option<usize>,
}

impl Greeting {
    fn merge(&mut self, other: Greeting) {
        self.generation = self.generation.max(other.generation);
        self.twin = self.twin.or(other.twin);
        self.full = self.full.max(other.full);
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("two plain fields have a JSON form")
    }
}

/// What the first byte of a question says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A greeting, answered here.
    Greeting = 0,
    /// A question for the node.
    Node = 1,
    /// A question for a page of a snapshot, answered here.
    Snapshot = 2,
    /// A question for one owner's records, answered here.
    Records = 3,
}

impl Purpose {
    pub(crate) fn wrap(self, mut body: Vec<u8>) -> Vec<u8> {
        body.insert(0, self as u8);
        body
    }

    /// Takes the first byte off; none when it has no meaning here.
    pub(crate) fn unwrap(question: &mut Question) -> Option<Purpose> {
        let purpose = match question.body.first()? {
            0 => Purpose::Greeting,
            1 => Purpose::Node,
            2 => Purpose::Snapshot,
            3 => Purpose::Records,
            _ => return None,
        };
        question.body.remove(0);
        Some(purpose)
    }
}

/// What the peers that answered said, and which they are.
#[derive(Debug, Default)]
pub(crate) struct Welcome {
    pub(crate) greeting: Greeting,
    /// In the order of their answers: who is quick may have time.
    pub(crate) peers: Vec<SocketAddr>,
}

/// Answers those who greet a host that is itself about to join: a whole region may be starting at
/// this moment. It knows what it has persisted, and serves no snapshot. Runs until it is dropped.
pub(crate) async fn answer_others(known: Vec<(HostId, u64)>, wire: Arc<dyn Wire>) {
    while let Some(mut question) = wire.asked().await {
        let answer = match Purpose::unwrap(&mut question) {
            Some(Purpose::Greeting) => {
                let generations = known.iter().filter(|(host, _)| *host == question.from);
                let generation = generations.map(|(_, generation)| *generation).max();
                Greeting { generation, ..Greeting::default() }.encode()
            }
            Some(Purpose::Snapshot) => snapshot::not_whole(),
            Some(Purpose::Records | Purpose::Node) | None => continue,
        };
        // An asker that is not there any more needs no answer.
        _ = question.reply.send(answer);
    }
}

/// Greets seeds and known hosts.
pub(crate) async fn greet(config: &Config, wire: &dyn Wire, mut seeds: watch::Receiver<Seeds>) -> Welcome {
    let mut welcome = Welcome::default();
    let mut deadline = Instant::now() + BOUND;
    let mut asked = BTreeSet::from([wire.advertise()]);
    let mut answers = FuturesUnordered::new();
    let mut others: Vec<SocketAddr> = config
        .known
        .iter()
        .filter(|known| known.host != config.host)
        .map(|known| known.address)
        .take(KNOWN_MAX)
        .collect();
    loop {
        let now = seeds.borrow_and_update().clone();
        others.extend(now.addresses);
        for address in others.drain(..).filter(|address| asked.insert(*address)) {
            let asking = wire.ask(address, Purpose::Greeting.wrap(Vec::new()));
            answers.push(asking.map(move |answer| (address, answer)));
        }
        if answers.is_empty() && !now.unresolved {
            return welcome;
        }
        tokio::select! {
            Some((address, answer)) = answers.next() => {
                if let Some(heard) = heard(answer) {
                    welcome.greeting.merge(heard);
                    welcome.peers.push(address);
                    deadline = deadline.min(Instant::now() + OTHERS_PAUSE);
                }
            }
            Ok(()) = seeds.changed() => {}
            () = time::sleep_until(deadline) => return welcome,
        }
    }
}

fn heard(answer: Result<Vec<u8>, AskError>) -> Option<Greeting> {
    match answer {
        Ok(answer) => serde_json::from_slice(&answer).ok(),
        Err(AskError::Refused(Refusal::Twin { address, .. })) => {
            Some(Greeting { twin: Some(address), ..Greeting::default() })
        }
        Err(error) => {
            tracing::info!(%error, "a peer did not answer the greeting");
            None
        }
    }
}
