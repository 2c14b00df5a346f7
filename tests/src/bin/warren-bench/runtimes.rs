//! Docker's containers in a private network beside those in a Swarm overlay: from `docker run` until another host has the
//! container's first byte, by its name. Three engines each, in namespaces of the same kind, in turn.
//!
//! The overlay is the one that does not encrypt: the other one needs ESP of the kernel, which not every machine has.

mod plot;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use tests::docker::{Docker, IMAGE};
use tests::ids::{AP, PN, name};
use tests::wait::{clock, pause};
use tests::{Host, Lab, Netns, dns, lab};

use crate::report::{Row, Samples, ms};

/// Containers of each side that count.
const ROUNDS: usize = 30;
/// Where they serve.
const PORT: u16 = 3000;
/// How long one is waited for.
const BOUND: Duration = Duration::from_secs(30);
/// Between two attempts of who waits for it.
const PACE: Duration = Duration::from_millis(2);
/// Docker's own name server in a container.
const EMBEDDED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// Prints what nobody asked for, so that a byte comes.
const SERVE: &str = "mkdir /www; echo here > /www/index.html; exec busybox httpd -f -p 3000 -h /www";

/// Everything; `picture` is where the plot goes.
pub fn measure(picture: &Path) -> io::Result<Vec<Row>> {
    let sides = [Side::private()?, Side::swarm()?];
    let mut reached: [Vec<Duration>; 2] = Default::default();
    let mut returned: [Vec<Duration>; 2] = Default::default();
    // The first of each is not counted: it makes the network on its host.
    for round in 0..=ROUNDS {
        eprint!("\rround {round} of {ROUNDS}");
        for (n, side) in sides.iter().enumerate() {
            let (first_byte, run) = side.round(round)?;
            if round > 0 {
                reached[n].push(first_byte);
                returned[n].push(run);
            }
        }
    }
    eprintln!();
    fs::write(picture, plot::distributions(&sides.each_ref().map(|side| side.title), &reached))?;
    println!("the picture: {}", picture.display());
    let ([ours, swarm], [ours_run, swarm_run]) = (reached.map(Samples::new), returned.map(Samples::new));
    let beside = "Swarm overlay, not encrypted";
    Ok(vec![
        Row::told("`docker run` to its first byte by name on another host, p50", ours.p50())
            .beside(beside, swarm.p50()),
        Row::told("`docker run` to its first byte by name on another host, p99 of 30", ours.p99())
            .beside(beside, swarm.p99()),
        Row::told("of that: `docker run -d` returned, p50", ours_run.p50()).beside(beside, swarm_run.p50()),
    ])
}

/// Three hosts with an engine each and one network; a container on the first waits for those on the second.
struct Side {
    title: &'static str,
    /// How containers join, the type of each apart.
    private: bool,
    waiting: Netns,
    dockers: Vec<Docker>,
    // They go after the engines in them.
    _hosts: Vec<Host>,
    _lab: Lab,
}

impl Side {
    fn private() -> io::Result<Side> {
        let lab = Lab::new("bench-private");
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        // As products gossip, not as laboratories do.
        hosts.iter().for_each(|host| _ = host.set("gossip.interval_ms", "500"));
        let dockers: Vec<Docker> = hosts.iter().map(Docker::start).collect();
        lab::start(&hosts);
        dockers.iter().for_each(|docker| docker.network("net", PN, &[]));
        Side::of("private network (WireGuard)", true, lab, hosts.into(), dockers)
    }

    fn swarm() -> io::Result<Side> {
        let lab = Lab::new("bench-swarm");
        let hosts = ["a", "b", "c"].map(|name| lab.host(name));
        let dockers: Vec<Docker> = hosts.iter().map(Docker::start).collect();
        let manager = hosts[0].address().to_string();
        done(&dockers[0], &["swarm", "init", "--advertise-addr", &manager])?;
        let token = done(&dockers[0], &["swarm", "join-token", "-q", "worker"])?;
        for docker in &dockers[1..] {
            done(docker, &["swarm", "join", "--token", token.trim(), &format!("{manager}:2377")])?;
        }
        done(&dockers[0], &["network", "create", "-d", "overlay", "--attachable", "net"])?;
        Side::of("Swarm overlay (clear)", false, lab, hosts.into(), dockers)
    }

    fn of(
        title: &'static str,
        private: bool,
        lab: Lab,
        hosts: Vec<Host>,
        dockers: Vec<Docker>,
    ) -> io::Result<Side> {
        let waiting = Netns::at("/nowhere");
        let mut side = Side { title, private, waiting, dockers, _hosts: hosts, _lab: lab };
        // On the third one is there as well: names and addresses go to every host that has a member.
        for docker in [&side.dockers[0], &side.dockers[2]] {
            side.run(docker, "waiting", "sleep 1000000")?;
        }
        side.waiting = side.dockers[0].container("waiting");
        Ok(side)
    }

    fn run(&self, docker: &Docker, container: &str, command: &str) -> io::Result<()> {
        let labels = [format!("warren.app={AP}"), format!("warren.type={container}")];
        let labels =
            if self.private { vec!["--label", &labels[0], "--label", &labels[1]] } else { Vec::new() };
        // What Docker does not know shall be refused at once, not asked of somebody who is not there.
        let run = ["run", "-d", "--name", container, "--network", "net", "--dns", "127.0.0.2"];
        done(docker, &[&run[..], &labels, &[IMAGE, "sh", "-c", command]].concat()).map(|_| ())
    }

    /// Runs a container on the second host: when its first byte is there, and when `docker run` has returned.
    fn round(&self, round: usize) -> io::Result<(Duration, Duration)> {
        let container = format!("server{round}");
        let (server, name) = match self.private {
            true => (dns::SERVER, name(&format!("{container}.{AP}"), PN)),
            false => (EMBEDDED, container.clone()),
        };
        let (netns, started) = (self.waiting.clone(), clock());
        let waiting = thread::spawn(move || netns.enter(|| first_byte(server, &name)));
        let returned = self.run(&self.dockers[1], &container, SERVE).map(|()| started.elapsed());
        let panicked = |_| io::Error::other("who waited for the container has panicked");
        let reached = waiting.join().map_err(panicked)??;
        done(&self.dockers[1], &["rm", "-f", &container])?;
        Ok((reached - started, returned?))
    }
}

/// Asks for the name and connects, again and again, until a byte comes: when it came.
fn first_byte(server: SocketAddrV4, name: &str) -> io::Result<Instant> {
    let until = clock() + BOUND;
    loop {
        match attempt(server, name) {
            Ok(()) => return Ok(clock()),
            Err(error) if clock() > until => {
                return Err(io::Error::other(format!("nothing of {name} in {} ms: {error}", ms(BOUND))));
            }
            Err(_) => pause(PACE),
        }
    }
}

fn attempt(server: SocketAddrV4, name: &str) -> io::Result<()> {
    let answer = dns::lookup_at(server, name, RecordType::A, Duration::from_millis(100))?;
    let address: IpAddr = *answer.addresses.first().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), Duration::from_millis(100))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    stream.read_exact(&mut [0])
}

/// What `docker` printed; an error is what it complained of.
fn done(docker: &Docker, args: &[&str]) -> io::Result<String> {
    let outcome = docker.run(args);
    match outcome.code {
        0 => Ok(outcome.stdout),
        _ => Err(io::Error::other(format!("{}: {}", outcome.command, outcome.stderr.trim()))),
    }
}
