//! Names beyond addresses: published services, facts, names of others, and a container that throws our rules away.

use std::net::UdpSocket;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tests::ids::{AP, AP2, PN, PN2, name};
use tests::{Container, Host, Lab, eventually, lab, seconds, want};

/// A name server that knows every name there is, on the host's own loopback; it ends with what is returned.
fn upstream(host: &Host) -> Arc<()> {
    let socket = host.netns().enter(|| UdpSocket::bind("127.0.0.1:5353")).expect("the port is free");
    socket.set_read_timeout(Some(seconds(1))).expect("a timeout can be set");
    let wanted = Arc::new(());
    let still = Arc::downgrade(&wanted);
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while still.strong_count() > 0 {
            let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
            // A response without an error, and an address behind the question.
            (query[2], query[3], query[7]) = (0x81, 0x80, 1);
            let address = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 198, 51, 100, 1];
            let _ = socket.send_to(&[&query[..length], &address].concat(), from);
        }
    });
    wanted
}

/// What a container hears of a name that is nobody's in the region.
fn elsewhere(container: &Container) -> Result<ResponseCode, String> {
    let answer = container.lookup("www.example.org", RecordType::A).map_err(|e| e.to_string())?;
    let expected = if answer.code == ResponseCode::NoError { 1 } else { 0 };
    if answer.addresses.len() == expected { Ok(answer.code) } else { Err(format!("{answer:?}")) }
}

#[test]
fn a_network_says_whether_other_names_are_passed_on() {
    let lab = Lab::new("forward");
    let hosts = [lab.host("a"), lab.host("b")];
    let _upstreams = hosts.each_ref().map(|host| {
        host.set("dns.upstreams", "127.0.0.1:5353");
        upstream(host)
    });
    lab::start(&hosts);
    let [a, b] = &hosts;
    let (c1, c2, other) = (a.container("c1"), b.container("c2"), a.container("other"));
    let member = c1.join(PN, AP, "web");
    c2.join(PN, AP, "web");
    other.join(PN2, AP2, "web");
    for container in [&c1, &c2, &other] {
        assert_eq!(elsewhere(container), Ok(ResponseCode::NoError), "{}", container.name());
    }

    a.warren(&["network", "set", PN, "--forward", "off"]).ok();
    assert_eq!(elsewhere(&c1), Ok(ResponseCode::NXDomain), "at once where it was said");
    eventually(seconds(5), "the other host follows", || {
        want(elsewhere(&c2) == Ok(ResponseCode::NXDomain), elsewhere(&c2))
    });
    assert_eq!(c2.addresses(&member.names[0]), [member.address]);
    assert_eq!(elsewhere(&other), Ok(ResponseCode::NoError), "another network is another's");
    let told = |network: &str| {
        let rows = b.warren(&["networks", "-o", "json"]).rows();
        rows.iter().find(|row| row["network"] == network).expect("it is listed")["forward"].clone()
    };
    assert_eq!((told(PN), told(PN2)), (false.into(), true.into()));
    for (host, asker, rcode) in [(b, "c2", "NXDOMAIN"), (a, "other", "FORWARD")] {
        let looked_up =
            host.warren(&["dns", "lookup", "www.example.org", "--as", asker, "-o", "json"]).stdout;
        assert!(looked_up.contains(rcode), "{looked_up}");
    }
    b.warren(&["network", "set", PN2, "--forward", "off"]).refused(4, &["no member", "--forward"]);

    // It outlives the agent: from the first answer on, and without anybody else's word.
    b.kill_agent();
    b.start_agent();
    let first = eventually(seconds(10), "it is answered again", || elsewhere(&c2));
    assert_eq!(first, ResponseCode::NXDomain);

    // A new member may bring the word along, the first of a network too.
    b.wait_ready();
    b.container("c3").attach(PN, AP, &["--forward", "on"]).ok();
    eventually(seconds(5), "it is passed on again", || {
        want(elsewhere(&c1) == Ok(ResponseCode::NoError), elsewhere(&c1))
    });
    let closed = b.container("closed");
    closed.attach("pn-0d7c0f6e-2d0a-4b7e-9c1f-6f1d2c3b4a59", AP, &["--forward", "off"]).ok();
    assert_eq!(elsewhere(&closed), Ok(ResponseCode::NXDomain));
}

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
    assert!(c1.lookup(&member.names[0], RecordType::A).is_err(), "nobody listens on port 53");
    eventually(seconds(45), "the next audit puts them back", || {
        let status = hosts[0].warren(&["status"]).stdout;
        want(status.contains("somebody removed our rules in c1"), status)
    });
    assert!(!c1.addresses(&member.names[0]).is_empty());
    hosts[0].warren(&["status", "--check"]).refused(7, &[]);
    c1.detach(PN).ok();
    lab.assert_clean();
}
