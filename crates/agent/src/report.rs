//! Statuses of tasks on their way to the manager: the latest of each, told again in each session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use shoal_model::id::TaskId;
use shoal_model::object::TaskStatus;
use shoal_wire::message::TaskReport;
use tokio::sync::watch;

use crate::agent::lock;

#[derive(Debug, Default)]
struct Latest {
    /// Counts changes.
    counter: u64,
    /// The latest status of each task, and the count at which it was set.
    statuses: BTreeMap<TaskId, (u64, TaskStatus)>,
}

/// Collects statuses.
#[derive(Clone, Debug, Default)]
pub struct Reporter {
    latest: Arc<Mutex<Latest>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Reporter {
    /// Sets a task's latest status. States only grow; a smaller one is a late echo.
    pub fn set(&self, task: &TaskId, status: TaskStatus) {
        let mut latest = lock(&self.latest);
        let known = latest.statuses.get(task);
        if known.is_some_and(|(_, old)| old.state > status.state || *old == status) {
            return;
        }
        latest.counter += 1;
        let counter = latest.counter;
        latest.statuses.insert(task.clone(), (counter, status));
        self.changed.send_replace(counter);
    }

    /// A task's latest status.
    #[must_use]
    pub fn get(&self, task: &TaskId) -> Option<TaskStatus> {
        lock(&self.latest).statuses.get(task).map(|(_, status)| status.clone())
    }

    /// Forgets the tasks that are not in `keep`.
    pub fn retain(&self, keep: &BTreeSet<TaskId>) {
        lock(&self.latest).statuses.retain(|task, _| keep.contains(task));
    }

    /// Follows from the beginning: the first answer holds every status.
    #[must_use]
    pub fn follow(&self) -> Follow {
        Follow { reporter: self.clone(), seen: 0, changed: self.changed.subscribe() }
    }
}

/// One reader of a [`Reporter`].
#[derive(Debug)]
pub struct Follow {
    reporter: Reporter,
    seen: u64,
    changed: watch::Receiver<u64>,
}

impl Follow {
    /// Waits until something is new, and gives all of it.
    pub async fn next(&mut self) -> Vec<TaskReport> {
        loop {
            self.changed.borrow_and_update();
            let fresh = self.fresh();
            if !fresh.is_empty() {
                return fresh;
            }
            if self.changed.changed().await.is_err() {
                // The reporter lives as long as the agent: nothing will ever come.
                std::future::pending::<()>().await;
            }
        }
    }

    fn fresh(&mut self) -> Vec<TaskReport> {
        let latest = lock(&self.reporter.latest);
        let seen = std::mem::replace(&mut self.seen, latest.counter);
        latest
            .statuses
            .iter()
            .filter(|(_, (counter, _))| *counter > seen)
            .map(|(task, (_, status))| TaskReport { task_id: task.clone(), status: status.clone() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_model::task_state::TaskState;
    use shoal_model::time::Timestamp;

    use super::*;

    #[tokio::test]
    async fn a_new_reader_hears_everything_and_then_only_news() {
        let reporter = Reporter::default();
        let status = |state| TaskStatus::new(Timestamp(1), state, "");
        let (a, b) = (TaskId::new("a"), TaskId::new("b"));
        reporter.set(&a, status(TaskState::Running));
        reporter.set(&b, status(TaskState::Accepted));
        let mut follow = reporter.follow();
        assert_eq!(follow.next().await.len(), 2);
        reporter.set(&a, status(TaskState::Accepted));
        reporter.set(&b, status(TaskState::Failed));
        let news = follow.next().await;
        assert_eq!(news.len(), 1);
        assert_eq!(news.first().map(|r| r.task_id.clone()), Some(b));
        reporter.retain(&BTreeSet::from([a]));
        assert_eq!(reporter.follow().next().await.len(), 1);
    }
}
