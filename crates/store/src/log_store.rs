//! Log and vote on disk, for the consensus library.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};

use crate::consensus::{Entry, LogId, StorageError, Types, Vote, read_failed, write_failed};
use crate::disk::{Disk, Op, PURGED_RECORD, VOTE_RECORD};
use crate::error::StoreError;
use crate::record::{EntryRecord, LogIdRecord, VoteRecord};

/// Log and vote. Cheap to clone; clones read the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Disk,
    /// What was appended last: the library reads it back at once to apply it.
    recent: Arc<Mutex<Vec<Entry>>>,
}

impl LogStore {
    pub(crate) fn new(disk: Disk) -> Self {
        Self { disk, recent: Arc::default() }
    }

    /// The index of the last entry on disk, 0 if there is none.
    pub(crate) fn last_index(&self) -> Result<u64, StoreError> {
        let last = self.disk.last_log()?;
        let decode = |bytes: Vec<u8>| self.disk.decode::<EntryRecord>("last log entry", &bytes);
        let last = last.map(decode).transpose()?;
        Ok(last.map_or(0, |entry| entry.at.index))
    }

    fn recent(&self, start: u64, end: u64) -> Option<Vec<Entry>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.first()?.log_id.index;
        let last = recent.last()?.log_id.index;
        if start < first || start > last || end != last + 1 {
            return None;
        }
        let skip = usize::try_from(start - first).ok()?;
        Some(recent.iter().skip(skip).cloned().collect())
    }

    fn forget(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Runs a read of the disk where it may block.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StorageError> {
    let result = tokio::task::spawn_blocking(f).await;
    let stopped = |_| StoreError::Stopped { reason: "the runtime stops".into() };
    result.map_err(stopped).and_then(|r| r).map_err(|e| read_failed(&e))
}

impl Disk {
    /// What a record says.
    pub(crate) fn decode<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        bytes: &[u8],
    ) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged("read", format!("{what}: {e}")))
    }
}

pub(crate) fn encode<T: serde::Serialize>(what: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|e| StoreError::Disk { action: "write to", problem: format!("{what}: {e}") })
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.recent(start, end) {
            return Ok(entries);
        }
        let disk = self.disk.clone();
        blocking(move || {
            let stored = disk.log(start..end)?;
            let entries: Vec<Entry> = stored
                .iter()
                .map(|bytes| disk.decode::<EntryRecord>("log entry", bytes).map(Entry::from))
                .collect::<Result<_, StoreError>>()?;
            check_order(start, &entries)
                .map_err(|problem| disk.damaged("read the log of", problem))?;
            Ok(entries)
        })
        .await
    }
}

/// Sealing proves each entry and its place, but not that none is missing in between.
fn check_order(start: u64, entries: &[Entry]) -> Result<(), String> {
    let Some(first) = entries.first() else { return Ok(()) };
    // Asked from the very beginning, the log begins where it was last purged.
    if start > 0 && first.log_id.index != start {
        let before = first.log_id.index;
        return Err(format!("log entries from {start} to {before} are missing"));
    }
    for (entry, next) in entries.iter().zip(entries.iter().skip(1)) {
        let (at, after) = (entry.log_id.index, next.log_id.index);
        if after != at + 1 {
            return Err(format!("log entries between {at} and {after} are missing"));
        }
    }
    Ok(())
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let disk = self.disk.clone();
        blocking(move || {
            let purged = disk.meta(PURGED_RECORD)?;
            let decode = |bytes: Vec<u8>| disk.decode::<LogIdRecord>("purged", &bytes);
            let purged = purged.map(decode).transpose()?;
            let last = disk.last_log()?;
            let decode = |bytes: Vec<u8>| disk.decode::<EntryRecord>("last log entry", &bytes);
            let last = last.map(decode).transpose()?.map(|entry| entry.at).or(purged);
            Ok(LogState {
                last_purged_log_id: purged.map(LogId::from),
                last_log_id: last.map(LogId::from),
            })
        })
        .await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode("vote", &VoteRecord::from(*vote)).map_err(|e| write_failed(&e))?;
        let ops = vec![Op::PutMeta(VOTE_RECORD, bytes)];
        self.disk.write(ops).await.map_err(|e| write_failed(&e))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let disk = self.disk.clone();
        blocking(move || {
            let stored = disk.meta(VOTE_RECORD)?;
            let Some(bytes) = stored else { return Ok(None) };
            let record: VoteRecord = disk.decode("vote", &bytes)?;
            let vote = Vote::try_from(record);
            vote.map(Some).map_err(|e| disk.damaged("read the vote of", e.to_string()))
        })
        .await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let ops: Result<Vec<Op>, StoreError> = entries
            .iter()
            .map(|entry| {
                let record = EntryRecord::from(entry);
                Ok(Op::PutLog(record.at, encode("log entry", &record)?))
            })
            .collect();
        let ops = ops.map_err(|e| write_failed(&e))?;
        let result = self.disk.write(ops).await;
        match result {
            Ok(()) => {
                *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = entries;
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                self.forget();
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(write_failed(&error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.forget();
        let ops = vec![Op::RemoveLog(log_id.index..=u64::MAX)];
        self.disk.write(ops).await.map_err(|e| write_failed(&e))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.forget();
        let bytes = encode("purged", &LogIdRecord::from(log_id)).map_err(|e| write_failed(&e))?;
        let ops = vec![Op::PutMeta(PURGED_RECORD, bytes), Op::RemoveLog(0..=log_id.index)];
        self.disk.write(ops).await.map_err(|e| write_failed(&e))
    }
}
