//! `/volumes`.

use http::StatusCode;

use crate::backend::container::VolumeCreate;
use crate::decode::containers::VOLUME;
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};

/// `GET /volumes`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters()?;
    answer::json(&call.state.volumes.list(&filters).await?)
}

/// `POST /volumes/create`.
///
/// # Errors
/// 400 for another driver than `local`, 501 for cluster volumes.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let volume: VolumeCreate = call.json(&VOLUME).await?;
    if volume.cluster_volume_spec.is_some() {
        return Err(ApiError::missing("cluster volumes"));
    }
    let made = call.state.volumes.create(volume).await?;
    answer::json_status(StatusCode::CREATED, &made)
}

/// `GET /volumes/{name}`.
///
/// # Errors
/// 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.volumes.inspect(call.param("name")).await?)
}

/// `DELETE /volumes/{name}`.
///
/// # Errors
/// 404, 409 if a container uses it.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    call.state.volumes.remove(call.param("name"), call.query.flag("force")).await?;
    answer::no_content()
}

/// `POST /volumes/prune`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters()?;
    answer::json(&call.state.volumes.prune(&filters).await?)
}
