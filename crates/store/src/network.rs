//! The consensus library's way to the other members.

use std::sync::Arc;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use crate::consensus::Types;
use crate::links::Links;
use crate::peer::{Member, MemberNode, PeerError};

/// Makes ways to members.
pub(crate) struct Network {
    links: Arc<Links>,
}

impl Network {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self { links }
    }
}

/// The way to one member.
pub(crate) struct Way {
    _links: Arc<Links>,
    _to: Member,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> Way {
        let to = Member { node: node.node.clone(), raft_id: target };
        Way { _links: Arc::clone(&self.links), _to: to }
    }
}

type RpcResult<T, E = openraft::error::Infallible> =
    Result<T, RPCError<u64, MemberNode, RaftError<u64, E>>>;

fn missing() -> NetworkError {
    NetworkError::new(&PeerError::Other("not implemented: asking other managers".to_owned()))
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        Err(missing().into())
    }

    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        Err(missing().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> RpcResult<VoteResponse<u64>> {
        Err(missing().into())
    }
}
