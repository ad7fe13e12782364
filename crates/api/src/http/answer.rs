//! Answers: JSON, plain text, streams.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// Every answer.
pub type Answer = http::Response<Body>;

/// A body of known bytes.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that is sent piece by piece as the stream gives them.
pub fn streamed(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(stream.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The same body; `kept` goes away with it, when it is sent or its client is gone.
pub fn until_sent(body: Body, kept: impl Send + Unpin + 'static) -> Body {
    Kept { body, _kept: kept }.boxed_unsync()
}

struct Kept<T> {
    body: Body,
    _kept: T,
}

impl<T: Unpin> hyper::body::Body for Kept<T> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer with a body and a content type.
#[must_use]
pub fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = http::Response::new(body);
    *answer.status_mut() = status;
    if !content_type.is_empty() {
        let value = HeaderValue::from_static(content_type);
        answer.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    answer
}

/// 200 with JSON.
///
/// # Errors
/// 500 if `value` cannot be written as JSON.
pub fn json<T: Serialize>(value: &T) -> ApiResult<Answer> {
    json_status(StatusCode::OK, value)
}

/// JSON with any status.
///
/// # Errors
/// 500 if `value` cannot be written as JSON.
pub fn json_status<T: Serialize>(status: StatusCode, value: &T) -> ApiResult<Answer> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| ApiError::internal(format!("write the answer as JSON: {error}")))?;
    bytes.push(b'\n');
    Ok(with_type(status, "application/json", full(bytes)))
}

/// An answer without a body.
#[must_use]
pub fn empty(status: StatusCode) -> Answer {
    with_type(status, "", full(Bytes::new()))
}

/// 200 without a body.
///
/// # Errors
/// Never; the type is that of handlers.
pub fn ok() -> ApiResult<Answer> {
    Ok(empty(StatusCode::OK))
}

/// 204.
///
/// # Errors
/// Never; the type is that of handlers.
pub fn no_content() -> ApiResult<Answer> {
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The answer of a failure.
#[must_use]
pub fn failure(error: &ApiError) -> Answer {
    if error.status == StatusCode::NOT_MODIFIED {
        return empty(error.status);
    }
    let body = json!({ "message": error.message }).to_string() + "\n";
    with_type(error.status, "application/json", full(body))
}

/// JSON objects, one a line, each sent as soon as it is there; headers go out at once.
pub fn json_lines(stream: impl Stream<Item = Value> + Send + 'static) -> Answer {
    let lines = stream.map(|value| Ok(Bytes::from(value.to_string() + "\r\n")));
    with_type(StatusCode::OK, "application/json", streamed(lines))
}

/// The line that reports a failure inside a stream whose status is already sent.
#[must_use]
pub fn stream_error(error: &ApiError) -> Value {
    json!({
        "errorDetail": { "code": error.status.as_u16(), "message": error.message },
        "error": error.message,
    })
}
