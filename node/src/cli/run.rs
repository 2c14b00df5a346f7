//! `warren run`: a command in a network namespace of its own, attached while it lives.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::UnshareFlags;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::client::Client;
use super::members::{What, call, member_path};
use crate::attach::{Netns, Resolv};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// This process enters new network and mount namespaces, attaches itself, runs the command there
/// and detaches. The command's exit code is this command's; 128 + N after signal N.
pub fn run(client: &Client, args: Args) -> Result<ExitCode, Failure> {
    enter_namespaces()?;
    let (network, pid) = (args.what.network, std::process::id());
    let id = format!("run-{pid}");
    let attached = call(client, args.what, Netns::Pid { id: pid, inode: None }, &id)?;
    let ended = use_resolver(&attached.dns).and_then(|()| wait_for(&args.command, &attached.env));
    client.delete(&member_path(network, &id))?;
    let status = ended?;
    Ok(ExitCode::from(match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    }))
}

fn enter_namespaces() -> Result<(), Failure> {
    // SAFETY: this process has one thread yet, and nothing relies on its descriptors' table.
    let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) };
    entered.map_err(|e| match e {
        rustix::io::Errno::PERM => {
            Failure::new("warren run needs root: it makes a network namespace").code(5)
        }
        e => Failure::new(format!("cannot make a network namespace: {e}")),
    })?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| Failure::new(format!("cannot make the mounts private: {e}")))
}

/// Puts a resolv.conf of our own over the host's, in this mount namespace alone.
fn use_resolver(dns: &Resolv) -> Result<(), Failure> {
    let mut text = format!("nameserver {}\n", dns.nameserver);
    if !dns.search.is_empty() {
        let _ = writeln!(text, "search {}", dns.search.join(" "));
    }
    let _ = writeln!(text, "options {}", dns.options.join(" "));
    let own = std::env::temp_dir().join(format!("warren-resolv-{}", std::process::id()));
    let over = || -> std::io::Result<()> {
        // A symbolic link on hosts with systemd-resolved: the mount goes over what it points to.
        let target = Path::new("/etc/resolv.conf").canonicalize()?;
        std::fs::write(&own, text)?;
        let mounted = mount_bind(&own, &target);
        std::fs::remove_file(&own)?;
        Ok(mounted?)
    };
    over().map_err(|e| Failure::new(format!("cannot replace /etc/resolv.conf for the command: {e}")))
}

fn wait_for(
    command: &[OsString],
    env: &std::collections::BTreeMap<String, String>,
) -> Result<ExitStatus, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))?;
    runtime.block_on(async {
        let signals = |e: std::io::Error| Failure::new(format!("no signals: {e}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        // The terminal sends it to the command too; this process stays to detach.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        let mut child =
            tokio::process::Command::new(&command[0]).args(&command[1..]).envs(env).spawn().map_err(|e| {
                let code = if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
                Failure::new(format!("cannot run {}: {e}", command[0].display())).code(code)
            })?;
        loop {
            tokio::select! {
                ended = child.wait() => return ended.map_err(|e| Failure::new(e.to_string())),
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {
                    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
                        // The child may have ended by itself meanwhile.
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
            }
        }
    })
}
