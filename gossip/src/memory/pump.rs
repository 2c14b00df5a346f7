//! Carries messages to where they go, in the order in which they arrive.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::{self, Instant};

use super::{Agent, Lane, Message, Network, lock};

/// A message on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) at: Instant,
    /// Of messages that arrive at once, the one sent first is first.
    pub(super) number: u64,
    /// Apart, for the heap moves what is in it all the time.
    pub(super) letter: Box<Letter>,
}

/// What is carried, from whom to where.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) from: Arc<Agent>,
    pub(super) to: SocketAddr,
    pub(super) message: Message,
}

impl Flight {
    fn order(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// What is on its way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    waiting: BinaryHeap<Reverse<Flight>>,
    numbered: u64,
    /// A task carries them; it ends when there are none left.
    is_carried: bool,
}

/// What to do after a message took off.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the task wakes up in time.
    Wait,
    /// Wake the task: this one arrives first.
    Wake,
    /// Start the task.
    Carry,
}

impl Flights {
    pub(super) fn add(&mut self, at: Instant, from: Arc<Agent>, to: SocketAddr, message: Message) -> Next {
        self.numbered += 1;
        let is_first = self.first().is_none_or(|first| at < first);
        let letter = Box::new(Letter { from, to, message });
        self.waiting.push(Reverse(Flight { at, number: self.numbered, letter }));
        match (std::mem::replace(&mut self.is_carried, true), is_first) {
            (false, _) => Next::Carry,
            (true, true) => Next::Wake,
            (true, false) => Next::Wait,
        }
    }

    /// The next message that has arrived by now.
    fn landed(&mut self, now: Instant) -> Option<Flight> {
        if self.first()? > now {
            return None;
        }
        self.waiting.pop().map(|Reverse(flight)| flight)
    }

    /// When the next one arrives; `None` ends the task.
    fn first(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(flight)| flight.at)
    }
}

/// Delivers a lane's messages as they arrive, until none is left.
pub(super) async fn carry(network: Arc<Network>, lane: usize) {
    let Lane { flights, earlier, .. } = &network.lanes[lane];
    let landed = |now| lock(flights).landed(now);
    loop {
        let now = Instant::now();
        while let Some(flight) = landed(now) {
            network.deliver(lane, flight);
        }
        let next = {
            let mut flights = lock(flights);
            let next = flights.first();
            flights.is_carried = next.is_some();
            next
        };
        let Some(next) = next else { return };
        tokio::select! {
            biased;
            () = earlier.notified() => {}
            () = time::sleep_until(next) => {}
        }
    }
}

impl Network {
    fn deliver(&self, lane: usize, flight: Flight) {
        // Whoever crashed meanwhile gets nothing, nor does who was in no lane yet when it was sent.
        let Letter { from, to, message } = *flight.letter;
        if let Some(receiver) = self.agent(to).filter(|receiver| receiver.lane == lane) {
            receiver.receive(&from, message);
        }
    }
}
