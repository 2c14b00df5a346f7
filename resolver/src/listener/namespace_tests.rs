//! Listeners inside network namespaces, asked by dig: needs root, iproute2 and bind9-dnsutils.

use super::*;
use crate::fixture::{APP, NETWORK, Z, members, scope_of};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::process::{Command, Output};
use tokio::time::Instant;

const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 240, 0, 53), 61053);

/// A namespace with its loopback up, gone with the value.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Namespace {
        let namespace = Namespace(format!("warren-dns-{name}-{}", std::process::id()));
        run("ip", &["netns", "add", &namespace.0]);
        run("ip", &["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    fn open(&self) -> File {
        File::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    fn serve(&self, containers: u16) -> Listener {
        let sockets = Sockets::open(self.open().as_fd(), LISTEN).unwrap();
        let scope = watch::channel(Arc::new(scope_of(&members("worker", containers)))).1;
        let service =
            Service { forwarder: Forwarder::none(), counters: Arc::default(), limits: Limits::default() };
        Listener::serve(sockets, scope, service).unwrap()
    }

    /// Header flags, addresses and size of what dig sees.
    async fn dig(&self, options: &str) -> (String, BTreeSet<String>, usize) {
        let name = format!("worker.{APP}.{NETWORK}.{Z}");
        let mut args: Vec<String> =
            ["netns", "exec", &self.0, "dig", "@127.240.0.53", "-p", "61053", "+tries=1", &name]
                .map(str::to_owned)
                .into();
        args.extend(options.split_whitespace().map(str::to_owned));
        let output = tokio::task::spawn_blocking(move || Command::new("ip").args(args).output()).await;
        let text = String::from_utf8(output.unwrap().unwrap().stdout).unwrap();
        assert!(!text.to_lowercase().contains("malformed") && !text.contains("WARNING: Message"), "{text}");
        let field = |start: &str, end: &str| {
            let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("{start}: {text}"));
            rest.split_once(end).unwrap().0.trim().to_owned()
        };
        let addresses =
            text.lines().filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
                [_, "30", "IN", "A", address] => Some(address.to_owned()),
                _ => None,
            });
        (field(";; flags:", ";"), addresses.collect(), field("MSG SIZE  rcvd:", "\n").parse().unwrap())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test may have deleted it already.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?} (these tests need root)");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_reads_what_is_served() {
    let namespace = Namespace::new("dig");
    // Containers, options, flags, addresses, bytes. Without +ignore dig repeats a cut query over TCP.
    let cases = [
        (23, "+noedns +ignore", "qr aa rd ra", 23, 497),
        (24, "+noedns +ignore", "qr aa tc rd ra", 23, 497),
        (24, "+noedns", "qr aa rd ra", 24, 513),
        (24, "+nocookie +bufsize=512 +ignore", "qr aa tc rd ra", 23, 508),
        (68, "+bufsize=1232 +ignore", "qr aa rd ra", 68, 1228),
        (69, "+bufsize=4096 +ignore", "qr aa tc rd ra", 68, 1228),
        (69, "+bufsize=4096", "qr aa rd ra", 69, 1244),
        (1022, "+tcp +noedns", "qr aa rd ra", 1022, 16_481),
        (1022, "+tcp +norec +cd", "qr aa ra cd", 1022, 16_492),
        (1022, "", "qr aa rd ra", 1022, 16_492),
    ];
    for (containers, options, flags, addresses, bytes) in cases {
        let listener = namespace.serve(containers);
        let seen = namespace.dig(options).await;
        listener.close().await;
        assert_eq!((&seen.0[..], seen.1.len(), seen.2), (flags, addresses, bytes), "{containers} {options}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_keeps_its_port_and_we_keep_ours() {
    let namespace = Namespace::new("port");
    let listener = namespace.serve(1);
    let taken = Sockets::open(namespace.open().as_fd(), LISTEN).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    let free = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 53);
    Sockets::open(namespace.open().as_fd(), free).unwrap();
    // Nothing of ours is in the namespace we run in.
    assert!(tokio::net::TcpStream::connect(LISTEN).await.is_err());
    listener.close().await;
    Sockets::open(namespace.open().as_fd(), LISTEN).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_dies_with_its_listener() {
    // The far end of a veth pair goes when the namespace of the near end does.
    let (near, far) = (Namespace::new("near"), Namespace::new("far"));
    run(
        "ip",
        &["-n", &near.0, "link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", &far.0],
    );
    let is_alive =
        || Command::new("ip").args(["-n", &far.0, "link", "show", "far0"]).output().unwrap().status.success();
    let listener = near.serve(1);
    // An idle client inside, whose connection we have accepted.
    let mut client = Command::new("ip")
        .args(["netns", "exec", &near.0, "bash", "-c", "exec 3<>/dev/tcp/127.240.0.53/61053; read -r -u 3"])
        .spawn()
        .unwrap();
    let connections = || {
        let seen =
            run("ip", &["netns", "exec", &near.0, "ss", "-Htn", "state", "established", "sport", "61053"]);
        String::from_utf8(seen.stdout).unwrap().lines().count()
    };
    wait_for("a connection", || connections() == 1).await;
    run("ip", &["netns", "del", &near.0]);
    // With our sockets open it lives on, long after its name is gone.
    client.kill().unwrap();
    client.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(is_alive());
    drop(listener);
    wait_for("the end of the namespace", || !is_alive()).await;
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
