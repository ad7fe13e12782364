//! What managers ask each other. Nobody else gets as far as sending a body.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_identity::peer::PeerIdentity;
use shoal_model::spec::node::NodeRole;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use super::{check_version, member, peer_info};
use crate::PEER_MESSAGE_MAX;
use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::message::{ControlCall, Lane, PROTOCOL_VERSION, PeerReply, RaftCall};
use crate::rpc::control_server::{Control, ControlServer};
use crate::rpc::raft_server::{Raft, RaftServer};
use crate::status::{self, from_fault};

/// Answers other managers. What it is given is proven by a certificate of a manager that is valid
/// now; whether that node *is* a manager now is for the handler to say. A call is dropped, wherever
/// it stands, when its caller waits no longer.
#[async_trait]
pub trait ManagerHandler: Send + Sync + 'static {
    /// A message of consensus.
    async fn raft(
        &self,
        from: PeerIdentity,
        lane: Lane,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault>;

    /// A request of a manager.
    async fn control(
        &self,
        from: PeerIdentity,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault>;
}

type Check = fn(Request<()>) -> Result<Request<()>, Status>;

pub(super) type RaftDoor = InterceptedService<RaftServer<ManagerService>, Check>;
pub(super) type ControlDoor = InterceptedService<ControlServer<ManagerService>, Check>;

/// Both services, behind the check of who asks.
pub(super) fn doors(handler: &Arc<dyn ManagerHandler>) -> (RaftDoor, ControlDoor) {
    let service = || ManagerService { handler: Arc::clone(handler) };
    let raft = RaftServer::new(service())
        .max_decoding_message_size(PEER_MESSAGE_MAX)
        .max_encoding_message_size(PEER_MESSAGE_MAX);
    let control = ControlServer::new(service())
        .max_decoding_message_size(PEER_MESSAGE_MAX)
        .max_encoding_message_size(PEER_MESSAGE_MAX);
    let check: Check = managers_only;
    (InterceptedService::new(raft, check), InterceptedService::new(control, check))
}

/// Who was found to be a manager.
#[derive(Clone)]
struct Manager(PeerIdentity);

/// Runs before the message is read: its bound is for managers, not for everybody who connects.
fn managers_only(mut request: Request<()>) -> Result<Request<()>, Status> {
    let peer = member(&peer_info(&request)?)?;
    if peer.role != NodeRole::Manager {
        let (node, role) = (peer.node_id, peer.role.as_str());
        return Err(status::from_error(&WireError::NotAManager { node, role }));
    }
    request.extensions_mut().insert(Manager(peer));
    Ok(request)
}

fn manager<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let found = request.extensions().get::<Manager>();
    found.map(|peer| peer.0.clone()).ok_or_else(|| Status::internal("nobody has looked who asks"))
}

fn answer(reply: Result<Box<RawValue>, RemoteFault>) -> Result<Response<PeerReply>, Status> {
    let body = reply.map_err(from_fault)?;
    Ok(Response::new(PeerReply { v: PROTOCOL_VERSION, body }))
}

pub(super) struct ManagerService {
    handler: Arc<dyn ManagerHandler>,
}

#[async_trait]
impl Raft for ManagerService {
    async fn call(&self, request: Request<RaftCall>) -> Result<Response<PeerReply>, Status> {
        let from = manager(&request)?;
        check_version(request.get_ref().v, &peer_info(&request)?)?;
        let RaftCall { lane, body, .. } = request.into_inner();
        answer(self.handler.raft(from, lane, body).await)
    }
}

#[async_trait]
impl Control for ManagerService {
    async fn call(&self, request: Request<ControlCall>) -> Result<Response<PeerReply>, Status> {
        let from = manager(&request)?;
        check_version(request.get_ref().v, &peer_info(&request)?)?;
        answer(self.handler.control(from, request.into_inner().body).await)
    }
}
