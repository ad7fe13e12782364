//! Certificates are renewed in time, on managers and workers, without a restart.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use shoal_identity::node_identity::NodeIdentity;
use shoal_model::time::{Clock, Nanos};
use support::{DEADLINE, changed_to, free_address, init_at, is_in, join_of, now, open_at};

/// The shortest that certificates may last.
const VALIDITY: Duration = Duration::from_secs(3600);

fn identity(root: &Path) -> NodeIdentity {
    NodeIdentity::load(&root.join("swarm/identity.json")).unwrap().unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_on_managers_and_workers_and_serve_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    // Both nodes' clocks can be put forward.
    let ahead = Arc::new(AtomicI64::new(0));
    let clock: Clock = {
        let ahead = Arc::clone(&ahead);
        Arc::new(move || {
            now().plus(Duration::from_secs(ahead.load(Ordering::Relaxed).unsigned_abs()))
        })
    };
    let manager = open_at(&first, Arc::clone(&clock)).await;
    let worker = open_at(&second, clock).await;
    let address = free_address();
    let mut options = init_at(&address);
    let expiry = Nanos(i64::try_from(VALIDITY.as_nanos()).unwrap());
    options.spec.ca_config.node_cert_expiry = Some(expiry);
    manager.init(options).await.unwrap();
    worker.join(join_of(&manager, &address)).await.unwrap();
    changed_to(&worker, is_in).await;
    let before = [identity(&first), identity(&second)];

    // Past the last moment at which they may begin, and before their end.
    ahead.store(50 * 60, Ordering::Relaxed);
    let later = |root: &Path, old: &NodeIdentity| {
        let left = identity(root).not_after.since(old.not_after);
        left > Duration::from_secs(45 * 60)
    };
    until("the manager's certificate", || later(&first, &before[0])).await;
    until("the worker's certificate", || later(&second, &before[1])).await;
    for (root, old) in [(&first, &before[0]), (&second, &before[1])] {
        let new = identity(root);
        assert_eq!((&new.node_id, new.role), (&old.node_id, old.role));
        assert_ne!(new.key_pem, old.key_pem, "each certificate has a key of its own");
        let client = shoal_wire::client::connect(&address, &new).await.unwrap();
        drop(client);
    }
    assert!(is_in(&manager.standing()) && is_in(&worker.standing()));
    worker.shutdown().await;
    manager.shutdown().await;

    // What was kept is what the next start uses.
    let kept = identity(&first);
    let manager = open_at(&first, Arc::new(now)).await;
    changed_to(&manager, is_in).await;
    assert_eq!(identity(&first).cert_pem, kept.cert_pem);
    manager.shutdown().await;

    // A manager that was off for longer than its certificate lasts gives itself the next one.
    let much_later = || now().plus(Duration::from_secs(24 * 3600));
    let manager = open_at(&first, Arc::new(much_later)).await;
    changed_to(&manager, is_in).await;
    let own = identity(&first);
    assert!(own.not_after > much_later() && own.node_id == kept.node_id);
    manager.shutdown().await;
}
