//! Zones that change ten times a second under load: every answer is the whole answer of a zone that was current
//! while it was asked for, and every query gets one.

use crate::{APP, NETWORK, SUFFIX, member, scope, serve, zone};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use resolver::{Zone, ZoneMember};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;
use tokio::time::MissedTickBehavior;

const CHANGES: u32 = 30;
const PERIOD: Duration = Duration::from_millis(100);
/// Longer than any query takes on a machine that is busy with other things.
const LOST: Duration = Duration::from_secs(10);

/// What is asked: its name, and how many addresses it has in each version that has it.
const ASKED: [(&str, RecordType, usize); 4] = [
    ("web", RecordType::A, 20),
    // More than a datagram holds.
    ("worker", RecordType::A, 200),
    // Only in every other version.
    ("clock", RecordType::A, 3),
    // The version itself.
    ("", RecordType::SOA, 0),
];

/// Each version has addresses of its own, `10.240.<version>.…`.
fn version(version: u32) -> Zone {
    let third = version as u8;
    let mut members: Vec<ZoneMember> = (1..=20).map(|last| member("web", third, last)).collect();
    members.extend((21..=220).map(|last| member("worker", third, last)));
    if version.is_multiple_of(2) {
        members.extend((221..=223).map(|last| member("clock", third, last)));
    }
    zone(version, &members)
}

/// Which versions may be current: announced before the change, done after it.
#[derive(Default)]
struct Versions {
    announced: AtomicU32,
    done: AtomicU32,
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    answers: usize,
    versions: BTreeSet<u32>,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_wrong_lost_or_torn_while_zones_change() {
    let served = serve(version(0));
    let versions = Arc::new(Versions::default());
    let clients =
        [Client::datagrams as fn(SocketAddr) -> Client, Client::datagrams, Client::stream].map(|new| {
            let (address, versions) = (served.address, Arc::clone(&versions));
            tokio::task::spawn_blocking(move || new(address).ask_until_the_end(&versions))
        });
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for next in 1..=CHANGES {
        ticks.tick().await;
        let scope = scope(version(next));
        versions.announced.store(next, SeqCst);
        served.scope.send_replace(scope);
        versions.done.store(next, SeqCst);
    }
    for client in clients {
        let seen = client.await.unwrap();
        assert!(seen.answers > 100, "{} answers in {:?}", seen.answers, PERIOD * CHANGES);
        assert!(seen.versions.len() > CHANGES as usize / 3, "{:?}", seen.versions);
    }
}

enum Client {
    Datagrams(UdpSocket),
    Stream(TcpStream),
}

impl Client {
    fn datagrams(server: SocketAddr) -> Client {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(LOST)).unwrap();
        Client::Datagrams(socket)
    }

    fn stream(server: SocketAddr) -> Client {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(LOST)).unwrap();
        Client::Stream(stream)
    }

    fn ask_until_the_end(mut self, versions: &Versions) -> Seen {
        let mut seen = Seen::default();
        for id in 0_u16.. {
            let (label, rtype, count) = ASKED[usize::from(id) % ASKED.len()];
            let first = versions.done.load(SeqCst);
            let reply = self.ask(&query(id, label, rtype));
            let last = versions.announced.load(SeqCst);
            assert_eq!(reply.metadata.id, id, "one query, one reply");
            let streamed = matches!(self, Client::Stream(_));
            seen.versions.insert(check(&reply, label, count, streamed, first..=last));
            seen.answers += 1;
            if first == CHANGES && id % 4 == 3 {
                break;
            }
        }
        seen
    }

    /// Asks once: a reply that does not come is a query that was lost.
    fn ask(&mut self, query: &[u8]) -> Message {
        let mut reply = vec![0; 65_535];
        let length = match self {
            Client::Datagrams(socket) => {
                socket.send(query).unwrap();
                socket.recv(&mut reply).expect("no query is lost")
            }
            Client::Stream(stream) => {
                stream.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).expect("no query is lost");
                let length = usize::from(u16::from_be_bytes(length));
                stream.read_exact(&mut reply[..length]).unwrap();
                length
            }
        };
        Message::from_vec(&reply[..length]).unwrap()
    }
}

fn query(id: u16, label: &str, rtype: RecordType) -> Vec<u8> {
    let name = match label {
        "" => format!("{NETWORK}.{SUFFIX}."),
        _ => format!("{label}.{APP}.{NETWORK}.{SUFFIX}."),
    };
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    query.to_vec().unwrap()
}

/// The version `reply` is the answer of, which must be one of `current`.
fn check(reply: &Message, label: &str, count: usize, streamed: bool, current: RangeInclusive<u32>) -> u32 {
    let soa = reply.authorities.iter().chain(&reply.answers).find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    let addresses: BTreeSet<[u8; 4]> = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0.octets()),
            _ => None,
        })
        .collect();
    let found = match addresses.first() {
        // The serial is the version.
        None => current.clone().find(|version| soa == Some(*version)),
        Some([.., third, _]) => {
            assert!(addresses.iter().all(|address| address[2] == *third), "torn: {addresses:?}");
            current.clone().find(|version| *version == u32::from(*third))
        }
    };
    let found = found.unwrap_or_else(|| panic!("{label}: of none of {current:?}: {addresses:?} {soa:?}"));
    let there = label != "clock" || found.is_multiple_of(2);
    let code = if there { ResponseCode::NoError } else { ResponseCode::NXDomain };
    assert_eq!(reply.metadata.response_code, code, "{label} in {found}");
    let fits = if streamed { count } else { count.min(23) };
    assert_eq!(addresses.len(), if there { fits } else { 0 }, "{label} in {found}");
    assert_eq!(reply.metadata.truncation, fits < count, "{label} in {found}");
    found
}
