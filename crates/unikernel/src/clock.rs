//! Reading the time: from the clock page in an image, from the system in a hosted program.

#[cfg(any(shoal_image, test))]
use core::sync::atomic::Ordering;

#[cfg(any(shoal_image, test))]
use shoal_unikernel_abi::clock::{ClockPage, SHIFT};

#[cfg(shoal_image)]
use crate::boot;

/// The monitor's clock page.
#[cfg(shoal_image)]
fn page() -> Option<&'static ClockPage> {
    let address = boot::info()?.clock as *const ClockPage;
    // SAFETY: the monitor maps the page, read-only, for as long as the instance runs.
    unsafe { address.as_ref() }
}

#[cfg(any(shoal_image, test))]
/// Reads `(monotonic, wall)` nanoseconds of `page` when the counter stands at `tsc`.
fn read(page: &ClockPage, tsc: impl Fn() -> u64) -> (u64, u64) {
    loop {
        let before = page.sequence.load(Ordering::Acquire);
        let base = page.tsc_base.load(Ordering::Relaxed);
        let multiplier = page.multiplier.load(Ordering::Relaxed);
        let mono_base = page.mono_base_ns.load(Ordering::Relaxed);
        let offset = page.wall_offset_ns.load(Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::Acquire);
        if before & 1 == 0 && page.sequence.load(Ordering::Relaxed) == before {
            // Counters of two processors may differ by a few cycles: never go below the base.
            let cycles = u128::from(tsc().saturating_sub(base));
            let passed = (cycles * u128::from(multiplier)) >> SHIFT;
            let mono = mono_base.wrapping_add(passed as u64);
            return (mono, mono.wrapping_add(offset));
        }
        core::hint::spin_loop();
    }
}

#[cfg(shoal_image)]
/// The time stamp counter; 0 where there is none, so that the clock shows the page's base.
fn counter() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction, and the monitor leaves it allowed.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Nanoseconds since an unspecified start, never going back.
#[cfg(shoal_image)]
pub(crate) fn monotonic_ns() -> u64 {
    page().map_or(0, |page| read(page, counter).0)
}

/// Nanoseconds since 1970-01-01T00:00:00Z.
#[cfg(shoal_image)]
pub(crate) fn wall_ns() -> u64 {
    page().map_or(0, |page| read(page, counter).1)
}

/// Nanoseconds since an unspecified start, never going back.
#[cfg(not(shoal_image))]
pub(crate) fn monotonic_ns() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    // One nanosecond more: 0 means "do not sleep" in calls.
    START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64 + 1
}

/// Nanoseconds since 1970-01-01T00:00:00Z.
#[cfg(not(shoal_image))]
pub(crate) fn wall_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn cycles_become_nanoseconds() {
        let page = ClockPage {
            sequence: AtomicU64::new(4),
            tsc_base: AtomicU64::new(1_000),
            // Two cycles are a nanosecond.
            multiplier: AtomicU64::new(1 << (SHIFT - 1)),
            mono_base_ns: AtomicU64::new(50),
            wall_offset_ns: AtomicU64::new(7_000),
        };
        assert_eq!(read(&page, || 1_000), (50, 7_050));
        assert_eq!(read(&page, || 3_000), (1_050, 8_050));
        assert_eq!(read(&page, || 900), (50, 7_050), "a counter behind the base");
        let day = 86_400_000_000_000;
        assert_eq!(read(&page, || 1_000 + 2 * day).0, 50 + day);
    }
}
