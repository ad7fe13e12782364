//! Clients that go away, and clients that never come to the point.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fake::server::Server;
use shoal_api::server::changes::Changes;

/// Longest wait for something that takes milliseconds.
const SOON: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < SOON, "waited {SOON:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_change_whose_client_leaves_is_made_to_its_end() {
    let server = Server::start();
    server.containers.closed.send_replace(true);
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let body = r#"{"Image":"demo"}"#;
    let head = "POST /containers/create?name=left HTTP/1.1\r\nHost: x\r\nContent-Type: \
                application/json\r\nContent-Length: ";
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    eventually("the create to begin", || !server.containers.calls.lock().unwrap().is_empty());
    drop(stream);
    // The server has seen the end of the connection before it answers these.
    for _ in 0..20 {
        assert_eq!(server.send("GET", "/_ping", "").0, 200);
    }
    server.containers.closed.send_replace(false);
    eventually("the container to be there", || {
        server.send("GET", "/containers/left/json", "").0 == 200
    });
}

#[test]
fn a_body_that_is_cut_short_changes_nothing() {
    let server = Server::start();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let head = "POST /containers/create?name=cut HTTP/1.1\r\nHost: x\r\nContent-Type: \
                application/json\r\nContent-Length: 500\r\n\r\n{\"Image\":\"demo\"}";
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    // Ignored because: the server may close without an answer to half a request.
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.contains(" 201 "), "{answer}");
    assert_eq!(server.send("GET", "/containers/cut/json", "").0, 404);
    assert!(server.containers.calls.lock().unwrap().is_empty());
}

#[test]
fn the_daemon_waits_for_changes_and_then_drops_them() {
    let mut server = Server::start();
    server.containers.closed.send_replace(true);
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let request = "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: \
                   application/json\r\nContent-Length: 16\r\n\r\n{\"Image\":\"demo\"}";
    stream.write_all(request.as_bytes()).unwrap();
    eventually("the create to begin", || !server.containers.calls.lock().unwrap().is_empty());
    let took = server.shutdown();
    assert!(took > Duration::from_secs(1) && took < SOON, "{took:?}");
}

#[test]
fn changes_are_refused_once_the_daemon_stops_and_panics_stay_panics() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let changes = Changes::default();
    runtime.block_on(async {
        assert_eq!(changes.see_through(async { 7 }).await.unwrap(), 7);
        let other = changes.clone();
        let work = async move { other.see_through(async { panic!("on purpose") }).await };
        assert!(tokio::spawn(work).await.unwrap_err().is_panic());
        changes.shutdown(Duration::from_secs(1)).await;
        let refused = changes.see_through(async {}).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), changes.running()), (503, 0));
    });
}

#[test]
fn a_thousand_quiet_and_trickling_clients_do_not_keep_others_out() {
    let server = Server::start();
    let mut quiet = Vec::new();
    for number in 0..1000 {
        // Where descriptors are few, the test's own end first; then there is no more to prove.
        let Ok(mut stream) = UnixStream::connect(server.socket()) else { break };
        if number % 2 == 0 && stream.write_all(b"GET /_ping HTTP/1.1\r\nHo").is_err() {
            break;
        }
        quiet.push(stream);
    }
    assert!(quiet.len() > 100, "{}", quiet.len());
    for _ in 0..10 {
        assert_eq!(server.send("GET", "/_ping", "").0, 200);
    }
}
