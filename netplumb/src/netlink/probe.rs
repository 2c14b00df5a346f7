//! What this host can do, and what a caller points at.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::engine::{Framing, open_tun};
use crate::error::Error;
use crate::kernel::{Container, NetnsSource, Problem};
use crate::netlink::link::BRIDGE;
use crate::netlink::socket::Rtnl;
use crate::netlink::wireguard::{Wireguard, kernel_has_wireguard};
use crate::netlink::{inside, nft};
use crate::netns::{self, Namespaces};
use crate::state::{Mac, NetnsRef, Vtep};

/// What this host lacks, found out in a namespace that ends at once.
pub(crate) fn problems(namespaces: &Namespaces, wireguard: &Wireguard, nf_tables: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut fatal = |what: String| problems.push(Problem { what, fatal: true });
    if let Err(error) = fs::create_dir_all(&namespaces.directory) {
        fatal(format!("{} cannot be made ({error}): set `run_dir`", namespaces.directory.display()));
    }
    match netns::scratch(|| tried(wireguard, nf_tables)) {
        Ok(found) => problems.extend(found),
        Err(error) => fatal(Error::kernel("make a network namespace", error).to_string()),
    }
    problems
}

/// Makes one of everything in the calling thread's namespace.
fn tried(wireguard: &Wireguard, nf_tables: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |fatal: bool, error: Error| problems.push(Problem { what: error.to_string(), fatal });
    if let Err(error) = netns::cookie() {
        report(true, Error::kernel("read SO_NETNS_COOKIE (Linux 5.14)", error));
    }
    if let Err(error) = links() {
        report(true, error);
    }
    if let (Wireguard::Userspace(_), Err(error)) = (wireguard, open_tun("probe-tun", Framing::Large)) {
        report(true, Error::NoTun(error));
    }
    if !nf_tables {
        report(false, nft::NftError::Unsupported(io::ErrorKind::Unsupported.into()).into());
    }
    problems
}

/// Something a kernel can do or not, by the name of its module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// What happened when it was tried; None where it is there.
    pub missing: Option<String>,
}

/// What the kernel can do, tried in a namespace that ends at once.
pub fn survey() -> Vec<Feature> {
    let feature =
        |name, tried: Result<(), Error>| Feature { name, missing: tried.err().map(|e| e.to_string()) };
    let tried = netns::scratch(|| {
        let cookie = netns::cookie().map(drop).map_err(|error| Error::kernel("read SO_NETNS_COOKIE", error));
        let tun = open_tun("probe-tun", Framing::Large).map(drop).map_err(Error::NoTun);
        let unsupported = || nft::NftError::Unsupported(io::ErrorKind::Unsupported.into()).into();
        let guard = if nft::supported() { Ok(()) } else { Err(unsupported()) };
        vec![
            feature("namespaces", cookie),
            feature("vxlan", links()),
            feature("nf_tables", guard),
            feature("tun", tun),
        ]
    });
    let mut features = tried.unwrap_or_else(|error| {
        vec![feature("namespaces", Err(Error::kernel("make a network namespace", error)))]
    });
    let wireguard = if kernel_has_wireguard() { Ok(()) } else { Err(Error::NoWireguard) };
    features.push(feature("wireguard", wireguard));
    features
}

fn links() -> Result<(), Error> {
    let here = netns::current().map_err(|error| Error::kernel("open a network namespace", error))?;
    let mut route = Rtnl::here().map_err(|error| Error::kernel("open a netlink socket", error))?;
    route.bridge(1500).map_err(|error| Error::kernel(format!("make a bridge like {BRIDGE}"), error))?;
    let veth = route.create_veth("probe", here.as_fd(), Mac([2, 0, 0, 0, 0, 1]), 1500);
    veth.map_err(|error| Error::kernel("make a veth", error))?;
    let local = Vtep { address: Ipv4Net::default().addr().into(), port: 4789 };
    match route.create_vxlan(here.as_fd(), 1, local, 1450) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::NoVxlan),
        result => result.map_err(|error| Error::kernel("make a VXLAN device", error)),
    }
}

/// Takes hold of what `source` names, makes sure that it is what the caller meant, and looks inside.
pub(crate) fn identify(source: &NetnsSource, host: u64, nf_tables: bool) -> Result<Container, Error> {
    let (path, netns) = match source {
        NetnsSource::Path(path) => (path.clone(), netns::open(path)?),
        NetnsSource::Pid { pid, inode } => of_process(*pid, *inode)?,
    };
    let inode = inode(&netns, &path)?;
    let survey = || {
        let cookie = netns::cookie()?;
        let own = cookie == host || fs::metadata("/proc/1/ns/net").is_ok_and(|init| init.ino() == inode);
        inside::survey(NetnsRef { path: path.clone(), cookie }, inode, own, nf_tables)
    };
    let seen = netns::enter(netns.as_fd(), survey).map_err(|error| netns::entering(&path, error))?;
    seen.map_err(|error| Error::kernel(format!("look into {}", path.display()), error))
}

/// A pid can be given to another process at any moment: a pidfd cannot, and if its process is still
/// alive after the namespace was opened, the namespace was that process's.
fn of_process(pid: u32, inode_wanted: Option<u64>) -> Result<(PathBuf, OwnedFd), Error> {
    let gone = || Error::ProcessGone(pid);
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let handle = pidfd_open(process, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => gone(),
        _ => Error::kernel(format!("take hold of process {pid}"), error.into()),
    })?;
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let netns = match netns::open(&path) {
        Err(Error::NetnsGone(_)) => return Err(gone()),
        result => result?,
    };
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    let waited = poll(&mut ended, Some(&rustix::event::Timespec::default()));
    if waited.map_err(|error| Error::kernel(format!("watch process {pid}"), error.into()))? > 0 {
        return Err(gone());
    }
    if inode_wanted.is_some_and(|wanted| inode(&netns, &path).is_ok_and(|found| found != wanted)) {
        return Err(Error::NetnsRecycled(path));
    }
    Ok((path, netns))
}

fn inode(netns: &OwnedFd, path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(netns);
    Ok(stat.map_err(|error| Error::kernel(format!("look at {}", path.display()), error.into()))?.st_ino)
}
