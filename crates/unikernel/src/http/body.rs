//! Bodies of requests (RFC 9112, sections 6 and 7).

use alloc::vec::Vec;

use super::head::Framing;
use super::io::{Io, due_ns};
use super::{Broken, Limits, Stream};

/// Longest line of a chunk's size and of a trailer, in bytes.
const LINE_BYTES_MAX: usize = 256;
/// Longest trailer section in bytes.
const TRAILER_BYTES_MAX: usize = 4096;
/// Bytes that are read at once while looking for lines.
const READ_BYTES: usize = 1024;

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The connection is of no more use.
    #[error("read a request's body")]
    Broken(#[source] Broken),
    /// The framing is wrong: 400.
    #[error("the chunks of a request's body are malformed")]
    Malformed,
    /// Longer than the limit: 413.
    #[error("a request's body is too long")]
    TooLong,
}

/// Where in the body reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of the body, or of its chunk, are left.
    Data(u64),
    /// The line end behind a chunk's data.
    ChunkEnd,
    /// A chunk's size.
    Size,
    /// Trailers, of which so many bytes came.
    Trailers(usize),
    Done,
    Failed(BodyError),
}

/// The body of a request. What the handler does not read is read and forgotten, up to a bound.
pub struct Body<'a, S: Stream> {
    pub(crate) io: &'a mut Io<S>,
    limits: &'a Limits,
    /// What came behind the head and is not read yet: of the body, and then of the next request.
    pub(crate) ahead: Vec<u8>,
    at: usize,
    state: State,
    chunked: bool,
    received: u64,
    start_ns: u64,
    /// The client waits to be told to send the body.
    pub(crate) wants_continue: bool,
}

impl<'a, S: Stream> Body<'a, S> {
    pub(crate) fn new(
        io: &'a mut Io<S>,
        limits: &'a Limits,
        framing: Framing,
        ahead: Vec<u8>,
        wants_continue: bool,
    ) -> Self {
        let (state, chunked) = match framing {
            Framing::None => (State::Done, false),
            Framing::Length(length) => (State::Data(length), false),
            Framing::Chunked => (State::Size, true),
        };
        let wants_continue = wants_continue && state != State::Done && ahead.is_empty();
        // Only a body needs the time.
        let start_ns = if state == State::Done { 0 } else { io.stream.now_ns() };
        Self { io, limits, ahead, at: 0, state, chunked, received: 0, start_ns, wants_continue }
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What was read beyond the body: the beginning of the next request.
    pub(crate) fn into_ahead(mut self) -> Vec<u8> {
        self.ahead.drain(..self.at);
        self.ahead
    }

    /// Reads some of the body; 0: it is complete.
    ///
    /// # Errors
    /// [`BodyError`]; the connection is closed after the answer then.
    pub async fn read(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        if to.is_empty() {
            return Ok(0);
        }
        let result = self.step(to).await;
        if let Err(error) = result {
            self.state = State::Failed(error);
        }
        result
    }

    /// Reads all of the body that is left, up to the limit for bodies.
    ///
    /// # Errors
    /// As [`Body::read`].
    pub async fn read_all(&mut self) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        let mut piece = [0; READ_BYTES];
        loop {
            match self.read(&mut piece).await? {
                0 => return Ok(all),
                count => all.extend_from_slice(&piece[..count]),
            }
        }
    }

    async fn step(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        loop {
            match self.state {
                State::Done => return Ok(0),
                State::Failed(error) => return Err(error),
                State::Data(0) => {
                    self.state = if self.chunked { State::ChunkEnd } else { State::Done };
                }
                State::Data(left) => {
                    let room = usize::try_from(left).unwrap_or(usize::MAX).min(to.len());
                    let count = self.some(&mut to[..room]).await?;
                    self.state = State::Data(left - count as u64);
                    return Ok(count);
                }
                State::ChunkEnd => {
                    if !self.line().await?.is_empty() {
                        return Err(BodyError::Malformed);
                    }
                    self.state = State::Size;
                }
                State::Size => {
                    let size = chunk_size(self.line().await?).ok_or(BodyError::Malformed)?;
                    self.received += size;
                    if self.received > self.limits.body_bytes_max {
                        return Err(BodyError::TooLong);
                    }
                    self.state = if size == 0 { State::Trailers(0) } else { State::Data(size) };
                }
                State::Trailers(came) => {
                    let line = self.line().await?;
                    let came = came + line.len() + 2;
                    self.state = if line.is_empty() { State::Done } else { State::Trailers(came) };
                    if came > TRAILER_BYTES_MAX {
                        return Err(BodyError::TooLong);
                    }
                }
            }
        }
    }

    fn deadline_ns(&self) -> u64 {
        let left = if let State::Data(left) = self.state { left } else { 0 };
        due_ns(self.start_ns, self.received.saturating_sub(left), self.limits)
    }

    /// Bytes from what came with the head, else from the stream.
    async fn some(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        let ahead = &self.ahead[self.at..];
        if !ahead.is_empty() {
            let count = ahead.len().min(to.len());
            to[..count].copy_from_slice(&ahead[..count]);
            self.at += count;
            return Ok(count);
        }
        self.invite().await?;
        // The rate counts from the whole length of one that is announced.
        let deadline_ns = self.deadline_ns();
        let count =
            self.io.read(to, deadline_ns).await.map_err(|why| BodyError::Broken(why.into()))?;
        if count == 0 {
            return Err(BodyError::Broken(Broken));
        }
        if !self.chunked {
            self.received += count as u64;
        }
        Ok(count)
    }

    /// Tells the client to send the body, if it waits for that.
    async fn invite(&mut self) -> Result<(), BodyError> {
        if self.wants_continue {
            self.wants_continue = false;
            let line = b"HTTP/1.1 100 Continue\r\n\r\n";
            self.io.write_all(line, self.limits).await.map_err(BodyError::Broken)?;
        }
        Ok(())
    }

    /// The next line without its end, which must be CRLF.
    async fn line(&mut self) -> Result<&[u8], BodyError> {
        let mut looked_at = self.at;
        let end = loop {
            if let Some(found) = self.ahead[looked_at..].iter().position(|byte| *byte == b'\n') {
                break looked_at + found;
            }
            looked_at = self.ahead.len();
            if looked_at - self.at > LINE_BYTES_MAX {
                return Err(BodyError::Malformed);
            }
            self.invite().await?;
            self.ahead.drain(..self.at);
            looked_at -= self.at;
            self.at = 0;
            let mut piece = [0; READ_BYTES];
            let deadline_ns = self.deadline_ns();
            let read = self.io.read(&mut piece, deadline_ns).await;
            let count = read.map_err(|why| BodyError::Broken(why.into()))?;
            if count == 0 {
                return Err(BodyError::Broken(Broken));
            }
            self.ahead.extend_from_slice(&piece[..count]);
        };
        let line = self.at..end;
        self.at = end + 1;
        let line = self.ahead[line].strip_suffix(b"\r").ok_or(BodyError::Malformed)?;
        if line.len() > LINE_BYTES_MAX || line.contains(&b'\r') {
            return Err(BodyError::Malformed);
        }
        Ok(line)
    }
}

/// Size in hexadecimal; extensions after it mean nothing here.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    // More digits than any limit on bodies has.
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest.starts_with(b";")) {
        return None;
    }
    u64::from_str_radix(core::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}
