//! `warren engine`: the process that holds the containers' descriptors and their WireGuard, and how the agent finds
//! it.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use netplumb::engine::{Process, Remote, UAPI_DIRECTORY, privileges};

use super::Failure;
use super::log::LogArgs;
use super::service::Inherited;
use crate::config::{Config, DEFAULT_ENGINE_SOCKET};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Hold the descriptors of this host's containers, and do their WireGuard where the kernel does \
                  not.\n\nThe agent starts it when none answers, and gives it every TUN device, UDP and DNS socket it \
                  opens. The two give them back to each other: when the agent is killed or upgraded no packet and no \
                  name is lost, and when the engine is, the agent starts another one with the same devices. When both \
                  end, containers reach nobody until an agent has started. It stores nothing and has no rights: no \
                  capabilities, no user, no files. `warren status` shows it, `warren reset` ends it.",
    after_help = "To upgrade: install the new binary, restart the agent, then end the engine (`kill PID`); the \
                  agent starts the new one. An agent speaks with an engine of its own version and the one before."
)]
pub struct Args {
    /// Where the agent finds it: `engine.sock` in the agent's run_dir
    #[arg(long, default_value = DEFAULT_ENGINE_SOCKET)]
    socket: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.log.start()?;
    // A terminal's interrupt is for the agent; it fails for the leader of a group, which a service manager starts.
    let _ = rustix::process::setsid();
    let socket = &args.socket;
    let process = match Inherited::take_all().listener(socket) {
        Some(listener) => Process::adopt(socket, listener.into()),
        None => Process::bind(socket),
    };
    let process = process.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(error.to_string()).code(6),
        _ => Failure::new(format!("cannot listen on {}: {error}", socket.display())),
    })?;
    privileges::drop_all(&socket.with_extension("root"))
        .map_err(|error| Failure::new(format!("cannot give up its rights: {error}")))?;
    tracing::info!(pid = std::process::id(), "the engine serves");
    process.serve().map_err(|error| Failure::new(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// The engine of the agent with this configuration: the one that runs, or a new one.
pub fn find(config: &Config, log: &LogArgs) -> anyhow::Result<Remote> {
    let (socket, flags) = (config.engine_socket(), log.flags());
    let launch = move || launch(&socket, &flags);
    let engine = Remote::open(config.engine_socket(), Some(UAPI_DIRECTORY.into()), Box::new(launch));
    let engine = engine.context("no engine")?;
    engine.spread(config.threads);
    Ok(engine)
}

/// Starts an engine of this very program, even if another one has been installed in its place: that one may speak
/// another protocol. It outlives its parent.
fn launch(socket: &Path, flags: &[String]) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("warren").arg("engine").arg("--socket").arg(socket).args(flags);
    let mut engine = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    // Only so that it leaves no zombie: its end is seen by its socket.
    std::thread::Builder::new().name("engine-wait".to_owned()).spawn(move || drop(engine.wait()))?;
    Ok(())
}
