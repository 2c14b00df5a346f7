//! The members of a lost journal: their interfaces, in whatever namespace of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

use crate::kernel::Found;
use crate::netlink::socket::Rtnl;
use crate::netlink::wireguard::{Wireguard, group};
use crate::netns;
use crate::state::{Key, NetnsRef};

/// Looks into every namespace that is mounted or that a process is in. One that ends meanwhile, or
/// cannot be entered, has no member of ours that could be kept.
pub(crate) fn find(wireguard: &Wireguard, members: &BTreeMap<String, Key>) -> Vec<Found> {
    if members.is_empty() {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    // A mount outlives its processes: it is the better name.
    for path in mounted().into_iter().chain(of_processes()) {
        let Ok(namespace) = netns::open(&path) else { continue };
        let Ok(inode) = rustix::fs::fstat(&namespace).map(|stat| stat.st_ino) else { continue };
        if seen.insert(inode)
            && let Ok(Ok(here)) = netns::enter(namespace.as_fd(), || look(wireguard, &path, inode, members))
        {
            found.extend(here);
        }
    }
    found
}

fn look(
    wireguard: &Wireguard,
    path: &std::path::Path,
    inode: u64,
    members: &BTreeMap<String, Key>,
) -> io::Result<Vec<Found>> {
    let netns = NetnsRef { path: path.to_owned(), cookie: netns::cookie()? };
    let mut route = Rtnl::here()?;
    let mut found = Vec::new();
    for (ifname, link) in route.links()? {
        let marked = members.iter().find(|(member, _)| link.group == group(member));
        let Some((member, key)) = marked else { continue };
        let private_key = wireguard.private_key(member, &link)?;
        if let Some(private_key) = private_key.filter(|private_key| private_key.public() == *key) {
            let (member, netns) = (member.clone(), netns.clone());
            let subnet = subnet(&mut route, link.index)?;
            found.push(Found { member, netns, inode, ifname, private_key, subnet });
        }
    }
    Ok(found)
}

/// Where our IPv4 route through the link leads.
fn subnet(route: &mut Rtnl, link: u32) -> io::Result<Option<Ipv4Net>> {
    let ours = route.routes()?.into_iter().filter(|route| route.ours && route.index == Some(link));
    Ok(ours.filter(|route| !route.unreachable).find_map(|route| match route.destination {
        IpNet::V4(subnet) => Some(subnet),
        IpNet::V6(_) => None,
    }))
}

fn mounted() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(mounted_namespace).collect()
}

/// proc(5): `id parent major:minor root mount-point …`, the root of a network namespace `net:[inode]`.
fn mounted_namespace(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(3);
    let is_namespace = fields.next()?.starts_with("net:[");
    is_namespace.then(|| fields.next().map(unescape))?
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut bytes: Vec<u8> = parts.next().unwrap_or_default().into();
    for part in parts {
        let digits = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[3..]);
            }
            None => bytes.extend(part.as_bytes()),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn of_processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let mut paths: Vec<PathBuf> = processes.map(|process| process.path().join("ns/net")).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_read_off() {
        let cases = [
            (
                "412 25 0:4 net:[4026532281] /run/netns/a\\040b rw shared:1 - nsfs nsfs rw",
                Some("/run/netns/a b"),
            ),
            ("413 25 0:4 mnt:[4026532282] /run/x rw - nsfs nsfs rw", None),
            ("25 1 8:1 / / rw - ext4 /dev/sda1 rw", None),
            ("", None),
        ];
        for (line, path) in cases {
            assert_eq!(mounted_namespace(line), path.map(PathBuf::from), "{line}");
        }
    }
}
