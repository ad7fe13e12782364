//! A full disk stops writes, says so, and is survived: the store goes on by itself once there is
//! space. On a small memory file system in a mount namespace of the test's own, which needs root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use shoal_model::fault::{Fault as _, FaultKind};
use shoal_stopwatch::Stopwatch;
use shoal_store::{ChangeEvent, Lead, Store, StoreError};
use support::board::{self, Trio};
use support::{config, message, put, soon};

const CHILD_DIR: &str = "SHOAL_STORE_FULL_DIR";
/// Longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_full_disk_is_said_and_survived() {
    on_a_small_disk("child_fills_its_disk");
}

#[test]
fn a_full_disk_of_one_that_follows_is_survived() {
    on_a_small_disk("child_follows_on_a_full_disk");
}

fn on_a_small_disk(child: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=8m tmpfs \"$0\" && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args([child, "--exact", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .status()
        .unwrap();
    if !is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    assert!(status.success(), "{status}");
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t0\t")
}

/// Not a test by itself: what the process on the small disk does.
#[test]
fn child_fills_its_disk() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let dir = Path::new(&dir);
        let store = Store::bootstrap(config(dir), put(1, "first")).await.unwrap();
        for round in 0..3 {
            fill_and_free(dir, &store, round).await;
        }
        let state = store.state();
        store.shutdown().await;
        let store = Store::open(config(dir)).await.unwrap();
        assert_eq!(store.state().nodes, state.nodes);
        store.shutdown().await;
    });
}

/// Not a test by itself either: a manager that follows, on the small disk, while the others have
/// room.
#[test]
fn child_follows_on_a_full_disk() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let mut trio = Trio::first(put(1, "first")).await;
        trio.put_into(3, Path::new(&dir));
        trio.join(2).await;
        trio.join(3).await;
        let ballast = Path::new(&dir).join("ballast");
        fill(&ballast);
        let until = Instant::now() + DEADLINE;
        let mut number = 1;
        while trio.store(3).health().is_ok() {
            assert!(Instant::now() < until, "the disk is never full");
            number += 1;
            trio.write(put(2 + number % 50, &"x".repeat(64 << 10))).await;
            fill(&ballast);
        }
        says_full(&trio.store(3).health().unwrap_err());
        // The others go on.
        trio.write(put(61, "without it")).await;
        fs::remove_file(&ballast).unwrap();
        board::until("it goes on", trio.store(3), |store| {
            store.health().is_ok() && message(store, 61).as_deref() == Some("without it")
        })
        .await;
        trio.write(put(62, "with it")).await;
        board::until("it follows", trio.store(3), |store| message(store, 62).is_some()).await;
        trio.end().await;
    });
}

async fn fill_and_free(dir: &Path, store: &Store, round: u16) {
    let (mut leads, mut revision) = (store.lead(), store.watch());
    let ballast = dir.join("ballast");
    fill(&ballast);
    // The file has some room of its own left.
    let text = |number: u16| format!("{round} {number} {}", "x".repeat(64 << 10));
    let mut confirmed = Vec::new();
    let until = Instant::now() + DEADLINE;
    let error = loop {
        assert!(Instant::now() < until, "the disk is never full");
        let number = 2 + confirmed.len() as u16 % 50;
        match store.propose(put(number, &text(number)), soon()).await {
            Ok(_) => confirmed.push(number),
            Err(error) => break error,
        }
        fill(&ballast);
    };
    says_full(&error);
    let unsure = 2 + confirmed.len() as u16 % 50;

    // From now on it is said at once, and nobody leads.
    for _ in 0..20 {
        let asked = Stopwatch::start();
        says_full(&store.propose(put(60, "never"), soon()).await.unwrap_err());
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    says_full(&store.health().unwrap_err());
    tokio::time::timeout(DEADLINE, leads.wait_for(|l| !is_leading(l))).await.unwrap().unwrap();
    assert!(!is_leading(&store.lead().borrow()));
    // What is there can be read.
    for number in confirmed.iter().rev().take(50).filter(|n| **n != unsure) {
        assert_eq!(message(store, *number), Some(text(*number)));
    }

    // Space is enough: nobody does anything else.
    let mut changes = store.changes();
    let before = store.state().revision;
    revision.mark_unchanged();
    fs::remove_file(&ballast).unwrap();
    let until = Instant::now() + DEADLINE;
    while let Err(error) = store.propose(put(61, &format!("again {round}")), soon()).await {
        assert!(Instant::now() < until, "it does not go on: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(store.health().is_ok());
    tokio::time::timeout(DEADLINE, leads.wait_for(is_leading)).await.unwrap().unwrap();
    assert!(store.state().revision > before);
    assert_eq!(message(store, 61), Some(format!("again {round}")));
    assert_eq!(message(store, 60), None, "a refused write shows up");
    for number in confirmed.iter().rev().take(50).filter(|n| **n != unsure) {
        assert_eq!(message(store, *number), Some(text(*number)), "confirmed and lost");
    }
    // Who followed before goes on following, and hears nothing twice.
    tokio::time::timeout(DEADLINE, revision.wait_for(|now| *now > before)).await.unwrap().unwrap();
    let next = tokio::time::timeout(DEADLINE, changes.next()).await.unwrap();
    let Some(ChangeEvent::Applied { revision, .. }) = next else { panic!("{next:?}") };
    assert!(revision > before, "{revision:?} was told before");
}

fn is_leading(lead: &Lead) -> bool {
    matches!(lead, Lead::Leading { .. })
}

#[track_caller]
fn says_full(error: &StoreError) {
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(error.id().unwrap().0, "SH-STO-014");
    assert_eq!(error.kind(), FaultKind::Unavailable);
}

/// Fills the disk to the last byte.
fn fill(path: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let mut step = 1 << 20;
    while step > 0 {
        if file.write_all(&vec![0x5a; step]).is_err() {
            step /= 4;
        }
    }
}
