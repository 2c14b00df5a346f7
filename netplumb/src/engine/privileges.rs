//! Rights that the engine has no use for: its descriptors were opened by the agent.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;

/// Takes everything from the calling thread, and from threads it starts: capabilities, the way to get new ones, its
/// user and groups, the file system, and being looked into by others of that user, for it knows private keys. To be
/// called while there is no other thread. `empty` is the path of a directory that is made and removed: the root
/// directory of this process from then on, in which nothing can ever be.
///
/// # Errors
/// The kernel refuses what it grants to root. Who is not root keeps its user and its root directory.
pub fn drop_all(empty: &Path) -> io::Result<()> {
    raise_descriptors()?;
    let root = rustix::process::geteuid().is_root();
    if root {
        enter_nowhere(empty)?;
    }
    set_no_new_privs(true)?;
    for capability in CapabilitySet::all() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know; or, not being root, there is nothing to take.
            Err(Errno::INVAL | Errno::PERM) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if root {
        become_nobody()?;
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Allows this process as many descriptors as it may have: there are several for each member.
///
/// # Errors
/// None that Linux knows.
pub fn raise_descriptors() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn enter_nowhere(empty: &Path) -> io::Result<()> {
    match fs::create_dir(empty) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    rustix::process::chdir(empty)?;
    fs::remove_dir(empty)?;
    Ok(rustix::process::chroot(".")?)
}

/// In a user namespace that does not know `nobody` the user stays: without capabilities it owns nothing there either.
fn become_nobody() -> io::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let changed = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(group, group, group))
        .and_then(|()| set_thread_res_uid(user, user, user));
    match changed {
        Err(Errno::INVAL | Errno::PERM) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
