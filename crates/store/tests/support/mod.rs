//! A store with nodes in it.

// Each test binary uses its own part of it.
#![allow(dead_code)]

use std::path::Path;

use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::id::NodeId;
use shoal_model::net::NodeIndex;
use shoal_model::object::{Meta, Node, NodeDescription, NodeState, NodeStatus};
use shoal_model::spec::node::NodeSpec;
use shoal_model::time::Timestamp;
use shoal_store::{Store, StoreConfig};

pub fn config(dir: &Path) -> StoreConfig {
    StoreConfig { dir: dir.join("raft"), raft_id: 1 }
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
        },
        index: NodeIndex(number),
        data_path_addr: None,
        manager: None,
    }))
}

pub fn put(number: u16, message: &str) -> Transaction {
    let object = node(number, message);
    Transaction {
        changes: vec![Change::Put { object, expect: Expect::Any }],
        at: Timestamp::from_secs(1),
    }
}

pub fn message(store: &Store, number: u16) -> Option<String> {
    let id = NodeId::new(format!("node{number:05}"));
    store.state().nodes.get(&id).map(|node| node.status.message.clone())
}
