//! Real sockets on this machine's loopback.

use super::*;
use crate::desk::IN_FLIGHT_MAX;
use crate::fixture::{APP, Ask, NETWORK, Z, members, read_whole, scope_of};
use crate::records::rtype;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(5);

/// A listener with 30 containers, and its two addresses.
struct Served {
    listener: Listener,
    counters: Arc<Counters>,
    scope: watch::Sender<Arc<Scope>>,
    udp: SocketAddr,
    tcp: SocketAddr,
}

fn serve(forwarder: Forwarder) -> Served {
    serve_within(Limits::default(), forwarder)
}

fn serve_within(limits: Limits, forwarder: Forwarder) -> Served {
    let sockets = Sockets {
        udp: std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        tcp: std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
    };
    let (udp, tcp) = (sockets.udp.local_addr().unwrap(), sockets.tcp.local_addr().unwrap());
    let (scope, receiver) = watch::channel(Arc::new(scope_of(&members("web", 30))));
    let counters = Arc::new(Counters::default());
    let listener =
        Listener::serve(sockets, receiver, Service { forwarder, counters: Arc::clone(&counters), limits })
            .unwrap();
    Served { listener, counters, scope, udp, tcp }
}

impl Served {
    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        self.counters.each(&mut |name, labels, value| {
            let labels: Vec<_> = labels.iter().map(|(_, value)| *value).collect();
            counts.insert(format!("{name} {}", labels.join(" ")), value);
        });
        counts
    }
}

/// An upstream that answers each query with what `replies` makes of it, by UDP and TCP on one port.
async fn upstream(replies: fn(&[u8]) -> Vec<Vec<u8>>) -> SocketAddr {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut query).await {
            for reply in replies(&query[..length]) {
                udp.send_to(&reply, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            for reply in replies(&receive_framed(&mut stream).await.unwrap()) {
                stream.write_all(&stream::framed(&reply)).await.unwrap();
            }
        }
    });
    address
}

/// The query as a response, with other flags.
fn response(query: &[u8], flags: u8, more_flags: u8) -> Vec<u8> {
    let mut reply = query.to_vec();
    (reply[2], reply[3]) = (query[2] | 0x80 | flags, more_flags);
    reply
}

fn forwarder(upstreams: &[SocketAddr]) -> Forwarder {
    Forwarder::new(watch::channel(upstreams.to_vec()).1)
}

async fn ask_by_datagram(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut reply = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut reply)).await.unwrap().unwrap();
    reply.truncate(length);
    reply
}

/// `None` when the server closed the connection.
async fn receive_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let receive = async {
        let mut reply = vec![0; usize::from(stream.read_u16().await.ok()?)];
        stream.read_exact(&mut reply).await.ok()?;
        Some(reply)
    };
    timeout(PATIENCE, receive).await.unwrap()
}

fn own_name() -> Vec<u8> {
    Ask::new(&format!("{APP}.{NETWORK}.{Z}"), rtype::A).bytes()
}

fn other_name() -> Vec<u8> {
    Ask { edns: Some((1232, 0, false)), ..Ask::new("Example.org", rtype::A) }.bytes()
}

#[tokio::test]
async fn queries_are_answered_and_counted() {
    let served = serve(Forwarder::none());
    let reply = read_whole(&ask_by_datagram(served.udp, &own_name()).await);
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (24, true));
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    stream.write_all(&stream::framed(&own_name())).await.unwrap();
    assert_eq!(read_whole(&receive_framed(&mut stream).await.unwrap()).answers.len(), 30);
    let reply = read_whole(&ask_by_datagram(served.udp, &other_name()).await);
    assert_eq!(u16::from(reply.metadata.response_code), 2, "there is no upstream");
    // The next query sees the next scope.
    served.scope.send(Arc::new(scope_of(&members("web", 3)))).unwrap();
    assert_eq!(read_whole(&ask_by_datagram(served.udp, &own_name()).await).answers.len(), 3);
    let counts = served.counts();
    let count = |key: &str| counts.get(&key.replace("PN", NETWORK)).copied();
    assert_eq!(count("dns_queries_total PN NOERROR udp"), Some(2));
    assert_eq!(count("dns_queries_total PN NOERROR tcp"), Some(1));
    assert_eq!(count("dns_queries_total PN SERVFAIL udp"), Some(1));
    assert_eq!(count("dns_forwarded_total failed"), Some(1));
    assert_eq!(served.counters.durations().buckets.last().map(|bucket| bucket.1), Some(4));
}

#[tokio::test]
async fn a_lost_scope_sender_changes_nothing() {
    let Served { listener: _listener, scope, udp, .. } = serve(Forwarder::none());
    drop(scope);
    assert_eq!(read_whole(&ask_by_datagram(udp, &own_name()).await).answers.len(), 24);
}

#[tokio::test]
async fn other_names_come_from_upstream_byte_for_byte() {
    let truncated = upstream(|query| vec![response(query, 2, 0x83)]).await;
    let served = serve(forwarder(&[truncated]));
    let expected = response(&other_name(), 2, 0x83);
    assert_eq!(ask_by_datagram(served.udp, &other_name()).await, expected);
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    stream.write_all(&stream::framed(&other_name())).await.unwrap();
    assert_eq!(receive_framed(&mut stream).await, Some(expected));
    assert_eq!(served.counts()["dns_forwarded_total answered"], 2);
}

#[tokio::test]
async fn forged_replies_are_passed_over() {
    let forged = |query: &[u8]| {
        let mut other_id = response(query, 0, 0x80);
        other_id[0] ^= 1;
        let mut other_name = response(query, 0, 0x80);
        other_name[13] ^= 1;
        vec![other_id, other_name, query.to_vec(), vec![7; 3], response(query, 0, 0x85)]
    };
    // The true reply is REFUSED: it is the last resort when nobody knows better, and kept.
    let served = serve(forwarder(&[upstream(forged).await]));
    assert_eq!(ask_by_datagram(served.udp, &other_name()).await, response(&other_name(), 0, 0x85));
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_fails() {
    let refuses = upstream(|query| vec![response(query, 0, 0x85)]).await;
    let works = upstream(|query| vec![response(query, 0, 0x80)]).await;
    // Nobody listens on the discard port of this address.
    let closed = SocketAddr::from(([127, 0, 0, 1], 9));
    let served = serve(forwarder(&[closed, refuses, works]));
    assert_eq!(ask_by_datagram(served.udp, &other_name()).await, response(&other_name(), 0, 0x80));
}

#[tokio::test]
async fn silent_upstreams_hold_up_nobody_else() {
    let silent = upstream(|_| Vec::new()).await;
    let served = serve(forwarder(&[silent; 3]));
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(served.udp).await.unwrap();
    let started = Instant::now();
    for _ in 0..IN_FLIGHT_MAX + 1 {
        client.send(&other_name()).await.unwrap();
        // Loopback delivers at once, but the kernel's queue is short.
        tokio::task::yield_now().await;
    }
    let mut reply = [0; 512];
    let mut receive = async || {
        let length = timeout(PATIENCE, client.recv(&mut reply)).await.unwrap().unwrap();
        assert_eq!(u16::from(read_whole(&reply[..length]).metadata.response_code), 2);
    };
    receive().await;
    assert!(started.elapsed() < Duration::from_secs(1), "one too many is refused at once");
    assert_eq!(served.counts()["dns_forwarded_total busy"], 1);
    assert_eq!(read_whole(&ask_by_datagram(served.udp, &own_name()).await).answers.len(), 24);
    assert!(started.elapsed() < Duration::from_secs(1), "our own names do not wait");
    for _ in 0..IN_FLIGHT_MAX {
        receive().await;
    }
    let took = started.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_millis(4800)).contains(&took), "{took:?}");
    assert_eq!(served.counts()["dns_forwarded_total failed"], IN_FLIGHT_MAX as u64);
}

#[tokio::test]
async fn pipelined_queries_are_all_answered_after_half_a_close() {
    let slow = upstream(|query| {
        let reply = response(query, 0, 0x80);
        vec![reply]
    })
    .await;
    let served = serve(forwarder(&[slow]));
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    let queries: Vec<u8> = [other_name(), own_name(), vec![1, 2, 3], own_name()]
        .iter()
        .enumerate()
        .flat_map(|(n, query)| {
            let mut query = query.clone();
            query[0] = n as u8;
            stream::framed(&query)
        })
        .collect();
    // In three pieces, cut in a length and in a message.
    for piece in [&queries[..1], &queries[1..90], &queries[90..]] {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    while let Some(reply) = receive_framed(&mut stream).await {
        ids.push(reply[0]);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 3]);
    assert_eq!(served.counts()["dns_dropped_total short"], 1);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_not_waited_for() {
    let served = serve(Forwarder::none());
    served.scope.send(Arc::new(scope_of(&members("web", 1022)))).unwrap();
    let mut greedy = TcpStream::connect(served.tcp).await.unwrap();
    // 1,000 queries for 16 MB of replies: the connection's buffers are soon full.
    let queries = stream::framed(&own_name()).repeat(1000);
    greedy.write_all(&queries).await.unwrap();
    let mut modest = TcpStream::connect(served.tcp).await.unwrap();
    modest.write_all(&stream::framed(&own_name())).await.unwrap();
    assert_eq!(read_whole(&receive_framed(&mut modest).await.unwrap()).answers.len(), 1022);
}

#[tokio::test]
async fn idle_connections_make_room() {
    let served = serve(Forwarder::none());
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(served.tcp).await.unwrap();
        stream.write_all(&stream::framed(&own_name())).await.unwrap();
        assert!(receive_framed(&mut stream).await.is_some());
        streams.push(stream);
        // Idleness is told apart by the millisecond.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let written = stream.write_all(&stream::framed(&own_name())).await;
        let answered = written.is_ok() && receive_framed(stream).await.is_some();
        assert_eq!(answered, n >= 4, "connection {n}: sixteen stay, the idlest go");
    }
}

#[tokio::test]
async fn a_query_that_does_not_end_is_given_up() {
    let served = serve(Forwarder::none());
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    let started = Instant::now();
    // A byte now and then does not buy more time.
    for byte in 0..20 {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(receive_framed(&mut stream).await, None);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn closing_closes_every_socket() {
    let silent = upstream(|_| Vec::new()).await;
    let served = serve(forwarder(&[silent]));
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    stream.write_all(&stream::framed(&own_name())).await.unwrap();
    receive_framed(&mut stream).await.unwrap();
    // A relay is waiting on each transport.
    stream.write_all(&stream::framed(&other_name())).await.unwrap();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.send_to(&other_name(), served.udp).await.unwrap();
    ask_by_datagram(served.udp, &own_name()).await;
    timeout(PATIENCE, served.listener.close()).await.unwrap();
    std::net::UdpSocket::bind(served.udp).unwrap();
    assert!(TcpStream::connect(served.tcp).await.is_err());
    assert_eq!(receive_framed(&mut stream).await, None);
}

#[tokio::test]
async fn a_crowd_of_datagrams_is_answered_whole() {
    let served = serve(Forwarder::none());
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.connect(served.udp).await.unwrap();
    let mut query = own_name();
    // The server shares this thread: all queries wait before it reads the first.
    client.writable().await.unwrap();
    for id in 0..100_u16 {
        query[..2].copy_from_slice(&id.to_be_bytes());
        client.try_send(&query).unwrap();
    }
    client.try_send(b"short").unwrap();
    let mut reply = [0; 512];
    for id in 0..100_u16 {
        let length = timeout(PATIENCE, client.recv(&mut reply)).await.unwrap().unwrap();
        assert_eq!((&reply[..2], length > 400), (&id.to_be_bytes()[..], true), "query {id}");
    }
    assert_eq!(served.counts()["dns_dropped_total short"], 1);
}

#[tokio::test]
async fn who_asks_too_much_waits_by_either_transport() {
    const PER_S: u32 = 1000;
    let served = serve_within(Limits::per_container(PER_S), Forwarder::none());
    let started = Instant::now();
    let mut stream = TcpStream::connect(served.tcp).await.unwrap();
    stream.write_all(&stream::framed(&own_name()).repeat(300)).await.unwrap();
    for _ in 0..300 {
        receive_framed(&mut stream).await.unwrap();
    }
    ask_by_datagram(served.udp, &own_name()).await;
    // 301 queries less the 100 ms that are saved up.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(150), "{took:?}");
}

#[tokio::test]
async fn a_host_without_room_ends_new_connections_only() {
    let limits = Limits::default();
    let served = serve_within(limits.clone(), Forwarder::none());
    let mut early = TcpStream::connect(served.tcp).await.unwrap();
    early.write_all(&stream::framed(&own_name())).await.unwrap();
    assert!(receive_framed(&mut early).await.is_some());
    let all = limits.connections.available_permits();
    let taken = limits.connections.try_acquire_many(all as u32).unwrap();
    let mut late = TcpStream::connect(served.tcp).await.unwrap();
    assert_eq!(receive_framed(&mut late).await, None);
    early.write_all(&stream::framed(&own_name())).await.unwrap();
    assert!(receive_framed(&mut early).await.is_some());
    drop(taken);
    let mut again = TcpStream::connect(served.tcp).await.unwrap();
    again.write_all(&stream::framed(&own_name())).await.unwrap();
    assert!(receive_framed(&mut again).await.is_some());
}
