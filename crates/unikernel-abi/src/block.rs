//! The memory that a guest and the tender share for one block device.
//!
//! ```text
//! offset 0                       BlockHeader
//! offset REQUESTS_OFFSET         SLOTS requests; the guest produces
//! offset COMPLETIONS_OFFSET      SLOTS completions; the tender produces
//! offset DATA_OFFSET             SLOTS buffers of BUFFER_BYTES; buffer n belongs to slot n
//! ```
//!
//! Positions only grow; `position % SLOTS` is the place. A slot is the guest's again when its
//! completion was consumed.

use core::sync::atomic::AtomicU64;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Requests that can be under way.
pub const SLOTS: usize = 32;
/// Most bytes of one request.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// Where requests begin.
pub const REQUESTS_OFFSET: usize = 1024;
/// Where completions begin.
pub const COMPLETIONS_OFFSET: usize = 2560;
/// Where buffers begin.
pub const DATA_OFFSET: usize = 4096;
/// Bytes of the whole region.
pub const REGION_BYTES: usize = DATA_OFFSET + SLOTS * BUFFER_BYTES;

/// Both sides' positions, each on its own cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct BlockHeader {
    /// Requests ever made. Written by the guest.
    pub requested: AtomicU64,
    pad0: [u8; 56],
    /// Requests ever taken. Written by the tender.
    pub taken: AtomicU64,
    pad1: [u8; 56],
    /// Completions ever made. Written by the tender.
    pub completed: AtomicU64,
    pad2: [u8; 56],
    /// Completions ever consumed. Written by the guest.
    pub consumed: AtomicU64,
    pad3: [u8; 56],
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// Fills the slot's buffer.
    Read = 1,
    /// Writes the slot's buffer.
    Write = 2,
    /// Makes everything written before it durable.
    Flush = 3,
}

/// A request.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Request {
    /// An [`Operation`].
    pub operation: u32,
    /// The slot whose buffer is used, below [`SLOTS`].
    pub slot: u32,
    /// First sector.
    pub sector: u64,
    /// Bytes, a multiple of [`SECTOR_BYTES`], at most [`BUFFER_BYTES`].
    pub len: u32,
    /// Must be zero.
    pub reserved: [u32; 3],
}

/// A request's end.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Completion {
    /// The slot of the request.
    pub slot: u32,
    /// A [`Status`].
    pub status: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Out of range, not aligned, or a write to a read-only device. Nothing was done.
    Refused = 1,
    /// The medium failed.
    Failed = 2,
}

const _: () = assert!(core::mem::size_of::<BlockHeader>() <= REQUESTS_OFFSET);
const _: () = {
    assert!(core::mem::size_of::<Request>() * SLOTS <= COMPLETIONS_OFFSET - REQUESTS_OFFSET);
    assert!(core::mem::size_of::<Completion>() * SLOTS <= DATA_OFFSET - COMPLETIONS_OFFSET);
};
