//! Going on without a majority that is gone for good. Nothing that is here is dropped: also entries
//! that were never confirmed stay, because somebody may have been told that they were.

use std::collections::BTreeSet;

use crate::backup::Backup;
use crate::core::blocking;
use crate::disk::{Disk, EPOCH_RECORD, Op, PURGED_RECORD, VOTE_RECORD};
use crate::epoch::{Epoch, EpochRecord};
use crate::error::StoreError;
use crate::log_store::{encode, last_group};
use crate::peer::Member;
use crate::record::{
    Body, EntryRecord, GroupRecord, HeadRecord, LogIdRecord, RECORD_VERSION, VoteRecord,
};
use crate::state_machine::PIECE_BYTES;
use crate::store::StoreConfig;

/// What was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The epoch that begins.
    pub epoch: Epoch,
    /// Members that were in the group, and are not any more.
    pub without: Vec<Member>,
}

/// Makes this member the only one of its group, in a new epoch, with all that it holds. The store
/// must be closed. It is one commit: after a crash it has happened, or not at all. Opened again, it
/// leads alone.
///
/// # Errors
/// What [`crate::Store::open`] says of a file that cannot be used; [`StoreError::Recover`] if there
/// is nothing to recover.
pub async fn recover_alone(config: &StoreConfig) -> Result<Recovered, StoreError> {
    let StoreConfig { dir, keyring, medium, outside, .. } = config.clone();
    let disk =
        blocking(config, move || Disk::open(&dir, &keyring, medium.as_ref(), &outside)).await?;
    let recovered = alone(config, &disk).await;
    disk.close().await;
    recovered
}

async fn alone(config: &StoreConfig, disk: &Disk) -> Result<Recovered, StoreError> {
    let held = disk.held();
    let Some(last) = disk.last() else {
        let problem = "it has not learned anything of the swarm yet".to_owned();
        return Err(StoreError::Recover { problem });
    };
    let raft_id = disk.member().raft_id;
    let own = Member { node: config.node.to_string(), raft_id };
    let mut ops = Vec::new();
    // A crash while a snapshot was installed leaves an older log in front of it.
    if held.snapshot > held.tail {
        ops.push(Op::PutMeta(PURGED_RECORD, encode(PURGED_RECORD, &last)?));
        ops.push(Op::RemoveLog(0..=last.index));
    }
    let voted = match disk.meta(VOTE_RECORD)? {
        Some(bytes) => disk.decode::<VoteRecord>(VOTE_RECORD, &bytes)?.term,
        None => 0,
    };
    let at = LogIdRecord { term: voted.max(last.term) + 1, index: last.index + 1 };
    let vote =
        VoteRecord { v: RECORD_VERSION, term: at.term, node: Some(raft_id), committed: false };
    ops.push(Op::PutMeta(VOTE_RECORD, encode(VOTE_RECORD, &vote)?));
    let group = only(&own);
    let entry = EntryRecord { at, body: Body::Group(group) };
    ops.push(Op::PutLog(at, encode("log entry", &entry)?));
    let epoch = Epoch::begin(at.index, config.outside.random());
    ops.push(Op::PutMeta(EPOCH_RECORD, EpochRecord::encode(Some(epoch))?));
    let before = last_group(disk)?.members;
    disk.write(ops).await?;
    let without = before.into_iter().filter(|member| member.raft_id != raft_id).collect();
    Ok(Recovered { epoch, without })
}

/// A group of one.
pub(crate) fn only(own: &Member) -> GroupRecord {
    GroupRecord { voters: vec![BTreeSet::from([own.raft_id])], members: vec![own.clone()] }
}

/// Makes a new store from a backup, with this node as the only member of a new group, in a new
/// epoch. Opened, it leads alone. Returns the member's number.
///
/// # Errors
/// [`StoreError::Exists`] if there is a store already.
pub async fn restore(config: &StoreConfig, backup: &Backup) -> Result<u64, StoreError> {
    let (dir, node) = (config.dir.clone(), config.node.to_string());
    if crate::disk::exists(&dir) {
        return Err(StoreError::Exists { path: dir });
    }
    // Behind everything that was: no number of a member, and no revision, comes a second time.
    let at = LogIdRecord { term: 1, index: backup.head.revision + 1 };
    let own = Member { node, raft_id: at.index };
    let epoch = Epoch::begin(backup.head.revision, config.outside.random());
    let member = own.clone();
    let StoreConfig { keyring, medium, outside, .. } = config.clone();
    let disk = blocking(config, move || {
        Disk::create(&dir, &keyring, &member, Some(epoch))?;
        Disk::open(&dir, &keyring, medium.as_ref(), &outside)
    })
    .await?;
    let written = fill(&disk, &own, at, backup).await;
    disk.close().await;
    written.map(|()| own.raft_id)
}

async fn fill(
    disk: &Disk,
    own: &Member,
    at: LogIdRecord,
    backup: &Backup,
) -> Result<(), StoreError> {
    let head = HeadRecord {
        v: RECORD_VERSION,
        level: backup.head.level,
        last: Some(at),
        group: only(own),
        group_at: Some(at),
        id: format!("backup-{:016x}", disk.outside().random()),
    };
    let vote =
        VoteRecord { v: RECORD_VERSION, term: at.term, node: Some(own.raft_id), committed: false };
    let pieces = backup.content().chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect();
    let description = encode("snapshot's description", &head)?;
    disk.write(vec![
        Op::PutMeta(VOTE_RECORD, encode(VOTE_RECORD, &vote)?),
        Op::PutMeta(PURGED_RECORD, encode(PURGED_RECORD, &at)?),
        Op::PutSnapshot { last: head.last, description, pieces },
        // Nothing is there: it says that the log ends where it was dropped.
        Op::RemoveLog(0..=at.index),
    ])
    .await
}
