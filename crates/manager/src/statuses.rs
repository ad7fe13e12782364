//! Writes what nodes report of their tasks, many at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, TaskId};
use shoal_model::object::{Task, TaskStatus};
use shoal_model::time::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::ControlError;
use crate::shared::Shared;

/// Statuses that may wait; beyond it sessions wait, which slows their nodes down.
pub(crate) const QUEUE_MAX: usize = 4096;
/// Statuses are gathered this long.
const COALESCE: Duration = Duration::from_millis(20);
/// Statuses in one transaction.
const BATCH_MAX: usize = 500;
/// Pause after the store did not take them.
const RETRY: Duration = Duration::from_millis(200);

/// A status, with the node that said it.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    pub node: NodeId,
    pub task: TaskId,
    pub status: TaskStatus,
}

/// Writes statuses until nobody can report any more.
pub(crate) async fn run(shared: Arc<Shared>, mut reports: mpsc::Receiver<Reported>) {
    let mut batch: BTreeMap<TaskId, Reported> = BTreeMap::new();
    while let Some(first) = reports.recv().await {
        add(&mut batch, first);
        let until = Instant::now() + COALESCE;
        while batch.len() < BATCH_MAX {
            match timeout_at(until, reports.recv()).await {
                Ok(Some(next)) => add(&mut batch, next),
                Ok(None) | Err(_) => break,
            }
        }
        let all: Vec<Reported> = std::mem::take(&mut batch).into_values().collect();
        loop {
            let these = all.clone();
            let write =
                shared.writer.write(move |state, now| Ok((changes(state, now, &these), ()))).await;
            match write {
                Ok(()) => break,
                Err(ControlError::Stopping) => return,
                Err(error) => {
                    tracing::warn!(cause = report(&error), "statuses of tasks were not written");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// The last word on a task counts, but states only grow.
fn add(batch: &mut BTreeMap<TaskId, Reported>, next: Reported) {
    let older = batch
        .get(&next.task)
        .is_some_and(|known| known.node == next.node && known.status.state > next.status.state);
    if !older {
        batch.insert(next.task.clone(), next);
    }
}

fn changes(state: &ClusterState, now: Timestamp, reports: &[Reported]) -> Vec<Change> {
    reports.iter().filter_map(|r| change(state.tasks.get(&r.task)?, now, r)).collect()
}

fn change(task: &Task, now: Timestamp, reported: &Reported) -> Option<Change> {
    let known = &task.status;
    let own = task.node_id.as_ref() == Some(&reported.node);
    // What has ended stays as it ended.
    if !own || known.state.is_terminal() || reported.status.state < known.state {
        return None;
    }
    // All times in the state are of one clock, this one: delays and monitors are counted by it.
    let at = if reported.status.state == known.state { known.timestamp } else { now };
    let status = TaskStatus { timestamp: at, ..reported.status.clone() };
    if status == *known {
        return None;
    }
    let task = Task { status, ..task.clone() };
    let expect = Expect::Version(task.meta.version);
    Some(Change::Put { object: Object::Task(Box::new(task)), expect })
}
