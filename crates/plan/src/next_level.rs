//! What the program that stands for the next version does differently, for tests of upgrades: a
//! change of a kind, and a task's state, that the version before does not know.

use shoal_model::change::Change;
use shoal_model::cluster_state::ClusterState;
use shoal_model::level::FIRST;
use shoal_model::task_state::TaskState;

use crate::level;
use crate::work::Work;

/// The level that all of this needs.
const LEVEL: u32 = FIRST + 1;
/// Of a node, with the value `early`: the level is raised without asking anybody. Of a service:
/// ended tasks get a state that the version before does not know.
pub(crate) const LABEL: &str = "shoal.next-level";

/// Ended tasks of services with the label.
pub(crate) fn archive(work: &mut Work<'_>) {
    if work.base().level() < LEVEL {
        return;
    }
    let marked = |id| work.base().services.get(id).is_some_and(|s| has(&s.spec.labels, "archive"));
    let ended = work.base().tasks.values().filter(|task| {
        task.status.state == TaskState::Shutdown && task.service_id.as_ref().is_some_and(marked)
    });
    let ended: Vec<_> = ended.map(|task| task.id.clone()).collect();
    for id in ended {
        work.observe(&id, TaskState::Archived, "archived");
    }
}

/// One change at a time, beside no others.
pub(crate) fn changes(state: &ClusterState) -> Option<Change> {
    let cluster = state.cluster.as_ref()?;
    let early = state.nodes.values().any(|node| has(&node.spec.labels, "early"));
    if state.level() < LEVEL {
        return early.then(|| level::to(cluster, LEVEL)).flatten();
    }
    let text = "written by the next version";
    let noted = cluster.note.as_deref() == Some(text);
    (!noted).then(|| Change::Note { text: text.to_owned() })
}

fn has(labels: &shoal_model::spec::StringMap, value: &str) -> bool {
    labels.get(LABEL).is_some_and(|found| found == value)
}
