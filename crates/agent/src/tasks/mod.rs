//! The tasks of this node: one controller for each, made and told by the assignment.

mod controller;
mod failure;
mod listening;
mod payload;
mod spec;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_engine::request::RemoveOptions;
use shoal_model::fault::report;
use shoal_model::id::{ContainerId, TaskId};
use shoal_model::object::Task;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::error::AgentError;

/// What the assignment says of a task.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// It is assigned to this node.
    Assigned(Box<Task>),
    /// It is not (any more): nothing of it may stay.
    Gone,
}

/// Drives the tasks for ever.
pub(crate) async fn run(agent: &Agent) {
    let mut assignment = agent.inner.assignment.subscribe();
    let mut controllers: BTreeMap<TaskId, watch::Sender<Wanted>> = BTreeMap::new();
    let mut running: JoinSet<TaskId> = JoinSet::new();
    remove_strangers(agent).await;
    loop {
        let current = assignment.borrow_and_update().clone();
        let containers =
            current.tasks.values().filter(|task| task.spec.network_attachment_spec.is_none());
        for task in containers {
            let wanted = Wanted::Assigned(Box::new(task.clone()));
            if let Some(controller) = controllers.get(&task.id) {
                controller.send_replace(wanted);
            } else {
                let (sender, receiver) = watch::channel(wanted);
                controllers.insert(task.id.clone(), sender);
                running.spawn(controller::run(agent.clone(), task.id.clone(), receiver));
            }
        }
        for (id, controller) in &controllers {
            if !current.tasks.contains_key(id) {
                controller.send_replace(Wanted::Gone);
            }
        }
        agent.inner.task_count.send_replace(controllers.len());
        let known: BTreeSet<TaskId> =
            controllers.keys().chain(current.tasks.keys()).cloned().collect();
        agent.inner.reporter.retain(&known);
        tokio::select! {
            changed = assignment.changed() => if changed.is_err() { return },
            Some(ended) = running.join_next() => {
                if let Ok(id) = ended {
                    controllers.remove(&id);
                    agent.inner.task_count.send_replace(controllers.len());
                }
            }
        }
    }
}

/// Removes the containers of tasks that are not assigned: of an earlier membership, say.
async fn remove_strangers(agent: &Agent) {
    let Some(engine) = agent.engine() else { return };
    let assignment = agent.assignment();
    for container in engine.statuses().await {
        let Some(task) = &container.task_id else { continue };
        if assignment.tasks.contains_key(task) {
            continue;
        }
        let options = RemoveOptions { force: true, volumes: true };
        if let Err(error) = engine.remove(container.id.as_str(), options).await {
            // It shows in `docker ps -a`, where it can be removed by hand.
            tracing::warn!(container = %container.id, cause = report(&error),
                "a container of a task that is not assigned could not be removed");
        }
    }
}

/// Waits until no task is left.
pub(crate) async fn drained(agent: &Agent, deadline: Duration) -> Result<(), AgentError> {
    let mut count = agent.inner.task_count.subscribe();
    let none = count.wait_for(|count| *count == 0);
    match tokio::time::timeout(deadline, none).await {
        Ok(_) => Ok(()),
        Err(_) => Err(AgentError::NotDrained { seconds: deadline.as_secs() }),
    }
}

/// Waits until managers know that every service task of this node has ended, as they wanted.
pub(crate) async fn handed_over(agent: &Agent) {
    let mut assignment = agent.inner.assignment.subscribe();
    let ended = |task: &Task| task.service_id.is_none() || task.status.state.is_terminal();
    // Ignored because: the sender is part of the agent.
    let _ = assignment.wait_for(|current| current.tasks.values().all(ended)).await;
}

/// The container of a task, if it has one.
pub(crate) async fn container_of(agent: &Agent, task: &TaskId) -> Option<ContainerId> {
    let statuses = agent.engine()?.statuses().await;
    statuses.into_iter().find(|c| c.task_id.as_ref() == Some(task)).map(|c| c.id)
}
