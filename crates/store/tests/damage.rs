//! A damaged store says what is damaged, at once; what does not belong to it does no harm.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use shoal_model::fault::Fault as _;
use shoal_store::{Store, StoreError};
use support::{config, message, put, soon};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");

/// Far below what a user waits for a daemon's start.
const DEADLINE: Duration = Duration::from_secs(60);

fn file(dir: &Path) -> PathBuf {
    dir.join("raft/store.redb")
}

/// A store with a few writes, closed.
async fn store(dir: &Path) {
    let store = Store::bootstrap(config(dir), put(1, "first")).await.unwrap();
    for number in 2..=20 {
        store.propose(put(number, "some text to be found again"), soon()).await.unwrap();
    }
    store.snapshot().await.unwrap();
    for number in 2..=9 {
        store.propose(put(number, "after the snapshot"), soon()).await.unwrap();
    }
    store.shutdown().await;
}

async fn open(dir: &Path) -> Result<Store, StoreError> {
    let opened = tokio::time::timeout(DEADLINE, Store::open(config(dir))).await;
    opened.expect("opening hangs")
}

#[track_caller]
fn says(error: &StoreError, dir: &Path, part: &str) {
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&*dir.join("raft").to_string_lossy()), "no path: {text}");
    assert!(text.contains(part), "not '{part}': {text}");
    assert_eq!(error.id().unwrap().0, "SH-STO-016");
    assert!(error.remedy().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cut_short_or_overwritten_is_named() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).await;
    let good = fs::read(file(dir.path())).unwrap();
    for length in [0, 1, 100, 320, 4096, good.len() / 3, good.len() / 2, good.len() - 4096] {
        fs::write(file(dir.path()), &good[..length]).unwrap();
        let error = open(dir.path()).await.unwrap_err();
        says(&error, dir.path(), "the file is damaged");
    }
    for (from, to) in [(0, 9), (0, 64), (0, 4096), (9, 320), (64, 192), (4096, good.len())] {
        let mut bytes = good.clone();
        bytes[from..to].fill(0xa5);
        fs::write(file(dir.path()), &bytes).unwrap();
        match open(dir.path()).await {
            Err(error) => says(&error, dir.path(), "the file is damaged"),
            // The file keeps two descriptions of itself; one is enough.
            Ok(store) => {
                assert_eq!(message(&store, 2).as_deref(), Some("after the snapshot"));
                assert_eq!(message(&store, 20).as_deref(), Some("some text to be found again"));
                store.shutdown().await;
            }
        }
    }
    fs::write(file(dir.path()), &good).unwrap();
    open(dir.path()).await.unwrap().shutdown().await;
}

/// What a hole in the structure looks like: the file is sound, a record in it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).await;
    let good = fs::read(file(dir.path())).unwrap();
    let edit = |edit: &dyn Fn(&redb::WriteTransaction)| {
        fs::write(file(dir.path()), &good).unwrap();
        let database = Database::open(file(dir.path())).unwrap();
        let txn = database.begin_write().unwrap();
        edit(&txn);
        txn.commit().unwrap();
    };
    let indices: Vec<u64> = {
        let database = Database::open(file(dir.path())).unwrap();
        let table = database.begin_read().unwrap().open_table(LOG).unwrap();
        table.range(0u64..).unwrap().map(|item| item.unwrap().0.value()).collect()
    };
    let last = *indices.last().unwrap();
    let change = |txn: &redb::WriteTransaction, index: u64| {
        let mut table = txn.open_table(LOG).unwrap();
        let mut sealed = table.get(index).unwrap().unwrap().value().to_vec();
        *sealed.last_mut().unwrap() ^= 1;
        table.insert(index, sealed.as_slice()).unwrap();
    };
    for index in [last, last - 3] {
        edit(&|txn| change(txn, index));
        says(&open(dir.path()).await.unwrap_err(), dir.path(), &format!("'log:{index}'"));
    }
    edit(&|txn| drop(txn.open_table(LOG).unwrap().remove(last - 3).unwrap()));
    says(&open(dir.path()).await.unwrap_err(), dir.path(), "are missing");
    edit(&|txn| drop(txn.open_table(LOG).unwrap().remove(last).unwrap()));
    let end = format!("but was written up to entry {last} of term");
    says(&open(dir.path()).await.unwrap_err(), dir.path(), &end);
    edit(&|txn| drop(txn.open_table(META).unwrap().remove("tail").unwrap()));
    says(&open(dir.path()).await.unwrap_err(), dir.path(), "'tail'");
    for record in ["vote", "snapshot", "tail", "committed"] {
        edit(&|txn| {
            let mut table = txn.open_table(META).unwrap();
            table.insert(record, b"nonsense that is longer than a nonce".as_slice()).unwrap();
        });
        says(&open(dir.path()).await.unwrap_err(), dir.path(), &format!("'meta:{record}'"));
    }
    edit(&|txn| drop(txn.open_table(SNAPSHOT).unwrap().remove(0u32).unwrap()));
    says(&open(dir.path()).await.unwrap_err(), dir.path(), "snapshot");
    for table in [0, 1, 2] {
        edit(&|txn| {
            let gone = match table {
                0 => txn.delete_table(LOG),
                1 => txn.delete_table(SNAPSHOT),
                _ => txn.delete_table(META),
            };
            assert!(gone.unwrap());
        });
        says(&open(dir.path()).await.unwrap_err(), dir.path(), "does not exist");
    }
}

#[tokio::test]
async fn stray_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let raft = dir.path().join("raft");
    fs::create_dir(&raft).unwrap();
    // What an interrupted creation leaves, and what nobody knows.
    fs::write(raft.join("store.next"), "half").unwrap();
    fs::write(raft.join("junk"), vec![0; 10_000]).unwrap();
    fs::create_dir_all(raft.join("dir/deep")).unwrap();
    std::os::unix::fs::symlink("/nowhere", raft.join("link")).unwrap();
    store(dir.path()).await;
    fs::create_dir(raft.join("store.next")).unwrap();
    fs::write(raft.join(".store.key.next"), "half").unwrap();
    open(dir.path()).await.unwrap().shutdown().await;
    // A directory in the way of a new file goes.
    fs::remove_file(raft.join("store.redb")).unwrap();
    fs::create_dir_all(raft.join("store.next/x")).unwrap();
    store(dir.path()).await;
}

/// Nothing in the places of our files makes opening hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).await;
    let pipe = |name: &str| {
        let path = dir.path().join("raft").join(name);
        fs::rename(&path, path.with_extension("kept")).unwrap();
        let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&path).status();
        assert!(made.unwrap().success());
        path
    };
    let path = pipe("store.redb");
    says(&open(dir.path()).await.unwrap_err(), dir.path(), "no regular file");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    says(&open(dir.path()).await.unwrap_err(), dir.path(), "no regular file");
    fs::remove_dir(&path).unwrap();
    fs::rename(path.with_extension("kept"), &path).unwrap();
    pipe("store.key");
    let error = open(dir.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::Key { .. }), "{error:?}");
}
