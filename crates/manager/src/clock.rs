//! The cluster's time: the manager's wall clock, but it never steps back.
//!
//! Delays, monitors and quarantines are counted from times in the state. A clock that was put back,
//! or a manager whose clock is behind the one before, would make them last for hours.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use shoal_model::cluster_state::ClusterState;
use shoal_model::time::{Clock, Timestamp};

/// A wall clock that never goes back: while it is behind, time passes as it does.
pub(crate) struct SteadyClock {
    wall: Clock,
    /// The last time that it said, and when.
    last: Mutex<(Timestamp, Instant)>,
}

impl SteadyClock {
    /// Over `wall`.
    pub fn new(wall: Clock) -> Self {
        let last = Mutex::new((wall(), Instant::now()));
        Self { wall, last }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.not_before(Timestamp::ZERO)
    }

    /// The time now, which is `time` at least from here on.
    pub fn not_before(&self, time: Timestamp) -> Timestamp {
        // The two halves are written together: nothing is half done.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, at) = *last;
        let passed = Instant::now();
        let steady = said.plus(passed.saturating_duration_since(at));
        let now = (self.wall)().max(steady).max(time);
        *last = (now, passed);
        now
    }
}

/// The latest time in the state; zero if it is empty.
pub(crate) fn latest(state: &ClusterState) -> Timestamp {
    let cluster = state.cluster.iter().map(|o| o.meta.updated_at);
    let nodes = state.nodes.values().map(|o| o.meta.updated_at);
    let services = state.services.values().map(|o| o.meta.updated_at);
    let tasks = state.tasks.values().map(|o| o.meta.updated_at);
    let networks = state.networks.values().map(|o| o.meta.updated_at);
    let secrets = state.secrets.values().map(|o| o.meta.updated_at);
    let configs = state.configs.values().map(|o| o.meta.updated_at);
    let things = networks.chain(secrets).chain(configs);
    let all = cluster.chain(nodes).chain(services).chain(tasks).chain(things);
    all.max().unwrap_or(Timestamp::ZERO)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn it_follows_the_wall_clock_forth_and_never_back() {
        let hands = Arc::new(AtomicI64::new(1_000));
        let wall: Clock = {
            let hands = Arc::clone(&hands);
            Arc::new(move || Timestamp::from_secs(hands.load(Ordering::Relaxed)))
        };
        let clock = SteadyClock::new(wall);
        assert_eq!(clock.not_before(Timestamp::from_secs(900)).secs(), 1_000);
        hands.store(5_000, Ordering::Relaxed);
        let before = clock.now();
        assert_eq!(before.secs(), 5_000);
        // It is put back: time goes on from where it was.
        hands.store(2_000, Ordering::Relaxed);
        let after = clock.now();
        assert!(after >= before && after.secs() < 5_060, "{after:?}");
        while clock.now() == after {
            std::thread::yield_now();
        }
        hands.store(9_000, Ordering::Relaxed);
        assert_eq!(clock.now().secs(), 9_000);
        // A manager whose clock is behind what the one before has written.
        let late = SteadyClock::new(Arc::new(|| Timestamp::from_secs(1)));
        assert!(late.not_before(Timestamp::from_secs(7_000)).secs() >= 7_000);
        assert!(late.now().secs() >= 7_000);
    }
}
