//! A service's tasks, sorted into the places that they fill.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::id::{NodeId, Revision, TaskId};
use shoal_model::object::{Service, Task};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

use crate::work::Work;

/// One place that a service keeps filled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SlotKey {
    /// Of a replicated service.
    Number(u32),
    /// Of a global service.
    Node(NodeId),
}

/// The tasks that fill a place or filled it before, oldest first. Tasks that are marked for removal
/// are not among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    pub tasks: Vec<Arc<Task>>,
}

impl Slot {
    /// Reads the tasks anew.
    pub fn refresh(&mut self, work: &Work<'_>) {
        for task in &mut self.tasks {
            if let Some(now) = work.tasks.get(&task.id) {
                *task = now.clone();
            }
        }
    }

    /// Tasks that should run and have not ended, oldest first.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|t| t.is_live())
    }

    /// The newest live task.
    pub fn primary(&self) -> Option<&Arc<Task>> {
        self.live().next_back()
    }

    /// The newest task, live or not.
    pub fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.last()
    }

    /// Whether some live task is observed running.
    pub fn is_serving(&self) -> bool {
        self.live().any(|t| t.status.state == TaskState::Running)
    }

    /// Whether no live task is of the service's current spec, though there are older tasks.
    pub fn is_dirty(&self, service: &Service) -> bool {
        match self.primary() {
            Some(_) => !self.live().any(|t| t.spec_version == service.spec_version),
            None => self.newest().is_some_and(|t| t.spec_version != service.spec_version),
        }
    }
}

/// Whether the task ended by itself (or was refused), rather than by a manager's wish.
pub(crate) fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// The place that a task fills.
pub(crate) fn slot_of(task: &Task) -> SlotKey {
    match (&task.node_id, task.slot) {
        (Some(node), 0) => SlotKey::Node(node.clone()),
        (_, number) => SlotKey::Number(number),
    }
}

/// The service's tasks by place.
pub(crate) fn collect(work: &Work<'_>, service: &Service) -> BTreeMap<SlotKey, Slot> {
    let mut slots: BTreeMap<SlotKey, Slot> = BTreeMap::new();
    for task in work.tasks_of(&service.id) {
        if task.desired_state < TaskState::Remove {
            slots.entry(slot_of(&task)).or_default().tasks.push(task);
        }
    }
    for slot in slots.values_mut() {
        slot.tasks.sort_by(|a, b| age(a).cmp(&age(b)));
    }
    slots
}

/// Sorts tasks of one place, oldest first.
pub(crate) fn age(task: &Task) -> (Revision, Timestamp, u64, &TaskId) {
    // The time only tells tasks apart whose first revision was not noted yet.
    (task.meta.created, task.meta.created_at, task.spec_version, &task.id)
}
