//! The contract of stores, and what is a directory's own.

use std::collections::BTreeMap;
use std::fs;

use gossip::id::NetworkId;
use gossip::record::{MemberState, NetworkRecord};

use super::turns::{Lasting, Turns};
use super::{DirStore, Entry, MemoryStore, Store};
use crate::project::fixtures;

#[tokio::test]
async fn networks_of_docker_are_found_by_their_ids_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (id, network) = ("8d235e92d7ec", fixtures::pn());
    DirStore::open(dir.path()).unwrap().put_docker(id, network).await.unwrap();
    let again = DirStore::open(dir.path()).unwrap();
    assert_eq!(again.docker(id).unwrap(), Some(network));
    for outside in ["../generation", "", "a/b", "."] {
        assert!(again.put_docker(outside, network).await.is_err(), "{outside:?}");
        assert!(again.docker(outside).is_err(), "{outside:?}");
    }
    again.remove_docker(id).await.unwrap();
    assert_eq!(again.docker(id).unwrap(), None);
}

fn entry(id: &str) -> Entry {
    let ports = vec!["tcp/3000:http".parse().unwrap()];
    Entry { member: id.parse().unwrap(), ports, ..fixtures::entry(1, MemberState::Ready) }
}

/// The contract every store keeps.
async fn contract<S: Store>(open: impl Fn() -> S) {
    let (a, b) = (entry("00000000000000aa"), entry("00000000000000bb"));
    let store = open();
    assert_eq!(store.load().unwrap().generation, 0);
    store.put(&b).await.unwrap();
    store.put(&a).await.unwrap();
    let mut changed = a.clone();
    changed.state = MemberState::Released;
    store.put(&changed).await.unwrap();
    store.remove(&b.member).await.unwrap();
    store.remove(&b.member).await.unwrap();
    let claims = [42, 43].map(|vni| NetworkRecord { vni, ..a.claim.clone() });
    for claim in &claims {
        store.put_network(a.network, claim).await.unwrap();
    }
    let other = NetworkId::random();
    store.put_network(other, &claims[0]).await.unwrap();
    store.remove_network(other).await.unwrap();
    store.remove_network(other).await.unwrap();
    for draining in [false, true, false, true] {
        store.set_draining(draining).await.unwrap();
        assert_eq!(store.load().unwrap().draining, draining);
    }
    store.set_generation(41).unwrap();
    store.set_generation(42).unwrap();
    store.set_starts(&[1, 2, 3]).unwrap();
    drop(store);
    let stored = open().load().unwrap();
    assert_eq!(stored.entries, [changed]);
    assert_eq!(stored.networks, BTreeMap::from([(a.network, claims[1].clone())]));
    assert_eq!(stored.generation, 42);
    assert!(stored.draining);
    assert_eq!(stored.starts, [1, 2, 3]);
    assert!(stored.damaged.is_empty());
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(|| DirStore::open(&dir.path().join("state")).unwrap()).await;
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let store = MemoryStore::default();
    contract(|| store.clone()).await;
}

#[tokio::test]
async fn a_faulty_disk_says_so_or_is_found_out() {
    let (a, b) = (entry("00000000000000aa"), entry("00000000000000bb"));
    let store = MemoryStore::default();
    store.fail_writes(true);
    assert!(store.put(&a).await.is_err() && store.set_generation(1).is_err());
    store.fail_writes(false);
    store.put(&a).await.unwrap();
    store.tear_next();
    store.put(&b).await.unwrap();
    let stored = store.load().unwrap();
    assert_eq!((stored.entries.len(), stored.damaged.len()), (1, 1));
    assert!(store.load().unwrap().damaged.is_empty(), "damage is set aside once");
    store.wipe();
    assert!(store.load().unwrap().entries.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_that_is_given_up_is_not_made() {
    let store = MemoryStore::default();
    let second = std::time::Duration::from_secs(1);
    store.slow_writes(second);
    let entry = entry("00000000000000aa");
    assert!(tokio::time::timeout(second / 2, store.put(&entry)).await.is_err());
    assert!(store.load().unwrap().entries.is_empty());
    let started = tokio::time::Instant::now();
    store.put(&entry).await.unwrap();
    assert_eq!(started.elapsed(), second);
    assert_eq!(store.load().unwrap().entries.len(), 1);
}

#[tokio::test]
async fn damage_is_set_aside_and_the_rest_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    store.put(&entry("00000000000000aa")).await.unwrap();
    fs::write(dir.path().join("members/00000000000000bb.json"), "{\"member\":").unwrap();
    fs::write(dir.path().join("generation"), "x").unwrap();
    fs::write(dir.path().join("view.json"), "[").unwrap();
    let stored = store.load().unwrap();
    assert_eq!(stored.entries.len(), 1);
    assert_eq!(stored.damaged.len(), 3);
    assert!(dir.path().join("members/00000000000000bb.damaged").exists(), "nothing is deleted");
}

#[tokio::test]
async fn of_writers_at_once_the_last_called_stands() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let puts = (1..=50_u64).map(|counter| {
        let (store, entry) = (store.clone(), Entry { counter, ..entry("00000000000000aa") });
        async move { store.put(&entry).await }
    });
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    assert_eq!(store.load().unwrap().entries[0].counter, 50);
    let names = fs::read_dir(dir.path().join("members")).unwrap();
    assert_eq!(names.count(), 1, "nothing half-written stays");
}

#[test]
fn half_written_files_go_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    drop(DirStore::open(dir.path()).unwrap());
    let half = [dir.path().join("view.3.new"), dir.path().join("members/00000000000000aa.4.new")];
    for path in &half {
        fs::write(path, "{").unwrap();
    }
    let store = DirStore::open(dir.path()).unwrap();
    assert!(half.iter().all(|path| !path.exists()));
    assert!(store.load().unwrap().entries.is_empty());
}

#[test]
fn one_agent_per_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = DirStore::open(dir.path()).unwrap();
    assert!(DirStore::open(dir.path()).unwrap_err().to_string().contains("another agent"));
}

#[test]
fn keys_are_for_root_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    Turns::default().replace(1, &path, b"{}", Lasting::Name).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    assert!(!format!("{:?}", entry("00000000000000aa")).contains("7, 7"));
}
