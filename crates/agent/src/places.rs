//! Joining and leaving networks, and what happens to a place when its container ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_engine::attacher::NetworkName;
use shoal_engine::change::Phase;
use shoal_model::id::{ContainerId, NetworkId, TaskId};
use shoal_network::desired::SandboxId;
use shoal_wire::message::{AttachOutcome, AttachRequest, Detach, NodeMessage};
use tokio::sync::broadcast::error::RecvError;

use crate::agent::Agent;
use crate::desired::{Place, place_of};
use crate::error::AgentError;

/// How long a manager may take to give a container a place.
const MANAGER_DEADLINE: Duration = Duration::from_secs(10);
/// How long telling it that a container has left may hold up the container's end.
const TELL_DEADLINE: Duration = Duration::from_secs(1);

impl Agent {
    /// Asks the manager for a place on a swarm network, and waits until its table is here.
    pub(crate) async fn join_swarm(
        &self,
        container: &ContainerId,
        name: &str,
        word: &str,
        aliases: Vec<String>,
        wanted: Option<std::net::IpAddr>,
    ) -> Result<Place, AgentError> {
        if self.inner.membership.borrow().is_none() {
            return Err(AgentError::NoNetwork { word: word.to_owned() });
        }
        let request = AttachRequest {
            request: 0,
            container_id: container.clone(),
            container_name: name.to_owned(),
            network: word.to_owned(),
            aliases: aliases.clone(),
            addresses: wanted.into_iter().collect(),
        };
        let silent = || AgentError::ManagerSilent {
            word: word.to_owned(),
            seconds: MANAGER_DEADLINE.as_secs(),
        };
        let answer = self.inner.hub.ask_attach(request);
        let answer = tokio::time::timeout(MANAGER_DEADLINE, answer).await.map_err(|_| silent())?;
        let outcome = answer.ok_or_else(|| AgentError::NoManager { word: word.to_owned() })?;
        let (network_id, task) = match outcome {
            AttachOutcome::Attached { network_id, task } => (network_id, task),
            AttachOutcome::Refused(source) => {
                return Err(AgentError::Refused { word: word.to_owned(), source });
            }
        };
        let mut assignment = self.inner.assigned.follow();
        let here = assignment.wait_for(|a| a.networks.contains_key(&network_id));
        let here = tokio::time::timeout(MANAGER_DEADLINE, here).await.is_ok_and(|h| h.is_ok());
        if !here {
            self.give_back(&task.id).await;
            return Err(silent());
        }
        let addresses = task
            .networks
            .iter()
            .filter(|n| n.network_id == network_id)
            .flat_map(|n| n.addresses.iter().copied())
            .collect();
        Ok(Place { network_id, addresses, aliases, task_id: Some(task.id) })
    }

    /// Gives a place back.
    pub(crate) async fn leave(&self, place: &Place) {
        match &place.task_id {
            Some(task_id) => self.give_back(task_id).await,
            None => {
                for address in &place.addresses {
                    self.local().release(&place.network_id, address.addr());
                }
            }
        }
    }

    /// Gives a place of the swarm back. A manager that cannot be told hears it with the whole set
    /// of this node's places, in the next session at the latest.
    async fn give_back(&self, task_id: &TaskId) {
        let attachments = &self.inner.attachments;
        attachments.given_up(task_id);
        let detach = NodeMessage::Detach(Detach { task_id: task_id.clone() });
        let told = tokio::time::timeout(TELL_DEADLINE, self.inner.hub.tell(detach)).await;
        if told != Ok(true) {
            attachments.restate();
        }
    }

    /// Waits until the container's network is in the kernel.
    pub(crate) async fn settle(&self, container: &ContainerId) -> Result<(), AgentError> {
        let generation = self.changed();
        let outcome = self.inner.applier.applied(generation).await?;
        let failed = |what: &str| AgentError::Kernel { what: what.to_owned() };
        let applied = outcome.applied.map_err(|cause| failed(&cause))?;
        if let Some(cause) = applied.sandbox_error(&SandboxId::from(container)) {
            return Err(failed(cause));
        }
        let Some(attached) = self.inner.attachments.get(container) else { return Ok(()) };
        for place in &attached.places {
            if let Some(cause) = applied.networks.get(&place.network_id) {
                return Err(failed(cause));
            }
        }
        let holder = format!("container '{}'", attached.name);
        let own = attached.published.iter().map(|port| (place_of(port), holder.clone()));
        let mesh = attached.task_id.iter().flat_map(|task| self.mesh_ports_of(task));
        for (port, wanted_by) in own.chain(mesh) {
            if let Some(conflict) = applied.port_conflict(port, &wanted_by) {
                return Err(failed(&conflict.cause));
            }
        }
        Ok(())
    }

    /// Takes a container's network away.
    pub(crate) async fn drop_attached(&self, container: &ContainerId) {
        let Some(attached) = self.inner.attachments.remove(container) else { return };
        let generation = self.changed();
        // Ignored because: what the kernel does not remove is logged where it is tried, and tried
        // again by every verification.
        let _ = self.inner.applier.applied(generation).await;
        for place in &attached.places {
            // A task's own place belongs to the task; the manager frees it with the task.
            if place.task_id.is_none() || attached.task_id.is_none() {
                self.leave(place).await;
            }
        }
    }

    /// What the last assignment knows of a hand-made container's places.
    pub(crate) fn remembered_places(&self, container: &ContainerId) -> Vec<Place> {
        let assignment = self.assignment();
        let of_container = |task: &&shoal_model::object::Task| {
            let spec = task.spec.network_attachment_spec.as_ref();
            spec.is_some_and(|s| s.container_id == container.as_str())
        };
        assignment
            .tasks
            .values()
            .map(Arc::as_ref)
            .filter(of_container)
            .flat_map(|task| {
                task.networks.iter().map(|n| Place {
                    network_id: n.network_id.clone(),
                    addresses: n.addresses.clone(),
                    aliases: n.aliases.clone(),
                    task_id: Some(task.id.clone()),
                })
            })
            .collect()
    }

    /// The tasks of all places of hand-made containers that the last assignment knows of.
    pub(crate) fn remembered_tasks(&self) -> BTreeMap<(ContainerId, NetworkId), TaskId> {
        let assignment = self.assignment();
        let of = |task: &shoal_model::object::Task| {
            let spec = task.spec.network_attachment_spec.as_ref()?;
            let container = ContainerId::new(spec.container_id.as_str());
            let place = task.networks.first()?;
            Some(((container, place.network_id.clone()), task.id.clone()))
        };
        assignment.tasks.values().map(Arc::as_ref).filter_map(of).collect()
    }

    /// Finds a network by what a user calls it. A member cannot know every network of the cluster:
    /// then the manager decides when the container starts.
    pub(crate) fn find_network(&self, word: &str) -> Result<NetworkName, AgentError> {
        // Modes rather than networks, and always there.
        if matches!(word, "none" | "host") {
            return Ok(NetworkName { id: NetworkId::new(word), name: word.to_owned() });
        }
        match self.local().find(word) {
            Ok(network) => {
                return Ok(NetworkName { id: network.id.clone(), name: network.spec.name });
            }
            Err(AgentError::NoNetwork { .. }) => {}
            Err(other) => return Err(other),
        }
        let assignment = self.assignment();
        let known = assignment.networks.values().map(|t| &t.network);
        if let Some(info) = known.clone().find(|n| n.id.as_str() == word || n.name == word) {
            return Ok(NetworkName { id: info.id.clone(), name: info.name.clone() });
        }
        if self.inner.membership.borrow().is_some() {
            return Ok(NetworkName { id: NetworkId::new(word), name: word.to_owned() });
        }
        Err(AgentError::NoNetwork { word: word.to_owned() })
    }
}

/// Follows the containers: one that ends is taken out of every bucket at once, on this node's own
/// evidence, long before a manager says so.
pub(crate) async fn watch_exits(agent: &Agent) {
    let Some(engine) = agent.engine() else { return };
    let mut feed = engine.changes_feed();
    loop {
        match feed.recv().await {
            Ok(change) if has_ended(change.phase) => ended(agent, &change.id).await,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => {
                for change in engine.statuses().await {
                    if has_ended(change.phase) {
                        ended(agent, &change.id).await;
                    }
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Whether a container in this phase had a process that is no more.
fn has_ended(phase: Phase) -> bool {
    matches!(phase, Phase::Exited | Phase::Restarting | Phase::Dead)
}

async fn ended(agent: &Agent, container: &ContainerId) {
    let places = agent.inner.attachments.mark_ended(container);
    if places.is_empty() {
        return;
    }
    for place in places {
        for address in &place.addresses {
            let lost = agent.network().backend_lost(&place.network_id, address.addr()).await;
            if let Err(error) = lost {
                // The next apply takes it out as well; it is asked for right below.
                tracing::warn!(cause = shoal_model::fault::report(&error), %container,
                    "a dead backend could not be taken out at once");
            }
        }
    }
    agent.changed();
}
