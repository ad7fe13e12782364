//! Files of earlier formats open, once and for all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use redb::{Database, ReadableDatabase as _, TableDefinition};
use shoal_store::{Store, StoreError};
use support::{config, message, put, soon};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");
const KEY: [u8; 32] = [7; 32];

/// What programs of the first format wrote, decrypted: a line is a record's name and its text. One
/// is of a store that was just made, the other of one with a snapshot and a shortened log.
const FRESH: &str = include_str!("format1/fresh.txt");
const GROWN: &str = include_str!("format1/grown.txt");

fn cipher() -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&Key::from(KEY))
}

fn seal(record: &str, plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; 24] = rand::random();
    let sealed =
        cipher().encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: record.as_bytes() });
    [nonce.as_slice(), &sealed.unwrap()].concat()
}

/// A file of the first format.
fn write(dir: &Path, records: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let raft = dir.join("raft");
    fs::create_dir_all(&raft).unwrap();
    let key = raft.join("store.key");
    fs::write(&key, format!("{{\"version\":1,\"key\":\"{}\"}}", hex::encode(KEY))).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let database = Database::create(raft.join("store.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut meta = txn.open_table(META).unwrap();
        let mut log = txn.open_table(LOG).unwrap();
        let mut snapshot = txn.open_table(SNAPSHOT).unwrap();
        meta.insert("format", 1u32.to_le_bytes().as_slice()).unwrap();
        let member = seal("meta:member", &1u64.to_le_bytes());
        meta.insert("member", member.as_slice()).unwrap();
        for line in records.lines() {
            let (record, text) = line.split_once(' ').unwrap();
            let sealed = seal(record, text.as_bytes());
            match record.split_once(':').unwrap() {
                ("meta", name) => drop(meta.insert(name, sealed.as_slice()).unwrap()),
                ("log", index) => {
                    log.insert(index.parse::<u64>().unwrap(), sealed.as_slice()).unwrap();
                }
                (_, number) => {
                    snapshot.insert(number.parse::<u32>().unwrap(), sealed.as_slice()).unwrap();
                }
            }
        }
    }
    txn.commit().unwrap();
}

/// Every record, decrypted.
fn texts(dir: &Path) -> Vec<(String, String)> {
    let database = Database::open(dir.join("raft/store.redb")).unwrap();
    let txn = database.begin_read().unwrap();
    let mut found = Vec::new();
    for item in txn.open_table(META).unwrap().range::<&str>(..).unwrap() {
        let (name, sealed) = item.unwrap();
        found.push((format!("meta:{}", name.value()), sealed.value().to_vec()));
    }
    for item in txn.open_table(LOG).unwrap().range::<u64>(..).unwrap() {
        let (index, sealed) = item.unwrap();
        found.push((format!("log:{}", index.value()), sealed.value().to_vec()));
    }
    let open = |(record, sealed): (String, Vec<u8>)| {
        if record == "meta:format" {
            return (record, format!("{sealed:?}"));
        }
        let (nonce, body) = sealed.split_first_chunk::<24>().unwrap();
        let payload = Payload { msg: body, aad: record.as_bytes() };
        let plain = cipher().decrypt(&XNonce::from(*nonce), payload).unwrap();
        (record, String::from_utf8(plain).unwrap())
    };
    found.into_iter().map(open).collect()
}

async fn opens(records: &str, expected: &[(u16, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), records);
    for round in 0..2 {
        let store = Store::open(config(dir.path())).await.unwrap();
        for (number, text) in expected {
            assert_eq!(message(&store, *number).as_deref(), Some(*text), "{number}, {round}");
        }
        let count = expected.len() + round;
        assert_eq!(store.state().nodes.len(), count);
        store.propose(put(100, "written since"), soon()).await.unwrap();
        store.shutdown().await;
    }
    let texts = texts(dir.path());
    assert!(texts.contains(&("meta:format".into(), "[2, 0, 0, 0]".into())), "{texts:?}");
    for (record, text) in texts {
        assert!(!text.contains("leader_id"), "{record} is as it was: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_format_is_read_and_written_anew() {
    opens(FRESH, &[(1, "first")]).await;
    let (before, after) = ("before the snapshot", "after the snapshot");
    opens(GROWN, &[(1, "first"), (2, before), (3, before), (4, after)]).await;
}

/// A file that cannot be written anew stays what it was, and says what is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_of_the_first_format_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &GROWN.replace("\"payload\":{\"Normal\"", "\"payload\":{\"Odd\""));
    let before = texts_of_log(dir.path());
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("'log:19'"), "{error}");
    assert_eq!(texts_of_log(dir.path()), before);

    let key = format!("{{\"version\":1,\"key\":\"{}\"}}", "00".repeat(32));
    fs::write(dir.path().join("raft/store.key"), key).unwrap();
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Seal { .. }), "{error:?}");
}

fn texts_of_log(dir: &Path) -> Vec<(String, String)> {
    texts(dir).into_iter().filter(|(record, _)| record.starts_with("log:")).collect()
}

/// A file of a later format is refused and left alone.
#[tokio::test]
async fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), FRESH);
    let database = Database::open(dir.path().join("raft/store.redb")).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("format", 9u32.to_le_bytes().as_slice()).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = Store::open(config(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 9, known: 2, .. }), "{error:?}");
}
