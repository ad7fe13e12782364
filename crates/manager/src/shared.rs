//! What the manager's tasks share.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::cluster_state::ClusterState;
use shoal_model::event::Event;
use shoal_model::id::{IdSource, NodeId};
use shoal_model::object::{Cluster, Node};
use shoal_model::time::{Clock, Nanos, Timestamp};
use shoal_store::Store;
use shoal_wire::message::ManagerAddr;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::SteadyClock;
use crate::error::ControlError;
use crate::open::Awaited;
use crate::peers::OtherManagers;
use crate::sequence::Sequence;
use crate::tenure::Tenure;
use crate::trust::External;
use crate::writer::Writer;

/// Time between heartbeats, if the cluster's settings do not say.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(1);
/// Heartbeats that may be missed before a node counts as down.
const MISSED_MAX: u32 = 3;
/// How long agents wait at most before they try to connect again.
const AGENT_RETRY_MAX: Duration = Duration::from_secs(2);
/// How long an agent may be connecting to a manager whose host has lost its power.
const AGENT_CONNECT_MAX: Duration = Duration::from_secs(4);

/// The system's random source.
pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn fresh(&mut self) -> [u8; 16] {
        rand::random()
    }
}

/// What the manager's tasks share.
pub(crate) struct Shared {
    pub store: Store,
    pub writer: Writer,
    /// The cluster's time, which never steps back.
    pub clock: Arc<SteadyClock>,
    /// The machine's own: what certificates are dated by, and looked at with.
    pub wall: Clock,
    /// This manager's own node.
    pub own: NodeId,
    /// The other managers.
    pub others: OtherManagers,
    /// Who issues certificates instead of this cluster's managers.
    pub external: External,
    /// Where other nodes reach this manager.
    pub advertise: SocketAddr,
    /// The shortest time that certificates may be set to last.
    pub cert_expiry_min: Duration,
    pub events: broadcast::Sender<Event>,
    /// Which versions of objects clients may go by.
    pub sequence: Sequence,
    /// Every manager that nodes may connect to, as the state has it.
    pub managers: watch::Sender<Vec<ManagerAddr>>,
    /// Streams that nodes are to open to this manager.
    pub awaited: Awaited,
    /// Whether this manager leads.
    pub leads: watch::Sender<bool>,
    /// What there is only while this manager leads.
    pub tenure: watch::Sender<Option<Arc<Tenure>>>,
    /// True from the moment the manager stops: sessions that end then mean nothing.
    pub stopping: watch::Sender<bool>,
    /// Short-lived tasks; all of them end with the manager.
    pub helpers: Mutex<JoinSet<()>>,
}

impl Shared {
    /// The newest state.
    pub fn state(&self) -> Arc<ClusterState> {
        self.store.state()
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Runs a short-lived task that ends with the manager.
    pub fn help(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        while helpers.try_join_next().is_some() {}
        if !*self.stopping.borrow() {
            helpers.spawn(task);
        }
    }

    /// Does something to its end, whether or not the caller goes away meanwhile.
    ///
    /// # Errors
    /// [`ControlError::Stopping`] if the manager ends before.
    pub async fn see_through<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, ControlError> {
        let (done, outcome) = oneshot::channel();
        self.help(async move {
            // Ignored because: who asked has gone away; it is done all the same.
            let _ = done.send(task.await);
        });
        outcome.await.map_err(|_| ControlError::Stopping)?
    }

    /// Time between heartbeats.
    pub fn heartbeat(&self) -> Duration {
        let state = self.state();
        let period = state.cluster.as_ref().and_then(|c| c.spec.dispatcher.heartbeat_period);
        period.map(Nanos::duration).filter(|p| !p.is_zero()).unwrap_or(HEARTBEAT_DEFAULT)
    }

    /// Silence after which a node counts as down.
    pub fn patience(&self) -> Duration {
        self.heartbeat() * MISSED_MAX
    }

    /// How long a node may take to come back to a manager that has just begun.
    pub fn welcome_patience(&self) -> Duration {
        self.patience() + AGENT_CONNECT_MAX + AGENT_RETRY_MAX
    }
}

/// The cluster of `state`.
pub(crate) fn cluster(state: &ClusterState) -> Result<&Arc<Cluster>, ControlError> {
    state
        .cluster
        .as_ref()
        .ok_or_else(|| ControlError::NotFound { kind: "cluster", word: "default".to_owned() })
}

/// Every manager that nodes may connect to.
pub(crate) fn managers(state: &ClusterState) -> Vec<ManagerAddr> {
    let address = |node: &Arc<Node>| {
        let addr = node.manager.as_ref()?.addr.clone();
        Some(ManagerAddr { node_id: node.id.clone(), addr })
    };
    state.nodes.values().filter_map(address).collect()
}
