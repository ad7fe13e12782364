//! Hijacked connections: attach and exec turn the HTTP connection into a plain byte stream.

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::backend::container::Stdio;
use crate::error::ApiResult;
use crate::http::answer::{self, Answer};
use crate::http::{Call, body, frame};

/// What a session reads from the client.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// What a session writes to the client.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;
/// A session on a hijacked connection.
pub type Session = Box<dyn FnOnce(Input, Output) -> BoxFuture<'static, ()> + Send>;

/// Bytes between a session and the body of an answer that is not an upgrade.
const BRIDGE_BUFFER: usize = 64 << 10;

/// Whether the client asked for an upgrade.
#[must_use]
pub fn wants_upgrade(call: &Call) -> bool {
    call.head.headers.contains_key(header::UPGRADE)
}

/// Answers `101 UPGRADED`, and runs `session` on the connection once that answer is flushed; so the
/// process cannot have produced a byte before the client has the header.
///
/// A client that did not ask for an upgrade gets 200 and the output as the answer's body; its input
/// is then what follows of the request's body, which is nothing for most.
///
/// # Errors
/// 500 if the body was read by somebody else.
pub fn hijack(mut call: Call, content_type: &'static str, session: Session) -> ApiResult<Answer> {
    if !wants_upgrade(&call) {
        return unupgraded(call, content_type, session);
    }
    let upgrade = match call.head.extensions.remove::<hyper::upgrade::OnUpgrade>() {
        Some(upgrade) => upgrade,
        None => return unupgraded(call, content_type, session),
    };
    let sessions = call.state.sessions.clone();
    sessions.spawn(async move {
        // Ignored because: a client that went away before the upgrade leaves nothing to do.
        let Ok(upgraded) = upgrade.await else { return };
        let (input, output) = tokio::io::split(TokioIo::new(upgraded));
        session(Box::new(input), Box::new(output)).await;
    });
    let mut reply = answer::with_type(
        StatusCode::SWITCHING_PROTOCOLS,
        content_type,
        answer::full(Bytes::new()),
    );
    reply.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    reply.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Ok(reply)
}

fn unupgraded(mut call: Call, content_type: &'static str, session: Session) -> ApiResult<Answer> {
    let input: Input = match call.body.take() {
        Some(incoming) => Box::new(StreamReader::new(body::byte_stream(incoming).boxed())),
        None => Box::new(tokio::io::empty()),
    };
    let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(BRIDGE_BUFFER);
    call.state.sessions.spawn(async move { session(input, Box::new(ours)).await });
    let pieces = tokio_util::io::ReaderStream::new(theirs);
    Ok(answer::with_type(StatusCode::OK, content_type, answer::streamed(pieces)))
}

/// Bytes read from a client at once.
const INPUT_PIECE: usize = 16 << 10;

/// Copies between a client and a process until the process's output ends or the client is gone. The
/// client's end of input reaches the process while its output goes on.
pub fn copy(stdio: Stdio, input: Input, mut output: Output) -> BoxFuture<'static, ()> {
    let Stdio { tty, output: mut printed, input: typed } = stdio;
    Box::pin(async move {
        let feed = feed(input, typed);
        let print = async {
            while let Some((channel, bytes)) = printed.next().await {
                let bytes = if tty { bytes } else { frame::encode(channel, &bytes) };
                if output.write_all(&bytes).await.is_err() || output.flush().await.is_err() {
                    return;
                }
            }
            // Ignored because: a client that is gone needs no end of output.
            let _ = output.shutdown().await;
        };
        tokio::pin!(feed, print);
        tokio::select! {
            () = &mut print => {}
            () = &mut feed => print.await,
        }
    })
}

/// Passes the client's input on until its end; then the process sees the end, too.
async fn feed(mut input: Input, typed: Option<mpsc::Sender<Bytes>>) {
    let mut buffer = vec![0_u8; INPUT_PIECE];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let piece = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                // Input that nobody asked for is read and dropped, so that the client is not stuck.
                if let Some(typed) = &typed
                    && typed.send(piece).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// Writes a last text and ends the output.
pub async fn say(output: &mut Output, text: &[u8]) {
    // Ignored because: a client that is gone cannot be told.
    let _ = output.write_all(text).await;
    let _ = output.shutdown().await;
}
