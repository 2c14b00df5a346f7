//! The canary of the whole simulation: one seed is one history.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::process::Command;
use std::thread;

/// What a seed prints, its hash over all that happened included.
fn history(seed: u64) -> String {
    history_of(&["--hosts", "4", "--scenario", "life"], seed)
}

fn history_of(arguments: &[&str], seed: u64) -> String {
    let mut simulation = Command::new(env!("CARGO_BIN_EXE_simulation"));
    let output = simulation.args(arguments).args(["--seed", &seed.to_string()]).output().unwrap();
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

/// Its hosts run on several threads, and what happens first does not depend on which of them is faster.
#[test]
fn a_large_region_has_one_history_too() {
    let history = || history_of(&["--hosts", "64", "--scenario", "large-region", "--members", "1"], 1);
    assert_eq!(history(), history());
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
        let mut simulation = Command::new(env!("CARGO_BIN_EXE_simulation"));
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
