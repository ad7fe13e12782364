//! The memory that a guest and a peer share for one network interface: two rings of frames.
//!
//! ```text
//! offset 0            RingHeader of the sending ring (guest produces)
//! offset 512          RingHeader of the receiving ring (guest consumes)
//! offset 4096         sending ring's data: `capacity` bytes, a power of two
//! then                receiving ring's data: `capacity` bytes, a power of two
//! ```
//!
//! A ring has one producer and one consumer. Positions only grow; `position & (capacity - 1)` is
//! the place. A record is a [`RecordHeader`], then the frame, then padding to [`RECORD_ALIGN`], and
//! never wraps: where the rest up to the end is too small, the producer puts a header with length
//! [`SKIP`] there (there is always room for it) and begins at place 0. The producer stores
//! `produced` with release ordering after the record is complete, the consumer stores `consumed`
//! after it no longer needs it.
//!
//! Nothing in here is an address or names a process: the same region can lie between two guests,
//! the one's sending ring being the other's receiving ring. A peer never trusts the other's
//! positions and lengths; one that breaks the rules is ended.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Offset of the receiving ring's header.
pub const RECEIVE_HEADER_OFFSET: usize = 512;
/// Offset of the first ring's data.
pub const DATA_OFFSET: usize = 4096;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: usize = 16;
/// Value of [`RecordHeader::len`]: nothing more up to the end of the ring.
pub const SKIP: u32 = u32::MAX;
/// Longest frame in bytes (with segmentation offload): the largest IPv4 packet and its header.
pub const FRAME_BYTES_MAX: usize = 65_535 + 14;
/// Size of a ring's data in bytes unless another is asked for; holds two largest frames and more.
pub const CAPACITY_DEFAULT: usize = 256 * 1024;

/// Both sides' positions, each on its own cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct RingHeader {
    /// Bytes ever produced. Written by the producer only.
    pub produced: AtomicU64,
    pad0: [u8; 56],
    /// Bytes ever consumed. Written by the consumer only.
    pub consumed: AtomicU64,
    pad1: [u8; 56],
    /// 1 while the consumer sleeps and wants the doorbell. Written by the consumer only.
    pub consumer_sleeps: AtomicU32,
    pad2: [u8; 60],
    /// 1 while the producer waits for room and wants the doorbell. Written by the producer only.
    pub producer_waits: AtomicU32,
    pad3: [u8; 60],
    /// Bytes of the ring's data. Written once, before the guest starts; each side keeps a copy.
    pub capacity: AtomicU64,
    pad4: [u8; 56],
}

const _: () = assert!(core::mem::size_of::<RingHeader>() <= RECEIVE_HEADER_OFFSET);

/// Before each frame. After the length it is `virtio_net_hdr_v1` (Virtual I/O Device 1.2, section
/// 5.1.6), as a TAP with `IFF_VNET_HDR` reads and writes it. All zeros: a complete frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RecordHeader {
    /// Length of the frame in bytes, or [`SKIP`].
    pub len: u32,
    /// [`NEEDS_CHECKSUM`], [`CHECKSUM_VALID`].
    pub flags: u8,
    /// 0: none; 1: TCP over IPv4; 4: TCP over IPv6.
    pub gso_type: u8,
    /// Bytes of all headers, if `gso_type` is not 0.
    pub hdr_len: u16,
    /// Payload bytes of each segment, if `gso_type` is not 0.
    pub gso_size: u16,
    /// Where the checksum begins, if it is needed.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
    /// 0 from a guest, 1 from a TAP.
    pub num_buffers: u16,
}

/// Size of [`RecordHeader`].
pub const RECORD_HEADER_BYTES: usize = 16;
const _: () = assert!(core::mem::size_of::<RecordHeader>() == RECORD_HEADER_BYTES);

/// Bit of [`RecordHeader::flags`]: the checksum is still to be finished.
pub const NEEDS_CHECKSUM: u8 = 1;
/// Bit of [`RecordHeader::flags`]: the checksum was verified or cannot be wrong.
pub const CHECKSUM_VALID: u8 = 2;

/// Room that a frame of `len` bytes takes.
#[must_use]
pub const fn record_bytes(len: usize) -> usize {
    (RECORD_HEADER_BYTES + len).next_multiple_of(RECORD_ALIGN)
}

/// Size of a region whose rings have these capacities.
#[must_use]
pub const fn region_bytes(send_capacity: usize, receive_capacity: usize) -> usize {
    DATA_OFFSET + send_capacity + receive_capacity
}
