//! Nodes that are told to be managers or workers, that are removed, and that said they come back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;

use shoal_identity::authority::KeyAndCsr;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::Fault as _;
use shoal_model::id::NodeId;
use shoal_model::object::NodeState;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    CertificateReply, ManagerMessage, PROTOCOL_VERSION, RenewCertificate, RoleWish,
};
use support::{DEADLINE, FakeNode, World, hello};

async fn set_role(world: &World, node: &NodeId, role: NodeRole) {
    let state = world.control.state();
    let known = &state.nodes[node];
    let spec = NodeSpec { role, ..known.spec.clone() };
    world.control.update_node(node, known.meta.version, spec).await.unwrap();
}

/// Waits until the node is told `wish`; what it is told before does not matter.
async fn hear(node: &mut FakeNode, fits: impl Fn(RoleWish) -> bool) -> RoleWish {
    let told = async {
        loop {
            if let Ok(ManagerMessage::Role(wish)) = node.heard.recv().await.unwrap()
                && fits(wish)
            {
                return wish;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("the node is told its role")
}

async fn renew(
    world: &World,
    identity: &NodeIdentity,
    manager_addr: Option<SocketAddr>,
) -> Result<CertificateReply, WireError> {
    let client = client::connect(&world.addr.to_string(), identity).await?;
    let csr_pem = KeyAndCsr::generate().unwrap().csr_pem;
    client.renew(RenewCertificate { version: PROTOCOL_VERSION, csr_pem, manager_addr }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_becomes_a_manager_when_it_comes_for_its_certificate_and_a_worker_again() {
    let world = World::new().await;
    let mut node = world.worker("a").await;
    let (id, identity) = (node.id(), node.identity.clone());
    let told = hear(&mut node, |_| true).await;
    assert_eq!(told, RoleWish { role: NodeRole::Worker, raft_id: None });
    let here: SocketAddr = "127.0.0.1:9".parse().unwrap();
    // Nobody is a manager for having asked.
    let given = renew(&world, &identity, Some(here)).await.unwrap();
    assert_eq!((given.role, given.raft_id), (NodeRole::Worker, None));
    set_role(&world, &id, NodeRole::Manager).await;
    let told = hear(&mut node, |wish| wish.role == NodeRole::Manager).await;
    assert_eq!(told.raft_id, None);
    // A certificate that was due anyway makes no manager of a node that is not ready to be one.
    let given = renew(&world, &identity, None).await.unwrap();
    assert_eq!((given.role, given.raft_id), (NodeRole::Worker, None));
    let given = renew(&world, &identity, Some(here)).await.unwrap();
    assert_eq!(given.role, NodeRole::Manager);
    let number = given.raft_id.expect("a number");
    let again = renew(&world, &identity, Some(here)).await.unwrap();
    assert_eq!(again.raft_id, Some(number), "an answer that was lost costs a number");
    let manager = world.control.state().nodes[&id].manager.clone().unwrap();
    assert_eq!((manager.raft_id, manager.addr), (number, here.to_string()));
    let told = hear(&mut node, |wish| wish.raft_id.is_some()).await;
    assert_eq!(told, RoleWish { role: NodeRole::Manager, raft_id: Some(number) });
    // It never came up: whoever only learns may be demoted at any time.
    set_role(&world, &id, NodeRole::Worker).await;
    hear(&mut node, |wish| wish.role == NodeRole::Worker).await;
    assert_eq!(world.control.state().nodes[&id].manager, None);
    assert!(world.store.group().borrow().learners.is_empty());
    let given = renew(&world, &identity, None).await.unwrap();
    assert_eq!((given.role, given.raft_id), (NodeRole::Worker, None));
    // The next number is another one.
    set_role(&world, &id, NodeRole::Manager).await;
    let given = renew(&world, &identity, Some(here)).await.unwrap();
    assert!(given.raft_id.is_some_and(|next| next > number), "{given:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_manager_is_not_demoted() {
    let world = World::new().await;
    let id = world.identity.node_id.clone();
    let state = world.control.state();
    let spec = NodeSpec { role: NodeRole::Worker, ..state.nodes[&id].spec.clone() };
    let version = state.nodes[&id].meta.version;
    let refused = world.control.update_node(&id, version, spec).await.unwrap_err();
    assert!(refused.to_string().contains("last manager"), "{refused}");
}

/// A connection that stands when its node is removed is worth nothing a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_nodes_open_connection_is_ended() {
    let world = World::new().await;
    let identity = world.worker("a").await.kill();
    let open = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    // It is used, so that it is there.
    let ask = || async {
        let csr_pem = KeyAndCsr::generate().unwrap().csr_pem;
        let version = PROTOCOL_VERSION;
        open.renew(RenewCertificate { version, csr_pem, manager_addr: None }).await
    };
    ask().await.unwrap();
    let other = world.worker("b").await.identity.clone();
    let others = client::connect(&world.addr.to_string(), &other).await.unwrap();
    world.control.remove_node(&identity.node_id, true).await.unwrap();
    let ended = async {
        loop {
            match ask().await {
                Ok(given) => panic!("a removed node has a certificate: {given:?}"),
                Err(WireError::Remote(_)) => {}
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("its connection ends");
    // It may come again; its next call is refused.
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let refused = client.session(hello(&identity)).await.unwrap_err();
    assert_eq!(refused.id().map(|id| id.0), Some("SH-MGR-007"), "{refused}");
    // Nobody else's connection has ended.
    others.session(hello(&other)).await.unwrap();
}

/// What a node says to one leader counts for the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_soon_is_waited_for_by_the_next_leader_too() {
    let mut world = World::impatient().await;
    let away = world.worker("a").await.back_soon(100).await.node_id;
    let lost = world.worker("b").await.kill().node_id;
    world.until("its word is noted", |state| state.nodes[&away].status.back_by.is_some()).await;
    world.restart_manager().await;
    world.until("the other one is down", |s| s.nodes[&lost].status.state == NodeState::Down).await;
    assert_eq!(world.control.state().nodes[&away].status.state, NodeState::Unknown);
}
