//! Removes what is over: tasks of removed services, surplus tasks, old history, ended attachments.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::id::{ServiceId, TaskId};
use shoal_model::object::Task;
use shoal_model::task_state::TaskState;

use crate::restart;
use crate::slots::{SlotKey, age, slot_of};
use crate::work::Work;

/// Ended tasks kept in each place, the current one counted, unless the cluster says otherwise.
pub const HISTORY_DEFAULT: i64 = 5;

/// Marks tasks whose service is gone.
pub(crate) fn disowned(work: &mut Work<'_>) {
    let gone = |t: &&Arc<Task>, work: &Work<'_>| {
        t.service_id.as_ref().is_some_and(|id| !work.services.contains_key(id))
    };
    let ids: Vec<TaskId> =
        work.tasks.values().filter(|t| gone(t, work)).map(|t| t.id.clone()).collect();
    for id in ids {
        work.want(&id, TaskState::Remove);
    }
}

/// Ends tasks that no agent has ever seen, and forgets tasks that are over.
pub(crate) fn finished(work: &mut Work<'_>) {
    let told: Vec<Arc<Task>> =
        work.tasks.values().filter(|t| t.desired_state > TaskState::Running).cloned().collect();
    for task in &told {
        if !work.has_room() {
            return;
        }
        let unseen = task.status.state < TaskState::Assigned;
        let over = unseen || task.status.state.is_terminal() || work.node_is_lost(task);
        if task.desired_state >= TaskState::Remove && over {
            work.delete_task(&task.id);
        } else if unseen {
            work.observe(&task.id, TaskState::Shutdown, "stopped before it had a node");
        }
    }
    attachments(work);
    history(work);
}

/// A hand-made container's place goes when the container has left it.
fn attachments(work: &mut Work<'_>) {
    let ended = |t: &&Arc<Task>| t.service_id.is_none() && t.status.state.is_terminal();
    let ids: Vec<TaskId> = work.tasks.values().filter(ended).map(|t| t.id.clone()).collect();
    for id in ids {
        work.delete_task(&id);
    }
}

fn history(work: &mut Work<'_>) {
    let settings = work.base().cluster.as_ref().map(|c| &c.spec.orchestration);
    let limit = settings.and_then(|o| o.task_history_retention_limit).unwrap_or(HISTORY_DEFAULT);
    // Docker: a negative limit keeps everything.
    let Ok(limit) = usize::try_from(limit) else { return };
    let mut places: BTreeMap<(ServiceId, SlotKey), Vec<Arc<Task>>> = BTreeMap::new();
    for task in work.tasks.values() {
        if let Some(service) = &task.service_id {
            places.entry((service.clone(), slot_of(task))).or_default().push(task.clone());
        }
    }
    for tasks in places.values_mut().filter(|tasks| tasks.len() > limit) {
        tasks.sort_by(|a, b| age(a).cmp(&age(b)));
        let newest = tasks.last().map(|t| t.id.clone());
        let policy = tasks.last().and_then(|t| t.spec.restart_policy.as_ref());
        let needed = usize::try_from(restart::attempts_kept(policy)).unwrap_or(usize::MAX);
        let keep = limit.max(needed.saturating_add(1));
        let surplus = tasks.len().saturating_sub(keep);
        // The newest task of a place says why it is empty; it stays whatever the limit is.
        let over = |t: &&Arc<Task>| {
            t.desired_state > TaskState::Running
                && t.status.state.is_terminal()
                && Some(&t.id) != newest.as_ref()
        };
        let old: Vec<TaskId> = tasks.iter().filter(over).map(|t| t.id.clone()).collect();
        for id in old.iter().take(surplus) {
            work.delete_task(id);
        }
    }
}
