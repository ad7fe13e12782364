//! What was confirmed is there after any crash, and the file always opens.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use shoal_model::change::{ApplyError, Change, Expect, Transaction};
use shoal_model::time::Timestamp;
use shoal_store::{ChangeEvent, Lead, Store, StoreError};
use support::{config, killed_soon, leads, message, node, put, soon};

const CHILD_DIR: &str = "SHOAL_STORE_TEST_DIR";

#[tokio::test]
async fn writes_are_there_after_closing_and_opening() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!Store::exists(&config(dir.path()).dir));
    let missing = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    leads(&store).await;
    let revision = store.state().revision;
    let mut watch = store.watch();
    let mut changes = store.changes();
    let changed = store.propose(put(2, "second"), soon()).await.unwrap();
    assert_eq!(changed.len(), 1);
    assert!(store.state().revision > revision);
    assert!(watch.has_changed().unwrap());
    watch.borrow_and_update();
    let Some(ChangeEvent::Applied { changes: seen, .. }) = changes.next().await else {
        panic!("no event");
    };
    assert_eq!(*seen, changed);
    store.shutdown().await;
    assert!(matches!(store.propose(put(3, "x"), soon()).await, Err(StoreError::Stopped { .. })));
    assert!(changes.next().await.is_none());
    assert_eq!(*store.lead().borrow(), Lead::Closed);

    let exists = Store::bootstrap(config(dir.path()), put(1, "again")).await.unwrap_err();
    assert!(matches!(exists, StoreError::Exists { .. }), "{exists}");
    let store = Store::open(config(dir.path())).await.unwrap();
    assert_eq!(message(&store, 1).as_deref(), Some("first"));
    assert_eq!(message(&store, 2).as_deref(), Some("second"));
    store.shutdown().await;
}

#[tokio::test]
async fn a_refused_transaction_changes_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    let before = store.state();
    let object = node(1, "stale");
    let stale = Transaction {
        changes: vec![Change::Put { object, expect: Expect::Absent }],
        at: Timestamp::from_secs(2),
    };
    let error = store.propose(stale, soon()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(ApplyError::OutOfSequence { .. })), "{error}");
    assert_eq!(store.state(), before);
    let huge = "x".repeat(shoal_store::TRANSACTION_BYTES_MAX);
    let error = store.propose(put(1, &huge), soon()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    store.shutdown().await;
}

#[tokio::test]
async fn only_one_process_opens_it_and_only_its_member() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
    store.shutdown().await;
    let error = Store::join(config(dir.path()), 2).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherMember { found: 1, expected: 2, .. }), "{error}");
}

#[tokio::test]
async fn nothing_readable_is_on_disk_and_a_wrong_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "correct horse battery staple";
    let store = Store::bootstrap(config(dir.path()), put(1, secret)).await.unwrap();
    store.snapshot().await.unwrap();
    store.shutdown().await;
    let raft = dir.path().join("raft");
    let bytes = std::fs::read(raft.join("store.redb")).unwrap();
    for plain in [secret, "node00001", "revision"] {
        assert!(!bytes.windows(plain.len()).any(|w| w == plain.as_bytes()), "'{plain}' in clear");
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(raft.join("store.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = format!("{{\"version\":1,\"key\":\"{}\"}}", "00".repeat(32));
    std::fs::write(raft.join("store.key"), key).unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Seal { .. }), "{error}");
    std::fs::remove_file(raft.join("store.key")).unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Key { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_replace_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    for round in 0..4u16 {
        for number in 1..=40 {
            store.propose(put(number, &format!("round {round}")), soon()).await.unwrap();
        }
        store.snapshot().await.unwrap();
    }
    store.propose(put(1, "after the snapshot"), soon()).await.unwrap();
    let before = store.state();
    store.shutdown().await;
    let store = Store::open(config(dir.path())).await.unwrap();
    assert_eq!(store.state(), before);
    assert_eq!(message(&store, 1).as_deref(), Some("after the snapshot"));
    assert_eq!(message(&store, 40).as_deref(), Some("round 3"));
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_follower_is_told_that_it_missed_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    let mut slow = store.changes();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..60u16 {
        let store = store.clone();
        writers.spawn(async move {
            for round in 0..20 {
                store.propose(put(writer + 1, &round.to_string()), soon()).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert!(matches!(slow.next().await, Some(ChangeEvent::Missed { count }) if count > 0));
    assert_eq!(store.state().nodes.len(), 60);
    store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_refused_or_whole_but_never_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    for number in 2..=20 {
        store.propose(put(number, "some text to be found again"), soon()).await.unwrap();
    }
    let state = store.state();
    store.shutdown().await;
    let file = dir.path().join("raft/store.redb");
    let good = std::fs::read(&file).unwrap();
    for round in 0..60usize {
        let mut bytes = good.clone();
        // Spread over the whole file; an odd step, so that it does not only hit page borders.
        let at = (round * 12_347) % bytes.len();
        bytes[at] ^= 0x55;
        std::fs::write(&file, &bytes).unwrap();
        let opened = tokio::time::timeout(Duration::from_secs(60), Store::open(config(dir.path())));
        match opened.await.unwrap_or_else(|_| panic!("byte {at}: hangs")) {
            Ok(store) => {
                assert_eq!(store.state().nodes, state.nodes, "byte {at}");
                store.shutdown().await;
            }
            Err(error) => assert!(!error.to_string().is_empty(), "byte {at}"),
        }
    }
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    Store::open(config(dir.path())).await.unwrap_err();
}

/// Not a test by itself: what the killed process does. It writes counters to a few objects, from
/// several tasks at once, and prints each write once it is confirmed.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let config = config(Path::new(&dir));
        let store = match Store::open(config.clone()).await {
            Ok(store) => store,
            Err(StoreError::Missing { .. }) => {
                Store::bootstrap(config, put(9999, "0")).await.expect("bootstrap")
            }
            Err(error) => panic!("open: {error}"),
        };
        println!("\nopened");
        let mut writers = tokio::task::JoinSet::new();
        for number in 1..=4u16 {
            let store = store.clone();
            writers.spawn(async move {
                let start = message(&store, number).map_or(0, |m| m.parse::<u64>().unwrap());
                for count in start + 1.. {
                    store.propose(put(number, &count.to_string()), soon()).await.expect("propose");
                    if count % 50 == 0 && number == 1 {
                        store.snapshot().await.expect("snapshot");
                    }
                    println!("\nconfirmed {number} {count}");
                }
            });
        }
        while writers.join_next().await.is_some() {}
    });
}

#[test]
fn confirmed_writes_survive_kill_9() {
    const ROUNDS: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let mut confirmed = [0u64; 5];
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_writes_until_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        // Some rounds are killed while the store is made or opened, others while it writes.
        let killer = killed_soon(child, round);
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            let mut words = line.split(' ');
            if words.next() == Some("confirmed") {
                let number: usize = words.next().unwrap().parse().unwrap();
                confirmed[number] = words.next().unwrap().parse().unwrap();
            }
        }
        let status = killer.join().unwrap();
        assert_eq!(status.code(), None, "the child must be killed, not fail: {status}");
    }
    assert!(confirmed.iter().sum::<u64>() > 0, "no round lived long enough");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(config(dir.path())).await.unwrap();
        for number in 1..=4u16 {
            let stored = message(&store, number).map_or(0, |m| m.parse::<u64>().unwrap());
            // The write after the last confirmed one may have happened, nothing beyond.
            let last = confirmed[usize::from(number)];
            assert!(stored == last || stored == last + 1, "{number}: {stored}, confirmed {last}");
        }
        println!("confirmed writes per object: {:?}", &confirmed[1..]);
        store.shutdown().await;
    });
}
