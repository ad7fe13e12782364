//! Memory that both ends of a device share, and text that the boot information points to.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::sync::atomic::Ordering;

use shoal_unikernel_abi::boot::Span;
use shoal_unikernel_abi::ring::{RECEIVE_HEADER_OFFSET, RingHeader, region_bytes};

/// Regions begin at multiples of a page, as a monitor's do.
const REGION_ALIGN: usize = 4096;

/// Zeroed memory that is never freed: an instance may use it for as long as the program runs.
pub(super) fn leak_zeroed(bytes: usize) -> *mut u8 {
    let Ok(layout) = Layout::from_size_align(bytes.max(1), REGION_ALIGN) else {
        // Cannot fail: sizes are those of a few devices, far below the address space.
        std::process::abort()
    };
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}

/// Makes the region of a network interface, as a monitor does before the guest starts.
pub(super) fn net_region(capacity: usize) -> Span {
    let bytes = region_bytes(capacity, capacity);
    let memory = leak_zeroed(bytes);
    for offset in [0, RECEIVE_HEADER_OFFSET] {
        // SAFETY: both headers lie inside of the region, aligned, and zeros are valid atomics.
        let header = unsafe { &*memory.add(offset).cast::<RingHeader>() };
        header.capacity.store(capacity as u64, Ordering::Relaxed);
    }
    Span { start: memory as u64, len: bytes as u64 }
}

/// Leaks bytes for the boot information.
pub(super) fn leak(bytes: Vec<u8>) -> Span {
    let bytes: &'static [u8] = bytes.leak();
    Span { start: bytes.as_ptr() as u64, len: bytes.len() as u64 }
}

/// Leaks an array for the boot information.
pub(super) fn leak_array<T: 'static>(items: Vec<T>) -> Span {
    let items: &'static [T] = items.leak();
    Span { start: items.as_ptr() as u64, len: size_of_val(items) as u64 }
}
