//! One connection: the state machine of RFC 9293, section 3.10.7.

use core::net::SocketAddrV4;
use core::task::Waker;

use super::receiver::{Receiver, SCALE};
use super::segment::{Options, Outgoing, Segment, before, flag};
use super::sender::{Acked, Sender};
use crate::net::Error;
use crate::net::link::{Full, Link, Route};
use crate::net::neighbours::{Mac, Waiting};
use crate::wheel::Timer;

/// Timeouts in a row after which a connection is given up: about 100 s at the shortest timeout.
const TIMEOUTS_MAX: u32 = 9;
/// The same while the connection is being opened.
const SYN_TIMEOUTS_MAX: u32 = 5;
/// How long an acknowledgement may wait for data to travel with.
const DELAYED_ACK_NS: u64 = 20_000_000;
/// How long a connection that the application has left may take to finish.
const LINGER_NS: u64 = 60_000_000_000;
/// Most payload in one piece with segmentation offload; its packet stays below 65,536 bytes.
const SEGMENTED_BYTES_MAX: usize = 62_000;
/// Smallest segment size that is believed (RFC 9293, section 3.7.1: 536; Linux: 48).
const MSS_MIN: u16 = 64;
/// Segment size of a peer that states none.
const MSS_DEFAULT: u16 = 536;

/// The states, TIME-WAIT excepted, which has its own small table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    /// Over; why, if it did not end well.
    Closed(Option<Error>),
}

/// What the table has to do after a connection was given something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// The connection was opened by the peer and is complete.
    Opened,
    /// It is over.
    Closed,
    /// It is over, and its address is to be remembered for a while.
    TimeWait,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) local: SocketAddrV4,
    pub(crate) peer: SocketAddrV4,
    pub(crate) state: State,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    /// Where frames go; `None`: to be asked for.
    pub(crate) mac: Option<Mac>,
    /// It was asked for.
    asks_for_mac: bool,
    /// The listener that it belongs to until it is accepted.
    pub(crate) listener: Option<u16>,
    /// Whether the application (or a listener's queue) holds it.
    pub(crate) is_held: bool,
    /// It is in the queue of connections that have something to send.
    pub(crate) is_queued: bool,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    /// The timer that runs, and for when it was set.
    pub(crate) timer: Option<(Timer, u64)>,
    /// When an acknowledgement is sent alone.
    pub(crate) ack_deadline_ns: Option<u64>,
    /// When it is given up, whatever happens.
    pub(crate) linger_deadline_ns: Option<u64>,
    /// Whether the peer takes SACK blocks.
    takes_sack: bool,
    /// Whether both sides scale windows.
    scales: bool,
    /// Bytes of the receive buffer.
    pub(crate) limit: usize,
}

impl Connection {
    /// A connection in `state` that will send its SYN with sequence number `initial`.
    pub(crate) fn new(
        state: State,
        local: SocketAddrV4,
        peer: SocketAddrV4,
        initial: u32,
        limit: usize,
        mtu: usize,
    ) -> Self {
        let mss = mtu.saturating_sub(40).max(usize::from(MSS_MIN)) as u32;
        Self {
            local,
            peer,
            state,
            sender: Sender::new(initial, mss),
            receiver: Receiver::new(0, limit),
            mac: None,
            asks_for_mac: false,
            listener: None,
            is_held: true,
            is_queued: false,
            reader: None,
            writer: None,
            timer: None,
            ack_deadline_ns: None,
            linger_deadline_ns: None,
            takes_sack: true,
            scales: true,
            limit,
        }
    }

    /// Takes the peer's SYN in.
    pub(crate) fn take_syn(&mut self, segment: &Segment<'_>) {
        let own = self.sender.mss;
        let peers = u32::from(segment.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN));
        self.sender.set_mss(own.min(peers));
        self.scales = segment.scale.is_some();
        self.takes_sack = segment.takes_sack;
        self.sender.scale = segment.scale.unwrap_or(0);
        self.receiver = Receiver::new(segment.seq.wrapping_add(1), self.limit);
        self.receiver.scale = if self.scales { SCALE } else { 0 };
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        self.sender.set_window(segment.seq, segment.ack, u32::from(segment.window));
    }

    /// Wakes whoever waits.
    pub(crate) fn wake_all(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Ends it.
    pub(crate) fn close(&mut self, why: Option<Error>) -> Effect {
        self.state = State::Closed(why);
        self.wake_all();
        Effect::Closed
    }

    /// Whether data may still arrive.
    fn receives(&self) -> bool {
        matches!(self.state, State::Established | State::FinWait1 | State::FinWait2)
    }

    /// Takes a segment that belongs to it.
    pub(crate) fn take(&mut self, segment: &Segment<'_>, now_ns: u64) -> Effect {
        match self.state {
            State::SynSent => self.take_in_syn_sent(segment, now_ns),
            State::Closed(_) => Effect::None,
            _ => self.take_synchronised(segment, now_ns),
        }
    }

    fn take_in_syn_sent(&mut self, segment: &Segment<'_>, now_ns: u64) -> Effect {
        let acked = segment.has(flag::ACK) && segment.ack == self.sender.max;
        if segment.has(flag::ACK) && !acked {
            // An old duplicate; the peer is told by the table's refusal.
            return Effect::None;
        }
        if segment.has(flag::RST) {
            return if acked { self.close(Some(Error::Refused)) } else { Effect::None };
        }
        if !segment.has(flag::SYN) {
            return Effect::None;
        }
        self.take_syn(segment);
        self.receiver.must_ack = true;
        if acked {
            self.sender.acked(segment.ack, false, &segment.sacks, now_ns);
            self.state = State::Established;
            self.wake_all();
        } else {
            // Both sides opened at once.
            self.state = State::SynReceived;
            self.sender.nxt = self.sender.una;
        }
        Effect::None
    }

    fn take_synchronised(&mut self, segment: &Segment<'_>, now_ns: u64) -> Effect {
        if !self.receiver.accepts(segment.seq, segment.len()) {
            // Also an answer to probes and to a repeated SYN whose answer was lost.
            self.receiver.must_ack |= !segment.has(flag::RST);
            if self.state == State::SynReceived && segment.has(flag::SYN) {
                self.sender.nxt = self.sender.una;
            }
            // While the window is closed, acknowledgements count nevertheless.
            let closed = self.receiver.window() == 0 && segment.seq == self.receiver.next;
            if !closed || segment.has(flag::RST) {
                return Effect::None;
            }
        }
        if segment.has(flag::RST) {
            return self.take_reset(segment);
        }
        if segment.has(flag::SYN) {
            // A challenge (RFC 5961, section 4.2).
            self.receiver.must_ack = true;
            return Effect::None;
        }
        if !segment.has(flag::ACK) {
            return Effect::None;
        }
        let mut effect = Effect::None;
        if self.state == State::SynReceived {
            if segment.ack != self.sender.max {
                return Effect::None;
            }
            self.state = State::Established;
            let window = u32::from(segment.window) << self.sender.scale;
            self.sender.set_window(segment.seq, segment.ack, window);
            effect = Effect::Opened;
        }
        if !self.take_ack(segment, now_ns) {
            return effect;
        }
        self.take_data(segment, now_ns);
        match self.advance() {
            Effect::None => effect,
            ended => ended,
        }
    }

    fn take_reset(&mut self, segment: &Segment<'_>) -> Effect {
        if segment.seq != self.receiver.next {
            // Not exactly where it must be: a challenge (RFC 5961, section 3.2).
            self.receiver.must_ack = true;
            return Effect::None;
        }
        let orderly = matches!(self.state, State::Closing | State::LastAck);
        self.close((!orderly).then_some(Error::Reset))
    }

    /// False: the segment goes no further.
    fn take_ack(&mut self, segment: &Segment<'_>, now_ns: u64) -> bool {
        let window = u32::from(segment.window) << self.sender.scale;
        let pure = segment.len() == 0 && window == self.sender.window;
        match self.sender.acked(segment.ack, pure, &segment.sacks, now_ns) {
            Acked::Invalid => {
                self.receiver.must_ack = true;
                return false;
            }
            Acked::Progress(_) => {
                if let Some(waker) = self.writer.take() {
                    waker.wake();
                }
            }
            Acked::Nothing | Acked::Repeat => {}
        }
        self.sender.update_window(segment.seq, segment.ack, window);
        if self.sender.window == 0 {
            // The peer lives: it may keep its window closed for as long as it likes.
            self.sender.timeouts = 0;
        }
        true
    }

    fn take_data(&mut self, segment: &Segment<'_>, now_ns: u64) {
        if segment.len() == 0 || !self.receives() {
            return;
        }
        self.receiver.take(segment.seq, segment.data, segment.has(flag::FIN));
        if self.linger_deadline_ns.is_some() {
            // The application has left: nobody will read it.
            self.receiver.buffer.clear();
        }
        if self.receiver.untold >= 2 * self.sender.mss {
            self.receiver.must_ack = true;
        } else if self.ack_deadline_ns.is_none() {
            self.ack_deadline_ns = Some(now_ns + DELAYED_ACK_NS);
        }
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    /// Follows from what was acknowledged and whether the peer finished.
    fn advance(&mut self) -> Effect {
        if self.sender.is_fin_acked() {
            match self.state {
                State::FinWait1 => self.state = State::FinWait2,
                State::Closing => return self.end_in_time_wait(),
                State::LastAck => return self.close(None),
                _ => {}
            }
        }
        if self.receiver.is_finished {
            match self.state {
                State::Established => self.state = State::CloseWait,
                State::FinWait1 => self.state = State::Closing,
                State::FinWait2 => return self.end_in_time_wait(),
                _ => {}
            }
        }
        Effect::None
    }

    fn end_in_time_wait(&mut self) -> Effect {
        self.close(None);
        Effect::TimeWait
    }

    /// The application sends no more.
    pub(crate) fn shut_down(&mut self) {
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            _ => return,
        }
        self.sender.fin = true;
    }

    /// The application has left it.
    pub(crate) fn leave(&mut self, now_ns: u64) {
        self.is_held = false;
        self.linger_deadline_ns = Some(now_ns + LINGER_NS);
        self.reader = None;
        self.writer = None;
        self.shut_down();
    }

    /// When it must be looked at again.
    pub(crate) fn next_ns(&self) -> u64 {
        [self.sender.deadline_ns, self.ack_deadline_ns, self.linger_deadline_ns]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now_ns: u64) -> Effect {
        let due = |deadline: Option<u64>| deadline.is_some_and(|deadline| deadline <= now_ns);
        if due(self.linger_deadline_ns) {
            return self.close(Some(Error::TimedOut));
        }
        if due(self.ack_deadline_ns) {
            self.ack_deadline_ns = None;
            self.receiver.must_ack = true;
        }
        if due(self.sender.deadline_ns) {
            self.sender.timed_out();
            let opening = matches!(self.state, State::SynSent | State::SynReceived);
            let most = if opening { SYN_TIMEOUTS_MAX } else { TIMEOUTS_MAX };
            if self.sender.timeouts > most {
                return self.close(Some(Error::TimedOut));
            }
        }
        Effect::None
    }

    /// Sends everything that may be sent now.
    pub(crate) fn send(&mut self, id: u32, link: &mut Link<'_>) -> Result<(), Full> {
        let Some(mac) = self.mac else { return self.resolve(id, link) };
        match self.state {
            State::SynSent | State::SynReceived => return self.send_syn(mac, link),
            State::Closed(_) => return Ok(()),
            _ => {}
        }
        while let Some((seq, len)) = self.sender.next_hole() {
            if let Err(full) = self.send_piece(seq, len, false, mac, link) {
                self.sender.repeat = seq;
                return Err(full);
            }
        }
        let mss = self.sender.mss as usize;
        let most = if link.interface.offload { SEGMENTED_BYTES_MAX / mss * mss } else { mss };
        loop {
            let len = self.sender.allowance(most.max(mss));
            let nxt = self.sender.nxt;
            let end = nxt.wrapping_add(len as u32);
            let fin = self.sender.fin && end == self.sender.data_end();
            if len == 0 && !fin {
                break;
            }
            self.send_piece(nxt, len, fin, mac, link)?;
            self.sender.sent(len as u32 + u32::from(fin), link.now_ns);
        }
        if before(self.sender.nxt, self.sender.data_end()) {
            // A closed window: its opening may be lost.
            self.sender.arm(link.now_ns);
        }
        if self.receiver.must_ack || self.receiver.should_tell(self.limit, mss) {
            // Not `nxt`: while all is sent again that lies behind what the peer expects, which
            // drops such a segment whole. Two peers that do so would never hear of each other.
            self.send_piece(self.sender.max, 0, false, mac, link)?;
        }
        Ok(())
    }

    /// Asks where the peer is.
    fn resolve(&mut self, id: u32, link: &mut Link<'_>) -> Result<(), Full> {
        match link.route(*self.peer.ip()) {
            Route::Mac(mac) => {
                self.mac = Some(mac);
                return self.send(id, link);
            }
            Route::Unresolved(hop) if !self.asks_for_mac => {
                self.asks_for_mac = true;
                link.neighbours.wait(hop, Waiting::Connection(id));
            }
            Route::Unresolved(_) => {}
            Route::None => {
                self.close(Some(Error::Unreachable));
            }
        }
        Ok(())
    }

    fn send_syn(&mut self, mac: Mac, link: &mut Link<'_>) -> Result<(), Full> {
        if self.sender.nxt != self.sender.una {
            return Ok(());
        }
        let answers = self.state == State::SynReceived;
        let mss = link.interface.mtu.saturating_sub(40).min(usize::from(u16::MAX)) as u16;
        let scale = self.scales.then_some(SCALE);
        // The window of a SYN is not scaled; the true one follows with the first segment.
        let window = self.limit.min(usize::from(u16::MAX)) as u16;
        let outgoing = Outgoing {
            source: self.local,
            target: self.peer,
            seq: self.sender.una,
            ack: if answers { self.receiver.next } else { 0 },
            flags: flag::SYN | if answers { flag::ACK } else { 0 },
            window,
            options: Options::syn(mss, scale, self.takes_sack),
            data: (&[], &[]),
            mss: usize::MAX,
        };
        outgoing.send(link, mac)?;
        self.receiver.must_ack = false;
        self.sender.sent(1, link.now_ns);
        Ok(())
    }

    fn send_piece(
        &mut self,
        seq: u32,
        len: usize,
        fin: bool,
        mac: Mac,
        link: &mut Link<'_>,
    ) -> Result<(), Full> {
        let sacks = self.takes_sack && self.receiver.ahead.bytes() > 0 && len == 0;
        let options =
            if sacks { Options::sack(self.receiver.ahead.sacks()) } else { Options::default() };
        let told = (self.receiver.must_ack, self.receiver.untold);
        let push = if len > 0 && seq.wrapping_add(len as u32) == self.sender.data_end() {
            flag::PSH
        } else {
            0
        };
        let outgoing = Outgoing {
            source: self.local,
            target: self.peer,
            seq,
            ack: self.receiver.next,
            flags: flag::ACK | push | if fin { flag::FIN } else { 0 },
            window: self.receiver.tell(self.limit),
            options,
            data: self.sender.data(seq, len),
            mss: self.sender.mss as usize,
        };
        if outgoing.send(link, mac).is_err() {
            (self.receiver.must_ack, self.receiver.untold) = told;
            return Err(Full);
        }
        self.ack_deadline_ns = None;
        Ok(())
    }
}
