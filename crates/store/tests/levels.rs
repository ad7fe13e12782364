//! Programs of two versions in one group: what one of them cannot read stops that one, and is in
//! its place when the program is upgraded.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use board::{DEADLINE, Trio, soon, until};
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::{Fault as _, report};
use shoal_model::id::Revision;
use shoal_model::level::{FIRST, READS};
use shoal_model::time::Timestamp;
use shoal_store::{Backup, BackupError, Store, StoreError};
use support::{board, cluster, message, node, put};
use tokio::time::Instant;

/// What the later program reads, and the cluster comes to write.
const LATER: u32 = READS + 1;

fn with_cluster(level: u32, more: Vec<Object>) -> Transaction {
    let put = |object| Change::Put { object, expect: Expect::Any };
    let changes = std::iter::once(cluster(level)).chain(more).map(put).collect();
    Transaction { changes, at: Timestamp::from_secs(1) }
}

/// Three managers, of which the second has the program of before.
async fn mixed() -> Trio {
    let mut trio = Trio::empty();
    trio.reads = [(1, LATER), (2, READS), (3, LATER)].into();
    trio.begin(with_cluster(READS, vec![node(1, "before")])).await;
    trio.join(2).await;
    trio.join(3).await;
    until("it learns", trio.store(2), |store| message(store, 1).is_some()).await;
    trio
}

/// Starts the second with a program that reads up to `level`.
async fn second_again(trio: &mut Trio, level: u32) {
    trio.stop(2).await;
    trio.reads.insert(2, level);
    trio.open(2).await;
}

fn has(number: u16) -> impl Fn(&Store) -> bool {
    move |store| message(store, number).is_some()
}

fn is_too_old(store: &Store) -> bool {
    matches!(store.health(), Err(StoreError::NeedsUpgrade { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_read_an_entry_stops_there_and_keeps_its_place() {
    let mut trio = mixed().await;
    trio.write(with_cluster(LATER, vec![node(2, "raised")])).await;
    trio.write(put(3, "after")).await;
    until("the third has it", trio.store(3), has(3)).await;
    until("the second stops", trio.store(2), is_too_old).await;
    let error = trio.store(2).health().unwrap_err();
    let said = report(&error);
    let words = format!("the cluster writes format {LATER}, this program reads up to {READS}");
    assert!(said.contains("upgrade this manager") && said.contains(&words), "{said}");
    assert_eq!(error.id().unwrap().0, "SH-STO-032");
    // What came before can be read, and nothing else.
    let state = trio.store(2).state();
    assert_eq!((state.level(), state.nodes.len()), (READS, 1));
    let refused = trio.store(2).propose(put(9, "no"), soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::NeedsUpgrade { .. }), "{refused}");
    let late = trio.store(2).applied(trio.store(1).state().revision, soon()).await.unwrap_err();
    assert!(matches!(late, StoreError::Behind { .. }), "{late}");

    // It keeps the log, so it is half of a majority.
    trio.stop(3).await;
    trio.write(put(4, "by the first and the second")).await;
    // But it does not lead: nothing is handed over to it.
    let end = Instant::now() + DEADLINE;
    loop {
        let stays = trio.store(1).hand_over(None, soon()).await.unwrap_err().to_string();
        if stays.contains("no other manager") {
            break;
        }
        assert!(Instant::now() < end, "{stays}");
    }
    trio.open(3).await;
    until("the third comes back", trio.store(3), has(4)).await;
    trio.stop(1).await;
    assert_eq!(trio.leader().await, 3, "who cannot read the log leads");
    trio.write(put(5, "by the third and the second")).await;

    // Started again as it is, it stops in the same place.
    second_again(&mut trio, READS).await;
    until("it stops again", trio.store(2), is_too_old).await;
    assert_eq!(trio.store(2).state().nodes.len(), 1);
    // Upgraded, it goes on where it was.
    second_again(&mut trio, LATER).await;
    until("it has everything", trio.store(2), has(5)).await;
    trio.store(2).health().unwrap();
    assert_eq!(trio.store(2).state().level(), LATER);
    let end = Instant::now() + DEADLINE;
    while trio.leader().await != 2 {
        assert!(Instant::now() < end, "it does not lead");
        // Ignored because: it is asked again.
        drop(trio.store(3).hand_over(Some(2), soon()).await);
    }
    trio.write(put(6, "by the second")).await;
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_later_level_waits_for_the_upgrade() {
    let mut trio = mixed().await;
    trio.stop(2).await;
    trio.write(with_cluster(LATER, Vec::new())).await;
    // What the snapshot before holds is dropped from the log: the second needs a snapshot.
    for last in [39, 79] {
        for number in last - 37..=last {
            trio.write(put(number, "more")).await;
        }
        for raft_id in [1, 3] {
            until("it has all", trio.store(raft_id), has(last)).await;
            trio.store(raft_id).snapshot().await.unwrap();
        }
    }
    trio.open(2).await;
    until("the second is too old", trio.store(2), is_too_old).await;
    assert!(trio.board.bulk() > 0, "no snapshot came");
    assert_eq!(trio.store(2).state().nodes.len(), 1);
    second_again(&mut trio, LATER).await;
    until("it has everything", trio.store(2), has(79)).await;
    // Its own snapshot is of that level now: the program of before does not open it.
    until("it can write", trio.store(2), |store| store.health().is_ok()).await;
    trio.store(2).snapshot().await.unwrap();
    trio.stop(2).await;
    trio.reads.insert(2, READS);
    let error = Store::open(trio.config(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::NeedsUpgrade { .. }), "{error}");
    trio.end().await;
}

/// A single manager whose program is put back shows what it can read, and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_program_opens_an_older_file_and_not_the_other_way_round() {
    let mut trio = Trio::empty();
    trio.reads = [(1, READS)].into();
    trio.begin(with_cluster(READS, vec![node(1, "old")])).await;
    trio.stop(1).await;
    trio.reads.insert(1, LATER);
    trio.open(1).await;
    assert_eq!(message(trio.store(1), 1).as_deref(), Some("old"));
    trio.write(put(2, "still readable")).await;
    trio.stop(1).await;
    trio.reads.insert(1, READS);
    trio.open(1).await;
    trio.write(put(3, "back and forth")).await;
    trio.stop(1).await;
    trio.reads.insert(1, LATER);
    trio.open(1).await;
    trio.write(with_cluster(LATER, vec![node(4, "new")])).await;
    trio.stop(1).await;
    trio.reads.insert(1, READS);
    trio.open(1).await;
    let refused = trio.store(1).propose(put(5, "no"), soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::NeedsUpgrade { .. }), "{refused}");
    assert_eq!(message(trio.store(1), 3).as_deref(), Some("back and forth"));
    assert_eq!(message(trio.store(1), 4), None);
    trio.stop(1).await;
    trio.reads.insert(1, LATER);
    trio.open(1).await;
    assert_eq!(message(trio.store(1), 4).as_deref(), Some("new"));
    trio.end().await;
}

#[test]
fn a_backup_says_its_level() {
    let mut state = ClusterState::default();
    state.apply(Revision(7), &with_cluster(LATER, Vec::new())).unwrap();
    let backup = Backup::of(&state, Timestamp::from_secs(9)).unwrap();
    let bytes = backup.encode(None).unwrap();
    let error = Backup::decode(&bytes, None).unwrap_err();
    let later = matches!(error, BackupError::Later { found: LATER, known: READS, .. });
    assert!(later, "{error}");
    let mut state = ClusterState::default();
    state.apply(Revision(7), &with_cluster(FIRST, Vec::new())).unwrap();
    let bytes = Backup::of(&state, Timestamp::from_secs(9)).unwrap().encode(None).unwrap();
    assert_eq!(Backup::decode(&bytes, None).unwrap().state().unwrap(), state);
}
