//! The typical use: nginx published to the outside, its backend on another host with no published port at all. The
//! configuration is the one that users are given.

#![allow(clippy::unwrap_used, reason = "a test that is surprised fails")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use tests::docker::{Docker, IMAGE, image_of};
use tests::ids::{AP, PN, name};
use tests::traffic::ask_tcp;
use tests::{Host, Lab, Netns, eventually, http, process, seconds, want};

const CONFIGURATION: &str = include_str!("../../node/docs/examples/nginx/nginx.conf.template");
const RULES: &str = include_str!("../../node/docs/examples/nginx/modsecurity.conf");
const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_modsecurity_module.so";
const NGINX: &str = "nginx:lab";
/// Where nginx is published.
const PUBLISHED: u16 = 8080;

/// Debian's nginx, as its packages have it on this machine.
fn import(docker: &Docker, dir: &Path) {
    process::need(&[("nginx", "nginx")]);
    let dir = dir.join("nginx");
    let files = ["/usr/sbin/nginx", "/usr/lib/nginx/modules", "/etc/nginx", "/usr/share/nginx/html"];
    let tar = image_of(&dir, &files, |root| {
        fs::create_dir_all(root.join("var/log/nginx"))?;
        fs::create_dir_all(root.join("var/lib/nginx"))?;
        std::os::unix::fs::symlink("/usr/lib/nginx/modules", root.join("usr/share/nginx/modules"))?;
        fs::write(root.join("etc/passwd"), "www-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "www-data:x:33:\nnogroup:x:65534:\n")
    });
    let command = "CMD [\"/usr/sbin/nginx\", \"-g\", \"daemon off;\"]";
    docker.run(&["import", "--change", command, &tar.display().to_string(), NGINX]).ok();
}

/// Writes a file into the host's directory: what a container gets it from.
fn given(host: &Host, name: &str, text: &str) -> PathBuf {
    let path = host.dir().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn start_nginx(host: &Host, docker: &Docker) {
    docker.run(&["network", "create", "front"]).ok();
    let configuration = CONFIGURATION.replace("${AP}", AP).replace("${PN}", PN);
    let configuration = given(host, "nginx.conf", &configuration);
    let mount = |file: &Path, at: &str| format!("{}:/etc/nginx/{at}:ro", file.display());
    let configuration = mount(&configuration, "nginx.conf");
    let rules = mount(&given(host, "modsecurity.conf", RULES), "conf.d/modsecurity.conf");
    let app = format!("warren.app={AP}");
    let published = format!("{PUBLISHED}:80");
    let create = ["create", "--name", "nginx", "--network", "front", "-p", &published, "--label", &app];
    let volumes = ["--label", "warren.type=web", "-v", &configuration];
    let rules = if has_modsecurity() { vec!["-v", &rules] } else { Vec::new() };
    docker.run(&[&create[..], &volumes, &rules, &[NGINX]].concat()).ok();
    docker.run(&["network", "connect", "pn1", "nginx"]).ok();
    docker.run(&["start", "nginx"]).ok();
}

/// Not every distribution has the package.
fn has_modsecurity() -> bool {
    let there = Path::new(MODULE).exists();
    if !there {
        eprintln!("NOT TESTED: ModSecurity, since libnginx-mod-http-modsecurity is not installed");
    }
    there
}

/// A backend that says its own name.
fn start_backend(docker: &Docker, container: &str) {
    let app = format!("warren.app={AP}");
    let serve = format!("mkdir /www; echo {container} > /www/index.html; busybox httpd -f -p 3000 -h /www");
    let run = ["run", "-d", "--name", container, "--network", "pn1", "--label", &app];
    let command = ["--label", "warren.type=myappbackend", IMAGE, "sh", "-c", &serve];
    docker.run(&[&run[..], &command].concat()).ok();
}

/// Status and body of what nginx answers to somebody outside.
fn fetch(from: &Netns, nginx: IpAddr, path: &str) -> Option<(u16, String)> {
    from.enter(|| {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(nginx, PUBLISHED), seconds(2)).ok()?;
        stream.set_read_timeout(Some(seconds(5))).ok()?;
        let reply = http::ask(stream, "GET", path, "text/plain", b"").ok()?;
        Some((reply.status, reply.body.trim().to_owned()))
    })
}

/// Twenty requests in a row are answered, by these backends and no other.
#[track_caller]
fn served_by(from: &Netns, nginx: IpAddr, backends: &[&str]) {
    let expected: BTreeSet<(u16, String)> = backends.iter().map(|b| (200, (*b).to_owned())).collect();
    eventually(seconds(30), &format!("nginx's backends are {backends:?}"), || {
        let found: Option<BTreeSet<(u16, String)>> = (0..20).map(|_| fetch(from, nginx, "/")).collect();
        want(found.as_ref() == Some(&expected), format!("{found:?}"))
    });
}

#[test]
fn nginx_follows_a_backend_that_nobody_else_reaches() {
    let lab = Lab::new("nginx");
    let hosts = ["a", "b"].map(|name| lab.host(name));
    let dockers = hosts.each_ref().map(Docker::start);
    tests::lab::start(&hosts);
    let ([a, b], [front, back]) = (&hosts, &dockers);
    import(front, a.dir());
    dockers.iter().for_each(|docker| docker.network("pn1", PN, &[]));

    start_backend(back, "back-1");
    start_nginx(a, front);
    let outside = b.netns();
    served_by(outside, a.address(), &["back-1"]);
    if has_modsecurity() {
        let attack = fetch(outside, a.address(), "/?q=%3Cscript%3Ealert(1)%3C/script%3E");
        assert_eq!(attack.map(|(status, _)| status), Some(403));
    }

    start_backend(back, "back-2");
    served_by(outside, a.address(), &["back-1", "back-2"]);
    back.run(&["rm", "-f", "back-1"]).ok();
    served_by(outside, a.address(), &["back-2"]);

    // On the backend's own host nobody outside of the network gets there.
    back.run(&["run", "-d", "--name", "outsider", IMAGE, "sleep", "1000"]).ok();
    let members = b.members();
    let member = members.iter().find(|m| m["container"] == "back-2" && m["state"] == "ready").unwrap();
    let private: Ipv4Addr = member["address"].as_str().unwrap().parse().unwrap();
    let get = |from: &Netns| from.enter(|| ask_tcp((private, 3000).into(), b"GET / HTTP/1.0\r\n\r\n"));
    assert!(get(&back.container("outsider")).is_err());
    assert!(get(outside).is_err(), "the host itself has no way in either");
    let asked = back.run(&["exec", "outsider", "nslookup", &name(&format!("myappbackend.{AP}"), PN)]);
    assert!(!asked.stdout.contains(&private.to_string()), "{}", asked.stdout);

    front.run(&["rm", "-f", "nginx"]).ok();
    front.run(&["network", "rm", "front"]).ok();
    back.run(&["rm", "-f", "back-2", "outsider"]).ok();
    lab.assert_clean();
}
