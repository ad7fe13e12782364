//! Streams that nodes open because they were asked to.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use shoal_identity::peer::PeerIdentity;
use shoal_model::fault::FaultKind;
use tonic::{Request, Response, Status, Streaming};

use super::{HELLO_DEADLINE, check_version, member, peer_info};
use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::rpc::streams_server::{Streams, StreamsServer};
use crate::status::{self, from_fault};
use crate::stream::{Opened, Piece, STREAM_MESSAGE_MAX, Tunnel, queue};
use crate::transport::PeerInfo;

/// Takes the streams that nodes open.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    /// `from` has opened the stream `number`. Must not wait: it is handed on, or refused.
    async fn stream(
        &self,
        from: PeerIdentity,
        number: u64,
        tunnel: Tunnel,
    ) -> Result<(), RemoteFault>;
}

/// The service.
pub(super) fn door(handler: Arc<dyn StreamHandler>) -> StreamsServer<StreamService> {
    StreamsServer::new(StreamService { handler }).max_decoding_message_size(STREAM_MESSAGE_MAX)
}

pub(super) struct StreamService {
    handler: Arc<dyn StreamHandler>,
}

type Sent = futures::stream::BoxStream<'static, Result<Piece, Status>>;

#[async_trait]
impl Streams for StreamService {
    type OpenStream = Sent;

    async fn open(&self, request: Request<Streaming<Piece>>) -> Result<Response<Sent>, Status> {
        let info = peer_info(&request)?;
        let from = member(&info)?;
        let mut stream = request.into_inner();
        let opened = first_piece(&mut stream, &info).await?;
        check_version(opened.v, &info)?;
        if let Some(standing) = &info.proven {
            standing.carry_stream();
        }
        let (sender, outgoing) = queue();
        let tunnel = Tunnel::new(stream, sender, from.node_id.as_str(), None);
        self.handler.stream(from, opened.number, tunnel).await.map_err(from_fault)?;
        Ok(Response::new(outgoing.map(Ok).boxed()))
    }
}

async fn first_piece(stream: &mut Streaming<Piece>, info: &PeerInfo) -> Result<Opened, Status> {
    let addr = info.remote.to_string();
    let read = async {
        let piece = stream.message().await;
        piece.map_err(|status| status::to_error(status, &addr, STREAM_MESSAGE_MAX))
    };
    let first = status::within("stream", &addr, HELLO_DEADLINE, read).await;
    let first = first.map_err(|e| status::from_error(&e))?;
    first.and_then(|piece| piece.opened()).ok_or_else(|| {
        let detail = "the first piece of a stream must say which it is".to_owned();
        status::from_error(&WireError::Malformed { addr: addr.clone(), detail })
    })
}

/// What a node is told whose stream nobody waits for: who asked for it has given up.
#[must_use]
pub fn nobody_waits() -> RemoteFault {
    RemoteFault::new(FaultKind::NotFound, "nobody waits for this stream (any more)")
}
