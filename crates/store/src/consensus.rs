//! The consensus library's types for our store.

use std::io::Cursor;

use openraft::{AnyError, StorageIOError};
use shoal_model::change::{ApplyError, Changed};

use crate::error::StoreError;
use crate::peer::MemberNode;
use crate::record::Payload;

/// One answer for each transaction of the entry; empty for the library's own entries.
pub(crate) type Answer = Vec<Result<Vec<Changed>, ApplyError>>;

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Payload,
        R = Answer,
        NodeId = u64,
        Node = MemberNode,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, MemberNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, MemberNode>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, MemberNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;

pub(crate) fn any(error: &StoreError) -> AnyError {
    AnyError::error(error.to_string())
}

pub(crate) fn apply_failed(at: LogId, error: &StoreError) -> StorageError {
    StorageIOError::apply(at, any(error)).into()
}

pub(crate) fn read_failed(error: &StoreError) -> StorageError {
    StorageIOError::read(any(error)).into()
}

pub(crate) fn write_failed(error: &StoreError) -> StorageError {
    StorageIOError::write(any(error)).into()
}
