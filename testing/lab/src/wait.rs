//! Waiting for conditions, never for time alone.

use std::time::Duration;

use shoal_stopwatch::Stopwatch;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until `look` gives something.
///
/// # Panics
/// After `deadline`, with what was waited for and the last thing that was seen.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let began = Stopwatch::start();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if began.elapsed() > deadline => {
                panic!("waited {deadline:?} for {what}; last seen:\n{seen}")
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Runs `act` and fails if it took longer than `bound`.
///
/// # Panics
/// If it did.
pub fn within<T>(what: &str, bound: Duration, act: impl FnOnce() -> T) -> T {
    let began = Stopwatch::start();
    let result = act();
    let took = began.elapsed();
    assert!(took <= bound, "{what} took {took:?}, more than {bound:?}");
    result
}
