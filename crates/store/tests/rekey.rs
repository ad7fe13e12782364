//! Other keys: nothing is left under the one of before, and wherever the change is cut the store
//! opens, with the unlock key of before or with the one of after.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use journal::{Dice, Fate, Journal};
use redb::{Builder, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use shoal_model::id::Revision;
use shoal_store::{Store, StoreConfig, StoreError, UnlockKey};
use support::{config, journal, killed_soon, message, put, soon};

const CHILD_DIR: &str = "SHOAL_REKEY_TEST_DIR";
const CHILD_KEYS: &str = "SHOAL_REKEY_TEST_KEYS";

/// The unlock key of number `number`.
fn key(number: u64) -> UnlockKey {
    UnlockKey::parse(&format!("SWMKEY-1-{number:0>42}A")).unwrap()
}

fn with(dir: &Path, unlock: Option<&UnlockKey>) -> StoreConfig {
    let config = config(dir);
    if let Some(key) = unlock {
        config.keyring.offer(key.clone());
    }
    config
}

async fn change(store: &Store, unlock: Option<UnlockKey>, revision: u64) {
    store.renew_keys(unlock, Revision(revision)).await.unwrap();
    store.retire_keys().await.unwrap();
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir_all(to.path().join("raft")).unwrap();
    for entry in fs::read_dir(from.join("raft")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join("raft").join(entry.file_name())).unwrap();
    }
    to
}

/// Every sealed value of a store's file.
fn sealed_values(file: &Path) -> Vec<Vec<u8>> {
    const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
    const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
    const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");
    let database = Builder::new().open(file).unwrap();
    let txn = database.begin_read().unwrap();
    let mut found = Vec::new();
    for item in txn.open_table(META).unwrap().iter().unwrap() {
        let (name, value) = item.unwrap();
        if !matches!(name.value(), "format" | "key") {
            found.push(value.value().to_vec());
        }
    }
    for item in txn.open_table(LOG).unwrap().iter().unwrap() {
        found.push(item.unwrap().1.value().to_vec());
    }
    for item in txn.open_table(SNAPSHOT).unwrap().iter().unwrap() {
        found.push(item.unwrap().1.value().to_vec());
    }
    found
}

/// Whether all of a sealed value's beginning is somewhere in a file.
fn has(bytes: &[u8], value: &[u8]) -> bool {
    let part = &value[..value.len().min(40)];
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_leaves_nothing_under_the_key_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::bootstrap(config(dir.path()), put(1, "first")).await.unwrap();
    for number in 2..=20 {
        store.propose(put(number, "before"), soon()).await.unwrap();
    }
    store.snapshot().await.unwrap();
    for number in 21..=30 {
        store.propose(put(number, "before"), soon()).await.unwrap();
    }
    let plain = copy(dir.path());
    change(&store, Some(key(1)), 1).await;
    let first = copy(dir.path());
    // Who writes meanwhile is not refused.
    let stop = Arc::new(AtomicBool::new(false));
    let (busy, stopping) = (store.clone(), Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut count = 0u16;
        while !stopping.load(Ordering::Relaxed) || count < 20 {
            busy.propose(put(40, &count.to_string()), soon()).await.unwrap();
            count += 1;
        }
        count
    });
    for number in 2..=6 {
        change(&store, Some(key(number)), number).await;
        assert_eq!(message(&store, 30).as_deref(), Some("before"));
    }
    stop.store(true, Ordering::Relaxed);
    let count = writer.await.unwrap();
    store.shutdown().await;

    let file = dir.path().join("raft/store.redb");
    let raw = fs::read(&file).unwrap();
    for before in [&plain, &first] {
        let values = sealed_values(&before.path().join("raft/store.redb"));
        assert!(values.len() > 10, "{}", values.len());
        assert!(!values.iter().any(|value| has(&raw, value)), "sealed with a key of before");
    }
    assert!(sealed_values(&file).iter().all(|value| has(&raw, value)));
    let mut names: Vec<_> =
        fs::read_dir(dir.path().join("raft")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["store.key", "store.redb"]);

    let locked = |error: &StoreError, given: bool| match error {
        StoreError::Locked { tried, .. } => *tried == given,
        _ => false,
    };
    for (unlock, tried) in [(None, false), (Some(key(1)), true), (Some(key(5)), true)] {
        let error = Store::open(with(dir.path(), unlock.as_ref())).await.unwrap_err();
        assert!(locked(&error, tried), "{error}");
    }
    let store = Store::open(with(dir.path(), Some(&key(6)))).await.unwrap();
    assert_eq!(message(&store, 30).as_deref(), Some("before"));
    assert_eq!(message(&store, 40), Some((count - 1).to_string()));
    store.shutdown().await;
    // A copy of before opens with the key of before, and its data key opens nothing of now.
    let error = Store::open(with(first.path(), Some(&key(6)))).await.unwrap_err();
    assert!(locked(&error, true), "{error}");
    let store = Store::open(with(first.path(), Some(&key(1)))).await.unwrap();
    store.shutdown().await;
    for before in [&plain, &first] {
        let mixed = copy(dir.path());
        let stolen = before.path().join("raft/store.key");
        fs::copy(stolen, mixed.path().join("raft/store.key")).unwrap();
        let error = Store::open(with(mixed.path(), Some(&key(1)))).await.unwrap_err();
        assert!(matches!(error, StoreError::Key { .. }), "{error}");
    }
}

/// How far a change of keys had come.
struct Phase {
    /// The journal's position before and after it.
    begun: usize,
    done: usize,
    /// What opened it before it, and does after it.
    from: Option<u64>,
    to: Option<u64>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_a_change_of_keys_is_cut_one_of_the_two_keys_opens_all() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Journal::default());
    let made = StoreConfig { medium: Some(journal.medium()), ..config(dir.path()) };
    let store = Store::bootstrap(made, put(1, "0")).await.unwrap();
    let first = journal.position();
    let (mut answered, mut phases) = (vec![(first, 0u64)], Vec::new());
    let changes = [(None, Some(1)), (Some(1), Some(2)), (Some(2), None), (None, Some(3))];
    for (number, (from, to)) in (1u64..).zip(changes) {
        store.propose(put(1, &number.to_string()), soon()).await.unwrap();
        answered.push((journal.position(), number));
        if number == 2 {
            store.snapshot().await.unwrap();
        }
        let begun = journal.position();
        change(&store, to.map(key), number).await;
        // The last replacement of the key file is seen with the next write.
        store.propose(put(2, "noted"), soon()).await.unwrap();
        phases.push(Phase { begun, done: journal.position(), from, to });
    }
    store.shutdown().await;

    let file = dir.path().join("raft/store.redb");
    let mut dice = Dice(0x5eed_0005);
    let mut tried = 0;
    for position in first..=journal.position() {
        let may: Vec<Option<u64>> = match phases.iter().find(|p| position < p.done) {
            Some(phase) if position < phase.begun => vec![phase.from],
            Some(phase) => vec![phase.from, phase.to],
            None => vec![phases.last().unwrap().to],
        };
        let fate = [Fate::Lost, Fate::Some, Fate::Torn][position % 3];
        let image = journal.crashed(&file, position, fate, &mut dice);
        for keys in journal.beside(position) {
            let what = format!("a crash at {position}, writes {fate:?}, {may:?} may open it");
            let copy = tempfile::tempdir().unwrap();
            let raft = copy.path().join("raft");
            fs::create_dir_all(&raft).unwrap();
            fs::write(raft.join("store.redb"), &image).unwrap();
            shoal_durable::replace(&raft.join("store.key"), &keys, 0o600).unwrap();
            let mut opened = Vec::new();
            for unlock in [None, Some(1), Some(2), Some(3)] {
                let config = with(copy.path(), unlock.map(key).as_ref());
                match Store::open(config).await {
                    Ok(store) => {
                        let said = answered.iter().rev().find(|(at, _)| *at <= position).unwrap();
                        let found: u64 = message(&store, 1).unwrap().parse().unwrap();
                        assert!(found >= said.1, "{what}: {found}, answered {}", said.1);
                        store.propose(put(3, "after"), soon()).await.unwrap();
                        // What was cut is done again, to its end.
                        change(&store, Some(key(9)), 100).await;
                        change(&store, unlock.map(key), 101).await;
                        store.shutdown().await;
                        opened.push(unlock);
                    }
                    Err(StoreError::Locked { .. }) => {}
                    Err(error) => panic!("{what}: {error}"),
                }
                if opened == [None] {
                    // In clear; whoever gives a key all the same does no harm.
                    break;
                }
            }
            assert_eq!(opened.len(), 1, "{what}: {opened:?}");
            assert!(may.contains(&opened[0]), "{what}: {opened:?}");
            tried += 1;
        }
    }
    println!("{tried} crashes, {} places", journal.position() - first);
    assert!(tried > 50);
}

#[tokio::test]
async fn a_full_disk_refuses_a_rotation_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (full, journal) = (Arc::new(AtomicBool::new(false)), Journal::default());
    let (refuses, open) = (Arc::clone(&full), journal.medium());
    let medium: shoal_store::OpenMedium = Arc::new(move |path: &Path| {
        let next = path.extension().is_some_and(|it| it == "next");
        match next && refuses.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => open(path),
        }
    });
    let config = StoreConfig { medium: Some(medium), ..config(dir.path()) };
    let store = Store::bootstrap(config, put(1, "first")).await.unwrap();
    full.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = store.renew_keys(Some(key(1)), Revision(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        store.propose(put(2, "written all the same"), soon()).await.unwrap();
    }
    full.store(false, Ordering::Relaxed);
    change(&store, Some(key(1)), 1).await;
    assert_eq!(message(&store, 2).as_deref(), Some("written all the same"));
    store.shutdown().await;
}

/// Not a test by itself: what the killed process does. It changes keys for ever, and prints each
/// before and after.
#[test]
fn child_rotates_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let known = std::env::var(CHILD_KEYS).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let dir = Path::new(&dir);
        let mut store = None;
        for number in known.split(',').map(|text| text.parse::<u64>().unwrap()) {
            match Store::open(with(dir, Some(&key(number)))).await {
                Ok(opened) => {
                    println!("\nopened {number}");
                    store = Some(opened);
                    break;
                }
                Err(StoreError::Locked { .. }) => {}
                Err(error) => panic!("open: {error}"),
            }
        }
        let store = store.expect("neither key opens it");
        let last = known.split(',').map(|text| text.parse::<u64>().unwrap()).max().unwrap();
        for number in last + 1.. {
            println!("\nasked {number}");
            change(&store, Some(key(number)), number).await;
            println!("\ndone {number}");
        }
    });
}

#[test]
fn a_process_that_is_killed_while_it_rotates_leaves_one_of_two_keys() {
    const ROUNDS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::bootstrap(config(dir.path()), put(1, "kept")).await.unwrap();
        change(&store, Some(key(1)), 1).await;
        store.shutdown().await;
    });
    let (mut asked, mut done) = (1, 1);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_rotates_until_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_KEYS, format!("{done},{asked}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let killer = killed_soon(child, round);
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            let mut words = line.split(' ');
            match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
                (Some("opened" | "done"), Some(number)) => done = number,
                (Some("asked"), Some(number)) => asked = number,
                _ => {}
            }
        }
        let status = killer.join().unwrap();
        assert_eq!(status.code(), None, "the child must be killed, not fail: {status}");
    }
    runtime.block_on(async {
        let mut opened = Vec::new();
        for number in [done, asked] {
            if let Ok(store) = Store::open(with(dir.path(), Some(&key(number)))).await {
                assert_eq!(message(&store, 1).as_deref(), Some("kept"));
                store.shutdown().await;
                opened.push(number);
            }
        }
        opened.dedup();
        assert_eq!(opened.len(), 1, "done {done}, asked {asked}");
    });
    println!("{asked} rotations were asked for");
}
