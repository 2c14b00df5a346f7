//! A listener with sockets on loopback, as a container's is inside its namespace.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

mod churn;
mod dig;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use resolver::{
    Answers, Counters, Facts, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone, ZoneMember,
};
use tokio::sync::watch;

const SUFFIX: &str = "private-network.internal";
const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
const APP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

/// What a client meets until this is dropped.
struct Served {
    /// Of both sockets.
    address: SocketAddr,
    /// What is answered from now on.
    scope: watch::Sender<Arc<Scope>>,
    _listener: Listener,
}

/// Serves `zone`, refusing all other names, without a limit for a client. Call it within a tokio runtime.
fn serve(zone: Zone) -> Served {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).unwrap();
    let (write, read) = watch::channel(scope(zone));
    let service = Service {
        forwarder: Forwarder::none(),
        counters: Arc::new(Counters::default()),
        limits: Limits::per_container(0),
    };
    let listener = Listener::serve(Sockets { udp, tcp }, read, service).unwrap();
    Served { address, scope: write, _listener: listener }
}

/// What a container of the zone's network may see.
fn scope(zone: Zone) -> Arc<Scope> {
    let answers = Answers::Zones(vec![Arc::new(zone)]);
    Arc::new(Scope::new(SUFFIX, Ipv4Addr::new(127, 240, 0, 53), answers, false).unwrap())
}

/// The network's zone with these members.
fn zone(serial: u32, members: &[ZoneMember]) -> Zone {
    Zone::build(NETWORK, SUFFIX, 30, serial, "10.240.0.0/22".parse().unwrap(), members).unwrap()
}

/// A member of [`APP`], numbered by its address's last two bytes.
fn member(process: &str, third: u8, last: u8) -> ZoneMember {
    ZoneMember {
        app: APP.into(),
        process: process.into(),
        ordinal: Some(u32::from(third) << 8 | u32::from(last)),
        address: Ipv4Addr::new(10, 240, third, last),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    }
}
