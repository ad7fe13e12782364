//! Several stores of one group, over a switchboard in memory: what was confirmed is there whoever
//! leads, and who cannot reach a majority says so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use board::{DEADLINE, Trio, member, soon, until};
use shoal_model::fault::Fault as _;
use shoal_model::id::Revision;
use shoal_stopwatch::Stopwatch;
use shoal_store::{GroupStep, Lead, Store, StoreError};
use support::{board, message, put};
use tokio::time::Instant;

/// What a refusal may take: the limit for a user, on a machine that lets this process run.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

fn has(number: u16, text: &str) -> impl Fn(&Store) -> bool {
    let text = text.to_owned();
    move |store| message(store, number).as_deref() == Some(&*text)
}

fn nobody_leads(store: &Store) -> bool {
    matches!(*store.lead().borrow(), Lead::Nobody { .. })
}

fn missing(lead: &Lead) -> BTreeSet<u64> {
    let Lead::Nobody { missing, .. } = lead else { return BTreeSet::new() };
    missing.iter().map(|member| member.raft_id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_learns_and_a_voter_counts() {
    let mut trio = Trio::first(put(1, "first")).await;
    trio.open_empty(2).await;
    assert!(trio.store(2).state().nodes.is_empty());
    let refused = trio.store(1).change_group(GroupStep::Promote(2), soon()).await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-STO-019", "{refused}");

    trio.change(GroupStep::Learn(member(2))).await;
    // Asked once more, it is done.
    trio.change(GroupStep::Learn(member(2))).await;
    until("it learns", trio.store(2), has(1, "first")).await;
    let group = trio.store(1).group().borrow().clone();
    assert_eq!((group.voters, group.learners), (vec![member(1)], vec![member(2)]));
    // A learner does not count: the first goes on alone.
    trio.board.isolate(2, &[1]);
    trio.write(put(2, "without the learner")).await;
    trio.board.heal();
    until("it catches up", trio.store(2), has(2, "without the learner")).await;

    trio.change(GroupStep::Promote(2)).await;
    trio.change(GroupStep::Promote(2)).await;
    until("both vote", trio.store(2), |store| {
        let group = store.group().borrow().clone();
        group.settled && group.voters == [member(1), member(2)]
    })
    .await;
    until("the leader hears it", trio.store(1), |store| store.group().borrow().heard.contains(&2))
        .await;
    let lead = trio.store(2).lead();
    until(
        "it follows",
        trio.store(2),
        |_| matches!(&*lead.borrow(), Lead::Following { leader, .. } if *leader == member(1)),
    )
    .await;
    let refused = trio.store(2).propose(put(3, "x"), soon()).await.unwrap_err();
    let StoreError::NotLeader { leader } = refused else { panic!("{refused}") };
    assert_eq!(leader, Some(member(1)));
    // Now it counts.
    trio.board.isolate(2, &[1]);
    until("no majority", trio.store(1), nobody_leads).await;
    trio.board.heal();
    trio.write(put(3, "with it")).await;
    trio.change(GroupStep::Remove(2)).await;
    until("it is out", trio.store(1), |store| {
        let group = store.group().borrow().clone();
        group.voters == [member(1)] && group.learners.is_empty() && group.settled
    })
    .await;
    let last = trio.store(1).change_group(GroupStep::Remove(1), soon()).await.unwrap_err();
    assert!(matches!(last, StoreError::Group { .. }), "{last}");
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_one_leads_with_everything_that_was_confirmed() {
    let mut trio = Trio::new(put(1, "first")).await;
    for number in 2..=60 {
        trio.write(put(number, &format!("write {number}"))).await;
    }
    let dead = trio.leader().await;
    trio.stop(dead).await;
    let next = trio.leader().await;
    assert_ne!(next, dead);
    // It leads: all that was confirmed is applied here, not only in the log.
    for number in 2..=60 {
        assert_eq!(message(trio.store(next), number), Some(format!("write {number}")));
    }
    trio.write(put(61, "by the next leader")).await;
    trio.open(dead).await;
    until("it catches up", trio.store(dead), has(61, "by the next leader")).await;
    let before = trio.store(trio.leader().await).read_index(soon()).await.unwrap();
    for store in trio.stores.values() {
        store.applied(before, Instant::now() + DEADLINE).await.unwrap();
        assert_eq!(store.state().nodes, trio.store(next).state().nodes);
    }
    let beyond = Revision(before.0 + 1_000_000);
    let behind = trio.store(next).applied(beyond, Instant::now()).await.unwrap_err();
    assert!(matches!(behind, StoreError::Behind { .. }), "{behind}");
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_long_gets_a_snapshot() {
    let mut trio = Trio::new(put(1, "first")).await;
    let leader = trio.leader().await;
    let away = if leader == 3 { 2 } else { 3 };
    trio.stop(away).await;
    // More than one piece.
    let long = "x".repeat(100 << 10);
    for number in 2..=40 {
        trio.write(put(number, &format!("{number} {long}"))).await;
    }
    let leader = trio.leader().await;
    trio.store(leader).snapshot().await.unwrap();
    for number in 50..=80 {
        trio.write(put(number, "after the snapshot")).await;
    }
    trio.store(leader).snapshot().await.unwrap();
    trio.open(away).await;
    until("it catches up", trio.store(away), has(80, "after the snapshot")).await;
    assert!(trio.board.bulk() >= 4, "no pieces: {}", trio.board.bulk());
    assert_eq!(message(trio.store(away), 40), Some(format!("40 {long}")));
    // And it goes on by the log.
    trio.write(put(81, "by the log")).await;
    until("it follows", trio.store(away), has(81, "by the log")).await;
    trio.stop(away).await;
    trio.open(away).await;
    assert_eq!(message(trio.store(away), 80).as_deref(), Some("after the snapshot"));
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_without_a_majority_reads_and_refuses() {
    let mut trio = Trio::new(put(1, "first")).await;
    trio.write(put(2, "confirmed")).await;
    for raft_id in 1..=3 {
        until("everybody has it", trio.store(raft_id), has(2, "confirmed")).await;
    }
    // That it is confirmed is written with what comes next.
    trio.write(put(5, "next")).await;
    for raft_id in 1..=3 {
        until("everybody has that", trio.store(raft_id), has(5, "next")).await;
    }
    for raft_id in 1..=3 {
        trio.stop(raft_id).await;
    }
    for alone in 1..=3 {
        let begun = Stopwatch::start();
        trio.open(alone).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "readable after {:?}", begun.elapsed());
        assert_eq!(message(trio.store(alone), 2).as_deref(), Some("confirmed"));
        let begun = Stopwatch::start();
        let error = trio.store(alone).propose(put(3, "never"), soon()).await.unwrap_err();
        assert!(begun.elapsed() < REFUSED_WITHIN + Duration::from_secs(1), "{:?}", begun.elapsed());
        let StoreError::NoLeader { missing, .. } = &error else { panic!("{error}") };
        let others: Vec<_> = (1..=3).filter(|id| *id != alone).map(member).collect();
        assert_eq!(*missing, others);
        assert!(error.to_string().contains(&others[0].node), "{error}");
        // From now on at once.
        let begun = Stopwatch::start();
        trio.store(alone).propose(put(3, "never"), soon()).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
        let error = trio.store(alone).read_index(soon()).await.unwrap_err();
        assert!(matches!(error, StoreError::NoLeader { .. }), "{error}");
        trio.stop(alone).await;
    }
    for raft_id in 1..=3 {
        trio.open(raft_id).await;
    }
    trio.write(put(4, "all again")).await;
    for store in trio.stores.values() {
        until("all again", store, has(4, "all again")).await;
        assert_eq!(message(store, 3), None, "a refused write shows up");
    }
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_refuses_and_comes_back() {
    let trio = Trio::new(put(1, "first")).await;
    let old = trio.leader().await;
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    trio.board.isolate(old, &rest);
    // What is under way is answered in time, and does not hold up what comes later.
    let unsure = Stopwatch::start();
    let error = trio.store(old).propose(put(2, "cut off"), soon()).await.unwrap_err();
    assert!(unsure.elapsed() < REFUSED_WITHIN + Duration::from_secs(1), "{:?}", unsure.elapsed());
    assert!(matches!(error, StoreError::NoQuorum { .. } | StoreError::NoLeader { .. }), "{error}");
    until("it says so", trio.store(old), nobody_leads).await;
    let all = rest.iter().copied().collect::<BTreeSet<_>>();
    until("it knows who", trio.store(old), |store| missing(&store.lead().borrow()) == all).await;
    let begun = Stopwatch::start();
    let error = trio.store(old).propose(put(3, "never"), soon()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(matches!(error, StoreError::NoLeader { .. }), "{error}");

    let next = trio.leader_among(&rest).await;
    let by = Instant::now() + DEADLINE;
    trio.store(next).propose(put(4, "by the majority"), by).await.unwrap();
    trio.board.heal();
    until("it follows", trio.store(old), has(4, "by the majority")).await;
    assert_eq!(message(trio.store(old), 2), None, "what no majority had is gone");
    assert_eq!(message(trio.store(old), 3), None, "a refused write shows up");
    trio.write(put(5, "together")).await;
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_heard_but_cannot_hear_does_not_lead() {
    let trio = Trio::new(put(1, "first")).await;
    let old = trio.leader().await;
    let rest: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    // Its words arrive, the answers do not.
    for other in &rest {
        trio.board.cut(*other, old);
    }
    until("it says so", trio.store(old), nobody_leads).await;
    let error = trio.store(old).propose(put(2, "never"), soon()).await.unwrap_err();
    assert!(matches!(error, StoreError::NoLeader { .. }), "{error}");
    trio.board.heal();
    trio.write(put(3, "together")).await;
    for store in trio.stores.values() {
        until("together", store, has(3, "together")).await;
    }
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_carries_what_takes_longer_than_a_heartbeat() {
    let trio = Trio::new(put(1, "first")).await;
    let leader = trio.leader().await;
    let slow = if leader == 3 { 2 } else { 3 };
    trio.board.slow(leader, slow, Duration::from_millis(200));
    for number in 2..=12 {
        trio.write(put(number, &"x".repeat(100 << 10))).await;
    }
    trio.write(put(13, "at last")).await;
    until("it arrives", trio.store(slow), has(13, "at last")).await;
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stop_and_start_and_nothing_confirmed_is_lost() {
    let mut trio = Trio::new(put(1, "first")).await;
    for round in 0..3u16 {
        let texts: Vec<(u16, String)> =
            (0..20).map(|n| (2 + n, format!("round {round}, write {n}"))).collect();
        for (number, text) in &texts {
            trio.write(put(*number, text)).await;
        }
        // Somebody writes while they stop.
        let leader = trio.store(trio.leader().await).clone();
        let writer = tokio::spawn(async move {
            let mut confirmed = 0;
            for count in 1..=200u32 {
                let what = put(100 + round, &count.to_string());
                if leader.propose(what, soon()).await.is_err() {
                    break;
                }
                confirmed = count;
            }
            confirmed
        });
        for raft_id in 1..=3 {
            trio.stop(raft_id).await;
        }
        let confirmed = writer.await.unwrap();
        for raft_id in 1..=3 {
            trio.open(raft_id).await;
        }
        trio.write(put(99, &format!("after round {round}"))).await;
        for store in trio.stores.values() {
            until("the round's end", store, has(99, &format!("after round {round}"))).await;
            for (number, text) in &texts {
                assert_eq!(message(store, *number).as_ref(), Some(text));
            }
            let stored = message(store, 100 + round).map_or(0, |m| m.parse::<u32>().unwrap());
            assert!(stored >= confirmed, "{stored} of {confirmed} confirmed writes");
        }
    }
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_at_the_same_time_share_a_question() {
    let trio = Trio::new(put(1, "first")).await;
    trio.write(put(2, "read me")).await;
    let leader = trio.store(trio.leader().await).clone();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let leader = leader.clone();
        readers.spawn(async move { leader.read_index(Instant::now() + DEADLINE).await.unwrap() });
    }
    let least = leader.state().revision;
    for index in readers.join_all().await {
        assert!(index >= least, "{index:?} is older than {least:?}");
    }
    trio.end().await;
}
