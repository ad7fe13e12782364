//! Whether, when and as what an ended task is replaced.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::object::{Service, Task, UpdateState};
use shoal_model::spec::task::{RestartPolicy, TaskSpec};
use shoal_model::task_state::TaskState;
use shoal_model::time::{Nanos, Timestamp};

use crate::slots::{Slot, ended_by_itself};
use crate::work::Work;

/// Pause before a replacement starts, if the spec says none.
pub const DELAY_DEFAULT: Duration = Duration::from_secs(5);

/// Shortest pause before a replacement starts: a task that fails at once must not fill the store.
pub const DELAY_MIN: Duration = Duration::from_millis(100);

/// Attempts that are counted at most: the ended tasks of a place are their own history, and the
/// store must not keep more of them.
pub const ATTEMPTS_MAX: u64 = 100;

/// Which ended tasks are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    OnFailure,
    Any,
}

/// What a policy says, with defaults filled in.
pub(crate) fn condition(policy: Option<&RestartPolicy>) -> Condition {
    match policy.and_then(|p| p.condition.as_deref()) {
        Some("none") => Condition::None,
        Some("on-failure") => Condition::OnFailure,
        _ => Condition::Any,
    }
}

/// The pause before a replacement starts.
pub(crate) fn delay(policy: Option<&RestartPolicy>) -> Duration {
    policy.and_then(|p| p.delay).map_or(DELAY_DEFAULT, Nanos::duration).max(DELAY_MIN)
}

/// How many ended tasks of a place a policy needs to remember.
pub(crate) fn attempts_kept(policy: Option<&RestartPolicy>) -> u64 {
    policy.and_then(|p| p.max_attempts).unwrap_or(0).min(ATTEMPTS_MAX)
}

/// What follows the end of the newest task of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A replacement that is tried no earlier than this.
    Replace(Timestamp),
    /// Nothing: the policy says so.
    Leave,
}

/// Decides on a place whose newest task is not live any more. A task that a manager stopped (its
/// node was lost or drained) is replaced at once, unless the policy never replaces.
pub(crate) fn judge(slot: &Slot, ended: &Task, now: Timestamp) -> Verdict {
    let policy = ended.spec.restart_policy.as_ref();
    let wanted = match condition(policy) {
        Condition::None => false,
        Condition::OnFailure => ended.status.state != TaskState::Complete,
        Condition::Any => !ended.is_done(),
    };
    if !wanted {
        return Verdict::Leave;
    }
    if !ended_by_itself(ended) {
        return Verdict::Replace(now);
    }
    if attempts_used_up(slot, ended, policy) {
        return Verdict::Leave;
    }
    Verdict::Replace(ended.status.timestamp.plus(delay(policy)))
}

/// Every task of the place that ended by itself but the first was an attempt. The window is the
/// span before the last end: what was decided then stays decided.
fn attempts_used_up(slot: &Slot, ended: &Task, policy: Option<&RestartPolicy>) -> bool {
    let max = attempts_kept(policy);
    if max == 0 {
        return false;
    }
    let window = policy.and_then(|p| p.window).map(Nanos::duration).filter(|w| !w.is_zero());
    let counts = |t: &&Arc<Task>| {
        t.id != ended.id
            && t.spec_version == ended.spec_version
            && ended_by_itself(t)
            && window.is_none_or(|w| ended.status.timestamp.since(t.status.timestamp) < w)
    };
    slot.tasks.iter().filter(counts).count() as u64 >= max
}

/// What a replacement of `ended` runs: the service's spec, or while an update is paused the spec
/// that the ended task had, because the new one has just proved bad.
pub(crate) fn spec_for(
    work: &mut Work<'_>,
    service: &Service,
    ended: Option<&Task>,
) -> (Arc<TaskSpec>, u64) {
    let paused = service.update_status.as_ref().is_some_and(|status| {
        matches!(status.state, UpdateState::Paused | UpdateState::RollbackPaused)
    });
    match ended {
        Some(old) if paused => (old.spec.clone(), old.spec_version),
        _ => (work.template(service), service.spec_version),
    }
}
