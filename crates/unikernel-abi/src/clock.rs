//! The clock page: time without leaving the guest.
//!
//! `nanoseconds = mono_base_ns + ((tsc - tsc_base) * multiplier >> SHIFT)` with a 128-bit product.
//! The tender may rewrite the page whenever the guest is in a call; `sequence` is odd meanwhile.

/// Right shift of the product.
pub const SHIFT: u32 = 32;

/// See the module. Mapped read-only for the guest.
#[derive(Debug)]
#[repr(C)]
pub struct ClockPage {
    /// Odd while the rest is being written.
    pub sequence: core::sync::atomic::AtomicU64,
    /// Time stamp counter at the bases.
    pub tsc_base: core::sync::atomic::AtomicU64,
    /// Nanoseconds for each cycle of the counter, times two to the power of [`SHIFT`].
    pub multiplier: core::sync::atomic::AtomicU64,
    /// Monotonic time at `tsc_base`, in nanoseconds since an unspecified start.
    pub mono_base_ns: core::sync::atomic::AtomicU64,
    /// What to add to monotonic time for nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_offset_ns: core::sync::atomic::AtomicU64,
}
