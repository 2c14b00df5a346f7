//! Network namespaces: entered on threads that end, found again by cookie, ours kept as mounts.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::Error;
use crate::state::NetnsRef;

/// `f_type` of a mounted namespace (linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
/// The calling thread's network namespace; `/proc/self` is that of the first thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// What a namespace of ours must not inherit from the host (which may forward, as Docker's do), by
/// path under `/proc/sys/net`. A file that is missing belongs to something this kernel does not have.
const SYSCTLS: [(&str, &str); 10] = [
    // Else ND and MLD of every link goes through the fabric.
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    // First of IPv4: a write resets others.
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    // A new address comes before the old one goes, and must not go with it.
    ("ipv4/conf/all/promote_secondaries", "1"),
    ("ipv4/conf/default/promote_secondaries", "1"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

/// Runs `work` in `netns`, on a thread that ends with it: a thread that changed its namespace is
/// never used again.
///
/// Errors: EPERM without CAP_SYS_ADMIN, EINVAL for a descriptor of anything else.
pub fn enter<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(move || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })
}

/// Runs `work` in a new namespace that nothing keeps: it ends with the thread.
pub fn scratch<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(move || {
        leave()?;
        Ok(work())
    })
}

/// The calling thread's namespace.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open(CURRENT)?.into())
}

/// SO_NETNS_COOKIE of the calling thread's namespace (Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes to `cookie`, which has as many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into a new namespace.
fn leave() -> io::Result<()> {
    // SAFETY: NEWNET unshares no memory and no descriptors, and the thread runs nothing else.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

impl NetnsRef {
    /// Opens the namespace, provided that it is still the same one. The descriptor pins it: close
    /// it soon.
    ///
    /// Errors: [`Error::NetnsGone`], [`Error::NetnsRecycled`], [`Error::NotNetns`],
    /// [`Error::NotPermitted`].
    pub fn open(&self) -> Result<OwnedFd, Error> {
        let netns = open(&self.path)?;
        self.verify(netns.as_fd(), || ())?;
        Ok(netns)
    }

    /// Runs `work` in the namespace, as [`enter`] does, provided that it is still the same one.
    ///
    /// Errors: as [`NetnsRef::open`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let netns = open(&self.path)?;
        self.verify(netns.as_fd(), work)
    }

    fn verify<T: Send>(&self, netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let checked = enter(netns, || Ok((cookie()? == self.cookie).then(work)));
        match checked.and_then(|result: io::Result<Option<T>>| result) {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err(Error::NetnsRecycled(self.path.clone())),
            Err(error) => Err(entering(&self.path, error)),
        }
    }
}

/// Opens what shall be a network namespace.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Error> {
    match File::open(path) {
        // An empty file is what an unmounted namespace leaves behind.
        Ok(file) if is_namespace(&file) => Ok(file.into()),
        Ok(_) => Err(if path.starts_with("/proc") {
            Error::NotNetns(path.to_owned())
        } else {
            Error::NetnsGone(path.to_owned())
        }),
        Err(error) => match error.raw_os_error() {
            // ESRCH: the process ended between the look-up of its directory and of its namespace.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => Err(Error::NetnsGone(path.to_owned())),
            // A socket, a device: nothing that can be opened.
            Some(libc::ENXIO | libc::ENODEV) => Err(Error::NotNetns(path.to_owned())),
            _ => Err(Error::kernel(format!("open {}", path.display()), error)),
        },
    }
}

/// What an error of [`enter`] means for the namespace at `path`.
pub(crate) fn entering(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => Error::NotNetns(path.to_owned()),
        _ => Error::kernel(format!("enter {}", path.display()), error),
    }
}

fn is_namespace(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// Whether the calling thread's namespace has each of [`SYSCTLS`].
pub(crate) fn is_quiet() -> bool {
    SYSCTLS.iter().all(|(name, value)| match fs::read_to_string(sysctl(name)) {
        Ok(found) => found.trim_end() == *value,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

/// Gives the calling thread's namespace each of [`SYSCTLS`]. `/proc/sys/net` is always that of the
/// thread that opens it.
pub(crate) fn quieten() -> io::Result<()> {
    SYSCTLS.iter().try_for_each(|(name, value)| write_sysctl(name, value))
}

/// Writes one sysctl in the calling thread's namespace, if there is such a one.
pub(crate) fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    match fs::write(sysctl(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads one sysctl in the calling thread's namespace; empty if there is no such one.
pub(crate) fn read_sysctl(name: &str) -> io::Result<String> {
    match fs::read_to_string(sysctl(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result.map(|text| text.trim().to_owned()),
    }
}

/// The calling thread's namespace has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    sysctl("ipv6/conf/all/disable_ipv6").exists()
}

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// The namespaces of this agent, as mounts in one directory.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// `<run_dir>/netns/`.
    pub(crate) directory: PathBuf,
}

impl Namespaces {
    /// Ours are in `<run_dir>/netns/`.
    pub(crate) fn new(run_dir: &Path) -> Namespaces {
        Namespaces { directory: run_dir.join("netns") }
    }

    /// The names of those that are there.
    pub(crate) fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |error: io::Error| Error::kernel("list our network namespaces", error);
        match fs::read_dir(&self.directory) {
            Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
        }
    }

    /// The namespace `name`, if it is there.
    pub(crate) fn open(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        match open(&self.path(name)?) {
            Ok(netns) => Ok(Some(netns)),
            Err(Error::NetnsGone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the namespace `name`, if it is not there, and runs `furnish` in it, on the same thread that ends.
    pub(crate) fn create<T: Send>(
        &self,
        name: &str,
        furnish: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<(OwnedFd, T), Error> {
        let failed = |error: io::Error| Error::kernel(format!("make the network namespace {name}"), error);
        if let Some(netns) = self.open(name)? {
            let furnished = enter(netns.as_fd(), furnish).and_then(|done| done).map_err(failed)?;
            return Ok((netns, furnished));
        }
        let path = self.path(name)?;
        fs::create_dir_all(&self.directory).map_err(failed)?;
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let made = on_thread(|| {
            leave()?;
            mount_bind(CURRENT, &path)?;
            furnish()
        });
        let furnished = made.map_err(failed)?;
        Ok((open(&path)?, furnished))
    }

    /// Unmounts the namespace `name`; the kernel cleans up when nobody is in it any more.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        let failed = |error: io::Error| Error::kernel(format!("remove the network namespace {name}"), error);
        // More than one mount can lie on it after a crash at the wrong moment.
        while self.open(name)?.is_some() {
            unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|e| failed(e.into()))?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let file = Path::new(name).file_name() == Some(OsStr::new(name)) && name.len() < 256;
        if file && !name.contains('\0') {
            Ok(self.directory.join(name))
        } else {
            Err(Error::BadName(name.to_owned()))
        }
    }
}
