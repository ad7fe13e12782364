//! Log and vote on disk, for the consensus library.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, RaftLogReader};

use crate::ceiling::Ceiling;
use crate::consensus::{Entry, LogId, StorageError, Types, Vote, read_failed, write_failed};
use crate::disk::{Disk, Op, PURGED_RECORD, SNAPSHOT_RECORD, VOTE_RECORD};
use crate::error::StoreError;
use crate::record::{
    Body, EntryRecord, GroupRecord, HeadRecord, LogIdRecord, RecordError, VoteRecord,
};

/// Most bytes of entries in one message to another member, unless a single one has more: it must be
/// across, and on that member's disk, within the time for one message.
pub(crate) const APPEND_BYTES: usize = 1 << 20;
/// When nothing else is written for so long, what is known to be confirmed is written alone.
const QUIET: Duration = Duration::from_secs(1);
/// Entries that are read at a time in search of the group.
const SEARCHED: u64 = 64;

/// Log and vote. Cheap to clone; clones read the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Disk,
    ceiling: Arc<Ceiling>,
    /// What was appended last: the library reads it back at once to apply it.
    recent: Arc<Mutex<Vec<Entry>>>,
    /// Whether somebody waits for the quiet.
    waiting: Arc<AtomicBool>,
}

impl LogStore {
    pub(crate) fn new(disk: Disk, ceiling: Arc<Ceiling>) -> Self {
        Self { disk, ceiling, recent: Arc::default(), waiting: Arc::default() }
    }

    /// Looks through the entries that are not known to be confirmed for what cannot be read: the
    /// others are applied at once, and found then.
    pub(crate) fn look_above(&self) -> Result<(), StoreError> {
        let held = self.disk.held();
        let end = held.tail.map_or(0, |at| at.index.saturating_add(1));
        let mut start = held.committed.map_or(0, |at| at.index.saturating_add(1));
        while start < end {
            let next = start.saturating_add(SEARCHED).min(end);
            for bytes in self.disk.log(start..next, usize::MAX)? {
                let entry: EntryRecord = self.disk.decode("log entry", &bytes)?;
                if let Body::Data(payload) = &entry.body {
                    self.ceiling.logged(entry.at.index, payload.level());
                }
            }
            start = next;
        }
        Ok(())
    }

    /// The index of the last entry on disk, 0 if there is none.
    pub(crate) fn last_index(&self) -> u64 {
        self.disk.held().tail.map_or(0, |at| at.index)
    }

    /// The entries from `start` on, if they are the last ones; no more than make `bytes`.
    fn recent(&self, start: u64, end: u64, bytes: usize) -> Option<Vec<Entry>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.first()?.log_id.index;
        let last = recent.last()?.log_id.index;
        if start < first || start > last || end != last + 1 {
            return None;
        }
        let skip = usize::try_from(start - first).ok()?;
        let mut total = 0usize;
        let fits = |(number, entry): &(usize, &Entry)| {
            if let EntryPayload::Normal(payload) = &entry.payload {
                total = total.saturating_add(payload.bytes());
            }
            *number == 0 || total <= bytes
        };
        let found = recent.iter().skip(skip).enumerate().take_while(fits);
        Some(found.map(|(_, entry)| entry.clone()).collect())
    }

    /// The entries from `start` to before `end`: the first one, and as many more as make `bytes`.
    async fn entries(
        &self,
        start: u64,
        end: u64,
        bytes: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.recent(start, end, bytes) {
            return Ok(entries);
        }
        let disk = self.disk.clone();
        blocking(&self.disk, move || {
            let stored = disk.log(start..end, bytes)?;
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

    /// Sees to it that what is confirmed is written even if nothing else is. Ends by itself once
    /// there is nothing to write, or nowhere to.
    fn write_when_quiet(&self) {
        if self.waiting.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                let before = this.disk.unwritten();
                tokio::time::sleep(QUIET).await;
                let now = this.disk.unwritten();
                if now.is_some() && now == before && this.disk.write(Vec::new()).await.is_err() {
                    return;
                }
                if this.disk.unwritten().is_some() {
                    continue;
                }
                this.waiting.store(false, Ordering::Release);
                // Who came just before has relied on this task.
                let more = this.disk.unwritten().is_some();
                if !more || this.waiting.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    fn forget(&self) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Runs a read of the disk where it may block.
async fn blocking<T: Send + 'static>(
    disk: &Disk,
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StorageError> {
    disk.offload(f).await.and_then(|r| r).map_err(|e| read_failed(&e))
}

impl Disk {
    /// What a record says.
    pub(crate) fn decode<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        bytes: &[u8],
    ) -> Result<T, StoreError> {
        serde_json::from_slice(bytes)
            .map_err(|e| self.unfit("read", what, &RecordError::of(bytes, e)))
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
        self.entries(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, APPEND_BYTES).await
    }
}

/// The group as the last entry made it that changed it, confirmed or not.
pub(crate) fn last_group(disk: &Disk) -> Result<GroupRecord, StoreError> {
    let mut end = disk.held().tail.map_or(0, |at| at.index.saturating_add(1));
    while end > 0 {
        let start = end.saturating_sub(SEARCHED);
        let stored = disk.log(start..end, usize::MAX)?;
        for bytes in stored.iter().rev() {
            let entry: EntryRecord = disk.decode("log entry", bytes)?;
            if let Body::Group(group) = entry.body {
                return Ok(group);
            }
        }
        if stored.is_empty() {
            break;
        }
        end = start;
    }
    let Some(head) = disk.meta(SNAPSHOT_RECORD)? else { return Ok(GroupRecord::default()) };
    Ok(disk.decode::<HeadRecord>("snapshot's description", &head)?.group)
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
        blocking(&self.disk, move || {
            let purged = disk.meta(PURGED_RECORD)?;
            let decode = |bytes: Vec<u8>| disk.decode::<LogIdRecord>("purged", &bytes);
            let purged = purged.map(decode).transpose()?;
            Ok(LogState {
                last_purged_log_id: purged.map(LogId::from),
                last_log_id: disk.held().tail.map(LogId::from),
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
        blocking(&self.disk, move || {
            let stored = disk.meta(VOTE_RECORD)?;
            let Some(bytes) = stored else { return Ok(None) };
            let mut record: VoteRecord = disk.decode("vote", &bytes)?;
            // The library would lead at once, without asking anybody. With others in the group
            // that is wrong if this disk is an older copy of itself: under the same term it would
            // write other entries in places that the others have filled. So it has to be elected
            // again, which the others refuse to who has less than they.
            let own = record.node == Some(disk.member().raft_id);
            if record.committed && own && last_group(&disk)?.voters() > 1 {
                record.committed = false;
            }
            let vote = Vote::try_from(record);
            vote.map(Some).map_err(|e| disk.unfit("read the vote of", "vote", &e))
        })
        .await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        if let Some(at) = committed {
            self.disk.confirm(at.into());
            self.write_when_quiet();
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.disk.held().committed.map(LogId::from))
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
                self.ceiling.appended(&entries);
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
        self.disk.write(ops).await.map_err(|e| write_failed(&e))?;
        self.ceiling.truncated(log_id.index);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // A snapshot from the leader is installed by another task. A crash in between would leave
        // neither what is dropped here nor the snapshot that holds it.
        self.disk.snapshot_holds(log_id.into()).await.map_err(|e| write_failed(&e))?;
        self.forget();
        let bytes = encode("purged", &LogIdRecord::from(log_id)).map_err(|e| write_failed(&e))?;
        let ops = vec![Op::PutMeta(PURGED_RECORD, bytes), Op::RemoveLog(0..=log_id.index)];
        self.disk.write(ops).await.map_err(|e| write_failed(&e))
    }
}
