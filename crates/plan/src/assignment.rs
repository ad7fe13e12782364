//! What one node must run and know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_model::assignment::{
    Assignment, Backend, BackendState, EndpointEntry, IngressPort, Known, KnownChanges, ListChange,
    NetworkInfo, NetworkTable, Peer, ServiceEntry,
};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, NetworkId, NodeId, SecretId, ServiceId};
use shoal_model::object::{Network, Node, NodeState, Service, Task, TaskNetwork};
use shoal_model::payload::{Payload, Payloads};
use shoal_model::spec::service::{EndpointMode, PublishMode};
use shoal_model::spec::task::NetworkAttachmentConfig;
use shoal_model::task_state::TaskState;

use crate::allocation::find_network;
use crate::work::is_lost;

/// VXLAN's registered port, if the cluster does not say.
const VXLAN_PORT: u16 = 4789;

/// The assignment of `node` at this snapshot. To compute those of many nodes, again and again, keep
/// a [`Feed`].
#[must_use]
pub fn for_node(state: &ClusterState, node: &NodeId) -> Assignment {
    Feed::default().next(state).for_node(node)
}

/// What all nodes share, from one snapshot to the next: a table that has not changed stays the very
/// same, and what has changed is worked out once.
#[derive(Debug, Default)]
pub struct Feed {
    tables: BTreeMap<NetworkId, Arc<NetworkTable>>,
    ingress_ports: Arc<Vec<IngressPort>>,
    changes: Arc<KnownChanges>,
}

impl Feed {
    /// Goes on to a snapshot.
    pub fn next<'a>(&'a mut self, state: &'a ClusterState) -> View<'a> {
        let view = Snapshot::new(state);
        let mut changes = KnownChanges::default();
        let mut tables = BTreeMap::new();
        for (id, network) in state.networks.iter() {
            let table = Arc::new(view.table(network));
            let table = match self.tables.get(id) {
                Some(old) if **old == *table => Arc::clone(old),
                Some(old) => {
                    let change = Arc::new(table.change_from(Some(old)));
                    let known = Known { from: Arc::clone(old), to: Arc::clone(&table), change };
                    changes.tables.insert(id.clone(), known);
                    table
                }
                None => table,
            };
            tables.insert(id.clone(), table);
        }
        let ports = view.ingress_ports();
        if *self.ingress_ports != ports {
            let ports = Arc::new(ports);
            let change = Arc::new(ListChange::between(&self.ingress_ports, &ports));
            let from = std::mem::replace(&mut self.ingress_ports, Arc::clone(&ports));
            changes.ingress_ports = Some(Known { from, to: ports, change });
        }
        self.tables = tables;
        self.changes = Arc::new(changes);
        let mut of_node: BTreeMap<&NodeId, Vec<&Arc<Task>>> = BTreeMap::new();
        // Ended tasks stay until their record goes: the node keeps their containers and logs.
        for task in state.tasks.values().filter(|t| t.status.state >= TaskState::Assigned) {
            if let Some(node) = &task.node_id {
                of_node.entry(node).or_default().push(task);
            }
        }
        View { feed: self, state, of_node }
    }
}

/// One snapshot, from which each node gets its part.
#[derive(Debug)]
pub struct View<'a> {
    feed: &'a Feed,
    state: &'a ClusterState,
    of_node: BTreeMap<&'a NodeId, Vec<&'a Arc<Task>>>,
}

impl View<'_> {
    /// What has changed since the snapshot before, of what all nodes share.
    #[must_use]
    pub fn changes(&self) -> Arc<KnownChanges> {
        Arc::clone(&self.feed.changes)
    }

    /// The assignment of `node`.
    #[must_use]
    pub fn for_node(&self, node: &NodeId) -> Assignment {
        let state = self.state;
        let mine = self.of_node.get(node).into_iter().flatten();
        let tasks: BTreeMap<_, _> = mine.map(|task| (task.id.clone(), Arc::clone(task))).collect();
        let active = || tasks.values().filter(|t| !t.status.state.is_terminal());
        let mut needed: BTreeSet<&NetworkId> =
            active().flat_map(|t| t.networks.iter().map(|n| &n.network_id)).collect();
        needed.extend(state.networks.values().filter(|n| n.is_ingress()).map(|n| &n.id));
        let tables = needed.into_iter().filter_map(|id| self.feed.tables.get_key_value(id));
        let networks = tables.map(|(id, table)| (id.clone(), Arc::clone(table))).collect();
        let payloads = payloads(state, active());
        Assignment {
            revision: state.revision,
            networks,
            ingress_ports: Arc::clone(&self.feed.ingress_ports),
            own: state.nodes.get(node).and_then(|n| peer(n)),
            payloads,
            tasks,
        }
    }
}

/// What tables are made of, by what they are looked up by.
struct Snapshot<'a> {
    state: &'a ClusterState,
    by_service: BTreeMap<&'a ServiceId, Vec<&'a Task>>,
    by_network: BTreeMap<&'a NetworkId, Vec<(&'a Task, &'a TaskNetwork)>>,
    services: BTreeMap<&'a NetworkId, Vec<(&'a Service, &'a NetworkAttachmentConfig)>>,
}

impl<'a> Snapshot<'a> {
    fn new(state: &'a ClusterState) -> Self {
        let up = |t: &&'a Task| {
            let node = t.node_id.as_ref().and_then(|id| state.nodes.get(id));
            // A node that left on purpose still serves what is connected while it stops.
            node.is_some_and(|n| n.status.state != NodeState::Down)
        };
        let alive =
            |t: &&Task| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal();
        let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut by_network: BTreeMap<_, Vec<_>> = BTreeMap::new();
        // Those with a place in the data plane: they have a node that is up, and have not ended.
        for task in state.tasks.values().map(Arc::as_ref).filter(alive).filter(up) {
            if let Some(service) = &task.service_id {
                by_service.entry(service).or_default().push(task);
            }
            for place in &task.networks {
                by_network.entry(&place.network_id).or_default().push((task, place));
            }
        }
        let mut services: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for service in state.services.values().map(Arc::as_ref) {
            for attachment in service.spec.networks() {
                if let Some(network) = find_network(&state.networks, &attachment.target) {
                    services.entry(&network.id).or_default().push((service, attachment));
                }
            }
        }
        Self { state, by_service, by_network, services }
    }

    fn table(&self, network: &Network) -> NetworkTable {
        let port = self.state.cluster.as_ref().map_or(VXLAN_PORT, |c| c.data_path_port);
        let places = self.by_network.get(&network.id).into_iter().flatten();
        let services = self.services.get(&network.id).into_iter().flatten();
        let mut table = NetworkTable {
            network: NetworkInfo::of(network, port),
            peers: self.state.nodes.values().filter_map(|n| peer(n)).collect(),
            endpoints: places.flat_map(|(task, place)| endpoints(task, place)).collect(),
            services: if network.is_ingress() {
                // Names are not for the ingress network; published ports are listed by themselves.
                Vec::new()
            } else {
                services.map(|(s, attachment)| self.service(s, attachment, network)).collect()
            },
        };
        table.sort();
        table
    }

    fn service(
        &self,
        service: &Service,
        attachment: &NetworkAttachmentConfig,
        network: &Network,
    ) -> ServiceEntry {
        let mode = service.spec.endpoint_mode();
        let vip = service.endpoint.vips.iter().find(|v| v.network_id == network.id);
        ServiceEntry {
            service_id: service.id.clone(),
            name: service.spec.name.clone(),
            aliases: attachment.aliases.clone().unwrap_or_default(),
            mode,
            vip: vip.filter(|_| mode == EndpointMode::Vip).map(|v| v.addr.addr()),
            backends: self.backends(&service.id, &network.id),
        }
    }

    /// The tasks of a service that connections go to, in the order of their addresses.
    fn backends(&self, service: &ServiceId, network: &NetworkId) -> Vec<Backend> {
        let tasks = self.by_service.get(service).into_iter().flatten();
        let running = tasks.filter(|t| t.status.state == TaskState::Running);
        let mut backends: Vec<Backend> =
            running
                .flat_map(|task| {
                    let node = task.node_id.as_ref().and_then(|id| self.state.nodes.get(id));
                    let stays = node.is_some_and(|n| !is_lost(n));
                    let state = if stays && task.desired_state <= TaskState::Running {
                        BackendState::Serving
                    } else {
                        BackendState::Draining
                    };
                    let places = task.networks.iter().filter(|n| n.network_id == *network);
                    places.flat_map(move |n| n.addresses.iter().take(1)).map(move |address| {
                        Backend { address: address.addr(), task_id: task.id.clone(), state }
                    })
                })
                .collect();
        backends.sort();
        backends
    }

    fn ingress_ports(&self) -> Vec<IngressPort> {
        let Some(ingress) = self.state.networks.values().find(|n| n.is_ingress()) else {
            return Vec::new();
        };
        let mut ports = Vec::new();
        for service in self.state.services.values() {
            let published = service.endpoint.ports.iter();
            for port in published.filter(|p| p.mode() == PublishMode::Ingress) {
                ports.push(IngressPort {
                    service_id: service.id.clone(),
                    service_name: service.spec.name.clone(),
                    port: port.clone(),
                    backends: self.backends(&service.id, &ingress.id),
                });
            }
        }
        IngressPort::sort(&mut ports);
        ports
    }
}

/// What `tasks` refer to, and nothing else.
fn payloads<'t>(state: &ClusterState, tasks: impl Iterator<Item = &'t Arc<Task>>) -> Payloads {
    let mut payloads = Payloads::default();
    for container in tasks.filter_map(|t| t.spec.container_spec.as_ref()) {
        for reference in container.secrets.iter().flatten() {
            let id = SecretId::new(reference.secret_id.as_str());
            let known = state.secrets.get(&id).map(|secret| Payload::of(&secret.spec));
            payloads.secrets.insert(id, known);
        }
        for reference in container.configs.iter().flatten() {
            let id = ConfigId::new(reference.config_id.as_str());
            let known = state.configs.get(&id).map(|config| Payload::of(&config.spec));
            payloads.configs.insert(id, known);
        }
    }
    payloads
}

/// A node as the other end of a tunnel, once it has said where its frames come from. Nodes that are
/// down stay: their tunnel costs nothing, and they may be back before anybody has noticed.
fn peer(node: &Node) -> Option<Peer> {
    let underlay = node.data_path_addr?;
    Some(Peer { node_id: node.id.clone(), index: node.index, underlay })
}

fn endpoints<'t>(
    task: &'t Task,
    place: &'t TaskNetwork,
) -> impl Iterator<Item = EndpointEntry> + 't {
    let names = match task.service_id {
        Some(_) => vec![task.name()],
        // A hand-made container resolves by its names only.
        None => place.aliases.clone(),
    };
    let node = task.node_id.clone();
    let addresses = place.addresses.iter();
    addresses.filter_map(move |address| {
        Some(EndpointEntry {
            task_id: task.id.clone(),
            node_id: node.clone()?,
            address: address.addr(),
            names: names.clone(),
        })
    })
}
