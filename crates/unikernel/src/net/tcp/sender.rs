//! The sending half of a connection: what is unacknowledged, how much may be under way, and what
//! to repeat (RFC 5681, RFC 6582, RFC 6675 in its simplest form).

use alloc::collections::VecDeque;

use super::rtt::Rtt;
use super::segment::{SACKS_MAX, before};

/// Segments that may be sent before the first acknowledgement (RFC 6928).
const INITIAL_SEGMENTS: u32 = 10;
/// Duplicate acknowledgements that mean a loss.
const DUPLICATES: u32 = 3;
/// A send buffer larger than this is given back when it is empty.
const KEEP_BYTES: usize = 16 * 1024;
/// Most ranges of the peer that are remembered.
const SACKED_MAX: usize = 16;
/// Congestion window beyond which more helps nobody: more than all buffers.
const WINDOW_MAX: u32 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Oldest unacknowledged sequence number.
    pub(crate) una: u32,
    /// Next to send; behind `max` while everything is sent again.
    pub(crate) nxt: u32,
    /// One more than the highest ever sent.
    pub(crate) max: u32,
    /// The peer's window from `una`, and the segment that told it last.
    pub(crate) window: u32,
    told_seq: u32,
    told_ack: u32,
    /// Shift of the peer's windows.
    pub(crate) scale: u8,
    /// Payload bytes of a segment.
    pub(crate) mss: u32,
    /// Unacknowledged and unsent data.
    pub(crate) buffer: VecDeque<u8>,
    /// Sequence number of the buffer's first byte.
    pub(crate) base: u32,
    /// The application will send no more: FIN follows the buffer.
    pub(crate) fin: bool,
    congestion: u32,
    threshold: u32,
    duplicates: u32,
    /// Until what is acknowledged recovery goes on.
    recover: Option<u32>,
    /// Next hole to repeat in recovery.
    pub(crate) repeat: u32,
    sacked: VecDeque<(u32, u32)>,
    pub(crate) rtt: Rtt,
    /// A sequence number whose acknowledgement is timed, and when it was sent.
    timed: Option<(u32, u64)>,
    /// Timeouts in a row without any acknowledgement.
    pub(crate) timeouts: u32,
    /// When something is sent again.
    pub(crate) deadline_ns: Option<u64>,
    /// One byte is to be sent although the peer's window is closed.
    pub(crate) probe: bool,
}

/// What an acknowledgement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acked {
    /// It acknowledges what was never sent.
    Invalid,
    /// Nothing new.
    Nothing,
    /// So many sequence numbers.
    Progress(u32),
    /// Nothing new, but a segment is to be repeated.
    Repeat,
}

impl Sender {
    /// Will send its SYN with sequence number `initial`.
    pub(crate) fn new(initial: u32, mss: u32) -> Self {
        Self {
            una: initial,
            nxt: initial,
            max: initial,
            window: 0,
            told_seq: 0,
            told_ack: 0,
            scale: 0,
            mss,
            buffer: VecDeque::new(),
            base: initial.wrapping_add(1),
            fin: false,
            congestion: INITIAL_SEGMENTS * mss,
            threshold: WINDOW_MAX,
            duplicates: 0,
            recover: None,
            repeat: initial,
            sacked: VecDeque::new(),
            rtt: Rtt::new(),
            timed: None,
            timeouts: 0,
            deadline_ns: None,
            probe: false,
        }
    }

    /// The peer's largest segment became known.
    pub(crate) fn set_mss(&mut self, mss: u32) {
        self.mss = mss;
        self.congestion = INITIAL_SEGMENTS * mss;
    }

    /// One more than the last byte of data.
    pub(crate) fn data_end(&self) -> u32 {
        self.base.wrapping_add(self.buffer.len() as u32)
    }

    /// Whether FIN was sent and acknowledged.
    pub(crate) fn is_fin_acked(&self) -> bool {
        self.fin && self.una == self.data_end().wrapping_add(1)
    }

    /// Whether something is under way.
    pub(crate) fn is_waiting(&self) -> bool {
        self.una != self.max
    }

    /// Takes the window field of a segment in (RFC 9293, section 3.10.7.4). True if it opened.
    pub(crate) fn update_window(&mut self, seq: u32, ack: u32, window: u32) -> bool {
        let newer =
            before(self.told_seq, seq) || (self.told_seq == seq && !before(ack, self.told_ack));
        if !newer {
            return false;
        }
        let opened = window > self.window;
        self.window = window;
        self.told_seq = seq;
        self.told_ack = ack;
        opened
    }

    /// The first window; later ones must come with newer segments.
    pub(crate) fn set_window(&mut self, seq: u32, ack: u32, window: u32) {
        self.window = window;
        self.told_seq = seq;
        self.told_ack = ack;
    }

    /// Takes an acknowledgement in. `pure`: the segment has neither data nor a new window.
    pub(crate) fn acked(
        &mut self,
        ack: u32,
        pure: bool,
        sacks: &[Option<(u32, u32)>; SACKS_MAX],
        now_ns: u64,
    ) -> Acked {
        if before(self.max, ack) {
            return Acked::Invalid;
        }
        for (start, end) in sacks.iter().flatten() {
            self.note_sack(*start, *end);
        }
        if !before(self.una, ack) {
            let duplicate = ack == self.una && pure && self.is_waiting();
            return if duplicate { self.duplicate() } else { Acked::Nothing };
        }
        let count = ack.wrapping_sub(self.una);
        self.una = ack;
        if before(self.nxt, ack) {
            self.nxt = ack;
        }
        let data = (ack.wrapping_sub(self.base) as usize).min(self.buffer.len());
        if !before(ack, self.base) {
            self.forget(data);
        }
        self.sacked.retain(|(_, end)| before(ack, *end));
        if let Some((seq, sent_ns)) = self.timed
            && !before(ack, seq)
        {
            self.rtt.measured(now_ns.saturating_sub(sent_ns));
            self.timed = None;
        }
        self.rtt.progressed();
        self.timeouts = 0;
        let again = self.is_waiting().then(|| now_ns + self.rtt.timeout_ns());
        self.deadline_ns = again;
        self.grow(count, ack);
        Acked::Progress(count)
    }

    fn forget(&mut self, data: usize) {
        if data == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = VecDeque::new();
            }
        } else {
            self.buffer.drain(..data);
        }
        self.base = self.base.wrapping_add(data as u32);
    }

    fn grow(&mut self, count: u32, ack: u32) {
        self.duplicates = 0;
        if let Some(recover) = self.recover {
            if before(ack, recover) {
                // A partial acknowledgement: the next hole is lost, too (RFC 6582, section 3.2).
                self.repeat = ack;
                self.congestion = self.congestion.saturating_sub(count).max(self.mss) + self.mss;
            } else {
                self.recover = None;
                self.congestion = self.threshold;
            }
            return;
        }
        let gain = if self.congestion < self.threshold {
            // Slow start, by as much as was acknowledged: acknowledgements are few and large here.
            count
        } else {
            (u64::from(self.mss) * u64::from(count) / u64::from(self.congestion)).max(1) as u32
        };
        self.congestion = self.congestion.saturating_add(gain).min(WINDOW_MAX);
    }

    fn duplicate(&mut self) -> Acked {
        self.duplicates += 1;
        if self.recover.is_some() {
            self.congestion = self.congestion.saturating_add(self.mss).min(WINDOW_MAX);
            return if self.sacked.is_empty() { Acked::Nothing } else { Acked::Repeat };
        }
        if self.duplicates < DUPLICATES {
            return Acked::Nothing;
        }
        self.lose();
        self.congestion = self.threshold + DUPLICATES * self.mss;
        self.recover = Some(self.max);
        self.repeat = self.una;
        Acked::Repeat
    }

    /// Halves what may be under way.
    fn lose(&mut self) {
        let flight = self.max.wrapping_sub(self.una);
        self.threshold = (flight / 2).max(2 * self.mss);
        self.timed = None;
    }

    fn note_sack(&mut self, start: u32, end: u32) {
        let sane = before(self.una, start) && before(start, end) && !before(self.max, end);
        if !sane {
            return;
        }
        let (mut start, mut end) = (start, end);
        self.sacked.retain(|(from, to)| {
            let apart = before(*to, start) || before(end, *from);
            if !apart {
                start = if before(*from, start) { *from } else { start };
                end = if before(end, *to) { *to } else { end };
            }
            apart
        });
        if self.sacked.len() < SACKED_MAX {
            let at = self.sacked.partition_point(|(from, _)| before(*from, start));
            self.sacked.insert(at, (start, end));
        }
    }

    /// In recovery, the next piece to repeat: sequence number and most bytes.
    pub(crate) fn next_hole(&mut self) -> Option<(u32, usize)> {
        self.recover?;
        let mut at = if before(self.repeat, self.una) { self.una } else { self.repeat };
        // Without SACK only the oldest segment is known to be lost.
        let top = self.sacked.back().map_or(self.una.wrapping_add(1), |(_, end)| *end);
        let mut most = self.mss;
        for (start, end) in &self.sacked {
            if !before(at, *start) && before(at, *end) {
                at = *end;
            } else if before(at, *start) {
                most = most.min(start.wrapping_sub(at));
                break;
            }
        }
        if !before(at, top) || !before(at, self.data_end()) {
            return None;
        }
        let most = most.min(self.data_end().wrapping_sub(at));
        self.repeat = at.wrapping_add(most);
        Some((at, most as usize))
    }

    /// The oldest segment was not acknowledged in time: all from there is sent again, slowly.
    pub(crate) fn timed_out(&mut self) {
        if self.window == 0 && !before(self.una, self.base) {
            self.probe = true;
        } else {
            self.lose();
            self.congestion = self.mss;
        }
        self.recover = None;
        self.duplicates = 0;
        self.sacked.clear();
        self.nxt = self.una;
        self.timed = None;
        self.rtt.timed_out();
        self.timeouts += 1;
        self.deadline_ns = None;
    }

    /// How many bytes may be sent now, at most `most` in one piece.
    pub(crate) fn allowance(&self, most: usize) -> usize {
        let flight = self.nxt.wrapping_sub(self.una);
        let room = self.window.min(self.congestion).saturating_sub(flight);
        let unsent = self.data_end().wrapping_sub(self.nxt);
        // FIN was sent: `nxt` is one beyond the data.
        let unsent = if before(self.data_end(), self.nxt) { 0 } else { unsent };
        let len = unsent.min(room).min(most as u32);
        // Silly windows are not filled while something is under way (RFC 9293, section 3.8.6.2.1).
        if len < unsent && len < self.mss && flight > 0 {
            return 0;
        }
        if len == 0 && self.probe && unsent > 0 { 1 } else { len as usize }
    }

    /// The data from sequence number `seq`, at most `len` bytes, in two pieces.
    pub(crate) fn data(&self, seq: u32, len: usize) -> (&[u8], &[u8]) {
        let from = (seq.wrapping_sub(self.base) as usize).min(self.buffer.len());
        let end = (from + len).min(self.buffer.len());
        let (first, second) = self.buffer.as_slices();
        let split = first.len();
        let left = &first[from.min(split)..end.min(split)];
        let right = &second[from.max(split) - split..end.max(split) - split];
        (left, right)
    }

    /// `count` sequence numbers from `nxt` were sent.
    pub(crate) fn sent(&mut self, count: u32, now_ns: u64) {
        let is_new = !before(self.nxt, self.max);
        self.nxt = self.nxt.wrapping_add(count);
        self.probe = false;
        if before(self.max, self.nxt) {
            self.max = self.nxt;
        }
        if is_new && self.timed.is_none() {
            self.timed = Some((self.nxt, now_ns));
        }
        self.arm(now_ns);
    }

    /// Starts the timer, if it does not run.
    pub(crate) fn arm(&mut self, now_ns: u64) {
        if self.deadline_ns.is_none() {
            self.deadline_ns = Some(now_ns + self.rtt.timeout_ns());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SACKS: [Option<(u32, u32)>; SACKS_MAX] = [None; SACKS_MAX];

    /// A sender whose SYN was acknowledged, with `bytes` to send and a large window.
    fn sender(bytes: usize) -> Sender {
        let mut sender = Sender::new(u32::MAX - 500, 100);
        sender.sent(1, 0);
        assert_eq!(sender.acked(sender.base, false, &NO_SACKS, 1_000_000), Acked::Progress(1));
        sender.set_window(0, sender.base, 1 << 20);
        sender.buffer.extend((0..bytes).map(|at| at as u8));
        sender
    }

    fn send_all(sender: &mut Sender, most: usize) -> usize {
        let mut total = 0;
        loop {
            let len = sender.allowance(most);
            if len == 0 {
                return total;
            }
            sender.sent(len as u32, 2_000_000);
            total += len;
        }
    }

    #[test]
    fn the_first_flight_is_ten_segments_and_doubles() {
        let mut sender = sender(10_000);
        assert_eq!(send_all(&mut sender, 100), 1000);
        let ack = sender.base.wrapping_add(1000);
        assert_eq!(sender.acked(ack, true, &NO_SACKS, 3_000_000), Acked::Progress(1000));
        assert_eq!(send_all(&mut sender, 100), 2000);
        assert_eq!(sender.base, ack);
    }

    #[test]
    fn three_duplicates_repeat_the_oldest_segment() {
        let mut sender = sender(1000);
        send_all(&mut sender, 100);
        let first = sender.una;
        assert_eq!(sender.acked(first, true, &NO_SACKS, 0), Acked::Nothing);
        assert_eq!(sender.acked(first, true, &NO_SACKS, 0), Acked::Nothing);
        assert_eq!(sender.acked(first, true, &NO_SACKS, 0), Acked::Repeat);
        assert_eq!(sender.next_hole(), Some((first, 100)));
        assert_eq!(sender.next_hole(), None, "nothing else is known to be lost");
        // A partial acknowledgement repeats the next hole, a full one ends recovery.
        let second = first.wrapping_add(300);
        assert_eq!(sender.acked(second, true, &NO_SACKS, 0), Acked::Progress(300));
        assert_eq!(sender.next_hole(), Some((second, 100)));
        assert_eq!(sender.acked(sender.max, true, &NO_SACKS, 0), Acked::Progress(700));
        assert_eq!(sender.next_hole(), None);
    }

    #[test]
    fn sack_tells_all_holes() {
        let mut sender = sender(1000);
        send_all(&mut sender, 100);
        let una = sender.una;
        let at = |bytes: u32| una.wrapping_add(bytes);
        let sacks = [Some((at(100), at(200))), Some((at(300), at(500))), None];
        for _ in 0..3 {
            sender.acked(una, true, &sacks, 0);
        }
        assert_eq!(sender.next_hole(), Some((at(0), 100)));
        assert_eq!(sender.next_hole(), Some((at(200), 100)));
        assert_eq!(sender.next_hole(), None);
    }

    #[test]
    fn a_timeout_sends_all_again_slowly() {
        let mut sender = sender(1000);
        send_all(&mut sender, 100);
        sender.timed_out();
        assert_eq!(send_all(&mut sender, 100), 100);
        assert_eq!(sender.nxt, sender.una.wrapping_add(100));
    }

    #[test]
    fn a_closed_window_is_probed_with_one_byte() {
        let mut sender = sender(1000);
        sender.set_window(1, sender.una, 0);
        assert_eq!(sender.allowance(100), 0);
        sender.timed_out();
        assert_eq!(sender.allowance(100), 1);
        sender.sent(1, 0);
        assert_eq!(sender.allowance(100), 0);
    }

    #[test]
    fn what_was_never_sent_cannot_be_acknowledged() {
        let mut sender = sender(100);
        assert_eq!(sender.acked(sender.max.wrapping_add(1), true, &NO_SACKS, 0), Acked::Invalid);
    }
}
