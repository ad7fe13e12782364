//! A backup is the whole state or an error with a name; a store made from it goes on from there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use shoal_model::change::{Change, Expect, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::Fault as _;
use shoal_model::id::Revision;
use shoal_model::level::FIRST;
use shoal_model::time::Timestamp;
use shoal_store::{Backup, BackupError, Store, restore};
use support::journal::Dice;
use support::{cluster, config, leads, message, node, put, soon};

const PASSPHRASE: &str = "correct horse battery";

fn state() -> ClusterState {
    let objects = [cluster(FIRST), node(1, "one"), node(2, "two")];
    let put = |object| Change::Put { object, expect: Expect::Absent };
    let changes = objects.into_iter().map(put).collect();
    let mut state = ClusterState::default();
    state.apply(Revision(7), &Transaction { changes, at: Timestamp::from_secs(5) }).unwrap();
    state
}

fn backup() -> Backup {
    Backup::of(&state(), Timestamp::from_secs(9)).unwrap()
}

fn id(error: &BackupError) -> &'static str {
    assert!(error.remedy().is_some());
    error.id().unwrap().0
}

#[test]
fn a_backup_comes_back_whole() {
    let backup = backup();
    assert_eq!((backup.head.cluster.as_str(), backup.head.revision), ("the-cluster", 7));
    for passphrase in [None, Some(PASSPHRASE)] {
        let file = backup.encode(passphrase).unwrap();
        let shows = |text: &str| file.windows(text.len()).any(|w| w == text.as_bytes());
        assert_eq!(shows("the root's key"), passphrase.is_none());
        let (head, sealed) = Backup::look(&file).unwrap();
        assert_eq!((head.revision, sealed), (7, passphrase.is_some()));
        let read = Backup::decode(&file, passphrase).unwrap();
        assert_eq!(read.state().unwrap(), state());
    }
    let nothing = Backup::of(&ClusterState::default(), Timestamp::ZERO).unwrap_err();
    assert_eq!(id(&nothing), "SH-STO-040");
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let sealed = backup().encode(Some(PASSPHRASE)).unwrap();
    let wrong = Backup::decode(&sealed, Some("another one")).unwrap_err();
    assert_eq!(id(&wrong), "SH-STO-044");
    let unsaid = Backup::decode(&sealed, None).unwrap_err();
    assert_eq!(id(&unsaid), "SH-STO-045");
    assert_eq!(id(&Backup::decode(b"something else", None).unwrap_err()), "SH-STO-041");
    assert_eq!(id(&Backup::decode(b"", None).unwrap_err()), "SH-STO-041");
    let mut later = backup().encode(None).unwrap();
    later[8] = 9;
    let error = Backup::decode(&later, None).unwrap_err();
    assert_eq!(id(&error), "SH-STO-042", "{error}");
}

/// No cut and no flipped bit gives a state.
#[test]
fn a_cut_or_damaged_file_is_never_taken() {
    for passphrase in [None, Some(PASSPHRASE)] {
        let good = backup().encode(passphrase).unwrap();
        let refuse = |bytes: &[u8], what: &str| {
            // What is sealed is found out by its digests, before a key is made.
            let error = Backup::decode(bytes, passphrase).err();
            let error = error.unwrap_or_else(|| panic!("{what} was taken"));
            let known = ["SH-STO-041", "SH-STO-042", "SH-STO-043"];
            assert!(known.contains(&id(&error)), "{what}: {error}");
        };
        for length in 0..good.len() {
            refuse(&good[..length], &format!("a file cut after {length} bytes"));
        }
        refuse(&[good.as_slice(), b"more"].concat(), "a longer file");
        let mut dice = Dice(0xb17);
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << dice.roll(8);
            refuse(&bad, &format!("a flipped bit in byte {byte}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_goes_on_from_a_backup() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Transaction {
        changes: vec![Change::Put { object: cluster(FIRST), expect: Expect::Absent }],
        at: Timestamp::from_secs(1),
    };
    let store = Store::bootstrap(config(old.path()), first).await.unwrap();
    for number in 1..=20 {
        store.propose(put(number, &format!("write {number}")), soon()).await.unwrap();
    }
    let before = store.state();
    let backup = Backup::of(&before, Timestamp::from_secs(9)).unwrap();
    let was = store.epoch().unwrap();
    store.shutdown().await;

    let raft_id = restore(&config(new.path()), &backup).await.unwrap();
    assert!(raft_id > before.revision.0);
    let twice = restore(&config(new.path()), &backup).await.unwrap_err();
    assert_eq!(twice.id().unwrap().0, "SH-STO-007");
    let store = Store::open(config(new.path())).await.unwrap();
    leads(&store).await;
    assert_eq!(store.raft_id(), raft_id);
    assert_eq!(store.state().objects(), before.objects());
    let epoch = store.epoch().unwrap();
    assert_ne!(epoch.id, was.id);
    assert!(epoch.since < raft_id);
    store.propose(put(21, "after"), soon()).await.unwrap();
    assert!(store.state().revision > before.revision);
    store.shutdown().await;
    let store = Store::open(config(new.path())).await.unwrap();
    assert_eq!(message(&store, 21).as_deref(), Some("after"));
    assert_eq!(message(&store, 20).as_deref(), Some("write 20"));
    store.shutdown().await;
}
