//! Nameless network namespaces for tests: each is the namespace of one thread, and goes with it.

use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use rustix::thread::UnshareFlags;

type Job = Box<dyn FnOnce() + Send>;

/// A namespace with `lo` up.
pub struct Netns {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Netns {
    pub fn new() -> Netns {
        let (jobs, work) = mpsc::channel::<Job>();
        let (born, birth) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: only the network namespace is unshared, no memory or descriptors.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .expect("these tests need root: they make network namespaces");
            born.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        let tid = birth.recv().expect("these tests need root: they make network namespaces");
        let netns = Netns { jobs: Some(jobs), thread: Some(thread), tid };
        netns.sh("ip link set lo up");
        netns
    }

    /// Runs `work` inside; a panic comes out here.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            reply.send(result).unwrap();
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answer.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `script`, which must succeed, and returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        let (ok, output) = self.try_sh(script);
        assert!(ok, "{script}: {output}");
        output
    }

    /// Runs `script` and returns whether it succeeded and what it printed.
    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        })
    }

    /// What `ip link … netns` takes.
    pub fn tid(&self) -> i32 {
        self.tid
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
