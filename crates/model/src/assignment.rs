//! What a manager tells a node: the tasks it must run and the endpoint tables of the networks it
//! is on, as a full state and then deltas, each with a revision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{NetworkId, NodeId, Revision, ServiceId, TaskId};
use crate::net::{NodeIndex, Vni};
use crate::object::{Network, Subnet, Task};
use crate::payload::{PayloadChange, Payloads};
use crate::spec::service::{EndpointMode, PortConfig};

/// Everything that concerns one node, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The store's revision that this was computed from.
    pub revision: Revision,
    /// Tasks whose node this is and that are not terminal-and-forgotten.
    pub tasks: BTreeMap<TaskId, Task>,
    /// Tables of every network that this node must have.
    pub networks: BTreeMap<NetworkId, NetworkTable>,
    /// The cluster's published ports, open on every node.
    pub ingress_ports: Vec<IngressPort>,
    /// The node itself, as its peers see it: its index and where its VXLAN frames come from.
    #[serde(default)]
    pub own: Option<Peer>,
    /// Secrets and configs of its tasks that have not ended.
    #[serde(default)]
    pub payloads: Payloads,
}

/// A change of an [`Assignment`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AssignmentUpdate {
    /// Replaces everything.
    Full(Assignment),
    /// Applies to the assignment at `base`; anything else means: ask for a full one.
    Delta {
        /// The revision that it changes.
        base: Revision,
        /// The revision afterwards.
        revision: Revision,
        /// New and changed tasks.
        tasks_set: Vec<Task>,
        /// Tasks that are gone.
        tasks_removed: BTreeSet<TaskId>,
        /// New and changed tables, whole.
        networks_set: Vec<NetworkTable>,
        /// Networks that are gone from this node.
        networks_removed: BTreeSet<NetworkId>,
        /// All published ports, if any changed.
        ingress_ports: Option<Vec<IngressPort>>,
        /// The node itself, if that changed.
        #[serde(default)]
        own: Option<Peer>,
        /// What changes of the secrets and configs.
        #[serde(default)]
        payloads: PayloadChange,
    },
}

impl AssignmentUpdate {
    /// The same update as messages with at most `bytes_max` bytes of secrets and configs each, in
    /// order; one that is larger by itself goes alone. Tasks come first and wait for theirs.
    #[must_use]
    pub fn parts(mut self, bytes_max: usize) -> Vec<Self> {
        let (revision, set) = match &mut self {
            Self::Full(full) => (full.revision, &mut full.payloads),
            Self::Delta { revision, payloads, .. } => (*revision, &mut payloads.set),
        };
        if set.bytes() <= bytes_max {
            return vec![self];
        }
        let rest = std::mem::take(set).split(bytes_max);
        let rest = rest.into_iter().map(|set| Self::Delta {
            base: revision,
            revision,
            tasks_set: Vec::new(),
            tasks_removed: BTreeSet::new(),
            networks_set: Vec::new(),
            networks_removed: BTreeSet::new(),
            ingress_ports: None,
            own: None,
            payloads: PayloadChange { set, ..PayloadChange::default() },
        });
        std::iter::once(self).chain(rest).collect()
    }
}

impl Assignment {
    /// Applies `update`; `false` if it does not fit this revision and a full one is needed.
    #[must_use]
    pub fn apply(&mut self, update: AssignmentUpdate) -> bool {
        match update {
            AssignmentUpdate::Full(full) => *self = full,
            AssignmentUpdate::Delta {
                base,
                revision,
                tasks_set,
                tasks_removed,
                networks_set,
                networks_removed,
                ingress_ports,
                own,
                payloads,
            } => {
                if base != self.revision {
                    return false;
                }
                self.revision = revision;
                self.tasks.retain(|id, _| !tasks_removed.contains(id));
                self.tasks.extend(tasks_set.into_iter().map(|t| (t.id.clone(), t)));
                self.networks.retain(|id, _| !networks_removed.contains(id));
                self.networks.extend(networks_set.into_iter().map(|n| (n.network.id.clone(), n)));
                if let Some(ports) = ingress_ports {
                    self.ingress_ports = ports;
                }
                self.own = own.or(self.own.take());
                self.payloads.apply(payloads);
            }
        }
        true
    }

    /// The smallest update that turns `self` into `next`.
    #[must_use]
    pub fn delta_to(&self, next: &Self) -> AssignmentUpdate {
        let changed = |id: &TaskId, task: &Task| self.tasks.get(id) != Some(task);
        let table_changed =
            |id: &NetworkId, table: &NetworkTable| self.networks.get(id) != Some(table);
        AssignmentUpdate::Delta {
            base: self.revision,
            revision: next.revision,
            tasks_set: next
                .tasks
                .iter()
                .filter(|(id, task)| changed(id, task))
                .map(|(_, task)| task.clone())
                .collect(),
            tasks_removed: missing(&self.tasks, &next.tasks),
            networks_set: next
                .networks
                .iter()
                .filter(|(id, table)| table_changed(id, table))
                .map(|(_, table)| table.clone())
                .collect(),
            networks_removed: missing(&self.networks, &next.networks),
            ingress_ports: (self.ingress_ports != next.ingress_ports)
                .then(|| next.ingress_ports.clone()),
            own: if self.own == next.own { None } else { next.own.clone() },
            payloads: self.payloads.change_to(&next.payloads),
        }
    }

    /// Whether nothing but the revision differs.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.tasks == other.tasks
            && self.networks == other.networks
            && self.ingress_ports == other.ingress_ports
            && self.own == other.own
            && self.payloads == other.payloads
    }

    /// What of it may be written to a disk: all but secrets and configs.
    #[must_use]
    pub fn durable(&self) -> Self {
        Self { payloads: Payloads::default(), ..self.clone() }
    }
}

fn missing<K: Ord + Clone, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
    old.keys().filter(|key| !new.contains_key(key)).cloned().collect()
}

/// Everything a node needs to know of one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkTable {
    /// The network itself, as far as a data plane cares.
    pub network: NetworkInfo,
    /// The other nodes, one tunnel each.
    pub peers: Vec<Peer>,
    /// Every task address on the network, this node's own among them.
    pub endpoints: Vec<EndpointEntry>,
    /// Services that have a name or a virtual address here.
    pub services: Vec<ServiceEntry>,
}

/// A network, as far as a data plane cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// Its id.
    pub id: NetworkId,
    /// Its name; also a DNS suffix.
    pub name: String,
    /// VXLAN number.
    pub vni: Vni,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// Subnets with gateways.
    pub subnets: Vec<Subnet>,
    /// MTU of every port.
    pub mtu: u32,
    /// Whether it has no way to the outside.
    pub internal: bool,
    /// Whether it carries the routing mesh.
    pub ingress: bool,
}

impl NetworkInfo {
    /// From the stored network.
    #[must_use]
    pub fn of(network: &Network, data_path_port: u16) -> Self {
        Self {
            id: network.id.clone(),
            name: network.spec.name.clone(),
            vni: network.vni,
            data_path_port,
            subnets: network.subnets.clone(),
            mtu: network.mtu,
            internal: network.is_internal(),
            ingress: network.is_ingress(),
        }
    }
}

/// Another node, as the other end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Which node.
    pub node_id: NodeId,
    /// Fixes its transit address and MAC.
    pub index: NodeIndex,
    /// Where its VXLAN frames go.
    pub underlay: IpAddr,
}

/// A task's address on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointEntry {
    /// The task.
    pub task_id: TaskId,
    /// The node that it runs on.
    pub node_id: NodeId,
    /// The address.
    pub address: IpAddr,
    /// DNS names that mean just this task (container name, aliases of hand-made containers).
    pub names: Vec<String>,
}

/// A service on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Which service.
    pub service_id: ServiceId,
    /// Its DNS name.
    pub name: String,
    /// Further DNS names.
    pub aliases: Vec<String>,
    /// Whether the name means the virtual address or the tasks.
    pub mode: EndpointMode,
    /// The virtual address, in VIP mode.
    pub vip: Option<IpAddr>,
    /// Tasks that new connections may go to.
    pub backends: Vec<Backend>,
}

/// A task that connections go to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Its address on the network.
    pub address: IpAddr,
    /// The task.
    pub task_id: TaskId,
    /// Whether it gets new connections.
    pub state: BackendState,
}

/// Whether a backend gets new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Yes.
    Serving,
    /// No, but it keeps the established ones.
    Draining,
}

/// A port that is open on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressPort {
    /// Whose.
    pub service_id: ServiceId,
    /// The service's name, for messages.
    pub service_name: String,
    /// Which port, with every number chosen.
    pub port: PortConfig,
    /// Tasks, by their address on the ingress network.
    pub backends: Vec<Backend>,
}
