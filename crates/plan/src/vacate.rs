//! Empties nodes that tasks must leave, because they are drained or do not suit any more: the
//! replacement starts elsewhere, and once it is healthy the old task stops, also where a service
//! has a single one.
//!
//! How many places of a service move at a time, and how long a new task runs before the next
//! place's turn, is what its update policy says; the order is always start-first. (Clients write
//! the default, `stop-first`, into every policy: it says nothing of what the user wants of a
//! drain.)

use std::collections::BTreeMap;

use shoal_model::object::{Service, Task};
use shoal_model::spec::node::Availability;
use shoal_model::task_state::TaskState;

use crate::constraint;
use crate::orchestrate::{Start, create};
use crate::restart::{self, Condition};
use crate::slots::{Slot, SlotKey, age, ended_by_itself};
use crate::update::Settings;
use crate::work::Work;

/// Failed replacements after which a task that should leave its node stops all the same.
const VACATE_ATTEMPTS: usize = 3;

/// How many more places of the service may begin to move now.
pub(crate) fn turns(
    work: &mut Work<'_>,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot>,
) -> usize {
    if service.spec.is_global() {
        // Its places are their nodes: none can move.
        return 0;
    }
    let settings = Settings::of(service.spec.update_config.as_ref());
    let mut moving = 0;
    for slot in slots.values() {
        let mut leaving = slot.live().filter(|task| leaves_its_node(work, task)).peekable();
        if leaving.peek().is_some() {
            moving += usize::from(leaving.any(|task| is_tried(slot, task)));
        } else if !settings.delay.is_zero() && has_moved(work, slot) {
            let since = slot.primary().map(|task| task.status.timestamp.plus(settings.delay));
            moving += usize::from(since.is_some_and(|at| !work.due(at)));
        }
    }
    settings.parallelism.saturating_sub(moving)
}

/// Whether there is, or was, a replacement for a task that still serves.
fn is_tried(slot: &Slot, task: &Task) -> bool {
    slot.tasks.iter().any(|other| age(other) > age(task))
}

/// Whether the task that serves came for one that had to leave.
fn has_moved(work: &Work<'_>, slot: &Slot) -> bool {
    let Some(task) = slot.primary().filter(|t| t.status.state == TaskState::Running) else {
        return false;
    };
    let mut before = slot.tasks.iter().filter(|other| age(other) < age(task));
    before.any(|old| leaves_its_node(work, old))
}

/// Whether a task must leave the node that it is on, by its own constraints: a service's new ones
/// come with its update.
pub(crate) fn leaves_its_node(work: &Work<'_>, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|id| work.node(id));
    node.is_some_and(|n| {
        n.spec.availability == Availability::Drain
            || !constraint::constraints_hold(n, task.spec.placement.as_ref())
    })
}

/// Moves the task of a place off a node that it must leave: the replacement first, where that is
/// possible. To begin with one takes one of the `turns`.
pub(crate) fn place(
    work: &mut Work<'_>,
    service: &Service,
    key: &SlotKey,
    slot: &mut Slot,
    turns: &mut usize,
) {
    let (leaving, staying): (Vec<_>, Vec<_>) =
        slot.live().cloned().partition(|task| leaves_its_node(work, task));
    for task in leaving {
        let serves = task.status.state == TaskState::Running;
        let never = restart::condition(task.spec.restart_policy.as_ref()) == Condition::None;
        if !serves || never || matches!(key, SlotKey::Node(_)) {
            work.want(&task.id, TaskState::Shutdown);
            continue;
        }
        if let Some(next) = staying.last() {
            let arrived = next.status.state == TaskState::Running;
            let nowhere = next.status.state == TaskState::Pending && !next.status.err.is_empty();
            if arrived || nowhere {
                work.want(&task.id, TaskState::Shutdown);
            }
            continue;
        }
        let tried = is_tried(slot, &task);
        if !tried && *turns == 0 {
            // It serves until its turn comes.
            return;
        }
        let newer = slot.tasks.iter().filter(|t| age(t) > age(&task));
        let failed: Vec<_> = newer.filter(|t| ended_by_itself(t)).collect();
        if failed.len() >= VACATE_ATTEMPTS {
            work.want(&task.id, TaskState::Shutdown);
            continue;
        }
        let start = match failed.last() {
            Some(last) => {
                let delay = restart::delay(last.spec.restart_policy.as_ref());
                Start::NotBefore(last.status.timestamp.plus(delay))
            }
            None => Start::Now,
        };
        *turns = turns.saturating_sub(usize::from(!tried));
        let spec = restart::spec_for(work, service, Some(&task));
        slot.tasks.push(create(work, service, key, spec, start));
        return;
    }
}
