//! One TCP connection: a socket of the host spliced with a stack that faces the guest.

use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use crate::frame::Key;
use crate::host::{self, Moved};
use crate::outbox::Outbox;
use crate::stack::Stack;

/// How long the host may take to open a connection. Guests give up at about the same time.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Turns of moving data before others get theirs.
const TURNS_MAX: usize = 8;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: Key,
    /// The timer under which the router has noted it.
    pub(crate) noted: Option<Instant>,
    host: TcpStream,
    stage: Stage,
    host_readable: bool,
    host_writable: bool,
    /// The host's side has sent everything.
    host_ended: bool,
    /// The guest has sent everything.
    guest_ended: bool,
    /// The host was told so.
    host_told: bool,
}

#[derive(Debug)]
enum Stage {
    /// The guest's opening packet waits until the host's connection is made.
    Connecting { opening: Vec<u8>, until: Instant },
    /// Data flows.
    Spliced(Box<Stack>),
}

/// How a connection is after something was done with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Lives,
    /// It is over; both sides know.
    Over,
    /// The guest gets a reset: this was its opening packet.
    Refused(Vec<u8>),
}

/// What a connection works with.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Instant,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) mtu: u16,
    /// Unpredictable, for sequence numbers.
    pub(crate) seed: u64,
}

impl Connection {
    /// The guest opens it with `packet`; `host` is being connected.
    pub(crate) fn outward(key: Key, host: TcpStream, packet: &[u8], now: Instant) -> Self {
        let stage = Stage::Connecting { opening: packet.to_vec(), until: now + CONNECT_MAX };
        Self::new(key, host, stage)
    }

    /// A client of a published port opened it; `stack` connects to the guest.
    pub(crate) fn inward(key: Key, host: TcpStream, stack: Stack) -> Self {
        Self::new(key, host, Stage::Spliced(Box::new(stack)))
    }

    fn new(key: Key, host: TcpStream, stage: Stage) -> Self {
        Self {
            key,
            noted: None,
            host,
            stage,
            host_readable: false,
            host_writable: false,
            host_ended: false,
            guest_ended: false,
            host_told: false,
        }
    }

    /// The host's socket can be read or written again.
    pub(crate) fn host_event(
        &mut self,
        readable: bool,
        writable: bool,
        with: &mut Surroundings<'_>,
    ) -> Fate {
        self.host_readable |= readable;
        self.host_writable |= writable;
        if let Stage::Connecting { .. } = self.stage {
            return self.host_connected(with);
        }
        self.advance(None, with)
    }

    fn host_connected(&mut self, with: &mut Surroundings<'_>) -> Fate {
        let Stage::Connecting { opening, .. } = &mut self.stage else { return Fate::Lives };
        let opening = std::mem::take(opening);
        let at: SocketAddrV4 = self.key.remote;
        let stack = host::is_connected(&self.host)
            .then(|| Stack::listening(at, with.mtu, with.seed, with.now))
            .flatten();
        let Some(stack) = stack else { return Fate::Refused(opening) };
        self.stage = Stage::Spliced(Box::new(stack));
        self.advance(Some(&opening), with)
    }

    /// A packet of the guest.
    pub(crate) fn guest_packet(
        &mut self,
        packet: &[u8],
        resets: bool,
        with: &mut Surroundings<'_>,
    ) -> Fate {
        match self.stage {
            // It repeats itself, or changed its mind.
            Stage::Connecting { .. } if resets => Fate::Over,
            Stage::Connecting { .. } => Fate::Lives,
            Stage::Spliced(_) => self.advance(Some(packet), with),
        }
    }

    /// Its time has come.
    pub(crate) fn timer(&mut self, with: &mut Surroundings<'_>) -> Fate {
        match &mut self.stage {
            Stage::Connecting { opening, until } if *until <= with.now => {
                Fate::Refused(std::mem::take(opening))
            }
            Stage::Connecting { .. } => Fate::Lives,
            Stage::Spliced(_) => self.advance(None, with),
        }
    }

    /// When its time comes.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Instant> {
        match &mut self.stage {
            Stage::Connecting { until, .. } => Some(*until),
            Stage::Spliced(stack) => stack.poll_at(now),
        }
    }

    /// Moves data both ways until nothing moves.
    pub(crate) fn advance(&mut self, packet: Option<&[u8]>, with: &mut Surroundings<'_>) -> Fate {
        let Stage::Spliced(stack) = &mut self.stage else { return Fate::Lives };
        stack.poll(packet, with.now, with.outbox);
        for _ in 0..TURNS_MAX {
            let moved = self.feed_guest() | self.feed_host();
            let Stage::Spliced(stack) = &mut self.stage else { return Fate::Lives };
            if !moved {
                break;
            }
            stack.poll(None, with.now, with.outbox);
        }
        self.fate(with)
    }

    /// From the host's socket into the stack. True if anything changed.
    fn feed_guest(&mut self) -> bool {
        let Stage::Spliced(stack) = &mut self.stage else { return false };
        let socket = stack.socket();
        let mut changed = false;
        while self.host_readable && !self.host_ended && socket.can_send() {
            let host = &self.host;
            let moved = socket.send(|buffer| match host::read(host, buffer) {
                Moved::Bytes(bytes) => (bytes, Moved::Bytes(bytes)),
                other => (0, other),
            });
            match moved.unwrap_or(Moved::Broken) {
                Moved::Bytes(_) => {}
                Moved::Blocked => {
                    self.host_readable = false;
                    return changed;
                }
                Moved::End => {
                    self.host_ended = true;
                    socket.close();
                }
                Moved::Broken => {
                    self.host_ended = true;
                    socket.abort();
                }
            }
            changed = true;
        }
        changed
    }

    /// From the stack into the host's socket. True if anything changed.
    fn feed_host(&mut self) -> bool {
        let Stage::Spliced(stack) = &mut self.stage else { return false };
        self.guest_ended |= matches!(
            stack.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        let socket = stack.socket();
        let mut changed = false;
        while self.host_writable && socket.can_recv() {
            let host = &self.host;
            let moved = socket.recv(|bytes| match host::write(host, bytes) {
                Moved::Bytes(written) => (written, Moved::Bytes(written)),
                other => (0, other),
            });
            match moved.unwrap_or(Moved::Broken) {
                Moved::Bytes(_) => changed = true,
                Moved::Blocked | Moved::End => {
                    self.host_writable = false;
                    return changed;
                }
                Moved::Broken => {
                    socket.abort();
                    return true;
                }
            }
        }
        if self.guest_ended && !self.host_told && !socket.can_recv() {
            self.host_told = true;
            // Ignored because: it fails only if the host's peer is gone, which reading tells too.
            let _ = self.host.shutdown(Shutdown::Write);
            changed = true;
        }
        changed
    }

    fn fate(&mut self, with: &Surroundings<'_>) -> Fate {
        let Stage::Spliced(stack) = &mut self.stage else { return Fate::Lives };
        let undelivered = self.guest_ended && self.host_ended && !self.host_told;
        let over = match stack.state() {
            // A reset may still have to go out.
            State::Closed => stack.socket().remote_endpoint().is_none() && !undelivered,
            // Nothing is lost between here and the guest once it is in the outbox.
            State::TimeWait => with.outbox.is_ready() && !undelivered,
            _ => false,
        };
        if over { Fate::Over } else { Fate::Lives }
    }

    /// Ends it: orderly if both sides have finished, else with a reset for the host's peer.
    pub(crate) fn finish(self) {
        if !(self.host_told && self.host_ended) {
            host::reset(self.host);
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}
