//! Writes what nodes report of their tasks, many at a time.
//!
//! Nobody waits here: the latest word on each task is kept until it is written, so what waits is
//! bounded by the tasks that there are, however long the store takes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, TaskId};
use shoal_model::object::{NodeState, Task, TaskStatus};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_plan::validate::PORTS_MAX;
use shoal_store::StoreError;
use shoal_wire::message::TaskReport;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::error::ControlError;
use crate::tenure::Tenure;

/// Statuses are gathered this long.
const COALESCE: Duration = Duration::from_millis(20);
/// Statuses in one transaction.
const BATCH_MAX: usize = 500;
/// First pause after the store did not take them, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Longest text of a status, bytes. The longest chain of causes that was seen has two thousand; an
/// assignment with hundreds of such tasks must still fit a session's message.
const TEXT_MAX: usize = 8 << 10;
/// Longest id of a container.
const CONTAINER_ID_MAX: usize = 128;

/// A status, with the node that said it.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    node: NodeId,
    task: TaskId,
    status: TaskStatus,
}

/// The latest word on each task that was not written yet.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<BTreeMap<TaskId, Reported>>,
    said: Notify,
}

impl Reports {
    /// Takes what `node` says. What is not about a task of its own is not heard.
    pub fn say(&self, state: &ClusterState, node: &NodeId, reports: Vec<TaskReport>) {
        for TaskReport { task_id: task, status } in reports {
            let own = state.tasks.get(&task).is_some_and(|t| t.node_id.as_ref() == Some(node));
            // No node decides that; managers do.
            let theirs = matches!(status.state, TaskState::Remove | TaskState::Orphaned);
            // A node of a later version says what this one cannot compare with anything.
            if !own || theirs || !status.state.is_known() {
                tracing::debug!(%node, %task, state = ?status.state, "a status was not heard");
                continue;
            }
            self.add(Reported { node: node.clone(), task, status: bounded(status) });
        }
        self.said.notify_one();
    }

    /// The last word on a task counts, but states only grow.
    fn add(&self, next: Reported) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let older = waiting
            .get(&next.task)
            .is_some_and(|known| known.node == next.node && known.status.state > next.status.state);
        if !older {
            waiting.insert(next.task.clone(), next);
        }
    }

    /// Puts back what was not written, unless there is a later word.
    fn put_back(&self, batch: Vec<Reported>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for reported in batch {
            waiting.entry(reported.task.clone()).or_insert(reported);
        }
    }

    fn take(&self, most: usize) -> Vec<Reported> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some((_, reported)) = waiting.pop_first()
        {
            batch.push(reported);
        }
        batch
    }
}

/// Writes statuses for as long as this manager leads.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    loop {
        tenure.reports.said.notified().await;
        sleep(COALESCE).await;
        let mut most = BATCH_MAX;
        let mut pause = RETRY.0;
        loop {
            let batch = tenure.reports.take(most);
            if batch.is_empty() {
                break;
            }
            match write(&tenure, &batch).await {
                Ok(()) => {
                    most = (most * 2).min(BATCH_MAX);
                    pause = RETRY.0;
                }
                Err(ControlError::Stopping) => return,
                // Together they are too large, or one of them is wrong: fewer at a time.
                Err(error) if is_final(&error) && batch.len() > 1 => {
                    most = batch.len() / 2;
                    tenure.reports.put_back(batch);
                }
                Err(error) if is_final(&error) => give_up(&tenure, batch, &error).await,
                Err(error) => {
                    tracing::warn!(cause = report(&error), "statuses of tasks are not written yet");
                    tenure.reports.put_back(batch);
                    sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }
}

async fn write(tenure: &Tenure, batch: &[Reported]) -> Result<(), ControlError> {
    let these = batch.to_vec();
    tenure.shared.writer.write(move |state, now| Ok((changes(state, now, &these), ()))).await
}

/// Whether the same write fails again, whenever it is tried.
fn is_final(error: &ControlError) -> bool {
    !matches!(
        error,
        ControlError::Store(
            StoreError::NotLeader { .. }
                | StoreError::NoQuorum { .. }
                | StoreError::NoLeader { .. }
                | StoreError::Busy { .. }
                | StoreError::Stopped { .. }
                | StoreError::Full { .. }
                | StoreError::Failing { .. }
                | StoreError::Damaged { .. }
                | StoreError::Disk { .. }
        )
    )
}

/// What the store will never take is written without the node's own words, and that is said.
async fn give_up(tenure: &Tenure, batch: Vec<Reported>, error: &ControlError) {
    for mut reported in batch {
        let cause = report(error);
        tracing::error!(
            node = %reported.node, task = %reported.task, cause,
            "a status of a task cannot be written as its node said it"
        );
        let status = TaskStatus::new(
            reported.status.timestamp,
            reported.status.state,
            "its node's own words could not be kept",
        );
        reported.status = TaskStatus {
            err: format!("status not kept: {cause}"),
            container: reported.status.container,
            ..status
        };
        match write(tenure, std::slice::from_ref(&reported)).await {
            Ok(()) => {}
            Err(error) if is_final(&error) => {
                let cause = report(&error);
                tracing::error!(task = %reported.task, cause, "a status of a task is lost");
            }
            // It is tried again like any other.
            Err(_) => tenure.reports.put_back(vec![reported]),
        }
    }
}

/// A status that is no larger than one may be; what is cut says so.
fn bounded(mut status: TaskStatus) -> TaskStatus {
    for text in [&mut status.message, &mut status.err] {
        if text.len() > TEXT_MAX {
            let said = text.len();
            let mut end = TEXT_MAX;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(&format!("… (cut: the node said {said} bytes)"));
        }
    }
    let long = |id: &str| id.len() > CONTAINER_ID_MAX;
    if status.container.as_ref().is_some_and(|c| long(c.container_id.as_str())) {
        status.container = None;
        status.message.push_str(" (the container's id is none)");
    }
    if status.ports.len() > PORTS_MAX {
        let said = status.ports.len();
        status.ports.truncate(PORTS_MAX);
        status.message.push_str(&format!(" (cut: the node said {said} ports)"));
    }
    status
}

fn changes(state: &ClusterState, now: Timestamp, reports: &[Reported]) -> Vec<Change> {
    let change_of = |r: &Reported| change(state, state.tasks.get(&r.task)?, now, r);
    reports.iter().filter_map(change_of).collect()
}

fn change(
    state: &ClusterState,
    task: &Task,
    now: Timestamp,
    reported: &Reported,
) -> Option<Change> {
    let known = &task.status;
    let own = task.node_id.as_ref() == Some(&reported.node);
    // What has ended stays as it ended.
    if !own || known.state.is_terminal() || reported.status.state < known.state {
        return None;
    }
    // All times in the state are of one clock, this one: delays and monitors are counted by it.
    let at = if reported.status.state == known.state { known.timestamp } else { now };
    let mut status = TaskStatus { timestamp: at, ..reported.status.clone() };
    if status.state == TaskState::Shutdown && !is_told_to_stop(state, task) {
        // As an end that was wished for it would be replaced at once, again and again.
        status.state = TaskState::Failed;
        if status.err.is_empty() {
            status.err = "stopped by its node, which was not told to stop it".to_owned();
        }
    }
    if status == *known {
        return None;
    }
    let task = Task { status, ..task.clone() };
    let expect = Expect::Version(task.meta.version);
    Some(Change::Put { object: Object::Task(Box::new(task)), expect })
}

/// Whether the task's node has a reason to stop it: a manager's wish, or that it leaves.
fn is_told_to_stop(state: &ClusterState, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|id| state.nodes.get(id));
    let leaves =
        node.is_none_or(|n| matches!(n.status.state, NodeState::Disconnected | NodeState::Down));
    task.desired_state > TaskState::Running || leaves
}
