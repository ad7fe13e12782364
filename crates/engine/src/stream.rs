//! Byte streams between a container and a client.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};
use shoal_model::time::Timestamp;
use tokio::sync::mpsc;

use crate::error::EngineError;

/// Which stream bytes belong to; the number is the one in Docker's framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StdStream {
    /// Standard output, 1; of terminals everything.
    Stdout,
    /// Standard error, 2.
    Stderr,
    /// A failure of the engine itself, 3.
    System,
}

impl StdStream {
    /// The first byte of a frame.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::System => 3,
        }
    }
}

/// Some bytes of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which stream.
    pub stream: StdStream,
    /// The bytes.
    pub data: Bytes,
}

/// One logged line, or a piece of at most 16 KiB of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Which stream.
    pub stream: StdStream,
    /// When it was written.
    pub time: Timestamp,
    /// The text, with its line feed if it had one.
    pub line: Bytes,
}

/// Frames until the session ends.
pub type FrameStream = Pin<Box<dyn Stream<Item = Frame> + Send>>;

/// Bytes until the end, or a failure.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, EngineError>> + Send>>;

/// A session with a process: attach, or a started exec.
pub struct StdioSession {
    /// Whether it is a terminal: then frames are passed on raw.
    pub tty: bool,
    /// What the process prints. Ends when the process ends, or after the detach keys.
    pub output: FrameStream,
    /// What the client types; dropping the sender is end of file. `None` if input was not asked.
    pub input: Option<mpsc::Sender<Bytes>>,
}

/// A container's log.
pub struct LogSession {
    /// Whether the container has a terminal.
    pub tty: bool,
    /// Labels that `details=1` prints, as `key=value`; chosen by the log options.
    pub details: Vec<String>,
    /// The lines.
    pub lines: Pin<Box<dyn Stream<Item = Result<LogEntry, EngineError>> + Send>>,
}
