//! Request bodies: bounded JSON, and streams of bytes.

use std::io;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::header;
use http_body_util::{BodyExt, BodyStream, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};

use crate::error::{ApiResult, RequestFault};
use crate::http::Call;

/// Longest JSON body. The largest honest one is a service with hundreds of settings, under 1 MiB.
pub const JSON_BODY_MAX: usize = 4 << 20;

/// Reads a JSON body whole, after checking its content type; an empty body needs none, as in
/// Docker.
///
/// # Errors
/// 400 for another content type, a body over the bound, or a broken connection.
pub async fn read_json_bytes(call: &mut Call) -> ApiResult<Bytes> {
    let body = call.take_body()?;
    if body.size_hint().exact() == Some(0) {
        return Ok(Bytes::new());
    }
    let found = call.head.headers.get(header::CONTENT_TYPE);
    let found = found.map_or("", |value| value.to_str().unwrap_or("unreadable"));
    let kind = found.split(';').next().unwrap_or("").trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let fault =
            RequestFault::ContentType { found: found.to_owned(), expected: "application/json" };
        return Err(fault.into());
    }
    read_bytes(body, JSON_BODY_MAX).await
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 400 if it is longer, or the connection breaks.
pub async fn read_bytes(body: Incoming, limit: usize) -> ApiResult<Bytes> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(RequestFault::BodyTooLarge { limit }.into())
        }
        Err(error) => Err(RequestFault::BodyRead { problem: error.to_string() }.into()),
    }
}

/// The body as a stream of byte pieces.
pub fn byte_stream(body: Incoming) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    TryStreamExt::map_err(BodyStream::new(body), io::Error::other)
        .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) })
}
