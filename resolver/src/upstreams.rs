//! The host's own name servers, from its resolv.conf.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

const DNS_PORT: u16 = 53;
/// How often the file is looked at.
const RECHECK: Duration = Duration::from_secs(5);

/// The name servers in `resolv_conf`, in its order (resolv.conf(5)). Our own addresses (127.240.0.0/16) are left
/// out: a query sent there would come back for ever.
///
/// # Errors
/// The file cannot be read.
pub fn system_upstreams(resolv_conf: &Path) -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&String::from_utf8_lossy(&std::fs::read(resolv_conf)?)))
}

/// Keeps `upstreams` as `resolv_conf` says, until every receiver is gone. While the file cannot be read, the last
/// servers stay.
pub async fn follow_upstreams(resolv_conf: PathBuf, upstreams: watch::Sender<Vec<SocketAddr>>) {
    let mut seen = None;
    loop {
        let stamp = stamp(&resolv_conf);
        if stamp.is_some() && stamp != seen {
            match system_upstreams(&resolv_conf) {
                Ok(read) => {
                    seen = stamp;
                    publish(&upstreams, read);
                }
                Err(error) => tracing::warn!(path = %resolv_conf.display(), %error, "name servers unknown"),
            }
        }
        tokio::select! {
            () = upstreams.closed() => return,
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

fn publish(upstreams: &watch::Sender<Vec<SocketAddr>>, read: Vec<SocketAddr>) {
    upstreams.send_if_modified(|current| {
        let changed = *current != read;
        if changed {
            tracing::info!(servers = ?read, "upstream name servers");
            *current = read;
        }
        changed
    });
}

/// Tells one content from the next: the file is replaced by some and rewritten in place by others.
fn stamp(path: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let server = match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => parse_server(address),
            _ => None,
        };
        servers.extend(server.filter(|server| !is_ours(server.ip()) && !servers.contains(server)));
    }
    servers
}

/// An address, an IPv6 one with its interface's number if it is link-local (`fe80::1%2`).
fn parse_server(address: &str) -> Option<SocketAddr> {
    match address.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, DNS_PORT)),
        Err(_) => format!("[{address}]:{DNS_PORT}").parse().ok(),
    }
}

fn is_ours(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets()[..2] == [127, 240] || address == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_stub_resolver_reads_them() {
        let text = "# nameserver 192.0.2.9\n; nameserver 192.0.2.8\nsearch example.org\n\
                    nameserver 192.0.2.1\n nameserver\t2001:db8::1 # no comment here\nnameserver 127.240.0.53\n\
                    nameserver ::ffff:127.240.0.53\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n\
                    nameserver fe80::1%2\nnameserver nonsense\nnameserver\nnameservers 192.0.2.7\n";
        let servers: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        let expected = ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.53:53", "[fe80::1%2]:53"];
        assert_eq!(servers, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_the_file_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let (sender, mut receiver) = watch::channel(Vec::new());
        let follower = tokio::spawn(follow_upstreams(path.clone(), sender));
        for (text, expected) in
            [("nameserver 192.0.2.1\n", "192.0.2.1:53"), ("nameserver 2001:db8::1\n", "[2001:db8::1]:53")]
        {
            std::fs::write(&path, text).unwrap();
            receiver.changed().await.unwrap();
            assert_eq!(*receiver.borrow_and_update(), [expected.parse().unwrap()]);
        }
        drop(receiver);
        follower.await.unwrap();
    }
}
