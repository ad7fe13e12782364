//! The receiving half of a connection: order, window, acknowledgements.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::segment::before;

/// Most ranges that are kept ahead of a gap. More than that many holes at once means that almost
/// everything was lost; the peer sends it again.
const RANGES_MAX: usize = 32;
/// Shift of the windows that are told to the peer: up to 8 MB in steps of 128 bytes.
pub(crate) const SCALE: u8 = 7;
/// A receive buffer larger than this is given back when it is empty.
const KEEP_BYTES: usize = 16 * 1024;

/// Data that arrived ahead of a gap: sorted ranges that neither touch nor overlap.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    ranges: Vec<(u32, Vec<u8>)>,
}

impl Ahead {
    /// Keeps `data`, which begins at `seq`, beyond `next`.
    pub(crate) fn insert(&mut self, next: u32, seq: u32, data: &[u8]) {
        // Everything is compared as distance from `next`, which does not wrap.
        let far = |seq: u32| seq.wrapping_sub(next) as usize;
        let (mut start, mut data) = (far(seq), data);
        let mut at = 0;
        while !data.is_empty() {
            // Skip the ranges that end before the data, and cut off what is there already.
            while let Some((from, bytes)) = self.ranges.get(at) {
                let (from, end) = (far(*from), far(*from) + bytes.len());
                if end < start {
                    at += 1;
                    continue;
                }
                if from <= start {
                    let known = (end - start).min(data.len());
                    data = &data[known..];
                    start += known;
                    at += 1;
                    continue;
                }
                break;
            }
            if data.is_empty() {
                return;
            }
            let room = self.ranges.get(at).map_or(usize::MAX, |(from, _)| far(*from) - start);
            let (now, later) = data.split_at(data.len().min(room));
            if !self.put(next, at, start, now) {
                return;
            }
            start += now.len();
            data = later;
            at = 0;
        }
    }

    /// Puts data that overlaps nothing before range `at`, joined to its neighbours. False: no room.
    fn put(&mut self, next: u32, at: usize, start: usize, data: &[u8]) -> bool {
        let far = |seq: u32| seq.wrapping_sub(next) as usize;
        let seq = next.wrapping_add(start as u32);
        if let Some((from, bytes)) =
            at.checked_sub(1).and_then(|before| self.ranges.get_mut(before))
            && far(*from) + bytes.len() == start
        {
            bytes.extend_from_slice(data);
        } else if self.ranges.len() < RANGES_MAX {
            self.ranges.insert(at, (seq, data.to_vec()));
        } else {
            return false;
        }
        // A range that begins where this one ends is reported with it.
        for left in (0..self.ranges.len().saturating_sub(1)).rev() {
            let end = far(self.ranges[left].0) + self.ranges[left].1.len();
            if end == far(self.ranges[left + 1].0) {
                let (_, bytes) = self.ranges.remove(left + 1);
                self.ranges[left].1.extend_from_slice(&bytes);
            }
        }
        true
    }

    /// Takes the range that begins at or before `next`, without what lies before `next`.
    pub(crate) fn take(&mut self, next: u32) -> Option<(usize, Vec<u8>)> {
        let (from, bytes) = self.ranges.first()?;
        if before(next, *from) {
            return None;
        }
        let known = (next.wrapping_sub(*from) as usize).min(bytes.len());
        let (_, bytes) = self.ranges.remove(0);
        Some((known, bytes))
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.ranges.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// The ranges as the peer is told.
    pub(crate) fn sacks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.ranges.iter().map(|(from, bytes)| (*from, from.wrapping_add(bytes.len() as u32)))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The next sequence number that is expected.
    pub(crate) next: u32,
    /// In order, for the application.
    pub(crate) buffer: VecDeque<u8>,
    pub(crate) ahead: Ahead,
    /// Where the peer's FIN stands, once it arrived.
    fin: Option<u32>,
    /// The FIN was reached: there will be no more.
    pub(crate) is_finished: bool,
    /// Right edge of the window that the peer was told.
    told: u32,
    /// Shift of the windows that are told; 0 if the peer does not scale.
    pub(crate) scale: u8,
    /// Bytes that the peer was not told of yet.
    pub(crate) untold: u32,
    /// The peer must be answered at once.
    pub(crate) must_ack: bool,
}

impl Receiver {
    /// Expects `next`; the peer may send `window` bytes.
    pub(crate) fn new(next: u32, window: usize) -> Self {
        Self {
            next,
            buffer: VecDeque::new(),
            ahead: Ahead::default(),
            fin: None,
            is_finished: false,
            told: next.wrapping_add(window.min(usize::from(u16::MAX)) as u32),
            scale: 0,
            untold: 0,
            must_ack: false,
        }
    }

    /// The window that the peer may use.
    pub(crate) const fn window(&self) -> u32 {
        self.told.wrapping_sub(self.next)
    }

    /// Whether a segment of `len` sequence numbers at `seq` lies in the window (RFC 9293, section
    /// 3.10.7.4, the first check).
    pub(crate) fn accepts(&self, seq: u32, len: u32) -> bool {
        let window = self.window();
        let within = |seq: u32| seq.wrapping_sub(self.next) < window;
        match (len, window) {
            (0, 0) => seq == self.next,
            (0, _) => within(seq),
            (_, 0) => false,
            _ => within(seq) || within(seq.wrapping_add(len - 1)),
        }
    }

    /// Takes data (and FIN) of an acceptable segment.
    pub(crate) fn take(&mut self, seq: u32, mut data: &[u8], fin: bool) {
        let mut seq = seq;
        if fin {
            let place = seq.wrapping_add(data.len() as u32);
            if !before(self.told, place) {
                self.fin = Some(place);
            }
        }
        if before(seq, self.next) {
            let known = (self.next.wrapping_sub(seq) as usize).min(data.len());
            data = &data[known..];
            seq = seq.wrapping_add(known as u32);
            // Sent again: the acknowledgement was lost.
            self.must_ack = true;
        }
        let most = self.told.wrapping_sub(seq) as usize;
        data = &data[..data.len().min(most)];
        if seq == self.next {
            self.append(data);
            while let Some((known, bytes)) = self.ahead.take(self.next) {
                // A gap was filled: tell it at once (RFC 5681, section 4.2).
                self.must_ack = true;
                self.append(&bytes[known..]);
            }
        } else if !data.is_empty() {
            self.must_ack = true;
            self.ahead.insert(self.next, seq, data);
        }
        if self.fin == Some(self.next) && !self.is_finished {
            self.next = self.next.wrapping_add(1);
            self.is_finished = true;
            self.must_ack = true;
        }
    }

    fn append(&mut self, data: &[u8]) {
        self.buffer.extend(data);
        self.next = self.next.wrapping_add(data.len() as u32);
        self.untold += data.len() as u32;
    }

    /// Moves the window's right edge for a buffer of `limit` bytes, and answers the window field.
    /// Called when a segment is sent, which tells the peer.
    pub(crate) fn tell(&mut self, limit: usize) -> u16 {
        let mut room = limit.saturating_sub(self.buffer.len()) as u32;
        let most = u32::from(u16::MAX) << self.scale;
        room = room.min(most) >> self.scale << self.scale;
        // The edge never moves back (RFC 9293, section 3.8.6).
        if before(self.told, self.next.wrapping_add(room)) {
            self.told = self.next.wrapping_add(room);
        }
        self.untold = 0;
        self.must_ack = false;
        // Rounded up: rounding down would take back what was told.
        let window = self.window().div_ceil(1 << self.scale);
        window.min(u32::from(u16::MAX)) as u16
    }

    /// Whether the application has read so much that the peer should be told of the new window
    /// (RFC 9293, section 3.8.6.2.2).
    pub(crate) fn should_tell(&self, limit: usize, mss: usize) -> bool {
        let room = limit.saturating_sub(self.buffer.len()) as u32;
        let gain = room.saturating_sub(self.window());
        !self.is_finished
            && gain as usize >= (limit / 2).min(2 * mss).max(1)
            && (self.window() as usize) < limit / 2
    }

    /// Gives data to the application.
    pub(crate) fn read(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.buffer.len());
        let (first, second) = self.buffer.as_slices();
        let split = count.min(first.len());
        to[..split].copy_from_slice(&first[..split]);
        to[split..count].copy_from_slice(&second[..count - split]);
        self.consume(count);
        count
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        if count == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = VecDeque::new();
            }
        } else {
            self.buffer.drain(..count);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: usize = 60_000;

    #[test]
    fn windows_are_checked_as_the_rfc_says() {
        let receiver = Receiver::new(1000, 100);
        for (seq, len, expected) in [
            (1000, 0, true),
            (999, 0, false),
            (1099, 0, true),
            (1100, 0, false),
            (990, 10, false),
            (990, 11, true),
            (1099, 50, true),
            (1100, 1, false),
        ] {
            assert_eq!(receiver.accepts(seq, len), expected, "{seq} {len}");
        }
        let closed = Receiver::new(1000, 0);
        assert!(closed.accepts(1000, 0) && !closed.accepts(1000, 1));
    }

    #[test]
    fn the_window_opens_when_the_application_reads() {
        let mut receiver = Receiver::new(0, 1000);
        receiver.take(0, &[1; 1000], false);
        assert_eq!(receiver.tell(1000), 0);
        assert!(!receiver.should_tell(1000, 100));
        let mut to = [0; 600];
        assert_eq!(receiver.read(&mut to), 600);
        assert!(receiver.should_tell(1000, 100));
        assert_eq!(receiver.tell(1000), 600);
    }

    proptest! {
        /// However segments are cut, repeated, overlapped and mixed up: what comes out is what
        /// was sent, and all of it once everything has arrived.
        #[test]
        fn data_arrives_in_order(
            start in any::<u32>(),
            pieces in proptest::collection::vec((0..3000_usize, 1..700_usize), 1..60),
            order in any::<u64>(),
        ) {
            let total = 3500;
            let sent: Vec<u8> = (0..total).map(|at| (at * 31 % 251) as u8).collect();
            let mut receiver = Receiver::new(start, WINDOW);
            let seq = |at: usize| start.wrapping_add(at as u32);
            for (from, len) in pieces {
                let end = (from + len).min(total);
                receiver.take(seq(from), &sent[from..end], end == total);
                let sacks: Vec<_> = receiver.ahead.sacks().collect();
                prop_assert!(sacks.windows(2).all(|two| before(two[0].1, two[1].0)));
                prop_assert!(receiver.ahead.bytes() <= total);
            }
            let mut rest: Vec<usize> = (0..total).step_by(100).collect();
            let mut state = order;
            for at in (1..rest.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                rest.swap(at, (state >> 33) as usize % (at + 1));
            }
            // Twice: a range may have been refused because there were too many.
            for from in rest.iter().chain(&rest).copied() {
                receiver.take(seq(from), &sent[from..from + 100], from + 100 == total);
            }
            let mut got = alloc::vec![0; total + 10];
            let count = receiver.read(&mut got);
            prop_assert_eq!(&got[..count], &sent[..]);
            prop_assert!(receiver.is_finished);
            prop_assert_eq!(receiver.next, seq(total + 1));
        }
    }
}
