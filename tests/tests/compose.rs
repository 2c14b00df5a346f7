//! One Compose file on three hosts, as users are given it.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use hickory_proto::rr::RecordType;
use tests::docker::{Docker, image};
use tests::ids::{AP, AP2, PN, name};
use tests::{Lab, Netns, Outcome, dns, eventually, process, seconds, want};

const IMAGE: &str = "app:lab";

/// Runs `docker-compose` with the file in `dir` against one engine.
fn compose(docker: &Docker, dir: &Path, args: &[&str]) -> Outcome {
    let mut command = process::command("docker-compose", process::Place::Here);
    command.env("DOCKER_HOST", format!("unix://{}", docker.socket().display()));
    command.current_dir(dir).args(["-f", "compose.yaml"]).args(args);
    let output = command.output().unwrap_or_else(|e| panic!("cannot run docker-compose: {e}"));
    Outcome::of(format!("docker-compose {}", args.join(" ")), &output)
}

/// How many different addresses a name has, asked from a container.
fn addresses(from: &Netns, name: &str) -> usize {
    let answer = from.enter(|| dns::lookup(name, RecordType::A, seconds(2)));
    let found: BTreeSet<IpAddr> =
        answer.map(|answer| answer.addresses).unwrap_or_default().into_iter().collect();
    found.len()
}

#[test]
fn one_file_makes_apps_of_three_hosts() {
    process::need(&[("docker-compose", "docker-compose")]);
    let lab = Lab::new("compose");
    let hosts = ["a", "b", "c"].map(|name| lab.host(name));
    let dockers = hosts.each_ref().map(Docker::start);
    tests::lab::start(&hosts);
    let dir = lab.dir().join("shop");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("compose.yaml"), include_str!("../../node/docs/examples/compose/compose.yaml"))
        .unwrap();
    fs::write(dir.join(".env"), format!("PN={PN}\nSHOP={AP}\nBANK={AP2}\nIMAGE={IMAGE}\n")).unwrap();
    let tar = image(&dir).display().to_string();
    let services: [&[&str]; 3] =
        [&["shop-web"], &["--scale", "shop-web=2", "shop-web", "shop-worker"], &["bank-web"]];
    for (docker, services) in dockers.iter().zip(services) {
        let changes = ["--change", "ENV PATH=/bin", "--change", "CMD [\"sleep\", \"1000000\"]"];
        docker.run(&[&["import"], &changes[..], &[&tar, IMAGE]].concat()).ok();
        docker.network(PN, PN, &[]);
        compose(docker, &dir, &[&["up", "-d"], services].concat()).ok();
    }

    let bank = dockers[2].container("shop_bank-web_1");
    let shop = dockers[0].container("shop_shop-web_1");
    for (from, of, expected) in [
        (&bank, format!("web.{AP}"), 3),
        (&bank, format!("1.web.{AP}"), 1),
        (&bank, format!("3.web.{AP}"), 1),
        (&bank, format!("worker.{AP}"), 1),
        (&shop, AP2.to_owned(), 1),
    ] {
        let of = name(&of, PN);
        eventually(seconds(20), &format!("{of} has {expected} addresses"), || {
            let found = addresses(from, &of);
            want(found == expected, found)
        });
    }
    for docker in &dockers {
        compose(docker, &dir, &["down", "-t", "0"]).ok();
    }
    lab.assert_clean();
}
