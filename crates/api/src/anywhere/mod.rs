//! Containers of the cluster's tasks, wherever they run: a manager passes on what its own engine
//! does not know to the node of the task, and that node's API answers, in the same words as to a
//! client of its own.
//!
//! A container of this node wins over a task elsewhere. Execs that were made elsewhere carry their
//! node in their id, so that every manager finds them.
//!
//! Begin reading at [`direct`].

mod lines;
mod pass;
mod serve;

use std::sync::Arc;

use futures::future::BoxFuture;
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::name::{Lookup, resolve};
use shoal_model::object::Task;

pub use self::serve::serve;
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::Answer;
use crate::server::router::{Route, Verb};

/// What can be asked of a task's container from elsewhere. Its life is the cluster's: nothing here
/// starts, stops, changes or removes it.
const ROUTES: &[(Verb, &str)] = &[
    (Verb::Get, "/containers/{id}/json"),
    (Verb::Get, "/containers/{id}/top"),
    (Verb::Get, "/containers/{id}/changes"),
    (Verb::Get, "/containers/{id}/logs"),
    (Verb::Get, "/containers/{id}/stats"),
    (Verb::Get, "/containers/{id}/export"),
    (Verb::Head, "/containers/{id}/archive"),
    (Verb::Get, "/containers/{id}/archive"),
    (Verb::Put, "/containers/{id}/archive"),
    (Verb::Post, "/containers/{id}/attach"),
    (Verb::Post, "/containers/{id}/resize"),
    (Verb::Post, "/containers/{id}/wait"),
    (Verb::Post, "/containers/{id}/exec"),
    (Verb::Post, "/exec/{id}/start"),
    (Verb::Post, "/exec/{id}/resize"),
    (Verb::Get, "/exec/{id}/json"),
];

/// Shortest beginning of an id that means a task elsewhere. A shorter one would be hit by chance by
/// names of services, images and networks, for which clients ask for a container first.
const PREFIX_MIN: usize = 8;

/// Between the id of an exec and its node's.
const AT: char = '.';

fn is_among(route: &Route) -> bool {
    ROUTES.iter().any(|(verb, pattern)| *verb == route.method && *pattern == route.pattern)
}

/// Whether it is about an exec.
fn is_exec(route: &Route) -> bool {
    route.pattern.starts_with("/exec/")
}

/// What is asked for, and where it is.
#[derive(Clone)]
struct Place {
    node: NodeId,
    /// Its host name, as far as it is known.
    name: String,
    /// The container, or the exec, as its node knows it.
    id: String,
    /// The task, if the user's word was the task's own id.
    task: Option<Arc<Task>>,
}

/// The work that answers `call`: here, or on the node that has what it names.
///
/// # Errors
/// 400 if several tasks begin with the user's word.
pub async fn direct(
    route: Route,
    mut call: Call,
) -> ApiResult<BoxFuture<'static, ApiResult<Answer>>> {
    let Some(place) = find(&route, &call).await? else { return Ok((route.handler)(call)) };
    let here = call.state.swarm.status().node_id.as_ref() == Some(&place.node);
    if place.task.is_some() && route.pattern == "/containers/{id}/json" {
        return Ok(Box::pin(pass::inspect_task(call, place, here)));
    }
    if here {
        for (name, value) in &mut call.params {
            if *name == "id" {
                value.clone_from(&place.id);
            }
        }
        return Ok((route.handler)(call));
    }
    Ok(Box::pin(pass::pass_on(route, call, place)))
}

/// Where what the call names is, if this node's engine does not know it.
async fn find(route: &Route, call: &Call) -> ApiResult<Option<Place>> {
    if !is_among(route) {
        return Ok(None);
    }
    let word = call.param("id");
    if is_exec(route) {
        let Some((id, node)) = word.split_once(AT) else { return Ok(None) };
        let (node, id) = (NodeId::new(node), id.to_owned());
        let state = call.state.swarm.control().map(|control| control.state());
        let name = state.map_or_else(|| node.to_string(), |state| state.node_name(&node));
        return Ok(Some(Place { node, name, id, task: None }));
    }
    // A node that is no manager knows of no other's.
    let Some(control) = call.state.swarm.control() else { return Ok(None) };
    if call.state.containers.knows(word).await {
        return Ok(None);
    }
    task_container(&control.state(), word)
}

/// The container of the task that a user's word means: the container's id, the task's, or the name
/// that both have.
fn task_container(state: &ClusterState, word: &str) -> ApiResult<Option<Place>> {
    let with_container = |task: &&Arc<Task>| task.node_id.is_some() && container(task).is_some();
    let mut found: Vec<&Arc<Task>> = Vec::new();
    for of in [by_container, by_task] {
        let tasks = state.tasks.values().filter(with_container);
        let named: Vec<(String, String, &Arc<Task>)> =
            tasks.map(|task| (of(task), task.name(), task)).collect();
        let items = named.iter().map(|(id, name, task)| (id.as_str(), name.as_str(), *task));
        // Exact words first, then beginnings that are long enough not to be meant otherwise.
        let exact = items.clone().any(|(id, name, _)| id == word || name == word);
        if !exact && word.len() < PREFIX_MIN {
            continue;
        }
        match resolve(word, items) {
            Lookup::Found(task) => found.push(task),
            Lookup::Missing => {}
            Lookup::Ambiguous { matches } => {
                let text = format!("container {word} is ambiguous: {matches} tasks begin with it");
                return Err(ApiError::invalid(text));
            }
        }
    }
    found.dedup_by(|a, b| a.id == b.id);
    let task = match found.as_slice() {
        [] => return Ok(None),
        [task] => *task,
        several => {
            let text = format!(
                "container {word} is ambiguous: {} tasks or their containers begin with it",
                several.len()
            );
            return Err(ApiError::invalid(text));
        }
    };
    let (Some(node), Some(id)) = (task.node_id.clone(), container(task)) else { return Ok(None) };
    let by_own_id = task.name() != word && task.id.as_str().starts_with(word);
    let name = state.node_name(&node);
    Ok(Some(Place { node, name, id, task: by_own_id.then(|| Arc::clone(task)) }))
}

fn container(task: &Task) -> Option<String> {
    let status = task.status.container.as_ref()?;
    Some(status.container_id.to_string()).filter(|id| !id.is_empty())
}

fn by_container(task: &Arc<Task>) -> String {
    container(task).unwrap_or_default()
}

fn by_task(task: &Arc<Task>) -> String {
    task.id.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use shoal_model::change::{Change, Expect, Object, Transaction};
    use shoal_model::id::{ContainerId, Revision, ServiceId, TaskId};
    use shoal_model::object::{ContainerStatus, Meta, TaskStatus};
    use shoal_model::task_state::TaskState;
    use shoal_model::time::Timestamp;

    use super::*;

    fn task(id: &str, container: &str) -> Change {
        let mut status = TaskStatus::new(Timestamp(1), TaskState::Running, "started");
        let container_id = ContainerId::new(container);
        status.container = Some(ContainerStatus { container_id, pid: 1, exit_code: 0 });
        let task = Task {
            id: TaskId::new(id),
            meta: Meta::default(),
            service_id: Some(ServiceId::new("s1")),
            service_name: "web".into(),
            slot: 2,
            node_id: Some(NodeId::new("n1")),
            spec: Arc::default(),
            spec_version: 1,
            endpoint_ports: Vec::new(),
            networks: Vec::new(),
            status,
            desired_state: TaskState::Running,
            not_before: None,
            job_iteration: None,
            assigned_generic_resources: Vec::new(),
            extra: Default::default(),
        };
        Change::Put { object: Object::Task(Box::new(task)), expect: Expect::Any }
    }

    fn state(tasks: &[(&str, &str)]) -> ClusterState {
        let mut state = ClusterState::default();
        let changes = tasks.iter().map(|(id, container)| task(id, container)).collect();
        let transaction = Transaction { changes, at: Timestamp(1) };
        state.apply(Revision(1), &transaction).unwrap();
        state
    }

    #[test]
    fn a_task_is_meant_by_its_container_its_id_and_its_name() {
        let tasks = [("abcdefgh1", "0123456789aa"), ("abcdefgh2", "0123456789bb"), ("zz", "")];
        let state = state(&tasks);
        let find = |word: &str| task_container(&state, word);
        for word in ["0123456789aa", "0123456789a", "abcdefgh1", "web.2.abcdefgh1"] {
            let place = find(word).unwrap().unwrap();
            assert_eq!((place.node.as_str(), place.id.as_str()), ("n1", "0123456789aa"), "{word}");
            assert_eq!(place.task.is_some(), word == "abcdefgh1", "{word}");
        }
        for (word, said) in [("abcdefgh", "2 tasks"), ("0123456789", "2 tasks")] {
            let error = find(word).err().unwrap();
            assert!(error.message.contains(said), "{word}: {}", error.message);
        }
        // Too short to be meant, without a container, unknown, or only part of a name.
        for word in ["abcdefg", "0123456", "zz", "web", "web.2", "", "stranger-by-far"] {
            assert!(find(word).unwrap().is_none(), "{word}");
        }
    }
}
