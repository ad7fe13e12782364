//! Time as a test may count it: without the moments in which the machine let nothing run.
//!
//! Tests hold how fast the product reacts. Machines that run them are shared: all of them stands
//! still for seconds now and then, and a wall clock counts that against the product.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the clock looks whether it runs.
const TICK: Duration = Duration::from_millis(5);
/// What one look counts for at most. A look that comes later was not let run.
const TICK_MAX: Duration = Duration::from_millis(20);

/// The time, in nanoseconds, during which this process was let run.
fn clock() -> &'static AtomicU64 {
    static CLOCK: OnceLock<AtomicU64> = OnceLock::new();
    static TICKING: OnceLock<()> = OnceLock::new();
    let clock = CLOCK.get_or_init(AtomicU64::default);
    TICKING.get_or_init(|| {
        std::thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                std::thread::sleep(TICK);
                let now = Instant::now();
                clock.fetch_add(counted(now - last), Ordering::Relaxed);
                last = now;
            }
        });
    });
    clock
}

/// What counts of the time between two looks, in nanoseconds.
fn counted(passed: Duration) -> u64 {
    u64::try_from(passed.min(TICK_MAX).as_nanos()).unwrap_or(u64::MAX)
}

/// Counts the time from its start, to a few milliseconds, without standstills.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    began_ns: u64,
    wall: Instant,
}

impl Stopwatch {
    /// Begins to count.
    #[must_use]
    pub fn start() -> Self {
        Self { began_ns: clock().load(Ordering::Relaxed), wall: Instant::now() }
    }

    /// How long the process was let run since the start. Never more than the wall clock says, but
    /// for one look; under load less.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(clock().load(Ordering::Relaxed).saturating_sub(self.began_ns))
    }

    /// How long nothing was let run since the start: what a wall clock elsewhere counts too much.
    #[must_use]
    pub fn standstill(&self) -> Duration {
        self.wall.elapsed().saturating_sub(self.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_counts_as_one_look() {
        assert_eq!(counted(Duration::from_millis(6)), 6_000_000);
        assert_eq!(counted(Duration::from_secs(60)), 20_000_000);
    }

    #[test]
    fn it_runs_and_stays_behind_the_wall_clock() {
        let (wall, watch) = (Instant::now(), Stopwatch::start());
        while watch.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        let elapsed = watch.elapsed();
        assert!(wall.elapsed() + TICK_MAX >= elapsed);
        assert!(wall.elapsed() + TICK_MAX >= elapsed + watch.standstill());
    }
}
