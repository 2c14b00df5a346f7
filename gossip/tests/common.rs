//! What the tests of this crate share: a throw-away CA, hosts, and waiting for a condition.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::quic::{Quic, QuicError};
use gossip::record::{HostRecord, MemberRecord, MemberState, PublicKey, Record};
use gossip::{Arrival, Ask, Config, Gossip, Identity, JoinError, KnownHost, Standing, Timings, View};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

pub const REGION: &str = "osc-fr1";
pub const INTERVAL: Duration = Duration::from_millis(100);
pub const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";

/// A region CA and the directory its files are in.
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    issued: AtomicU32,
}

/// The three files of an identity.
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn load(&self) -> Identity {
        Identity::load(&self.ca, &self.cert, &self.key).unwrap()
    }
}

impl Authority {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key), issued: AtomicU32::new(0) }
    }

    /// A host certificate as `warren region issue` makes it, after `change`.
    pub fn issue(&self, region: &str, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["warren.internal".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI(format!("warren://{region}/{host}").try_into().unwrap()));
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let files = Files {
            ca: self.dir.path().join("ca.pem"),
            cert: self.dir.path().join(format!("{number}-{host}.pem")),
            key: self.dir.path().join(format!("{number}-{host}.key")),
        };
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    pub fn identity(&self, host: &str) -> Identity {
        self.issue(REGION, host, |_| ()).load()
    }
}

/// A free loopback address.
pub fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Binds, as soon as who was there before has let go.
pub async fn bind(at: SocketAddr, identity: &Identity) -> Quic {
    let started = Instant::now();
    loop {
        match Quic::bind(at, at, identity).await {
            Ok(wire) => return wire,
            Err(QuicError::Bind { .. }) if started.elapsed() < Duration::from_secs(5) => {
                sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn host_id(name: &str) -> HostId {
    name.parse().unwrap()
}

pub fn host_record(name: &str) -> Record {
    let vtep = (Ipv4Addr::LOCALHOST, 4789).into();
    Record::Host(HostRecord { counter: 1, ..HostRecord::new(host_id(name), vtep, 1500) })
}

/// A member told apart by its number.
pub fn member(number: u32) -> Record {
    let id: MemberId = format!("{number:016x}").parse().unwrap();
    let network: NetworkId = NETWORK.parse().unwrap();
    let record = MemberRecord {
        counter: number.into(),
        state: MemberState::Ready,
        app: "ap-0f2bd1c4-5a4e-4a43-9d7e-6f6a3b2c1d0e".parse().unwrap(),
        process: "web".parse().unwrap(),
        ordinal: None,
        ordinal_chosen: false,
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 240, 0, 0).to_bits() + number),
        address6: None,
        key: PublicKey([7; 32]),
        ports: Vec::new(),
        unknown: Default::default(),
    };
    Record::Member(network, id, record)
}

pub fn config(host: &str, address: SocketAddr, seeds: &[SocketAddr]) -> Config {
    Config {
        region: REGION.parse().unwrap(),
        host: host_id(host),
        listen: address,
        advertise: address,
        seeds: seeds.iter().map(SocketAddr::to_string).collect(),
        interval: INTERVAL,
        known: Vec::new(),
        generation_floor: 0,
        timings: Timings::of(INTERVAL),
        eager: true,
        plain_digests: false,
        parsed: Default::default(),
        now_ns: std::sync::Arc::new(gossip::unix_ns),
    }
}

/// A host of a region on real QUIC.
pub struct Node {
    pub gossip: Gossip,
    pub asks: mpsc::Receiver<Ask>,
    pub address: SocketAddr,
}

impl Node {
    pub async fn join(
        identity: &Identity,
        at: SocketAddr,
        seeds: &[SocketAddr],
        known: Vec<KnownHost>,
    ) -> Result<Self, JoinError> {
        use gossip::Wire as _;
        let wire = bind(at, identity).await;
        let (host, address) = (identity.host.as_str(), wire.advertise());
        let config = Config { known, ..config(host, address, seeds) };
        let records = vec![host_record(host)];
        let (gossip, asks) = Arrival::at(config, wire).await?.join(records, |_| Ok(())).await?;
        Ok(Self { gossip, asks, address })
    }

    pub async fn start(identity: &Identity, seeds: &[SocketAddr]) -> Self {
        Self::join(identity, anywhere(), seeds, Vec::new()).await.unwrap()
    }

    pub fn view(&self) -> std::sync::Arc<View> {
        self.gossip.view().borrow().clone()
    }

    pub fn standing(&self, host: &str) -> Option<Standing> {
        self.view().hosts.get(&host_id(host)).map(|host| host.standing)
    }

    pub fn answering(&self) -> usize {
        self.view().answering().count()
    }

    pub fn rejected(&self, reason: &str) -> u64 {
        self.gossip.counters().get("gossip_rejected_total", &[("reason", reason)])
    }
}

/// Waits for a condition; the bound is for machines with much else to do.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(15), "not within 15 s: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
