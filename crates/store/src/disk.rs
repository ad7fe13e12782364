//! The one file: log, vote and snapshot, every value sealed, one commit for each batch of writes.
//!
//! Writes go to a task of their own, because a durable commit takes a millisecond or more; it puts
//! everything that is waiting into one commit.

mod writer;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) use self::writer::KeyStep;
use self::writer::{Job, write_loop};

use crate::commit::Held;
use crate::epoch::{Epoch, EpochRecord};
use crate::error::StoreError;
use crate::failure::{DiskFailure, io_failure};
use crate::first_format;
use crate::keyring::{FIRST_GENERATION, Keyring};
use crate::log_store::encode;
use crate::medium::{self, OpenMedium};
use crate::outside::{Outside, offloaded};
use crate::peer::Member;
use crate::record::{
    EntryRecord, HeadRecord, LogIdRecord, MemberRecord, RECORD_VERSION, RecordError,
};
use crate::seal::Sealer;

/// The version of everything in the file.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// The file's name.
const FILE: &str = "store.redb";
/// Writes that may wait for the writer. Consensus has at most a handful under way.
const JOBS_MAX: usize = 64;
/// How long dropping a part of the log may wait for the snapshot that holds it: far longer than
/// writing one takes.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(30);

/// Small records by name. `format` and `key` are in clear, everything else is sealed.
pub(crate) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Log entries by index.
pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// The last snapshot in pieces, by number.
pub(crate) const SNAPSHOT: TableDefinition<u32, &[u8]> = TableDefinition::new("snapshot");

pub(crate) const FORMAT_RECORD: &str = "format";
/// The generation of the key that the whole file is sealed with; the first one if unsaid.
pub(crate) const KEY_RECORD: &str = "key";
pub(crate) const MEMBER_RECORD: &str = "member";
pub(crate) const VOTE_RECORD: &str = "vote";
/// Up to where the log was dropped.
pub(crate) const PURGED_RECORD: &str = "purged";
/// Where the log ends: a log that lost its end is not taken for a whole one.
pub(crate) const TAIL_RECORD: &str = "tail";
/// Up to where entries are known to be confirmed.
pub(crate) const COMMITTED_RECORD: &str = "committed";
/// Which beginning of the cluster it goes back to.
pub(crate) const EPOCH_RECORD: &str = "epoch";
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
    /// Replaces the snapshot by one that ends with the entry `last`, if that is newer.
    PutSnapshot { last: Option<LogIdRecord>, description: Vec<u8>, pieces: Vec<Vec<u8>> },
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
    keyring: Keyring,
    medium: Option<OpenMedium>,
    /// `None` once closed.
    open: RwLock<Option<Open>>,
    jobs: mpsc::Sender<Job>,
    outside: Arc<dyn Outside>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The first failure since it was opened: what consensus makes of it is only a text.
    failure: Mutex<Option<StoreError>>,
    /// What consensus said to be confirmed. On disk with the next commit.
    committed: Mutex<Option<LogIdRecord>>,
    known: watch::Sender<Known>,
}

/// A database, and what it is sealed with.
struct Open {
    database: Database,
    sealer: Arc<Sealer>,
    generation: u64,
}

#[derive(Clone, Copy, Default)]
struct Known {
    held: Held,
    /// The file has failed or is closed: nothing more comes.
    ended: bool,
}

/// Whether `dir` holds a store.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE).exists()
}

impl Disk {
    /// Makes a new file in `dir` for `member`, of `epoch` if that is known already. Either it is
    /// there whole afterwards, or not.
    pub(crate) fn create(
        dir: &Path,
        keyring: &Keyring,
        member: &Member,
        epoch: Option<Epoch>,
    ) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        let failed = |e: &std::io::Error| io_failure("create", e);
        shoal_durable::make_private_dir(dir).map_err(|e| failed(&e))?;
        keyring.prepare()?;
        let keys = keyring.load()?;
        let generation = keys.newest();
        let sealer = keys.sealer(generation).ok_or_else(|| keyring.lost(generation))?;
        let next = path.with_extension("next");
        remove(&next).map_err(|e| failed(&e))?;
        let database = Builder::new().create(&next).map_err(|e| e.at("create", &next))?;
        let record = MemberRecord { v: RECORD_VERSION, member: member.clone() };
        let member = sealer.seal(&meta_record(MEMBER_RECORD), &encode("member", &record)?)?;
        let tail = sealer.seal(&meta_record(TAIL_RECORD), b"null")?;
        let epoch = sealer.seal(&meta_record(EPOCH_RECORD), &EpochRecord::encode(epoch)?)?;
        let write = || -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            {
                let mut meta = txn.open_table(META)?;
                meta.insert(FORMAT_RECORD, FORMAT_VERSION.to_le_bytes().as_slice())?;
                if generation != FIRST_GENERATION {
                    meta.insert(KEY_RECORD, generation.to_le_bytes().as_slice())?;
                }
                meta.insert(MEMBER_RECORD, member.as_slice())?;
                meta.insert(TAIL_RECORD, tail.as_slice())?;
                meta.insert(EPOCH_RECORD, epoch.as_slice())?;
                txn.open_table(LOG)?;
                txn.open_table(SNAPSHOT)?;
            }
            Ok(txn.commit()?)
        };
        write().map_err(|e| e.at("create", &next))?;
        drop(database);
        fs::rename(&next, &path).and_then(|()| shoal_durable::sync_dir(dir)).map_err(|e| failed(&e))
    }

    /// Opens the file in `dir`. One of an earlier format is written anew. What may block later is
    /// done by `outside`.
    pub(crate) fn open(
        dir: &Path,
        keyring: &Keyring,
        medium: Option<&OpenMedium>,
        outside: &Arc<dyn Outside>,
    ) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(StoreError::Missing { path });
        }
        if !path.is_file() {
            let problem = "it is no regular file".to_owned();
            return Err(StoreError::Damaged { action: "open", path, problem });
        }
        let database = medium::open(&path, medium).map_err(|error| match error {
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
        let generation = match read_raw(&database, KEY_RECORD).map_err(|e| e.at("open", &path))? {
            None => FIRST_GENERATION,
            Some(bytes) => {
                <[u8; 8]>::try_from(bytes.as_slice()).map(u64::from_le_bytes).map_err(|_| {
                    let problem = format!("the record '{KEY_RECORD}' is no number");
                    StoreError::Damaged { action: "open", path: path.clone(), problem }
                })?
            }
        };
        let sealer = keyring.load()?.sealer(generation).ok_or_else(|| keyring.lost(generation))?;
        if found == first_format::VERSION {
            first_format::rewrite(&database, &sealer, &path)?;
            tracing::info!(path = %path.display(), "the store was written anew in format 2");
        }
        let member = read_member(&database, &sealer, &path)?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let inner = Inner {
            path,
            member,
            keyring: keyring.clone(),
            medium: medium.cloned(),
            open: RwLock::new(Some(Open { database, sealer: Arc::new(sealer), generation })),
            jobs,
            outside: Arc::clone(outside),
            writer: Mutex::new(None),
            failure: Mutex::new(None),
            committed: Mutex::new(None),
            known: watch::Sender::default(),
        };
        let this = Self(Arc::new(inner));
        let held = this.take_stock()?;
        this.0.known.send_modify(|known| known.held = held);
        let writer = tokio::spawn(write_loop(Arc::downgrade(&this.0), queue));
        *this.0.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(this)
    }

    /// What the file holds, if it is whole.
    fn take_stock(&self) -> Result<Held, StoreError> {
        let none = || self.damaged("open", format!("there is no record '{TAIL_RECORD}'"));
        let tail = self.meta(TAIL_RECORD)?.ok_or_else(none)?;
        let tail: Option<LogIdRecord> = self.decode(TAIL_RECORD, &tail)?;
        let place = |name| -> Result<Option<LogIdRecord>, StoreError> {
            let Some(bytes) = self.meta(name)? else { return Ok(None) };
            self.decode(name, &bytes)
        };
        let last = match self.last_log()? {
            Some(bytes) => Some(self.decode::<EntryRecord>("last log entry", &bytes)?.at),
            None => place(PURGED_RECORD)?,
        };
        if last != tail {
            let (found, expected) = (said(last), said(tail));
            let problem = format!("its log ends with {found}, but was written up to {expected}");
            return Err(self.damaged("open", problem));
        }
        let head = self.meta(SNAPSHOT_RECORD)?;
        let head = head.map(|bytes| self.decode::<HeadRecord>("snapshot's description", &bytes));
        let snapshot = head.transpose()?.and_then(|head| head.last);
        let committed = place(COMMITTED_RECORD)?;
        if committed > tail.max(snapshot) {
            let (found, expected) = (said(tail.max(snapshot)), said(committed));
            let problem = format!("it ends with {found}, but {expected} was confirmed");
            return Err(self.damaged("open", problem));
        }
        Ok(Held { tail, snapshot, committed })
    }

    /// What is durable.
    pub(crate) fn held(&self) -> Held {
        self.0.known.borrow().held
    }

    /// Where the log ends, or the snapshot if that reaches farther: a crash while one was installed
    /// leaves an older log in front of it.
    pub(crate) fn last(&self) -> Option<LogIdRecord> {
        let held = self.held();
        held.tail.max(held.snapshot)
    }

    /// Remembers what is confirmed; it becomes durable with the next commit.
    pub(crate) fn confirm(&self, at: LogIdRecord) {
        let mut committed = self.0.committed.lock().unwrap_or_else(PoisonError::into_inner);
        *committed = (*committed).max(Some(at));
    }

    /// What is known to be confirmed, if that is not on disk.
    pub(crate) fn unwritten(&self) -> Option<LogIdRecord> {
        self.0.unwritten()
    }

    /// Returns when a snapshot that has the entry `at` is durable.
    pub(crate) async fn snapshot_holds(&self, at: LogIdRecord) -> Result<(), StoreError> {
        let mut known = self.0.known.subscribe();
        let enough = known.wait_for(|known| known.ended || known.held.snapshot >= Some(at));
        match tokio::time::timeout(SNAPSHOT_WAIT, enough).await {
            Ok(Ok(known)) if known.held.snapshot >= Some(at) => Ok(()),
            Ok(_) => Err(self.failure().unwrap_or_else(closed)),
            Err(_) => Err(StoreError::Disk {
                action: "drop a part of the log of",
                problem: format!(
                    "no snapshot with {} was written within {} s",
                    said(Some(at)),
                    SNAPSHOT_WAIT.as_secs()
                ),
            }),
        }
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
        self.0.jobs.send(Job::Write { ops, done }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Does a step of changing the key, and returns when it is durable.
    pub(crate) async fn keys(&self, step: KeyStep) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.0.jobs.send(Job::Keys { step, done }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The record `name`.
    pub(crate) fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let (raw, sealer) = self.0.read("read", |database| read_raw(database, name))?;
        raw.map(|sealed| self.0.unseal(&sealer, &meta_record(name), &sealed)).transpose()
    }

    /// The log entries with these indices that are there, in order: the first one, and as many
    /// more as make `bytes`.
    pub(crate) fn log(&self, range: Range<u64>, bytes: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let (sealed, sealer) = self.0.read("read the log of", |database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut total = 0usize;
            for item in table.range(range)? {
                let (index, sealed) = item?;
                let (index, sealed) = (index.value(), sealed.value().to_vec());
                total = total.saturating_add(sealed.len());
                if total > bytes && !found.is_empty() {
                    break;
                }
                found.push((index, sealed));
            }
            Ok(found)
        })?;
        let open =
            |(index, sealed): &(u64, Vec<u8>)| self.0.unseal(&sealer, &log_record(*index), sealed);
        sealed.iter().map(open).collect()
    }

    /// The last log entry.
    pub(crate) fn last_log(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let (last, sealer) = self.0.read("read the log of", |database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let last = table.range(0u64..)?.next_back().transpose()?;
            Ok(last.map(|(index, sealed)| (index.value(), sealed.value().to_vec())))
        })?;
        last.map(|(index, sealed)| self.0.unseal(&sealer, &log_record(index), &sealed)).transpose()
    }

    /// The snapshot's description and its pieces joined, as of one moment.
    pub(crate) fn snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        let (stored, sealer) = self.0.read("read the snapshot of", |database| {
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
        let description = self.0.unseal(&sealer, &meta_record(SNAPSHOT_RECORD), &description)?;
        let mut content = Vec::new();
        for (number, sealed) in pieces {
            content.extend(self.0.unseal(&sealer, &piece_record(number), &sealed)?);
        }
        Ok(Some(StoredSnapshot { description, content }))
    }

    /// What is damaged, said with the file's name.
    pub(crate) fn damaged(&self, action: &'static str, problem: String) -> StoreError {
        self.0.note(StoreError::Damaged { action, path: self.0.path.clone(), problem })
    }

    /// What cannot be used: of a later version, or damaged.
    pub(crate) fn unfit(&self, action: &'static str, what: &str, why: &RecordError) -> StoreError {
        let problem = format!("{what}: {why}");
        let path = self.0.path.clone();
        self.0.note(match why.is_later() {
            true => StoreError::NeedsUpgrade { action, path, problem },
            false => StoreError::Damaged { action, path, problem },
        })
    }

    /// The first failure since it was opened.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the file; another process may open it when this returns.
    pub(crate) async fn close(&self) {
        // Ignored because: the writer is gone already, which is what closing asks for.
        let _ = self.0.jobs.send(Job::Close).await;
        self.0.known.send_modify(|known| known.ended = true);
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // Ignored because: a panic of the writer has been reported to every waiting write.
            let _ = writer.await;
        }
        let inner = Arc::clone(&self.0);
        let closing = self.offload(move || {
            inner.open.write().unwrap_or_else(PoisonError::into_inner).take();
        });
        // Ignored because: the closure above cannot panic and is not aborted.
        let _ = closing.await;
    }

    /// What comes from outside.
    pub(crate) fn outside(&self) -> &dyn Outside {
        &*self.0.outside
    }

    /// Does `work` where it may block.
    pub(crate) async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = offloaded(&*self.0.outside, work).await;
        done.map_err(|error| StoreError::Stopped { reason: error.to_string() })
    }
}

impl Inner {
    /// Runs `f`; what fails is noted and said with the file's name. What was read is sealed as the
    /// answer says, also if the file is another one by the time that it is opened.
    fn read<T>(
        &self,
        action: &'static str,
        f: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<(T, Arc<Sealer>), StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_ref() else { return Err(closed()) };
        let read = f(&open.database).map_err(|e| self.note(e.at(action, &self.path)))?;
        Ok((read, Arc::clone(&open.sealer)))
    }

    fn note(&self, error: StoreError) -> StoreError {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.clone());
        drop(first);
        self.known.send_modify(|known| known.ended = true);
        error
    }

    /// Opens a sealed value. The key is right, or the file would not be open: what does not open
    /// has been changed.
    fn unseal(&self, sealer: &Sealer, record: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        sealer.open(record, sealed).map_err(|_| {
            self.note(StoreError::Damaged {
                action: "read",
                path: self.path.clone(),
                problem: format!("the record '{record}' cannot be decrypted"),
            })
        })
    }

    /// What is known to be confirmed, if that is not on disk.
    fn unwritten(&self) -> Option<LogIdRecord> {
        let committed = *self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        committed.filter(|_| committed > self.known.borrow().held.committed)
    }
}

fn closed() -> StoreError {
    StoreError::Stopped { reason: "its file is closed".into() }
}

/// A place in the log, in words.
fn said(at: Option<LogIdRecord>) -> String {
    let entry = |LogIdRecord { term, index }| format!("entry {index} of term {term}");
    at.map_or_else(|| "nothing".to_owned(), entry)
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
pub(crate) fn remove(path: &Path) -> std::io::Result<()> {
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

pub(crate) fn piece_record(number: u32) -> String {
    format!("snapshot:{number}")
}
