//! The one desired network state of this node: what the manager assigned, merged with what this
//! node's own containers have joined. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_engine::attacher::PublishedPort;
use shoal_model::assignment::{
    Assignment, BackendState, EndpointEntry, IngressPort, NetworkTable, Peer,
};
use shoal_model::id::{ContainerId, NetworkId, NodeId, SWARM_ID_LEN, TaskId};
use shoal_model::net::{Port, Vni};
use shoal_network::claims::HostPort;
use shoal_network::desired::{
    DesiredNet, DesiredNetwork, Guest, LocalPort, NetKind, NetProperties, PortKind, Published,
    SandboxId, SandboxSpec, SelfNode,
};

use crate::local::{DEFAULT_NETWORK, LocalNetwork};

/// A container's place on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which network.
    pub network_id: NetworkId,
    /// Its addresses, with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// Further DNS names there.
    pub aliases: Vec<String>,
    /// The task that stands for this place in the cluster, if the network spans nodes.
    pub task_id: Option<TaskId>,
}

/// A container with a network namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The container.
    pub container_id: ContainerId,
    /// Its name, for messages and DNS.
    pub name: String,
    /// What its resolver answers and where it asks.
    pub sandbox: SandboxSpec,
    /// Its networks, in the order of its interfaces.
    pub places: Vec<Place>,
    /// Ports of this host that lead to it.
    pub published: Vec<PublishedPort>,
    /// The swarm task that it is, if it is one.
    pub task_id: Option<TaskId>,
    /// Whether its process is known to have ended: its backends get nothing any more.
    #[serde(default)]
    pub ended: bool,
    /// Set for a unikernel: the user that attaches to its TAP device.
    #[serde(default)]
    pub tap_owner: Option<u32>,
}

/// Computes the desired network state.
#[must_use]
pub fn desired(
    assignment: &Assignment,
    local: &[LocalNetwork],
    attached: &BTreeMap<ContainerId, Attached>,
) -> DesiredNetwork {
    let mut networks = BTreeMap::new();
    for table in assignment.networks.values() {
        networks.insert(table.network.id.clone(), overlay(table, assignment.own.as_ref()));
    }
    let on = by_network(attached);
    for network in local {
        if let Some(members) = on.get(&network.id) {
            networks.insert(network.id.clone(), bridge(network, members));
        }
    }
    let internal = |id: &NetworkId| networks.get(id).is_some_and(|n: &DesiredNet| n.info.internal);
    let ingress = |id: &NetworkId| networks.get(id).is_some_and(|n: &DesiredNet| n.info.ingress);
    let mut ports: Vec<(NetworkId, LocalPort)> = Vec::new();
    let mut sandboxes = BTreeMap::new();
    for container in attached.values() {
        let guest = guest(container, &ingress);
        let way_out = way_out(&container.places, &internal, &ingress);
        for (order, place) in container.places.iter().enumerate() {
            let port = LocalPort {
                sandbox: SandboxId::from(&container.container_id),
                address: place.addresses.clone(),
                order: u8::try_from(order).unwrap_or(u8::MAX),
                aliases: place.aliases.clone(),
                default_route: way_out == Some(order),
                kind: port_kind(guest.as_ref(), &place.network_id),
            };
            ports.push((place.network_id.clone(), port));
        }
        let sandbox = SandboxSpec { guest, ..container.sandbox.clone() };
        sandboxes.insert(SandboxId::from(&container.container_id), sandbox);
    }
    let published = published(assignment, attached, &networks);
    for (network, port) in ports {
        if let Some(net) = networks.get_mut(&network) {
            net.local_ports.push(port);
        }
    }
    DesiredNetwork {
        revision: assignment.revision,
        self_node: assignment.own.as_ref().map(|own| SelfNode {
            node_id: own.node_id.clone(),
            index: own.index,
            underlay: own.underlay,
        }),
        networks,
        sandboxes,
        published,
    }
}

/// What a unikernel is to the network: its home is the first network that is not the ingress one,
/// because that is where its service's names are.
pub(crate) fn guest(container: &Attached, ingress: &impl Fn(&NetworkId) -> bool) -> Option<Guest> {
    let owner = container.tap_owner?;
    let places = &container.places;
    let home = places.iter().find(|p| !ingress(&p.network_id)).or_else(|| places.first())?;
    Some(Guest { owner, home: home.network_id.clone(), direct: places.len() == 1 })
}

fn port_kind(guest: Option<&Guest>, network: &NetworkId) -> PortKind {
    match guest {
        Some(guest) if guest.direct => PortKind::Tap { owner: guest.owner },
        Some(guest) if guest.home == *network => PortKind::Guest,
        _ => PortKind::Interface,
    }
}

/// Which interface carries the default route: the ingress one if there is one, so that answers to
/// outside clients leave with the address that they came to; else the first with a way out.
fn way_out(
    places: &[Place],
    internal: &impl Fn(&NetworkId) -> bool,
    ingress: &impl Fn(&NetworkId) -> bool,
) -> Option<usize> {
    places
        .iter()
        .position(|p| ingress(&p.network_id))
        .or_else(|| places.iter().position(|p| !internal(&p.network_id)))
}

fn overlay(table: &NetworkTable, own: Option<&Peer>) -> DesiredNet {
    let others = table.peers.iter().filter(|peer| own.is_none_or(|o| o.node_id != peer.node_id));
    DesiredNet {
        info: NetProperties::from(&table.network),
        peers: others.cloned().collect(),
        endpoints: table.endpoints.clone(),
        services: table.services.clone(),
        local_ports: Vec::new(),
    }
}

/// A container, and its place on a network.
type Member<'a> = (&'a Attached, &'a Place);

/// Who is on which network: found in one pass, however many of both there are.
fn by_network(attached: &BTreeMap<ContainerId, Attached>) -> BTreeMap<&NetworkId, Vec<Member<'_>>> {
    let mut on: BTreeMap<&NetworkId, Vec<Member<'_>>> = BTreeMap::new();
    for container in attached.values() {
        for place in &container.places {
            on.entry(&place.network_id).or_default().push((container, place));
        }
    }
    on
}

fn bridge(network: &LocalNetwork, members: &[Member<'_>]) -> DesiredNet {
    // Docker's default network has no names; users rely on it when they run clashing ones.
    let has_names = network.name() != DEFAULT_NETWORK;
    let mut endpoints = Vec::new();
    for (container, place) in members {
        let mut names = Vec::new();
        if has_names {
            names.clone_from(&container.sandbox.names);
            names.extend(place.aliases.iter().cloned());
        }
        endpoints.extend(place.addresses.iter().map(|address| EndpointEntry {
            task_id: TaskId::new(container.container_id.as_str()),
            node_id: NodeId::new(""),
            address: address.addr(),
            names: names.clone(),
        }));
    }
    DesiredNet {
        info: NetProperties {
            id: network.id.clone(),
            kind: NetKind::Bridge,
            name: network.name().to_owned(),
            subnets: network.subnets.clone(),
            mtu: network.mtu,
            internal: network.is_internal(),
            ingress: false,
            vni: Vni(0),
            data_path_port: 0,
        },
        peers: Vec::new(),
        endpoints,
        services: Vec::new(),
        local_ports: Vec::new(),
    }
}

/// Whether this is a network of the cluster: their ids have 25 characters, those of a node's own
/// networks 64.
pub(crate) fn spans_nodes(id: &NetworkId) -> bool {
    id.as_str().len() == SWARM_ID_LEN
}

/// The port of the host that is asked for.
pub(crate) fn place_of(published: &PublishedPort) -> HostPort {
    let port = Port { protocol: published.container.protocol, number: published.host_port };
    HostPort::new(port, Some(published.host_ip))
}

/// In whose name a port is held that a service publishes on every node.
pub(crate) fn mesh_holder(port: &IngressPort) -> String {
    format!("service '{}'", port.service_name)
}

fn published(
    assignment: &Assignment,
    attached: &BTreeMap<ContainerId, Attached>,
    networks: &BTreeMap<NetworkId, DesiredNet>,
) -> Vec<Published> {
    let ingress = networks.values().find(|n| n.info.ingress).map(|n| n.info.id.clone());
    let mesh = assignment.ingress_ports.iter().filter_map(|entry| {
        let serving = entry.backends.iter().filter(|b| b.state == BackendState::Serving);
        Some(Published {
            port: entry.port.published()?,
            host_ip: None,
            network: ingress.clone()?,
            backends: serving.map(|b| (b.address, entry.port.target_port)).collect(),
            holder: mesh_holder(entry),
        })
    });
    let own = attached.values().flat_map(|container| {
        container.published.iter().filter_map(|port| {
            let place = reachable_place(container, networks)?;
            let address = place.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4)?;
            let backends =
                if container.ended { Vec::new() } else { vec![(address, port.container.number)] };
            Some(Published {
                port: Port { protocol: port.container.protocol, number: port.host_port },
                host_ip: (!port.host_ip.is_unspecified()).then_some(port.host_ip),
                network: place.network_id.clone(),
                backends,
                holder: format!("container '{}'", container.name),
            })
        })
    });
    // Which of two claims loses is decided in one place: `shoal_network::claims`. There, who comes
    // first has the better claim, and a container by hand has only this node. The service's tasks
    // say so.
    own.chain(mesh).collect()
}

/// The place through which a published port reaches a container: one with a way out.
fn reachable_place<'a>(
    container: &'a Attached,
    networks: &BTreeMap<NetworkId, DesiredNet>,
) -> Option<&'a Place> {
    let info = |p: &Place| networks.get(&p.network_id).map(|n| (n.info.ingress, n.info.internal));
    let places = &container.places;
    places
        .iter()
        .find(|p| info(p).is_some_and(|(ingress, _)| ingress))
        .or_else(|| places.iter().find(|p| info(p).is_some_and(|(_, internal)| !internal)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use shoal_model::object::Subnet;
    use shoal_model::spec::network::NetworkSpec;
    use shoal_model::time::Timestamp;

    use super::*;

    fn network(id: &str, name: &str, internal: bool) -> LocalNetwork {
        LocalNetwork {
            id: NetworkId::new(id),
            spec: NetworkSpec {
                name: name.into(),
                internal: Some(internal),
                ..NetworkSpec::default()
            },
            created_at: Timestamp(1),
            subnets: vec![Subnet {
                subnet: "172.18.0.0/16".parse().unwrap(),
                gateway: "172.18.0.1".parse().unwrap(),
                range: None,
                reserved: Vec::new(),
            }],
            mtu: 1500,
        }
    }

    fn container(id: &str, networks: &[&str]) -> Attached {
        Attached {
            container_id: ContainerId::new(id),
            name: id.into(),
            sandbox: SandboxSpec { names: vec![id.into()], ..SandboxSpec::default() },
            places: networks
                .iter()
                .map(|n| Place {
                    network_id: NetworkId::new(*n),
                    addresses: vec!["172.18.0.2/16".parse().unwrap()],
                    aliases: vec!["other".into()],
                    task_id: None,
                })
                .collect(),
            published: vec![PublishedPort {
                container: Port { protocol: shoal_model::net::Protocol::Tcp, number: 80 },
                host_ip: "0.0.0.0".parse().unwrap(),
                host_port: 8080,
            }],
            task_id: None,
            ended: false,
            tap_owner: None,
        }
    }

    #[test]
    fn a_unikernel_is_a_guest_of_its_first_network() {
        let local = [network("a", "one", false), network("b", "two", false)];
        let kinds = |networks: &[&str]| {
            let mut one = container("c", networks);
            one.tap_owner = Some(7);
            let attached = BTreeMap::from([(one.container_id.clone(), one)]);
            let got = desired(&Assignment::default(), &local, &attached);
            let guest = got.sandboxes[&SandboxId::new("c")].guest.clone().unwrap();
            let kind = |n: &&str| got.networks[&NetworkId::new(*n)].local_ports[0].kind;
            (guest.direct, guest.home.to_string(), networks.iter().map(kind).collect::<Vec<_>>())
        };
        assert_eq!(kinds(&["a"]), (true, "a".into(), vec![PortKind::Tap { owner: 7 }]));
        let both = vec![PortKind::Guest, PortKind::Interface];
        assert_eq!(kinds(&["a", "b"]), (false, "a".into(), both));
    }

    #[test]
    fn an_unused_local_network_costs_nothing() {
        let got = desired(&Assignment::default(), &[network("n", "x", false)], &BTreeMap::new());
        assert_eq!(got, DesiredNetwork::default());
    }

    #[test]
    fn the_default_route_avoids_internal_networks() {
        let local = [network("i", "in", true), network("o", "out", false)];
        let one = container("c", &["i", "o"]);
        let attached = BTreeMap::from([(one.container_id.clone(), one)]);
        let got = desired(&Assignment::default(), &local, &attached);
        let route = |n: &str| got.networks[&NetworkId::new(n)].local_ports[0].default_route;
        assert!(!route("i") && route("o"));
        assert_eq!(got.published[0].network, NetworkId::new("o"));
        assert_eq!(got.published[0].host_ip, None);
    }

    #[test]
    fn names_resolve_on_user_networks_only() {
        for (name, count) in [("mine", 2), (DEFAULT_NETWORK, 0)] {
            let one = container("c", &["n"]);
            let attached = BTreeMap::from([(one.container_id.clone(), one)]);
            let got = desired(&Assignment::default(), &[network("n", name, false)], &attached);
            assert_eq!(got.networks[&NetworkId::new("n")].endpoints[0].names.len(), count);
        }
    }
}
