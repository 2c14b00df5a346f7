//! Network namespaces: made as mounts, entered by threads that end and by children.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::process::{self, Place};

/// A network namespace by its path. Holds nothing open: an open descriptor pins a namespace, and
/// its death is what some tests are about.
#[derive(Debug, Clone)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace and mounts it at `path`.
    pub fn make(path: &Path) -> Netns {
        File::create(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        let mount = || {
            // SAFETY: NEWNET unshares no memory and no descriptors, and the thread ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            mount_bind("/proc/thread-self/ns/net", path)
        };
        let mounted = std::thread::scope(|scope| scope.spawn(mount).join()).expect("no panic in there");
        mounted.unwrap_or_else(|e| {
            panic!("cannot make a network namespace at {}: {e}; run as root", path.display())
        });
        Netns { path: path.to_owned() }
    }

    /// The namespace that is, or will be, at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Netns {
        Netns { path: path.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a namespace at the path.
    pub fn exists(&self) -> bool {
        self.try_enter(|| ()).is_ok()
    }

    /// The inode of what stands at the path.
    pub fn inode(&self) -> u64 {
        fs::metadata(&self.path).unwrap_or_else(|e| panic!("{}: {e}", self.path.display())).ino()
    }

    /// Takes the mount away and leaves the empty file, as a runtime does.
    pub fn unmount(&self) {
        unmount(&self.path, UnmountFlags::DETACH)
            .unwrap_or_else(|e| panic!("unmount {}: {e}", self.path.display()));
    }

    /// Runs `work` in the namespace, on a thread that ends with it.
    pub fn try_enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let netns = self.open()?;
        let inside = move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            drop(netns);
            io::Result::Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// As [`Netns::try_enter`], where the namespace has to be there.
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_enter(work).unwrap_or_else(|e| panic!("enter {}: {e}", self.path.display()))
    }

    /// Moves the calling thread, which must end soon, into the namespace.
    pub fn enter_for_good(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.open()?.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// A command that runs in the namespace.
    #[track_caller]
    pub fn command(&self, program: &str) -> Command {
        let netns = self.open().unwrap_or_else(|e| panic!("open {}: {e}", self.path.display()));
        process::command(program, Place::In(netns))
    }

    /// Runs a program in the namespace to its end; its arguments hold no spaces.
    #[track_caller]
    pub fn try_run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line has a program");
        self.command(program).args(words).output().unwrap_or_else(|e| panic!("cannot run {line}: {e}"))
    }

    /// As [`Netns::try_run`]; panics unless it succeeds. Its standard output.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}` in {}: {}", self.path.display(), error.trim());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes a sysctl of the namespace, such as `net/ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }
}
