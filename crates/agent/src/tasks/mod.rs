//! The tasks of this node: one owner for each, made and told by the assignment.
//!
//! What happens to containers comes in once, and goes to the owner that it concerns: no owner wakes
//! for another one's task.

mod failure;
mod listening;
mod owner;
mod payload;
mod spec;
mod steps;
mod table;
mod template;

use std::sync::Arc;
use std::time::Duration;

use shoal_engine::engine::Engine;
use shoal_engine::request::RemoveOptions;
use shoal_model::assignment::Assignment;
use shoal_model::fault::report;
use shoal_model::id::TaskId;
use shoal_model::object::Task;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinError, JoinSet};

pub(crate) use table::Table;

use crate::agent::Agent;
use crate::error::AgentError;

/// Drives the tasks for ever.
pub(crate) async fn run(agent: &Agent) {
    let Some(engine) = agent.engine() else { return };
    // Before the containers are read: nothing that happens in between is missed.
    let mut feed = engine.changes_feed();
    let mut assignment = agent.inner.assigned.follow();
    let table = &agent.inner.tasks;
    let mut running: JoinSet<TaskId> = JoinSet::new();
    table.see_all(engine.statuses().await);
    remove_strangers(agent, engine).await;
    loop {
        let current = assignment.borrow_and_update().clone();
        assign(agent, &current, &mut running);
        // Until the assignment changes, or an owner ends, nothing of it need be looked at again.
        loop {
            tokio::select! {
                biased;
                changed = assignment.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Some(ended) = running.join_next() => {
                    if has_ended(agent, ended) {
                        break;
                    }
                }
                change = feed.recv() => match change {
                    Ok(change) => table.see(change),
                    Err(RecvError::Lagged(_)) => table.see_all(engine.statuses().await),
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

/// Gives every assigned task an owner, and tells each what managers want.
fn assign(agent: &Agent, current: &Assignment, running: &mut JoinSet<TaskId>) {
    let table = &agent.inner.tasks;
    for task in current.tasks.values().filter(|task| task.spec.network_attachment_spec.is_none()) {
        if let Some(inputs) = table.want(task) {
            running.spawn(owner::run(agent.clone(), (**task).clone(), inputs));
        }
    }
    table.end_all_but(&current.tasks);
}

/// Forgets an owner that has ended; whether the assignment must be looked at again.
fn has_ended(agent: &Agent, ended: Result<TaskId, JoinError>) -> bool {
    match ended {
        Ok(id) => {
            agent.inner.tasks.forget(&id);
            agent.inner.reporter.forget(&id);
            // Assigned again while it was being removed: it gets a new owner.
            agent.assignment().tasks.contains_key(&id)
        }
        Err(error) => {
            tracing::error!(cause = %error, "the owner of a task broke off; it gets another one");
            agent.inner.tasks.forget_broken();
            true
        }
    }
}

/// Removes the containers of tasks that are not assigned: of an earlier membership, say.
async fn remove_strangers(agent: &Agent, engine: &Engine) {
    let assignment = agent.assignment();
    for (task, container) in agent.inner.tasks.containers() {
        if assignment.tasks.contains_key(&task) {
            continue;
        }
        let options = RemoveOptions { force: true, volumes: true };
        if let Err(error) = engine.remove(container.as_str(), options).await {
            // It shows in `docker ps -a`, where it can be removed by hand.
            tracing::warn!(container = %container, cause = report(&error),
                "a container of a task that is not assigned could not be removed");
        }
    }
}

/// Waits until no task is left.
pub(crate) async fn drained(agent: &Agent, deadline: Duration) -> Result<(), AgentError> {
    let mut count = agent.inner.tasks.count();
    let none = count.wait_for(|count| *count == 0);
    match tokio::time::timeout(deadline, none).await {
        Ok(_) => Ok(()),
        Err(_) => Err(AgentError::NotDrained { seconds: deadline.as_secs() }),
    }
}

/// Waits until managers know that every service task of this node has ended, as they wanted.
pub(crate) async fn handed_over(agent: &Agent) {
    let mut assignment = agent.inner.assigned.follow();
    let ended = |task: &Task| task.service_id.is_none() || task.status.state.is_terminal();
    // Ignored because: the sender is part of the agent.
    let _ = assignment.wait_for(|current| current.tasks.values().map(Arc::as_ref).all(ended)).await;
}
