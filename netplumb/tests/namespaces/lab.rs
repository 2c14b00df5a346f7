//! Hosts and containers made of network namespaces. Nothing of it shows in the machine's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use netplumb::engine::{Process, Remote};
use netplumb::state::{
    Addresses, Desired, Fabric, Guard, Key, Mac, Member, NetnsRef, Network, Ours, Peer, PrivateKey, Trace,
    Vtep, fabric_mtu, wg_mtu,
};
use netplumb::{Backend, NetlinkKernel, netns};

/// A network namespace, mounted as container runtimes do, that lives as long as this.
pub struct Space {
    netns: OwnedFd,
    mount: tempfile::TempPath,
}

impl Space {
    pub fn new() -> Space {
        let mount = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let made = netns::scratch(|| {
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &*mount).unwrap();
            netns::current().unwrap()
        });
        let netns = made.expect("the datapath tests need root: run them with sudo");
        let space = Space { netns, mount };
        space.run("ip link set lo up");
        space
    }

    pub fn path(&self) -> PathBuf {
        self.mount.to_path_buf()
    }

    pub fn netns(&self) -> NetnsRef {
        NetnsRef { path: self.path(), cookie: self.enter(|| netns::cookie().unwrap()) }
    }

    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::enter(self.netns.as_fd(), work).unwrap()
    }

    /// Runs a shell command there; it has to succeed.
    pub fn run(&self, command: &str) -> String {
        let (ok, output) = self.enter(|| shell(command));
        assert!(ok, "{command}: {output}");
        output
    }

    /// Whether a shell command succeeds there.
    pub fn succeeds(&self, command: &str) -> bool {
        self.enter(|| shell(command)).0
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&*self.mount, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs a shell command in a namespace that is a mount.
pub fn run_at(netns: &Path, command: &str) -> String {
    let file = std::fs::File::open(netns).unwrap();
    let (ok, output) = netns::enter(file.as_fd(), || shell(command)).unwrap();
    assert!(ok, "{command}: {output}");
    output
}

fn shell(command: &str) -> (bool, String) {
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A host: its namespace, its agent's directory, its kernel.
pub struct Host {
    pub space: Space,
    pub run_dir: tempfile::TempDir,
    pub kernel: NetlinkKernel,
    backend: Backend,
}

impl Host {
    /// WireGuard is the kernel's where it has it, as with an agent that was told nothing; `make e2e-kernel` asks for it.
    pub fn new() -> Host {
        Host::with(std::env::var_os("WARREN_TEST_KERNEL").map_or(Backend::Auto, |_| Backend::Kernel))
    }

    pub fn with(backend: Backend) -> Host {
        let space = Space::new();
        let run_dir = tempfile::tempdir().unwrap();
        let kernel = space.enter(|| kernel(run_dir.path(), backend));
        Host { space, run_dir, kernel, backend }
    }

    /// Another agent's process starts: the engine gives it everything back.
    pub fn restart(&mut self) {
        self.kernel = self.space.enter(|| kernel(self.run_dir.path(), self.backend));
    }

    /// Another agent's process starts, with another backend.
    pub fn restart_with(&mut self, backend: Backend) {
        self.backend = backend;
        self.restart();
    }

    /// Agent and engine end, and both start again. Other clones of the kernel must be gone: they are the agent.
    pub fn crash(&mut self) {
        let elsewhere = tempfile::tempdir().unwrap();
        self.kernel = kernel(elsewhere.path(), self.backend);
        engine(self.run_dir.path()).end().unwrap();
        self.restart();
    }

    pub fn netns_of(&self, name: &str) -> PathBuf {
        self.run_dir.path().join("netns").join(name)
    }

    /// Names of the namespaces this host made.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(self.run_dir.path().join("netns")) else {
            return BTreeSet::new();
        };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn kernel(run_dir: &Path, backend: Backend) -> NetlinkKernel {
    NetlinkKernel::new(run_dir, backend, Arc::new(engine(run_dir))).unwrap()
}

/// The host's engine, on threads of this process.
fn engine(run_dir: &Path) -> Remote {
    let socket = run_dir.join("engine.sock");
    let path = socket.clone();
    let launch = move || {
        let engine = Process::bind(&path)?;
        std::thread::spawn(move || engine.serve().unwrap());
        Ok(())
    };
    let engine = Remote::open(socket, None, Box::new(launch)).unwrap();
    engine.spread(2);
    engine
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in self.namespaces() {
            // Only so that a failed test leaves nothing on the machine.
            let _ = rustix::mount::unmount(self.netns_of(&name), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The identity of one member, as its record would have it.
#[derive(Clone)]
pub struct Identity {
    pub id: String,
    pub key: PrivateKey,
    pub address: Ipv4Addr,
    pub host: Ipv4Addr,
}

impl Identity {
    pub fn new(id: &str, last: u8, host: Ipv4Addr) -> Identity {
        let address = Ipv4Addr::new(10, 240, 0, last);
        Identity { id: id.to_owned(), key: PrivateKey::generate(), address, host }
    }

    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, self.address.octets()[3].into())
    }

    pub fn public(&self) -> Key {
        self.key.public()
    }

    pub fn mac(&self) -> Mac {
        Mac::of_key(&self.public())
    }

    fn peer(&self) -> Peer {
        Peer {
            endpoint: SocketAddrV4::new(self.address, 51820),
            mac: self.mac(),
            allowed: Addresses::from([IpAddr::V4(self.address), IpAddr::V6(self.address6())]),
            greet: true,
        }
    }
}

pub const NETWORK: &str = "pn-1";
pub const PORT: u16 = 4789;
pub const VNI: u32 = 42;

/// What a host at `local` should have of one network: members of its own with their containers, and
/// everybody as peers.
pub fn network(local: Ipv4Addr, everybody: &[Identity], containers: &BTreeMap<String, NetnsRef>) -> Network {
    let mtu = fabric_mtu(1500, false);
    let remote = everybody.iter().filter(|identity| identity.host != local);
    let vtep = |address: Ipv4Addr| Vtep { address: address.into(), port: PORT };
    let fabric = Fabric {
        alias: format!("warren test {local} {NETWORK}"),
        vni: VNI,
        local: vtep(local),
        mtu,
        rows: remote.map(|identity| (identity.mac(), vtep(identity.host))).collect(),
    };
    let ours = everybody.iter().filter_map(|identity| Some((identity, containers.get(&identity.id)?)));
    let members = ours.map(|(identity, netns)| {
        let member = Member {
            netns: netns.clone(),
            ifname: "wg0".to_owned(),
            mtu: wg_mtu(mtu),
            mac: identity.mac(),
            address: identity.address,
            subnet: "10.240.0.0/22".parse().unwrap(),
            address6: Some(identity.address6()),
            ula: "fd00:0:0:1::/64".parse().unwrap(),
            private_key: identity.key.clone(),
            port: 51820,
            contested: false,
            held: false,
            guard: Guard::Table { listener: "127.240.0.53:61053".parse().unwrap() },
        };
        (identity.id.clone(), member)
    });
    let peers = everybody.iter().map(|identity| (identity.public(), identity.peer())).collect();
    Network { members: members.collect(), peers, fabric }
}

/// Exactly one network.
pub fn desired(network: Network) -> Desired {
    Desired { networks: BTreeMap::from([(NETWORK.to_owned(), Arc::new(network))]) }
}

/// A journal that names what is desired.
pub fn ours(desired: &Desired) -> Ours {
    let traces = |network: &Network| {
        let trace = |member: &Member| Trace {
            netns: member.netns.clone(),
            ifname: member.ifname.clone(),
            beside: BTreeSet::new(),
        };
        network.members.iter().map(|(id, member)| (id.clone(), trace(member))).collect()
    };
    Ours {
        networks: desired.networks.iter().map(|(name, network)| (name.clone(), traces(network))).collect(),
    }
}
