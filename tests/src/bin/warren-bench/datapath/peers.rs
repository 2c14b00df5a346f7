//! Userspace WireGuard that people know, on the same path as ours.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tests::process;
use tests::wait::{eventually, seconds, want};
use tests::{Attached, Container, Host, Netns};

use super::{Way, binding, way};

/// Debian's.
pub const GO: &str = "wireguard-go";
/// From crates.io.
pub const BORINGTUN: &str = "boringtun-cli";
const BORINGTUN_VERSION: &str = "0.7.1";
/// Ours has 51820 in the same namespace.
const PORT: u16 = 51821;
const MTU: u32 = 1390;
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 200, 0, 1), Ipv4Addr::new(10, 200, 0, 2)];

/// Builds boringtun-cli below `target`, once. Where that cannot be done its rows are missing, which is said.
pub fn install(target: &Path) {
    if boringtun(target).is_some() {
        return;
    }
    eprintln!("building boringtun-cli {BORINGTUN_VERSION}, once");
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "--locked", "--quiet", BORINGTUN, "--version", BORINGTUN_VERSION, "--root"]);
    let ended = cargo.arg(tools(target)).status();
    if !ended.is_ok_and(|ended| ended.success()) {
        eprintln!("NOT MEASURED: boringtun-cli could not be had, its rows and their targets are missing");
    }
}

/// boringtun-cli, if it was built.
pub fn boringtun(target: &Path) -> Option<String> {
    let program = tools(target).join("bin").join(BORINGTUN);
    program.is_file().then(|| program.display().to_string())
}

fn tools(target: &Path) -> PathBuf {
    target.join("bench-tools")
}

/// A daemon on each host, in the binding namespaces of two members.
pub struct Daemons {
    name: &'static str,
    children: [Child; 2],
    containers: [Netns; 2],
}

impl Daemons {
    /// Starts `program` twice, and gives each one a container and the other one as its peer.
    pub fn start(
        name: &'static str,
        program: &str,
        hosts: &[Host; 2],
        members: &[(Container, Attached); 2],
    ) -> io::Result<Daemons> {
        let keys = [key()?, key()?];
        let mut children = Vec::new();
        let containers =
            hosts.each_ref().map(|host| host.bare_container(&format!("{name}-in-{}", host.name())));
        for (n, (container, attached)) in members.iter().enumerate() {
            let binding = binding(hosts, container, attached);
            let device = format!("{}-{n}", &name[..4]);
            children.push(daemon(program, &binding, &device)?);
            let up = || binding.try_run(&format!("ip link show {device}")).status.success();
            eventually(seconds(10), "the daemon's device", || want(up(), program));
            let inside = containers[n].netns();
            binding.run(&format!("ip link set {device} netns {}", inside.path().display()));
            let file = hosts[n].dir().join(format!("{device}.key"));
            fs::write(&file, &keys[n].0)?;
            let other = (keys[1 - n].1.as_str(), INSIDE[1 - n], members[1 - n].1.address);
            configure(&device, &file, other)?;
            inside.run(&format!("ip address add {}/24 dev {device}", INSIDE[n]));
            inside.run(&format!("ip link set {device} mtu {MTU} up"));
        }
        let children = children.try_into().map_err(|_| io::Error::other("a daemon on each host"))?;
        let containers = containers.map(|container| container.netns().clone());
        Ok(Daemons { name, children, containers })
    }

    /// From one of its containers to the other.
    pub fn way(&self) -> Way {
        let processes = self.children.iter().map(|child| child.id() as i32).collect();
        way(self.name, self.containers.clone(), INSIDE[1], processes)
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn daemon(program: &str, binding: &Netns, device: &str) -> io::Result<Child> {
    let mut command = binding.command(program);
    command.arg("-f").stdout(Stdio::null()).stderr(Stdio::null()).env("LOG_LEVEL", "error");
    if program.ends_with(BORINGTUN) {
        // As root without a login it would end.
        command.arg("--disable-drop-privileges");
    }
    process::spawn({
        command.arg(device);
        command
    })
}

/// A private key and its public one, in base64.
fn key() -> io::Result<(String, String)> {
    let private = Command::new("wg").arg("genkey").output()?.stdout;
    let mut derive = Command::new("wg").arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut input) = derive.stdin.take() {
        io::Write::write_all(&mut input, &private)?;
    }
    let public = derive.wait_with_output()?.stdout;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    Ok((text(private), text(public)))
}

/// Sets the daemon's key and its peer: public key, inner address, endpoint.
fn configure(
    device: &str,
    key: &Path,
    (public, inside, endpoint): (&str, Ipv4Addr, Ipv4Addr),
) -> io::Result<()> {
    let ended = Command::new("wg")
        .args(["set", device, "listen-port", &PORT.to_string(), "private-key"])
        .arg(key)
        .args(["peer", public, "allowed-ips", &format!("{inside}/32")])
        .args(["endpoint", &format!("{endpoint}:{PORT}")])
        .status()?;
    if ended.success() { Ok(()) } else { Err(io::Error::other(format!("`wg set {device}` failed"))) }
}
