//! The connections of a shim.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::{CLIENT_BUFFER_BYTES, STALL_DEADLINE};
use crate::protocol::{Envelope, FrameError, FrameKind, Reply, frame, json_frame, take_frame};

/// How much is read from a client at once.
const READ_BYTES: usize = 64 << 10;

/// What a process is to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Main,
    Exec(String),
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// One request after the other.
    Control,
    /// Waits for an end.
    Waiting(Target),
    /// Carries streams.
    Stream { target: Target, stdin: bool, stdout: bool, stderr: bool },
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) stream: UnixStream,
    pub(super) role: Role,
    /// It asked for a process that is on its way; until then nothing more is read of it.
    pub(super) awaits_launch: bool,
    input: Vec<u8>,
    output: VecDeque<u8>,
    /// Since when its full buffer has not moved.
    stalled_since: Option<Instant>,
    /// Gone as soon as its buffer is empty.
    pub(super) closing: bool,
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn new(id: u64, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            id,
            stream,
            role: Role::Control,
            awaits_launch: false,
            input: Vec::new(),
            output: VecDeque::new(),
            stalled_since: None,
            closing: false,
            gone: false,
        })
    }

    /// Whether it gets this process's output.
    pub(super) fn streams(&self, of: &Target) -> bool {
        matches!(&self.role, Role::Stream { target, .. } if target == of)
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        self.output.extend(json_frame(&Envelope::new(reply)));
    }

    /// The last word to this client.
    pub(super) fn finish(&mut self, reply: Reply) {
        self.reply(reply);
        self.closing = true;
    }

    pub(super) fn send(&mut self, kind: FrameKind, bytes: &[u8]) {
        self.output.extend(frame(kind, bytes));
    }

    pub(super) fn has_room(&self) -> bool {
        self.output.len() < CLIENT_BUFFER_BYTES
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what has come.
    pub(super) fn read(&mut self) {
        let mut buffer = [0_u8; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = true,
            Ok(count) => self.input.extend(buffer.iter().take(count)),
            Err(e) if is_transient(&e) => {}
            Err(_) => self.gone = true,
        }
    }

    /// The next whole frame.
    pub(super) fn frame(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>, FrameError> {
        take_frame(&mut self.input)
    }

    /// Writes what the client takes.
    pub(super) fn write(&mut self, now: Instant) {
        while !self.output.is_empty() {
            let (front, _) = self.output.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.stalled_since = None;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        if self.output.is_empty() && self.closing {
            self.gone = true;
        }
        if self.has_room() {
            self.stalled_since = None;
            // A burst must not keep its memory for the client's whole life.
            if self.output.is_empty() {
                self.output.shrink_to(READ_BYTES);
            }
        } else {
            self.stalled_since.get_or_insert(now);
        }
    }

    /// Cuts off a client that takes nothing; `true` while its time runs.
    pub(super) fn check_stall(&mut self, now: Instant) -> bool {
        let Some(since) = self.stalled_since else { return false };
        if now.duration_since(since) < STALL_DEADLINE {
            return true;
        }
        // What it has not taken would only delay the message, which it will probably not take
        // either; the end of the connection says enough.
        self.output.clear();
        self.gone = true;
        false
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_takes_nothing_has_so_long_and_no_longer() {
        let (_theirs, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(1, ours).unwrap();
        let start = Instant::now();
        // The kernel takes the first of it, and then this side keeps what it has room for.
        while client.has_room() {
            client.send(FrameKind::Stdout, &[0_u8; READ_BYTES]);
            client.write(start);
        }
        assert!(client.check_stall(start + STALL_DEADLINE / 2) && !client.gone);
        assert!(!client.check_stall(start + STALL_DEADLINE) && client.gone);
    }
}
