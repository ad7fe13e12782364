//! A group that lost its majority for good goes on from one of its members, with all that it holds;
//! the others are not listened to any more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use board::{Trio, member, until};
use shoal_model::fault::Fault as _;
use shoal_store::{
    GroupStep, Lead, LogEnd, Member, NoPeers, Store, StoreConfig, StoreError, recover_alone,
};
use support::{board, leads, message, put, soon};

const WRITES: std::ops::RangeInclusive<u16> = 1..=40;

fn text(number: u16) -> String {
    format!("write {number}")
}

fn has_all(store: &Store) -> bool {
    WRITES.clone().all(|number| message(store, number) == Some(text(number)))
}

/// Three members with writes, all of which the last one holds too.
async fn written(survivor: u64) -> Trio {
    let trio = Trio::new(put(1, &text(1))).await;
    for number in WRITES {
        trio.write(put(number, &text(number))).await;
    }
    until("it has everything", trio.store(survivor), has_all).await;
    trio
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_goes_on_alone_and_others_join_again() {
    for survivor in 1..=3 {
        let mut trio = written(survivor).await;
        let others: Vec<u64> = (1..=3).filter(|id| *id != survivor).collect();
        let before = trio.store(survivor).epoch().unwrap();
        assert_eq!(trio.store(others[0]).epoch().unwrap().id, before.id);
        for id in 1..=3 {
            trio.stop(id).await;
        }
        let recovered = recover_alone(&trio.config(survivor)).await.unwrap();
        let without: BTreeSet<u64> = recovered.without.iter().map(|m| m.raft_id).collect();
        assert_eq!(without, others.iter().copied().collect());
        assert_ne!(recovered.epoch.id, before.id);
        trio.open(survivor).await;
        let alone = trio.store(survivor);
        leads(alone).await;
        assert!(has_all(alone));
        assert_eq!(alone.epoch(), Some(recovered.epoch));
        assert_eq!(alone.group().borrow().voters, [member(survivor)]);
        trio.write(put(41, "alone")).await;

        // The others come back: a majority of what was, and of another epoch.
        for id in &others {
            trio.open(*id).await;
        }
        let old = trio.leader_among(&others).await;
        trio.store(old).propose(put(42, "of the others"), soon()).await.unwrap();
        until("they are told", trio.store(old), |store| store.stranger().is_some()).await;
        let told = trio.store(old).stranger().unwrap();
        assert!(told.contains("recovered without this manager"), "{told}");
        let alone = trio.store(survivor);
        assert!(matches!(*alone.lead().borrow(), Lead::Leading { .. }));
        assert_eq!(message(alone, 42), None);
        assert_eq!(message(trio.store(old), 41), None);
        for id in others {
            trio.stop(id).await;
        }

        // Under new numbers they are welcome.
        for id in [100, 101] {
            trio.join(id).await;
            until("it learns", trio.store(id), |s| message(s, 41).as_deref() == Some("alone"))
                .await;
            assert!(has_all(trio.store(id)));
            assert_eq!(trio.store(id).epoch().map(|e| e.id), Some(recovered.epoch.id));
        }
        // What it learned of the epoch is kept.
        trio.stop(100).await;
        trio.open(100).await;
        assert_eq!(trio.store(100).epoch().map(|e| e.id), Some(recovered.epoch.id));
        trio.stop(survivor).await;
        trio.write(put(43, "by the next ones")).await;
        trio.end().await;
    }
}

/// What nobody confirmed may have been told to somebody all the same: it is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_confirmed_is_kept_too() {
    let mut trio = written(1).await;
    let leader = trio.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    trio.board.isolate(leader, &others);
    let late = trio.store(leader).propose(put(50, "unconfirmed"), soon()).await.unwrap_err();
    assert!(matches!(late, StoreError::NoQuorum { .. }), "{late}");
    for id in 1..=3 {
        trio.stop(id).await;
    }
    recover_alone(&trio.config(leader)).await.unwrap();
    // Once more: a recovery may be repeated, each begins an epoch.
    let again = recover_alone(&trio.config(leader)).await.unwrap();
    assert!(again.without.is_empty());
    trio.open(leader).await;
    assert!(has_all(trio.store(leader)));
    assert_eq!(message(trio.store(leader), 50).as_deref(), Some("unconfirmed"));
    trio.end().await;
}

/// Of those that are left one lags: who asks is told which has more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_reaches_farthest_is_found() {
    let mut trio = written(1).await;
    trio.join(4).await;
    until("it has everything", trio.store(4), has_all).await;
    trio.change(GroupStep::Promote(4)).await;
    let leader = trio.leader().await;
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (lags, kept, gone) = (4, rest[0], rest[1]);
    assert_ne!(leader, lags);
    trio.board.isolate(lags, &[leader, kept, gone]);
    trio.write(put(41, "acknowledged")).await;
    until("it has it", trio.store(kept), |s| message(s, 41).is_some()).await;
    for id in [leader, gone] {
        trio.stop(id).await;
    }
    trio.board.heal();
    let farthest = |found: Vec<(Member, LogEnd)>| {
        assert_eq!(found.len(), 2, "{found:?}");
        found.into_iter().max_by_key(|(_, end)| *end).unwrap().0
    };
    for id in [lags, kept] {
        let found = trio.store(id).reach(Duration::from_secs(30)).await;
        assert_eq!(found[0].0, member(id), "it is the first itself");
        assert_eq!(farthest(found), member(kept));
    }
    for id in [lags, kept] {
        trio.stop(id).await;
    }
    recover_alone(&trio.config(kept)).await.unwrap();
    trio.open(kept).await;
    assert_eq!(message(trio.store(kept), 41).as_deref(), Some("acknowledged"));
    trio.end().await;
}

/// From a snapshot alone, and from nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_log_recovers_and_one_without_anything_says_so() {
    let mut trio = written(2).await;
    trio.store(2).snapshot().await.unwrap();
    for id in 1..=3 {
        trio.stop(id).await;
    }
    recover_alone(&trio.config(2)).await.unwrap();
    trio.open(2).await;
    assert!(has_all(trio.store(2)));
    trio.change(GroupStep::Settle).await;
    trio.end().await;

    let dir = tempfile::tempdir().unwrap();
    let node = shoal_model::id::NodeId::new("empty");
    let config = StoreConfig::new(dir.path().join("raft"), node, Arc::new(NoPeers));
    let missing = recover_alone(&config).await.unwrap_err();
    assert_eq!(missing.id().unwrap().0, "SH-STO-006");
    Store::join(config.clone(), 9).await.unwrap().shutdown().await;
    let nothing = recover_alone(&config).await.unwrap_err();
    assert_eq!(nothing.id().unwrap().0, "SH-STO-031", "{nothing}");
}
