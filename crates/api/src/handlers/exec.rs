//! Execs: further processes in a running container.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::containers::terminal_size;
use crate::backend::container::{ExecCreate, ExecStart};
use crate::decode::containers::{EXEC_CREATE, EXEC_START};
use crate::error::{ApiError, ApiResult};
use crate::http::answer::{self, Answer};
use crate::http::frame::{self, Channel};
use crate::http::{Call, hijack};

/// `POST /containers/{id}/exec`.
///
/// # Errors
/// 404, 409 if the container does not run, 400 without a command.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let spec: ExecCreate = call.json(&EXEC_CREATE).await?;
    if spec.cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    let id = call.state.containers.exec_create(call.param("id"), spec).await?;
    answer::json_status(StatusCode::CREATED, &json!({ "Id": id }))
}

/// `POST /exec/{id}/start`.
///
/// The process starts only after the client has the head of the answer: some SDKs lose bytes that
/// arrive together with it. A failure to start is therefore text on the stream, as in Docker; the
/// exec's exit status says it, too.
///
/// # Errors
/// 404, 409 if it was started before.
pub async fn start(mut call: Call) -> ApiResult<Answer> {
    let start: ExecStart = call.json_or_default(&EXEC_START).await?;
    let id = call.param("id").to_owned();
    let facts = call.state.containers.exec_facts(&id).await?;
    if start.detach {
        call.state.containers.exec_start(&id, start).await?;
        return answer::ok();
    }
    let containers = call.state.containers.clone();
    let content_type = frame::content_type(facts.tty, call.version);
    let session: hijack::Session = Box::new(move |input, mut output| {
        Box::pin(async move {
            match containers.exec_start(&id, start).await {
                Ok(Some(stdio)) => hijack::copy(stdio, input, output).await,
                Ok(None) => {}
                Err(error) => {
                    let text = Bytes::from(error.message + "\r\n");
                    let text = if facts.tty { text } else { frame::encode(Channel::Stdout, &text) };
                    hijack::say(&mut output, &text).await;
                }
            }
        })
    });
    hijack::hijack(call, content_type, session)
}

/// `POST /exec/{id}/resize`.
///
/// # Errors
/// 404.
pub async fn resize(call: Call) -> ApiResult<Answer> {
    let size = terminal_size(&call)?;
    call.state.containers.exec_resize(call.param("id"), size).await?;
    answer::ok()
}

/// `GET /exec/{id}/json`.
///
/// # Errors
/// 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.containers.exec_inspect(call.param("id")).await?)
}
