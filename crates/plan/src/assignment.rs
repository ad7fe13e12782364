//! What one node must run and know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_model::assignment::{
    Assignment, Backend, BackendState, EndpointEntry, IngressPort, NetworkInfo, NetworkTable, Peer,
    ServiceEntry,
};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, NetworkId, NodeId, SecretId, ServiceId};
use shoal_model::object::{Network, Node, NodeState, Service, Task};
use shoal_model::payload::{Payload, Payloads};
use shoal_model::spec::service::{EndpointMode, PublishMode};
use shoal_model::task_state::TaskState;

use crate::allocation::find_network;
use crate::work::is_lost;

/// VXLAN's registered port, if the cluster does not say.
const VXLAN_PORT: u16 = 4789;

/// The assignment of `node` at this snapshot. To compute those of many nodes, make one [`View`].
#[must_use]
pub fn for_node(state: &ClusterState, node: &NodeId) -> Assignment {
    View::new(state).for_node(node)
}

/// The endpoint tables of every network at one snapshot, from which each node gets its part.
pub struct View<'a> {
    state: &'a ClusterState,
    /// Tasks with a place in the data plane: they have a node that is up, and have not ended.
    placed: Vec<&'a Arc<Task>>,
    by_service: BTreeMap<&'a ServiceId, Vec<&'a Arc<Task>>>,
}

impl<'a> View<'a> {
    /// Gathers what every node's assignment is made of.
    #[must_use]
    pub fn new(state: &'a ClusterState) -> Self {
        let up = |t: &&Arc<Task>| {
            let node = t.node_id.as_ref().and_then(|id| state.nodes.get(id));
            // A node that left on purpose still serves what is connected while it stops.
            node.is_some_and(|n| n.status.state != NodeState::Down)
        };
        let alive =
            |t: &&Arc<Task>| t.status.state >= TaskState::Assigned && !t.status.state.is_terminal();
        let placed: Vec<_> = state.tasks.values().filter(alive).filter(up).collect();
        let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for task in &placed {
            if let Some(service) = &task.service_id {
                by_service.entry(service).or_default().push(*task);
            }
        }
        Self { state, placed, by_service }
    }

    /// The assignment of `node`.
    #[must_use]
    pub fn for_node(&self, node: &NodeId) -> Assignment {
        let state = self.state;
        // Ended tasks stay until their record goes: the node keeps their containers and logs.
        let mine = |t: &&Arc<Task>| {
            t.node_id.as_ref() == Some(node) && t.status.state >= TaskState::Assigned
        };
        let tasks: BTreeMap<_, _> = state
            .tasks
            .values()
            .filter(mine)
            .map(|task| (task.id.clone(), (**task).clone()))
            .collect();
        let active = tasks.values().filter(|t| !t.status.state.is_terminal());
        let mut needed: BTreeSet<&NetworkId> =
            active.flat_map(|t| t.networks.iter().map(|n| &n.network_id)).collect();
        needed.extend(state.networks.values().filter(|n| n.is_ingress()).map(|n| &n.id));
        let payloads = payloads(state, tasks.values().filter(|t| !t.status.state.is_terminal()));
        let networks = needed.into_iter().filter_map(|id| state.networks.get(id));
        let networks = networks.map(|n| (n.id.clone(), self.table(n, node))).collect();
        Assignment {
            revision: state.revision,
            tasks,
            networks,
            ingress_ports: self.ingress_ports(),
            own: state.nodes.get(node).and_then(|n| peer(n)),
            payloads,
        }
    }

    fn table(&self, network: &Network, node: &NodeId) -> NetworkTable {
        let state = self.state;
        let port = state.cluster.as_ref().map_or(VXLAN_PORT, |c| c.data_path_port);
        let others = state.nodes.values().filter(|n| n.id != *node);
        NetworkTable {
            network: NetworkInfo::of(network, port),
            peers: others.filter_map(|n| peer(n)).collect(),
            endpoints: self.placed.iter().flat_map(|t| endpoints(t, &network.id)).collect(),
            services: if network.is_ingress() {
                // Names are not for the ingress network; published ports are listed by themselves.
                Vec::new()
            } else {
                state.services.values().filter_map(|s| self.service(s, network)).collect()
            },
        }
    }

    fn service(&self, service: &Service, network: &Network) -> Option<ServiceEntry> {
        let attachment = service.spec.networks().iter().find(|a| {
            find_network(&self.state.networks, &a.target).is_some_and(|n| n.id == network.id)
        })?;
        let mode = service.spec.endpoint_mode();
        let vip = service.endpoint.vips.iter().find(|v| v.network_id == network.id);
        Some(ServiceEntry {
            service_id: service.id.clone(),
            name: service.spec.name.clone(),
            aliases: attachment.aliases.clone().unwrap_or_default(),
            mode,
            vip: vip.filter(|_| mode == EndpointMode::Vip).map(|v| v.addr.addr()),
            backends: self.backends(&service.id, &network.id),
        })
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
        ports
    }
}

/// What `tasks` refer to, and nothing else.
fn payloads<'t>(state: &ClusterState, tasks: impl Iterator<Item = &'t Task>) -> Payloads {
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

fn endpoints(task: &Task, network: &NetworkId) -> Vec<EndpointEntry> {
    let Some(node_id) = &task.node_id else { return Vec::new() };
    let places = task.networks.iter().filter(|n| n.network_id == *network);
    let entries = places.flat_map(|place| {
        let names = match task.service_id {
            Some(_) => vec![task.name()],
            // A hand-made container resolves by its names only.
            None => place.aliases.clone(),
        };
        place.addresses.iter().map(move |address| EndpointEntry {
            task_id: task.id.clone(),
            node_id: node_id.clone(),
            address: address.addr(),
            names: names.clone(),
        })
    });
    entries.collect()
}
