//! A manager that is locked after a restart, and what unlocks it. A restart stands for a kill: what
//! is on the disk is the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::Duration;

use shoal_manager::control::{Control, Rotation};
use shoal_node::error::NodeError;
use shoal_node::node::{InitOptions, Node, Standing};
use shoal_store::UnlockKey;
use support::{DEADLINE, free_address, init_at, is_in, open};

fn read(root: &Path, name: &str) -> String {
    std::fs::read_to_string(root.join("swarm").join(name)).unwrap()
}

/// Waits until what is on the disk is as `holds` says.
async fn sealed(root: &Path, holds: impl Fn(&str, &str) -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let (keys, identity) = (read(root, "store/store.key"), read(root, "identity.json"));
        if holds(&keys, &identity) {
            return;
        }
        assert!(std::time::Instant::now() < end, "never: {keys}\n{identity}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_wrapped(keys: &str, identity: &str) -> bool {
    keys.contains("\"wrapped\":true")
        && keys.matches("generation").count() == 1
        && identity.starts_with("{\"version\":2,")
        && !identity.contains("PRIVATE KEY")
}

fn is_clear(keys: &str, identity: &str) -> bool {
    !keys.contains("wrapped")
        && keys.matches("generation").count() <= 1
        && identity.contains("PRIVATE KEY")
}

fn key(node: &Node) -> Option<UnlockKey> {
    let state = node.control().unwrap().state();
    let unlock = state.cluster.as_ref().unwrap().unlock.clone();
    unlock.map(|secret| UnlockKey::parse(&secret.0).unwrap())
}

/// Turns the lock on or off, or makes another key.
async fn update(control: &Control, locks: bool, rotate: bool) {
    let state = control.state();
    let cluster = state.cluster.as_ref().unwrap();
    let mut spec = cluster.spec.clone();
    spec.encryption_config.auto_lock_managers = locks;
    let rotation = Rotation { unlock_key: rotate, ..Rotation::default() };
    control.update_cluster(cluster.meta.version, spec, rotation).await.unwrap();
}

fn is_locked(standing: &Standing) -> bool {
    matches!(standing, Standing::Locked { .. })
}

fn locking(address: &str) -> InitOptions {
    let mut options = init_at(address);
    options.spec.encryption_config.auto_lock_managers = true;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_that_begins_locked_has_nothing_in_clear_and_needs_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    let id = node.init(locking(&free_address())).await.unwrap();
    assert!(is_wrapped(&read(dir.path(), "store/store.key"), &read(dir.path(), "identity.json")));
    let right = key(&node).unwrap();
    node.shutdown().await;

    let node = open(dir.path()).await;
    assert_eq!(node.standing(), Standing::Locked { node_id: Some(id.clone()) });
    assert!(node.control().is_none());
    assert!(matches!(node.init(init_at(&free_address())).await, Err(NodeError::AlreadyMember)));
    let again = InitOptions { force_new_cluster: true, ..init_at(&free_address()) };
    assert!(matches!(node.init(again).await, Err(NodeError::Locked)));
    assert!(matches!(node.leave(false).await, Err(NodeError::LeaveLocked)));
    for _ in 0..2 {
        let wrong = node.unlock(UnlockKey::generate()).await;
        assert!(matches!(wrong, Err(NodeError::WrongUnlockKey)), "{wrong:?}");
        assert!(is_locked(&node.standing()));
    }
    node.unlock(right.clone()).await.unwrap();
    assert!(is_in(&node.standing()));
    assert_eq!(key(&node), Some(right.clone()));
    assert!(matches!(node.unlock(right.clone()).await, Err(NodeError::NotLocked)));
    let again = InitOptions { force_new_cluster: true, ..init_at(&free_address()) };
    node.init(again).await.unwrap();
    assert_eq!(key(&node), Some(right));
    node.shutdown().await;

    // Without the key it can still leave.
    let node = open(dir.path()).await;
    assert!(is_locked(&node.standing()));
    node.leave(true).await.unwrap();
    assert_eq!(node.standing(), Standing::Inactive);
    assert!(!dir.path().join("swarm").exists());
    node.init(init_at(&free_address())).await.unwrap();
    node.shutdown().await;
    let node = open(dir.path()).await;
    assert!(is_in(&node.standing()));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_is_turned_on_rotated_and_turned_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = open(dir.path()).await;
    node.init(init_at(&free_address())).await.unwrap();
    assert_eq!(key(&node), None);
    sealed(dir.path(), is_clear).await;
    update(&node.control().unwrap(), false, true).await;
    assert_eq!(key(&node), None);
    let mut before: Option<UnlockKey> = None;
    for round in 0..3 {
        update(&node.control().unwrap(), true, round > 0).await;
        let now = key(&node).unwrap();
        assert_ne!(before, Some(now.clone()));
        let generation = format!("\"generation\":{}", round + 2);
        sealed(dir.path(), |keys, identity| {
            is_wrapped(keys, identity) && keys.contains(&generation)
        })
        .await;
        node.shutdown().await;
        node = open(dir.path()).await;
        assert!(is_locked(&node.standing()));
        if let Some(before) = before {
            assert!(matches!(node.unlock(before).await, Err(NodeError::WrongUnlockKey)));
        }
        node.unlock(now.clone()).await.unwrap();
        before = Some(now);
    }
    update(&node.control().unwrap(), false, false).await;
    assert_eq!(key(&node), None);
    sealed(dir.path(), is_clear).await;
    node.shutdown().await;
    let node = open(dir.path()).await;
    assert!(is_in(&node.standing()));
    node.shutdown().await;
}
