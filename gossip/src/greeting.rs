//! Before joining: ask whoever lives which generations of this host were seen.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::config::Config;
use crate::id::HostId;
use crate::seeds::Seeds;
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
            _ => return None,
        };
        question.body.remove(0);
        Some(purpose)
    }
}

/// Greets seeds and known hosts, and meanwhile answers those who greet us: a whole region may be
/// starting at this moment.
pub(crate) async fn greet(config: &Config, wire: &dyn Wire, seeds: watch::Receiver<Seeds>) -> Greeting {
    let answer_others = async {
        while let Some(mut question) = wire.asked().await {
            if Purpose::unwrap(&mut question) == Some(Purpose::Greeting) {
                let generation = known_generation(config, &question.from);
                // An asker that is not there any more needs no answer.
                _ = question.reply.send(Greeting { generation, ..Greeting::default() }.encode());
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        greeting = ask_around(config, wire, seeds) => greeting,
        never = answer_others => never,
    }
}

fn known_generation(config: &Config, host: &HostId) -> Option<u64> {
    config.known.iter().filter(|known| known.host == *host).map(|known| known.generation).max()
}

async fn ask_around(config: &Config, wire: &dyn Wire, mut seeds: watch::Receiver<Seeds>) -> Greeting {
    let mut greeting = Greeting::default();
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
            answers.push(wire.ask(address, Purpose::Greeting.wrap(Vec::new())));
        }
        if answers.is_empty() && !now.unresolved {
            return greeting;
        }
        tokio::select! {
            Some(answer) = answers.next() => {
                if let Some(heard) = heard(answer) {
                    greeting.merge(heard);
                    deadline = deadline.min(Instant::now() + OTHERS_PAUSE);
                }
            }
            Ok(()) = seeds.changed() => {}
            () = time::sleep_until(deadline) => return greeting,
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
