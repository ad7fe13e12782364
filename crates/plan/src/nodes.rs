//! What becomes of the tasks of nodes that are lost.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::object::Task;
use shoal_model::task_state::TaskState;

use crate::work::Work;

/// How long a node may be down before nobody expects its tasks to be reported on any more.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Gives up the tasks of nodes that are down (their places are filled elsewhere at once; the node
/// stops them when it comes back) and ends those of nodes that are no members any more.
pub(crate) fn lost(work: &mut Work<'_>) {
    let concerned = |t: &&Arc<Task>| {
        let placed = t.status.state >= TaskState::Assigned;
        t.node_id.is_some()
            && !t.status.state.is_terminal()
            && (placed || t.desired_state <= TaskState::Running)
    };
    let concerned = work.tasks.values().filter(concerned);
    let tasks: Vec<Arc<Task>> = concerned.filter(|t| work.node_is_lost(t)).cloned().collect();
    for task in &tasks {
        if !work.has_room() {
            return;
        }
        if task.service_id.is_some() {
            work.want(&task.id, TaskState::Shutdown);
        }
        let node = task.node_id.as_ref().and_then(|id| work.node(id));
        match node.map(|n| n.status.since.plus(ORPHAN_AFTER)) {
            None => {
                work.want(&task.id, TaskState::Shutdown);
                work.observe(&task.id, TaskState::Orphaned, "its node was removed");
            }
            Some(end) => {
                if work.due(end) {
                    work.want(&task.id, TaskState::Shutdown);
                    work.observe(&task.id, TaskState::Orphaned, "its node is down for too long");
                }
            }
        }
    }
}
