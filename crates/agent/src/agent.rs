//! The agent's handle and what it holds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use shoal_engine::config::Clock;
use shoal_engine::engine::Engine;
use shoal_identity::node_identity::NodeIdentity;
use shoal_image::store::ImageStore;
use shoal_model::assignment::Assignment;
use shoal_model::event::{Event, Scope};
use shoal_model::id::{ContainerId, NetworkId};
use shoal_model::object::{NodeDescription, Subnet};
use shoal_model::spec::StringMap;
use shoal_network::claims::HostPort;
use shoal_network::desired::DesiredNetwork;
use shoal_network::node_network::NodeNetwork;
use shoal_network::status::{Drift, NetworkStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, Generation};
use crate::desired::{Attached, Place, desired, place_of};
use crate::error::AgentError;
use crate::file;
use crate::local::{LocalNetwork, LocalNetworks, MTU_DEFAULT};
use crate::report::Reporter;
use crate::session::SessionHub;
use crate::{places, session, tasks};

/// How long a node that leaves waits for its tasks to be handed over. A task that takes longer to
/// stop gets no new connections meanwhile.
const HAND_OVER_MAX: Duration = Duration::from_secs(15);
/// How long the agent's loops may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

/// What the composition root passes in.
#[derive(Clone)]
pub struct AgentConfig {
    /// Durable state: `agent/` is made in it.
    pub data_root: PathBuf,
    /// The wall clock.
    pub clock: Clock,
    /// Describes this node: host name, resources, checks. Asked at each new session.
    pub describe: Arc<dyn Fn() -> NodeDescription + Send + Sync>,
}

/// This node's place in a cluster.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Managers to connect to, `address:port`, best first.
    pub managers: Vec<String>,
    /// Where other nodes reach it.
    pub advertise_addr: Option<std::net::IpAddr>,
    /// Where its VXLAN frames come from and go to.
    pub data_path_addr: Option<std::net::IpAddr>,
}

/// The agent. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Agent {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: AgentConfig,
    pub(crate) network: NodeNetwork,
    pub(crate) local: LocalNetworks,
    pub(crate) engine: OnceLock<Engine>,
    pub(crate) images: OnceLock<ImageStore>,
    pub(crate) attached: Mutex<BTreeMap<ContainerId, Attached>>,
    pub(crate) assignment: watch::Sender<Arc<Assignment>>,
    pub(crate) membership: watch::Sender<Option<Membership>>,
    pub(crate) applier: Applier,
    pub(crate) reporter: Reporter,
    pub(crate) hub: SessionHub,
    /// Tasks that still have a controller.
    pub(crate) task_count: watch::Sender<usize>,
    stop: CancellationToken,
    loops: Mutex<JoinSet<()>>,
}

impl Agent {
    /// Reads what an agent of this data root left: local networks and the last assignment.
    ///
    /// # Errors
    /// A file cannot be read, or has an unknown format.
    pub fn open(config: AgentConfig, network: NodeNetwork) -> Result<Self, AgentError> {
        let dir = config.data_root.join("agent");
        std::fs::create_dir_all(&dir)
            .map_err(|source| AgentError::WriteFile { path: dir.clone(), source })?;
        let local = LocalNetworks::open(&dir, (config.clock)())?;
        let assignment: Assignment =
            file::read_json(&dir.join("assignment.json"))?.unwrap_or_default();
        Ok(Self {
            inner: Arc::new(Inner {
                network,
                local,
                engine: OnceLock::new(),
                images: OnceLock::new(),
                attached: Mutex::new(BTreeMap::new()),
                assignment: watch::Sender::new(Arc::new(assignment)),
                membership: watch::Sender::new(None),
                applier: Applier::default(),
                reporter: Reporter::default(),
                hub: SessionHub::default(),
                task_count: watch::Sender::new(0),
                stop: CancellationToken::new(),
                loops: Mutex::new(JoinSet::new()),
                config,
            }),
        })
    }

    /// Starts the loops. `engine` must have been opened with this agent as its attacher.
    pub fn start(&self, engine: Engine, images: ImageStore) {
        if self.inner.images.set(images).is_err() || self.inner.engine.set(engine).is_err() {
            return;
        }
        let mut loops = lock(&self.inner.loops);
        let inner = Arc::clone(&self.inner);
        let stop = self.inner.stop.clone();
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = inner.applier.run(&inner) => {}
            }
        });
        let (agent, stop) = (self.clone(), self.inner.stop.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tasks::run(&agent) => {}
            }
        });
        let (agent, stop) = (self.clone(), self.inner.stop.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = session::run(&agent) => {}
            }
        });
        let (agent, stop) = (self.clone(), self.inner.stop.clone());
        loops.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = places::watch_exits(&agent) => {}
            }
        });
        drop(loops);
        self.changed();
    }

    /// Ends the loops; containers and data plane stay as they are.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let mut loops = std::mem::take(&mut *lock(&self.inner.loops));
        let all = async { while loops.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_err() {
            loops.abort_all();
        }
    }

    /// Makes this node a member, or (with `None`) no member any more: its tasks then end and its
    /// overlays go.
    pub fn set_membership(&self, membership: Option<Membership>) {
        let leaves = membership.is_none();
        self.inner.membership.send_replace(membership);
        if leaves {
            self.set_assignment(Assignment::default());
        }
    }

    /// Says good-bye to the manager, and hands over what this node serves: first the other nodes
    /// take its tasks out of their balancing, then the tasks stop. Without a manager to tell there
    /// is nothing to wait for.
    pub async fn say_leave(&self) {
        if self.inner.hub.leave().await {
            tokio::select! {
                () = tasks::handed_over(self) => {}
                () = self.inner.hub.left() => {}
                () = tokio::time::sleep(HAND_OVER_MAX) => {}
            }
        }
    }

    /// Waits until no task of the swarm is left on this node.
    ///
    /// # Errors
    /// Some are after `deadline`.
    pub async fn drained(&self, deadline: Duration) -> Result<(), AgentError> {
        tasks::drained(self, deadline).await
    }

    /// Managers that this node knows of, `address:port`.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        self.inner.hub.managers()
    }

    /// Why there is no session right now; empty if there is one.
    #[must_use]
    pub fn session_error(&self) -> String {
        self.inner.hub.error()
    }

    /// This node's own networks.
    #[must_use]
    pub fn local(&self) -> &LocalNetworks {
        &self.inner.local
    }

    /// The kernel's side.
    #[must_use]
    pub fn network(&self) -> &NodeNetwork {
        &self.inner.network
    }

    /// State of the networks.
    pub async fn network_status(&self) -> NetworkStatus {
        self.inner.network.status().await
    }

    /// The last assignment.
    #[must_use]
    pub fn assignment(&self) -> Arc<Assignment> {
        Arc::clone(&self.inner.assignment.borrow())
    }

    /// Makes a local network. Its subnet overlaps none that this node knows of.
    ///
    /// # Errors
    /// See [`LocalNetworks::create`].
    pub fn create_network(
        &self,
        spec: shoal_model::spec::network::NetworkSpec,
    ) -> Result<LocalNetwork, AgentError> {
        let assignment = self.assignment();
        let taken: Vec<_> = assignment
            .networks
            .values()
            .flat_map(|t| t.network.subnets.iter().map(|s| s.subnet))
            .collect();
        let made = self.local().create(spec, &taken, (self.inner.config.clock)())?;
        self.inner.note_network(&made.id, made.name(), "bridge", "create");
        Ok(made)
    }

    /// Removes a local network.
    ///
    /// # Errors
    /// See [`LocalNetworks::remove`].
    pub fn remove_network(&self, id: &NetworkId) -> Result<(), AgentError> {
        let name = self.local().find(id.as_str())?.name().to_owned();
        self.local().remove(id)?;
        self.inner.note_network(id, &name, "bridge", "destroy");
        Ok(())
    }

    /// Containers with a place on `network`, with their addresses.
    #[must_use]
    pub fn on_network(&self, network: &NetworkId) -> Vec<(Attached, Place)> {
        let attached = lock(&self.inner.attached);
        let on = |a: &Attached| {
            let place = a.places.iter().find(|p| p.network_id == *network)?.clone();
            Some((a.clone(), place))
        };
        attached.values().filter_map(on).collect()
    }

    /// Describes this node, without blocking the runtime.
    pub(crate) async fn description(&self) -> NodeDescription {
        let describe = Arc::clone(&self.inner.config.describe);
        tokio::task::spawn_blocking(move || describe()).await.unwrap_or_default()
    }

    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.inner.engine.get()
    }

    /// The desired state has changed.
    pub(crate) fn changed(&self) -> Generation {
        self.inner.applier.changed()
    }

    pub(crate) fn set_assignment(&self, assignment: Assignment) {
        let path = self.inner.config.data_root.join("agent").join("assignment.json");
        self.inner.assignment.send_replace(Arc::new(assignment));
        self.changed();
        // Written after it is in force: it only matters to the next daemon. A failed write leaves
        // the older one, which the next session corrects; the disk's state is doctor's business.
        // Secrets and configs never get there: the next session sends them again.
        if let Err(error) = file::write_json(&path, &self.assignment().durable()) {
            self.inner.hub.set_error(shoal_model::fault::report(&error));
        }
    }

    pub(crate) fn attached(&self, container: &ContainerId) -> Option<Attached> {
        lock(&self.inner.attached).get(container).cloned()
    }

    pub(crate) fn insert(&self, attached: Attached) {
        lock(&self.inner.attached).insert(attached.container_id.clone(), attached);
    }

    /// The ports that Shoal itself has given out on this host, and to whom.
    pub(crate) fn published_ports(&self) -> Vec<(HostPort, String)> {
        let attached = lock(&self.inner.attached);
        let own = attached.values().flat_map(|a| {
            let holder = format!("container '{}'", a.name);
            a.published.iter().map(move |p| (place_of(p), holder.clone()))
        });
        let assignment = self.assignment();
        let mesh = assignment.ingress_ports.iter().filter_map(|p| {
            let place = HostPort::new(p.port.published()?, None);
            Some((place, format!("service '{}'", p.service_name)))
        });
        own.chain(mesh).collect()
    }

    /// Name and subnets of a network that this node knows.
    pub(crate) fn network_facts(&self, id: &NetworkId) -> (String, Vec<Subnet>) {
        if let Ok(network) = self.local().find(id.as_str()) {
            return (network.name().to_owned(), network.subnets);
        }
        let assignment = self.assignment();
        assignment.networks.get(id).map_or_else(
            || (id.to_string(), Vec::new()),
            |table| (table.network.name.clone(), table.network.subnets.clone()),
        )
    }
}

impl Agent {
    /// Largest packet of a network that this node knows, in bytes.
    pub(crate) fn network_mtu(&self, id: &NetworkId) -> u32 {
        if let Ok(network) = self.local().find(id.as_str()) {
            return network.mtu;
        }
        self.assignment().networks.get(id).map_or(MTU_DEFAULT, |table| table.network.mtu)
    }

    /// Whether a network carries the routing mesh.
    pub(crate) fn is_ingress(&self, id: &NetworkId) -> bool {
        self.assignment().networks.get(id).is_some_and(|table| table.network.ingress)
    }
}

impl Inner {
    pub(crate) fn desired(&self) -> DesiredNetwork {
        let assignment = Arc::clone(&self.assignment.borrow());
        let local = self.local.list();
        desired(&assignment, &local, &lock(&self.attached))
    }

    /// Publishes a repair of the kernel's state as an event.
    pub(crate) fn note_drift(&self, drift: &Drift) {
        let attributes = StringMap::from([
            ("name".to_owned(), drift.place.clone()),
            ("found".to_owned(), drift.found.join("; ")),
            ("repaired".to_owned(), drift.repaired.to_string()),
        ]);
        self.publish("network", "repair", &drift.place, attributes);
    }

    fn note_network(&self, id: &NetworkId, name: &str, kind: &str, action: &str) {
        let attributes = StringMap::from([
            ("name".to_owned(), name.to_owned()),
            ("type".to_owned(), kind.to_owned()),
        ]);
        self.publish("network", action, id.as_str(), attributes);
    }

    fn publish(&self, kind: &str, action: &str, id: &str, attributes: StringMap) {
        if let Some(engine) = self.engine.get() {
            engine.events().publish(Event {
                kind: kind.to_owned(),
                action: action.to_owned(),
                id: id.to_owned(),
                attributes,
                scope: Scope::Local,
                time: (self.config.clock)(),
            });
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
