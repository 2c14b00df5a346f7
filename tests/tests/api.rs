//! What the API says: as it describes itself, and to those who do not speak it RFC 9457, a hint, and never a crash.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tests::http::Answer;
use tests::ids::{AP, PN, PN2};
use tests::{Host, Lab, seconds};

const JSON: &str = "application/json";

/// What the agent says of its API: OpenAPI 3.1.
struct Description(Value);

impl Description {
    fn of(host: &Host) -> Description {
        let mut document = host.api("GET", "/v1/openapi.json", JSON, b"").unwrap().json();
        // An answer has what is described, and nothing else.
        for schema in document["components"]["schemas"].as_object_mut().unwrap().values_mut() {
            if schema.get("properties").is_some() {
                schema["additionalProperties"] = false.into();
            }
        }
        Description(document)
    }

    /// Paths with what is said of them, of the listener on TCP or the one on the Unix socket.
    fn paths(&self, tcp: bool) -> impl Iterator<Item = (&str, &Value)> {
        let (paths, everywhere) = (self.0["paths"].as_object().unwrap(), &self.0["servers"]);
        let of = move |item: &Value| {
            let servers = item.get("servers").unwrap_or(everywhere).as_array().unwrap();
            servers.iter().any(|server| (server["url"] == "http://warren") != tcp)
        };
        paths.iter().filter(move |(_, item)| of(item)).map(|(path, item)| (path.as_str(), item))
    }

    /// What is said of a request on the Unix socket.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let path = path.split('?').next().unwrap_or_default();
        let fits = |template: &str| {
            let (said, asked) = (template.split('/'), path.split('/'));
            said.clone().count() == asked.clone().count()
                && said.zip(asked).all(|(said, asked)| said == asked || said.starts_with('{'))
        };
        let (_, item) = self.paths(false).find(|(template, _)| fits(template))?;
        item.get(method.to_lowercase())
    }

    /// The answer has a status, a kind and a body that are described.
    fn check(&self, operation: &Value, answer: &Answer) -> Result<(), String> {
        let what = || format!("{}: {answer:?}", operation["operationId"]);
        let said = operation["responses"].get(answer.status.to_string());
        let said =
            self.resolved(said.ok_or_else(|| format!("{} is not described: {}", answer.status, what()))?);
        let Some(content) = said["content"].as_object() else {
            return if answer.body.is_empty() {
                Ok(())
            } else {
                Err(format!("no body is described: {}", what()))
            };
        };
        let kind = |kind: &&String| answer.says(&format!("content-type: {}", kind.to_lowercase()));
        let kind =
            content.keys().find(kind).ok_or_else(|| format!("its kind is not described: {}", what()))?;
        match content[kind].get("schema") {
            Some(schema) => {
                self.valid(schema, &answer.json()).map_err(|wrong| format!("{wrong}: {}", what()))
            }
            None => Ok(()),
        }
    }

    fn resolved<'d>(&'d self, value: &'d Value) -> &'d Value {
        match value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
            Some(place) => self.0.pointer(place).unwrap_or_else(|| panic!("nothing is at {place}")),
            None => value,
        }
    }

    fn valid(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = json!({ "components": self.0["components"], "allOf": [schema] });
        let validator = jsonschema::options().should_validate_formats(true).build(&schema);
        validator
            .map_err(|e| e.to_string())?
            .validate(value)
            .map_err(|e| format!("{} {e}", e.instance_path()))
    }
}

/// A path with its variables, and what it has to be asked with: from `c-a` to this address.
fn filled(template: &str, operation: &Value, to: &str) -> String {
    let value = |name: &str| match name {
        "network" => PN.to_owned(),
        "id" | "from" => "c-a".to_owned(),
        "to" => to.to_owned(),
        "name" => format!("{AP}.{PN}.private-network.internal"),
        other => panic!("{template} has to be asked with {other:?}: say here with what"),
    };
    let (mut path, mut query) = (template.to_owned(), Vec::new());
    let required = operation["parameters"].as_array().into_iter().flatten().filter(|p| p["required"] == true);
    for name in required.map(|parameter| parameter["name"].as_str().unwrap()) {
        match template.contains(&format!("{{{name}}}")) {
            true => path = path.replace(&format!("{{{name}}}"), &value(name)),
            false => query.push(format!("{name}={}", value(name))),
        }
    }
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

#[test]
fn answers_are_as_the_api_describes_itself() {
    let lab = Lab::new("openapi");
    let hosts = lab.region(&["a", "b"]);
    let webs: Vec<_> = hosts.iter().map(Host::web).collect();
    let description = Description::of(&hosts[0]);
    let mut asked = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut check = |operation: &Value, answer: Answer, status: u16| {
        asked.insert(operation["operationId"].as_str().unwrap().to_owned());
        wrong.extend(description.check(operation, &answer).err());
        assert_eq!(answer.status, status, "{}: {answer:?}", operation["operationId"]);
    };
    for tcp in [false, true] {
        for (template, item) in description.paths(tcp) {
            let Some(operation) = item.get("get") else { continue };
            let path = filled(template, operation, &webs[1].1.address.to_string());
            let answer = if tcp { hosts[0].get(&path) } else { hosts[0].api("GET", &path, JSON, b"") };
            check(operation, answer.unwrap(), 200);
        }
    }

    let (member, network) = (format!("/v1/networks/{PN}/members/c-a"), format!("/v1/networks/{PN2}"));
    let attach =
        json!({ "app": AP, "ports": ["tcp/3000:http"], "netns": { "path": webs[0].0.netns().path() } });
    let nobody = format!("/v1/networks/{PN}/members/nobody");
    let changes = [
        ("DELETE", &member, Value::Null, 204),
        ("PUT", &member, attach, 200),
        ("GET", &nobody, Value::Null, 404),
        ("PUT", &network, json!({ "subnet": "10.241.0.0/22", "forward": true }), 200),
        ("PATCH", &network, json!({ "forward": false }), 200),
        ("DELETE", &network, Value::Null, 204),
        ("POST", &"/v1/drain".to_owned(), json!({ "draining": true }), 200),
        ("POST", &"/v1/drain".to_owned(), json!({ "draining": false }), 200),
        ("POST", &"/v1/reset".to_owned(), json!({ "host": "a" }), 200),
    ];
    for (method, path, body, status) in changes {
        let operation = description.operation(method, path).unwrap_or_else(|| panic!("{method} {path}"));
        if let Some(schema) = operation["requestBody"]["content"][JSON].get("schema") {
            description.valid(schema, &body).unwrap();
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        check(operation, hosts[0].api(method, path, JSON, body.as_bytes()).unwrap(), status);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let all = [false, true].into_iter().flat_map(|tcp| description.paths(tcp));
    let all = all
        .flat_map(|(_, item)| item.as_object().unwrap().values())
        .filter_map(|o| o["operationId"].as_str());
    let unasked: Vec<&str> = all.filter(|id| !asked.contains(*id)).collect();
    assert!(unasked.is_empty(), "described, and never asked here: {unasked:?}");
}

/// Method, path, content type, body, status, what is said.
type Case<'a> = (&'a str, &'a str, &'a str, &'a str, u16, &'a [&'a str]);

/// The answer is a problem (RFC 9457) of the case's status that says its words, and a described one; or what it is.
fn problem(
    host: &Host,
    description: &Description,
    (method, path, kind, body, status, words): &Case,
) -> Result<(), String> {
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
    if let Some(operation) = description.operation(method, path) {
        description.check(operation, &answer)?;
    }
    words.iter().try_for_each(|word| want(answer.body.contains(word), &format!("no {word:?}")))
}

#[test]
fn bad_requests() {
    let lab = Lab::new("api");
    let hosts = lab.region(&["a"]);
    let description = Description::of(&hosts[0]);
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
        ("POST", "/v1/reset", JSON, "", 400, &[]),
        ("POST", "/v1/reset", JSON, "{}", 400, &["host"]),
        ("POST", "/v1/reset", JSON, r#"{"host":"b"}"#, 409, &["this is host a"]),
        ("POST", "/v1/status", JSON, "{}", 405, &[]),
        ("DELETE", "/v1/hosts", JSON, "", 405, &[]),
        ("BREW", "/v1/status", JSON, "", 405, &[]),
        ("PATCH", &member, JSON, &good, 405, &[]),
    ];
    let wrong: Vec<String> =
        cases.iter().filter_map(|case| problem(&hosts[0], &description, case).err()).collect();
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
