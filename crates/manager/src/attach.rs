//! Places of hand-made containers, on behalf of their nodes.

use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, TaskId};
use shoal_model::object::{Task, TaskStatus};
use shoal_model::task_state::TaskState;
use shoal_plan::attachment::{Wanted, attach};
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{AttachOutcome, AttachReply, AttachRequest, ManagerMessage};

use crate::shared::{RandomIds, Shared};

/// Gives a container its place and answers.
pub(crate) async fn serve(shared: &Shared, node: &NodeId, request: AttachRequest) {
    let number = request.request;
    let mut names = vec![request.container_name];
    for alias in request.aliases {
        if !names.contains(&alias) {
            names.push(alias);
        }
    }
    let wanted = Wanted {
        node_id: node.clone(),
        container_id: request.container_id,
        network: request.network,
        names,
        addresses: request.addresses,
    };
    let place = shared
        .writer
        .write(move |state, now| {
            if let Some(known) = known_place(state, &wanted) {
                return Ok((Vec::new(), known));
            }
            let task = attach(state, &wanted, now, &mut RandomIds)?;
            let object = Object::Task(Box::new(task.clone()));
            Ok((vec![Change::Put { object, expect: Expect::Absent }], task))
        })
        .await;
    let outcome = match place {
        Ok(task) => match task.networks.first() {
            Some(place) => AttachOutcome::Attached {
                network_id: place.network_id.clone(),
                task: Box::new(task),
            },
            None => AttachOutcome::Refused(RemoteFault::default()),
        },
        Err(error) => AttachOutcome::Refused(RemoteFault::of(&error)),
    };
    let reply = AttachReply { request: number, outcome };
    if let Some(sender) = shared.sessions.sender(node) {
        // Ignored because: without a session the node asks again in the next one.
        let _ = sender.send(ManagerMessage::AttachReply(Box::new(reply))).await;
    }
}

/// The place that the container has already: the answer may have been lost.
fn known_place(state: &ClusterState, wanted: &Wanted) -> Option<Task> {
    let named = |t: &Task| {
        t.networks.iter().any(|n| {
            let network = state.networks.get(&n.network_id);
            n.network_id.as_str() == wanted.network
                || network.is_some_and(|n| n.spec.name == wanted.network)
        })
    };
    let same = |t: &&std::sync::Arc<Task>| {
        let attachment = t.spec.network_attachment_spec.as_ref();
        t.node_id.as_ref() == Some(&wanted.node_id)
            && attachment.is_some_and(|a| a.container_id == wanted.container_id.as_str())
            && t.is_live()
            && named(t)
    };
    state.tasks.values().find(same).map(|task| (**task).clone())
}

/// Ends the place of a container that has left it.
pub(crate) async fn detach(shared: &Shared, node: &NodeId, id: TaskId) {
    let node = node.clone();
    let write = shared
        .writer
        .write(move |state, now| {
            let own = state.tasks.get(&id).filter(|task| {
                task.node_id.as_ref() == Some(&node)
                    && task.service_id.is_none()
                    && !task.status.state.is_terminal()
            });
            let Some(task) = own else { return Ok((Vec::new(), ())) };
            let mut task = (**task).clone();
            let expect = Expect::Version(task.meta.version);
            task.status = TaskStatus::new(now, TaskState::Shutdown, "the container has left");
            task.desired_state = task.desired_state.max(TaskState::Remove);
            let object = Object::Task(Box::new(task));
            Ok((vec![Change::Put { object, expect }], ()))
        })
        .await;
    if let Err(error) = write {
        // The node says it again with its next session's statuses.
        tracing::warn!(cause = report(&error), "a container's place was not given back");
    }
}
