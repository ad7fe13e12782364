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
use crate::failure::{DiskFailure, io_failure};
use crate::first_format;
use crate::log_store::encode;
use crate::peer::Member;
use crate::record::{LogIdRecord, MemberRecord, RECORD_VERSION};
use crate::seal::Sealer;

/// The version of everything in the file.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// The file's name.
const FILE: &str = "store.redb";
/// The key file's name.
const KEY_FILE: &str = "store.key";
/// Memory for cached pages: the whole log and snapshot of a usual cluster fit.
const CACHE_BYTES: usize = 16 << 20;
/// Writes that may wait for the thread. Consensus has at most a handful under way.
const JOBS_MAX: usize = 64;

/// Small records by name. `format` is in clear, everything else is sealed.
pub(crate) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Log entries by index.
pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// The last snapshot in pieces, by number.
pub(crate) const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");

pub(crate) const FORMAT_RECORD: &str = "format";
pub(crate) const MEMBER_RECORD: &str = "member";
pub(crate) const VOTE_RECORD: &str = "vote";
/// Up to where the log was dropped.
pub(crate) const PURGED_RECORD: &str = "purged";
/// The snapshot's description.
pub(crate) const SNAPSHOT_RECORD: &str = "snapshot";

/// One write. Values are in clear here.
pub(crate) enum Op {
    /// A record by name.
    PutMeta(&'static str, Vec<u8>),
    /// A log entry.
    PutLog(LogIdRecord, Vec<u8>),
    /// Removes log entries of these indices.
    RemoveLog(std::ops::RangeInclusive<u64>),
    /// Replaces the snapshot.
    PutSnapshot { description: Vec<u8>, pieces: Vec<Vec<u8>> },
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
    member: Member,
    sealer: Sealer,
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    jobs: mpsc::Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The first failure since it was opened: what consensus makes of it is only a text.
    failure: Mutex<Option<StoreError>>,
}

/// Whether `dir` holds a store.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

impl Disk {
    /// Makes a new file in `dir` for `member`. Either it is there whole afterwards, or not.
    pub(crate) fn create(dir: &Path, member: &Member) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        let failed = |e: &std::io::Error| io_failure("create", e);
        shoal_durable::make_private_dir(dir).map_err(|e| failed(&e))?;
        let sealer = Sealer::create(&dir.join(KEY_FILE))?;
        let next = path.with_extension("next");
        remove(&next).map_err(|e| failed(&e))?;
        let database = Builder::new().create(&next).map_err(|e| e.at("create", &next))?;
        let record = MemberRecord { v: RECORD_VERSION, member: member.clone() };
        let member = sealer.seal("meta:member", &encode("member", &record)?)?;
        let write = || -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            {
                let mut meta = txn.open_table(META)?;
                meta.insert(FORMAT_RECORD, FORMAT_VERSION.to_le_bytes().as_slice())?;
                meta.insert(MEMBER_RECORD, member.as_slice())?;
                txn.open_table(LOG)?;
                txn.open_table(SNAPSHOT)?;
            }
            Ok(txn.commit()?)
        };
        write().map_err(|e| e.at("create", &next))?;
        drop(database);
        fs::rename(&next, &path).and_then(|()| shoal_durable::sync_dir(dir)).map_err(|e| failed(&e))
    }

    /// Opens the file in `dir`. One of an earlier format is written anew.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(StoreError::Missing { path });
        }
        if !path.is_file() {
            let problem = "it is no regular file".to_owned();
            return Err(StoreError::Damaged { action: "open", path, problem });
        }
        let opened = Builder::new().set_cache_size(CACHE_BYTES).open(&path);
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.clone() },
            other => other.at("open", &path),
        })?;
        let format = read_raw(&database, FORMAT_RECORD).map_err(|e| e.at("open", &path))?;
        let found = format
            .as_deref()
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
            .map_or(0, u32::from_le_bytes);
        if found != FORMAT_VERSION && found != first_format::VERSION {
            return Err(StoreError::Version { path, found, known: FORMAT_VERSION });
        }
        let sealer = Sealer::load(&dir.join(KEY_FILE))?;
        if found == first_format::VERSION {
            first_format::rewrite(&database, &sealer, &path)?;
            tracing::info!(path = %path.display(), "the store was written anew in format 2");
        }
        let member = read_member(&database, &sealer, &path)?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let inner = Inner {
            path,
            member,
            sealer,
            database: RwLock::new(Some(database)),
            jobs,
            thread: Mutex::new(None),
            failure: Mutex::new(None),
        };
        let this = Self(Arc::new(inner));
        let writer = Arc::downgrade(&this.0);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || write_loop(&writer, queue))
            .map_err(|e| io_failure("start the writer of", &e))?;
        *this.0.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(this)
    }

    /// Whose file it is.
    pub(crate) fn member(&self) -> &Member {
        &self.0.member
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
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
        let raw = self.0.read("read", |database| read_raw(database, name))?;
        raw.map(|sealed| self.0.unseal(&meta_record(name), &sealed)).transpose()
    }

    /// The log entries with these indices that are there, in order.
    pub(crate) fn log(&self, range: Range<u64>) -> Result<Vec<Vec<u8>>, StoreError> {
        let sealed: Vec<(u64, Vec<u8>)> = self.0.read("read the log of", |database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let own = |item: Result<_, redb::StorageError>| {
                let (index, sealed): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>) =
                    item?;
                Ok((index.value(), sealed.value().to_vec()))
            };
            table.range(range)?.map(own).collect()
        })?;
        sealed.iter().map(|(index, sealed)| self.0.unseal(&log_record(*index), sealed)).collect()
    }

    /// The last log entry.
    pub(crate) fn last_log(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let last = self.0.read("read the log of", |database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let last = table.range(0u64..)?.next_back().transpose()?;
            Ok(last.map(|(index, sealed)| (index.value(), sealed.value().to_vec())))
        })?;
        last.map(|(index, sealed)| self.0.unseal(&log_record(index), &sealed)).transpose()
    }

    /// The snapshot's description and its pieces joined, as of one moment.
    pub(crate) fn snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        let stored = self.0.read("read the snapshot of", |database| {
            let txn = database.begin_read()?;
            let meta = txn.open_table(META)?;
            let Some(description) = meta.get(SNAPSHOT_RECORD)? else { return Ok(None) };
            let table = txn.open_table(SNAPSHOT)?;
            let mut pieces = Vec::new();
            for item in table.range(0u32..)? {
                let (number, sealed) = item?;
                pieces.push((number.value(), sealed.value().to_vec()));
            }
            Ok(Some((description.value().to_vec(), pieces)))
        })?;
        let Some((description, pieces)) = stored else { return Ok(None) };
        let description = self.0.unseal(&meta_record(SNAPSHOT_RECORD), &description)?;
        let mut content = Vec::new();
        for (number, sealed) in pieces {
            content.extend(self.0.unseal(&piece_record(number), &sealed)?);
        }
        Ok(Some(StoredSnapshot { description, content }))
    }

    /// What is damaged, said with the file's name.
    pub(crate) fn damaged(&self, action: &'static str, problem: String) -> StoreError {
        self.0.note(StoreError::Damaged { action, path: self.0.path.clone(), problem })
    }

    /// The first failure since it was opened.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the file; another process may open it when this returns.
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
    /// Runs `f`; what fails is noted and said with the file's name.
    fn read<T>(
        &self,
        action: &'static str,
        f: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match database.as_ref() {
            Some(database) => f(database).map_err(|e| self.note(e.at(action, &self.path))),
            None => Err(StoreError::Stopped { reason: "its file is closed".into() }),
        }
    }

    fn note(&self, error: StoreError) -> StoreError {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.clone());
        error
    }

    /// Opens a sealed value. The key is right, or the file would not be open: what does not open
    /// has been changed.
    fn unseal(&self, record: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.sealer.open(record, sealed).map_err(|_| {
            self.note(StoreError::Damaged {
                action: "read",
                path: self.path.clone(),
                problem: format!("the record '{record}' cannot be decrypted"),
            })
        })
    }

    /// One commit for all of `jobs`.
    fn commit<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Result<(), StoreError> {
        let seal = |record: &str, value: &[u8]| {
            self.sealer.seal(record, value).map_err(|e| redb::Error::Corrupted(e.to_string()))
        };
        self.read("write to", |database| {
            let txn = database.begin_write()?;
            {
                let mut meta = txn.open_table(META)?;
                let mut log = txn.open_table(LOG)?;
                let mut snapshot = txn.open_table(SNAPSHOT)?;
                for op in ops {
                    match op {
                        Op::PutMeta(name, value) => {
                            let sealed = seal(&meta_record(name), value)?;
                            meta.insert(*name, sealed.as_slice())?;
                        }
                        Op::PutLog(at, value) => {
                            let sealed = seal(&log_record(at.index), value)?;
                            log.insert(at.index, sealed.as_slice())?;
                        }
                        Op::RemoveLog(range) => log.retain_in(range.clone(), |_, _| false)?,
                        Op::PutSnapshot { description, pieces } => {
                            let sealed = seal(&meta_record(SNAPSHOT_RECORD), description)?;
                            meta.insert(SNAPSHOT_RECORD, sealed.as_slice())?;
                            snapshot.retain(|_, _| false)?;
                            for (number, piece) in (0u32..).zip(pieces) {
                                let sealed = seal(&piece_record(number), piece)?;
                                snapshot.insert(number, sealed.as_slice())?;
                            }
                        }
                    }
                }
            }
            // The default durability: on disk when `commit` returns.
            Ok(txn.commit()?)
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
                let _ = done.send(result.clone());
            }
        }
        if close {
            return;
        }
    }
}

/// The first sealed record: what does not open here has another key.
fn read_member(database: &Database, sealer: &Sealer, path: &Path) -> Result<Member, StoreError> {
    let damaged = |problem: String| StoreError::Damaged {
        action: "open",
        path: path.to_owned(),
        problem: format!("the record 'meta:{MEMBER_RECORD}': {problem}"),
    };
    let sealed = read_raw(database, MEMBER_RECORD).map_err(|e| e.at("open", path))?;
    let sealed = sealed.ok_or_else(|| damaged("there is none".to_owned()))?;
    let bytes = sealer.open(&meta_record(MEMBER_RECORD), &sealed)?;
    let record: MemberRecord =
        serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    Ok(record.member)
}

fn read_raw(database: &Database, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = database.begin_read()?.open_table(META)?;
    let value = table.get(name)?;
    Ok(value.map(|guard| guard.value().to_vec()))
}

/// Removes what lies at `path`, whatever it is.
fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn meta_record(name: &str) -> String {
    format!("meta:{name}")
}

pub(crate) fn log_record(index: u64) -> String {
    format!("log:{index}")
}

fn piece_record(number: u32) -> String {
    format!("snapshot:{number}")
}
