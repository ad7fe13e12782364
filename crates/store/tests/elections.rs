//! Who leads, over a switchboard in memory: a leader that dies is replaced, one that goes hands
//! over, and whoever comes back from a cut, or was removed, disturbs nobody.
//!
//! Deadlines are generous, as machines stand still; `cargo xtask bench failover` has the figures.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use board::{DEADLINE, Trio, leading, soon, until};
use shoal_store::{GroupStep, Lead, Store, StoreError};
use support::{board, message, put};
use tokio::time::Instant;

fn term(store: &Store) -> Option<u64> {
    match &*store.lead().borrow() {
        Lead::Leading { term } | Lead::Following { term, .. } => Some(*term),
        Lead::Nobody { .. } | Lead::Closed => None,
    }
}

fn nobody_leads(store: &Store) -> bool {
    matches!(*store.lead().borrow(), Lead::Nobody { .. })
}

fn follows(store: &Store, leader: u64) -> bool {
    matches!(&*store.lead().borrow(), Lead::Following { leader: known, .. }
        if known.raft_id == leader)
}

/// Waits until everybody but `leader` follows it.
async fn all_follow(trio: &Trio, leader: u64) {
    for (raft_id, store) in trio.stores.iter().filter(|(id, _)| **id != leader) {
        until(&format!("{raft_id} follows {leader}"), store, |s| follows(s, leader)).await;
    }
}

/// The other two of three.
fn others(of: u64) -> [u64; 2] {
    match of {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    }
}

/// A group that goes by one leader, and who that is.
async fn settled() -> (Trio, u64) {
    let trio = Trio::new(put(1, "first")).await;
    let leader = trio.leader().await;
    all_follow(&trio, leader).await;
    (trio, leader)
}

/// Stops without handing over, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_end_are_replaced_one_after_the_other() {
    let mut trio = Trio::new(put(1, "first")).await;
    for round in 0..5u16 {
        let old = trio.leader().await;
        all_follow(&trio, old).await;
        let before = term(trio.store(old)).unwrap();
        trio.stop(old).await;
        let next = trio.leader().await;
        assert!(term(trio.store(next)).unwrap() > before);
        trio.write(put(10 + round, "by the next")).await;
        trio.open(old).await;
        until("it is back", trio.store(old), |store| {
            message(store, 10 + round).as_deref() == Some("by the next")
        })
        .await;
    }
    trio.end().await;
}

/// Both ways and each way alone; with writes and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_cut_off_returns_and_no_term_has_grown() {
    let (trio, leader) = settled().await;
    let before = term(trio.store(leader)).unwrap();
    let away = others(leader)[0];
    let rest: Vec<u64> = (1..=3).filter(|id| *id != away).collect();
    for (number, way) in ["none", "only out", "only in"].into_iter().enumerate() {
        match way {
            "none" => trio.board.isolate(away, &rest),
            "only out" => rest.iter().for_each(|other| trio.board.cut(*other, away)),
            _ => rest.iter().for_each(|other| trio.board.cut(away, *other)),
        }
        if way == "only in" {
            // It hears its leader, who does not hear it.
            until("it is missed", trio.store(leader), |store| {
                !store.group().borrow().heard.contains(&away)
            })
            .await;
        } else {
            until("it hears nobody", trio.store(away), nobody_leads).await;
        }
        // Long enough for many rounds in vain.
        let end = Instant::now() + Duration::from_secs(3);
        let mut count = 0;
        while Instant::now() < end {
            count += 1;
            trio.write(put(20, &format!("{way} {count}"))).await;
        }
        trio.board.heal();
        let last = format!("{way} {count}");
        until("it has everything", trio.store(away), |store| {
            message(store, 20).as_ref() == Some(&last) && follows(store, leader)
        })
        .await;
        assert_eq!(term(trio.store(leader)), Some(before), "way {number}: {way}");
        assert_eq!(term(trio.store(away)), Some(before), "way {number}: {way}");
    }
    trio.end().await;
}

/// Its words arrive and it hears nothing: it is quiet then, so that the others can elect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_goes_mute_and_is_replaced() {
    let (trio, old) = settled().await;
    let rest = others(old);
    for other in &rest {
        trio.board.cut(*other, old);
    }
    until("it says that nobody leads", trio.store(old), nobody_leads).await;
    let next = trio.leader_among(&rest).await;
    let by = Instant::now() + DEADLINE;
    trio.store(next).propose(put(2, "by the next"), by).await.unwrap();
    trio.board.heal();
    until("it follows", trio.store(old), |store| follows(store, next)).await;
    until("it has it", trio.store(old), |s| message(s, 2).as_deref() == Some("by the next")).await;
    trio.end().await;
}

/// It is cut, removed, and never hears of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_one_that_missed_it_stands_in_vain() {
    let (trio, leader) = settled().await;
    let before = term(trio.store(leader)).unwrap();
    let [away, other] = others(leader);
    trio.board.isolate(away, &[leader, other]);
    trio.change(GroupStep::Remove(away)).await;
    trio.board.heal();
    until("it hears nobody", trio.store(away), nobody_leads).await;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        trio.write(put(2, "without it")).await;
    }
    assert_eq!(term(trio.store(leader)), Some(before));
    assert!(follows(trio.store(other), leader));
    assert!(nobody_leads(trio.store(away)));
    trio.end().await;
}

/// Writers keep on writing, by whoever leads; what is refused was not begun, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_under_load_and_no_write_is_left_open() {
    let trio = Trio::new(put(1, "first")).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u16 {
        let (stores, stop) = (trio.stores.clone(), std::sync::Arc::clone(&stop));
        writers.spawn(async move {
            let mut count = 0u32;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let leader = leading(stores.values()).await;
                let by = Instant::now() + DEADLINE;
                match leader.propose(put(100 + writer, &(count + 1).to_string()), by).await {
                    Ok(_) => count += 1,
                    Err(StoreError::NotLeader { .. } | StoreError::NoLeader { .. }) => {}
                    Err(other) => panic!("a write failed: {other}"),
                }
            }
            (writer, count)
        });
    }
    let mut leader = trio.leader().await;
    for round in 0..4 {
        all_follow(&trio, leader).await;
        // To one that is named, or to any.
        let to = (round % 2 == 0).then(|| others(leader)[1]);
        let begun = Instant::now();
        let next = loop {
            match trio.store(leader).hand_over(to, Instant::now() + DEADLINE).await {
                Ok(next) => break next.raft_id,
                // A machine that stands still; it leads on then, and is asked once more.
                Err(error) => assert!(begun.elapsed() < DEADLINE, "{error}"),
            }
            leader = trio.leader().await;
        };
        assert_ne!(next, leader);
        if let Some(to) = to {
            assert_eq!(next, to);
        }
        until("it says so", trio.store(next), |store| {
            matches!(*store.lead().borrow(), Lead::Leading { .. })
        })
        .await;
        leader = next;
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    trio.write(put(2, "at last")).await;
    while let Some(written) = writers.join_next().await {
        let (writer, count) = written.unwrap();
        assert!(count > 0);
        for store in trio.stores.values() {
            until("everybody has what was confirmed", store, |store| {
                message(store, 100 + writer).is_some_and(|m| m.parse::<u32>().unwrap() >= count)
            })
            .await;
        }
    }
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_hand_over_leads_on() {
    let mut trio = Trio::first(put(1, "first")).await;
    let refused = trio.store(1).hand_over(None, soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::HandOver { .. }), "{refused}");
    trio.write(put(2, "it leads on")).await;
    trio.join(2).await;
    trio.join(3).await;
    let leader = trio.leader().await;
    all_follow(&trio, leader).await;
    let follower = others(leader)[0];
    let refused = trio.store(follower).hand_over(None, soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotLeader { .. }), "{refused}");
    // To one that is not there any more.
    trio.stop(follower).await;
    until("it is missed", trio.store(leader), |s| !s.group().borrow().heard.contains(&follower))
        .await;
    let refused = trio.store(leader).hand_over(Some(follower), soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::HandOver { .. }), "{refused}");
    let by = Instant::now() + DEADLINE;
    trio.store(leader).propose(put(3, "it leads on"), by).await.unwrap();
    trio.end().await;
}
