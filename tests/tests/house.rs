//! House rules no linter holds: who may import whom, and where IO happens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The crates of this workspace that a crate's manifest names outside its tests.
fn imports(name: &str) -> Vec<String> {
    let path = root().join(name).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let dependencies = text.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("");
    let ours = ["gossip", "netplumb", "node", "resolver", "simulation", "tests"];
    let named = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    named.filter(|n| ours.contains(n)).map(str::to_owned).collect()
}

fn sources(name: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![root().join(name).join("src")];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("a crate has sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("sources are text");
                let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
                found.push((shown, production(&text)));
            }
        }
    }
    found
}

/// A file without its tests and comments.
fn production(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_crate_graph_is_as_the_map_says() {
    let allowed = BTreeMap::from([
        ("gossip", vec![]),
        ("resolver", vec![]),
        ("netplumb", vec![]),
        ("node", vec!["gossip", "netplumb", "resolver"]),
    ]);
    for (name, expected) in allowed {
        let mut found = imports(name);
        found.sort();
        assert_eq!(found, expected, "{name} imports something ARCHITECTURE.md does not say");
    }
}

/// Every place that may do a thing; any other production file that names it fails the test.
#[test]
fn io_happens_where_the_map_says() {
    let rules: &[(&[&str], &[&str], &str)] = &[
        (&["gossip"], &["gossip/src/quic", "gossip/src/codec.rs"], "UdpSocket"),
        (&["node"], &["node/src/api.rs"], "TcpListener"),
        (&["node"], &["node/src/api.rs", "node/src/http.rs", "node/src/runtime/docker.rs"], "UnixStream"),
        (
            &["node"],
            &["node/src/api.rs", "node/src/cli/service.rs", "node/src/runtime/docker.rs"],
            "UnixListener",
        ),
        (&["gossip", "resolver", "netplumb"], &[], "UnixStream"),
        // aide's `api_route` describes what it routes. What Docker asks is described by Docker.
        (&["node"], &["node/src/runtime/docker.rs"], ".route("),
        (&["netplumb"], &["netplumb/src/engine"], "AddressFamily::UNIX"),
        (&["gossip", "resolver", "node"], &[], "netlink_"),
        (&["gossip", "resolver", "node"], &[], "wireguard_control::"),
        (
            &["gossip", "resolver", "netplumb", "node"],
            &["node/src/cli/run.rs", "node/src/cli/engine.rs", "node/src/runtime/podman.rs"],
            "process::Command",
        ),
        (&["gossip", "resolver"], &[], "fs::write"),
    ];
    for (crates, allowed, word) in rules {
        for name in *crates {
            for (path, text) in sources(name) {
                let is_test = path.contains("tests") || path.contains("fixture");
                let may = is_test || allowed.iter().any(|prefix| path.starts_with(prefix));
                assert!(may || !text.contains(word), "{path} names {word}");
            }
        }
    }
}

#[test]
fn pure_files_do_no_io() {
    let pure = [
        "gossip/src/view.rs",
        "gossip/src/standing.rs",
        "gossip/src/merge.rs",
        "gossip/src/record.rs",
        "netplumb/src/plan.rs",
        "netplumb/src/plan/diff.rs",
        "netplumb/src/observed.rs",
        "node/src/claims.rs",
        "node/src/project.rs",
        "node/src/journal.rs",
        "resolver/src/answer.rs",
        "resolver/src/zone.rs",
    ];
    for path in pure {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let text = production(&text);
        for word in
            ["async fn", ".await", "std::fs", "TcpStream", "UdpSocket", "tokio::spawn", "Instant::now"]
        {
            assert!(!text.contains(word), "{path} is said to be pure and names {word}");
        }
    }
}
