//! A stub resolver: one query, one answer, over UDP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::netns::Netns;
use crate::wait;

/// The name server containers are told.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 240, 0, 53), 53);

/// What a name server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response code.
    pub code: ResponseCode,
    /// The addresses, in the order given.
    pub addresses: Vec<IpAddr>,
    /// The names pointed to.
    pub names: Vec<String>,
}

/// Asks [`SERVER`] from the calling thread's namespace.
///
/// Errors: nobody listens, no answer within `bound`, or none that can be read.
pub fn lookup(name: &str, kind: RecordType, bound: Duration) -> io::Result<Answer> {
    lookup_at(SERVER, name, kind, bound)
}

/// Asks another name server in the same way.
pub fn lookup_at(server: SocketAddrV4, name: &str, kind: RecordType, bound: Duration) -> io::Result<Answer> {
    let invalid = |e: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let name = Name::from_str(name)
        .map_err(|e| invalid(&e))?
        .append_domain(&Name::root())
        .map_err(|e| invalid(&e))?;
    let id = name.num_labels().into();
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(bound))?;
    socket.connect(server)?;
    socket.send(&query.to_vec().map_err(|e| invalid(&e))?)?;
    let mut buffer = [0; 65_536];
    let length = socket.recv(&mut buffer)?;
    let reply = Message::from_vec(&buffer[..length]).map_err(|e| invalid(&e))?;
    let data = || reply.answers.iter().map(|record| &record.data);
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(a) => Some(a.0.into()),
        _ => None,
    };
    let pointed = |data: &RData| match data {
        RData::PTR(ptr) => Some(ptr.0.to_utf8().trim_end_matches('.').to_owned()),
        _ => None,
    };
    Ok(Answer {
        code: reply.metadata.response_code,
        addresses: data().filter_map(address).collect(),
        names: data().filter_map(pointed).collect(),
    })
}

/// Looks a name up over and over until stopped, and keeps every answer.
pub struct Poll {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Result<Answer, String>>>,
}

impl Poll {
    /// Asks for `name`'s IPv4 addresses from `netns` 25 times a second.
    pub fn start(netns: &Netns, name: &str) -> Poll {
        let (netns, name, stop) = (netns.clone(), name.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            netns.enter_for_good().expect("the container is there");
            let mut answers = Vec::new();
            wait::paced(Duration::from_millis(40), || {
                let answer = lookup(&name, RecordType::A, Duration::from_secs(2));
                answers.push(answer.map_err(|e| e.to_string()));
                !stopped.load(Ordering::Relaxed)
            });
            answers
        });
        Poll { stop, thread }
    }

    /// Asks 50 times a second, whether or not the last queries were answered, each with a socket of its own and as
    /// patient as the stub resolvers of libcs are.
    pub fn dense(netns: &Netns, name: &str) -> Poll {
        let (netns, name, stop) = (netns.clone(), name.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let ask = move || {
            netns.enter_for_good().map_err(|e| e.to_string())?;
            lookup(&name, RecordType::A, Duration::from_secs(10)).map_err(|e| e.to_string())
        };
        let thread = std::thread::spawn(move || {
            let mut asking = Vec::new();
            wait::paced(Duration::from_millis(20), || {
                asking.push(std::thread::spawn(ask.clone()));
                !stopped.load(Ordering::Relaxed)
            });
            asking.into_iter().map(|query| query.join().expect("lookups do not panic")).collect()
        });
        Poll { stop, thread }
    }

    /// Every answer or error, in order.
    #[track_caller]
    pub fn stop(self) -> Vec<Result<Answer, String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("lookups do not panic")
    }
}
