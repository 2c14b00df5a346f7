//! A process that has no descriptor left; alone in its test binary, because the limit is the whole process's.

use ipnet::Ipv4Net;
use resolver::{Answers, Counters, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

const DESCRIPTORS: u64 = 64;
const WAIT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn without_descriptors_nothing_spins_and_connections_wait() {
    let subnet: Ipv4Net = "10.240.0.0/22".parse().unwrap();
    let zone = Zone::build("pn-1", "private-network.internal", 30, 1, subnet, &[]).unwrap();
    let answers = Answers::Zones(vec![Arc::new(zone)]);
    let scope = Scope::new("private-network.internal", Ipv4Addr::LOCALHOST, answers, false).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = tcp.local_addr().unwrap();
    let scope = tokio::sync::watch::channel(Arc::new(scope)).1;
    let service = Service {
        forwarder: Forwarder::none(),
        counters: Arc::new(Counters::default()),
        limits: Limits::default(),
    };
    let _listener = Listener::serve(Sockets { udp, tcp }, scope, service).unwrap();

    // The kernel accepts; we cannot. This runtime has one thread, so its CPU time is ours.
    let mut client = TcpStream::connect(address).unwrap();
    let mut schedstat = File::open("/proc/thread-self/schedstat").unwrap();
    let mut cpu = || -> Duration {
        let mut text = String::new();
        schedstat.rewind().unwrap();
        schedstat.read_to_string(&mut text).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), ..getrlimit(Resource::Nofile) })
        .unwrap();
    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty());
    let before = cpu();
    tokio::time::sleep(WAIT).await;
    let used = cpu() - before;
    assert!(used < WAIT / 10, "{used:?} of CPU in {WAIT:?}");

    drop(hoard);
    // The zone's SOA, behind its length.
    let question = b"\0\x2a\0\0\0\0\0\x01\0\0\0\0\0\0\x0fprivate-network\x08internal\0\0\x06\0\x01";
    client.write_all(question).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut client = tokio::net::TcpStream::from_std(client).unwrap();
    let mut length = [0; 2];
    let read = tokio::io::AsyncReadExt::read_exact(&mut client, &mut length);
    tokio::time::timeout(WAIT, read).await.unwrap().unwrap();
    assert!(u16::from_be_bytes(length) > 42, "a question and its answer");
}
