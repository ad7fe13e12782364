//! Streams between the daemon and a process of a container.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::protocol::{
    Envelope, ExitStatus, FrameKind, HEADER_BYTES, Reply, VersionOnly, frame, parse_header,
    parse_json,
};

/// The longest stdin frame: larger writes are cut into several, so that the shim's buffers stay
/// small.
const STDIN_CHUNK_BYTES: usize = 32 << 10;

/// Both directions of a process's streams.
#[derive(Debug)]
pub struct Streams {
    /// Towards its standard input.
    pub input: Input,
    /// From its standard output and error.
    pub output: Output,
}

/// A running exec.
#[derive(Debug)]
pub struct ExecHandle {
    /// Its process on the host.
    pub pid: u32,
    /// Its streams. Dropping them closes its standard input; its output is then thrown away, and it
    /// runs on.
    pub streams: Streams,
}

/// The way to a process's standard input.
#[derive(Debug)]
pub struct Input {
    half: OwnedWriteHalf,
}

impl Input {
    /// Sends bytes; waits while the process does not read.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(STDIN_CHUNK_BYTES) {
            self.half.write_all(&frame(FrameKind::Stdin, chunk)).await?;
        }
        Ok(())
    }

    /// Closes the process's standard input; its output goes on.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn close(&mut self) -> io::Result<()> {
        self.half.write_all(&frame(FrameKind::Stdin, &[])).await
    }
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputChunk {
    /// Of standard output, or of the terminal.
    Stdout(Bytes),
    /// Of standard error.
    Stderr(Bytes),
    /// The process has ended and there is no more output.
    Exited(ExitStatus),
    /// This client took nothing for too long and was cut off; the process runs on.
    Lagged,
}

/// The way from a process's standard output and error.
#[derive(Debug)]
pub struct Output {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Output {
    /// The next piece; `None` after the last one. May be cancelled without losing anything.
    ///
    /// # Errors
    /// The connection broke, or the shim sent what is no frame.
    pub async fn next(&mut self) -> io::Result<Option<OutputChunk>> {
        match self.next_frame().await? {
            None => Ok(None),
            Some((FrameKind::Stdout, bytes)) => Ok(Some(OutputChunk::Stdout(bytes))),
            Some((FrameKind::Stderr, bytes)) => Ok(Some(OutputChunk::Stderr(bytes))),
            Some((FrameKind::Json, bytes)) => match parse_reply(&bytes)? {
                Reply::Exited(status) => Ok(Some(OutputChunk::Exited(status))),
                Reply::Lagged => Ok(Some(OutputChunk::Lagged)),
                other => Err(io::Error::other(format!("unexpected reply in a stream: {other:?}"))),
            },
            Some((FrameKind::Stdin, _)) => Err(io::Error::other("unexpected stdin frame")),
        }
    }

    async fn next_frame(&mut self) -> io::Result<Option<(FrameKind, Bytes)>> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() {
                let (len, kind) = parse_header(*header).map_err(io::Error::other)?;
                if self.buffer.len() >= HEADER_BYTES + len {
                    self.buffer.advance(HEADER_BYTES);
                    return Ok(Some((kind, self.buffer.split_to(len).freeze())));
                }
                self.buffer.reserve(HEADER_BYTES + len);
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn parse_reply(bytes: &[u8]) -> io::Result<Reply> {
    // The version is looked at first: another version's message need not decode.
    let version = parse_json::<VersionOnly>(bytes).map_err(io::Error::other)?.version;
    if version != crate::protocol::PROTOCOL_VERSION {
        return Err(io::Error::other(OtherVersion(version)));
    }
    Ok(parse_json::<Envelope<Reply>>(bytes).map_err(io::Error::other)?.body)
}

/// The shim speaks this version of the protocol.
#[derive(Debug, thiserror::Error)]
#[error("the shim speaks protocol version {0}")]
pub(crate) struct OtherVersion(pub(crate) u32);

/// One connection: messages first, perhaps streams later.
#[derive(Debug)]
pub(crate) struct Connection {
    input: OwnedWriteHalf,
    output: Output,
}

impl Connection {
    pub(crate) fn new(stream: tokio::net::UnixStream) -> Self {
        let (half, input) = stream.into_split();
        Self { input, output: Output { half, buffer: BytesMut::new() } }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.write_all(bytes).await
    }

    /// The next message; an end of the connection is an error.
    pub(crate) async fn reply(&mut self) -> io::Result<Reply> {
        match self.output.next_frame().await? {
            Some((FrameKind::Json, bytes)) => parse_reply(&bytes),
            Some((kind, _)) => Err(io::Error::other(format!("unexpected frame {kind:?}"))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(crate) fn into_streams(self) -> Streams {
        Streams { input: Input { half: self.input }, output: self.output }
    }
}
