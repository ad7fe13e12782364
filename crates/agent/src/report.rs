//! Statuses of tasks on their way to the manager: the latest of each, told again in each session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use shoal_model::id::TaskId;
use shoal_model::object::TaskStatus;
use shoal_wire::message::TaskReport;
use tokio::sync::watch;

use crate::agent::lock;

/// Statuses in one message at most.
const REPORTS_MAX: usize = 100;
/// Bytes of them in one message at most, far below the bounds on messages and on what a manager
/// proposes at a time. One that is larger by itself goes alone.
const BYTES_MAX: usize = 128 * 1024;

#[derive(Debug, Default)]
struct Latest {
    /// Counts changes.
    counter: u64,
    /// The latest status of each task, and the count at which it was set.
    statuses: BTreeMap<TaskId, (u64, TaskStatus)>,
    /// The tasks by that count: what is new is found without a look at the rest.
    order: BTreeMap<u64, TaskId>,
}

impl Latest {
    fn forget(&mut self, task: &TaskId) {
        if let Some((counter, _)) = self.statuses.remove(task) {
            self.order.remove(&counter);
        }
    }
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
        latest.forget(task);
        latest.counter += 1;
        let counter = latest.counter;
        latest.order.insert(counter, task.clone());
        latest.statuses.insert(task.clone(), (counter, status));
        self.changed.send_replace(counter);
    }

    /// A task's latest status.
    #[must_use]
    pub fn get(&self, task: &TaskId) -> Option<TaskStatus> {
        lock(&self.latest).statuses.get(task).map(|(_, status)| status.clone())
    }

    /// Forgets a task.
    pub fn forget(&self, task: &TaskId) {
        lock(&self.latest).forget(task);
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
        let fresh = latest.order.range(seen.saturating_add(1)..).filter_map(|(_, task)| {
            let (_, status) = latest.statuses.get(task)?;
            Some(TaskReport { task_id: task.clone(), status: status.clone() })
        });
        fresh.collect()
    }
}

/// The same reports, in messages that are bounded whatever their texts carry.
#[must_use]
pub fn batches(reports: Vec<TaskReport>) -> Vec<Vec<TaskReport>> {
    let mut batches: Vec<Vec<TaskReport>> = Vec::new();
    let mut bytes = 0;
    for report in reports {
        let size = size_of(&report);
        match batches.last_mut() {
            Some(batch) if batch.len() < REPORTS_MAX && bytes + size <= BYTES_MAX => {
                bytes += size;
                batch.push(report);
            }
            _ => {
                bytes = size;
                batches.push(vec![report]);
            }
        }
    }
    batches
}

/// Bytes of a report, about.
fn size_of(report: &TaskReport) -> usize {
    // Ids, times, numbers and the names of all fields; each port likewise.
    const FIXED: usize = 512;
    const PORT: usize = 256;
    let status = &report.status;
    FIXED + status.err.len() + status.message.len() + PORT * status.ports.len()
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
        assert_eq!(news.first().map(|r| &r.task_id), Some(&b));
        reporter.forget(&b);
        assert_eq!(reporter.follow().next().await.len(), 1);
    }

    #[test]
    fn large_texts_make_small_batches() {
        let report = |bytes: usize| {
            let mut status = TaskStatus::new(Timestamp(1), TaskState::Failed, "");
            status.err = "x".repeat(bytes);
            TaskReport { task_id: TaskId::new("t"), status }
        };
        let lens =
            |reports: Vec<TaskReport>| batches(reports).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(vec![report(0); 250]), [100, 100, 50]);
        assert_eq!(lens(vec![report(BYTES_MAX / 2); 3]), [1, 1, 1]);
        assert_eq!(lens(vec![report(0), report(2 * BYTES_MAX), report(0)]), [1, 1, 1]);
        assert!(batches(Vec::new()).is_empty());
    }
}
