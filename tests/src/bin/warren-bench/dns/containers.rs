//! A thousand containers on one host: how long it takes to listen in all of them, and what that keeps.
//!
//! Their listeners are in a process of their own, opened as the agent does it, one after another.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{ChildStdout, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use netplumb::netns;
use netplumb::state::NetnsRef;
use resolver::{
    Answers, Counters, Facts, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone, ZoneMember,
};
use tests::Netns;
use tests::dns::{SERVER, lookup};
use tests::process::{self, Place};
use tests::wait::timed;
use tokio::sync::watch;

use super::names::SUFFIX;
use crate::report::{Row, ms};

/// The listeners' process, by the name of [`super::SERVE`].
pub const NAME: &str = "containers";
const CONTAINERS: u16 = 1000;
const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
const APP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";
const MEMORY_MB_MAX: f64 = 15.0;
const OPEN_MS_MAX: f64 = 1000.0;

/// Makes the namespaces, has them listened in, and asks in each.
pub fn measure(dir: &Path) -> io::Result<Vec<Row>> {
    fs::create_dir_all(dir)?;
    let containers: Vec<Netns> = (0..CONTAINERS)
        .map(|number| {
            let netns = Netns::make(&dir.join(number.to_string()));
            netns.run("ip link set lo up");
            netns
        })
        .collect();
    let slab_before = slab_mb();
    let mut command = process::command(&std::env::current_exe()?.to_string_lossy(), Place::Here);
    command.args([super::SERVE, NAME, &CONTAINERS.to_string()]).current_dir(dir);
    let mut child = process::spawn({
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    })?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, mut stdout) = stdin.zip(stdout.map(BufReader::new)).ok_or(io::ErrorKind::BrokenPipe)?;
    let (opened, idle) = (figure(&mut stdout)?, figure(&mut stdout)?);
    let slab = slab_mb() - slab_before;
    let name = format!("1.web.{APP}.{NETWORK}.{SUFFIX}");
    for netns in &containers {
        netns.try_enter(|| lookup(&name, RecordType::A, Duration::from_secs(5)))??;
    }
    stdin.write_all(b"all were asked\n")?;
    let asked = figure(&mut stdout)?;
    child.wait()?;
    let mb = |metric: String, value: f64| Row { unit: "MB".into(), ..Row::told(metric, value) };
    let row = |what: &str| format!("warren: {CONTAINERS} containers, {what}");
    Ok(vec![
        Row::told(row("open all listeners"), opened).at_most(OPEN_MS_MAX),
        mb(row("resident memory, idle"), idle),
        mb(row("resident memory, each asked once"), asked).at_most(MEMORY_MB_MAX),
        mb(row("their sockets in the kernel"), slab),
    ])
}

fn figure(lines: &mut BufReader<ChildStdout>) -> io::Result<f64> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    line.trim().parse().map_err(|_| io::Error::other(format!("the listeners' process says {line:?}")))
}

/// Listens in the namespaces `0` … in this directory until its input ends, and prints how long opening took (ms)
/// and by how much its memory grew (MB), the latter again after a line of input.
pub fn serve(containers: u16) -> io::Result<()> {
    let places: Vec<NetnsRef> = (0..containers).map(place).collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let entered = runtime.enter();
    let before = resident_mb()?;
    let (listeners, took) = timed(|| {
        let zone = Arc::new(zone(containers));
        let service = Service {
            forwarder: Forwarder::none(),
            counters: Arc::new(Counters::default()),
            limits: Limits::default(),
        };
        places.iter().map(|place| listen(place, &zone, &service)).collect::<io::Result<Vec<_>>>()
    });
    let listeners = listeners?;
    println!("{}\n{}", ms(took), resident_mb()? - before);
    io::stdin().read_line(&mut String::new())?;
    println!("{}", resident_mb()? - before);
    drop((entered, listeners));
    Ok(())
}

fn place(number: u16) -> io::Result<NetnsRef> {
    let path = std::env::current_dir()?.join(number.to_string());
    let cookie = netns::enter(std::os::fd::AsFd::as_fd(&fs::File::open(&path)?), netns::cookie)??;
    Ok(NetnsRef { path, cookie })
}

fn listen(
    place: &NetnsRef,
    zone: &Arc<Zone>,
    service: &Service,
) -> io::Result<(Listener, watch::Sender<Arc<Scope>>)> {
    let netns = place.open().map_err(io::Error::other)?;
    let sockets = Sockets::open(std::os::fd::AsFd::as_fd(&netns), SERVER)?;
    let answers = Answers::Zones(vec![Arc::clone(zone)]);
    let scope = Scope::new(SUFFIX, *SERVER.ip(), answers, true).map_err(io::Error::other)?;
    let (scope, scopes) = watch::channel(Arc::new(scope));
    Ok((Listener::serve(sockets, scopes, service.clone())?, scope))
}

fn zone(members: u16) -> Zone {
    let member = |number: u16| ZoneMember {
        app: APP.into(),
        process: "web".into(),
        ordinal: Some(number.into()),
        address: Ipv4Addr::from(0x0af0_0000 + u32::from(number)),
        address6: None,
        ports: Vec::new(),
        facts: Facts::default(),
        late: false,
    };
    let members: Vec<_> = (1..=members).map(member).collect();
    let subnet = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 22);
    Zone::build(NETWORK, SUFFIX, 30, 1, subnet, &members)
        .unwrap_or_else(|error| panic!("the bench's zone: {error}"))
}

/// This process's memory, in megabytes.
fn resident_mb() -> io::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    field_mb(&status, "VmRSS:").ok_or_else(|| io::Error::other("no VmRSS in /proc/self/status"))
}

/// The kernel's own small memory, of all the machine.
fn slab_mb() -> f64 {
    field_mb(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "Slab:").unwrap_or(f64::NAN)
}

fn field_mb(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0 / 1e6)
}
