//! What the API says to those who do not speak it: RFC 9457, a hint, and never a crash.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use tests::ids::{AP, PN};
use tests::{Host, Lab, seconds};

const JSON: &str = "application/json";

/// Method, path, content type, body, status, what is said.
type Case<'a> = (&'a str, &'a str, &'a str, &'a str, u16, &'a [&'a str]);

/// The answer is a problem (RFC 9457) of the case's status that says its words; or what it is.
fn problem(host: &Host, (method, path, kind, body, status, words): &Case) -> Result<(), String> {
    let answer =
        host.api(method, path, kind, body.as_bytes()).map_err(|e| format!("{method} {path}: {e}"))?;
    let shown: String = body.chars().take(80).collect();
    let want = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!("{method} {path} {shown}: {what}: {answer:?}")),
    };
    want(answer.status == *status, &format!("status is not {status}"))?;
    want(answer.says("content-type: application/problem+json"), "not a problem")?;
    let problem = answer.json();
    want(problem["status"] == *status, "another status in the body")?;
    for key in ["type", "title", "detail"] {
        want(problem[key].as_str().is_some_and(|text| !text.is_empty()), &format!("no {key}"))?;
    }
    words.iter().try_for_each(|word| want(answer.body.contains(word), &format!("no {word:?}")))
}

#[test]
fn bad_requests() {
    let lab = Lab::new("api");
    let hosts = lab.region(&["a"]);
    let member = format!("/v1/networks/{PN}/members/c1");
    let good = format!(r#"{{"app":"{AP}","netns":{{"path":"/no/such/netns"}}}}"#);
    let with = |key: &str, value: &str| good.replacen('{', &format!("{{\"{key}\":{value},"), 1);
    let large = format!("{{\"app\":\"{}\"}}", "x".repeat(70_000));
    let deep = "[".repeat(60_000);
    let cases: &[Case] = &[
        ("PUT", &member, JSON, &good, 404, &["/no/such/netns"]),
        ("PUT", &member, JSON, "", 400, &[]),
        ("PUT", &member, JSON, "{", 400, &["JSON"]),
        ("PUT", &member, JSON, "not json", 400, &["JSON"]),
        ("PUT", &member, JSON, "\u{0}\u{1}", 400, &[]),
        ("PUT", &member, JSON, &deep, 400, &[]),
        ("PUT", &member, JSON, "[]", 400, &[]),
        ("PUT", &member, JSON, "{}", 400, &["app"]),
        ("PUT", &member, JSON, r#"{"app":5}"#, 400, &["app"]),
        ("PUT", &member, JSON, &with("ordinal", "-1"), 400, &["ordinal"]),
        ("PUT", &member, JSON, &with("ordinal", "1e99"), 400, &["ordinal"]),
        ("PUT", &member, JSON, &with("ordinal", "0"), 400, &["ordinal"]),
        ("PUT", &member, JSON, &with("ifname", "\"a/b\""), 400, &["interface name"]),
        ("PUT", &member, JSON, &with("address", "\"somewhere\""), 400, &["address"]),
        ("PUT", &member, JSON, &with("netmask", "24"), 400, &["netmask", "ordinal"]),
        ("PUT", &member, JSON, &good.replace("path", "paht"), 400, &["paht", "path"]),
        ("PUT", &member, "text/plain", &good, 415, &["application/json"]),
        ("PUT", &member, JSON, &large, 413, &[]),
        ("PUT", "/v1/networks/pn-x/members/c1", JSON, &good, 400, &["pn-x"]),
        ("PUT", &format!("/v1/networks/{PN}/members/a%20b"), JSON, &good, 400, &["container id"]),
        ("GET", &member, JSON, "", 404, &["c1", "warren ps"]),
        ("GET", "/v1/nothing", JSON, "", 404, &["hint"]),
        ("GET", "/", JSON, "", 404, &["hint", "/v1/"]),
        ("GET", "/v1/names?app=ap-x", JSON, "", 400, &["ap-x"]),
        ("GET", "/v1/names?colour=red", JSON, "", 400, &["colour"]),
        ("GET", "/v1/lookup", JSON, "", 400, &["name"]),
        ("GET", "/v1/lookup?name=a..b", JSON, "", 400, &["a..b"]),
        ("POST", "/v1/drain", JSON, "{", 400, &["JSON"]),
        ("POST", "/v1/drain", JSON, r#"{"draining":"yes"}"#, 400, &["draining"]),
        ("POST", "/v1/drain", JSON, r#"{"off":true}"#, 400, &["off", "draining"]),
        ("POST", "/v1/drain", "text/plain", "{}", 415, &["application/json"]),
        ("GET", "/v1/drain", JSON, "", 405, &[]),
        ("POST", "/v1/status", JSON, "{}", 405, &[]),
        ("DELETE", "/v1/hosts", JSON, "", 405, &[]),
        ("BREW", "/v1/status", JSON, "", 405, &[]),
        ("PATCH", &member, JSON, &good, 405, &[]),
    ];
    let wrong: Vec<String> = cases.iter().filter_map(|case| problem(&hosts[0], case).err()).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    // A detach of what is not there is done.
    let detached = hosts[0].api("DELETE", &member, JSON, b"").unwrap();
    assert_eq!(detached.status, 204);
    hosts[0].warren(&["status", "--check"]).ok();
    lab.assert_clean();
}

#[test]
fn no_http_at_all() {
    let lab = Lab::new("garbage");
    let hosts = lab.region(&["a"]);
    let connect = || {
        let stream = UnixStream::connect(hosts[0].socket()).unwrap();
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        stream
    };
    let endless = vec![b'x'; 1 << 20];
    for bytes in [&b"\0\0\0\0"[..], b"GET", b"\x16\x03\x01\x02\x00\x01", b"PUT / HTTP/9.9\r\n\r\n", &endless]
    {
        let mut stream = connect();
        // The agent may close before it has read all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 1024]);
    }
    // Callers that say nothing more are in nobody's way.
    let idle: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"PUT /v1/").unwrap();
            stream
        })
        .collect();
    hosts[0].warren(&["status", "--check"]).ok();
    hosts[0].container("c1").join(PN, AP, "web");
    drop(idle);
}

#[test]
fn the_public_listener_only_reads() {
    let lab = Lab::new("public");
    let hosts = lab.region(&["a"]);
    for (path, words) in
        [("/metrics", "warren_build_info"), ("/healthz", ""), ("/readyz", "ready"), ("/", "<html")]
    {
        let answer = hosts[0].get(path).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body.contains(words), "{path}: {}", answer.body);
    }
    let metrics = hosts[0].get("/metrics").unwrap();
    assert!(metrics.body.ends_with("# EOF\n"), "OpenMetrics ends so");
    for path in ["/v1/status", "/v1/members", "/nothing"] {
        assert_eq!(hosts[0].get(path).unwrap().status, 404, "{path}");
    }
}
