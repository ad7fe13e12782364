//! `/containers`: everything that is not a stream.

use http::StatusCode;
use serde_json::Value;
use shoal_model::spec::container::ContainerCreate;

use crate::backend::container::{ContainerList, CreateBy, RemoveHow, StopHow, TerminalSize};
use crate::decode::containers::{CREATE, UPDATE};
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};

/// `GET /containers/json`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let limit = call.query.int("limit")?.and_then(|limit| u64::try_from(limit).ok());
    let list = ContainerList {
        all: call.query.flag("all"),
        limit: limit.filter(|limit| *limit > 0),
        size: call.query.flag("size"),
        filters: call.query.filters()?,
    };
    answer::json(&call.state.containers.list(list).await?)
}

/// `POST /containers/create`.
///
/// # Errors
/// 404 for a missing image, 409 for a name in use, 400 for settings that make no sense.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let spec: ContainerCreate = call.json(&CREATE).await?;
    let by = CreateBy {
        name: call.query.text("name").map(|name| name.trim_start_matches('/').to_owned()),
        platform: call.query.text("platform").map(str::to_owned),
    };
    let created = call.state.containers.create(spec, by).await?;
    answer::json_status(StatusCode::CREATED, &created)
}

/// `GET /containers/{id}/json`.
///
/// # Errors
/// 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let size = call.query.flag("size");
    answer::json(&call.state.containers.inspect(call.param("id"), size).await?)
}

/// `DELETE /containers/{id}`.
///
/// # Errors
/// 404, 409 if it runs and `force` is not given.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    if call.query.flag("link") {
        return Err(ApiError::missing("links between containers"));
    }
    let how = RemoveHow { force: call.query.flag("force"), volumes: call.query.flag("v") };
    call.state.containers.remove(call.param("id"), how).await?;
    answer::no_content()
}

/// `POST /containers/{id}/start`.
///
/// # Errors
/// 404, 304 if it runs; else why it does not start.
pub async fn start(call: Call) -> ApiResult<Answer> {
    call.state.containers.start(call.param("id")).await?;
    answer::no_content()
}

fn stop_how(call: &Call) -> ApiResult<StopHow> {
    let signal = call.query.text("signal").map(str::to_owned);
    Ok(StopHow { timeout: call.query.int("t")?, signal })
}

/// `POST /containers/{id}/stop`.
///
/// # Errors
/// 404, 304 if it does not run.
pub async fn stop(call: Call) -> ApiResult<Answer> {
    let how = stop_how(&call)?;
    call.state.containers.stop(call.param("id"), how).await?;
    answer::no_content()
}

/// `POST /containers/{id}/restart`.
///
/// # Errors
/// 404; else why it does not start.
pub async fn restart(call: Call) -> ApiResult<Answer> {
    let how = stop_how(&call)?;
    call.state.containers.restart(call.param("id"), how).await?;
    answer::no_content()
}

/// `POST /containers/{id}/kill`.
///
/// # Errors
/// 404, 409 if it does not run, 400 for an unknown signal.
pub async fn kill(call: Call) -> ApiResult<Answer> {
    let signal = call.query.text("signal").unwrap_or("KILL");
    call.state.containers.kill(call.param("id"), signal).await?;
    answer::no_content()
}

/// `POST /containers/{id}/pause`.
///
/// # Errors
/// 404, 409 if it does not run.
pub async fn pause(call: Call) -> ApiResult<Answer> {
    call.state.containers.pause(call.param("id")).await?;
    answer::no_content()
}

/// `POST /containers/{id}/unpause`.
///
/// # Errors
/// 404, 409 if it is not paused.
pub async fn unpause(call: Call) -> ApiResult<Answer> {
    call.state.containers.unpause(call.param("id")).await?;
    answer::no_content()
}

/// `POST /containers/{id}/rename`.
///
/// # Errors
/// 404, 409 for a name in use.
pub async fn rename(call: Call) -> ApiResult<Answer> {
    let name = call.query.get("name").unwrap_or("").trim_start_matches('/').to_owned();
    if name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    call.state.containers.rename(call.param("id"), &name).await?;
    answer::no_content()
}

/// `POST /containers/{id}/update`.
///
/// # Errors
/// 404, 400 for settings that make no sense.
pub async fn update(mut call: Call) -> ApiResult<Answer> {
    let change: Value = call.json(&UPDATE).await?;
    answer::json(&call.state.containers.update(call.param("id"), change).await?)
}

/// `POST /containers/{id}/resize`.
///
/// # Errors
/// 404, 409 if it does not run.
pub async fn resize(call: Call) -> ApiResult<Answer> {
    let size = terminal_size(&call)?;
    call.state.containers.resize(call.param("id"), size).await?;
    answer::ok()
}

/// Reads `h` and `w`.
///
/// # Errors
/// 400 if one is missing or too large.
pub(crate) fn terminal_size(call: &Call) -> ApiResult<TerminalSize> {
    let read = |name: &str| {
        let value = call.query.int(name)?.unwrap_or(0);
        let wrong = || ApiError::invalid(format!("parameter '{name}': {value} is no size"));
        u16::try_from(value).map_err(|_| wrong())
    };
    Ok(TerminalSize { rows: read("h")?, columns: read("w")? })
}

/// `GET /containers/{id}/top`.
///
/// # Errors
/// 404, 409 if it does not run.
pub async fn top(call: Call) -> ApiResult<Answer> {
    let args = call.query.text("ps_args").unwrap_or("");
    answer::json(&call.state.containers.top(call.param("id"), args).await?)
}

/// `GET /containers/{id}/changes`.
///
/// # Errors
/// 404.
pub async fn changes(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.containers.changes(call.param("id")).await?)
}

/// `POST /containers/prune`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters()?;
    answer::json(&call.state.containers.prune(&filters).await?)
}
