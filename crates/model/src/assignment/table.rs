//! What a node knows of a network and of the cluster's published ports.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{NetworkId, NodeId, ServiceId, TaskId};
use crate::net::{NodeIndex, Vni};
use crate::object::{Network, Subnet};
use crate::spec::service::{EndpointMode, PortConfig};

/// Everything a node needs to know of one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkTable {
    /// The network itself, as far as a data plane cares.
    pub network: NetworkInfo,
    /// Every node with an end of a tunnel, this one among them: a table is the same for all.
    pub peers: Vec<Peer>,
    /// Every task address on the network, by task.
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
