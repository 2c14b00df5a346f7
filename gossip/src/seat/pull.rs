//! What is missing of one host, asked of one that has it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time;

use super::Seat;
use crate::eager::Heard;
use crate::greeting::Purpose;
use crate::pull::{self, Missing};

/// How long an answer may take.
const BOUND: Duration = Duration::from_secs(1);
/// How many answers may be waited for; what is pulled beyond comes with chitchat's rounds.
const WAITING_MAX: usize = 64;

/// What a host answered; none when it did not, or could not.
pub(super) struct Pulled {
    from: SocketAddr,
    answer: Option<Vec<u8>>,
}

impl Seat {
    /// Asks a host for what it has of an owner and this one has not.
    pub(super) fn pull(&mut self, owner: &str, from: SocketAddr) {
        if from == self.stay.config.advertise || self.pulls.len() >= WAITING_MAX {
            return;
        }
        let question = Purpose::Records.wrap(Missing::of(owner, &self.builder).encode());
        let wire = self.stay.wire.clone();
        self.pulls.push(Box::pin(async move {
            let answer = time::timeout(BOUND, wire.ask(from, question)).await;
            Pulled { from, answer: answer.ok().and_then(Result::ok) }
        }));
    }

    /// Takes in what was pulled. What frames cannot carry, or an older agent does not tell, chitchat brings.
    pub(super) async fn take_pulled(&mut self, Pulled { from, answer }: Pulled) {
        let heard = match answer {
            Some(frame) if frame.is_empty() => return,
            Some(frame) => Some(self.take_in(&frame).await),
            None => None,
        };
        match heard {
            Some(Heard::Applied(_)) => self.tell_soon(),
            Some(Heard::Duplicate | Heard::Own | Heard::Old | Heard::Quarantined) => {}
            Some(Heard::Gap { .. } | Heard::Malformed) | None => self.gossip(from),
        }
    }

    /// Answers another host's pull; none when it is to be left to chitchat.
    pub(super) async fn tell_missing(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        let chitchat = self.chitchat.chitchat();
        let chitchat = chitchat.lock().await;
        pull::answer(question, &chitchat, &self.builder)
    }
}
