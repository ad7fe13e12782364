//! The consensus library's types for our store, and its way to peers.

use std::io::Cursor;

use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
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

/// Makes connections to other managers: none in this version, which has one manager.
pub(crate) struct NoPeers;

/// A connection that always fails, saying why.
pub(crate) struct NoPeer {
    target: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("reach manager number {target}: this version runs with one manager only")]
struct OneManagerOnly {
    target: u64,
}

impl NoPeer {
    fn unreachable(&self) -> Unreachable {
        Unreachable::new(&OneManagerOnly { target: self.target })
    }
}

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = NoPeer;

    async fn new_client(&mut self, target: u64, _node: &MemberNode) -> NoPeer {
        NoPeer { target }
    }
}

type RpcResult<T, E = openraft::error::Infallible> =
    Result<T, RPCError<u64, MemberNode, RaftError<u64, E>>>;

impl RaftNetwork<Types> for NoPeer {
    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        Err(self.unreachable().into())
    }

    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> RpcResult<VoteResponse<u64>> {
        Err(self.unreachable().into())
    }
}
