//! `make bench`: what the product promises in figures, measured on this machine. Prints a table, and
//! appends one JSON object per row to `target/bench.jsonl`:
//! `{"bench","metric","value","unit","peer","peer_value","ratio","target","ok"}`.
//!
//! Exit 0 when everything was measured, whatever came out: `ok` in the rows says which targets were
//! met. 1 when something could not be measured, 2 for a name that is no bench here.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod agent;
mod attach;
mod convergence;
mod cost;
mod datapath;
mod dns;
mod floor;
mod report;
mod runtimes;
mod simulation;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::Row;
use tests::stage;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set for the bench inside its own namespaces: its directory on a real disk.
const INSIDE: &str = "WARREN_BENCH_DIR";
/// Benches there are.
const BENCHES: [&str; 7] = ["agent", "attach", "convergence", "datapath", "dns", "runtimes", "simulation"];
/// Those of the simulation, which need no namespaces.
const SIMULATED: [(&str, Measure); 2] =
    [("convergence", convergence::measure), ("simulation", simulation::measure)];

type Measure = fn() -> io::Result<Vec<Row>>;

fn main() -> ExitCode {
    if let [_, what, name, port] = &env::args().collect::<Vec<_>>()[..]
        && what == dns::SERVE
    {
        return serve(name, port);
    }
    let asked: Vec<String> =
        env::args().skip(1).flat_map(|a| a.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
    if let Some(name) = asked.iter().find(|name| !BENCHES.contains(&name.as_str())) {
        eprintln!("`{name}` is no bench; there are {}", BENCHES.join(", "));
        return ExitCode::from(2);
    }
    let wanted = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    if let Some(dir) = env::var_os(INSIDE) {
        return inside(Path::new(&dir), wanted);
    }
    let own = env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let target = target_dir(&own);
    for (name, measure) in SIMULATED.into_iter().filter(|(name, _)| wanted(name)) {
        if let Err(error) = measure().and_then(|rows| tell(&target, name, &rows)) {
            eprintln!("{name}: not measured: {error}");
            return ExitCode::FAILURE;
        }
    }
    if wanted("runtimes") {
        // Outside of the namespaces as well: engines want the machine's own cgroups and a real disk.
        report::machine(&target);
        let rows = runtimes::measure(&target.join("bench-runtimes.svg"));
        if let Err(error) = rows.and_then(|rows| tell(&target, "runtimes", &rows)) {
            eprintln!("runtimes were not measured: {error}");
            return ExitCode::FAILURE;
        }
    }
    if wanted("datapath") {
        // Outside of the namespaces, which have no network.
        datapath::install(&target);
    }
    if ["agent", "attach", "datapath", "dns"].into_iter().any(wanted) {
        enter(&target)
    } else {
        ExitCode::SUCCESS
    }
}

/// Prints the rows and appends them to the file.
fn tell(target: &Path, bench: &str, rows: &[Row]) -> io::Result<()> {
    report::table(rows);
    let file = target.join("bench.jsonl");
    report::append(&file, bench, rows).map_err(|error| {
        io::Error::new(error.kind(), format!("the rows cannot be appended to {}: {error}", file.display()))
    })
}

/// Runs this program again in namespaces of its own, which take every host, agent and link along
/// when it ends, however it ends; as a user in a user namespace too.
fn enter(target: &Path) -> ExitCode {
    let failed = |what: String| {
        eprintln!("the bench cannot run: {what}");
        ExitCode::FAILURE
    };
    let dir = target.join(format!("bench-{}", std::process::id()));
    if let Err(error) = fs::create_dir_all(&dir) {
        return failed(format!("{} cannot be made: {error}", dir.display()));
    }
    let ended = stage::run_inside(INSIDE, &dir);
    // Best effort: it is below `target`.
    let _ = fs::remove_dir_all(&dir);
    match ended {
        Ok(status) => ExitCode::from(status.code().unwrap_or(1) as u8),
        Err(needs) => failed(needs),
    }
}

fn inside(dir: &Path, wanted: impl Fn(&str) -> bool) -> ExitCode {
    if let Err(error) = stage::own_run() {
        eprintln!("the bench needs a /run of its own and cannot mount one: {error}");
        return ExitCode::FAILURE;
    }
    let target = target_dir(dir);
    let agent = || {
        report::machine(dir);
        tell(&target, "agent", &agent::idle(&dir.join("agent"))?)?;
        agent::kills().and_then(|rows| tell(&target, "agent", &rows))
    };
    let attach = || {
        report::machine(dir);
        tell(&target, "attach", &attach::measure(dir))
    };
    let dns = || {
        let rows = dns::measure(&dir.join("dns"), &target.join("bench-dns.svg"));
        rows.and_then(|rows| tell(&target, "dns", &rows))
    };
    let datapath = || {
        report::machine(dir);
        datapath::measure(&target).and_then(|rows| tell(&target, "datapath", &rows))
    };
    let benches: [(&str, &dyn Fn() -> io::Result<()>); 4] =
        [("agent", &agent), ("attach", &attach), ("datapath", &datapath), ("dns", &dns)];
    match benches.iter().filter(|(name, _)| wanted(name)).try_for_each(|(_, bench)| bench()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Is one of the DNS bench's servers, which run as processes of this program.
fn serve(name: &str, port: &str) -> ExitCode {
    let served = port.parse().map_err(io::Error::other).and_then(|port| dns::serve(name, port));
    served.map_or_else(
        |error| {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

/// Cargo's target directory, from something in it.
fn target_dir(inside: &Path) -> PathBuf {
    let target = inside.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(Path::new("target")).to_owned()
}
