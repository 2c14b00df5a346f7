//! An agent of an older version: it has never heard of frames, snapshots or judges.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::ChitchatEnvelope;
use gossip::Counters;
use gossip::memory::MemoryWire;
use gossip::wire::{AskError, Pushed, Question, Received, Wire};

/// A wire that keeps from its agent what an older one would not understand, and from the others what an older
/// one would not say.
pub struct Veteran(pub Arc<MemoryWire>);

/// The first bytes of the questions that were there from the start: greetings, and the node's own.
const KNOWN_PURPOSES: [u8; 2] = [0, 1];
/// The node's own question that was there from the start.
const KNOWN_QUESTION: &[u8] = b"{\"applied\"";

impl Veteran {
    fn understands(question: &Question) -> bool {
        match question.body.split_first() {
            Some((1, body)) => body.starts_with(KNOWN_QUESTION),
            Some((purpose, _)) => KNOWN_PURPOSES.contains(purpose),
            None => false,
        }
    }
}

#[async_trait]
impl Wire for Veteran {
    fn advertise(&self) -> SocketAddr {
        self.0.advertise()
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        self.0.send(to, envelope);
    }

    async fn recv(&self) -> Option<Received> {
        self.0.recv().await
    }

    fn push(&self, _to: SocketAddr, _frame: Bytes) {}

    async fn pushed(&self) -> Option<Pushed> {
        loop {
            // What it does not understand is dropped.
            self.0.pushed().await?;
        }
    }

    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        self.0.ask(to, body).await
    }

    async fn asked(&self) -> Option<Question> {
        loop {
            // Dropping a question tells its asker that nobody answers.
            let question = self.0.asked().await?;
            if Veteran::understands(&question) {
                return Some(question);
            }
        }
    }

    async fn close(&self) {
        self.0.close().await;
    }

    fn counters(&self) -> Arc<Counters> {
        self.0.counters()
    }
}
