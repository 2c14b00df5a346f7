//! The engine as a process of its own: what survives its death and its agent's. Needs root.

#![allow(clippy::unwrap_used, reason = "outside #[test] functions, too, a test panics")]

mod scratch;
#[path = "scratch/veth.rs"]
mod veth;
#[path = "scratch/wait.rs"]
mod wait;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netplumb::engine::{EngineError, Framing, Interface, PeerConfig, Process, Remote, open_tun, privileges};
use netplumb::state::{Key, PrivateKey};
use scratch::Netns;
use wait::eventually;

const SOCKET: &str = "ENGINE_SOCKET";

/// Not a test: the process that the tests start.
#[test]
#[ignore = "runs in the engine's process"]
fn engine_child() {
    let socket = PathBuf::from(std::env::var_os(SOCKET).unwrap());
    let process = Process::bind(&socket).unwrap();
    privileges::drop_all(&socket.with_extension("root")).unwrap();
    process.serve().unwrap();
}

/// A place where engines run, one after the other.
struct Place {
    dir: tempfile::TempDir,
    engines: Arc<Mutex<Vec<Child>>>,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap(), engines: Arc::default() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    fn uapi(&self) -> PathBuf {
        self.dir.path().join("wireguard")
    }

    fn agent(&self) -> Remote {
        let (socket, engines) = (self.socket(), self.engines.clone());
        let launch = move || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["engine_child", "--exact", "--ignored", "--nocapture"]).env(SOCKET, &socket);
            engines.lock().unwrap().push(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
            Ok(())
        };
        Remote::open(self.socket(), Some(self.uapi()), Box::new(launch)).unwrap()
    }

    fn kill_engine(&self) {
        let mut engine = self.engines.lock().unwrap().pop().unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
    }

    fn engine_ended(&self) -> bool {
        self.engines.lock().unwrap().last_mut().unwrap().try_wait().unwrap().is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for mut engine in self.engines.lock().unwrap().drain(..) {
            let _ = engine.kill();
            let _ = engine.wait();
        }
    }
}

/// A member whose app and binding are namespaces of their own.
struct Member {
    number: u8,
    app: Netns,
    bind: Netns,
}

impl Member {
    fn id(&self) -> String {
        format!("m{}", self.number)
    }

    fn key(&self) -> Key {
        PrivateKey([self.number; 32]).public()
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 240, 0, self.number)
    }

    fn attach(&self, agent: &Remote) {
        let (number, bind) = (self.number, &self.bind);
        let tun = bind.run(|| open_tun("wg0", Framing::Large).unwrap());
        bind.sh(&format!("ip link set wg0 netns {}", self.app.tid()));
        self.app.sh(&format!(
            "ip addr add 10.240.0.{number}/32 dev wg0; ip link set wg0 mtu 1390 up; ip route add 10.240.0.0/22 dev wg0"
        ));
        let udp: OwnedFd = bind.run(|| UdpSocket::bind("0.0.0.0:51820").unwrap()).into();
        let interface = Interface {
            tun: tun.into(),
            udp: udp.into(),
            private_key: PrivateKey([number; 32]),
            mtu: 1390,
            address: self.address(),
            address6: None,
        };
        agent.add(&self.id(), interface).unwrap();
    }

    fn knows(&self, agent: &Remote, other: &Member) {
        agent.set_peers(&self.id(), vec![other.as_peer()]).unwrap();
    }

    fn as_peer(&self) -> PeerConfig {
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, self.number), 51820);
        PeerConfig { key: self.key(), endpoint, allowed: [self.address().into()].into(), greet: false }
    }

    /// Everything there is to see of the interface.
    fn link(&self) -> String {
        self.app.sh("ip -o link show wg0; ip -o addr show wg0; ip route show dev wg0")
    }
}

/// Two members joined by a veth, one engine for both.
fn pair(agent: &Remote) -> (Member, Member) {
    let (a, b) = strangers(agent);
    a.knows(agent, &b);
    b.knows(agent, &a);
    (a, b)
}

/// As a pair, but they do not know each other.
fn strangers(agent: &Remote) -> (Member, Member) {
    let member = |number| Member { number, app: Netns::new(), bind: Netns::new() };
    let (a, b) = (member(1), member(2));
    veth::join(&a.bind, "192.0.2.1/24", &b.bind, "192.0.2.2/24");
    a.attach(agent);
    b.attach(agent);
    (a, b)
}

fn pings(from: &Member, to: &Member, count: u32) -> (bool, String) {
    from.app.try_sh(&format!("ping -n -c {count} -i 0.01 -W 5 {}", to.address()))
}

fn udp_and_name() -> (OwnedFd, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket.into(), port)
}

#[test]
fn an_agent_that_dies_is_not_missed_and_the_next_gets_everything_back() {
    let place = Place::new();
    let agent = place.agent();
    let (a, b) = pair(&agent);
    let (socket, port) = udp_and_name();
    agent.keep("dns-7", vec![socket]).unwrap();
    let (before, pid) = (a.link(), agent.facts().process.unwrap().0);
    let (ok, said) = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| pings(&a, &b, 150));
        std::thread::park_timeout(Duration::from_millis(500));
        drop(agent);
        pinging.join().unwrap()
    });
    assert!(ok && said.contains(" 0% packet loss"), "{said}");

    let next = place.agent();
    let facts = next.facts();
    assert_eq!((facts.process.unwrap().0, facts.interfaces, facts.kept, facts.replaced), (pid, 2, 1, 0));
    let back = next.interface("m1").unwrap();
    assert_eq!((back.private_key, back.mtu, back.address), (PrivateKey([1; 32]), 1390, a.address()));
    let kept = next.kept("dns-7").unwrap().unwrap().remove(0);
    assert_eq!(UdpSocket::from(kept).local_addr().unwrap().port(), port);
    assert_eq!(next.observe("m1").unwrap().unwrap().peers.keys().collect::<Vec<_>>(), [&b.key()]);
    assert_eq!(a.link(), before);

    // What it changes is changed, and what it removes is gone.
    next.set_mtu("m1", 1300).unwrap();
    next.remove_peers("m1", vec![b.key()]).unwrap();
    assert!(next.observe("m1").unwrap().unwrap().peers.is_empty());
    next.retain(&["m1"].into());
    assert!(!b.app.try_sh("ip link show wg0").0, "closed by both processes");
    assert!(next.observe("m2").unwrap().is_none());
}

#[test]
fn an_engine_that_dies_is_followed_by_one_with_the_same() {
    let place = Place::new();
    let agent = place.agent();
    let (a, b) = pair(&agent);
    let (socket, _) = udp_and_name();
    agent.keep("dns-7", vec![socket]).unwrap();
    assert!(pings(&a, &b, 2).0);
    let (before, pid) = (a.link(), agent.facts().process.unwrap().0);
    place.kill_engine();
    // The first packets wait in the TUN's queue.
    let (ok, said) = pings(&a, &b, 100);
    assert!(ok && said.contains(" 0% packet loss"), "{said}");
    let facts = agent.facts();
    assert_ne!(facts.process.unwrap().0, pid);
    assert_eq!((facts.interfaces, facts.kept, facts.replaced), (2, 1, 1));
    assert_eq!(a.link(), before);
    assert_eq!(agent.observe("m1").unwrap().unwrap().peers.len(), 1);
    drop(agent);
    assert_eq!(place.agent().facts().kept, 1, "the second engine holds the DNS sockets, too");
}

#[test]
fn several_members_are_told_of_peers_at_once() {
    let place = Place::new();
    let agent = place.agent();
    let (a, b) = strangers(&agent);
    agent.spread(2);
    let told = |ids: &[String]| agent.set_peers_of(ids.iter().map(|id| (id.clone(), vec![])).collect());
    let set = agent.set_peers_of(vec![(a.id(), vec![b.as_peer()]), (b.id(), vec![a.as_peer()])]);
    assert!(set.len() == 2 && set.iter().all(Result::is_ok), "{set:?}");
    assert!(pings(&a, &b, 2).0);
    let set = told(&[a.id(), "nobody".to_owned(), b.id()]);
    assert!(
        matches!(&set[..], [Ok(()), Err(EngineError::NoInterface(id)), Ok(())] if id == "nobody"),
        "each has its own answer: {set:?}"
    );
    place.kill_engine();
    let (ok, said) = pings(&a, &b, 20);
    assert!(ok && said.contains(" 0% packet loss"), "the next engine knows them: {said}");
}

#[test]
fn engines_to_come_have_the_threads_that_the_agent_was_told_of() {
    let place = Place::new();
    let agent = place.agent();
    let threads = || {
        let pid = place.engines.lock().unwrap().last().unwrap().id();
        let names = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
        names.filter(|name| name.starts_with("wireguard-")).count()
    };
    let (a, b) = pair(&agent);
    assert_eq!((agent.facts().threads, threads()), (1, 1));
    agent.spread(2);
    assert!(pings(&a, &b, 2).0, "the two stay where they are");
    assert_eq!((agent.facts().threads, threads()), (2, 2));
    place.kill_engine();
    let (ok, said) = pings(&a, &b, 20);
    assert!(ok && said.contains(" 0% packet loss"), "on two threads: {said}");
    assert_eq!((agent.facts().threads, threads()), (2, 2));
    drop(agent);
    let agent = place.agent();
    agent.spread(1);
    assert_eq!((agent.facts().threads, threads()), (1, 2), "a thread that serves somebody stays");
    assert!(pings(&a, &b, 2).0);
    place.kill_engine();
    assert!(pings(&a, &b, 20).0);
    assert_eq!(threads(), 1);
}

#[test]
fn an_engine_of_the_version_before_is_asked_for_nothing_it_does_not_know() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    std::thread::scope(|scope| {
        let engine = scope.spawn(|| {
            let mut agent = greets(&listener, 2);
            agent.read_exact(&mut [0; 20 + 5]).unwrap();
            // The end of an empty inventory: variant 4, no time.
            agent.write_all(&[3, 0, 0, 0, 4, 0, 0]).unwrap();
            // One interface after the other: variant 5, its name, no peers; and that it is so.
            for id in *b"ab" {
                let mut frame = [0; 4 + 4];
                agent.read_exact(&mut frame).unwrap();
                assert_eq!(frame, [4, 0, 0, 0, 5, 1, id, 0]);
                agent.write_all(&[1, 0, 0, 0, 0]).unwrap();
            }
            let mut rest = Vec::new();
            let _ = agent.read_to_end(&mut rest);
            rest
        });
        let agent = Remote::open(place.socket(), None, nothing()).unwrap();
        agent.spread(4);
        assert_eq!(agent.facts().threads, 1);
        let set = agent.set_peers_of(["a", "b"].map(|id| (id.to_owned(), vec![])).into());
        assert!(set.len() == 2 && set.iter().all(Result::is_ok), "{set:?}");
        drop(agent);
        assert_eq!(engine.join().unwrap(), b"");
    });
}

#[test]
fn an_engine_has_no_rights_and_no_files() {
    let place = Place::new();
    let agent = place.agent();
    let pid = agent.facts().process.unwrap().0;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // The thread that serves and its packet thread; the first one is the test harness's own.
    let mut engines = 0;
    for task in tasks.map(|task| task.unwrap().path()) {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        if field("Uid:").starts_with('0') {
            continue;
        }
        engines += 1;
        for sets in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(sets), "0000000000000000", "{sets}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Groups:")), ("1".to_owned(), String::new()));
        assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
    }
    assert_eq!(engines, 2);
    let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert!(root.to_string_lossy().ends_with("engine.root (deleted)"), "{}", root.display());
    assert!(!place.dir.path().join("engine.root").exists());
}

#[test]
fn an_engine_that_is_of_no_use_ends() {
    let place = Place::new();
    let agent = place.agent();
    drop(agent);
    eventually("it holds nothing, and its agent has gone", || place.engine_ended());

    let agent = place.agent();
    let (socket, _) = udp_and_name();
    agent.keep("dns-7", vec![socket]).unwrap();
    drop(agent);
    std::fs::remove_file(place.socket()).unwrap();
    eventually("no agent could find it", || place.engine_ended());

    let agent = place.agent();
    let (socket, _) = udp_and_name();
    agent.keep("dns-7", vec![socket]).unwrap();
    agent.end().unwrap();
    eventually("it was told to end", || place.engine_ended());
}

#[test]
fn one_place_has_one_engine() {
    let place = Place::new();
    let agent = place.agent();
    let other = Process::bind(&place.socket()).map(drop).unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::AddrInUse);
    assert!(agent.observe("nobody").unwrap().is_none());
}

fn nothing() -> Box<dyn Fn() -> std::io::Result<()> + Send + Sync> {
    Box::new(|| Ok(()))
}

fn greets(listener: &UnixListener, version: u16) -> UnixStream {
    let (mut agent, _) = listener.accept().unwrap();
    agent.write_all(b"warren-engine\0").unwrap();
    agent.write_all(&version.to_le_bytes()).unwrap();
    agent.write_all(&77_u32.to_le_bytes()).unwrap();
    agent
}

#[test]
fn an_agent_refuses_an_engine_it_does_not_understand() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(greets(&listener, 9)));
        let error = Remote::open(place.socket(), None, nothing()).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Version { theirs: 9, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("version 9") && text.contains("kill 77"), "{text}");
    });
}

#[test]
fn an_engine_leaves_an_agent_it_does_not_understand() {
    let place = Place::new();
    let agent = place.agent();
    let answered = |greeting: &[u8]| {
        let mut other = UnixStream::connect(place.socket()).unwrap();
        other.read_exact(&mut [0; 20]).unwrap();
        other.write_all(greeting).unwrap();
        // An inventory is asked for: length 1, variant 0. Who is left already cannot even ask.
        let _ = other.write_all(&[1, 0, 0, 0, 0]);
        other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        other.read(&mut [0; 64]).is_ok_and(|length| length > 0)
    };
    assert!(!answered(b"warren-engine\0\x07\x00\x01\0\0\0"));
    assert!(!answered(b"GET / HTTP/1.1\r\n\r\n\r\n"));
    assert!(answered(b"warren-engine\0\x03\x00\x01\0\0\0"));
    assert!(agent.observe("nobody").unwrap().is_none(), "the agent that it understands was not left");
}

#[test]
fn an_engine_is_for_its_owner_alone() {
    let place = Place::new();
    let _agent = place.agent();
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions())
    };
    assert_eq!(mode(&place.socket()) & 0o777, 0o600);
}

#[test]
fn an_interface_can_be_looked_at_but_not_changed() {
    let place = Place::new();
    let agent = place.agent();
    let (a, b) = pair(&agent);
    assert!(pings(&a, &b, 2).0);
    let asked = |request: &str| {
        let mut socket = UnixStream::connect(place.uapi().join("wrm1.sock")).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    let hex = |key: Key| key.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let check = |replaced: u64| {
        let answer = asked("get=1\n\n");
        for line in [
            format!("private_key={}", "01".repeat(32)),
            "listen_port=51820".to_owned(),
            format!("public_key={}", hex(b.key())),
            "endpoint=192.0.2.2:51820".to_owned(),
            "allowed_ip=10.240.0.2/32".to_owned(),
        ] {
            assert!(answer.lines().any(|l| l == line), "{line} is not in {answer}");
        }
        assert!(
            answer.ends_with("errno=0\n\n") && !answer.contains("last_handshake_time_sec=0\n"),
            "{answer}"
        );
        assert_eq!(asked("set=1\nlisten_port=7\n\n"), format!("errno={}\n\n", -libc::EPERM));
        assert_eq!(agent.facts().replaced, replaced);
    };
    check(0);
    place.kill_engine();
    assert!(pings(&a, &b, 2).0);
    check(1);
    agent.remove("m1");
    assert!(!place.uapi().join("wrm1.sock").exists());
}
