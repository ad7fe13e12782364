//! Raw requests: versions, unknown routes, bad bodies, shutdown.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fake::server::Server;
use shoal_api::server::fault::ServeError;
use shoal_api::server::listen::{Host, Listener};

fn check(server: &Server, method: &str, path: &str, body: &str, status: u16, part: &str) {
    let (got, text) = server.send(method, path, body);
    assert_eq!(got, status, "{method} {path}: {text}");
    assert!(text.contains(part), "{method} {path}: {text}");
}

#[test]
fn routes_versions_and_bad_input_answer_as_docker_does() {
    let server = Server::start();
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("GET", "/_ping", "", 200, "OK"),
        ("GET", "/v1.24/_ping", "", 200, "OK"),
        ("GET", "/v1.99/info", "", 400, "client version 1.99 is too new. Maximum supported"),
        ("GET", "/v1.12/info", "", 400, "client version 1.12 is too old. Minimum supported"),
        ("GET", "/nothing/here", "", 404, r#"{"message":"page not found"}"#),
        ("DELETE", "/info", "", 405, "method DELETE is not allowed"),
        ("POST", "/build", "", 501, "not implemented: building images"),
        ("POST", "/swarm/unlock", "{}", 503, "not a swarm manager"),
        ("GET", "/swarm/unlockkey", "", 503, "not a swarm manager"),
        ("GET", "/plugins", "", 200, "[]"),
        ("GET", "/services", "", 503, "not a swarm manager"),
        ("POST", "/swarm/init", "{\"ListenAddr\": 7}", 400, "'ListenAddr': expected a text"),
        ("POST", "/swarm/init", "{\"ListenAddr\"", 400, "invalid JSON"),
        ("POST", "/swarm/init", &deep, 400, "invalid JSON"),
        ("POST", "/swarm/init", "{\"Availability\":\"maybe\"}", 400, "one of 'active'"),
        ("POST", "/swarm/join", "{\"JoinToken\":\"x\",\"RemoteAddrs\":[\"a\"]}", 400, "token"),
        ("POST", "/swarm/join", "{\"JoinToken\":\"x\"}", 400, "RemoteAddr"),
        ("GET", "/containers/json?filters=%7Bbroken", "", 400, "invalid filter"),
        ("GET", "/containers/json?filters=%7B%22colour%22%3A%5B%22x%22%5D%7D", "", 400, "colour"),
        ("GET", "/containers/json?limit=many", "", 400, "'limit'"),
        ("GET", "/containers/nope/json", "", 404, "No such container: nope"),
        ("GET", "/containers/nope/logs", "", 400, "at least one stream"),
        ("GET", "/images/a/b/c/json", "", 404, "No such image: a/b/c"),
        ("POST", "/containers/create", "{\"Image\":[]}", 400, "'Image': expected a text"),
        ("POST", "/containers/create", "{\"image\":\"demo\"}", 201, "\"Id\""),
        ("GET", "/events?since=tomorrow", "", 400, "'since'"),
        ("GET", "/system/df?type=cheese", "", 400, "cheese"),
        ("GET", "/shoal/doctor", "", 200, "vxlan device"),
        ("GET", "/shoal/network", "", 200, "Networks"),
        ("POST", "/images/create", "", 400, "fromImage"),
        ("GET", "/networks/nope", "", 404, "network nope not found"),
        ("POST", "/networks/create", "{\"Name\":\" \"}", 400, "name"),
    ];
    for (method, path, body, status, part) in cases {
        check(&server, method, path, body, *status, part);
    }
}

#[test]
fn bad_input_to_a_manager_changes_nothing() {
    let server = Server::start();
    check(&server, "POST", "/swarm/init", "{}", 200, fake::swarm::NODE);
    let long = format!(r#"{{"Name":"a","Data":"{}"}}"#, "x".repeat(5 << 20));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("POST", "/services/create", "[]", 400, "expected an object, found a list"),
        ("POST", "/services/create", r#"{"Name":{}}"#, 400, "'Name'"),
        ("POST", "/services/x/update?version=abc", "{}", 400, "invalid version"),
        ("POST", "/services/x/update?version=1", "{}", 404, "service x not found"),
        ("POST", "/services/x/update?version=1&rollback=up", "{}", 400, "rollback option up"),
        ("GET", "/services/x/logs", "", 400, "at least one stream"),
        (
            "GET",
            "/tasks?filters=%7B%22zone%22%3A%5B%22x%22%5D%7D",
            "",
            400,
            "invalid filter 'zone'",
        ),
        ("GET", "/nodes/zzz", "", 404, "node zzz not found"),
        ("POST", "/swarm/update?version=1", r#"{"Raft":7}"#, 400, "'Raft'"),
        ("POST", "/swarm/unlock", r#"{"UnlockKey":7}"#, 400, "'UnlockKey'"),
        ("POST", "/swarm/unlock", r#"{"UnlockKey":"x"}"#, 409, "swarm is not locked"),
        ("GET", "/swarm/unlockkey", "", 200, r#"{"UnlockKey":""}"#),
        ("GET", "/secrets", "", 200, "[]"),
        ("GET", "/configs", "", 200, "[]"),
        ("GET", "/secrets?filters=%7B%22zone%22%3A%5B%22x%22%5D%7D", "", 400, "filter 'zone'"),
        ("GET", "/secrets/x", "", 404, "secret x not found"),
        ("GET", "/configs/x", "", 404, "config x not found"),
        ("DELETE", "/secrets/x", "", 404, "secret x not found"),
        ("POST", "/configs/x/update?version=1", "{}", 404, "config x not found"),
        ("POST", "/configs/x/update", "{}", 400, "version"),
        ("POST", "/secrets/create", r#"{"Name":"a","Data":"%"}"#, 400, "base64"),
        ("POST", "/configs/create", r#"{"Name":"a","Data":["x"]}"#, 400, "'Data'"),
        ("POST", "/configs/create", &long, 400, "larger than"),
    ];
    for (method, path, body, status, part) in cases {
        check(&server, method, path, body, *status, part);
    }
    assert_eq!(server.send("GET", "/services", "").1.trim(), "[]");
}

#[test]
fn secrets_are_kept_secret_and_configs_are_shown() {
    let server = Server::start();
    check(&server, "GET", "/secrets", "", 503, "not a swarm manager");
    check(&server, "POST", "/swarm/init", "{}", 200, fake::swarm::NODE);
    let body = r#"{"name":"a","labels":{"k":"v"},"data":"aHVudGVyMg=="}"#;
    for kind in ["secrets", "configs"] {
        check(&server, "POST", &format!("/{kind}/create"), body, 201, "\"ID\":\"");
        let (status, one) = server.send("GET", &format!("/{kind}/a"), "");
        let one: serde_json::Value = serde_json::from_str(&one).unwrap();
        assert_eq!((status, one["Spec"]["Labels"]["k"].as_str()), (200, Some("v")));
        let data = one["Spec"].get("Data").and_then(|data| data.as_str());
        assert_eq!(data, (kind == "configs").then_some("aHVudGVyMg=="), "{kind}");
        let (id, version) = (one["ID"].as_str().unwrap(), one["Version"]["Index"].to_string());
        let update = format!("/{kind}/{id}/update?version={version}");
        check(&server, "POST", &update, r#"{"Name":"a","Labels":{"k":"w"}}"#, 200, "");
        check(&server, "POST", &update, "{}", 500, "out of sequence");
        let (_, list) = server.send("GET", &format!("/{kind}"), "");
        assert!(list.contains("\"w\"") && list.contains(id), "{list}");
        let none = format!("/{kind}?filters=%7B%22label%22%3A%5B%22k%3Dv%22%5D%7D");
        check(&server, "GET", &none, "", 200, "[]");
        let of_name = format!("/{kind}?filters=%7B%22name%22%3A%7B%22a%22%3Atrue%7D%7D");
        check(&server, "GET", &of_name, "", 200, id);
        check(&server, "DELETE", &format!("/{kind}/{}", &id[..7]), "", 204, "");
        check(&server, "GET", &format!("/{kind}"), "", 200, "[]");
    }
}

#[test]
fn every_answer_has_dockers_headers() {
    let server = Server::start();
    let reply = server.raw("HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let reply = reply.to_lowercase();
    for header in [
        "api-version: 1.50",
        "docker-experimental: false",
        "ostype: linux",
        "server: docker/0.1.0 (linux)",
        "swarm: inactive",
        "builder-version: 1",
        "cache-control: no-cache",
        "content-type: text/plain",
    ] {
        assert!(reply.contains(header), "{header}: {reply}");
    }
    let lost = server.raw("GET /zzz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(lost.to_lowercase().contains("api-version: 1.50"));
}

#[test]
fn content_types_and_sizes_are_checked() {
    let server = Server::start();
    let text = "POST /swarm/init HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: \
                text/plain\r\nContent-Length: 2\r\n\r\n{}";
    let reply = server.raw(text);
    assert!(reply.contains("must be 'application/json'"), "{reply}");
    let long = format!("{{\"ListenAddr\":\"{}\"}}", "x".repeat(5 << 20));
    check(&server, "POST", "/swarm/init", &long, 400, "larger than");
}

#[test]
fn upgrades_are_exact_and_wait_sends_its_head_at_once() {
    let server = Server::start();
    check(&server, "POST", "/containers/create?name=c", "{\"Image\":\"demo\"}", 201, "Id");
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let attach = "POST /v1.50/containers/c/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\
                  Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(attach.as_bytes()).unwrap();
    let mut buffer = [0_u8; 4096];
    let count = stream.read(&mut buffer).unwrap();
    let head = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{head}");
    assert!(head.contains("application/vnd.docker.multiplexed-stream"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "nothing but the head: {head}");
    let mut wait = UnixStream::connect(server.socket()).unwrap();
    wait.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = "POST /containers/c/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    wait.write_all(request.as_bytes()).unwrap();
    let count = wait.read(&mut buffer).unwrap();
    let head = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    check(&server, "POST", "/containers/c/start", "", 204, "");
    let count = wait.read(&mut buffer).unwrap();
    let body = String::from_utf8_lossy(&buffer[..count]).into_owned();
    assert!(body.contains("\"StatusCode\":"), "{body}");
    check(&server, "POST", "/containers/c/start", "", 304, "");
}

#[test]
fn the_socket_is_guarded_and_shutdown_is_quick() {
    let mut server = Server::start();
    let mode = std::fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = Host::Unix(server.socket());
    let again = runtime.block_on(Listener::bind(&host, None));
    assert!(matches!(again, Err(ServeError::SocketInUse { .. })));
    let open = runtime.block_on(Listener::bind(&Host::Tcp("0.0.0.0".into(), Some(0)), None));
    assert!(matches!(open, Err(ServeError::NeedsTls { .. })));
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut buffer = [0_u8; 4096];
    assert!(stream.read(&mut buffer).unwrap() > 0);
    let took = server.shutdown();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(!server.socket().exists());
    // A stale file is replaced.
    std::os::unix::net::UnixListener::bind(server.socket()).unwrap();
    assert!(runtime.block_on(Listener::bind(&host, None)).is_ok());
}

#[test]
fn a_locked_manager_says_so_and_is_unlocked() {
    const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. \
                          Please use \\\"docker swarm unlock\\\" to unlock it.";
    let server = Server::start();
    check(&server, "POST", "/swarm/init", "{}", 200, fake::swarm::NODE);
    let update = |locks: bool| {
        let swarm: serde_json::Value =
            serde_json::from_str(&server.send("GET", "/swarm", "").1).unwrap();
        let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
        let body = format!(r#"{{"EncryptionConfig":{{"AutoLockManagers":{locks}}}}}"#);
        check(&server, "POST", &path, &body, 200, "");
    };
    update(true);
    let key = format!(r#"{{"UnlockKey":"{}"}}"#, fake::swarm::UNLOCK_KEY);
    check(&server, "GET", "/swarm/unlockkey", "", 200, &key);
    // Only there.
    for path in ["/swarm", "/info", "/events?until=1"] {
        assert!(!server.send("GET", path, "").1.contains("SWMKEY"), "{path}");
    }
    *server.swarm.locked.lock().unwrap() = true;
    for (method, path) in [
        ("GET", "/swarm"),
        ("GET", "/swarm/unlockkey"),
        ("POST", "/swarm/update?version=1"),
        ("GET", "/nodes"),
        ("GET", "/services"),
        ("GET", "/secrets"),
        ("GET", "/tasks"),
    ] {
        check(&server, method, path, "{}", 503, LOCKED);
    }
    check(&server, "GET", "/info", "", 200, r#""LocalNodeState":"locked""#);
    check(&server, "POST", "/swarm/unlock", r#"{"UnlockKey":"SWMKEY-1-x"}"#, 401, "invalid key");
    check(&server, "POST", "/swarm/unlock", &key, 200, "");
    check(&server, "GET", "/nodes", "", 200, fake::swarm::NODE);
    update(false);
    check(&server, "GET", "/swarm/unlockkey", "", 200, r#"{"UnlockKey":""}"#);
}
