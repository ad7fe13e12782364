//! What a restart policy decides after an end.

use std::time::Duration;

use shoal_model::time::Timestamp;

use super::{State, Stopper};

/// The pause before the first restart.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest pause: a container that cannot live costs one start a minute.
const PAUSE_LAST: Duration = Duration::from_secs(60);

/// A run of at least this long was a good one: the next pause is the first one again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Never.
    #[default]
    No,
    /// Unless a user stopped it; with the daemon even then.
    Always,
    /// Unless a user stopped it.
    UnlessStopped,
    /// If it failed, at most so often; 0: without end.
    OnFailure(i64),
}

/// What happens to a container that has ended for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtEnd {
    /// It stays.
    #[default]
    Keep,
    /// It is removed, with the volumes that were made for it alone.
    Remove,
}

/// What a container's own configuration says; may change with any event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// When it is started again.
    pub policy: Policy,
    /// What happens when it has ended.
    pub at_end: AtEnd,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it failed.
    pub result: RunResult,
    /// How long it lasted.
    pub lasted: Duration,
}

/// Whether a run was a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunResult {
    /// Exit status 0.
    Success,
    /// Any other.
    Failure,
}

/// What a container has behind it when a daemon starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It never ran.
    Fresh,
    /// It ran, and this is how it ended.
    Ran(RunResult),
}

/// Counts an end.
pub fn count(state: &mut State, outcome: Outcome) {
    state.quick_ends =
        if outcome.lasted >= GOOD_RUN { 0 } else { state.quick_ends.saturating_add(1) };
}

/// When a container is started again after an end that is already counted, if it is.
#[must_use]
pub fn restart_at(
    state: &State,
    policy: Policy,
    result: RunResult,
    now: Timestamp,
) -> Option<Timestamp> {
    let by_user = state.stopper == Stopper::User;
    let again = match policy {
        Policy::No => false,
        Policy::Always | Policy::UnlessStopped => !by_user,
        Policy::OnFailure(most) => {
            result == RunResult::Failure && !by_user && (most <= 0 || state.restarts < most)
        }
    };
    again.then(|| now.plus(pause(state.quick_ends)))
}

/// The pause before a restart: doubled with each end that came too soon.
fn pause(quick_ends: u32) -> Duration {
    crate::pause(PAUSE_FIRST, PAUSE_LAST, quick_ends.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: Policy, result: RunResult, restarts: i64, stopper: Stopper, again: bool) {
        let state = State { restarts, stopper, quick_ends: 1, ..State::default() };
        let want = again.then(|| Timestamp::ZERO.plus(PAUSE_FIRST));
        let got = restart_at(&state, policy, result, Timestamp::ZERO);
        assert_eq!(got, want, "{policy:?} {state:?}");
    }

    #[test]
    fn policies_decide_by_status_count_and_user() {
        use RunResult::{Failure, Success};
        check(Policy::No, Failure, 0, Stopper::Nobody, false);
        check(Policy::Always, Success, 9, Stopper::Nobody, true);
        check(Policy::Always, Success, 9, Stopper::User, false);
        check(Policy::UnlessStopped, Failure, 0, Stopper::User, false);
        check(Policy::OnFailure(0), Success, 0, Stopper::Nobody, false);
        check(Policy::OnFailure(0), Failure, 99, Stopper::Nobody, true);
        check(Policy::OnFailure(2), Failure, 1, Stopper::Nobody, true);
        check(Policy::OnFailure(2), Failure, 2, Stopper::Nobody, false);
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<u128> = [0, 1, 2, 3, 10, 11, 1000].map(|n| pause(n).as_millis()).into();
        assert_eq!(pauses, [100, 100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
