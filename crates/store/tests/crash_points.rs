//! A crash at any write: whatever the disk kept of what was not synced, the store opens, and what it
//! had answered is there. One flipped bit: it opens whole, or is refused by name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use board::{Trio, until};
use journal::{Dice, Fate, Journal};
use shoal_stopwatch::Stopwatch;
use shoal_store::{Store, StoreConfig, StoreError};
use support::{board, config, journal, message, put, soon};

/// A crash is tried at each place in turn, in an order that looks random, for so long; at least so
/// often, however slow the machine is.
const BUDGET: Duration = Duration::from_secs(20);
const CRASHES_MIN: usize = 60;
const FATES: [Fate; 3] = [Fate::Lost, Fate::Some, Fate::Torn];
/// Pages of the file format.
const PAGE: usize = 4096;

/// A write that was answered, and the journal's position then.
type Answered = (usize, u16);

fn text(number: u16) -> String {
    format!("write {number}")
}

/// Positions in an order that looks random.
fn shuffled(from: usize, to: usize, dice: &mut Dice) -> Vec<usize> {
    let mut all: Vec<usize> = (from..=to).collect();
    for last in (1..all.len()).rev() {
        let other = dice.roll(last + 1);
        all.swap(last, other);
    }
    all
}

/// Puts `image` where a store of `dir` has its file, with the key that it is sealed by.
fn lay_down(dir: &Path, key: &Path, image: &[u8]) {
    fs::create_dir_all(dir).unwrap();
    fs::copy(key, dir.join("store.key")).unwrap();
    fs::write(dir.join("store.redb"), image).unwrap();
}

fn check(store: &Store, answered: &[Answered], position: usize, what: &str) {
    for (at, number) in answered.iter().filter(|(at, _)| *at <= position) {
        let found = message(store, *number);
        assert_eq!(found, Some(text(*number)), "answered at {at}, gone after {what}");
    }
}

/// A store on the journal with some writes, a snapshot among them.
async fn alone(dir: &Path, journal: &Journal) -> (usize, Vec<Answered>) {
    let config = StoreConfig { medium: Some(journal.medium()), ..config(dir) };
    let store = Store::bootstrap(config, put(1, &text(1))).await.unwrap();
    let begun = journal.position();
    let mut answered = vec![(begun, 1)];
    for number in 2..=40 {
        store.propose(put(number, &text(number)), soon()).await.unwrap();
        answered.push((journal.position(), number));
        if number % 15 == 0 {
            store.snapshot().await.unwrap();
        }
    }
    store.shutdown().await;
    (begun, answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_keeps_what_it_answered_wherever_it_is_cut() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let (begun, answered) = alone(dir.path(), &journal).await;
    let (file, key) = (dir.path().join("raft/store.redb"), dir.path().join("raft/store.key"));
    let mut dice = Dice(0x5eed_0001);
    let watch = Stopwatch::start();
    let mut crashes = 0;
    for position in shuffled(begun, journal.position(), &mut dice) {
        if crashes >= CRASHES_MIN && watch.elapsed() > BUDGET {
            break;
        }
        for fate in FATES {
            let copy = tempfile::tempdir().unwrap();
            let image = journal.crashed(&file, position, fate, &mut dice);
            lay_down(&copy.path().join("raft"), &key, &image);
            let what = format!("a crash at {position}, writes {fate:?}");
            let store = Store::open(config(copy.path())).await;
            let store = store.unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&store, &answered, position, &what);
            store.propose(put(900, "after"), soon()).await.unwrap();
            store.shutdown().await;
            crashes += 1;
        }
    }
    println!("{crashes} crashes, {} places", journal.position() - begun);
    assert!(crashes >= CRASHES_MIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_stores_that_are_cut_at_once_keep_what_they_answered() {
    let journal = Journal::default();
    let mut trio = Trio::empty();
    trio.medium = Some(journal.medium());
    trio.begin(put(1, &text(1))).await;
    for raft_id in [2, 3] {
        trio.join(raft_id).await;
    }
    let begun = journal.position();
    let mut answered = vec![(begun, 1)];
    for number in 2..=30 {
        trio.write(put(number, &text(number))).await;
        answered.push((journal.position(), number));
    }
    let end = journal.position();
    let paths: Vec<PathBuf> = (1..=3).map(|raft_id| trio.path(raft_id)).collect();
    for raft_id in 1..=3 {
        trio.stop(raft_id).await;
    }
    let mut dice = Dice(0x5eed_0003);
    let watch = Stopwatch::start();
    let mut crashes = 0;
    for position in shuffled(begun, end, &mut dice) {
        if crashes >= 6 && watch.elapsed() > BUDGET {
            break;
        }
        let fate = FATES[crashes % 3];
        let mut after = Trio::empty();
        for path in &paths {
            let image = journal.crashed(&path.join("store.redb"), position, fate, &mut dice);
            let into = after.dir().join(path.file_name().unwrap());
            lay_down(&into, &path.join("store.key"), &image);
        }
        for raft_id in 1..=3 {
            after.open(raft_id).await;
        }
        let what = format!("a crash of all at {position}, writes {fate:?}");
        let leader = after.leader().await;
        check(after.store(leader), &answered, position, &what);
        after.write(put(901, "after")).await;
        for raft_id in 1..=3 {
            let has = |store: &Store| message(store, 901).as_deref() == Some("after");
            until("all agree", after.store(raft_id), has).await;
            check(after.store(raft_id), &answered, position, &what);
        }
        after.end().await;
        crashes += 1;
    }
    println!("{crashes} crashes of all three, {} places", end - begun);
    trio.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_flipped_bit_is_refused_or_does_no_harm() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let (_, answered) = alone(dir.path(), &journal).await;
    let (file, key) = (dir.path().join("raft/store.redb"), dir.path().join("raft/store.key"));
    let mut dice = Dice(0x5eed_0002);
    let end = journal.position();
    let good = journal.crashed(&file, end, Fate::Lost, &mut dice);
    let watch = Stopwatch::start();
    let (mut refused, mut whole) = (0, 0);
    for page in shuffled(0, good.len().div_ceil(PAGE) - 1, &mut dice) {
        if refused + whole >= CRASHES_MIN && watch.elapsed() > BUDGET {
            break;
        }
        let mut image = good.clone();
        let byte = (page * PAGE + dice.roll(PAGE)).min(image.len() - 1);
        image[byte] ^= 1 << dice.roll(8);
        let copy = tempfile::tempdir().unwrap();
        lay_down(&copy.path().join("raft"), &key, &image);
        match Store::open(config(copy.path())).await {
            Ok(store) => {
                check(&store, &answered, end, &format!("a flipped bit in byte {byte}"));
                store.shutdown().await;
                whole += 1;
            }
            Err(error) => {
                let named = matches!(
                    error,
                    StoreError::Damaged { .. }
                        | StoreError::Version { .. }
                        | StoreError::Seal { .. }
                );
                assert!(named, "byte {byte}: {error:?}");
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {whole} whole");
    assert!(refused > 0);
}
