//! Threads that run the hosts of one large region side by side, and one history all the same.
//!
//! Virtual time goes on by a millisecond, the tick of tokio's timers, in all lanes at once; nothing that a host sends
//! arrives sooner. So what the hosts of one lane do within a tick does not depend on what those of another one do in
//! it, and what goes from lane to lane is handed over, in the order of the lanes, while all of them rest. Whoever plays
//! the script acts while they rest, too, mostly a tick ahead of them. How many there are is part of the history; the machine's cores are not.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use gossip::memory::MemoryNetwork;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{self, Instant};

use crate::history::History;
use crate::{STACK_BYTES, clock, entropy};

/// How many there are in a large region: more than most machines have cores, for within a tick some have more to do
/// than others. 1,000 hosts take 330 s on two cores, with two lanes 400, on one thread 550.
pub const MANY: usize = 8;
/// Between two exchanges.
const TICK: Duration = Duration::from_millis(1);

thread_local!(static DRIVES: Cell<bool> = const { Cell::new(false) });
thread_local!(static DRIVEN: RefCell<Weak<Threads>> = const { RefCell::new(Weak::new()) });

/// Where the hosts of a region run.
pub struct Lanes {
    /// Their network.
    pub network: MemoryNetwork,
    lanes: Vec<Lane>,
    /// Ends with the region.
    _threads: Option<Arc<Threads>>,
}

/// Where a host runs.
pub struct Lane {
    /// Its number on the network.
    pub number: usize,
    /// Its runtime.
    pub runtime: Handle,
    /// Where what happens there is noted.
    pub history: History,
}

impl Lane {
    /// Polls a future here; what it spawns runs in the lane.
    pub async fn within<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            let _entered = self.runtime.enter();
            future.as_mut().poll(context)
        })
        .await
    }
}

impl Lanes {
    /// Lanes with so many threads of their own, which rest whenever the current runtime does anything. With none the
    /// current runtime itself is the only lane.
    ///
    /// # Errors
    /// A thread does not start, or the current runtime is no [`driver`].
    pub fn start(threads: usize, history: &History) -> anyhow::Result<Lanes> {
        if threads == 0 {
            let lanes = vec![Lane { number: 0, runtime: Handle::current(), history: history.clone() }];
            return Ok(Lanes { network: MemoryNetwork::new(), lanes, _threads: None });
        }
        anyhow::ensure!(DRIVES.get(), "the lanes of a large region need a runtime that drives them");
        let gates = (0..threads).map(|number| Gate::begin(number + 1)).collect::<anyhow::Result<Vec<_>>>()?;
        let runtimes = || gates.iter().map(|(_, runtime)| runtime.clone());
        let network = MemoryNetwork::of_lanes(runtimes());
        let lane = |(number, runtime)| Lane { number, runtime, history: history.aside() };
        let lanes: Vec<Lane> = (1..).zip(runtimes()).map(lane).collect();
        let tick = Arc::new(Notify::new());
        let threads = Arc::new(Threads {
            gates: gates.into_iter().map(|(gate, _)| gate).collect(),
            network: network.clone(),
            history: history.clone(),
            asides: lanes.iter().map(|lane| lane.history.clone()).collect(),
            ticking: tokio::spawn(tick_along(tick.clone())).abort_handle(),
            tick,
        });
        DRIVEN.set(Arc::downgrade(&threads));
        Ok(Lanes { network, lanes, _threads: Some(threads) })
    }

    /// Where a host runs, by its number.
    pub fn of(&self, host: usize) -> &Lane {
        &self.lanes[host % self.lanes.len()]
    }
}

/// The threads of lanes, and what they do together. Dropping it ends them.
struct Threads {
    gates: Vec<Arc<Gate>>,
    network: MemoryNetwork,
    history: History,
    asides: Vec<History>,
    /// The clock of the thread that drives them goes on.
    tick: Arc<Notify>,
    ticking: AbortHandle,
}

impl Threads {
    /// All lanes come to where this thread's clock is, and do what there is to do.
    fn turn(&self) {
        self.gates.iter().for_each(|gate| gate.open(State::Runs(Instant::now())));
        self.gates.iter().for_each(|gate| gate.wait());
        self.network.exchange();
        self.asides.iter().for_each(|aside| self.history.take_in(aside));
        self.tick.notify_one();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.ticking.abort();
        self.gates.iter().for_each(|gate| gate.open(State::Ends));
        self.gates.iter().for_each(|gate| gate.wait());
    }
}

/// A runtime for the current thread, which drives the lanes that it starts.
///
/// # Errors
/// As tokio's.
pub fn driver() -> anyhow::Result<Runtime> {
    DRIVES.set(true);
    runtime(|| {
        if let Some(threads) = DRIVEN.with_borrow(Weak::upgrade) {
            threads.turn();
        }
    })
}

/// A runtime whose paused clock begins where all others do, and what it does when nothing is left to do in it. It has
/// no IO, which nobody needs and which takes a system call for each rest.
fn runtime(rest: impl Fn() + Send + Sync + 'static) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true).on_thread_park(rest);
    clock::at_the_beginning(|| builder.build()).context("a runtime")
}

async fn tick_along(tick: Arc<Notify>) {
    loop {
        tick.notified().await;
        time::advance(TICK).await;
    }
}

/// Where a lane's thread rests.
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// It runs again.
    opened: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its clock comes to here, and it runs until nothing is left to do.
    Runs(Instant),
    Rests,
    /// It ends.
    Ends,
    Ended,
}

impl Gate {
    /// Starts a thread that rests there.
    fn begin(number: usize) -> anyhow::Result<(Arc<Gate>, Handle)> {
        let state = Mutex::new(State::Runs(Instant::now()));
        let gate = Arc::new(Gate { state, changed: Condvar::new(), opened: Notify::new() });
        let resting = gate.clone();
        let runtime = runtime(move || resting.rest())?;
        let (handle, seed, living) = (runtime.handle().clone(), rand::random(), gate.clone());
        let thread = thread::Builder::new().name(format!("lane {number}")).stack_size(STACK_BYTES);
        thread.spawn(move || {
            entropy::seed(seed);
            runtime.block_on(living.live());
            drop(runtime);
            living.open(State::Ended);
        })?;
        gate.wait();
        Ok((gate, handle))
    }

    /// Nothing is left to do in the lane: its thread stands here until there may be again.
    fn rest(&self) {
        let mut state = self.state();
        if matches!(*state, State::Runs(_)) {
            *state = State::Rests;
            self.changed.notify_all();
        }
        let rests = |state: &mut State| *state == State::Rests;
        drop(self.changed.wait_while(state, rests).unwrap_or_else(PoisonError::into_inner));
        self.opened.notify_one();
    }

    fn open(&self, to: State) {
        *self.state() = to;
        self.changed.notify_all();
    }

    /// Waits until the thread rests or has ended.
    fn wait(&self) {
        let runs = |state: &mut State| matches!(state, State::Runs(_) | State::Ends);
        drop(self.changed.wait_while(self.state(), runs).unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the lane's thread does, until it ends.
    async fn live(&self) {
        loop {
            let state = *self.state();
            match state {
                State::Runs(now) => {
                    time::advance(now.saturating_duration_since(Instant::now())).await;
                }
                State::Ends => return,
                State::Rests | State::Ended => {}
            }
            self.opened.notified().await;
        }
    }
}
