//! What the API asks of the cluster. Every method answers after its change is applied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::cluster_state::ClusterState;
use shoal_model::event::Event;
use shoal_model::id::{NetworkId, NodeId, Revision, ServiceId};
use shoal_model::log::{LogSelection, LogsOf, TaskLog};
use shoal_model::object::Meta;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::spec::service::ServiceSpec;
use shoal_plan::validate;
use tokio::sync::{broadcast, mpsc, watch};

use crate::error::ControlError;
use crate::forward::Leader;
use crate::peers::ToLeader;
use crate::requests::ControlRequest;
use crate::shared::{RandomIds, Shared};

/// The cluster, as far as a client may change it. Cheap to clone. Ids are full ids: callers resolve
/// a user's word with [`shoal_model::name::resolve`] over [`Control::state`].
///
/// What changes something is a [`ControlRequest`]: carried out here while this manager leads, and
/// else passed on to the one that does.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
    /// Whether this manager leads.
    pub(crate) lead: watch::Receiver<bool>,
    /// The way to the manager that does.
    pub(crate) leader: Option<Arc<dyn Leader>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// What became of a new service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCreated {
    /// Its id.
    pub id: ServiceId,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What an update asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceUpdate {
    /// The whole new spec.
    Spec(Box<ServiceSpec>),
    /// The spec before the last update (`rollback=previous`).
    Rollback,
}

/// Which secrets of the cluster to replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// The workers' join token.
    pub worker_token: bool,
    /// The managers' join token.
    pub manager_token: bool,
    /// The key that unlocks managers.
    pub unlock_key: bool,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let lead = shared.leads.subscribe();
        let leader = Arc::new(ToLeader(Arc::clone(&shared)));
        Self { shared, lead, leader: Some(leader) }
    }

    /// Whether this manager leads, and follows it.
    #[must_use]
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.lead.clone()
    }

    /// The same for a manager that others may lead: while `lead` does not say that it leads itself,
    /// requests go to `leader`.
    #[must_use]
    pub fn with_leader(&self, lead: watch::Receiver<bool>, leader: Arc<dyn Leader>) -> Self {
        Self { shared: Arc::clone(&self.shared), lead, leader: Some(leader) }
    }

    /// The cluster's state now. Who leads and who is reached is as this manager sees it.
    #[must_use]
    pub fn state(&self) -> Arc<ClusterState> {
        self.shared.seen()
    }

    /// What is wrong with this manager, a line each, for `docker info`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.shared.warnings()
    }

    /// Changes whenever the state does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Revision> {
        self.shared.store.watch()
    }

    /// Swarm-scoped events from now on. A receiver that lags misses events, and is told so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The revision that each connected node's kernel corresponds to.
    #[must_use]
    pub fn acked(&self) -> BTreeMap<NodeId, Revision> {
        self.shared.tenure().map(|t| t.sessions.reached()).unwrap_or_default()
    }

    /// Creates a swarm-scoped network; it has its subnets when this returns.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        let id = NetworkId::generate(&mut RandomIds);
        let (of, spec) = (id.clone(), Box::new(spec));
        self.ask(ControlRequest::CreateNetwork { id: of, spec }).await?;
        Ok(id)
    }

    /// Removes a network that nothing uses.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names a user of it.
    pub async fn remove_network(&self, id: &NetworkId) -> Result<(), ControlError> {
        self.ask(ControlRequest::RemoveNetwork { id: id.clone() }).await.map(drop)
    }

    /// Changes what the operator says about a node.
    ///
    /// # Errors
    /// [`ControlError::OutOfSequence`] when somebody else changed it in between.
    pub async fn update_node(
        &self,
        id: &NodeId,
        version: Revision,
        spec: NodeSpec,
    ) -> Result<(), ControlError> {
        let id = id.clone();
        self.ask(ControlRequest::UpdateNode { id, version, spec }).await.map(drop)
    }

    /// Forgets a node. Without `force` it must be down.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] for a node that is up, or a manager.
    pub async fn remove_node(&self, id: &NodeId, force: bool) -> Result<(), ControlError> {
        self.ask(ControlRequest::RemoveNode { id: id.clone(), force }).await.map(drop)
    }

    /// Changes the cluster's settings and replaces secrets.
    ///
    /// # Errors
    /// [`ControlError::OutOfSequence`] when somebody else changed it in between.
    pub async fn update_cluster(
        &self,
        version: Revision,
        spec: ClusterSpec,
        rotation: Rotation,
    ) -> Result<(), ControlError> {
        let spec = Box::new(spec);
        self.ask(ControlRequest::UpdateCluster { version, spec, rotation }).await.map(drop)
    }

    /// Logs of a service or a task. Nodes that are down give one warning and no wait.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn service_logs(
        &self,
        selector: LogsOf,
        query: LogSelection,
    ) -> Result<mpsc::Receiver<TaskLog>, ControlError> {
        let state = self.state();
        match &selector {
            LogsOf::Service(id) if !state.services.contains_key(id) => {
                return Err(missing("service", id));
            }
            LogsOf::Task(id) if !state.tasks.contains_key(id) => {
                return Err(missing("task", id));
            }
            LogsOf::Service(_) | LogsOf::Task(_) => {}
        }
        match self.shared.tenure() {
            Some(tenure) => Ok(tenure.gather(selector, query)),
            None => self.log_of_leader(selector, query).await,
        }
    }
}

pub(crate) fn missing(kind: &'static str, id: &dyn std::fmt::Display) -> ControlError {
    ControlError::NotFound { kind, word: id.to_string() }
}

pub(crate) fn in_sequence(known: Meta, version: Revision) -> Result<(), ControlError> {
    if known.version == version { Ok(()) } else { Err(ControlError::OutOfSequence) }
}

/// Checks the settings of a swarm that is to begin; `shortest` is how long its certificates are to
/// last at least.
///
/// # Errors
/// [`ControlError::Spec`] in Docker's words.
pub fn check_new_cluster(spec: &ClusterSpec, shortest: Duration) -> Result<(), ControlError> {
    validate::changed_cluster(spec)?;
    Ok(validate::cert_expiry(spec, shortest)?)
}
