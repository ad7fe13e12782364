//! A crash at any write: whatever the disk kept of what was not synced, the store opens, and what
//! it had answered is there. One flipped bit: it opens whole, or is refused by name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use board::{Trio, until};
use futures::{StreamExt as _, stream};
use journal::{Dice, Fate, Journal};
use shoal_stopwatch::Stopwatch;
use shoal_store::{Store, StoreConfig, StoreError};
use support::{board, config, journal, message, put, soon};

/// Crashes are tried in an order that looks random for so long, which is usually enough for one at
/// each place; at least so many, however slow the machine is.
const BUDGET: Duration = Duration::from_secs(20);
const CRASHES_MIN: usize = 30;
/// Crashes that are looked at beside each other: a store that opens mostly waits.
const AT_A_TIME: usize = 6;
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
    let places = shuffled(begun, journal.position(), &mut dice);
    let crashes = places.into_iter().flat_map(|position| FATES.map(|fate| (position, fate)));
    let tried = each(crashes, |(position, fate)| {
        let image = journal.crashed(&file, position, fate, &mut dice);
        let (key, answered) = (key.clone(), &answered);
        async move {
            let copy = tempfile::tempdir().unwrap();
            lay_down(&copy.path().join("raft"), &key, &image);
            let what = format!("a crash at {position}, writes {fate:?}");
            let store = Store::open(config(copy.path())).await;
            let store = store.unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&store, answered, position, &what);
            store.propose(put(900, "after"), soon()).await.unwrap();
            store.shutdown().await;
        }
    });
    let tried = tried.await;
    println!("{tried} crashes, {} places", journal.position() - begun);
    assert!(tried >= CRASHES_MIN);
}

/// Tries all, some of them at a time, until the budget is used up; how many it was.
async fn each<T, F: Future<Output = ()>>(
    all: impl Iterator<Item = T>,
    mut attempt: impl FnMut(T) -> F,
) -> usize {
    let watch = Stopwatch::start();
    let begun = Cell::new(0);
    let goes_on = |_: &T| {
        begun.set(begun.get() + 1);
        begun.get() <= CRASHES_MIN || watch.elapsed() < BUDGET
    };
    let attempts = stream::iter(all.take_while(goes_on).map(&mut attempt));
    attempts.buffer_unordered(AT_A_TIME).count().await
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
    let places = shuffled(begun, end, &mut dice);
    let tried = each(places.into_iter().zip(FATES.into_iter().cycle()), |(position, fate)| {
        let mut after = Trio::empty();
        for path in &paths {
            let image = journal.crashed(&path.join("store.redb"), position, fate, &mut dice);
            let into = after.dir().join(path.file_name().unwrap());
            lay_down(&into, &path.join("store.key"), &image);
        }
        let answered = &answered;
        async move {
            for raft_id in 1..=3 {
                after.open(raft_id).await;
            }
            let what = format!("a crash of all at {position}, writes {fate:?}");
            let leader = after.leader().await;
            check(after.store(leader), answered, position, &what);
            after.write(put(901, "after")).await;
            for raft_id in 1..=3 {
                let has = |store: &Store| message(store, 901).as_deref() == Some("after");
                until("all agree", after.store(raft_id), has).await;
                check(after.store(raft_id), answered, position, &what);
            }
            after.end().await;
        }
    });
    println!("{} crashes of all three, {} places", tried.await, end - begun);
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
    let (refused, whole) = (Cell::new(0), Cell::new(0));
    let pages = shuffled(0, good.len().div_ceil(PAGE) - 1, &mut dice);
    let bits = pages.into_iter().flat_map(|page| [page; 8]);
    let tried = each(bits, |page| {
        let mut image = good.clone();
        let byte = (page * PAGE + dice.roll(PAGE)).min(image.len() - 1);
        image[byte] ^= 1 << dice.roll(8);
        let (key, answered, refused, whole) = (key.clone(), &answered, &refused, &whole);
        async move {
            let copy = tempfile::tempdir().unwrap();
            lay_down(&copy.path().join("raft"), &key, &image);
            match Store::open(config(copy.path())).await {
                Ok(store) => {
                    check(&store, answered, end, &format!("a flipped bit in byte {byte}"));
                    store.shutdown().await;
                    whole.set(whole.get() + 1);
                }
                Err(
                    StoreError::Damaged { .. }
                    | StoreError::Version { .. }
                    | StoreError::Seal { .. },
                ) => refused.set(refused.get() + 1),
                Err(error) => panic!("byte {byte}: {error:?}"),
            }
        }
    });
    println!("{} bits: {} refused, {} whole", tried.await, refused.get(), whole.get());
    assert!(refused.get() > 0);
}
