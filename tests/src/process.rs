//! Child processes that never outlive the laboratory.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use rustix::process::{Pid, Signal, kill_process};

type Job = Box<dyn FnOnce() + Send>;

/// Where a child runs.
pub enum Place {
    /// Where this process does.
    Here,
    /// In a network namespace; the descriptor is closed with the command.
    In(OwnedFd),
    /// In a new network namespace that ends with it.
    New,
}

/// A command that is killed with this process, in `place`.
pub fn command(program: &str, place: Place) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("WARREN_")) {
        command.env_remove(variable);
    }
    let enter = move || match &place {
        Place::Here => Ok(()),
        // SAFETY: a bare system call on a descriptor that `place` owns.
        Place::In(netns) => check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }),
        // SAFETY: a bare system call.
        Place::New => check(unsafe { libc::unshare(libc::CLONE_NEWNET) }),
    };
    // SAFETY: between fork and exec nothing but system calls is made.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            enter()
        })
    };
    command
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts a child that lives on: PR_SET_PDEATHSIG counts the death of the thread that forked, so
/// such children are forked by one thread that never ends.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || queue.iter().for_each(|job| job()));
        jobs
    });
    let (reply, answer) = channel();
    let job = Box::new(move || drop(reply.send(command.spawn())));
    forker.send(job).expect("the forking thread lives as long as the process");
    answer.recv().expect("the forking thread answers")
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id() as i32).expect("a child has a pid");
    kill_process(pid, signal).unwrap_or_else(|e| panic!("kill {pid:?}: {e}"));
}

/// The product's binary: beside this executable or one directory up; `WARREN_BIN` names another.
pub fn warren() -> PathBuf {
    if let Some(path) = std::env::var_os("WARREN_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("this executable has a path");
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("warren"));
    beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no `warren` beside {}: run `cargo build -p node` first, or set WARREN_BIN", own.display())
    })
}

/// Says loudly that a test was left out, here and in the list that `make test` ends with.
pub fn left_out(test: &str, why: &str) {
    let line = format!("{test}: {why}\n");
    eprint!("LEFT OUT {line}");
    let list = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/left-out");
    let list = std::fs::File::options().create(true).append(true).open(list);
    let written = list.and_then(|mut list| std::io::Write::write_all(&mut list, line.as_bytes()));
    written.expect("the list of what was left out can be written");
}

/// Panics with the Debian package to install when a tool is missing.
pub fn need(tools: &[(&str, &str)]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let missing: Vec<String> = tools
        .iter()
        .filter(|(tool, _)| !found(tool))
        .map(|(tool, package)| format!("`{tool}` (apt-get install {package})"))
        .collect();
    assert!(missing.is_empty(), "missing in PATH: {}", missing.join(", "));
}
