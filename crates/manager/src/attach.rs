//! Places of hand-made containers, on behalf of their nodes.
//!
//! A place is a task without a service. It is given when a node asks, and taken back when the node
//! says that the container has left, when it is not in the set that the node states
//! ([`AttachmentSet`](shoal_wire::message::AttachmentSet)), and when the node leaves or is removed.
//! What was given in a session is not taken back by a set of the same session: its answer may still
//! be under way when the node states the set.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::{CHANGES_MAX, Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, SessionId, TaskId};
use shoal_model::object::{NodeDescription, Task, TaskStatus};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;
use shoal_plan::attachment::{Wanted, attach};
use shoal_plan::validate::SpecError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{AttachOutcome, AttachReply, AttachRequest, ManagerMessage};
use shoal_wire::session::SessionSender;

use crate::error::ControlError;
use crate::shared::RandomIds;
use crate::tenure::Tenure;

/// Places of one node at most: all of them end in the transaction in which it leaves.
const PLACES_MAX: usize = CHANGES_MAX - 1;
/// Names of one container on a network at most.
const NAMES_MAX: usize = 64;
/// Longest name of a container on a network: the longest that DNS knows.
const NAME_LEN_MAX: usize = 253;
/// Pause after the store did not take that a place is given back.
const RETRY: Duration = Duration::from_secs(1);

/// Whose session something is done for.
#[derive(Clone)]
pub(crate) struct Caller {
    pub tenure: Arc<Tenure>,
    pub node: NodeId,
    pub session: SessionId,
    pub sender: SessionSender<ManagerMessage>,
}

impl Caller {
    /// Gives a container its place and answers.
    pub async fn attach(self, request: AttachRequest) {
        let number = request.request;
        let outcome = match self.give(request).await {
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
        // Ignored because: without its session nobody waits for the answer; a place that was given
        // goes with the set that the node states in its next one.
        let _ = self.sender.send(ManagerMessage::AttachReply(Box::new(reply))).await;
    }

    async fn give(&self, request: AttachRequest) -> Result<Task, ControlError> {
        let wanted = wanted(&self.node, request)?;
        let Self { tenure, node, session, .. } = self.clone();
        let own = Arc::clone(&tenure);
        tenure
            .shared
            .writer
            .write(move |state, now| {
                let known = known_place(state, &wanted);
                let (task, changes) = match known {
                    Some(task) => (task, Vec::new()),
                    None => {
                        if held_by(state, &node).count() >= PLACES_MAX {
                            return Err(SpecError::conflict(format!(
                                "node {node} has {PLACES_MAX} containers on swarm networks already"
                            ))
                            .into());
                        }
                        let task = attach(state, &wanted, now, &mut RandomIds)?;
                        let object = Object::Task(Box::new(task.clone()));
                        (task, vec![Change::Put { object, expect: Expect::Absent }])
                    }
                };
                // Writes come one after the other, so a set of the node's next session sees it.
                if !own.sessions.note_given(&node, &session, &task.id) {
                    let message = "the session of the node that asked is over".to_owned();
                    return Err(ControlError::Precondition { message });
                }
                Ok((changes, task))
            })
            .await
    }

    /// Ends the place of a container that has left it.
    pub async fn detach(self, id: TaskId) {
        let (node, gone) = (self.node.clone(), id.clone());
        self.insist(move |state, now| {
            let own = state.tasks.get(&id).filter(|task| is_held_by(task, &node));
            own.map(|task| end(task, now, "the container has left")).into_iter().collect()
        })
        .await;
        self.tenure.sessions.note_taken(&self.node, &self.session, &gone);
    }

    /// Ends every place that the node does not hold any more.
    pub async fn keep_only(self, set: BTreeSet<TaskId>) {
        let Self { tenure, node, session, .. } = self.clone();
        self.insist(move |state, now| {
            let Some(given) = tenure.sessions.given(&node, &session) else { return Vec::new() };
            let lost = |t: &&Arc<Task>| !set.contains(&t.id) && !given.contains(&t.id);
            let gone = held_by(state, &node).filter(lost).take(CHANGES_MAX);
            gone.map(|task| end(task, now, "its node does not hold it any more")).collect()
        })
        .await;
    }

    /// Notes what the node's certificate is by, and whom it trusts.
    pub async fn certified(self, tls: NodeTls) {
        self.tenure.certified(&self.node, tls).await;
    }

    /// Notes how the node describes itself.
    pub async fn describe(self, description: NodeDescription) {
        self.tenure.describe(&self.node, description).await;
    }

    /// Writes until there is nothing left to write, or the session is over: the set of the next one
    /// says the same.
    async fn insist(
        &self,
        compute: impl Fn(&ClusterState, Timestamp) -> Vec<Change> + Clone + Send + 'static,
    ) {
        while self.tenure.sessions.is_current(&self.node, &self.session) {
            let compute = compute.clone();
            let write = self.tenure.shared.writer.write(move |state, now| {
                let changes = compute(state, now);
                let done = changes.len() < CHANGES_MAX;
                Ok((changes, done))
            });
            match write.await {
                Ok(true) | Err(ControlError::Stopping) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        node = %self.node, cause = report(&error),
                        "a container's place is not given back yet"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn wanted(node: &NodeId, request: AttachRequest) -> Result<Wanted, ControlError> {
    let mut names = vec![request.container_name];
    for alias in request.aliases {
        if !names.contains(&alias) {
            names.push(alias);
        }
        if names.len() > NAMES_MAX {
            let text = format!("more than {NAMES_MAX} names of one container");
            return Err(SpecError::invalid(text).into());
        }
    }
    let fits =
        |name: &str| name.len() <= NAME_LEN_MAX && name.bytes().all(|b| b.is_ascii_graphic());
    if let Some(name) = names.iter().find(|name| !fits(name)) {
        let shown: String = name.chars().take(NAME_LEN_MAX).collect();
        return Err(SpecError::invalid(format!("invalid name on a network: {shown:?}")).into());
    }
    Ok(Wanted {
        node_id: node.clone(),
        container_id: request.container_id,
        network: request.network,
        names,
        addresses: request.addresses,
    })
}

/// The places that `node` holds.
fn held_by<'s>(
    state: &'s ClusterState,
    node: &'s NodeId,
) -> impl Iterator<Item = &'s Arc<Task>> + use<'s> {
    state.tasks.values().filter(move |task| is_held_by(task, node))
}

fn is_held_by(task: &Task, node: &NodeId) -> bool {
    task.service_id.is_none()
        && task.node_id.as_ref() == Some(node)
        && !task.status.state.is_terminal()
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
    let same = |t: &&Arc<Task>| {
        let attachment = t.spec.network_attachment_spec.as_ref();
        attachment.is_some_and(|a| a.container_id == wanted.container_id.as_str())
            && t.is_live()
            && named(t)
    };
    held_by(state, &wanted.node_id).find(same).map(|task| (**task).clone())
}

/// The change that ends a place.
fn end(task: &Task, now: Timestamp, why: &str) -> Change {
    let mut task = task.clone();
    let expect = Expect::Version(task.meta.version);
    task.status = TaskStatus::new(now, TaskState::Shutdown, why);
    task.desired_state = task.desired_state.max(TaskState::Remove);
    Change::Put { object: Object::Task(Box::new(task)), expect }
}

/// The changes that end all places of a node that leaves, as many as fit a transaction.
pub(crate) fn end_all(state: &ClusterState, node: &NodeId, now: Timestamp) -> Vec<Change> {
    let places = held_by(state, node).take(CHANGES_MAX - 1);
    places.map(|task| end(task, now, "its node left the cluster")).collect()
}
