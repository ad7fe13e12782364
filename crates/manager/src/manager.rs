//! What runs while this node is a manager.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_identity::external::HttpsPost;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::time::Clock;
use shoal_store::Store;
use shoal_wire::server::{Handlers, Server, listen, serve};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::clock::{SteadyClock, latest};
use crate::control::Control;
use crate::dispatcher::Dispatcher;
use crate::error::ManagerError;
use crate::join::Doorkeeper;
use crate::open::{Awaited, StreamDoor};
use crate::peers::{ManagerDoor, OtherManagers};
use crate::sequence::Sequence;
use crate::shared::Shared;
use crate::trust::{Doors, External};
use crate::writer::Writer;

use crate::{events, peers, shut_out, tenure, trust};

/// What a manager needs.
#[derive(Clone)]
pub struct ManagerConfig {
    /// The cluster's state, open.
    pub store: Store,
    /// This node's identity, a manager's.
    pub identity: NodeIdentity,
    /// The other managers.
    pub others: OtherManagers,
    /// The way to external certificate authorities.
    pub https: Arc<dyn HttpsPost>,
    /// Where to listen (TCP).
    pub listen: SocketAddr,
    /// Where other nodes reach this manager.
    pub advertise: SocketAddr,
    /// The wall clock. All times in the cluster's state are of this clock, but never step back.
    pub clock: Clock,
    /// The shortest time that certificates may be set to last.
    pub cert_expiry_min: Duration,
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
    /// Listens, serves nodes and other managers, and runs the control loops while this manager
    /// leads. The store may still be empty: a manager that joins learns.
    ///
    /// # Errors
    /// [`ManagerError::Wire`] when the address cannot be had.
    pub async fn start(config: ManagerConfig) -> Result<Self, ManagerError> {
        let ManagerConfig { store, identity, others, https, listen: addr, advertise, .. } = config;
        let (wall, cert_expiry_min) = (config.clock, config.cert_expiry_min);
        let doors = Doors::new(identity.clone(), &store.state()).map_err(ManagerError::Identity)?;
        let doors = Arc::new(doors);
        let listener = listen(addr).await?;
        let latest = latest(&store.state());
        if latest > wall() {
            let seconds = latest.since(wall()).as_secs();
            tracing::warn!(seconds, "this manager's clock is behind the cluster's time");
        }
        let clock = Arc::new(SteadyClock::new(Arc::clone(&wall)));
        clock.not_before(latest);
        let mut loops = JoinSet::new();
        let (writer, write) = Writer::new(store.clone(), Arc::clone(&clock));
        loops.spawn(write);
        let shared = Arc::new(Shared {
            store,
            writer,
            clock,
            wall,
            own: identity.node_id.clone(),
            others: others.clone(),
            external: External::new(https),
            advertise,
            cert_expiry_min,
            events: broadcast::channel(events::BACKLOG).0,
            managers: watch::channel(Vec::new()).0,
            awaited: Awaited::default(),
            leads: watch::channel(false).0,
            sequence: Sequence::default(),
            tenure: watch::channel(None).0,
            stopping: watch::channel(false).0,
            helpers: Mutex::default(),
        });
        // From the first change on, so that no event of the start is lost.
        loops.spawn(events::run(Arc::clone(&shared), shared.store.changes()));
        loops.spawn(peers::follow(Arc::clone(&shared)));
        loops.spawn(tenure::run(Arc::clone(&shared)));
        let handlers = Handlers {
            join: Arc::new(Doorkeeper(Control::new(Arc::clone(&shared)))),
            sessions: Arc::new(Dispatcher(Arc::clone(&shared))),
            managers: Arc::new(ManagerDoor(Control::new(Arc::clone(&shared)))),
            streams: Arc::new(StreamDoor(Arc::clone(&shared))),
        };
        let server = serve(listener, doors.tls(), handlers)?;
        loops.spawn(trust::keep_doors(Arc::clone(&shared), Arc::clone(&doors)));
        loops.spawn(shut_out::run(Arc::clone(&shared), server.connections()));
        let store = shared.store.clone();
        let renew = move |identity: &NodeIdentity| {
            doors.set_identity(identity, &store.state()).map_err(ManagerError::Identity)?;
            others.set_identity(identity.clone());
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

    /// Gives the lead away, if it has it and somebody takes it; says good-bye to the nodes and
    /// stops. The store stays open.
    pub async fn shutdown(mut self) {
        peers::hand_over(&self.shared.store).await;
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
        if let Some(tenure) = self.shared.tenure.send_replace(None) {
            tenure.end();
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.loops.abort_all();
        self.end_helpers();
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}
