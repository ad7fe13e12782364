//! What a node's network shall be: one value, computed by the agent, applied by
//! [`NodeNetwork::apply`](crate::node_network::NodeNetwork::apply). Pure data: no
//! handles, no clock, serialisable.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_model::assignment::{EndpointEntry, NetworkInfo, Peer, ServiceEntry};
use shoal_model::id::{ContainerId, NetworkId, NodeId, Revision};
use shoal_model::net::{NodeIndex, Port, Vni};
use shoal_model::object::Subnet;

/// One network namespace that workloads join. Containers use their container id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(String);

impl SandboxId {
    /// Wraps an id; it becomes part of a file name, so it must hold no `/`.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SandboxId({})", self.0)
    }
}

impl From<&ContainerId> for SandboxId {
    fn from(id: &ContainerId) -> Self {
        Self(id.as_str().to_owned())
    }
}

/// The whole network state that a node shall have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DesiredNetwork {
    /// The revision of the manager's tables in here. Not a version of this value: local changes
    /// (a container by hand, an exited task) come with the same revision again.
    pub revision: Revision,
    /// This node's place in its cluster; absent outside a swarm, and then overlays are refused.
    pub self_node: Option<SelfNode>,
    /// Every network that this node takes part in.
    pub networks: BTreeMap<NetworkId, DesiredNet>,
    /// Every workload's network namespace.
    pub sandboxes: BTreeMap<SandboxId, SandboxSpec>,
    /// Ports of this host that lead into a network.
    pub published: Vec<Published>,
}

impl DesiredNetwork {
    /// The workloads that have a network namespace of their own.
    pub fn namespaces(&self) -> impl Iterator<Item = &SandboxId> {
        let own = |spec: &SandboxSpec| spec.guest.as_ref().is_none_or(|guest| !guest.direct);
        self.sandboxes.iter().filter(move |(_, spec)| own(spec)).map(|(id, _)| id)
    }

    /// The port of `sandbox` on `network`, with that network.
    #[must_use]
    pub fn port(
        &self,
        sandbox: &SandboxId,
        network: &NetworkId,
    ) -> Option<(&DesiredNet, &LocalPort)> {
        let net = self.networks.get(network)?;
        let port = net.local_ports.iter().find(|port| port.sandbox == *sandbox)?;
        Some((net, port))
    }
}

/// This node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfNode {
    /// Its id.
    pub node_id: NodeId,
    /// Fixes its transit address and MAC.
    pub index: NodeIndex,
    /// Its own address that VXLAN frames leave from and come to.
    pub underlay: IpAddr,
}

/// What kind of network it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetKind {
    /// Spans nodes by VXLAN.
    Overlay,
    /// This node only.
    Bridge,
}

/// A network's fixed properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetProperties {
    /// Its id.
    pub id: NetworkId,
    /// Overlay or bridge.
    pub kind: NetKind,
    /// Its name; also a DNS suffix.
    pub name: String,
    /// Subnets with gateways.
    pub subnets: Vec<Subnet>,
    /// MTU of every port, in bytes.
    pub mtu: u32,
    /// Whether it has no way to the outside.
    pub internal: bool,
    /// Whether it carries the routing mesh.
    pub ingress: bool,
    /// VXLAN number; unused for bridges.
    pub vni: Vni,
    /// UDP port of VXLAN; unused for bridges.
    pub data_path_port: u16,
}

impl From<&NetworkInfo> for NetProperties {
    /// An overlay of the cluster.
    fn from(info: &NetworkInfo) -> Self {
        Self {
            id: info.id.clone(),
            kind: NetKind::Overlay,
            name: info.name.clone(),
            subnets: info.subnets.clone(),
            mtu: info.mtu,
            internal: info.internal,
            ingress: info.ingress,
            vni: info.vni,
            data_path_port: info.data_path_port,
        }
    }
}

/// One network as this node shall have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DesiredNet {
    /// Its fixed properties.
    pub info: NetProperties,
    /// The other nodes on it.
    pub peers: Vec<Peer>,
    /// Every workload's address on it, this node's own among them.
    pub endpoints: Vec<EndpointEntry>,
    /// Services with a name or a virtual address on it.
    pub services: Vec<ServiceEntry>,
    /// Ports of this node's workloads.
    pub local_ports: Vec<LocalPort>,
}

/// One interface of a workload on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPort {
    /// Whose.
    pub sandbox: SandboxId,
    /// Its addresses, each with the prefix length of the subnet.
    pub address: Vec<IpNet>,
    /// The interface is called `eth<order>` inside.
    pub order: u8,
    /// DNS names that mean this port on this network.
    pub aliases: Vec<String>,
    /// Whether the workload's default route goes this way.
    pub default_route: bool,
    /// What the workload's end is.
    #[serde(default)]
    pub kind: PortKind,
}

/// What a workload has at its end of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// An interface in its network namespace, with the port's addresses.
    #[default]
    Interface,
    /// A program that is attached to a TAP device in the network's own namespace.
    Tap {
        /// The user that may attach to it.
        owner: u32,
    },
    /// An interface in its network namespace; the addresses are a guest's behind it.
    Guest,
}

/// A workload's network namespace and what its resolver answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The container in it, as far as there is one.
    pub container_id: Option<ContainerId>,
    /// Its host name.
    pub hostname: String,
    /// Upstream name servers; empty: the host's.
    pub dns_servers: Vec<IpAddr>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf.
    pub dns_options: Vec<String>,
    /// DNS names that mean it on each of its networks (container name, short id).
    pub names: Vec<String>,
    /// Set for a workload that has no use for a network namespace: a unikernel.
    #[serde(default)]
    pub guest: Option<Guest>,
}

/// A workload that takes frames from a TAP device: one interface with one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The user that may attach to the device.
    pub owner: u32,
    /// The network whose address the guest has, and whose gateway answers its questions for names.
    pub home: NetworkId,
    /// The device is in the home network's own namespace. Otherwise the guest is on several
    /// networks, and it is in a namespace of its own that joins them like a container's and
    /// translates the other networks' addresses.
    pub direct: bool,
}

/// A port of this host that leads into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The port on the host.
    pub port: Port,
    /// Only on this address of the host; absent: on all.
    pub host_ip: Option<IpAddr>,
    /// The network on which the backends are reached.
    pub network: NetworkId,
    /// Address and port of each workload that new connections may go to.
    pub backends: Vec<(IpAddr, u16)>,
    /// Who publishes it, for messages: `service 'web'`, `container 'x'`.
    pub holder: String,
}
