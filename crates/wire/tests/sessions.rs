//! Sessions: both directions, and how each side notices that the other is gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use shoal_model::fault::{Fault as _, FaultId, FaultKind};
use shoal_model::id::Revision;
use shoal_model::spec::node::NodeRole;
use shoal_stopwatch::Stopwatch;
use shoal_wire::client::connect;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{
    AckRevision, Bye, ByeReason, LogChunk, LogLine, LogSource, ManagerMessage, NodeMessage,
    OpenLogs,
};
use shoal_wire::session::{ClientSession, ServerSession};
use support::{Cluster, TestServer, hello, soon, start, welcome};
use tokio::net::{TcpListener, TcpStream};

/// A node's session over `addr`, accepted with the given heartbeat.
async fn session(
    server: &mut TestServer,
    addr: &str,
    period_ms: u64,
) -> (ClientSession, ServerSession) {
    let identity = server.cluster.member("n1", NodeRole::Worker);
    let client = soon("connect", connect(addr, &identity)).await.unwrap();
    let accept = async {
        let mut session = server.sessions.recv().await.unwrap();
        assert_eq!(session.peer().node_id, "n1".into());
        assert_eq!(session.hello().node_id, "n1".into());
        session.accept(welcome(period_ms)).await.unwrap();
        session
    };
    let (node, manager) =
        soon("session", async { tokio::join!(client.session(hello("n1")), accept) }).await;
    (node.unwrap(), manager)
}

#[tokio::test]
async fn messages_go_both_ways_in_order() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, mut manager) = session(&mut server, &addr, 250).await;
    assert_eq!(node.welcome().heartbeat_period_ms, 250);
    let (up, down) = (node.sender(), manager.sender());
    // Many more than the queues hold, while heartbeats go in between.
    const COUNT: u64 = 2000;
    let send = tokio::spawn(async move {
        for n in 0..COUNT {
            let ack = AckRevision { revision: Revision(n) };
            up.send(NodeMessage::AckRevision(ack)).await.unwrap();
            let open = OpenLogs { stream: n, task_id: "t".into(), options: Default::default() };
            down.send(ManagerMessage::OpenLogs(open)).await.unwrap();
        }
    });
    let read = async {
        for n in 0..COUNT {
            let NodeMessage::AckRevision(ack) = manager.next().await.unwrap() else { panic!() };
            assert_eq!(ack.revision, Revision(n));
            let ManagerMessage::OpenLogs(open) = node.next().await.unwrap() else { panic!() };
            assert_eq!(open.stream, n);
        }
    };
    soon("all messages", read).await;
    send.await.unwrap();
    let line =
        LogLine { time: support::now(), source: LogSource::Stderr, line: vec![0, 159, 255, b'\n'] };
    let chunk = NodeMessage::LogChunk(LogChunk { stream: 1, lines: vec![line] });
    node.sender().send(chunk.clone()).await.unwrap();
    assert_eq!(soon("chunk", manager.next()).await.unwrap(), chunk);
    // What was queued before closing still arrives.
    node.sender().send(NodeMessage::Leave(Default::default())).await.unwrap();
    soon("close", node.close()).await;
    assert_eq!(
        soon("leave", manager.next()).await.unwrap(),
        NodeMessage::Leave(Default::default())
    );
    let end = soon("end", manager.next()).await.unwrap_err();
    assert!(matches!(end, WireError::Closed { .. }), "{end:?}");
}

#[tokio::test]
async fn an_idle_session_lives_on_heartbeats() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, mut manager) = session(&mut server, &addr, 1000).await;
    let quiet = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::select! {
            end = node.next() => panic!("{end:?}"),
            end = manager.next() => panic!("{end:?}"),
        }
    });
    quiet.await.unwrap_err();
}

/// Passes bytes between a client and `target` until told to stop: then the connection stays open
/// but nothing moves any more, as when a cable is cut.
async fn cable(target: String) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (cut, mut is_cut) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = is_cut.wait_for(|cut| *cut) => {}
        }
        // Holds both sockets open until the test ends.
        std::future::pending::<()>().await;
    });
    (addr, cut)
}

#[tokio::test]
async fn both_sides_notice_a_dead_peer_within_three_seconds() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let (addr, cut) = cable(server.addr.clone()).await;
    let (mut node, mut manager) = session(&mut server, &addr, 1000).await;
    cut.send_replace(true);
    let begin = Stopwatch::start();
    let (a, b) = soon("both notice", async { tokio::join!(node.next(), manager.next()) }).await;
    let waited = begin.elapsed();
    for end in [a.map(|_| ()), b.map(|_| ())] {
        let error = end.unwrap_err();
        assert!(matches!(error, WireError::Silent { .. } | WireError::Closed { .. }), "{error:?}");
    }
    assert!(waited <= Duration::from_millis(3200), "{waited:?}");
}

#[tokio::test]
async fn a_slow_reader_is_not_a_dead_peer() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, manager) = session(&mut server, &addr, 1000).await;
    let down = manager.sender();
    let flood = tokio::spawn(async move {
        for stream in 0..1000 {
            let open = OpenLogs { stream, task_id: "t".into(), options: Default::default() };
            down.send(ManagerMessage::OpenLogs(open)).await.unwrap();
        }
    });
    // Far longer than three heartbeats without reading.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for _ in 0..1000 {
        soon("message", node.next()).await.unwrap();
    }
    flood.await.unwrap();
}

#[tokio::test]
async fn dropping_a_session_ends_the_other_side() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, manager) = session(&mut server, &addr, 1000).await;
    let kept = manager.sender();
    drop(manager);
    let end = soon("node", node.next()).await.unwrap_err();
    assert!(matches!(end, WireError::Closed { .. }), "{end:?}");
    assert!(kept.send(ManagerMessage::Unknown).await.is_err());
    let (node, mut manager) = session(&mut server, &addr, 1000).await;
    drop(node);
    let end = soon("manager", manager.next()).await.unwrap_err();
    assert!(matches!(end, WireError::Closed { .. }), "{end:?}");
}

#[tokio::test]
async fn refusals_arrive_in_the_managers_words() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let identity = cluster.member("n1", NodeRole::Worker);
    let client = soon("connect", connect(&server.addr, &identity)).await.unwrap();
    // By the handler.
    let fault = RemoteFault {
        kind: "not_found".into(),
        id: "SH-MGR-009".into(),
        text: "node 'n1' was removed".into(),
        remedy: "join again".into(),
    };
    let refuse = async {
        let session = server.sessions.recv().await.unwrap();
        session.refuse(fault.clone()).await;
    };
    let (opened, ()) =
        soon("refused", async { tokio::join!(client.session(hello("n1")), refuse) }).await;
    let WireError::Remote(seen) = opened.unwrap_err() else { panic!() };
    assert_eq!(seen, fault);
    // By a Bye.
    let bye = Bye { reason: ByeReason::Stopping, message: "not now".into(), leader: None };
    let end = async { server.sessions.recv().await.unwrap().end(bye).await };
    let (opened, ()) = soon("bye", async { tokio::join!(client.session(hello("n1")), end) }).await;
    let error = opened.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Unavailable);
    assert_eq!(error.to_string(), "not now");
    // Another node's id, and another version: by the server itself.
    let error = soon("id", client.session(hello("n2"))).await.map(|_| ()).unwrap_err();
    assert_eq!(error.id(), Some(FaultId("SH-WIR-013")), "{error:?}");
    let mut old = hello("n1");
    old.version = 99;
    let error = soon("version", client.session(old)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.id(), Some(FaultId("SH-WIR-007")), "{error:?}");
    assert!(error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn a_stopping_server_says_bye() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, mut manager) = session(&mut server, &addr, 1000).await;
    let reader = tokio::spawn(async move { while manager.next().await.is_ok() {} });
    soon("shutdown", server.server.shutdown()).await;
    let ManagerMessage::Bye(bye) = soon("bye", node.next()).await.unwrap() else { panic!() };
    assert_eq!(bye.reason, ByeReason::Stopping);
    soon("end", node.next()).await.unwrap_err();
    soon("reader", reader).await.unwrap();
    let identity = cluster.member("n1", NodeRole::Worker);
    let error = soon("connect", connect(&addr, &identity)).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, WireError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_dropped_server_closes_its_connections() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, _manager) = session(&mut server, &addr, 1000).await;
    drop(server.server);
    soon("end", node.next()).await.unwrap_err();
}

#[tokio::test]
async fn an_oversize_message_ends_the_session_with_a_reason() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let addr = server.addr.clone();
    let (mut node, manager) = session(&mut server, &addr, 1000).await;
    let message = "x".repeat(shoal_wire::SESSION_MESSAGE_MAX);
    let bye = Bye { reason: ByeReason::Unknown, message, leader: None };
    manager.sender().send(ManagerMessage::Bye(bye)).await.unwrap();
    let error = soon("end", node.next()).await.unwrap_err();
    assert!(matches!(error, WireError::TooLarge { .. }), "{error:?}");
    // And the other way round.
    let (node, mut manager) = session(&mut server, &addr, 1000).await;
    let line = vec![b'x'; shoal_wire::SESSION_MESSAGE_MAX];
    let line = LogLine { time: support::now(), source: LogSource::Stdout, line };
    let chunk = NodeMessage::LogChunk(LogChunk { stream: 1, lines: vec![line] });
    node.sender().send(chunk).await.unwrap();
    let error = soon("end", manager.next()).await.unwrap_err();
    assert!(matches!(error, WireError::TooLarge { .. }), "{error:?}");
}
