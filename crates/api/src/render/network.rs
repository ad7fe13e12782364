//! Networks: the cluster's and this node's, in one shape.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::object::{Network, NodeState, Service, Task};
use shoal_model::spec::network::OPTION_VNI_LIST;

use super::spec_json;
use crate::backend::network::LocalNetwork;

/// The driver option that shows a network's VXLAN numbers.
pub(crate) const VNI_LIST: &str = OPTION_VNI_LIST;

/// A network of the cluster.
#[must_use]
pub fn swarm(network: &Network) -> Map<String, Value> {
    let config: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| {
            let mut part = Map::new();
            part.insert("Subnet".into(), json!(subnet.subnet));
            if let Some(range) = subnet.range {
                part.insert("IPRange".into(), json!(range));
            }
            part.insert("Gateway".into(), json!(subnet.gateway));
            Value::Object(part)
        })
        .collect();
    let mut options = network.spec.options.clone();
    options.insert(VNI_LIST.to_owned(), network.vni.0.to_string());
    let v6 = network.subnets.iter().any(|subnet| subnet.gateway.is_ipv6());
    let mut out = base(&network.spec.name, network.id.as_str(), "swarm", "overlay");
    out.insert("Created".into(), json!(network.meta.created_at));
    out.insert("EnableIPv6".into(), json!(v6));
    out.insert("IPAM".into(), ipam(network.spec.ipam.as_ref(), config));
    out.insert("Internal".into(), json!(network.is_internal()));
    // Containers started by hand may join every overlay network but the routing mesh.
    out.insert("Attachable".into(), json!(!network.is_ingress()));
    out.insert("Ingress".into(), json!(network.is_ingress()));
    out.insert("Options".into(), json!(options));
    out.insert("Labels".into(), json!(network.spec.labels));
    out
}

/// A network of this node alone.
#[must_use]
pub fn local(network: &LocalNetwork) -> Map<String, Value> {
    let config: Vec<Value> = network
        .subnets
        .iter()
        .map(|(subnet, gateway)| json!({ "Subnet": subnet, "Gateway": gateway }))
        .collect();
    let v6 = network.subnets.iter().any(|(subnet, _)| subnet.contains(':'));
    let scope = if network.driver == "overlay" { "swarm" } else { "local" };
    let mut out = base(&network.spec.name, &network.id, scope, &network.driver);
    out.insert("Created".into(), json!(network.created));
    out.insert("EnableIPv6".into(), json!(v6));
    out.insert("IPAM".into(), ipam(network.spec.ipam.as_ref(), config));
    out.insert("Internal".into(), json!(network.spec.internal.unwrap_or(false)));
    out.insert(
        "Attachable".into(),
        json!(network.driver == "overlay" && !network.spec.ingress.unwrap_or(false)),
    );
    out.insert("Ingress".into(), json!(network.spec.ingress.unwrap_or(false)));
    out.insert("Options".into(), json!(network.spec.options));
    out.insert("Labels".into(), json!(network.spec.labels));
    out
}

fn base(name: &str, id: &str, scope: &str, driver: &str) -> Map<String, Value> {
    let Value::Object(out) = json!({
        "Name": name, "Id": id, "Created": null, "Scope": scope, "Driver": driver,
        "EnableIPv4": true, "EnableIPv6": false, "IPAM": null, "Internal": false,
        "Attachable": false, "Ingress": false, "ConfigFrom": { "Network": "" },
        "ConfigOnly": false, "Containers": {}, "Options": {}, "Labels": {},
    }) else {
        return Map::new();
    };
    out
}

fn ipam(asked: Option<&shoal_model::spec::network::Ipam>, config: Vec<Value>) -> Value {
    let driver = asked.and_then(|a| a.driver.as_deref()).filter(|d| !d.is_empty());
    json!({
        "Driver": driver.unwrap_or("default"),
        "Options": asked.and_then(|a| a.options.as_ref()).map_or(Value::Null, spec_json),
        "Config": config,
    })
}

/// The nodes that a network of the cluster reaches, as `Peers`.
#[must_use]
pub fn peers(state: &ClusterState) -> Value {
    let up = state.nodes.values().filter(|node| node.status.state == NodeState::Ready);
    up.map(|node| {
        let short: String = node.id.as_str().chars().take(12).collect();
        let address = node.data_path_addr.map_or(node.status.addr.clone(), |a| a.to_string());
        json!({ "Name": short, "IP": address })
    })
    .collect()
}

/// `Services` of `network inspect --verbose`.
#[must_use]
pub fn services(state: &ClusterState, network: &Network) -> Value {
    let mut out = BTreeMap::new();
    for service in state.services.values() {
        let vip = service.endpoint.vips.iter().find(|vip| vip.network_id == network.id);
        let tasks: Vec<Value> = tasks_on(state, service, network).collect();
        if vip.is_none() && tasks.is_empty() {
            continue;
        }
        let ports = service.endpoint.ports.iter().map(|port| {
            format!("Target: {}, Publish: {}", port.target_port, port.published_port.unwrap_or(0))
        });
        let part = json!({
            "VIP": vip.map_or(String::new(), |vip| vip.addr.addr().to_string()),
            "Ports": ports.collect::<Vec<String>>(),
            "LocalLBIndex": 0,
            "Tasks": tasks,
        });
        out.insert(service.spec.name.clone(), part);
    }
    json!(out)
}

fn tasks_on<'a>(
    state: &'a ClusterState,
    service: &'a Service,
    network: &'a Network,
) -> impl Iterator<Item = Value> + 'a {
    let own = |task: &&std::sync::Arc<Task>| {
        task.service_id.as_ref() == Some(&service.id) && task.is_live()
    };
    state.tasks.values().filter(own).filter_map(|task| {
        let place = task.networks.iter().find(|place| place.network_id == network.id)?;
        let address = place.addresses.first()?.addr().to_string();
        let node = task.node_id.as_ref().and_then(|id| state.nodes.get(id));
        let host = node.and_then(|node| node.data_path_addr).map(|a| a.to_string());
        Some(json!({
            "Name": task.name(),
            "EndpointID": task.id,
            "EndpointIP": address,
            "Info": { "Host IP": host.unwrap_or_default() },
        }))
    })
}
