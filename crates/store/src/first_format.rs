//! Files of the first format, which held the consensus library's own types: read once, and written
//! anew in ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, WriteTransaction};
use serde::{Deserialize, Serialize};
use shoal_model::change::Transaction;
use shoal_model::level;

use crate::disk::{
    FORMAT_RECORD, FORMAT_VERSION, LOG, MEMBER_RECORD, META, PURGED_RECORD, SNAPSHOT,
    SNAPSHOT_RECORD, TAIL_RECORD, VOTE_RECORD, log_record, meta_record,
};
use crate::error::StoreError;
use crate::failure::DiskFailure as _;
use crate::log_store::encode;
use crate::peer::Member;
use crate::record::{
    Body, EntryRecord, GroupRecord, HeadRecord, LogIdRecord, MemberRecord, Payload, RECORD_VERSION,
    RecordError, VoteRecord,
};
use crate::seal::Sealer;

/// The number of this format.
pub(crate) const VERSION: u32 = 1;
const ACTION: &str = "rewrite";

#[derive(Deserialize)]
struct OldLeader {
    term: u64,
    node_id: u64,
}

#[derive(Deserialize)]
struct OldVote {
    leader_id: OldLeader,
    committed: bool,
}

#[derive(Deserialize)]
struct OldLogId {
    leader_id: OldLeader,
    index: u64,
}

#[derive(Deserialize)]
struct OldEntry {
    log_id: OldLogId,
    payload: OldPayload,
}

#[derive(Deserialize)]
enum OldPayload {
    Blank,
    Normal(OldCommand),
    Membership(OldGroup),
}

#[derive(Deserialize)]
struct OldCommand {
    transactions: Vec<Transaction>,
}

#[derive(Deserialize)]
struct OldGroup {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, OldNode>,
}

/// It had an address, which was never set.
#[derive(Deserialize)]
struct OldNode {}

#[derive(Deserialize)]
struct OldStoredGroup {
    log_id: Option<OldLogId>,
    membership: OldGroup,
}

#[derive(Deserialize)]
struct OldHead {
    last_log_id: Option<OldLogId>,
    last_membership: OldStoredGroup,
    snapshot_id: String,
}

impl From<OldLogId> for LogIdRecord {
    fn from(old: OldLogId) -> Self {
        Self { term: old.leader_id.term, index: old.index }
    }
}

impl From<OldGroup> for GroupRecord {
    fn from(old: OldGroup) -> Self {
        let member = |raft_id| Member { node: String::new(), raft_id };
        Self { voters: old.configs, members: old.nodes.into_keys().map(member).collect() }
    }
}

/// The vote.
fn vote(bytes: &[u8]) -> Result<VoteRecord, RecordError> {
    let old: OldVote = serde_json::from_slice(bytes)?;
    let OldLeader { term, node_id } = old.leader_id;
    // The old form has no place for nobody: term 0 means that.
    let node = (term > 0).then_some(node_id);
    Ok(VoteRecord { v: RECORD_VERSION, term, node, committed: old.committed })
}

/// A place in the log.
fn log_id(bytes: &[u8]) -> Result<LogIdRecord, RecordError> {
    Ok(serde_json::from_slice::<OldLogId>(bytes)?.into())
}

/// A log entry.
fn entry(bytes: &[u8]) -> Result<EntryRecord, RecordError> {
    let old: OldEntry = serde_json::from_slice(bytes)?;
    let body = match old.payload {
        OldPayload::Blank => Body::Blank,
        OldPayload::Membership(group) => Body::Group(group.into()),
        OldPayload::Normal(command) => {
            Body::Data(Payload::encode(level::FIRST, &command.transactions)?)
        }
    };
    Ok(EntryRecord { at: old.log_id.into(), body })
}

/// A snapshot's description. Its content was ours already.
fn head(bytes: &[u8]) -> Result<HeadRecord, RecordError> {
    let old: OldHead = serde_json::from_slice(bytes)?;
    Ok(HeadRecord {
        v: RECORD_VERSION,
        level: level::FIRST,
        last: old.last_log_id.map(Into::into),
        group: old.last_membership.membership.into(),
        group_at: old.last_membership.log_id.map(Into::into),
        id: old.snapshot_id,
    })
}

/// Whose file it is: the number in the group.
fn member(bytes: &[u8]) -> Result<MemberRecord, RecordError> {
    let number = <[u8; 8]>::try_from(bytes).map_err(|_| RecordError::NoNumber)?;
    let member = Member { node: String::new(), raft_id: u64::from_le_bytes(number) };
    Ok(MemberRecord { v: RECORD_VERSION, member })
}

/// Writes everything anew, in one commit: after a crash the file has the one format or the other.
pub(crate) fn rewrite(database: &Database, sealer: &Sealer, path: &Path) -> Result<(), StoreError> {
    // Opened for writing, a table that is missing would be made.
    let there = database.begin_read().map_err(|e| e.at(ACTION, path))?;
    there.open_table(LOG).map_err(|e| e.at(ACTION, path))?;
    there.open_table(SNAPSHOT).map_err(|e| e.at(ACTION, path))?;
    let txn = database.begin_write().map_err(|e| e.at(ACTION, path))?;
    Rewrite { txn: &txn, sealer, path }.all()?;
    txn.commit().map_err(|e| e.at(ACTION, path))
}

struct Rewrite<'a> {
    txn: &'a WriteTransaction,
    sealer: &'a Sealer,
    path: &'a Path,
}

impl Rewrite<'_> {
    fn all(&self) -> Result<(), StoreError> {
        // First of all, because it tells a wrong key from a damaged file.
        self.record(MEMBER_RECORD, member)?;
        self.record(VOTE_RECORD, vote)?;
        let purged = self.record(PURGED_RECORD, log_id)?;
        self.record(SNAPSHOT_RECORD, head)?;
        self.tail(self.log()?.or(purged))?;
        let mut meta = self.txn.open_table(META).map_err(|e| e.at(ACTION, self.path))?;
        meta.insert(FORMAT_RECORD, FORMAT_VERSION.to_le_bytes().as_slice())
            .map_err(|e| e.at(ACTION, self.path))?;
        Ok(())
    }

    fn record<T: Serialize>(
        &self,
        name: &'static str,
        read: fn(&[u8]) -> Result<T, RecordError>,
    ) -> Result<Option<T>, StoreError> {
        let failed = |e: redb::StorageError| e.at(ACTION, self.path);
        let mut meta = self.txn.open_table(META).map_err(|e| e.at(ACTION, self.path))?;
        let old = meta.get(name).map_err(failed)?.map(|guard| guard.value().to_vec());
        let Some(old) = old else { return Ok(None) };
        let (value, new) = self.anew(&meta_record(name), &old, read)?;
        meta.insert(name, new.as_slice()).map_err(failed)?;
        Ok(Some(value))
    }

    /// Where the log ends: later formats have a record of it.
    fn tail(&self, tail: Option<LogIdRecord>) -> Result<(), StoreError> {
        let sealed = self.sealer.seal(&meta_record(TAIL_RECORD), &encode(TAIL_RECORD, &tail)?)?;
        let mut meta = self.txn.open_table(META).map_err(|e| e.at(ACTION, self.path))?;
        meta.insert(TAIL_RECORD, sealed.as_slice()).map_err(|e| e.at(ACTION, self.path))?;
        Ok(())
    }

    /// The log; returns where it ends.
    fn log(&self) -> Result<Option<LogIdRecord>, StoreError> {
        let failed = |e: redb::StorageError| e.at(ACTION, self.path);
        let mut log = self.txn.open_table(LOG).map_err(|e| e.at(ACTION, self.path))?;
        let indices = log.range(0u64..).map_err(failed)?;
        let indices: Result<Vec<u64>, _> = indices.map(|item| Ok(item?.0.value())).collect();
        let mut last = None;
        for index in indices.map_err(failed)? {
            let old = log.get(index).map_err(failed)?.map(|guard| guard.value().to_vec());
            let old = old.unwrap_or_default();
            let (entry, new) = self.anew(&log_record(index), &old, entry)?;
            log.insert(index, new.as_slice()).map_err(failed)?;
            last = Some(entry.at);
        }
        Ok(last)
    }

    fn anew<T: Serialize>(
        &self,
        record: &str,
        sealed: &[u8],
        read: fn(&[u8]) -> Result<T, RecordError>,
    ) -> Result<(T, Vec<u8>), StoreError> {
        let damaged = |problem: String| StoreError::Damaged {
            action: ACTION,
            path: self.path.to_owned(),
            problem: format!("the record '{record}' {problem}"),
        };
        let plain = self.sealer.open(record, sealed).map_err(|e| {
            if record == meta_record(MEMBER_RECORD) {
                e
            } else {
                damaged("cannot be decrypted".into())
            }
        })?;
        let value = read(&plain).map_err(|e| damaged(format!("cannot be read: {e}")))?;
        let sealed = self.sealer.seal(record, &encode(record, &value)?)?;
        Ok((value, sealed))
    }
}
