//! A network interface: frames between a guest's rings and a TAP or a socket, without a copy in
//! between: the kernel reads and writes the ring itself.

use core::sync::atomic::Ordering;

use shoal_unikernel_abi::ring::{
    DATA_OFFSET, FRAME_BYTES_MAX, RECEIVE_HEADER_OFFSET, RECORD_ALIGN, RECORD_HEADER_BYTES,
    RingHeader, SKIP, record_bytes,
};

use super::Stopped::Broken;
use super::{HostError, Stopped};
use crate::stats::{Stats, add};
use crate::sys;

/// Bytes of `virtio_net_hdr_v1`, which a TAP or socket has before each frame.
pub const VNET_BYTES: usize = 12;
/// Most frames that are moved in each direction in one call, so that neither starves the other.
const BATCH_MAX: usize = 256;
/// Shortest frame: its addresses and type.
const FRAME_BYTES_MIN: usize = 14;
/// Ethernet header and one VLAN tag, which the MTU does not count.
const LINK_BYTES: usize = 18;

/// One side of a ring that the guest produces.
#[derive(Debug)]
struct Consumer {
    header: *const RingHeader,
    data: *const u8,
    capacity: u64,
    consumed: u64,
}

/// One side of a ring that the guest consumes.
#[derive(Debug)]
struct Producer {
    header: *const RingHeader,
    data: *mut u8,
    capacity: u64,
    produced: u64,
}

/// A frame in a ring.
#[derive(Clone, Copy, Debug)]
struct Record {
    start: *const u8,
    len: usize,
    bytes: u64,
}

/// A network interface.
#[derive(Debug)]
pub struct Net {
    /// Index in the manifest.
    pub index: usize,
    fd: i32,
    send: Consumer,
    receive: Producer,
    frame_max: usize,
    send_blocked: bool,
    receive_full: bool,
}

impl Net {
    /// Serves the rings in `region`, whose capacities are written there, through `fd`.
    ///
    /// # Safety
    /// `region` is `region_bytes(capacity, capacity)` zeroed bytes at a page boundary that stay
    /// mapped; `capacity` is a power of two and has room for two of the largest frames.
    #[must_use]
    pub unsafe fn new(index: usize, fd: i32, region: *mut u8, capacity: u64, mtu: u16) -> Self {
        let send = region.cast::<RingHeader>();
        let receive = region.wrapping_add(RECEIVE_HEADER_OFFSET).cast::<RingHeader>();
        // SAFETY: both headers lie in the region, aligned; the guest does not run yet.
        unsafe {
            (*send).capacity.store(capacity, Ordering::Relaxed);
            (*receive).capacity.store(capacity, Ordering::Relaxed);
            // The tender looks at the ring only in calls: it always wants the doorbell.
            (*send).consumer_sleeps.store(1, Ordering::Relaxed);
        }
        let data = region.wrapping_add(DATA_OFFSET);
        let receive_data = data.wrapping_add(capacity as usize);
        Self {
            index,
            fd,
            send: Consumer { header: send, data, capacity, consumed: 0 },
            receive: Producer { header: receive, data: receive_data, capacity, produced: 0 },
            frame_max: usize::from(mtu.max(1500)) + LINK_BYTES,
            send_blocked: false,
            receive_full: false,
        }
    }

    /// Takes the largest frames from the TAP.
    pub const fn take_offload(&mut self) {
        self.frame_max = FRAME_BYTES_MAX;
    }

    /// Moves frames both ways.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve(&mut self, stats: &mut Stats) -> Result<bool, Stopped> {
        let had_waiter = self.send.producer_waits();
        let moved = self.serve_send(stats)?;
        self.serve_receive(stats)?;
        Ok(self.receive.has_something() || (had_waiter && moved))
    }

    /// The file and what to wait for.
    #[must_use]
    pub const fn interest(&self) -> (i32, i16) {
        let read = if self.receive_full { 0 } else { libc::POLLIN };
        let write = if self.send_blocked { libc::POLLOUT } else { 0 };
        (self.fd, read | write)
    }

    /// From the guest. Answers whether there is more room in the ring than before.
    fn serve_send(&mut self, stats: &mut Stats) -> Result<bool, Stopped> {
        self.send_blocked = false;
        let before = self.send.consumed;
        for _ in 0..BATCH_MAX {
            let Some(record) = self.send.peek()? else { break };
            let start = record.start.wrapping_add(RECORD_HEADER_BYTES - VNET_BYTES);
            // SAFETY: header and frame lie in the ring, as `peek` checked.
            let answer = unsafe { sys::write(self.fd, start, VNET_BYTES + record.len) };
            if answer == -(libc::EINTR as isize) {
                continue;
            }
            // ENOBUFS from a socket means what EAGAIN does: its queue is full.
            if answer == -(libc::EAGAIN as isize) {
                self.send_blocked = true;
                break;
            }
            if let Some(error) = HostError::of(answer) {
                return Err(Stopped::Gone(error));
            }
            self.send.take(record.bytes);
            self.count_sent(stats, record, answer);
        }
        self.send.publish();
        Ok(self.send.consumed != before)
    }

    fn count_sent(&self, stats: &mut Stats, record: Record, answer: isize) {
        if stats.captures() {
            let frame = record.start.wrapping_add(RECORD_HEADER_BYTES);
            // SAFETY: the frame lies in the ring, as `peek` checked.
            unsafe { stats.capture(self.index, true, frame, record.len) };
        }
        let Some(counters) = stats.device(self.index) else { return };
        if answer < 0 {
            // An interface that is down, or a header that the kernel refuses: the frame is lost,
            // as on any wire.
            add(&counters.sent_dropped, 1);
        } else {
            add(&counters.sent_frames, 1);
            add(&counters.sent_bytes, record.len as u64);
        }
    }

    /// To the guest.
    fn serve_receive(&mut self, stats: &mut Stats) -> Result<(), Stopped> {
        self.receive_full = false;
        let need = record_bytes(self.frame_max) as u64;
        for _ in 0..BATCH_MAX {
            let Some((place, skipped)) = self.receive.room(need)? else {
                self.receive_full = true;
                break;
            };
            let start = place.wrapping_add(RECORD_HEADER_BYTES - VNET_BYTES);
            let room = VNET_BYTES + self.frame_max;
            // SAFETY: `room` bytes of a record lie in the ring, as `Producer::room` checked.
            let answer = unsafe { sys::read(self.fd, start, room) };
            let Ok(count) = usize::try_from(answer) else {
                if answer == -(libc::EINTR as isize) {
                    continue;
                }
                if let Some(error) = HostError::of(answer) {
                    return Err(Stopped::Gone(error));
                }
                // Any other error but "nothing there" would come again at once: it is not asked
                // for until the guest waits the next time.
                self.receive_full = answer != -(libc::EAGAIN as isize);
                break;
            };
            let Some(len) = count.checked_sub(VNET_BYTES).filter(|len| *len >= FRAME_BYTES_MIN)
            else {
                if count == 0 {
                    // The peer of a socket is gone: nothing more will come.
                    self.receive_full = true;
                    break;
                }
                if let Some(counters) = stats.device(self.index) {
                    add(&counters.received_dropped, 1);
                }
                continue;
            };
            self.receive.put(place, len, skipped);
            if stats.captures() {
                let frame = place.wrapping_add(RECORD_HEADER_BYTES);
                // SAFETY: the frame was just read into the ring.
                unsafe { stats.capture(self.index, false, frame, len) };
            }
            if let Some(counters) = stats.device(self.index) {
                add(&counters.received_frames, 1);
                add(&counters.received_bytes, len as u64);
            }
        }
        self.receive.publish(self.receive_full);
        Ok(())
    }
}

impl Consumer {
    const fn header(&self) -> &RingHeader {
        // SAFETY: mapped for as long as the device is served; all its fields are atomic.
        unsafe { &*self.header }
    }

    fn producer_waits(&self) -> bool {
        self.header().producer_waits.load(Ordering::Relaxed) != 0
    }

    /// The next record, which stays the guest's until [`Self::take`].
    fn peek(&mut self) -> Result<Option<Record>, Stopped> {
        let produced = self.header().produced.load(Ordering::Acquire);
        // A second skip would be at place 0, which skips nothing.
        for _ in 0..2 {
            let pending = produced.wrapping_sub(self.consumed);
            if pending == 0 {
                return Ok(None);
            }
            if pending > self.capacity || !pending.is_multiple_of(RECORD_ALIGN as u64) {
                return Err(Broken("the sending ring's position is out of range"));
            }
            let place = self.consumed & (self.capacity - 1);
            let rest = self.capacity - place;
            let start = self.data.wrapping_add(place as usize);
            // SAFETY: records begin at multiples of 16 within the ring, so that there is room for
            // a header, aligned. Read once: the guest can change it at any time.
            let len = unsafe { start.cast::<u32>().read_volatile() };
            if len == SKIP && place != 0 {
                if pending < rest {
                    return Err(Broken("a record skips more than was produced"));
                }
                self.consumed += rest;
                continue;
            }
            let len = len as usize;
            if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
                return Err(Broken("a frame in the sending ring has an impossible length"));
            }
            let bytes = record_bytes(len) as u64;
            if bytes > rest || bytes > pending {
                return Err(Broken("a record reaches beyond the end of the sending ring"));
            }
            return Ok(Some(Record { start, len, bytes }));
        }
        Err(Broken("the sending ring skips twice"))
    }

    const fn take(&mut self, bytes: u64) {
        self.consumed = self.consumed.wrapping_add(bytes);
    }

    fn publish(&self) {
        self.header().consumed.store(self.consumed, Ordering::Release);
    }
}

impl Producer {
    const fn header(&self) -> &RingHeader {
        // SAFETY: mapped for as long as the device is served; all its fields are atomic.
        unsafe { &*self.header }
    }

    /// Whether the guest has not consumed everything.
    fn has_something(&self) -> bool {
        self.header().consumed.load(Ordering::Acquire) != self.produced
    }

    /// Where a record of `need` bytes has room, and how many bytes before the end are skipped for
    /// it once there is a frame.
    fn room(&self, need: u64) -> Result<Option<(*mut u8, u64)>, Stopped> {
        let consumed = self.header().consumed.load(Ordering::Acquire);
        let used = self.produced.wrapping_sub(consumed);
        if used > self.capacity || !used.is_multiple_of(RECORD_ALIGN as u64) {
            return Err(Broken("the receiving ring's position is out of range"));
        }
        let free = self.capacity - used;
        let place = self.produced & (self.capacity - 1);
        let rest = self.capacity - place;
        if rest >= need {
            let at = self.data.wrapping_add(place as usize);
            return Ok((free >= need).then_some((at, 0)));
        }
        Ok((free >= rest + need).then_some((self.data, rest)))
    }

    /// Completes a record whose frame was read.
    fn put(&mut self, place: *mut u8, len: usize, skipped: u64) {
        if skipped > 0 {
            let at = (self.produced & (self.capacity - 1)) as usize;
            // SAFETY: records begin at multiples of 16 within the ring; `skipped` is not 0, so
            // that there is room for a header up to its end.
            unsafe { self.data.wrapping_add(at).cast::<u32>().write_volatile(SKIP) };
        }
        // SAFETY: `room` answered the place, aligned, with room for the record. At most
        // FRAME_BYTES_MAX was asked for, which fits into 32 bits.
        unsafe { place.cast::<u32>().write_volatile(len as u32) };
        self.produced = self.produced.wrapping_add(skipped + record_bytes(len) as u64);
    }

    fn publish(&self, full: bool) {
        let header = self.header();
        header.produced.store(self.produced, Ordering::Release);
        header.producer_waits.store(u32::from(full), Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
