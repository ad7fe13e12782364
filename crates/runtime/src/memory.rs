//! The memory of this process: how the C library keeps what was freed.

use crate::process::sys;

/// Threads share this many heaps. With one for each of hundreds of threads, as is usual, each keeps
/// the most that was ever in it.
const HEAPS_MAX: i32 = 2;

/// Keeps the number of heaps small. To be called before the process has threads.
pub fn share_heaps() {
    sys::limit_heaps(HEAPS_MAX);
}

/// Gives the kernel back what is free in all heaps. Takes milliseconds; waits for nobody.
pub fn give_back() {
    sys::trim_heaps();
}
