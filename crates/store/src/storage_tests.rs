//! What log and state machine promise to the consensus library when a crash comes in between.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _};
use openraft::{
    EntryPayload, Membership, RaftLogReader as _, RaftSnapshotBuilder as _, StorageHelper,
};
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::id::{NodeId, Revision};
use shoal_model::level;
use shoal_model::net::NodeIndex;
use shoal_model::object::{Meta, Node, NodeDescription, NodeState, NodeStatus};
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;
use tempfile::TempDir;

use crate::ceiling::Ceiling;
use crate::consensus::{Entry, LogId, Vote};
use crate::disk::{Disk, Op, TAIL_RECORD};
use crate::error::StoreError;
use crate::keyring::Keyring;
use crate::log_store::{APPEND_BYTES, LogStore};
use crate::outside::{Machine, Outside};
use crate::peer::{Member, MemberNode};
use crate::record::{LogIdRecord, Payload};
use crate::state_machine::{Published, StateMachine};

/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// Long enough to see that something wrongly happens at once.
const SOON: Duration = Duration::from_millis(300);

struct Opened {
    disk: Disk,
    log: LogStore,
    machine: StateMachine,
    published: Arc<Published>,
}

fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let member = Member { node: "one".to_owned(), raft_id: 1 };
    Disk::create(dir.path(), &Keyring::of(dir.path()), &member, None).unwrap();
    dir
}

fn machine() -> Arc<dyn Outside> {
    Arc::new(Machine)
}

fn open(dir: &Path) -> Result<Opened, StoreError> {
    let published = Arc::new(Published::new(16));
    let disk = Disk::open(dir, &Keyring::of(dir), None, &machine())?;
    let ceiling = Arc::new(Ceiling::new(level::READS));
    let log = LogStore::new(disk.clone(), Arc::clone(&ceiling));
    let machine = StateMachine::load(disk.clone(), Arc::clone(&published), ceiling)?;
    Ok(Opened { disk, log, machine, published })
}

/// The directory as it is after a crash at this moment: what is durable, and nothing else.
fn crashed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["store.redb", "store.key"] {
        std::fs::copy(dir.join(file), copy.path().join(file)).unwrap();
    }
    copy
}

fn at(index: u64) -> LogId {
    LogIdRecord { term: 1, index }.into()
}

fn group(index: u64, voters: &[u64]) -> Entry {
    let nodes: BTreeMap<u64, MemberNode> =
        voters.iter().map(|id| (*id, MemberNode { node: format!("node{id}") })).collect();
    let voters = vec![BTreeSet::from_iter(voters.iter().copied())];
    Entry { log_id: at(index), payload: EntryPayload::Membership(Membership::new(voters, nodes)) }
}

/// An entry that puts one node, whose message has `bytes` bytes.
fn data(index: u64, bytes: usize) -> Entry {
    let node = Node {
        id: NodeId::new(format!("node{index:05}")),
        meta: Meta::default(),
        spec: Default::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: "x".repeat(bytes),
            addr: String::new(),
            since: Timestamp::ZERO,
            back_by: None,
        },
        index: NodeIndex(u16::try_from(index).unwrap()),
        data_path_addr: None,
        manager: None,
        tls: NodeTls::default(),
        extra: Default::default(),
    };
    let object = Object::Node(Box::new(node));
    let changes = vec![Change::Put { object, expect: Expect::Any }];
    let transaction = Transaction { changes, at: Timestamp::from_secs(1) };
    let payload = Payload::encode(level::FIRST, &[transaction]).unwrap();
    Entry { log_id: at(index), payload: EntryPayload::Normal(payload) }
}

fn range(from: u64, to: u64) -> Vec<Entry> {
    (from..=to).map(|index| data(index, 10)).collect()
}

/// A log with the group `voters` and entries up to `last`, nothing of it applied.
async fn filled(dir: &Path, voters: &[u64], last: u64) -> Opened {
    let mut opened = open(dir).unwrap();
    opened.log.blocking_append([group(0, voters)]).await.unwrap();
    opened.log.blocking_append(range(1, last)).await.unwrap();
    opened
}

async fn indices(log: &mut LogStore) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// A snapshot up to `index`, made by another member.
async fn foreign_snapshot(index: u64) -> (crate::consensus::SnapshotMeta, Box<Cursor<Vec<u8>>>) {
    let dir = made();
    let mut other = open(dir.path()).unwrap();
    other.machine.apply([group(0, &[1, 2])]).await.unwrap();
    other.machine.apply(range(1, index)).await.unwrap();
    let built = other.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    other.disk.close().await;
    (built.meta, built.snapshot)
}

/// The library queues the installation of a snapshot and the dropping of the log behind it as two
/// commands for two tasks.
#[tokio::test]
async fn the_log_is_dropped_only_once_a_snapshot_holds_it() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1, 2], 8).await;
    let mut purging = opened.log.clone();
    let purge = tokio::spawn(async move { purging.purge(at(8)).await });
    let early = tokio::time::timeout(SOON, async {
        while !purge.is_finished() {
            tokio::task::yield_now().await;
        }
    });
    assert!(early.await.is_err(), "dropped without a snapshot");
    // A crash here leaves the whole log.
    let copy = crashed(dir.path());
    let mut after = open(copy.path()).unwrap();
    assert_eq!(indices(&mut after.log).await, Vec::from_iter(0..=8));
    after.disk.close().await;

    let (meta, content) = foreign_snapshot(12).await;
    opened.machine.install_snapshot(&meta, content).await.unwrap();
    tokio::time::timeout(DEADLINE, purge).await.unwrap().unwrap().unwrap();
    assert_eq!(indices(&mut opened.log).await, Vec::<u64>::new());
    opened.disk.close().await;
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.published.state.borrow().nodes.len(), 12);
    opened.disk.close().await;
}

/// Consensus waits for the purge: a file that is closed must not hold it up.
#[tokio::test]
async fn a_purge_ends_with_its_file() {
    let dir = made();
    let opened = filled(dir.path(), &[1, 2], 8).await;
    let mut purging = opened.log.clone();
    let purge = tokio::spawn(async move { purging.purge(at(8)).await });
    opened.disk.close().await;
    assert!(tokio::time::timeout(DEADLINE, purge).await.unwrap().unwrap().is_err());
}

/// A snapshot is built beside everything else: one that is installed may overtake it.
#[tokio::test]
async fn an_older_snapshot_never_replaces_a_newer_one() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1, 2], 5).await;
    opened.machine.apply([group(0, &[1, 2])]).await.unwrap();
    opened.machine.apply(range(1, 5)).await.unwrap();
    let mut builder = opened.machine.get_snapshot_builder().await;
    let (meta, content) = foreign_snapshot(9).await;
    opened.machine.install_snapshot(&meta, content).await.unwrap();
    builder.build_snapshot().await.unwrap();
    let stored = opened.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(stored.meta, meta);
    opened.disk.close().await;

    let mut opened = open(dir.path()).unwrap();
    assert_eq!(opened.machine.applied_state().await.unwrap().0, Some(at(9)));
    assert_eq!(opened.published.state.borrow().nodes.len(), 9);
    // What is newer does replace it, also after opening.
    opened.machine.apply(range(10, 11)).await.unwrap();
    opened.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let stored = opened.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(stored.meta.last_log_id, Some(at(11)));
    opened.disk.close().await;
}

/// A member that starts without a majority shows what it knew to be confirmed.
#[tokio::test]
async fn what_was_confirmed_is_applied_at_the_next_start() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1, 2], 6).await;
    opened.log.save_committed(Some(at(4))).await.unwrap();
    // With the next append.
    opened.log.blocking_append(range(7, 7)).await.unwrap();
    assert_eq!(applied_after_crash(dir.path()).await, 4);
    // Alone, when nothing else is written.
    opened.log.save_committed(Some(at(5))).await.unwrap();
    let until = tokio::time::Instant::now() + DEADLINE;
    while applied_after_crash(dir.path()).await != 5 {
        assert!(tokio::time::Instant::now() < until, "it is never written");
    }
    // When the file is closed.
    opened.log.save_committed(Some(at(6))).await.unwrap();
    opened.disk.close().await;
    assert_eq!(applied_after_crash(dir.path()).await, 6);
}

/// The last entry that is applied when a copy of `dir` is opened without any other member.
async fn applied_after_crash(dir: &Path) -> u64 {
    let copy = crashed(dir);
    let mut opened = open(copy.path()).unwrap();
    let mut helper = StorageHelper::new(&mut opened.log, &mut opened.machine);
    helper.get_initial_state().await.unwrap();
    opened.disk.close().await;
    let Revision(revision) = *opened.published.revision.borrow();
    revision
}

/// A leader of several asks again before it leads: its disk may be an old copy of itself.
#[tokio::test]
async fn a_leader_of_several_does_not_lead_at_once_after_a_restart() {
    for (voters, own, leads) in [
        (&[1][..], 1, true),
        (&[1, 2], 1, false),
        // It follows another one, whose lead it goes on to respect.
        (&[1, 2], 2, true),
    ] {
        let dir = made();
        let mut opened = filled(dir.path(), voters, 3).await;
        opened.log.save_vote(&Vote::new_committed(1, own)).await.unwrap();
        opened.disk.close().await;
        let mut opened = open(dir.path()).unwrap();
        let vote = opened.log.read_vote().await.unwrap().unwrap();
        assert_eq!(vote.is_committed(), leads, "{voters:?}, {own}");
        assert_eq!(*vote.leader_id(), *Vote::new(1, own).leader_id());
        opened.disk.close().await;
    }
}

/// The group may also be known from the snapshot alone.
#[tokio::test]
async fn the_group_of_a_restart_is_looked_for_in_the_snapshot_too() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1], 3).await;
    opened.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    let (meta, content) = foreign_snapshot(3).await;
    opened.machine.install_snapshot(&meta, content).await.unwrap();
    opened.log.purge(at(3)).await.unwrap();
    opened.log.blocking_append(range(4, 4)).await.unwrap();
    opened.disk.close().await;
    let mut opened = open(dir.path()).unwrap();
    assert!(!opened.log.read_vote().await.unwrap().unwrap().is_committed());
    opened.disk.close().await;
}

/// The structure of the file may be sound although its end is that of yesterday.
#[tokio::test]
async fn a_log_that_lost_its_end_is_damaged() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1, 2], 6).await;
    let tail = opened.disk.meta(TAIL_RECORD).unwrap().unwrap();
    opened.log.truncate(at(5)).await.unwrap();
    opened.disk.close().await;
    let opened = open(dir.path()).unwrap();
    let whole = opened.disk.meta(TAIL_RECORD).unwrap().unwrap();
    assert_eq!(whole, br#"{"term":1,"index":4}"#);
    opened.disk.write(vec![Op::PutMeta(TAIL_RECORD, tail)]).await.unwrap();
    opened.disk.close().await;
    let error = open(dir.path()).err().expect("it opens");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("ends with entry 4 of term 1"), "{error}");
}

/// In whichever way the log becomes shorter or empty, its end is known.
#[tokio::test]
async fn the_end_of_the_log_is_known_after_every_change() {
    let dir = made();
    let mut opened = filled(dir.path(), &[1, 2], 6).await;
    let (meta, content) = foreign_snapshot(9).await;
    opened.machine.install_snapshot(&meta, content).await.unwrap();
    for step in 0..4 {
        match step {
            0 => opened.log.purge(at(3)).await.unwrap(),
            1 => opened.log.truncate(at(6)).await.unwrap(),
            2 => opened.log.purge(at(9)).await.unwrap(),
            _ => opened.log.blocking_append(range(10, 12)).await.unwrap(),
        }
        opened.disk.close().await;
        opened = open(dir.path()).unwrap_or_else(|e| panic!("step {step}: {e}"));
        let state = opened.log.get_log_state().await.unwrap();
        assert_eq!(state.last_log_id, Some(at([6, 5, 9, 12][step])), "step {step}");
    }
    opened.disk.close().await;
}

/// One message to a member that is behind stays small, but always has something in it.
#[tokio::test]
async fn entries_for_others_come_in_bounded_parts() {
    let dir = made();
    let mut opened = open(dir.path()).unwrap();
    opened.log.blocking_append([group(0, &[1, 2])]).await.unwrap();
    let sizes =
        [10, 2 * APPEND_BYTES, 10, APPEND_BYTES / 3, APPEND_BYTES / 3, APPEND_BYTES / 3, 10];
    let entries: Vec<Entry> = (1..).zip(sizes).map(|(index, bytes)| data(index, bytes)).collect();
    // Read back from memory, and from disk.
    opened.log.blocking_append(entries).await.unwrap();
    let mut fresh = LogStore::new(opened.disk.clone(), Arc::new(Ceiling::new(level::READS)));
    for log in [&mut opened.log, &mut fresh] {
        let mut parts = Vec::new();
        let mut next = 1;
        while next < 8 {
            let part = log.limited_get_log_entries(next, 8).await.unwrap();
            let found: Vec<u64> = part.iter().map(|entry| entry.log_id.index).collect();
            assert_eq!(found.first(), Some(&next), "{found:?}");
            next = found.last().unwrap() + 1;
            parts.push(found);
        }
        assert_eq!(parts, [vec![1], vec![2], vec![3, 4, 5], vec![6, 7]]);
    }
    opened.disk.close().await;
}
