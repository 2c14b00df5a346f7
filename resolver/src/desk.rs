//! From a query that arrived to what is sent or awaited: the rules of [`crate::answer`], counted.

use crate::answer::{Outcome, Transport, answer, servfail};
use crate::counters::{Counters, Forwarded, NetworkCounters};
use crate::forward::Forwarder;
use crate::limits::Pace;
use crate::listener::Service;
use crate::scope::Scope;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Relayed queries in flight for one container.
pub(crate) const IN_FLIGHT_MAX: usize = 128;

/// What a listener's sockets share to answer a query; each task has its own clone.
#[derive(Clone)]
pub(crate) struct Desk {
    scopes: watch::Receiver<Arc<Scope>>,
    /// The newest of `scopes` when the batch began.
    scope: Arc<Scope>,
    /// Of the scope's zones.
    zone_counters: Vec<Arc<NetworkCounters>>,
    /// Of the first zone, for names in none.
    own_counters: Arc<NetworkCounters>,
    counters: Arc<Counters>,
    forwarder: Forwarder,
    in_flight: Arc<Semaphore>,
    pace: Pace,
}

/// What follows from a query.
pub(crate) enum Next {
    /// Send what was written.
    Send,
    /// Wait for an upstream.
    Wait(Relay),
    /// Nothing.
    Nothing,
}

impl Desk {
    pub(crate) fn new(mut scopes: watch::Receiver<Arc<Scope>>, service: Service) -> Desk {
        let Service { forwarder, counters, limits } = service;
        let scope = Arc::clone(&scopes.borrow_and_update());
        let mut desk = Desk {
            zone_counters: Vec::new(),
            own_counters: counters.network(""),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            scopes,
            scope,
            counters,
            forwarder,
            pace: limits.pace(),
        };
        desk.find_counters();
        desk
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Waits until the container may be answered again.
    pub(crate) async fn keep_pace(&self) {
        if let Some(next) = self.pace.next(Instant::now()) {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Begins a batch of queries, to be answered from the newest scope, and says when.
    pub(crate) fn begin(&mut self) -> Instant {
        if self.scopes.has_changed().unwrap_or(false) {
            self.scope = Arc::clone(&self.scopes.borrow_and_update());
            self.find_counters();
        }
        Instant::now()
    }

    /// Ends a batch begun at `began`: `queries` read, `replies` of them sent already.
    pub(crate) fn end(&self, began: Instant, queries: usize, replies: usize) {
        let now = Instant::now();
        self.pace.spend(queries, now);
        self.counters.count_durations(now - began, replies);
    }

    fn find_counters(&mut self) {
        let networks = self.scope.zones().iter().map(|zone| zone.network());
        self.own_counters = self.counters.network(networks.clone().next().unwrap_or(""));
        self.zone_counters = networks.map(|network| self.counters.network(network)).collect();
    }

    /// Answers one query of a batch into `out`.
    pub(crate) fn answer(&self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Next {
        match answer(query, &self.scope, transport, &mut rand::rng(), out) {
            Outcome::Reply { rcode, zone } => {
                let counters =
                    zone.and_then(|zone| self.zone_counters.get(zone)).unwrap_or(&self.own_counters);
                counters.count(transport, rcode);
                Next::Send
            }
            Outcome::Forward => self.relay(query, transport, out),
            Outcome::Drop(reason) => {
                self.counters.count_dropped(reason);
                Next::Nothing
            }
        }
    }

    fn relay(&self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Next {
        let permits = Arc::clone(&self.in_flight).try_acquire_owned().ok().zip(self.forwarder.permit());
        let Some(permits) = permits else {
            servfail(query, transport, out);
            self.counters.count_forwarded(Forwarded::Busy);
            self.own_counters.count(transport, rcode(out));
            return Next::Send;
        };
        Next::Wait(Relay {
            query: query.to_vec(),
            transport,
            started: Instant::now(),
            counters: Arc::clone(&self.counters),
            own_counters: Arc::clone(&self.own_counters),
            forwarder: self.forwarder.clone(),
            permits,
        })
    }
}

/// A query on its way to an upstream.
pub(crate) struct Relay {
    query: Vec<u8>,
    transport: Transport,
    started: Instant,
    counters: Arc<Counters>,
    own_counters: Arc<NetworkCounters>,
    forwarder: Forwarder,
    permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// A reply to be sent; counts as in flight until then.
pub(crate) struct Relayed {
    pub(crate) reply: Vec<u8>,
    pub(crate) counters: Arc<Counters>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Relay {
    /// The upstream's reply, or SERVFAIL.
    pub(crate) async fn run(self) -> Relayed {
        let (outcome, reply) = match self.forwarder.relay(&self.query, self.transport).await {
            Some(reply) => (Forwarded::Answered, reply),
            None => {
                let mut reply = Vec::new();
                servfail(&self.query, self.transport, &mut reply);
                (Forwarded::Failed, reply)
            }
        };
        self.counters.count_forwarded(outcome);
        self.own_counters.count(self.transport, rcode(&reply));
        self.counters.count_durations(self.started.elapsed(), 1);
        Relayed { reply, counters: self.counters, _permits: self.permits }
    }
}

/// The response code in a reply's header.
fn rcode(reply: &[u8]) -> u16 {
    reply.get(3).map_or(0, |flags| u16::from(flags & 0xf))
}
