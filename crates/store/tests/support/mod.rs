//! A store with nodes in it.

// Each test binary uses its own part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod board;
pub mod journal;

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, JoinTokens, Meta, Node, NodeDescription, NodeState, NodeStatus, RootCa,
};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::time::Timestamp;
use shoal_model::trust::{NodeTls, Trust};
use shoal_store::{Lead, NoPeers, PROPOSE_DEADLINE, Store, StoreConfig};
use tokio::time::Instant;

pub fn config(dir: &Path) -> StoreConfig {
    let node = NodeId::new("node-of-the-store");
    StoreConfig::new(dir.join("raft"), node, Arc::new(NoPeers))
}

/// Until when a write may take here.
pub fn soon() -> Instant {
    Instant::now() + PROPOSE_DEADLINE
}

/// Kills a child (`kill -9`) after 5 to 400 ms, in each round after others.
pub fn killed_soon(mut child: Child, round: u64) -> JoinHandle<ExitStatus> {
    let after = Duration::from_millis(5 + (round * 37) % 400);
    std::thread::spawn(move || {
        let end = std::time::Instant::now() + after;
        while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
            std::thread::park_timeout(left);
        }
        child.kill().unwrap();
        child.wait().unwrap()
    })
}

/// Waits until the store leads.
pub async fn leads(store: &Store) {
    let mut lead = store.lead();
    let leads = lead.wait_for(|lead| matches!(lead, Lead::Leading { .. }));
    tokio::time::timeout(Duration::from_secs(60), leads).await.unwrap().unwrap();
}

pub fn node(number: u16, message: &str) -> Object {
    Object::Node(Box::new(Node {
        id: NodeId::new(format!("node{number:05}")),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: message.to_owned(),
            addr: String::new(),
            since: Timestamp::ZERO,
            back_by: None,
        },
        index: NodeIndex(number),
        data_path_addr: None,
        manager: None,
        tls: NodeTls::default(),
        extra: Default::default(),
    }))
}

pub fn put(number: u16, message: &str) -> Transaction {
    let object = node(number, message);
    Transaction {
        changes: vec![Change::Put { object, expect: Expect::Any }],
        at: Timestamp::from_secs(1),
    }
}

/// The cluster itself, at `level`.
pub fn cluster(level: u32) -> Object {
    Object::Cluster(Box::new(Cluster {
        id: ClusterId::new("the-cluster"),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca: RootCa { cert_pem: "certificate".into(), key_pem: "the root's key".into() },
        join_tokens: JoinTokens { worker: "worker".into(), manager: "manager".into() },
        default_address_pools: vec!["10.0.0.0/8".parse().unwrap()],
        subnet_prefix_len: 24,
        data_path_port: 4789,
        unlock: None,
        trust: Trust::default(),
        level,
        extra: Default::default(),
    }))
}

pub fn message(store: &Store, number: u16) -> Option<String> {
    let id = NodeId::new(format!("node{number:05}"));
    store.state().nodes.get(&id).map(|node| node.status.message.clone())
}
