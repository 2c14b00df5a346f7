//! A bounded queue that never makes its senders wait: when it is full, something gives way.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Many senders, one receiver; sending never waits.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    capacity: usize,
    gives_way: GivesWay,
    state: Mutex<State<T>>,
    changed: Notify,
}

/// What a full queue drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivesWay {
    Oldest,
    Newest,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue whose oldest item gives way: stale gossip is worthless.
    pub(crate) fn new(capacity: usize) -> Self {
        Self::with(capacity, GivesWay::Oldest)
    }

    /// A queue whose newest item gives way: what waits is as good as what comes.
    pub(crate) fn patient(capacity: usize) -> Self {
        Self::with(capacity, GivesWay::Newest)
    }

    fn with(capacity: usize, gives_way: GivesWay) -> Self {
        let state = State { waiting: VecDeque::new(), closed: false };
        Self { capacity, gives_way, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Puts an item last; what had to give way for it is returned. A closed queue takes nothing.
    pub(crate) fn push(&self, item: T) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Some(item);
        }
        let full = state.waiting.len() >= self.capacity;
        if full && self.gives_way == GivesWay::Newest {
            return Some(item);
        }
        let dropped = if full { state.waiting.pop_front() } else { None };
        state.waiting.push_back(item);
        drop(state);
        self.changed.notify_one();
        dropped
    }

    /// Takes the first item, waiting for one; `None` once the queue is closed. Cancel-safe.
    pub(crate) async fn pop(&self) -> Option<T> {
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.closed {
                    return None;
                }
                if let Some(item) = state.waiting.pop_front() {
                    return Some(item);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.waiting).len()
    }

    /// Ends the queue, and whoever waits at it.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_gives_way_to_the_patient() {
        let queue = Queue::patient(2);
        assert_eq!((queue.push(1), queue.push(2), queue.push(3)), (None, None, Some(3)));
        assert_eq!((queue.pop().await, queue.pop().await), (Some(1), Some(2)));
        assert_eq!(queue.push(4), None);
    }

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), None);
        assert_eq!(queue.push(2), None);
        assert_eq!(queue.push(3), Some(1));
        assert_eq!((queue.pop().await, queue.pop().await), (Some(2), Some(3)));
        queue.push(4);
        assert_eq!(queue.clear(), 1);
        queue.close();
        assert_eq!(queue.push(5), Some(5));
        assert_eq!(queue.pop().await, None);
    }
}
