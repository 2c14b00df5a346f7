//! A stage for programs that run a laboratory by themselves: namespaces of their own, which take
//! everything along when they end.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, ExitStatus, Stdio};

use rustix::mount::{MountFlags, mount};

/// Runs this program again, with the same arguments and `key` set to `value`, in network, mount and
/// process namespaces of its own; as a user in a user namespace too.
///
/// # Errors
/// One sentence with what this machine would have to allow. It was tried, not guessed: kernels and
/// containers forbid namespaces in many ways.
pub fn run_inside(key: &str, value: impl AsRef<OsStr>) -> Result<ExitStatus, String> {
    let user = !rustix::process::geteuid().is_root();
    let mut unshare = Command::new("unshare");
    if user {
        unshare.arg("--map-root-user");
    }
    unshare.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let mut trial = Command::new("unshare");
    trial.args(unshare.get_args()).arg("true").stderr(Stdio::null());
    if !trial.status().is_ok_and(|status| status.success()) {
        return Err(if user {
            "this machine lets users make no namespaces: run it with sudo".into()
        } else {
            "network, mount and process namespaces cannot be made here (a container without privileges?): \
             run it on a host, as root"
                .into()
        });
    }
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let ended = unshare.arg(own).args(std::env::args_os().skip(1)).env(key, value).status();
    ended.map_err(|error| error.to_string())
}

/// Gives this program, inside, a `/run` of its own.
pub fn own_run() -> io::Result<()> {
    mount("warren", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    Ok(())
}
