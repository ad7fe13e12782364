//! The two ends of a ring of frames, see [`shoal_unikernel_abi::ring`] for its layout.
//!
//! Frames are built and read where they lie, so that a frame is copied once on its way: between
//! the ring and the socket's buffer. Positions and lengths of the other side are checked: a peer
//! that breaks the rules makes the ring [`Broken`], never this side read or write beyond it.

use core::sync::atomic::{Ordering, fence};

use shoal_unikernel_abi::ring::{
    DATA_OFFSET, FRAME_BYTES_MAX, RECEIVE_HEADER_OFFSET, RECORD_HEADER_BYTES, RecordHeader,
    RingHeader, SKIP, record_bytes, region_bytes,
};

/// The other side broke the rules of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side of a ring stated impossible positions or lengths")]
pub struct Broken;

/// Header and data of one ring.
#[derive(Debug)]
struct Ring {
    header: *const RingHeader,
    data: *mut u8,
    capacity: u64,
}

impl Ring {
    fn header(&self) -> &RingHeader {
        // SAFETY: whoever made the ring vouched for the region; all fields are atomics.
        unsafe { &*self.header }
    }

    /// Address of the place of `position`.
    fn place(&self, position: u64) -> *mut u8 {
        // SAFETY: the mask keeps the place inside of the `capacity` bytes of data.
        unsafe { self.data.add((position & (self.capacity - 1)) as usize) }
    }

    /// Bytes from the place of `position` to the ring's end.
    fn rest(&self, position: u64) -> u64 {
        self.capacity - (position & (self.capacity - 1))
    }

    fn write_header(&self, position: u64, header: RecordHeader) {
        // SAFETY: records begin at multiples of their header's size, so that it fits before the end
        // and is aligned; this side owns the place until it publishes it.
        unsafe { self.place(position).cast::<RecordHeader>().write(header) }
    }
}

/// Both rings of a region, seen from the guest or from its peer.
///
/// # Safety
/// `region` must be aligned to 64 bytes, span `len` bytes, stay valid for as long as the ends are
/// used, be initialised as the layout asks, and have no other user at these ends.
#[must_use]
pub unsafe fn open(region: *mut u8, len: u64, guest: bool) -> Option<(Producer, Consumer)> {
    if (len as usize) < DATA_OFFSET {
        return None;
    }
    let send: *const RingHeader = region.cast();
    // SAFETY: the caller vouches for `len` bytes, of which this is less.
    let receive: *const RingHeader = unsafe { region.add(RECEIVE_HEADER_OFFSET) }.cast();
    // SAFETY: as above; both headers lie inside of the region.
    let (send_capacity, receive_capacity) = unsafe {
        ((*send).capacity.load(Ordering::Relaxed), (*receive).capacity.load(Ordering::Relaxed))
    };
    let least = (2 * record_bytes(FRAME_BYTES_MAX)) as u64;
    let fits = |capacity: u64| capacity.is_power_of_two() && capacity >= least && capacity <= len;
    if !fits(send_capacity)
        || !fits(receive_capacity)
        || region_bytes(send_capacity as usize, receive_capacity as usize) as u64 > len
    {
        return None;
    }
    // SAFETY: checked just now that both lie inside of the region.
    let (send_data, receive_data) =
        unsafe { (region.add(DATA_OFFSET), region.add(DATA_OFFSET + send_capacity as usize)) };
    let first = Ring { header: send, data: send_data, capacity: send_capacity };
    let second = Ring { header: receive, data: receive_data, capacity: receive_capacity };
    let (to, from) = if guest { (first, second) } else { (second, first) };
    Some((Producer::new(to), Consumer::new(from)))
}

/// The end that adds frames.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    produced: u64,
    /// What the other side had consumed when last looked.
    consumed: u64,
    /// Where the reserved record begins.
    reserved: u64,
    reserved_len: usize,
}

impl Producer {
    fn new(ring: Ring) -> Self {
        let produced = ring.header().produced.load(Ordering::Relaxed);
        let consumed = ring.header().consumed.load(Ordering::Acquire);
        Self { ring, produced, consumed, reserved: produced, reserved_len: 0 }
    }

    fn free(&self) -> u64 {
        let used = self.produced.wrapping_sub(self.consumed);
        self.ring.capacity.saturating_sub(used)
    }

    /// Room for a frame of `len` bytes, to be filled and committed. `None`: no room now.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, Broken> {
        debug_assert!(len <= FRAME_BYTES_MAX);
        let wanted = record_bytes(len) as u64;
        let rest = self.ring.rest(self.produced);
        let skipped = if rest < wanted { rest } else { 0 };
        if self.free() < skipped + wanted {
            self.consumed = self.ring.header().consumed.load(Ordering::Acquire);
            if self.produced.wrapping_sub(self.consumed) > self.ring.capacity {
                return Err(Broken);
            }
            if self.free() < skipped + wanted {
                return Ok(None);
            }
        }
        if skipped > 0 {
            let skip = RecordHeader { len: SKIP, ..RecordHeader::default() };
            self.ring.write_header(self.produced, skip);
        }
        self.reserved = self.produced + skipped;
        self.reserved_len = len;
        // SAFETY: `wanted` bytes from the reserved place are free, contiguous (what does not fit
        // before the end begins at place 0) and this side's until they are published.
        Ok(Some(unsafe {
            core::slice::from_raw_parts_mut(
                self.ring.place(self.reserved).add(RECORD_HEADER_BYTES),
                len,
            )
        }))
    }

    /// Publishes the reserved frame; `header.len` may be less than was reserved.
    pub fn commit(&mut self, header: RecordHeader) {
        debug_assert!(header.len as usize <= self.reserved_len);
        self.ring.write_header(self.reserved, header);
        self.produced = self.reserved + record_bytes(header.len as usize) as u64;
        self.ring.header().produced.store(self.produced, Ordering::Release);
    }

    /// Says that this side waits for room (or no longer does).
    pub fn set_waits(&self, waits: bool) {
        self.ring.header().producer_waits.store(u32::from(waits), Ordering::Release);
    }

    /// Whether the other side has taken everything.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ring.header().consumed.load(Ordering::Acquire) == self.produced
    }
}

/// The end that takes frames.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    consumed: u64,
    /// What the other side had produced when last looked.
    produced: u64,
    /// Room of the record that was given out.
    taken: u64,
}

impl Consumer {
    fn new(ring: Ring) -> Self {
        let consumed = ring.header().consumed.load(Ordering::Relaxed);
        Self { ring, consumed, produced: consumed, taken: 0 }
    }

    /// The next frame, where it lies; to be released. `None`: there is none.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn front(&mut self) -> Result<Option<(RecordHeader, &mut [u8])>, Broken> {
        loop {
            if self.consumed == self.produced {
                self.produced = self.ring.header().produced.load(Ordering::Acquire);
                let waiting = self.produced.wrapping_sub(self.consumed);
                if waiting == 0 {
                    return Ok(None);
                }
                if waiting > self.ring.capacity
                    || !waiting.is_multiple_of(RECORD_HEADER_BYTES as u64)
                {
                    return Err(Broken);
                }
            }
            let rest = self.ring.rest(self.consumed);
            let waiting = self.produced.wrapping_sub(self.consumed);
            let place = self.ring.place(self.consumed);
            // SAFETY: records begin at multiples of their header's size inside of the data. Copied
            // once, so that the other side cannot change what was checked.
            let header = unsafe { place.cast::<RecordHeader>().read_volatile() };
            if header.len == SKIP {
                if rest > waiting {
                    return Err(Broken);
                }
                self.consumed += rest;
                self.ring.header().consumed.store(self.consumed, Ordering::Release);
                continue;
            }
            let taken = record_bytes(header.len as usize) as u64;
            if header.len as usize > FRAME_BYTES_MAX || taken > rest || taken > waiting {
                return Err(Broken);
            }
            self.taken = taken;
            // SAFETY: checked just now that the frame lies inside of the data and was published.
            let frame = unsafe {
                core::slice::from_raw_parts_mut(place.add(RECORD_HEADER_BYTES), header.len as usize)
            };
            return Ok(Some((header, frame)));
        }
    }

    /// Gives the room of the frame that was taken back to the other side.
    pub fn release(&mut self) {
        self.consumed += core::mem::take(&mut self.taken);
        self.ring.header().consumed.store(self.consumed, Ordering::Release);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.header().produced.load(Ordering::Acquire) == self.consumed
    }

    /// Says that this side is going to sleep and wants the doorbell (or no longer does).
    pub fn set_sleeps(&self, sleeps: bool) {
        self.ring.header().consumer_sleeps.store(u32::from(sleeps), Ordering::Release);
        // The flag must be seen before this side looks whether the ring is empty.
        fence(Ordering::SeqCst);
    }

    /// Whether the other side waits for room and wants the doorbell.
    #[must_use]
    pub fn producer_waits(&self) -> bool {
        self.ring.header().producer_waits.load(Ordering::Acquire) == 1
    }
}
