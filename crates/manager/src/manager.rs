//! What runs while this node is a manager.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_identity::node_identity::NodeIdentity;
use shoal_model::change::{Change, Expect, Object};
use shoal_model::id::NodeId;
use shoal_model::object::{ManagerStatus, NodeState};
use shoal_model::time::Clock;
use shoal_store::Store;
use shoal_wire::server::{Handlers, Server, listen, serve};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;

use crate::clock::{latest, steady};
use crate::control::Control;
use crate::dispatcher::Dispatcher;
use crate::error::{ControlError, ManagerError};
use crate::gather::Router;
use crate::join::Doorkeeper;
use crate::membership::{SILENT, give_up};
use crate::sessions::Sessions;
use crate::shared::Shared;
use crate::writer::Writer;
use crate::{assigner, events, planner, statuses};

/// What a manager needs.
#[derive(Clone)]
pub struct ManagerConfig {
    /// The cluster's state; open, with a cluster in it.
    pub store: Store,
    /// This node's identity, a manager's.
    pub identity: NodeIdentity,
    /// Where to listen (TCP).
    pub listen: SocketAddr,
    /// Where other nodes reach this manager.
    pub advertise: SocketAddr,
    /// The wall clock. All times in the cluster's state are of this clock, but never step back.
    pub clock: Clock,
}

type Renew = Box<dyn Fn(&NodeIdentity) -> Result<(), ManagerError> + Send + Sync>;

/// A running manager. Dropping it ends everything at once; [`Manager::shutdown`] says good-bye
/// first.
pub struct Manager {
    shared: Arc<Shared>,
    server: Option<Server>,
    local_addr: SocketAddr,
    /// Feeds the server's TLS settings; ends with the manager.
    renew: Renew,
    /// The loops; they end with the manager.
    loops: JoinSet<()>,
}

impl Manager {
    /// Listens, serves nodes, and runs the control loops while this manager leads.
    ///
    /// # Errors
    /// [`ManagerError::Wire`] when the address cannot be had.
    pub async fn start(config: ManagerConfig) -> Result<Self, ManagerError> {
        let ManagerConfig { store, identity, listen: addr, advertise, clock: wall } = config;
        if store.state().cluster.is_none() {
            return Err(ManagerError::NoCluster);
        }
        let tls = identity.server_config().map_err(ManagerError::Identity)?;
        let listener = listen(addr).await?;
        let latest = latest(&store.state());
        if latest > wall() {
            let seconds = latest.since(wall()).as_secs();
            tracing::warn!(seconds, "this manager's clock is behind the cluster's time");
        }
        let clock = steady(Arc::clone(&wall), latest);
        let mut loops = JoinSet::new();
        let (writer, write) = Writer::new(store.clone(), Arc::clone(&clock));
        loops.spawn(write);
        let shared = Arc::new(Shared {
            store,
            writer,
            clock,
            wall,
            own: identity.node_id.clone(),
            sessions: Sessions::new(),
            logs: Router::default(),
            events: broadcast::channel(events::BACKLOG).0,
            reports: statuses::Reports::default(),
            stopping: watch::channel(false).0,
            helpers: Mutex::default(),
        });
        // From the first change on, so that no event of the start is lost.
        loops.spawn(events::run(Arc::clone(&shared), shared.store.changes()));
        begin(&shared, advertise).await.map_err(ManagerError::Own)?;
        let wanted = Arc::new(Notify::new());
        loops.spawn(planner::run(Arc::clone(&shared)));
        loops.spawn(assigner::run(Arc::clone(&shared), Arc::clone(&wanted)));
        loops.spawn(statuses::run(Arc::clone(&shared)));
        let handlers = Handlers {
            join: Arc::new(Doorkeeper(Control::new(Arc::clone(&shared)))),
            sessions: Arc::new(Dispatcher { shared: Arc::clone(&shared), wanted }),
        };
        let (newest, current) = watch::channel(tls);
        let server = serve(listener, current, handlers)?;
        let renew = move |identity: &NodeIdentity| {
            newest.send_replace(identity.server_config().map_err(ManagerError::Identity)?);
            Ok(())
        };
        let local_addr = server.local_addr();
        Ok(Self { shared, server: Some(server), local_addr, renew: Box::new(renew), loops })
    }

    /// What the API asks of the cluster.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared))
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Uses a renewed certificate for new connections.
    ///
    /// # Errors
    /// [`ManagerError::Identity`] when it cannot be used.
    pub fn set_identity(&self, identity: &NodeIdentity) -> Result<(), ManagerError> {
        (self.renew)(identity)
    }

    /// Says good-bye to the nodes and stops. The store stays open.
    pub async fn shutdown(mut self) {
        self.shared.stopping.send_replace(true);
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        self.loops.shutdown().await;
        self.end_helpers();
    }

    fn end_helpers(&self) {
        self.shared.stopping.send_replace(true);
        self.shared.helpers.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.end_helpers();
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// Writes what a manager that begins knows: its own entry, and that it has heard of no node yet.
async fn begin(shared: &Arc<Shared>, advertise: SocketAddr) -> Result<(), ControlError> {
    let own = shared.own.clone();
    let unheard: Vec<NodeId> = shared
        .writer
        .write(move |state, now| {
            let mut changes = Vec::new();
            let mut unheard = Vec::new();
            for known in state.nodes.values() {
                let mut node = (**known).clone();
                let up = matches!(node.status.state, NodeState::Ready | NodeState::Unknown);
                if up {
                    unheard.push(node.id.clone());
                }
                // This node is alive, or nobody would write this; its agent comes in a moment.
                if up && node.id != own {
                    node.status.state = NodeState::Unknown;
                    node.status.message = "its session with a new leader is awaited".to_owned();
                    if known.status.state != NodeState::Unknown {
                        node.status.since = now;
                    }
                }
                if node.id == own {
                    let raft_id = node.manager.as_ref().map_or(1, |m| m.raft_id);
                    node.manager = Some(ManagerStatus {
                        raft_id,
                        addr: advertise.to_string(),
                        reachable: true,
                        leader: true,
                    });
                }
                if node != **known {
                    let expect = Expect::Version(known.meta.version);
                    changes.push(Change::Put { object: Object::Node(Box::new(node)), expect });
                }
            }
            changes.truncate(shoal_model::change::CHANGES_MAX);
            Ok((changes, unheard))
        })
        .await?;
    for node in unheard {
        give_up(shared, &node, shared.welcome_patience(), SILENT);
    }
    Ok(())
}
