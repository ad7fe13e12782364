//! The one file: log, vote and snapshot, every value sealed, one commit for each batch of writes.
//!
//! Writes go to a thread of their own, because a durable commit takes a millisecond or more; it
//! puts everything that is waiting into one commit.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::seal::{Sealer, sync_parent};

/// The version of everything in the file.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// The file's name.
const FILE: &str = "store.redb";
/// The key file's name.
const KEY_FILE: &str = "store.key";
/// Memory for cached pages: the whole log and snapshot of a usual cluster fit.
const CACHE_BYTES: usize = 16 << 20;
/// Writes that may wait for the thread. Consensus has at most a handful under way.
const JOBS_MAX: usize = 64;

/// Small records by name. `format` is in clear, everything else is sealed.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Log entries by index.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// The last snapshot in pieces, by number.
const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");

const FORMAT_RECORD: &str = "format";
const MEMBER_RECORD: &str = "member";
/// The snapshot's description.
pub(crate) const SNAPSHOT_RECORD: &str = "snapshot";

/// One write. Values are in clear here.
pub(crate) enum Op {
    /// A record by name.
    PutMeta(&'static str, Vec<u8>),
    /// A log entry.
    PutLog(u64, Vec<u8>),
    /// Removes log entries of these indices.
    RemoveLog(std::ops::RangeInclusive<u64>),
    /// Replaces the snapshot's pieces.
    PutSnapshot(Vec<Vec<u8>>),
}

enum Job {
    Write { ops: Vec<Op>, done: oneshot::Sender<Result<(), StoreError>> },
    Close,
}

/// A snapshot as it is kept.
pub(crate) struct StoredSnapshot {
    pub(crate) description: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

/// The file, open. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Inner>);

struct Inner {
    path: PathBuf,
    sealer: Sealer,
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    jobs: mpsc::Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Whether `dir` holds a store.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

impl Disk {
    /// Makes a new file in `dir` for member `raft_id`. Either it is there whole afterwards, or not.
    pub(crate) fn create(dir: &Path, raft_id: u64) -> Result<(), StoreError> {
        let failed = |e: &dyn std::error::Error| disk("create", e);
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(dir).map_err(|e| failed(&e))?;
        let sealer = Sealer::create(&dir.join(KEY_FILE))?;
        let path = dir.join(FILE);
        let next = path.with_extension("next");
        match fs::remove_file(&next) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&e)),
            _ => {}
        }
        let database = Builder::new().create(&next).map_err(|e| failed(&e))?;
        let txn = database.begin_write().map_err(|e| failed(&e))?;
        {
            let mut meta = txn.open_table(META).map_err(|e| failed(&e))?;
            let version = FORMAT_VERSION.to_le_bytes();
            meta.insert(FORMAT_RECORD, version.as_slice()).map_err(|e| failed(&e))?;
            let member = sealer.seal("meta:member", &raft_id.to_le_bytes())?;
            meta.insert(MEMBER_RECORD, member.as_slice()).map_err(|e| failed(&e))?;
            txn.open_table(LOG).map_err(|e| failed(&e))?;
            txn.open_table(SNAPSHOT).map_err(|e| failed(&e))?;
        }
        txn.commit().map_err(|e| failed(&e))?;
        drop(database);
        fs::rename(&next, &path).and_then(|()| sync_parent(&path)).map_err(|e| failed(&e))
    }

    /// Opens the file in `dir`, which must be member `raft_id`'s.
    pub(crate) fn open(dir: &Path, raft_id: u64) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(StoreError::Missing { path });
        }
        let opened = Builder::new().set_cache_size(CACHE_BYTES).open(&path);
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.clone() },
            other => disk("open", &other),
        })?;
        let format = read_raw(&database, FORMAT_RECORD)?;
        let found = format
            .as_deref()
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
            .map_or(0, u32::from_le_bytes);
        if found != FORMAT_VERSION {
            return Err(StoreError::Version { path, found, known: FORMAT_VERSION });
        }
        let sealer = Sealer::load(&dir.join(KEY_FILE))?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let inner = Inner {
            path,
            sealer,
            database: RwLock::new(Some(database)),
            jobs,
            thread: Mutex::new(None),
        };
        let this = Self(Arc::new(inner));
        let member = this.meta(MEMBER_RECORD)?;
        let found = member
            .as_deref()
            .and_then(|bytes| <[u8; 8]>::try_from(bytes).ok())
            .map_or(0, u64::from_le_bytes);
        if found != raft_id {
            let path = this.0.path.clone();
            return Err(StoreError::OtherMember { path, found, expected: raft_id });
        }
        let writer = Arc::downgrade(&this.0);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_loop(&writer, queue))
            .map_err(|e| disk("start the writer of", &e))?;
        *this.0.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(this)
    }

    /// Writes `ops` and returns when they are durable.
    pub(crate) async fn write(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        let stopped = || StoreError::Stopped { reason: "its file is closed".into() };
        self.0.jobs.send(Job::Write { ops, done }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// The record `name`.
    pub(crate) fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let raw = self.0.read(|database| read_raw(database, name))?;
        raw.map(|sealed| self.0.sealer.open(&format!("meta:{name}"), &sealed)).transpose()
    }

    /// The log entries with these indices that are there, in order.
    pub(crate) fn log(&self, range: Range<u64>) -> Result<Vec<Vec<u8>>, StoreError> {
        self.0.read(|database| {
            let failed = |e: &dyn std::error::Error| disk("read the log of", e);
            let txn = database.begin_read().map_err(|e| failed(&e))?;
            let table = txn.open_table(LOG).map_err(|e| failed(&e))?;
            let mut entries = Vec::new();
            for item in table.range(range).map_err(|e| failed(&e))? {
                let (index, sealed) = item.map_err(|e| failed(&e))?;
                entries.push(self.0.sealer.open(&log_record(index.value()), sealed.value())?);
            }
            Ok(entries)
        })
    }

    /// The last log entry.
    pub(crate) fn last_log(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let last = self.0.read(|database| {
            let failed = |e: &dyn std::error::Error| disk("read the log of", e);
            let txn = database.begin_read().map_err(|e| failed(&e))?;
            let table = txn.open_table(LOG).map_err(|e| failed(&e))?;
            let last = table.range(0u64..).map_err(|e| failed(&e))?.next_back();
            let last = last.transpose().map_err(|e| failed(&e))?;
            Ok(last.map(|(index, sealed)| (index.value(), sealed.value().to_vec())))
        })?;
        last.map(|(index, sealed)| self.0.sealer.open(&log_record(index), &sealed)).transpose()
    }

    /// The snapshot's description and its pieces joined, as of one moment.
    pub(crate) fn snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        self.0.read(|database| {
            let failed = |e: &dyn std::error::Error| disk("read the snapshot of", e);
            let txn = database.begin_read().map_err(|e| failed(&e))?;
            let meta = txn.open_table(META).map_err(|e| failed(&e))?;
            let Some(sealed) = meta.get(SNAPSHOT_RECORD).map_err(|e| failed(&e))? else {
                return Ok(None);
            };
            let description =
                self.0.sealer.open(&format!("meta:{SNAPSHOT_RECORD}"), sealed.value())?;
            let table = txn.open_table(SNAPSHOT).map_err(|e| failed(&e))?;
            let mut content = Vec::new();
            for item in table.range(0u32..).map_err(|e| failed(&e))? {
                let (number, sealed) = item.map_err(|e| failed(&e))?;
                let record = piece_record(number.value());
                content.extend(self.0.sealer.open(&record, sealed.value())?);
            }
            Ok(Some(StoredSnapshot { description, content }))
        })
    }

    /// Closes the file; another process may open it when this returns. Blocks.
    pub(crate) async fn close(&self) {
        // Ignored because: the thread is gone already, which is what closing asks for.
        let _ = self.0.jobs.send(Job::Close).await;
        let inner = Arc::clone(&self.0);
        let closing = tokio::task::spawn_blocking(move || {
            let thread = inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(thread) = thread {
                // Ignored because: a panic of the thread has been reported to every waiting write.
                let _ = thread.join();
            }
            inner.database.write().unwrap_or_else(PoisonError::into_inner).take();
        });
        // Ignored because: the closure above cannot panic and is not aborted.
        let _ = closing.await;
    }
}

impl Inner {
    fn read<T>(&self, f: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match database.as_ref() {
            Some(database) => f(database),
            None => Err(StoreError::Stopped { reason: "its file is closed".into() }),
        }
    }

    /// One commit for all of `jobs`.
    fn commit<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Result<(), StoreError> {
        self.read(|database| {
            let failed = |e: &dyn std::error::Error| disk("write to", e);
            let txn = database.begin_write().map_err(|e| failed(&e))?;
            {
                let mut meta = txn.open_table(META).map_err(|e| failed(&e))?;
                let mut log = txn.open_table(LOG).map_err(|e| failed(&e))?;
                let mut snapshot = txn.open_table(SNAPSHOT).map_err(|e| failed(&e))?;
                for op in ops {
                    match op {
                        Op::PutMeta(name, value) => {
                            let sealed = self.sealer.seal(&format!("meta:{name}"), value)?;
                            meta.insert(*name, sealed.as_slice()).map_err(|e| failed(&e))?;
                        }
                        Op::PutLog(index, value) => {
                            let sealed = self.sealer.seal(&log_record(*index), value)?;
                            log.insert(*index, sealed.as_slice()).map_err(|e| failed(&e))?;
                        }
                        Op::RemoveLog(range) => {
                            log.retain_in(range.clone(), |_, _| false).map_err(|e| failed(&e))?;
                        }
                        Op::PutSnapshot(pieces) => {
                            snapshot.retain(|_, _| false).map_err(|e| failed(&e))?;
                            for (number, piece) in (0u32..).zip(pieces) {
                                let sealed = self.sealer.seal(&piece_record(number), piece)?;
                                snapshot
                                    .insert(number, sealed.as_slice())
                                    .map_err(|e| failed(&e))?;
                            }
                        }
                    }
                }
            }
            // The default durability: on disk when `commit` returns.
            txn.commit().map_err(|e| failed(&e))
        })
    }
}

fn write_loop(disk: &std::sync::Weak<Inner>, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut waiting = Vec::new();
        let mut close = false;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write { ops, done } => waiting.push((ops, done)),
                Job::Close => {
                    close = true;
                    break;
                }
            }
            next = queue.try_recv().ok();
        }
        let Some(inner) = disk.upgrade() else { return };
        if !waiting.is_empty() {
            let result = inner.commit(waiting.iter().flat_map(|(ops, _)| ops));
            for (_, done) in waiting {
                // Ignored because: who does not wait any more does not want the answer.
                let _ = done.send(copy(&result));
            }
        }
        if close {
            return;
        }
    }
}

/// The same result for each of several waiting writes.
fn copy(result: &Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Ok(()) => Ok(()),
        Err(StoreError::Disk { action, problem }) => {
            Err(StoreError::Disk { action, problem: problem.clone() })
        }
        Err(other) => Err(StoreError::Disk { action: "write to", problem: other.to_string() }),
    }
}

fn read_raw(database: &Database, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |e: &dyn std::error::Error| disk("read", e);
    let txn = database.begin_read().map_err(|e| failed(&e))?;
    let table = txn.open_table(META).map_err(|e| failed(&e))?;
    let value = table.get(name).map_err(|e| failed(&e))?;
    Ok(value.map(|guard| guard.value().to_vec()))
}

fn log_record(index: u64) -> String {
    format!("log:{index}")
}

fn piece_record(number: u32) -> String {
    format!("snapshot:{number}")
}

fn disk(action: &'static str, error: &dyn std::error::Error) -> StoreError {
    StoreError::Disk { action, problem: error.to_string() }
}
