//! Rolling updates and rollbacks: replaces tasks of an old spec a few at a time, watches the new
//! ones, and pauses, goes on or goes back when too many fail.
//!
//! The state machine is the service's `update_status`; everything else is read off its tasks. A
//! place is *dirty* while only older specs live there, *in flight* from the first task of the new
//! spec until that one has run for the configured delay (or has failed), and then done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::{ServiceId, TaskId};
use shoal_model::object::{Service, Task, UpdateState, UpdateStatus};
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::UpdateConfig;
use shoal_model::task_state::TaskState;
use shoal_model::time::Nanos;

use crate::orchestrate::{Start, create};
use crate::restart::{self, Condition, Verdict};
use crate::slots::{Slot, SlotKey, collect, ended_by_itself};
use crate::validate::check_existence;
use crate::work::Work;

/// How long a new task is watched, if the spec does not say.
pub const MONITOR_DEFAULT: Duration = Duration::from_secs(5);

/// What too many failures do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

/// An [`UpdateConfig`] with defaults filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Places at a time.
    pub parallelism: usize,
    /// How long a new task runs before the next place's turn.
    pub delay: Duration,
    monitor: Duration,
    action: FailureAction,
    max_failure_ratio: f64,
    start_first: bool,
}

impl Settings {
    pub fn of(config: Option<&UpdateConfig>) -> Self {
        let parallelism = config.map_or(1, |c| c.parallelism);
        let action = match config.and_then(|c| c.failure_action.as_deref()) {
            Some("continue") => FailureAction::Continue,
            Some("rollback") => FailureAction::Rollback,
            _ => FailureAction::Pause,
        };
        let monitor = config.and_then(|c| c.monitor).map(Nanos::duration);
        Self {
            parallelism: match usize::try_from(parallelism) {
                Ok(0) | Err(_) => usize::MAX,
                Ok(some) => some,
            },
            delay: config.and_then(|c| c.delay).map_or(Duration::ZERO, Nanos::duration),
            // Clients send 0 for unsaid.
            monitor: monitor.filter(|m| !m.is_zero()).unwrap_or(MONITOR_DEFAULT),
            action,
            max_failure_ratio: config.and_then(|c| c.max_failure_ratio).unwrap_or(0.0),
            start_first: config.and_then(|c| c.order.as_deref()) == Some("start-first"),
        }
    }
}

/// Moves the update of a service one step on, if there is one.
pub(crate) fn supervise(work: &mut Work<'_>, id: &ServiceId, wanted: &[SlotKey]) {
    let Some(service) = work.services.get(id).cloned() else { return };
    // A paused node is left alone: its place follows when it is active again.
    let wanted: BTreeSet<&SlotKey> = wanted.iter().filter(|key| !is_paused(work, key)).collect();
    let mut slots = collect(work, &service);
    slots.retain(|key, _| wanted.contains(key));
    let places = Places { complete: slots.len() == wanted.len(), slots };
    let state = service.update_status.as_ref().map(|status| status.state);
    match state {
        // What a later version is at is left to it.
        Some(UpdateState::Paused | UpdateState::RollbackPaused | UpdateState::Other(_)) => {}
        None | Some(UpdateState::Completed | UpdateState::RollbackCompleted) => {
            // Also one that came before the first task has begun, and is to end.
            let unseen = state.is_none() && service.spec_version > Service::FIRST_SPEC_VERSION;
            if unseen || places.slots.values().any(|slot| slot.is_dirty(&service)) {
                set_state(work, id, UpdateState::Updating, "update in progress");
                advance(work, &service, &places, false);
            }
        }
        Some(UpdateState::Updating) => advance(work, &service, &places, false),
        Some(UpdateState::RollbackStarted) => advance(work, &service, &places, true),
    }
}

/// The places that an update is about.
struct Places {
    /// Those in which there is or was a task.
    slots: BTreeMap<SlotKey, Slot>,
    /// Whether these are all.
    complete: bool,
}

fn is_paused(work: &Work<'_>, key: &SlotKey) -> bool {
    let SlotKey::Node(node) = key else { return false };
    work.node(node).is_some_and(|node| node.spec.availability == Availability::Pause)
}

fn advance(work: &mut Work<'_>, service: &Arc<Service>, places: &Places, rolling_back: bool) {
    let slots = &places.slots;
    let spec = &service.spec;
    let config = if rolling_back { &spec.rollback_config } else { &spec.update_config };
    let mut settings = Settings::of(config.as_ref());
    // On the same node, the old task holds the host's port until it ends.
    let fixed = |p: &shoal_model::spec::service::PortConfig| {
        p.mode() == shoal_model::spec::service::PublishMode::Host && p.published().is_some()
    };
    if spec.is_global() && spec.ports().iter().any(fixed) {
        settings.start_first = false;
    }
    if let Some(culprit) = too_many_failures(service, slots, &settings) {
        fail(work, service, &culprit, &settings, rolling_back);
        return;
    }
    let mut in_flight = 0;
    let mut dirty = Vec::new();
    let mut settled = places.complete;
    for (key, slot) in slots {
        if slot.is_dirty(service) {
            settled = false;
            if may_begin(work, service, slot) {
                dirty.push((slot.is_serving(), key, slot));
            }
        } else {
            in_flight += usize::from(is_in_flight(work, service, slot, settings.delay));
            settled &= has_settled(work, service, slot, settings.monitor);
        }
    }
    if settled {
        let (state, message) = if rolling_back {
            (UpdateState::RollbackCompleted, "rollback completed")
        } else {
            (UpdateState::Completed, "update completed")
        };
        set_state(work, &service.id, state, message);
        return;
    }
    // Places that serve nobody cost nothing: they go first.
    dirty.sort_by_key(|(serves, key, _)| (*serves, *key));
    for (_, key, slot) in dirty.into_iter().take(settings.parallelism.saturating_sub(in_flight)) {
        if !work.has_room() {
            return;
        }
        replace(work, service, key, slot, settings.start_first);
    }
}

/// Replaces the tasks of one place.
fn replace(work: &mut Work<'_>, service: &Service, key: &SlotKey, slot: &Slot, start_first: bool) {
    let serving = slot.is_serving();
    let mut start = Start::Now;
    for old in slot.live() {
        if start_first && serving {
            continue;
        }
        work.want(&old.id, TaskState::Shutdown);
        if old.status.state >= TaskState::Assigned {
            start = Start::Held;
        }
    }
    let spec = (work.template(service), service.spec_version);
    create(work, service, key, spec, start);
}

/// Whether a dirty place may be tried: not while the last try of the new spec has failed just now,
/// or for good.
fn may_begin(work: &mut Work<'_>, service: &Service, slot: &Slot) -> bool {
    let mut tries = slot.tasks.iter().filter(|t| t.spec_version == service.spec_version);
    let Some(last) = tries.rfind(|t| ended_by_itself(t)).cloned() else {
        return true;
    };
    match restart::judge(slot, &last, work.now) {
        Verdict::Replace(at) => work.due(at),
        Verdict::Leave => false,
    }
}

/// Whether the place still counts against the parallelism.
fn is_in_flight(work: &mut Work<'_>, service: &Service, slot: &Slot, delay: Duration) -> bool {
    let fresh = |t: &&Arc<Task>| t.spec_version == service.spec_version;
    if slot.tasks.iter().filter(fresh).any(|t| ended_by_itself(t)) {
        return false;
    }
    let Some(primary) = slot.live().rfind(fresh) else { return false };
    if primary.status.state < TaskState::Running {
        return true;
    }
    !work.due(primary.status.timestamp.plus(delay))
}

/// Whether the place has been well for the monitored time, or will not be filled by policy.
fn has_settled(work: &mut Work<'_>, service: &Service, slot: &Slot, monitor: Duration) -> bool {
    match slot.primary() {
        Some(task) if task.status.state == TaskState::Running => {
            work.due(task.status.timestamp.plus(monitor))
        }
        Some(_) => false,
        None => slot.newest().is_some_and(|last| {
            last.spec_version == service.spec_version
                && restart::judge(slot, last, work.now) == Verdict::Leave
        }),
    }
}

/// The last failed task of the new spec, if more failed than the spec allows.
fn too_many_failures(
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot>,
    settings: &Settings,
) -> Option<TaskId> {
    if settings.action == FailureAction::Continue || slots.is_empty() {
        return None;
    }
    let failed = |task: &&Arc<Task>| {
        let policy = task.spec.restart_policy.as_ref();
        let early = restart::condition(policy) == Condition::Any;
        task.spec_version == service.spec_version
            && ended_by_itself(task)
            && (early || task.status.state != TaskState::Complete)
    };
    let failures: Vec<&Arc<Task>> = slots.values().flat_map(|s| &s.tasks).filter(failed).collect();
    let last = failures.iter().max_by_key(|t| (t.status.timestamp, &t.id))?;
    let ratio = failures.len() as f64 / slots.len() as f64;
    (ratio > settings.max_failure_ratio).then(|| last.id.clone())
}

fn fail(
    work: &mut Work<'_>,
    service: &Service,
    culprit: &TaskId,
    settings: &Settings,
    rolling_back: bool,
) {
    let because = format!("due to failure or early termination of task {culprit}");
    let previous = service.previous_spec.clone();
    match (rolling_back, settings.action, previous) {
        (true, _, _) => {
            let message = format!("rollback paused {because}");
            set_state(work, &service.id, UpdateState::RollbackPaused, &message);
        }
        (false, FailureAction::Rollback, Some(previous))
            if let Err(error) = check_existence(work.base(), &previous) =>
        {
            let message = format!("update paused {because}; it cannot be rolled back: {error}");
            set_state(work, &service.id, UpdateState::Paused, &message);
        }
        (false, FailureAction::Rollback, Some(previous)) => {
            work.edit_service(&service.id, |service| {
                service.previous_spec = Some(std::mem::replace(&mut service.spec, previous));
                service.spec_version += 1;
            });
            let message = format!("update rolled back {because}");
            set_state(work, &service.id, UpdateState::RollbackStarted, &message);
        }
        (false, _, _) => {
            let message = format!("update paused {because}");
            set_state(work, &service.id, UpdateState::Paused, &message);
        }
    }
}

fn set_state(work: &mut Work<'_>, id: &ServiceId, state: UpdateState, message: &str) {
    let now = work.now;
    let ended = matches!(state, UpdateState::Completed | UpdateState::RollbackCompleted);
    work.edit_service(id, |service| {
        let started_at = match (&service.update_status, state) {
            (_, UpdateState::Updating) => now,
            (Some(status), _) => status.started_at,
            (None, _) => now,
        };
        service.update_status = Some(UpdateStatus {
            state,
            started_at,
            completed_at: ended.then_some(now),
            message: message.to_owned(),
        });
    });
}
