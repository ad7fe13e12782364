//! Clients that go away in the middle of an init, a join or a leave, and daemons that crash there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shoal_node::error::NodeError;
use shoal_node::node::{Node, Standing};
use support::{DEADLINE, changed_to, free_address, init_at, is_in, join_of, open};

async fn settled(node: &Node) -> Standing {
    let mut changes = node.changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            let standing = node.standing();
            if standing != Standing::Pending {
                return standing;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the membership does not settle")
}

/// Polls `call` `polls` times and drops it, as hyper drops a handler whose client hangs up.
fn cut<F: Future>(call: F, polls: usize) -> Option<F::Output> {
    let mut call = pin!(call);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
            return Some(output);
        }
        std::thread::yield_now();
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_is_cut_ends_in_or_out_and_the_next_change_works() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    for polls in [1, 2, 3, 50] {
        // The command is given with the first poll: it is carried out, whoever waits. Whether its
        // answer comes before the last poll depends on the machine.
        drop(cut(node.init(init_at(&free_address())), polls));
        assert!(is_in(&changed_to(&node, is_in).await), "after {polls} polls");
        assert!(matches!(node.init(init_at(&free_address())).await, Err(NodeError::AlreadyMember)));
        drop(cut(node.leave(true), polls));
        changed_to(&node, |standing| *standing == Standing::Inactive).await;
        assert!(matches!(node.leave(true).await, Err(NodeError::NotMember)));
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_is_cut_at_any_millisecond_leaves_no_half_membership() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    for millis in [0, 1, 2, 4, 8, 16, 32, 64, 128] {
        let init = node.init(init_at(&free_address()));
        // Ignored because: whether the answer came in time is what varies here.
        let _ = tokio::time::timeout(Duration::from_millis(millis), init).await;
        if is_in(&settled(&node).await) {
            node.leave(true).await.unwrap();
        }
        assert_eq!(node.standing(), Standing::Inactive, "after {millis} ms");
    }
    node.init(init_at(&free_address())).await.unwrap();
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_and_a_leave_that_are_cut_settle() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let (manager, worker) = (open(&first).await, open(&second).await);
    let address = free_address();
    manager.init(init_at(&address)).await.unwrap();
    for millis in [0, 1, 5, 20, 80] {
        let join = worker.join(join_of(&manager, &address));
        // Ignored because: whether the answer came in time is what varies here.
        let _ = tokio::time::timeout(Duration::from_millis(millis), join).await;
        assert!(is_in(&changed_to(&worker, is_in).await), "after {millis} ms");
        // Ignored because: as above.
        let _ = tokio::time::timeout(Duration::from_millis(millis), worker.leave(false)).await;
        changed_to(&worker, |standing| *standing == Standing::Inactive).await;
    }
    worker.shutdown().await;
    manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_swept_and_a_member_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let swarm = dir.path().join("swarm");
    // A kill in the middle of an init: files, but no record.
    std::fs::create_dir_all(swarm.join("store")).unwrap();
    std::fs::write(swarm.join("identity.json"), "{").unwrap();
    let node = open(dir.path()).await;
    assert_eq!(node.standing(), Standing::Inactive);
    assert!(!swarm.exists());
    node.init(init_at(&free_address())).await.unwrap();
    node.shutdown().await;
    let mode = std::os::unix::fs::PermissionsExt::mode;
    assert_eq!(mode(&std::fs::metadata(&swarm).unwrap().permissions()) & 0o777, 0o700);
    let record = std::fs::metadata(swarm.join("node.json")).unwrap();
    assert_eq!(mode(&record.permissions()) & 0o777, 0o600);
    let node = open(dir.path()).await;
    assert!(is_in(&node.standing()));
    // A kill in the middle of a leave: the record goes first.
    node.shutdown().await;
    std::fs::remove_file(swarm.join("node.json")).unwrap();
    let node = open(dir.path()).await;
    assert_eq!(node.standing(), Standing::Inactive);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).await;
    node.init(init_at(&free_address())).await.unwrap();
    node.shutdown().await;
    let identity = dir.path().join("swarm/identity.json");
    let whole = std::fs::read(&identity).unwrap();
    std::fs::write(&identity, &whole[..whole.len() / 2]).unwrap();
    let node = open(dir.path()).await;
    let Standing::Broken { error } = node.standing() else { panic!("{:?}", node.standing()) };
    assert!(error.contains("identity.json"), "{error}");
    assert!(matches!(node.init(init_at(&free_address())).await, Err(NodeError::AlreadyMember)));
    // The administrator puts the file back: no restart is needed.
    std::fs::write(&identity, &whole).unwrap();
    changed_to(&node, is_in).await;
    // And one who cannot leaves.
    node.shutdown().await;
    std::fs::write(&identity, "").unwrap();
    let node = open(dir.path()).await;
    node.leave(false).await.unwrap();
    assert_eq!(node.standing(), Standing::Inactive);
    node.init(init_at(&free_address())).await.unwrap();
    node.shutdown().await;
}
