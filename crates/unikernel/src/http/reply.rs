//! Writes answers.

use alloc::vec::Vec;

use super::connection::Shared;
use super::date::DATE_BYTES;
use super::io::Io;
use super::{Broken, Limits, Status, Stream, Version};

/// Answers are gathered up to this size in bytes before they are handed to the connection.
const GATHER_BYTES: usize = 16 * 1024;

/// The answer to one request.
pub struct Reply<'a, S: Stream> {
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) shared: &'a Shared,
    pub(crate) limits: &'a Limits,
    pub(crate) version: Version,
    pub(crate) is_head: bool,
    pub(crate) keep_alive: bool,
    pub(crate) started: bool,
    pub(crate) finished: bool,
    pub(crate) stream: core::marker::PhantomData<fn() -> S>,
}

/// Decimal digits of `value` at the end of `to`.
pub(crate) fn decimal(mut value: u64, to: &mut [u8; 20]) -> &[u8] {
    let mut at = to.len();
    loop {
        at -= 1;
        to[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &to[at..];
        }
    }
}

impl<'a, S: Stream> Reply<'a, S> {
    /// Begins an answer. There is one for each request.
    pub fn start(&mut self, status: Status) -> Head<'_, 'a, S> {
        self.started = true;
        let mut digits = [0; 20];
        self.out.extend_from_slice(b"HTTP/1.1 ");
        self.out.extend_from_slice(decimal(u64::from(status.code), &mut digits));
        self.out.push(b' ');
        self.out.extend_from_slice(status.phrase.as_bytes());
        self.out.extend_from_slice(b"\r\nDate: ");
        let date: [u8; DATE_BYTES] = self.shared.date();
        self.out.extend_from_slice(&date);
        self.out.extend_from_slice(b"\r\n");
        Head { reply: self, status }
    }

    /// Answers with a short text.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn text(
        &mut self,
        body: &mut super::Body<'_, S>,
        status: Status,
        text: &[u8],
    ) -> Result<(), Broken> {
        let head = self.start(status).field("Content-Type", b"text/plain; charset=utf-8");
        head.send(body, text).await
    }

    /// The connection closes after this answer.
    pub fn close(&mut self) {
        self.keep_alive = false;
    }

    /// The line about the connection, where the client cannot know.
    fn connection_line(&mut self) {
        if !self.keep_alive {
            self.out.extend_from_slice(b"Connection: close\r\n");
        } else if self.version == Version::Http10 {
            self.out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
    }

    async fn write(&mut self, io: &mut Io<S>, data: &[u8]) -> Result<(), Broken> {
        if self.out.len() + data.len() <= GATHER_BYTES {
            self.out.extend_from_slice(data);
            return Ok(());
        }
        io.write_all(self.out, self.limits).await?;
        self.out.clear();
        if data.len() > GATHER_BYTES {
            return io.write_all(data, self.limits).await;
        }
        self.out.extend_from_slice(data);
        Ok(())
    }
}

/// An answer's head that is being written.
#[must_use]
pub struct Head<'r, 'a, S: Stream> {
    reply: &'r mut Reply<'a, S>,
    status: Status,
}

impl<'r, 'a, S: Stream> Head<'r, 'a, S> {
    /// Adds a field. A value with a line break in it is left out: it would begin another field.
    pub fn field(self, name: &str, value: &[u8]) -> Self {
        if !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            let out = &mut *self.reply.out;
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        self
    }

    /// Adds field lines that are already written, each with its line end.
    pub fn lines(self, lines: &[u8]) -> Self {
        debug_assert!(lines.is_empty() || lines.ends_with(b"\r\n"));
        self.reply.out.extend_from_slice(lines);
        self
    }

    fn end(self, length: Option<u64>) -> &'r mut Reply<'a, S> {
        if let Some(length) = length.filter(|_| !self.status.is_bodiless()) {
            let mut digits = [0; 20];
            self.reply.out.extend_from_slice(b"Content-Length: ");
            self.reply.out.extend_from_slice(decimal(length, &mut digits));
            self.reply.out.extend_from_slice(b"\r\n");
        }
        self.reply.connection_line();
        self.reply.out.extend_from_slice(b"\r\n");
        self.reply
    }

    /// Ends the answer with a body of one piece. To HEAD requests only its length is told.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn send(self, body: &mut super::Body<'_, S>, content: &[u8]) -> Result<(), Broken> {
        let has_body = !self.status.is_bodiless() && !self.reply.is_head;
        let reply = self.end(Some(content.len() as u64));
        if has_body {
            reply.write(body.io, content).await?;
        }
        reply.finished = true;
        Ok(())
    }

    /// Begins a body of several pieces whose length in all is known.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn pieces(self, length: u64) -> Chunks<'r, 'a, S> {
        let sends = !self.status.is_bodiless() && !self.reply.is_head;
        let reply = self.end(Some(length));
        Chunks { reply, sends, chunked: false, left: Some(length) }
    }

    /// Begins a body whose length is not known. HTTP/1.0 clients see its end by the connection's.
    pub fn chunks(mut self) -> Chunks<'r, 'a, S> {
        let sends = !self.status.is_bodiless() && !self.reply.is_head;
        let chunked = self.reply.version == Version::Http11;
        if self.status.is_bodiless() {
            // Nothing to be delimited.
        } else if chunked {
            self = self.field("Transfer-Encoding", b"chunked");
        } else {
            self.reply.keep_alive = false;
        }
        let reply = self.end(None);
        Chunks { reply, sends, chunked, left: None }
    }
}

/// A body that is sent piece by piece.
#[must_use]
pub struct Chunks<'r, 'a, S: Stream> {
    reply: &'r mut Reply<'a, S>,
    sends: bool,
    chunked: bool,
    left: Option<u64>,
}

impl<S: Stream> Chunks<'_, '_, S> {
    /// Sends a piece.
    ///
    /// # Errors
    /// [`Broken`], also if there are more bytes than were announced.
    pub async fn write(
        &mut self,
        body: &mut super::Body<'_, S>,
        piece: &[u8],
    ) -> Result<(), Broken> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(piece.len() as u64).ok_or(Broken)?;
        }
        // An empty chunk would end the body.
        if !self.sends || piece.is_empty() {
            return Ok(());
        }
        if self.chunked {
            let mut line = [0; 18];
            let mut at = line.len() - 2;
            line[at..].copy_from_slice(b"\r\n");
            let mut size = piece.len();
            while size > 0 {
                at -= 1;
                line[at] = b"0123456789abcdef"[size & 15];
                size >>= 4;
            }
            self.reply.write(body.io, &line[at..]).await?;
        }
        self.reply.write(body.io, piece).await?;
        if self.chunked {
            self.reply.write(body.io, b"\r\n").await?;
        }
        Ok(())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// [`Broken`], also if there are fewer bytes than were announced.
    pub async fn finish(self, body: &mut super::Body<'_, S>) -> Result<(), Broken> {
        if self.sends && self.left.is_some_and(|left| left > 0) {
            return Err(Broken);
        }
        if self.sends && self.chunked {
            self.reply.write(body.io, b"0\r\n\r\n").await?;
        }
        self.reply.finished = true;
        Ok(())
    }
}
