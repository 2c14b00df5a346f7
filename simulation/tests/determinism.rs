//! The canary of the whole simulation: one seed is one history.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::process::Command;
use std::thread;

const SIMULATION: &str = env!("CARGO_BIN_EXE_simulation");

/// What a seed prints, its hash over all that happened included.
fn history(seed: u64) -> String {
    let mut simulation = Command::new(SIMULATION);
    printed(simulation.args(["--hosts", "4", "--scenario", "life", "--seed", &seed.to_string()]))
}

fn printed(simulation: &mut Command) -> String {
    let output = simulation.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    printed
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..=4 {
        let other = thread::spawn(move || history(seed));
        let one = history(seed);
        assert_eq!(one, other.join().unwrap());
    }
}

/// Its hosts run on several threads, and what happens first does not depend on which of them is faster: whatever is done
/// to them, on many cores or on one.
#[test]
fn a_large_region_has_one_history_too() {
    let arguments = ["--hosts", "61", "--virtual-seconds", "10", "--seed", "3"];
    let many = thread::spawn(move || printed(Command::new(SIMULATION).args(arguments)));
    let one = printed(Command::new("taskset").args(["-c", "0", SIMULATION]).args(arguments));
    assert_eq!(many.join().unwrap(), one);
}

#[test]
fn another_seed_gives_another_history() {
    let hash = |seed| history(seed).rsplit_once(' ').unwrap().1.to_owned();
    assert_ne!(hash(1), hash(2));
}

#[test]
fn seeds_are_run_side_by_side_once_and_told_in_order() {
    let file = std::env::temp_dir().join(format!("simulation-seeds-{}", std::process::id()));
    let run = || {
        let mut simulation = Command::new(SIMULATION);
        simulation.args(["--hosts", "3", "--scenario", "life", "--seeds", "7..9", "--resume"]).arg(&file);
        let output = simulation.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{printed}");
        printed.lines().map(|line| line.split([':', ',']).next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(run()[1..], ["seed 7", "seed 8", "seed 9", "3 seeds"]);
    assert_eq!(run()[1..], ["3 seeds held before", "0 seeds"]);
    std::fs::remove_file(file).unwrap();
}
