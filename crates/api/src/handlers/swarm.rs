//! `/swarm`: the cluster as a whole, and this node's part in it.

use serde_json::json;
use shoal_model::id::Revision;
use shoal_model::spec::cluster::ClusterSpec;

use crate::backend::swarm::{InitRequest, JoinRequest, LocalState, Rotations, UnlockRequest};
use crate::decode::swarm::{CLUSTER_SPEC, INIT, JOIN, UNLOCK};
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;

/// `POST /swarm/init`: a bare JSON text, the node's id.
///
/// # Errors
/// 503 if this node is part of a swarm, 400 for settings that make no sense.
pub async fn init(mut call: Call) -> ApiResult<Answer> {
    let mut request: InitRequest = call.json(&INIT).await?;
    refuse_foreign_authority(&request.spec)?;
    if request.listen_addr.is_empty() {
        request.listen_addr = "0.0.0.0:2377".into();
    }
    let id = call.state.swarm.init(request).await?;
    answer::json(&id)
}

/// `POST /swarm/join`.
///
/// # Errors
/// 503 if this node is part of a swarm; else names the step that failed.
pub async fn join(mut call: Call) -> ApiResult<Answer> {
    let request: JoinRequest = call.json(&JOIN).await?;
    if request.remote_addrs.iter().all(|addr| addr.trim().is_empty()) {
        return Err(ApiError::invalid("at least 1 RemoteAddr is required to join"));
    }
    if request.join_token.is_empty() {
        return Err(ApiError::invalid("join token is required to join"));
    }
    call.state.swarm.join(request).await?;
    answer::ok()
}

/// `POST /swarm/leave`.
///
/// # Errors
/// 503 if this node is not part of a swarm, or manages it and `force` is not given.
pub async fn leave(call: Call) -> ApiResult<Answer> {
    call.state.swarm.leave(call.query.flag("force")).await?;
    answer::ok()
}

/// `GET /swarm`.
///
/// # Errors
/// 503 if this node is no manager.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let cluster = state.cluster.as_ref();
    let cluster = cluster.ok_or_else(|| ApiError::unavailable("the swarm has no settings yet"))?;
    answer::json(&render::cluster::swarm(cluster))
}

/// `POST /swarm/update`: the whole spec, and which tokens to replace.
///
/// # Errors
/// 503 if this node is no manager, 400 for settings that make no sense.
pub async fn update(mut call: Call) -> ApiResult<Answer> {
    let version = Revision(call.query.version()?);
    let rotate = Rotations {
        worker_token: call.query.flag("rotateWorkerToken"),
        manager_token: call.query.flag("rotateManagerToken"),
        unlock_key: call.query.flag("rotateManagerUnlockKey"),
    };
    let spec: ClusterSpec = call.json(&CLUSTER_SPEC).await?;
    let control = call.state.control()?;
    control.update_cluster(version, spec, rotate).await?;
    answer::ok()
}

/// `GET /swarm/unlockkey`: empty if managers are not locked.
///
/// # Errors
/// 503 if this node is no manager.
pub async fn unlock_key(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let key = state.cluster.as_ref().and_then(|cluster| cluster.unlock.as_ref());
    answer::json(&json!({ "UnlockKey": key.map_or("", |key| &key.0) }))
}

/// `POST /swarm/unlock`.
///
/// # Errors
/// 409 if this node is not locked, 401 for a key that is not the one, 400 for what is no key, 503
/// if it is no manager.
pub async fn unlock(mut call: Call) -> ApiResult<Answer> {
    let request: UnlockRequest = call.json(&UNLOCK).await?;
    let status = call.state.swarm.status();
    if status.control_available {
        return Err(ApiError::conflict("swarm is not locked"));
    }
    if status.state != LocalState::Locked {
        return Err(ApiError::unavailable(status.not_a_manager()));
    }
    call.state.swarm.unlock(&request.unlock_key).await?;
    answer::ok()
}

/// A swarm begins with a root of its own; another one takes its place later.
fn refuse_foreign_authority(spec: &ClusterSpec) -> ApiResult<()> {
    let ca = &spec.ca_config;
    if ca.external_cas.is_empty() && ca.signing_ca_cert.is_empty() && ca.signing_ca_key.is_empty() {
        return Ok(());
    }
    let what = "swarm init with another certificate authority (use 'docker swarm ca --rotate' on \
                the new swarm)";
    Err(ApiError::missing(what))
}
