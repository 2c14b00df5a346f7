//! One thread of the engine, with the interfaces that were born on it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::event_loop::{Command, EventLoop, Ports};

/// The handle of the thread, which ends when this is dropped.
pub(super) struct Shard {
    /// None only while dropping.
    commands: Option<Sender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Shard {
    /// Starts the thread with this number.
    pub(super) fn start(number: usize) -> io::Result<Shard> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, receiver) = mpsc::channel();
        let event_loop = EventLoop::new(wake.clone(), receiver)?;
        let thread = std::thread::Builder::new().name(format!("wireguard-{number}"));
        let thread = thread.spawn(move || event_loop.run())?;
        Ok(Shard { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Runs `work` on the thread; None when that has ended.
    pub(super) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ports) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = mpsc::sync_channel(1);
        let command: Command = Box::new(move |ports| {
            // A caller that no longer waits needs no answer.
            let _ = reply.send(work(ports));
        });
        self.commands.as_ref()?.send(command).ok()?;
        self.wake();
        answer.recv().ok()
    }

    /// Can only fail by a full counter, and then the event is there already.
    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the WireGuard engine had panicked");
        }
    }
}
