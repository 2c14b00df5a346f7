//! `make bench`: what the product promises in figures, measured on this machine. Prints a table, and
//! appends one JSON object per row to `target/bench.jsonl`:
//! `{"bench","metric","value","unit","peer","peer_value","ratio","target","ok"}`.
//!
//! Exit 0 when everything was measured, whatever came out: `ok` in the rows says which targets were
//! met. 1 when something could not be measured, 2 for a name that is no bench here.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod attach;
mod floor;
mod report;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tests::stage;

/// Set for the bench inside its own namespaces: its directory on a real disk.
const INSIDE: &str = "WARREN_BENCH_DIR";
/// Benches of the contract that are not written yet.
const LATER: [&str; 6] = ["convergence", "dns", "datapath", "runtimes", "agent", "simulation"];

fn main() -> ExitCode {
    let asked: Vec<String> =
        env::args().skip(1).flat_map(|a| a.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
    if let Some(name) = asked.iter().find(|name| *name != "attach") {
        match LATER.contains(&name.as_str()) {
            true => eprintln!("the bench `{name}` comes with later work; today there is `attach`"),
            false => eprintln!("`{name}` is no bench; today there is `attach`"),
        }
        return ExitCode::from(2);
    }
    match env::var_os(INSIDE) {
        None => enter(),
        Some(dir) => inside(Path::new(&dir)),
    }
}

/// Runs this program again in namespaces of its own, which take every host, agent and link along
/// when it ends, however it ends; as a user in a user namespace too.
fn enter() -> ExitCode {
    let failed = |what: String| {
        eprintln!("the bench cannot run: {what}");
        ExitCode::FAILURE
    };
    let own = env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let dir = target_dir(&own).join(format!("bench-{}", std::process::id()));
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

fn inside(dir: &Path) -> ExitCode {
    if let Err(error) = stage::own_run() {
        eprintln!("the bench needs a /run of its own and cannot mount one: {error}");
        return ExitCode::FAILURE;
    }
    report::machine(dir);
    let rows = attach::measure(dir);
    report::table(&rows);
    let file = target_dir(dir).join("bench.jsonl");
    match report::append(&file, "attach", &rows) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the rows cannot be appended to {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

/// Cargo's target directory, from something in it.
fn target_dir(inside: &Path) -> PathBuf {
    let target = inside.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(Path::new("target")).to_owned()
}
