//! The agent's handle and what it holds.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use shoal_engine::config::Clock;
use shoal_engine::engine::Engine;
use shoal_identity::node_identity::NodeIdentity;
use shoal_image::store::ImageStore;
use shoal_model::assignment::{Assignment, IngressPort};
use shoal_model::event::{Event, Scope};
use shoal_model::id::{NetworkId, TaskId};
use shoal_model::object::{NodeDescription, Subnet};
use shoal_model::spec::StringMap;
use shoal_network::claims::HostPort;
use shoal_network::desired::DesiredNetwork;
use shoal_network::node_network::NodeNetwork;
use shoal_network::status::{Drift, NetworkStatus};
use shoal_wire::message::{RoleWish, TrustWish};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, Generation};
use crate::assigned::Assigned;
use crate::damage::Damage;
use crate::desired::{Attached, Place, desired, mesh_holder, place_of};
use crate::error::AgentError;
use crate::held::Attachments;
use crate::local::{LocalNetwork, LocalNetworks, MTU_DEFAULT};
use crate::report::Reporter;
use crate::session::SessionHub;
use crate::streams::{StreamService, Streams};
use crate::{places, session, tasks};

/// How long a node that leaves waits for its tasks to be handed over. A task that takes longer to
/// stop gets no new connections meanwhile.
const HAND_OVER_MAX: Duration = Duration::from_secs(15);
/// Within what time a daemon that is stopped for a moment is back: an upgrade takes seconds, a
/// machine's start a minute.
const BACK_SOON: Duration = Duration::from_secs(60);
/// How long the manager may take to hear that.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How long the agent's loops may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// Pause before local networks that could not be written are tried again.
const SETTLE_PAUSE: Duration = Duration::from_secs(2);

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

/// The parts of an agent. Each keeps its own state; nothing here is changed by two of them.
pub(crate) struct Inner {
    pub(crate) config: AgentConfig,
    pub(crate) network: NodeNetwork,
    pub(crate) local: LocalNetworks,
    pub(crate) engine: OnceLock<Engine>,
    pub(crate) images: OnceLock<ImageStore>,
    pub(crate) attachments: Attachments,
    pub(crate) assigned: Assigned,
    pub(crate) membership: watch::Sender<Option<Membership>>,
    pub(crate) applier: Applier,
    pub(crate) reporter: Reporter,
    pub(crate) hub: SessionHub,
    pub(crate) tasks: tasks::Table,
    pub(crate) streams: Streams,
    /// This node as the templates of a task may name it; read once, for as long as the daemon runs.
    description: tokio::sync::OnceCell<NodeDescription>,
    damage: Damage,
    stop: CancellationToken,
    loops: Mutex<JoinSet<()>>,
}

impl Agent {
    /// Reads what an agent of this data root left: local networks and the last assignment. What
    /// cannot be used is kept aside and named in [`Self::damaged`]; the agent does without.
    ///
    /// # Errors
    /// None today.
    pub fn open(config: AgentConfig, network: NodeNetwork) -> Result<Self, AgentError> {
        let dir = config.data_root.join("agent");
        let damage = Damage::default();
        if let Err(error) = shoal_durable::make_private_dir(&dir) {
            damage.note(format!("cannot make '{}': {error}", dir.display()));
        }
        let local = LocalNetworks::open(&dir, (config.clock)(), &damage);
        Ok(Self {
            inner: Arc::new(Inner {
                network,
                local,
                engine: OnceLock::new(),
                images: OnceLock::new(),
                attachments: Attachments::default(),
                assigned: Assigned::open(&dir, &damage),
                membership: watch::Sender::new(None),
                applier: Applier::default(),
                reporter: Reporter::default(),
                hub: SessionHub::default(),
                tasks: tasks::Table::open(&dir, &damage),
                streams: Streams::default(),
                description: tokio::sync::OnceCell::new(),
                damage,
                stop: CancellationToken::new(),
                loops: Mutex::new(JoinSet::new()),
                config,
            }),
        })
    }

    /// What of the agent's state could not be used or written, for `docker info`.
    #[must_use]
    pub fn damaged(&self) -> Vec<String> {
        let mut found = self.inner.damage.list();
        let owed = [self.inner.assigned.problem(), self.inner.local.problem()];
        found.extend(owed.into_iter().filter(|problem| !problem.is_empty()));
        found
    }

    /// What is wrong between this node and its manager, for `docker info`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        Some(self.inner.hub.skew()).filter(|text| !text.is_empty()).into_iter().collect()
    }

    /// Starts the loops. `engine` must have been opened with this agent as its attacher.
    pub fn start(&self, engine: Engine, images: ImageStore) {
        if self.inner.images.set(images).is_err() || self.inner.engine.set(engine).is_err() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        self.spawn(async move { inner.applier.run(&inner).await });
        let inner = Arc::clone(&self.inner);
        self.spawn(async move { inner.assigned.keep().await });
        let inner = Arc::clone(&self.inner);
        self.spawn(async move { keep_local(&inner).await });
        let agent = self.clone();
        self.spawn(async move { tasks::run(&agent).await });
        let agent = self.clone();
        self.spawn(async move { session::run(&agent).await });
        let agent = self.clone();
        self.spawn(async move { places::watch_exits(&agent).await });
        self.changed();
    }

    /// From now on `service` serves the streams that managers ask for. The first one stays.
    pub fn serve_streams(&self, service: Arc<dyn StreamService>) {
        self.inner.streams.serve(service);
    }

    /// Ends when the agent does.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Runs a loop until the agent stops.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        lock(&self.inner.loops).spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// The daemon stops and its containers with it: from now on their ends say nothing of the
    /// tasks. Kept for the next daemon, which says of them that they were stopped.
    pub async fn daemon_stops(&self) {
        let agent = self.clone();
        let stopped = tokio::task::spawn_blocking(move || agent.inner.tasks.freeze()).await;
        if let Err(error) = stopped {
            tracing::error!(cause = %error, "what the daemon stops was not kept");
        }
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
        self.inner.hub.forget_wishes();
        let tls = membership.as_ref().map(|member| member.identity.tls());
        self.inner.hub.set_tls(tls.unwrap_or_default());
        self.inner.membership.send_replace(membership);
        if leaves {
            self.set_assignment(Assignment::default());
        }
    }

    /// A renewed certificate: sessions begin with it from now on; the one that is open stays.
    pub fn set_identity(&self, identity: NodeIdentity) {
        let tls = identity.tls();
        self.inner.membership.send_if_modified(|membership| {
            if let Some(membership) = membership {
                membership.identity = identity;
            }
            // Nobody need begin anew.
            false
        });
        self.inner.hub.set_tls(tls);
    }

    /// Says good-bye to the manager, and hands over what this node serves: first the other nodes
    /// take its tasks out of their balancing, then the tasks stop. Without a manager to tell there
    /// is nothing to wait for.
    pub async fn say_leave(&self) {
        if self.inner.hub.leave().await {
            tokio::select! {
                biased;
                () = tasks::handed_over(self) => {}
                () = self.inner.hub.left() => {}
                () = tokio::time::sleep(HAND_OVER_MAX) => {}
            }
        }
    }

    /// Tells the manager that this node's daemon stops while its tasks run on, and will be back
    /// soon: they are not replaced meanwhile.
    pub async fn say_back_soon(&self) {
        if self.inner.hub.back_soon(BACK_SOON).await
            && tokio::time::timeout(FAREWELL_MAX, self.inner.hub.left()).await.is_err()
        {
            tracing::warn!(
                seconds = FAREWELL_MAX.as_secs(),
                "the manager did not answer that this node will be back; it may replace its tasks"
            );
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

    /// Follows [`Self::managers`].
    #[must_use]
    pub fn follow_managers(&self) -> watch::Receiver<Vec<String>> {
        self.inner.hub.follow_managers()
    }

    /// Follows what the leader says that this node is to be, as often as it says so.
    #[must_use]
    pub fn follow_role(&self) -> watch::Receiver<Option<RoleWish>> {
        self.inner.hub.role()
    }

    /// Follows whom the leader says that this node is to trust.
    #[must_use]
    pub fn follow_trust(&self) -> watch::Receiver<Option<TrustWish>> {
        self.inner.hub.trust()
    }

    /// Counts how often a manager said that this node's certificate is of a root that was replaced.
    #[must_use]
    pub fn follow_outdated(&self) -> watch::Receiver<u64> {
        self.inner.hub.outdated()
    }

    /// Turns true when the leader says that this node is no member any more.
    #[must_use]
    pub fn follow_removed(&self) -> watch::Receiver<bool> {
        self.inner.hub.removed()
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
        self.inner.assigned.get()
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
        let on = |a: &Attached| {
            let place = a.places.iter().find(|p| p.network_id == *network)?.clone();
            Some((a.clone(), place))
        };
        self.inner.attachments.with(|all| all.values().filter_map(on).collect())
    }

    /// Describes this node as it is now, without blocking the runtime.
    pub async fn description(&self) -> NodeDescription {
        let describe = Arc::clone(&self.inner.config.describe);
        let described = tokio::task::spawn_blocking(move || describe()).await;
        described.unwrap_or_else(|error| {
            tracing::error!(cause = %error, "this node could not be described");
            NodeDescription::default()
        })
    }

    /// What describes this node is another thing now: managers are told.
    pub fn describe_again(&self) {
        self.inner.hub.describe_again();
    }

    /// As [`Self::description`], asked once: for what does not change while the node runs.
    pub(crate) async fn fixed_description(&self) -> NodeDescription {
        self.inner.description.get_or_init(|| self.description()).await.clone()
    }

    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.inner.engine.get()
    }

    /// The desired state has changed.
    pub(crate) fn changed(&self) -> Generation {
        self.inner.applier.changed()
    }

    pub(crate) fn set_assignment(&self, assignment: Assignment) {
        self.inner.assigned.set(assignment);
        self.changed();
    }

    /// The ports that Shoal itself has given out on this host, and to whom.
    pub(crate) fn published_ports(&self) -> Vec<(HostPort, String)> {
        let mut ports = self.container_ports();
        ports.extend(self.assignment().ingress_ports.iter().filter_map(claim));
        ports
    }

    /// The ports that the task's service publishes on every node, in the service's name.
    pub(crate) fn mesh_ports_of(&self, task: &TaskId) -> Vec<(HostPort, String)> {
        let assignment = self.assignment();
        let Some(task) = assignment.tasks.get(task) else { return Vec::new() };
        let of = |port: &&IngressPort| task.service_id.as_ref() == Some(&port.service_id);
        assignment.ingress_ports.iter().filter(of).filter_map(claim).collect()
    }

    /// The ports of this host that containers have, and which.
    pub(crate) fn container_ports(&self) -> Vec<(HostPort, String)> {
        let of = |a: &Attached| {
            let holder = format!("container '{}'", a.name);
            a.published.iter().map(|p| (place_of(p), holder.clone())).collect::<Vec<_>>()
        };
        self.inner.attachments.with(|all| all.values().flat_map(of).collect())
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

/// The port of this host that a service publishes on every node, and in whose name.
fn claim(port: &IngressPort) -> Option<(HostPort, String)> {
    Some((HostPort::new(port.port.published()?, None), mesh_holder(port)))
}

impl Inner {
    pub(crate) fn desired(&self) -> DesiredNetwork {
        let assignment = self.assigned.get();
        let local = self.local.list();
        self.attachments.with(|attached| desired(&assignment, &local, attached))
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

/// Writes what of the local networks is owed to the disk, for ever.
async fn keep_local(inner: &Arc<Inner>) {
    loop {
        inner.local.owes().await;
        let local = Arc::clone(inner);
        let wrote = tokio::task::spawn_blocking(move || local.local.settle()).await;
        if let Err(error) = wrote {
            tracing::error!(cause = %error, "a write of the local networks broke off; it is owed \
                                             as before");
        }
        if !inner.local.problem().is_empty() {
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
