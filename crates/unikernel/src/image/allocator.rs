//! The allocator of the image's heap.

use core::alloc::{GlobalAlloc, Layout};

use shoal_unikernel_abi::boot::Span;
use talc::TalcCell;
use talc::source::Manual;

/// One allocator for the instance.
struct Heap(TalcCell<Manual>);

// SAFETY: an image has exactly one thread and no interrupts; nothing is ever shared.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

// SAFETY: every call is passed to an allocator that upholds the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract.
        unsafe { self.0.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract.
        unsafe { self.0.realloc(memory, layout, bytes) }
    }
}

/// Gives the heap to the allocator. Called once, before the first allocation.
pub(super) fn start(heap: Span) {
    // SAFETY: the monitor gave this memory to the instance alone, for as long as it runs.
    unsafe {
        // Ignored because: it refuses only a heap too small for anything, and then the first
        // allocation fails and says so.
        let _ = HEAP.0.claim(heap.start as *mut u8, heap.len as usize);
    }
}
