//! Networks of one node alone, and containers by hand on them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_model::assignment::EndpointEntry;
use shoal_model::id::{NetworkId, NodeId, Revision, TaskId};
use shoal_model::net::{Port, Protocol, Vni};
use shoal_model::object::Subnet;
use shoal_netlink::netns::NetnsHandle;
use shoal_network::desired::{
    DesiredNet, DesiredNetwork, LocalPort, NetKind, NetProperties, PortKind, Published, SandboxId,
    SandboxSpec,
};
use shoal_network::node_network::NodeNetwork;

use super::{Lab, ip};

/// A container by hand.
pub struct Container {
    pub name: &'static str,
    /// Network and address; the first one has the default route.
    pub places: Vec<(&'static str, &'static str)>,
}

/// Bridges with these containers.
pub fn desired(containers: &[Container]) -> DesiredNetwork {
    let mut networks: BTreeMap<NetworkId, DesiredNet> = BTreeMap::new();
    let mut sandboxes = BTreeMap::new();
    for container in containers {
        sandboxes.insert(SandboxId::new(container.name), SandboxSpec::default());
        for (order, (network, address)) in container.places.iter().enumerate() {
            let net: ipnet::IpNet = format!("{address}/16").parse().unwrap();
            let entry = networks.entry(NetworkId::from(*network)).or_insert_with(|| DesiredNet {
                info: NetProperties {
                    id: NetworkId::from(*network),
                    kind: NetKind::Bridge,
                    name: (*network).into(),
                    subnets: vec![Subnet {
                        subnet: net.trunc(),
                        gateway: net.hosts().next().unwrap(),
                        range: None,
                        reserved: Vec::new(),
                    }],
                    mtu: 1500,
                    internal: false,
                    ingress: false,
                    vni: Vni(0),
                    data_path_port: 0,
                },
                peers: Vec::new(),
                endpoints: Vec::new(),
                services: Vec::new(),
                local_ports: Vec::new(),
            });
            entry.endpoints.push(EndpointEntry {
                task_id: TaskId::from(container.name),
                node_id: NodeId::from(""),
                address: ip(address),
                names: Vec::new(),
            });
            entry.local_ports.push(LocalPort {
                sandbox: SandboxId::new(container.name),
                address: vec![net],
                order: u8::try_from(order).unwrap(),
                aliases: Vec::new(),
                default_route: order == 0,
                kind: PortKind::Interface,
            });
        }
    }
    DesiredNetwork {
        revision: Revision(0),
        self_node: None,
        networks,
        sandboxes,
        published: Vec::new(),
    }
}

pub fn publish(
    network: &str,
    number: u16,
    host_ip: Option<IpAddr>,
    backend: &str,
) -> [Published; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| Published {
        port: Port { protocol, number },
        host_ip,
        network: NetworkId::from(network),
        backends: vec![(ip(backend), 80)],
        holder: "container 'x'".into(),
    })
}

pub fn sandbox(node: &NodeNetwork, name: &str) -> NetnsHandle {
    NetnsHandle::open(&node.sandbox_path(&SandboxId::new(name))).unwrap()
}

pub async fn node(lab: &Lab) -> NodeNetwork {
    NodeNetwork::open(lab.config(0, 0)).await.unwrap()
}
