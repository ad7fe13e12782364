//! The one source of chance.
//!
//! What the simulation draws itself comes from [`Dice`]. What libraries draw (the runtime's choice
//! of whom to wake, the order of hash maps) they ask of the system by `getrandom`, which is defined
//! here anew: the same numbers in each process. A seed is one process, so nothing of an earlier one
//! is left over.

use std::sync::atomic::{AtomicU64, Ordering};

/// The golden ratio's fraction: what splitmix64 counts by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

static SYSTEM: AtomicU64 = AtomicU64::new(0);

/// What splitmix64 makes of a count.
fn mix(count: u64) -> u64 {
    let mut z = count;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// In place of the system's: every process gets the same.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() || length == 0 {
        return 0;
    }
    // SAFETY: who calls this gives a buffer of `length` bytes that may be written, as the system's
    // function demands.
    let out = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for bytes in out.chunks_mut(8) {
        let count = SYSTEM.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let drawn = mix(count).to_le_bytes();
        bytes.copy_from_slice(&drawn[..bytes.len()]);
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// One below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// One of `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// Whether something happens that does so `permille` of a thousand times.
    pub fn happens(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of `these`.
    pub fn pick<'a, T>(&mut self, these: &'a [T]) -> Option<&'a T> {
        let at = usize::try_from(self.below(these.len() as u64)).unwrap_or_default();
        these.get(at)
    }
}
