//! `/containers`: streams — wait, attach, logs, stats, archives.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::log_selection;
use super::service_logs::log_time;
use crate::backend::container::{AttachHow, LogPiece, PutArchive};
use crate::error::{ApiError, ApiResult};
use crate::http::answer::{self, Answer};
use crate::http::body::Upload;
use crate::http::frame::{self, Channel};
use crate::http::{Call, hijack};

/// `POST /containers/{id}/wait`: status and headers go out as soon as the wait is registered;
/// `docker run` starts the container only then.
///
/// # Errors
/// 404, 400 for an unknown condition.
pub async fn wait(call: Call) -> ApiResult<Answer> {
    let condition = call.query.get("condition").unwrap_or("");
    let end = call.state.containers.wait(call.param("id"), condition).await?;
    let line = stream::once(async move {
        let reply = match end.await {
            // Why a container could not start is the answer to its start, and in its state.
            Ok(end) => json!({ "StatusCode": end.status }),
            Err(error) => json!({ "StatusCode": -1, "Error": { "Message": error.message } }),
        };
        Ok(Bytes::from(reply.to_string() + "\n"))
    });
    Ok(answer::with_type(StatusCode::OK, "application/json", answer::streamed(line)))
}

/// `POST /containers/{id}/attach`.
///
/// # Errors
/// 404, 409 for a paused container.
pub async fn attach(call: Call) -> ApiResult<Answer> {
    let query = &call.query;
    let how = AttachHow {
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        detach_keys: query.text("detachKeys").map(str::to_owned),
    };
    let stdio = call.state.containers.attach(call.param("id"), how).await?;
    let content_type = frame::content_type(stdio.tty, call.version);
    let session = Box::new(move |input, output| hijack::copy(stdio, input, output));
    hijack::hijack(call, content_type, session)
}

/// `GET /containers/{id}/logs`.
///
/// # Errors
/// 404, 400 if neither stream is wanted.
pub async fn logs(call: Call) -> ApiResult<Answer> {
    let query = &call.query;
    let wanted = log_selection(query)?;
    let (timestamps, details) = (query.flag("timestamps"), query.flag("details"));
    let logs = call.state.containers.logs(call.param("id"), wanted).await?;
    let content_type = frame::content_type(logs.tty, call.version);
    let details = details.then(|| logs.details.join(","));
    let stopping = call.state.sessions.stopping();
    let pieces = logs.lines.take_until(stopping.cancelled_owned()).map(move |piece| {
        Ok(match piece {
            Ok(piece) => encode(logs.tty, &piece, timestamps, details.as_deref()),
            Err(error) => frame::encode(Channel::SystemErr, error.message.as_bytes()),
        })
    });
    Ok(answer::with_type(StatusCode::OK, content_type, answer::streamed(pieces)))
}

fn encode(tty: bool, piece: &LogPiece, timestamps: bool, details: Option<&str>) -> Bytes {
    let mut prefix = String::new();
    if timestamps {
        prefix.push_str(&log_time(piece.at));
        prefix.push(' ');
    }
    if let Some(details) = details {
        prefix.push_str(details);
        prefix.push(' ');
    }
    let text = if prefix.is_empty() {
        piece.line.clone()
    } else {
        Bytes::from([prefix.as_bytes(), &piece.line].concat())
    };
    let channel = if piece.stderr { Channel::Stderr } else { Channel::Stdout };
    if tty { text } else { frame::encode(channel, &text) }
}

/// `GET /containers/{id}/stats`.
///
/// # Errors
/// 404.
pub async fn stats(call: Call) -> ApiResult<Answer> {
    let many = call.query.flag_or("stream", true);
    let one_shot = call.query.flag("one-shot");
    if many && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let samples = call.state.containers.stats(call.param("id"), many, one_shot).await?;
    let stopping = call.state.sessions.stopping();
    let lines = samples.map(|sample| sample.unwrap_or_else(|e| answer::stream_error(&e)));
    Ok(answer::json_lines(lines.take_until(stopping.cancelled_owned())))
}

/// `GET /containers/{id}/export`.
///
/// # Errors
/// 404.
pub async fn export(call: Call) -> ApiResult<Answer> {
    let tar = call.state.containers.export(call.param("id")).await?;
    Ok(answer::with_type(StatusCode::OK, "application/x-tar", answer::streamed(tar)))
}

fn archive_path(call: &Call) -> ApiResult<String> {
    let path = call.query.text("path").map(str::to_owned);
    path.ok_or_else(|| ApiError::invalid("bad parameter: 'path' cannot be empty"))
}

fn with_stat(mut reply: Answer, stat: &Value) -> Answer {
    let text = STANDARD.encode(stat.to_string());
    if let Ok(value) = HeaderValue::from_str(&text) {
        reply.headers_mut().insert("x-docker-container-path-stat", value);
    }
    reply
}

/// `HEAD /containers/{id}/archive`.
///
/// # Errors
/// 404 for container or path.
pub async fn stat_archive(call: Call) -> ApiResult<Answer> {
    let path = archive_path(&call)?;
    let stat = call.state.containers.stat_path(call.param("id"), &path).await?;
    Ok(with_stat(answer::empty(StatusCode::OK), &stat))
}

/// `GET /containers/{id}/archive`.
///
/// # Errors
/// 404 for container or path.
pub async fn get_archive(call: Call) -> ApiResult<Answer> {
    let path = archive_path(&call)?;
    let (stat, tar) = call.state.containers.get_archive(call.param("id"), &path).await?;
    let reply = answer::with_type(StatusCode::OK, "application/x-tar", answer::streamed(tar));
    Ok(with_stat(reply, &stat))
}

/// `PUT /containers/{id}/archive`.
///
/// # Errors
/// 404 for container or path, 400 for a broken archive.
pub async fn put_archive(mut call: Call) -> ApiResult<Answer> {
    let put = PutArchive {
        path: archive_path(&call)?,
        no_overwrite_dir_non_dir: call.query.flag("noOverwriteDirNonDir"),
        copy_uid_gid: call.query.flag("copyUIDGID"),
    };
    let tar = Box::pin(Upload::new(call.take_body()?));
    call.state.containers.put_archive(call.param("id"), put, tar).await?;
    answer::ok()
}
