//! All connections and listeners.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::task::Waker;

use hashbrown::HashMap;

use super::connection::{Connection, Effect, State};
use super::segment::{Options, Outgoing, Segment, flag, refuse};
use super::time_wait::{TimeWait, Verdict};
use crate::net::Error;
use crate::net::hash::Keyed;
use crate::net::link::{Full, Link};
use crate::net::neighbours::Mac;
use crate::random;
use crate::wheel::Wheel;

/// Receive and send buffer of a connection while memory is plenty.
const BUFFER_BYTES: usize = 256 * 1024;
/// The same when buffers take more than their share of the heap.
const BUFFER_BYTES_SCARCE: usize = 4 * 1024;
/// How long a half-open connection is safe from making room for another one.
const HALF_OPEN_NS: u64 = 1_000_000_000;
/// First port for outgoing connections (RFC 6335, section 6).
const EPHEMERAL_FIRST: u16 = 49_152;
/// How many of them there are.
const EPHEMERAL_COUNT: u16 = 16_384;

/// Those who wait for connections on one port.
#[derive(Debug)]
struct Listener {
    backlog: usize,
    /// Half-open, oldest first, and since when.
    half_open: VecDeque<(u32, u64)>,
    complete: VecDeque<u32>,
    waker: Option<Waker>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_key: HashMap<u64, u32, Keyed>,
    listeners: HashMap<u16, Listener, Keyed>,
    time_wait: TimeWait,
    queue: VecDeque<u32>,
    timers: Wheel,
    /// Bytes in all buffers, and how many are plenty.
    buffered: usize,
    plenty: usize,
}

/// What a connection is found by: both ports and the peer's address.
pub(crate) const fn key(local_port: u16, peer: &SocketAddrV4) -> u64 {
    (peer.ip().to_bits() as u64) << 32 | (peer.port() as u64) << 16 | local_port as u64
}

impl Table {
    /// An empty table; `heap_bytes` is what the instance may allocate in all.
    pub(crate) fn new(keyed: Keyed, heap_bytes: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::with_hasher(keyed),
            listeners: HashMap::with_hasher(keyed),
            time_wait: TimeWait::new(keyed),
            queue: VecDeque::new(),
            timers: Wheel::new(),
            buffered: 0,
            plenty: heap_bytes / 4,
        }
    }

    fn buffer_bytes(&self) -> usize {
        // What one more full buffer would take must still fit.
        if self.buffered + BUFFER_BYTES < self.plenty { BUFFER_BYTES } else { BUFFER_BYTES_SCARCE }
    }

    /// A connection that is held.
    pub(crate) fn get(&mut self, id: u32) -> Option<&mut Connection> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// How many connections there are, and how many bytes they hold.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.slots.iter().flatten().count(), self.buffered)
    }

    fn add(&mut self, connection: Connection) -> u32 {
        let key = key(connection.local.port(), &connection.peer);
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.by_key.insert(key, id);
        self.slots[id as usize] = Some(connection);
        id
    }

    /// Puts a connection into the queue of those that may have something to send.
    pub(crate) fn enqueue(&mut self, id: u32) {
        if let Some(connection) = self.slots.get_mut(id as usize).and_then(Option::as_mut)
            && !core::mem::replace(&mut connection.is_queued, true)
        {
            self.queue.push_back(id);
        }
    }

    fn buffers_of(&self, id: u32) -> usize {
        let connection = self.slots.get(id as usize).and_then(Option::as_ref);
        connection.map_or(0, |connection| {
            let receiver = &connection.receiver;
            receiver.buffer.len() + receiver.ahead.bytes() + connection.sender.buffer.len()
        })
    }

    /// Calls `change` with a connection and keeps account of its buffers.
    pub(crate) fn change<R>(
        &mut self,
        id: u32,
        change: impl FnOnce(&mut Connection) -> R,
    ) -> Option<R> {
        let before = self.buffers_of(id);
        let answer = self.get(id).map(change);
        self.buffered = self.buffered + self.buffers_of(id) - before;
        answer
    }

    /// Forgets a connection whose end was noticed and that nobody holds.
    fn settle_end(&mut self, id: u32, time_wait: bool, now_ns: u64) {
        let Some(connection) = self.get(id) else { return };
        let address = key(connection.local.port(), &connection.peer);
        let (nxt, next) = (connection.sender.max, connection.receiver.next);
        let timer = connection.timer.take();
        let (is_held, listener) = (connection.is_held, connection.listener);
        if let Some((timer, _)) = timer {
            self.timers.remove(timer);
        }
        if self.by_key.get(&address) == Some(&id) {
            self.by_key.remove(&address);
            if time_wait {
                self.time_wait.insert(address, nxt, next, now_ns);
            }
        }
        // Half-open ones are held by nobody; complete ones stay in the queue: the application
        // accepts them and finds out.
        let half_open = listener.is_some() && !is_held;
        if let Some(port) = listener.filter(|_| half_open) {
            self.no_longer_half_open(port, id);
        }
        if !is_held {
            self.remove(id);
        }
    }

    fn no_longer_half_open(&mut self, port: u16, id: u32) {
        let Some(listener) = self.listeners.get_mut(&port) else { return };
        // Nearly always the first; else a short search, and the backlog bounds it.
        if let Some(at) = listener.half_open.iter().position(|(other, _)| *other == id) {
            listener.half_open.remove(at);
        }
    }

    fn remove(&mut self, id: u32) {
        self.buffered -= self.buffers_of(id);
        if let Some(slot) = self.slots.get_mut(id as usize)
            && slot.take().is_some()
        {
            self.free.push(id);
        }
    }

    /// Takes a segment from `source` in.
    pub(crate) fn take(
        &mut self,
        segment: &Segment<'_>,
        source: Ipv4Addr,
        from: Mac,
        link: &mut Link<'_>,
    ) {
        let peer = SocketAddrV4::new(source, segment.source_port);
        let address = key(segment.target_port, &peer);
        if let Some(id) = self.by_key.get(&address).copied() {
            let effect = self.change(id, |connection| {
                // The way back is the way that the peer's segments come, if they fit.
                if connection.receiver.accepts(segment.seq, segment.len()) {
                    connection.mac = Some(from);
                }
                connection.take(segment, link.now_ns)
            });
            let ends = (effect == Some(Effect::TimeWait))
                .then(|| self.get(id).map(|it| (it.sender.max, it.receiver.next)));
            if let Some((seq, ack)) = ends.flatten() {
                // Ignored because: the peer repeats its FIN.
                let _ = acknowledge(link, from, segment, peer, seq, ack);
            }
            self.apply(id, effect.unwrap_or(Effect::None), link.now_ns);
            self.enqueue(id);
            return;
        }
        match self.time_wait.judge(address, segment, link.now_ns) {
            Verdict::Ignore => return,
            Verdict::Acknowledge(seq, ack) => {
                // Ignored because: the peer repeats it.
                let _ = acknowledge(link, from, segment, peer, seq, ack);
                return;
            }
            Verdict::Unknown | Verdict::Anew => {}
        }
        let opens = segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        if opens && self.listeners.contains_key(&segment.target_port) {
            self.take_syn(segment, peer, from, link);
        } else {
            // Ignored because: the peer repeats it.
            let _ = refuse(link, from, segment, source);
        }
    }

    fn take_syn(
        &mut self,
        segment: &Segment<'_>,
        peer: SocketAddrV4,
        from: Mac,
        link: &mut Link<'_>,
    ) {
        let port = segment.target_port;
        let Some(listener) = self.listeners.get_mut(&port) else { return };
        if listener.complete.len() >= listener.backlog {
            return;
        }
        if listener.half_open.len() >= listener.backlog {
            // Who is there answers within a round trip; who has not by now makes room. In a burst
            // of honest ones nobody does, and the peer repeats its SYN.
            let oldest = listener.half_open.front().copied();
            let Some((oldest, since_ns)) = oldest else { return };
            if link.now_ns.saturating_sub(since_ns) < HALF_OPEN_NS {
                return;
            }
            self.change(oldest, |connection| connection.close(None));
            self.settle_end(oldest, false, link.now_ns);
        }
        let local = SocketAddrV4::new(link.interface.address, port);
        let limit = self.buffer_bytes();
        let initial = random::u64() as u32;
        let mtu = link.interface.mtu;
        let mut connection = Connection::new(State::SynReceived, local, peer, initial, limit, mtu);
        connection.mac = Some(from);
        connection.listener = Some(port);
        connection.is_held = false;
        connection.take_syn(segment);
        let id = self.add(connection);
        if let Some(listener) = self.listeners.get_mut(&port) {
            listener.half_open.push_back((id, link.now_ns));
        }
        self.enqueue(id);
    }

    /// Does what a connection asked for.
    fn apply(&mut self, id: u32, effect: Effect, now_ns: u64) {
        match effect {
            Effect::None => {}
            Effect::Opened => self.complete(id),
            Effect::Closed => self.settle_end(id, false, now_ns),
            Effect::TimeWait => self.settle_end(id, true, now_ns),
        }
    }

    fn complete(&mut self, id: u32) {
        let Some(connection) = self.get(id) else { return };
        let Some(port) = connection.listener else {
            connection.wake_all();
            return;
        };
        connection.is_held = true;
        self.no_longer_half_open(port, id);
        let Some(listener) = self.listeners.get_mut(&port) else { return };
        listener.complete.push_back(id);
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
    }

    /// Listens on `port`.
    pub(crate) fn listen(&mut self, port: u16, backlog: usize) -> Result<(), Error> {
        if self.listeners.contains_key(&port) {
            return Err(Error::PortInUse { port });
        }
        let listener = Listener {
            backlog: backlog.max(1),
            half_open: VecDeque::new(),
            complete: VecDeque::new(),
            waker: None,
        };
        self.listeners.insert(port, listener);
        Ok(())
    }

    /// The next complete connection; else wakes `waker` when there is one.
    pub(crate) fn accept(&mut self, port: u16, waker: &Waker) -> Option<u32> {
        let listener = self.listeners.get_mut(&port)?;
        let Some(id) = listener.complete.pop_front() else {
            listener.waker = Some(waker.clone());
            return None;
        };
        if let Some(connection) = self.get(id) {
            connection.listener = None;
        }
        Some(id)
    }

    /// Listens no more; connections that nobody accepted are reset.
    pub(crate) fn unlisten(&mut self, port: u16, link: &mut Link<'_>) {
        let Some(listener) = self.listeners.remove(&port) else { return };
        let half_open = listener.half_open.into_iter().map(|(id, _)| id);
        for id in listener.complete.into_iter().chain(half_open) {
            if self.get(id).is_some_and(|connection| connection.listener == Some(port)) {
                if let Some(connection) = self.get(id) {
                    connection.listener = None;
                }
                self.abort(id, link);
            }
        }
    }

    /// Begins to open a connection.
    pub(crate) fn connect(
        &mut self,
        peer: SocketAddrV4,
        local: Ipv4Addr,
        mtu: usize,
        now_ns: u64,
    ) -> Result<u32, Error> {
        let start = random::u64() as u16 % EPHEMERAL_COUNT;
        let port = (0..EPHEMERAL_COUNT)
            .map(|add| EPHEMERAL_FIRST + (start + add) % EPHEMERAL_COUNT)
            .find(|port| {
                let key = key(*port, &peer);
                !self.by_key.contains_key(&key) && !self.time_wait.contains(key, now_ns)
            })
            .ok_or(Error::NoFreePort)?;
        let local = SocketAddrV4::new(local, port);
        let initial = random::u64() as u32;
        let limit = self.buffer_bytes();
        let connection = Connection::new(State::SynSent, local, peer, initial, limit, mtu);
        let id = self.add(connection);
        self.enqueue(id);
        Ok(id)
    }

    /// The application has left a connection.
    pub(crate) fn leave(&mut self, id: u32, link: &mut Link<'_>) {
        let Some(connection) = self.get(id) else { return };
        let unread = !connection.receiver.buffer.is_empty();
        let opening = matches!(connection.state, State::SynSent | State::SynReceived);
        if let State::Closed(_) = connection.state {
            self.remove(id);
        } else if unread || opening {
            // What was sent will never be read: the peer must not think otherwise (RFC 2525, 2.17).
            self.abort(id, link);
        } else {
            connection.leave(link.now_ns);
            self.enqueue(id);
        }
    }

    /// Resets a connection and forgets it.
    pub(crate) fn abort(&mut self, id: u32, link: &mut Link<'_>) {
        let Some(connection) = self.get(id) else { return };
        let silent = matches!(connection.state, State::SynSent | State::Closed(_));
        if let Some(mac) = connection.mac.filter(|_| !silent) {
            let outgoing = Outgoing {
                source: connection.local,
                target: connection.peer,
                seq: connection.sender.max,
                ack: connection.receiver.next,
                flags: flag::RST | flag::ACK,
                window: 0,
                options: Options::default(),
                data: (&[], &[]),
                mss: usize::MAX,
            };
            // Ignored because: whatever the peer sends next is refused with another reset.
            let _ = outgoing.send(link, mac);
        }
        connection.is_held = false;
        connection.listener = None;
        connection.close(None);
        self.settle_end(id, false, link.now_ns);
    }

    /// A neighbour that a connection waits for never answered.
    pub(crate) fn unreachable(&mut self, id: u32, now_ns: u64) {
        let effect = self.change(id, |connection| {
            if connection.mac.is_none() {
                connection.close(Some(Error::Unreachable))
            } else {
                Effect::None
            }
        });
        self.apply(id, effect.unwrap_or(Effect::None), now_ns);
    }

    /// Lets time pass.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        let mut due = Vec::new();
        self.timers.expire(now_ns, |id| due.push(id as u32));
        for id in due {
            let effect = self.change(id, |connection| {
                connection.timer = None;
                connection.tick(now_ns)
            });
            self.apply(id, effect.unwrap_or(Effect::None), now_ns);
            self.enqueue(id);
        }
    }

    /// Sends what may be sent.
    pub(crate) fn flush(&mut self, link: &mut Link<'_>) -> Result<(), Full> {
        while let Some(id) = self.queue.pop_front() {
            let limit = self.buffer_bytes();
            let Some(connection) = self.get(id) else { continue };
            connection.limit = limit;
            if connection.send(id, link).is_err() {
                self.queue.push_front(id);
                return Err(Full);
            }
            connection.is_queued = false;
            if let State::Closed(_) = connection.state {
                self.settle_end(id, false, link.now_ns);
            } else {
                self.schedule(id);
            }
        }
        Ok(())
    }

    /// Sets the timer of a connection, if it would ring too late.
    fn schedule(&mut self, id: u32) {
        let Some(connection) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let next = connection.next_ns();
        if next == u64::MAX {
            return;
        }
        match connection.timer {
            // Too early is no harm: it is set anew then. Moving it for every segment would be.
            Some((_, set_for)) if set_for <= next => return,
            Some((timer, _)) => {
                self.timers.remove(timer);
            }
            None => {}
        }
        connection.timer = Some((self.timers.insert(next, u64::from(id)), next));
    }

    /// When [`Table::expire`] must be called next.
    pub(crate) fn next_ns(&self) -> u64 {
        self.timers.next_ns()
    }

    /// How much may be buffered for sending on one connection.
    pub(crate) fn send_limit(&self) -> usize {
        self.buffer_bytes()
    }
}

/// Acknowledges a segment of a connection that is only remembered.
fn acknowledge(
    link: &mut Link<'_>,
    to: Mac,
    segment: &Segment<'_>,
    peer: SocketAddrV4,
    seq: u32,
    ack: u32,
) -> Result<(), Full> {
    let outgoing = Outgoing {
        source: SocketAddrV4::new(link.interface.address, segment.target_port),
        target: peer,
        seq,
        ack,
        flags: flag::ACK,
        window: 0,
        options: Options::default(),
        data: (&[], &[]),
        mss: usize::MAX,
    };
    outgoing.send(link, to)
}
