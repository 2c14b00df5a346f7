//! Runtimes side by side: what one does to another waits until all of them rest.

use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::pump::{self, Flights, Next};
use super::{Agent, Heard, Message, Network, lock};

/// What is done to another lane than one's own.
pub(super) type Parcel = Box<dyn FnOnce(&Arc<Network>) + Send>;

/// The agents of one runtime, with the messages that are on their way to them.
pub(super) struct Lane {
    /// None: the current one of whoever sends.
    runtime: Option<Handle>,
    pub(super) flights: Mutex<Flights>,
    /// A message took off that arrives before all others.
    pub(super) earlier: Notify,
    /// What its agents do to other lanes, and to all.
    parcels: Mutex<Vec<Parcel>>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("flights", &self.flights).finish_non_exhaustive()
    }
}

impl Lane {
    pub(super) fn new(runtime: Option<Handle>) -> Self {
        Self { runtime, flights: Mutex::default(), earlier: Notify::new(), parcels: Mutex::default() }
    }

    pub(super) fn parcels(&self) -> Vec<Parcel> {
        mem::take(&mut *lock(&self.parcels))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }
}

impl Network {
    /// Does something to a lane, from another or the same one.
    pub(super) fn across(
        self: &Arc<Self>,
        from: usize,
        to: usize,
        act: impl FnOnce(&Arc<Network>) + Send + 'static,
    ) {
        if from == to { act(self) } else { lock(&self.lanes[from].parcels).push(Box::new(act)) }
    }

    /// Does something that all lanes see.
    pub(super) fn between(self: &Arc<Self>, from: usize, act: impl FnOnce(&Arc<Network>) + Send + 'static) {
        if self.lanes.len() == 1 { act(self) } else { lock(&self.lanes[from].parcels).push(Box::new(act)) }
    }

    /// A message is on its way in the lane of its receiver.
    pub(super) fn take_off(
        self: &Arc<Self>,
        lane: usize,
        at: Instant,
        from: Arc<Agent>,
        to: SocketAddr,
        message: Message,
    ) {
        let Lane { flights, earlier, .. } = &self.lanes[lane];
        let next = lock(flights).add(at, from, to, message);
        match next {
            Next::Wait => {}
            Next::Wake => earlier.notify_one(),
            Next::Carry => self.lanes[lane].spawn(pump::carry(self.clone(), lane)),
        }
    }
}

/// Has a question of another lane answered as messages are handed over: the word that it was heard, and its answer.
pub(super) fn relay(network: &Arc<Network>, lane: usize, asking: usize, heard: &mut oneshot::Sender<Heard>) {
    let (word, hears) = oneshot::channel::<Heard>();
    let heard = mem::replace(heard, word);
    let handed = network.clone();
    network.lanes[lane].spawn(async move {
        let back = |act: Parcel| handed.across(lane, asking, act);
        match hears.await {
            Ok(Ok(answer)) => {
                let (reply, replied) = oneshot::channel();
                back(Box::new(move |_| drop(heard.send(Ok(replied)))));
                let answer = answer.await;
                back(Box::new(move |_| drop(answer.map(|answer| reply.send(answer)))));
            }
            Ok(Err(refusal)) => back(Box::new(move |_| drop(heard.send(Err(refusal))))),
            // Nobody is there.
            Err(_) => back(Box::new(move |_| drop(heard))),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::runtime::{Builder, Runtime};
    use tokio::time::{sleep, timeout};

    use super::super::{MemoryNetwork, MemoryWire};
    use crate::wire::Wire as _;

    const SECOND: Duration = Duration::from_secs(1);

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    fn wire(network: &MemoryNetwork, name: &str, last: u8) -> MemoryWire {
        network.wire(&"test".parse().unwrap(), &name.parse().unwrap(), ([192, 0, 2, last], 7946).into())
    }

    #[test]
    fn what_goes_from_lane_to_lane_waits_for_the_exchange() {
        let (here, there) = (runtime(), runtime());
        let network = MemoryNetwork::of_lanes([there.handle().clone()]);
        let (one, other) = (wire(&network, "a", 1), wire(&network.lane(1), "b", 2));
        let to = other.advertise();

        here.block_on(async { one.push(to, Bytes::from_static(b"frame")) });
        assert!(there.block_on(async { timeout(SECOND, other.pushed()).await }).is_err());
        network.exchange();
        assert_eq!(there.block_on(other.pushed()).unwrap().frame, b"frame"[..]);

        let ask = async |question: &[u8]| timeout(SECOND, one.ask(to, question.to_vec())).await;
        let (asked, answered) = here.block_on(async {
            let mut asking = std::pin::pin!(ask(b"question"));
            let early = timeout(SECOND / 2, &mut asking).await;
            network.exchange();
            // The other runtime has a thread of its own, as lanes do.
            let answering = || {
                there.block_on(async {
                    let question = other.asked().await.unwrap();
                    question.reply.send([&question.body[..], b", answered"].concat()).unwrap();
                    sleep(SECOND).await;
                });
            };
            std::thread::scope(|scope| scope.spawn(answering).join().unwrap());
            network.exchange();
            (early, asking.await)
        });
        assert!(asked.is_err());
        assert_eq!(answered.unwrap().unwrap(), b"question, answered");

        // Who has crashed is silent, and is there no more.
        drop(other);
        network.exchange();
        assert!(here.block_on(ask(b"anybody")).is_err());
    }
}
