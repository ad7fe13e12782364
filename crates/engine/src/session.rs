//! Carries bytes between a process in a container and a client, until either of them is done.

use bytes::Bytes;
use futures::stream;
use shoal_runtime::{Input, Output, OutputChunk, Streams};
use tokio::sync::{mpsc, oneshot};

use crate::detach_keys::{DetachKeys, Typed};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::stream::{Frame, FrameStream, StdStream, StdioSession};

/// Frames on their way to a client. The shim has a larger buffer and cuts off clients that take
/// nothing; here a few are enough to keep both sides busy.
const FRAMES: usize = 32;

/// What the end of a client's input means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtEof {
    /// The process's standard input closes; its output goes on.
    Close,
    /// The client leaves.
    Leave,
}

/// How a session is held.
pub(crate) struct Manner {
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub at_eof: AtEof,
    pub keys: DetachKeys,
    /// What comes before the process's own output.
    pub before: Option<FrameStream>,
    /// Called with the exit status before the output ends, and when the client leaves by its keys.
    pub on_end: Box<dyn FnOnce(SessionEnd) + Send>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The process ended.
    Exited(i32),
    /// The client typed its detach keys.
    Detached,
    /// The client went away, or was too slow.
    Left,
}

/// A session whose streams come later, when the container starts.
pub(crate) fn open(
    engine: &Engine,
    streams: oneshot::Receiver<Streams>,
    manner: Manner,
) -> StdioSession {
    let (frames, output) = mpsc::channel(FRAMES);
    let (input, typed) = mpsc::channel::<Bytes>(FRAMES);
    let tty = manner.tty;
    let stdin = manner.stdin;
    engine.spawn(async move {
        let streams = tokio::select! {
            streams = streams => streams,
            () = frames.closed() => return,
        };
        // Ignored because: without streams the container did not start, and the session just ends.
        if let Ok(streams) = streams {
            carry(streams, frames, typed, manner).await;
        }
    });
    StdioSession { tty, output: receiver(output), input: stdin.then_some(input) }
}

/// Turns a channel into a stream.
pub(crate) fn receiver<T: Send + 'static>(
    channel: mpsc::Receiver<T>,
) -> std::pin::Pin<Box<dyn futures::Stream<Item = T> + Send>> {
    Box::pin(stream::unfold(channel, |mut channel| async move {
        channel.recv().await.map(|item| (item, channel))
    }))
}

/// A session that only says why there is none.
pub(crate) fn refusal(tty: bool, error: &EngineError) -> StdioSession {
    let text = format!("{}\r\n", shoal_model::fault::report(error));
    let frame = Frame { stream: StdStream::Stdout, data: Bytes::from(text) };
    StdioSession { tty, output: Box::pin(stream::iter([frame])), input: None }
}

async fn carry(
    streams: Streams,
    frames: mpsc::Sender<Frame>,
    typed: mpsc::Receiver<Bytes>,
    manner: Manner,
) {
    let Streams { input, mut output } = streams;
    let Manner { tty, stdin, stdout, stderr, at_eof, keys, on_end, .. } = manner;
    let wants = (stdout, stderr);
    let way = Inward { tty, stdin, at_eof, keys };
    let mut inward = std::pin::pin!(carry_in(input, typed, way));
    let end = {
        let mut outward = std::pin::pin!(carry_out(&mut output, &frames, wants));
        tokio::select! {
            end = &mut outward => end,
            () = frames.closed() => SessionEnd::Left,
            left = &mut inward => match left {
                InputEnd::Detached => SessionEnd::Detached,
                InputEnd::Leave => SessionEnd::Left,
                InputEnd::Closed(_input) => tokio::select! {
                    end = &mut outward => end,
                    () = frames.closed() => SessionEnd::Left,
                },
            },
        }
    };
    on_end(end);
    drop(frames);
}

async fn carry_out(
    output: &mut Output,
    frames: &mpsc::Sender<Frame>,
    (stdout, stderr): (bool, bool),
) -> SessionEnd {
    loop {
        let frame = match output.next().await {
            Ok(Some(OutputChunk::Stdout(data))) if stdout => {
                Frame { stream: StdStream::Stdout, data }
            }
            Ok(Some(OutputChunk::Stderr(data))) if stderr => {
                Frame { stream: StdStream::Stderr, data }
            }
            Ok(Some(OutputChunk::Stdout(_) | OutputChunk::Stderr(_))) => continue,
            Ok(Some(OutputChunk::Exited(status))) => return SessionEnd::Exited(status.code),
            Ok(Some(OutputChunk::Lagged)) => {
                let data = Bytes::from_static(b"the output was not read for too long\n");
                // Ignored because: the session ends either way.
                let _ = frames.send(Frame { stream: StdStream::System, data }).await;
                return SessionEnd::Left;
            }
            Ok(None) => return SessionEnd::Left,
            Err(error) => {
                let data = Bytes::from(format!("read the output: {error}\n"));
                // Ignored because: the session ends either way.
                let _ = frames.send(Frame { stream: StdStream::System, data }).await;
                return SessionEnd::Left;
            }
        };
        if frames.send(frame).await.is_err() {
            return SessionEnd::Left;
        }
    }
}

/// How the input side ended.
enum InputEnd {
    Detached,
    Leave,
    /// The output goes on. The way in is kept, since dropping it means that the client is gone.
    Closed(#[allow(dead_code)] Input),
}

/// What of a session's manner concerns its input.
struct Inward {
    tty: bool,
    stdin: bool,
    at_eof: AtEof,
    keys: DetachKeys,
}

async fn carry_in(mut input: Input, mut typed: mpsc::Receiver<Bytes>, mut way: Inward) -> InputEnd {
    if !way.stdin {
        return InputEnd::Closed(input);
    }
    while let Some(bytes) = typed.recv().await {
        let (pass, detached) = match way.tty.then(|| way.keys.typed(&bytes)) {
            None => (bytes, false),
            Some(Typed { pass, detached }) => (pass, detached),
        };
        if !pass.is_empty() && input.write(&pass).await.is_err() {
            // The process closed its input or ended; its output says the rest.
            return InputEnd::Closed(input);
        }
        if detached {
            return InputEnd::Detached;
        }
    }
    match way.at_eof {
        AtEof::Leave => InputEnd::Leave,
        AtEof::Close => {
            // Ignored because: if the process is gone, so is its input.
            let _ = input.close().await;
            InputEnd::Closed(input)
        }
    }
}
