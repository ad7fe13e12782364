//! The processes of a shim and their streams.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::process::spawn::{OwnStreams, Spawned};
use crate::protocol::{ExitStatus, FrameKind};

/// What waits for a process's standard input at most; clients that send more wait.
const STDIN_BUFFER_BYTES: usize = 64 << 10;

/// How much output is read at once: the size of a pipe.
const READ_BYTES: usize = 64 << 10;

/// How long the streams of an ended process are still read if somebody else holds them open.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// The status of a process that SIGKILL ended, as init and shells give it.
const KILLED: i32 = 128 + libc::SIGKILL;

/// Which stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Terminal,
    Stdout,
    Stderr,
}

impl Channel {
    pub(super) const ALL: [Self; 3] = [Self::Terminal, Self::Stdout, Self::Stderr];

    /// The frames that carry it.
    pub(super) fn frame_kind(self) -> FrameKind {
        match self {
            Self::Terminal | Self::Stdout => FrameKind::Stdout,
            Self::Stderr => FrameKind::Stderr,
        }
    }
}

/// One process with its streams.
#[derive(Debug)]
pub(super) struct Proc {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    /// How often the kernel had killed for want of memory before it started.
    oom_kills: u64,
    /// Whether a client had it killed.
    pub(super) killed_on_request: bool,
    streams: OwnStreams,
    stdin: VecDeque<u8>,
    close_stdin: bool,
    /// How it ended and until when its streams are read.
    ended: Option<(ExitStatus, Instant)>,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(Vec<u8>),
    Nothing,
    End,
}

impl Proc {
    pub(super) fn new(spawned: Spawned, oom_kills: u64) -> Self {
        Self {
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            oom_kills,
            killed_on_request: false,
            streams: spawned.streams,
            stdin: VecDeque::new(),
            close_stdin: false,
            ended: None,
        }
    }

    /// Whether it was the kernel's want of memory that ended it, with `oom_kills` counted by now.
    /// Below an init process it is `status` 137 that tells.
    pub(super) fn ended_by_oom(&self, status: &ExitStatus, oom_kills: u64, init: bool) -> bool {
        let killed = status.signal == Some(libc::SIGKILL) || (init && status.code == KILLED);
        killed && !self.killed_on_request && oom_kills > self.oom_kills
    }

    /// Sends it a signal, unless it has ended.
    pub(super) fn signal(&mut self, number: i32) -> std::io::Result<()> {
        if self.ended.is_some() {
            return Err(Errno::SRCH.into());
        }
        self.killed_on_request |= number == libc::SIGKILL;
        crate::process::sys::signal(self.pidfd.as_fd(), number)
    }

    pub(super) fn terminal(&self) -> Option<&OwnedFd> {
        self.streams.terminal.as_ref()
    }

    fn slot(&mut self, channel: Channel) -> &mut Option<OwnedFd> {
        match channel {
            Channel::Terminal => &mut self.streams.terminal,
            Channel::Stdout => &mut self.streams.stdout,
            Channel::Stderr => &mut self.streams.stderr,
        }
    }

    /// The open output streams.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (Channel, BorrowedFd<'_>)> {
        let streams = &self.streams;
        Channel::ALL.into_iter().filter_map(move |channel| {
            let fd = match channel {
                Channel::Terminal => &streams.terminal,
                Channel::Stdout => &streams.stdout,
                Channel::Stderr => &streams.stderr,
            };
            fd.as_ref().map(|fd| (channel, fd.as_fd()))
        })
    }

    /// Where input waits to be written to, if any does.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.streams.terminal.as_ref().or(self.streams.stdin.as_ref());
        fd.filter(|_| !self.stdin.is_empty()).map(AsFd::as_fd)
    }

    /// Whether clients may send more input.
    pub(super) fn takes_input(&self) -> bool {
        self.stdin.len() < STDIN_BUFFER_BYTES
    }

    /// Takes input from a client; without a standard input it is thrown away.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let open = self.streams.terminal.is_some() || self.streams.stdin.is_some();
        if open && !self.close_stdin {
            self.stdin.extend(bytes);
            self.flush_stdin();
        }
    }

    /// Closes standard input when what waits has been written. A terminal stays open.
    pub(super) fn end_stdin(&mut self) {
        if self.streams.terminal.is_none() {
            self.close_stdin = true;
            self.flush_stdin();
        }
    }

    /// Writes what the process takes.
    pub(super) fn flush_stdin(&mut self) {
        let fd = self.streams.terminal.as_ref().or(self.streams.stdin.as_ref());
        let mut broken = fd.is_none();
        while let Some(fd) = fd {
            let (front, _) = self.stdin.as_slices();
            if front.is_empty() {
                break;
            }
            match rustix::io::write(fd, front) {
                Ok(count) => {
                    self.stdin.drain(..count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        if broken {
            // Nobody reads any more.
            self.stdin.clear();
        }
        if self.stdin.is_empty() && (self.close_stdin || broken) {
            self.streams.stdin = None;
        }
    }

    /// Reads one piece of output.
    pub(super) fn read(&mut self, channel: Channel) -> Got {
        let slot = self.slot(channel);
        let Some(fd) = slot else { return Got::End };
        let mut buffer = vec![0_u8; READ_BYTES];
        match rustix::io::read(&*fd, &mut buffer) {
            Ok(0) => {
                *slot = None;
                Got::End
            }
            Ok(count) => {
                buffer.truncate(count);
                Got::Bytes(buffer)
            }
            Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
            // A terminal whose last process has gone.
            Err(_) => {
                *slot = None;
                Got::End
            }
        }
    }

    /// Records its end; what it wrote before is still read.
    pub(super) fn end(&mut self, status: ExitStatus, now: Instant) {
        self.pid = 0;
        self.ended = Some((status, now + DRAIN_DEADLINE));
        self.streams.stdin = None;
        self.stdin.clear();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Gives an ended process's output more time, because a client is in the way of it.
    pub(super) fn hold(&mut self, now: Instant) {
        if let Some((_, deadline)) = &mut self.ended {
            *deadline = now + DRAIN_DEADLINE;
        }
    }

    /// How it ended, once nothing more can come: both streams at their end, or its time is up.
    pub(super) fn finished(&self, now: Instant) -> Option<ExitStatus> {
        let (status, deadline) = self.ended?;
        (self.outputs().next().is_none() || now >= deadline).then_some(status)
    }
}
