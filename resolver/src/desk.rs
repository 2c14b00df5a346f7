//! From a query that arrived to what is sent or awaited: the rules of [`crate::answer`], counted.

use crate::answer::{Outcome, Transport, answer, servfail};
use crate::counters::{Counters, Forwarded, NetworkCounters};
use crate::forward::Forwarder;
use crate::scope::Scope;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Relayed queries in flight for one container.
pub(crate) const IN_FLIGHT_MAX: usize = 128;

/// What a listener's sockets share to answer a query; each task has its own clone.
#[derive(Clone)]
pub(crate) struct Desk {
    scope: watch::Receiver<Arc<Scope>>,
    /// Of the scope's zones.
    zone_counters: Vec<Arc<NetworkCounters>>,
    /// Of the first zone, for names in none.
    own_counters: Arc<NetworkCounters>,
    counters: Arc<Counters>,
    forwarder: Forwarder,
    in_flight: Arc<Semaphore>,
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
    pub(crate) fn new(
        scope: watch::Receiver<Arc<Scope>>,
        forwarder: Forwarder,
        counters: Arc<Counters>,
    ) -> Desk {
        let mut desk = Desk {
            zone_counters: Vec::new(),
            own_counters: counters.network(""),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            scope,
            counters,
            forwarder,
        };
        desk.scope.mark_changed();
        desk
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Answers one query into `out`.
    pub(crate) fn answer(&mut self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Next {
        let started = Instant::now();
        let scope = self.scope.borrow_and_update();
        if scope.has_changed() {
            let networks = scope.zones().iter().map(|zone| zone.network());
            self.own_counters = self.counters.network(networks.clone().next().unwrap_or(""));
            self.zone_counters = networks.map(|network| self.counters.network(network)).collect();
        }
        let outcome = answer(query, &scope, transport, &mut rand::rng(), out);
        drop(scope);
        match outcome {
            Outcome::Reply { rcode, zone } => {
                let counters =
                    zone.and_then(|zone| self.zone_counters.get(zone)).unwrap_or(&self.own_counters);
                counters.count(transport, rcode);
                self.counters.count_duration(started.elapsed());
                Next::Send
            }
            Outcome::Forward => self.relay(query, transport, started, out),
            Outcome::Drop(reason) => {
                self.counters.count_dropped(reason);
                Next::Nothing
            }
        }
    }

    fn relay(&self, query: &[u8], transport: Transport, started: Instant, out: &mut Vec<u8>) -> Next {
        let permits = Arc::clone(&self.in_flight).try_acquire_owned().ok().zip(self.forwarder.permit());
        let Some(permits) = permits else {
            servfail(query, transport, out);
            self.counters.count_forwarded(Forwarded::Busy);
            self.own_counters.count(transport, rcode(out));
            self.counters.count_duration(started.elapsed());
            return Next::Send;
        };
        Next::Wait(Relay {
            query: query.to_vec(),
            transport,
            started,
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
        self.counters.count_duration(self.started.elapsed());
        Relayed { reply, _permits: self.permits }
    }
}

/// The response code in a reply's header.
fn rcode(reply: &[u8]) -> u16 {
    reply.get(3).map_or(0, |flags| u16::from(flags & 0xf))
}
