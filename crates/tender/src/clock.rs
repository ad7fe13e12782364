//! Fills the clock page: the counter's rate is measured against the kernel's clock, first roughly
//! and then ever better, because the time since the start grows.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use shoal_unikernel_abi::clock::{ClockPage, SHIFT};

use crate::sys;

/// The page is rewritten at most so often: every rewriting costs two system calls.
const REWRITE_NS: u64 = 1_000_000_000;
/// The first rewriting comes earlier: the first measurement was short.
const FIRST_REWRITE_NS: u64 = 10_000_000;

/// The tender's side of the clock page.
#[derive(Debug)]
pub struct Clock {
    page: *const ClockPage,
    tsc_start: u64,
    mono_start_ns: u64,
    tsc_base: u64,
    mono_base_ns: u64,
    multiplier: u64,
    next_ns: u64,
}

/// The counter and the kernel's monotonic clock at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    tsc: u64,
    mono_ns: u64,
}

impl Moment {
    /// Its monotonic time in nanoseconds.
    #[must_use]
    pub const fn ns(&self) -> u64 {
        self.mono_ns
    }

    /// Now: the best of three readings, as one can be interrupted.
    #[must_use]
    pub fn now() -> Self {
        let mut best = (u64::MAX, Self { tsc: 0, mono_ns: 0 });
        for _ in 0..3 {
            let before = sys::tsc();
            let mono_ns = sys::clock_ns(libc::CLOCK_MONOTONIC);
            let width = sys::tsc().wrapping_sub(before);
            if width < best.0 {
                best = (width, Self { tsc: before.wrapping_add(width / 2), mono_ns });
            }
        }
        best.1
    }
}

/// Nanoseconds for each cycle, times two to the power of [`SHIFT`].
fn rate(from: Moment, to: Moment) -> u64 {
    let cycles = u128::from(to.tsc.wrapping_sub(from.tsc).max(1));
    let ns = u128::from(to.mono_ns.saturating_sub(from.mono_ns));
    u64::try_from((ns << SHIFT) / cycles).unwrap_or(u64::MAX).max(1)
}

impl Clock {
    /// Fills the page for the first time; `start` was taken when the tender began.
    ///
    /// # Safety
    /// `page` is valid and stays mapped for as long as the clock is used.
    #[must_use]
    pub unsafe fn start(page: *const ClockPage, start: Moment) -> Self {
        let now = Moment::now();
        let mut clock = Self {
            page,
            tsc_start: start.tsc,
            mono_start_ns: start.mono_ns,
            tsc_base: now.tsc,
            mono_base_ns: now.mono_ns,
            multiplier: rate(start, now),
            next_ns: now.mono_ns + FIRST_REWRITE_NS,
        };
        clock.publish();
        clock
    }

    /// Monotonic time as the guest sees it.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.at(sys::tsc())
    }

    fn at(&self, tsc: u64) -> u64 {
        let cycles = u128::from(tsc.wrapping_sub(self.tsc_base));
        self.mono_base_ns + ((cycles * u128::from(self.multiplier)) >> SHIFT) as u64
    }

    /// Measures again and rewrites the page if it is time. The guest must be in a call.
    pub fn refresh(&mut self, now_ns: u64) {
        if now_ns < self.next_ns {
            return;
        }
        let now = Moment::now();
        let start = Moment { tsc: self.tsc_start, mono_ns: self.mono_start_ns };
        // Time never runs backwards for the guest: if its clock was fast, it stands still until
        // the kernel's has caught up, for some hundred nanoseconds.
        let shown = self.at(now.tsc);
        self.multiplier = rate(start, now);
        self.tsc_base = now.tsc;
        self.mono_base_ns = now.mono_ns.max(shown);
        self.next_ns = now.mono_ns + REWRITE_NS;
        self.publish();
    }

    fn publish(&mut self) {
        let wall = sys::clock_ns(libc::CLOCK_REALTIME);
        let offset = wall.wrapping_sub(sys::clock_ns(libc::CLOCK_MONOTONIC));
        // SAFETY: the page is valid, see `start`; all its fields are atomic.
        let page = unsafe { &*self.page };
        let set = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        let sequence = page.sequence.load(Ordering::Relaxed) | 1;
        set(&page.sequence, sequence);
        fence(Ordering::Release);
        set(&page.tsc_base, self.tsc_base);
        set(&page.multiplier, self.multiplier);
        set(&page.mono_base_ns, self.mono_base_ns);
        set(&page.wall_offset_ns, offset);
        page.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }
}
