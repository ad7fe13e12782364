//! Streams to nodes: who is asked, who may open them, and what a node that is gone costs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use shoal_identity::node_identity::NodeIdentity;
use shoal_manager::open::OPEN_WITHIN;
use shoal_model::fault::{Fault as _, FaultId, FaultKind};
use shoal_model::id::NodeId;
use shoal_model::object::NodeState;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{ManagerMessage, OpenStream};
use shoal_wire::stream::Tunnel;
use support::{DEADLINE, FakeNode, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// The next stream that the node is asked for.
async fn asked(node: &mut FakeNode) -> OpenStream {
    let hear = async {
        loop {
            if let Ok(ManagerMessage::OpenStream(open)) = node.heard.recv().await.unwrap() {
                return open;
            }
        }
    };
    timeout(DEADLINE, hear).await.expect("the node is asked in time")
}

async fn open(world: &World, as_whom: &NodeIdentity, number: u64) -> Result<Tunnel, WireError> {
    client::connect(&world.addr.to_string(), as_whom).await?.stream(number).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_node_that_was_asked_opens_a_stream() {
    let world = World::new().await;
    let (mut a, b) = (world.worker("a").await, world.worker("b").await);
    // Nobody has asked for any.
    for number in [0, 1] {
        let refused = open(&world, &a.identity, number).await;
        assert!(matches!(refused, Err(WireError::Remote(_))), "{refused:?}");
    }
    let (control, id) = (world.control.clone(), a.id());
    let wanted = tokio::spawn(async move { control.open_stream(&id).await });
    let OpenStream { number, manager } = asked(&mut a).await;
    assert_eq!(manager.node_id, world.identity.node_id);
    let refused = open(&world, &b.identity, number).await;
    assert!(matches!(refused, Err(WireError::Remote(_))), "{refused:?}");
    let refused = open(&world, &a.identity, number ^ 1).await;
    assert!(matches!(refused, Err(WireError::Remote(_))), "{refused:?}");
    let mut there = open(&world, &a.identity, number).await.unwrap();
    let mut here = timeout(DEADLINE, wanted).await.unwrap().unwrap().unwrap();
    here.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    timeout(DEADLINE, there.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, b"hello");
    // Once, and no more.
    let refused = open(&world, &a.identity, number).await;
    assert!(matches!(refused, Err(WireError::Remote(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_is_named_at_once_and_its_streams_break_off() {
    let world = World::impatient().await;
    let mut a = world.worker("a").await;
    let (control, id) = (world.control.clone(), a.id());
    let wanted = tokio::spawn(async move { control.open_stream(&id).await });
    let number = asked(&mut a).await.number;
    let _there = open(&world, &a.identity, number).await.unwrap();
    let mut here = timeout(DEADLINE, wanted).await.unwrap().unwrap().unwrap();
    // It hears, and does nothing.
    let silent = timeout(DEADLINE, world.control.open_stream(&a.id())).await.unwrap().unwrap_err();
    let said = format!("reach node 'a': no answer within {} s", OPEN_WITHIN.as_secs());
    assert_eq!(silent.to_string(), said);
    assert_eq!((silent.kind(), silent.id()), (FaultKind::Unavailable, Some(FaultId("SH-MGR-013"))));
    // Its end of the stream stands, as that of a host without power does.
    let id = a.id();
    drop(a);
    world
        .until("the node is down", |state| {
            state.nodes.get(&id).is_some_and(|n| n.status.state == NodeState::Down)
        })
        .await;
    let error = timeout(DEADLINE, here.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "node 'a' is down");
    let gone = world.control.open_stream(&id).await.unwrap_err();
    assert_eq!(gone.to_string(), "reach node 'a': it has no session with the manager that leads");
    let stranger = world.control.open_stream(&NodeId::new("nobody")).await.unwrap_err();
    assert_eq!(stranger.kind(), FaultKind::NotFound);
}
