//! Names beyond addresses: published services, facts, and a container that throws our rules away.

use tests::ids::{AP, PN, name};
use tests::{Lab, eventually, seconds, want};

#[test]
fn published_ports_are_found_from_another_host() {
    let lab = Lab::new("services");
    let hosts = lab.region(&["a", "b"]);
    let (c1, c2, asker) = (hosts[0].container("c1"), hosts[1].container("c2"), hosts[1].container("asker"));
    let [http, dns] = ["tcp/3000:http", "udp/53"].map(|port| format!("--publish={port}"));
    c1.attach(PN, AP, &["--type", "web", &http, &dns]).ok();
    c2.attach(PN, AP, &["--type", "web", "--publish", "tcp/3001:http"]).ok();
    asker.join(PN, AP, "worker");
    let service = format!("_http._tcp.{}", name(AP, PN));
    eventually(seconds(5), "both publish http", || {
        let found = asker.dig(&format!("+short {service} SRV"));
        let mut lines: Vec<_> =
            found.lines().map(|line| line.split(".ap-").next().unwrap_or_default()).collect();
        lines.sort();
        want(lines == ["0 1 3000 1.web", "0 1 3001 2.web"], found)
    });
    let unnamed = asker.dig(&format!("+short _53._udp.web.{} SRV", name(AP, PN)));
    assert!(unnamed.starts_with("0 1 53 1.web."), "{unnamed}");
    let facts = asker.dig(&format!("+short 2.web.{} TXT", name(AP, PN)));
    assert!(facts.contains("\"host=b\"") && facts.contains("\"port=tcp/3001:http\""), "{facts}");

    let looked_up = hosts[1].warren(&["dns", "lookup", &service, "--as", "asker"]).ok().stdout.clone();
    assert!(looked_up.contains(":3000") && looked_up.contains(":3001"), "{looked_up}");
    c1.attach(PN, AP, &["--publish", "sctp/1"]).refused(2, &["tcp/PORT"]);

    // What is published outlives the agent.
    hosts[0].kill_agent();
    hosts[0].start_agent();
    hosts[0].wait_ready();
    eventually(seconds(10), "it is published again", || {
        let found = asker.dig(&format!("+short _http._tcp.1.web.{} SRV", name(AP, PN)));
        want(found.starts_with("0 1 3000 1.web."), found)
    });
}

#[test]
fn who_flushes_our_rules_is_told_of_and_repaired() {
    let lab = Lab::new("flush");
    let hosts = lab.region(&["a"]);
    let c1 = hosts[0].container("c1");
    let member = c1.join(PN, AP, "web");
    assert!(!c1.addresses(&member.names[0]).is_empty());
    c1.netns().run("nft flush ruleset");
    assert!(
        c1.lookup(&member.names[0], hickory_proto::rr::RecordType::A).is_err(),
        "nobody listens on port 53"
    );
    eventually(seconds(45), "the next audit puts them back", || {
        let status = hosts[0].warren(&["status"]).stdout;
        want(status.contains("somebody removed our rules in c1"), status)
    });
    assert!(!c1.addresses(&member.names[0]).is_empty());
    hosts[0].warren(&["status", "--check"]).refused(7, &[]);
    c1.detach(PN).ok();
    lab.assert_clean();
}
