//! Somebody who changes the kernel behind the agent's back, and goes on doing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Netns;

/// How long is waited between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats one command in a namespace until it is dropped.
pub struct Saboteur {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Saboteur {
    /// Repeats `line` in `netns`; that it fails because the work is done already is fine.
    pub fn repeat(netns: &Netns, line: &str) -> Saboteur {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, netns, line) = (stop.clone(), netns.clone(), line.to_owned());
        let work = move || {
            crate::wait::paced(PAUSE, || {
                // What is removed already cannot be removed again.
                let _ = netns.try_run(&line);
                !stopped.load(Ordering::Relaxed)
            });
        };
        Saboteur { stop, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
