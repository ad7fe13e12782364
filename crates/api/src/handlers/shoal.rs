//! Shoal's own routes.

use bytes::Bytes;
use futures::stream;
use hyper::StatusCode;
use serde_json::json;

use crate::backend::swarm::RestoreRequest;
use crate::error::ApiResult;
use crate::http::answer::{self, Answer};
use crate::http::{Call, body};

/// Largest backup that is taken: it is in memory while it comes. As large as the largest snapshot
/// that managers send each other.
const BACKUP_BYTES_MAX: usize = 1 << 30;
/// Bytes that are sent at a time.
const PIECE_BYTES: usize = 256 << 10;

/// `GET /shoal/doctor`: runs this node's checks.
///
/// # Errors
/// 500 if they cannot be run.
pub async fn doctor(call: Call) -> ApiResult<Answer> {
    let checks = call.state.diagnostics.checks().await?;
    answer::json(&json!({ "Node": call.state.facts.name, "Checks": checks }))
}

/// `GET /shoal/network`: the state of this node's data plane.
///
/// # Errors
/// 503 if there is none.
pub async fn network(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.diagnostics.network().await?)
}

/// `GET /shoal/backup`: the whole state of the cluster, with all its secrets and the root's key, in
/// clear. Who may speak to a manager's daemon is root there, and could read its files as well.
///
/// # Errors
/// 503 if this node is no manager.
pub async fn backup(call: Call) -> ApiResult<Answer> {
    let file = call.state.swarm.backup().await?;
    let next = |mut rest: Bytes| async move {
        let length = rest.len().min(PIECE_BYTES);
        (length > 0).then(|| (Ok(rest.split_to(length)), rest))
    };
    let sent = answer::streamed(stream::unfold(file, next));
    Ok(answer::with_type(StatusCode::OK, "application/octet-stream", sent))
}

/// `POST /shoal/restore`: begins a swarm from what `GET /shoal/backup` answered.
///
/// # Errors
/// 503 if this node is part of a swarm; 400 if the file cannot be used.
pub async fn restore(mut call: Call) -> ApiResult<Answer> {
    let text = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let mut request = RestoreRequest {
        listen_addr: text("listenAddr"),
        advertise_addr: text("advertiseAddr"),
        data_path_addr: text("dataPathAddr"),
        file: Bytes::new(),
    };
    if request.listen_addr.is_empty() {
        request.listen_addr = "0.0.0.0:2377".into();
    }
    request.file = body::read_bytes(call.take_body()?, BACKUP_BYTES_MAX).await?;
    let id = call.state.swarm.restore(request).await?;
    answer::json(&json!({ "NodeID": id }))
}
