//! What the daemon and a shim say to each other over the unix socket in the shim's directory.
//!
//! Every frame is a big-endian `u32` length, one byte of [`FrameKind`], and that many bytes. The
//! client speaks first: one [`Envelope`] with a [`Request`]; the shim answers with a [`Reply`].
//! `Attach` and `Exec` turn the connection into streams: stdin frames one way (an empty one closes
//! standard input), stdout and stderr frames the other, and a last JSON reply
//! ([`Reply::Exited`]) when the process has ended. Any other connection takes one request after the
//! other.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_model::time::Timestamp;

use crate::container_plan::{ExecPlan, TtySize};

/// The version of this protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest frame that either side accepts. The largest honest one is an exec with a full
/// environment (the kernel's own bound for arguments is 2 MiB); stream frames are 64 KiB at most.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// Bytes before each frame's payload.
pub const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A message.
    Json,
    /// Bytes for standard input; none: close it.
    Stdin,
    /// Bytes of standard output, or of the terminal.
    Stdout,
    /// Bytes of standard error.
    Stderr,
}

impl FrameKind {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Json => 0,
            Self::Stdin => 1,
            Self::Stdout => 2,
            Self::Stderr => 3,
        }
    }

    /// From its number on the wire.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Json),
            1 => Some(Self::Stdin),
            2 => Some(Self::Stdout),
            3 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// What is wrong with bytes from the other side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_BYTES_MAX`].
    #[error("frame of {len} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong {
        /// The length that was announced.
        len: usize,
    },
    /// No such kind.
    #[error("unknown frame kind {number}")]
    UnknownKind {
        /// What came.
        number: u8,
    },
    /// Not the message that was expected.
    #[error("not a message: {reason}")]
    NotAMessage {
        /// What the decoder says.
        reason: String,
    },
}

/// Puts a frame together.
#[must_use]
pub fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.push(kind.number());
    out.extend_from_slice(payload);
    out
}

/// Puts a JSON frame together.
#[must_use]
pub fn json_frame<T: Serialize>(message: &T) -> Vec<u8> {
    // Cannot fail: the messages have text keys only and no fallible serialisers.
    frame(FrameKind::Json, &serde_json::to_vec(message).unwrap_or_default())
}

/// Reads a header: the payload's length and the kind.
///
/// # Errors
/// [`FrameError`] if the length or kind is out of bounds.
pub fn parse_header(header: [u8; HEADER_BYTES]) -> Result<(usize, FrameKind), FrameError> {
    let [a, b, c, d, number] = header;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if len > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { len });
    }
    let kind = FrameKind::from_number(number).ok_or(FrameError::UnknownKind { number })?;
    Ok((len, kind))
}

/// Takes one frame off the front of `buffer`; `None` if it is not whole yet.
///
/// # Errors
/// [`FrameError`] if the bytes cannot be a frame.
pub fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<(FrameKind, Vec<u8>)>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let (len, kind) = parse_header(*header)?;
    if buffer.len() < HEADER_BYTES + len {
        return Ok(None);
    }
    let rest = buffer.split_off(HEADER_BYTES + len);
    let mut payload = std::mem::replace(buffer, rest);
    payload.drain(..HEADER_BYTES);
    Ok(Some((kind, payload)))
}

/// Reads a message.
///
/// # Errors
/// [`FrameError::NotAMessage`] with the decoder's reason.
pub fn parse_json<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|e| FrameError::NotAMessage { reason: e.to_string() })
}

/// A request with the version of the protocol that its sender speaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// The message.
    pub body: T,
}

impl<T> Envelope<T> {
    /// Wraps a message.
    pub fn new(body: T) -> Self {
        Self { version: PROTOCOL_VERSION, body }
    }
}

/// Just the version, to tell an old peer from garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct VersionOnly {
    /// See [`Envelope::version`].
    pub version: u32,
}

/// What the daemon asks of a shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Make the container and run its process.
    Start,
    /// How are things?
    State,
    /// Answer when the container has ended.
    Wait,
    /// Send a signal to the container's first process, or to every process.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether to every process in the container.
        all: bool,
    },
    /// Become a stream of the container's input and output.
    Attach {
        /// Whether this client feeds standard input.
        stdin: bool,
        /// Whether it wants standard output.
        stdout: bool,
        /// Whether it wants standard error.
        stderr: bool,
    },
    /// Run a further process and become its stream.
    Exec(Box<ExecPlan>),
    /// Answer when an exec has ended.
    ExecWait {
        /// Which.
        exec: String,
    },
    /// Send a signal to an exec.
    ExecSignal {
        /// Which.
        exec: String,
        /// The signal's number.
        signal: i32,
    },
    /// Change the size of a terminal.
    Resize {
        /// An exec, or the container's own process.
        exec: Option<String>,
        /// The new size.
        size: TtySize,
    },
    /// Stop every process from running.
    Pause,
    /// Let them run again.
    Resume,
    /// Kill what still runs, clean up, and end.
    Shutdown,
}

/// What a shim answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A process runs.
    Started {
        /// Its id on the host.
        pid: u32,
        /// When.
        at: Timestamp,
    },
    /// See [`ShimState`].
    State(Box<ShimState>),
    /// A process has ended; the last message of a stream.
    Exited(ExitStatus),
    /// The client did not take its output and was cut off.
    Lagged,
    /// It did not work.
    Failed(Failure),
    /// The request was of another version.
    WrongVersion,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessPhase {
    /// Not started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are held.
    Paused,
    /// Its process has ended.
    Exited,
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShimState {
    /// Where the container is in its life.
    pub phase: ProcessPhase,
    /// The container's first process on the host; 0 before and after its life.
    pub pid: u32,
    /// The shim's own process.
    pub shim_pid: u32,
    /// When the process started.
    pub started_at: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// What became of its output.
    pub log: LogState,
    /// Its execs: the running ones and the last ended ones.
    pub execs: Vec<ExecState>,
}

/// What became of a container's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// Lines that could not be written to the log file.
    pub lost_lines: u64,
    /// Why the last one could not be written; empty if none was lost.
    pub last_error: String,
}

/// One exec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecState {
    /// Its id.
    pub id: String,
    /// Its process on the host; 0 if ended.
    pub pid: u32,
    /// How it ended.
    pub exit: Option<ExitStatus>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Its exit status, or 128 and the signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
}

/// The class of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program is not in the container: Docker's exit status 127.
    ProgramNotFound,
    /// The program is there but cannot be executed: 126.
    ProgramNotExecutable,
    /// The plan cannot be right: a user that does not exist, a relative path.
    Invalid,
    /// No such exec.
    NotFound,
    /// Not in this phase of the container's life.
    Conflict,
    /// Everything else.
    Internal,
}

/// What went wrong in the shim or in the new process, as a whole chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub kind: FailureKind,
    /// What was attempted, then each cause below it; never empty.
    pub chain: Vec<String>,
}

impl Failure {
    /// A failure without further causes.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, chain: vec![text.into()] }
    }

    /// The same failure, seen from a higher place.
    #[must_use]
    pub fn within(mut self, action: impl Into<String>) -> Self {
        self.chain.insert(0, action.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_off_whole_or_not_at_all() {
        let mut buffer = frame(FrameKind::Stdout, b"hello");
        buffer.extend_from_slice(&frame(FrameKind::Stdin, b""));
        let tail = buffer.split_off(7);
        assert_eq!(take_frame(&mut buffer), Ok(None));
        buffer.extend_from_slice(&tail);
        assert_eq!(take_frame(&mut buffer), Ok(Some((FrameKind::Stdout, b"hello".to_vec()))));
        assert_eq!(take_frame(&mut buffer), Ok(Some((FrameKind::Stdin, Vec::new()))));
        assert_eq!(take_frame(&mut buffer), Ok(None));
    }

    #[test]
    fn garbage_is_refused() {
        let mut long = vec![0xff; HEADER_BYTES];
        assert!(matches!(take_frame(&mut long), Err(FrameError::TooLong { .. })));
        let mut kind = vec![0, 0, 0, 0, 9];
        assert_eq!(take_frame(&mut kind), Err(FrameError::UnknownKind { number: 9 }));
        assert!(parse_json::<Envelope<Request>>(b"{").is_err());
    }

    #[test]
    fn messages_read_back_as_written() {
        let request = Envelope::new(Request::Signal { signal: 15, all: true });
        let text = serde_json::to_vec(&request).unwrap();
        assert_eq!(parse_json::<Envelope<Request>>(&text).unwrap(), request);
        assert_eq!(parse_json::<VersionOnly>(&text).unwrap().version, PROTOCOL_VERSION);
    }
}
