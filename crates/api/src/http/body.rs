//! Request bodies: bounded JSON, and streams of bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::header;
use http_body_util::{BodyExt, BodyStream, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep};

use crate::error::{ApiResult, RequestFault};
use crate::http::Call;

/// Longest JSON body. The largest honest one is a service with hundreds of settings, under 1 MiB.
pub const JSON_BODY_MAX: usize = 4 << 20;
/// Longest that a JSON body may take. 4 MiB within it are 70 kB/s; who is slower holds a place that
/// others need.
const JSON_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest pause within an upload. What is piped into `docker load` may be made meanwhile; a client
/// that is gone without a word must not hold an archive for ever.
const UPLOAD_PAUSE_MAX: Duration = Duration::from_secs(600);
/// Most bytes of an upload that are read and thrown away after its answer was clear.
const REST_BYTES_MAX: usize = 1 << 30;
/// For how long that is done.
const REST_TIME_MAX: Duration = Duration::from_secs(30);

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
/// 400 if it is longer or slower than allowed, or the connection breaks.
pub async fn read_bytes(body: Incoming, limit: usize) -> ApiResult<Bytes> {
    let read = Limited::new(body, limit).collect();
    let Ok(read) = tokio::time::timeout(JSON_TIME_MAX, read).await else {
        return Err(RequestFault::BodySlow { seconds: JSON_TIME_MAX.as_secs() }.into());
    };
    match read {
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

/// The body of an upload, as a stream of byte pieces. What is left when it is dropped is read and
/// thrown away, within bounds: a client that is still sending would see a broken connection instead
/// of the answer.
#[derive(Debug)]
pub struct Upload {
    body: Option<Incoming>,
    /// Ends when the client has said nothing for too long.
    pause: Pin<Box<Sleep>>,
}

impl Upload {
    /// Takes over a body.
    pub fn new(body: Incoming) -> Self {
        Self { body: Some(body), pause: Box::pin(tokio::time::sleep(UPLOAD_PAUSE_MAX)) }
    }
}

impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { body, pause } = &mut *self;
        let Some(body) = body else { return Poll::Ready(None) };
        loop {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                ready!(pause.as_mut().poll(cx));
                let limit = UPLOAD_PAUSE_MAX.as_secs();
                let problem = format!("the client sent nothing for {limit} s");
                return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, problem))));
            };
            pause.as_mut().reset(Instant::now() + UPLOAD_PAUSE_MAX);
            let Some(frame) = frame else { return Poll::Ready(None) };
            // Trailers say nothing about an archive.
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Err(_)) => {}
                Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (rest, Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(REST_TIME_MAX, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > REST_BYTES_MAX {
            return;
        }
    }
}
