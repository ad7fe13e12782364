//! `/_ping`: the first thing that every client asks.

use http::{HeaderValue, StatusCode, header};

use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};

/// `GET` and `HEAD /_ping`.
///
/// # Errors
/// Never.
pub async fn ping(call: Call) -> ApiResult<Answer> {
    let text = "text/plain; charset=utf-8";
    let mut reply = answer::with_type(StatusCode::OK, text, answer::full("OK"));
    let headers = reply.headers_mut();
    let cache = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    headers.insert(header::CACHE_CONTROL, cache);
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    // 1: the builder is the daemon's own, so that the client does not look for another one.
    headers.insert("builder-version", HeaderValue::from_static("1"));
    headers.insert("swarm", HeaderValue::from_static(call.state.swarm.status().header()));
    Ok(reply)
}
