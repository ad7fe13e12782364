//! Streams over real connections: bytes both ways, ends, breaks, refusals.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::ErrorKind;

use shoal_model::spec::node::NodeRole;
use shoal_wire::client::{connect, connect_to};
use shoal_wire::error::WireError;
use shoal_wire::stream::Tunnel;
use support::{Cluster, TestServer, soon, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Both ends of a stream: the node's, and the manager's.
async fn opened(server: &mut TestServer) -> (Tunnel, Tunnel) {
    let worker = server.cluster.member("w1", NodeRole::Worker);
    let client = soon("connect", connect_to(&server.addr, &worker, &"manager1".into())).await;
    let node = soon("open", client.unwrap().stream(7)).await.unwrap();
    let (from, manager) = soon("the stream", server.tunnels.recv()).await.unwrap();
    assert_eq!(from.as_str(), "w1");
    (node, manager)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let mut server = start(&Cluster::new("c1")).await;
    let (mut node, mut manager) = opened(&mut server).await;
    let (up, down) = (bytes(3 << 20), bytes(5 << 20));
    // The manager ends first, as a client does that has no more input.
    manager.write_all(&down[..1 << 20]).await.unwrap();
    let (rest, sent) = (down[1 << 20..].to_vec(), up.clone());
    let manager = tokio::spawn(async move {
        manager.write_all(&rest).await.unwrap();
        manager.shutdown().await.unwrap();
        let mut read = Vec::new();
        manager.read_to_end(&mut read).await.unwrap();
        read
    });
    let mut read = Vec::new();
    soon("all of the manager's", node.read_to_end(&mut read)).await.unwrap();
    assert!(read == down, "{} of {} bytes came", read.len(), down.len());
    // After the other side's end, and dropped at once: nothing of it is lost.
    node.write_all(&sent).await.unwrap();
    node.shutdown().await.unwrap();
    drop(node);
    let read = soon("all of the node's", manager).await.unwrap();
    assert!(read == up, "{} of {} bytes came", read.len(), up.len());
    server.server.shutdown().await;
}

#[tokio::test]
async fn a_side_that_goes_away_breaks_the_stream_off() {
    let mut server = start(&Cluster::new("c1")).await;
    let (node, mut manager) = opened(&mut server).await;
    drop(node);
    let error = soon("the node's end", manager.read_u8()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
    let (mut node, manager) = opened(&mut server).await;
    drop(manager);
    let error = soon("the manager's end", node.read_u8()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
    // Who only writes hears of it, too.
    let wrote = soon("the break", async {
        loop {
            if let Err(error) = node.write_all(&bytes(1 << 16)).await {
                return error;
            }
        }
    });
    assert_eq!(wrote.await.kind(), ErrorKind::BrokenPipe);
    // And so does whoever reads when the server is gone.
    let (mut node, _manager) = opened(&mut server).await;
    drop(server);
    soon("the server's end", node.read_u8()).await.unwrap_err();
}

#[tokio::test]
async fn a_refusal_is_read_at_the_other_end() {
    let mut server = start(&Cluster::new("c1")).await;
    let (node, mut manager) = opened(&mut server).await;
    let fault = shoal_wire::server::nobody_waits();
    node.refuse(&fault).await;
    let error = soon("the refusal", manager.read_u8()).await.unwrap_err();
    assert!(error.to_string().contains("nobody waits"), "{error}");
}

#[tokio::test]
async fn who_is_not_waited_for_or_has_no_certificate_opens_nothing() {
    let server = start(&Cluster::new("c1")).await;
    let worker = server.cluster.member("w1", NodeRole::Worker);
    let client = connect(&server.addr, &worker).await.unwrap();
    let refused = soon("the refusal", client.stream(0)).await;
    assert!(matches!(refused, Err(WireError::Remote(fault)) if fault.text.contains("nobody")));
    let stranger = Cluster::new("c2").member("w1", NodeRole::Worker);
    let client = connect(&server.addr, &stranger).await;
    let refused = match client {
        Ok(client) => client.stream(7).await.err(),
        Err(error) => Some(error),
    };
    assert!(refused.is_some(), "a stranger opened a stream");
    // The node says at which manager it must arrive.
    let other = soon("connect", connect_to(&server.addr, &worker, &"manager2".into())).await;
    assert!(matches!(other, Err(WireError::NotThatNode { .. })));
}
