//! Networks, nodes, the cluster's settings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::cluster_state::ClusterState;
use shoal_model::object::{Network, Node};
use shoal_model::spec::cluster::{CaConfig, ClusterSpec};
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::time::Nanos;

use super::bounds::{self, SPEC_BYTES_MAX};
use super::{SpecError, check_name};
use crate::allocation::find_network;
use crate::roles::{GroupView, MANAGERS_MAX, has_room, keeps_quorum};

/// Most external authorities: each is asked in turn, for five seconds at most.
pub const EXTERNAL_CAS_MAX: usize = 8;

/// Shortest life of a certificate that Docker accepts.
pub const CERT_EXPIRY_MIN: Duration = Duration::from_secs(3600);

/// Checks a new swarm-scoped network.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn new_network(state: &ClusterState, spec: &NetworkSpec) -> Result<(), SpecError> {
    check_name(&spec.name)?;
    bounds::fits("network", SPEC_BYTES_MAX, spec)?;
    bounds::labels(&spec.labels)?;
    if matches!(spec.name.as_str(), "host" | "bridge" | "none" | "default") {
        return Err(SpecError::Forbidden {
            message: format!("operation is not permitted on predefined {} network", spec.name),
        });
    }
    if find_network(&state.networks, &spec.name).is_some_and(|n| n.spec.name == spec.name) {
        return Err(SpecError::conflict(format!("network with name {} already exists", spec.name)));
    }
    match spec.driver.as_deref() {
        None | Some("" | "overlay") => {}
        Some(other) => {
            return Err(SpecError::not_implemented(format!("network driver '{other}' in a swarm")));
        }
    }
    if spec.scope.as_deref().is_some_and(|s| !matches!(s, "" | "swarm")) {
        return Err(SpecError::invalid("an overlay network has scope 'swarm'"));
    }
    if spec.config_only.unwrap_or(false) || spec.extra.get("ConfigFrom").is_some_and(names_one) {
        return Err(SpecError::not_implemented("config-only networks"));
    }
    if spec.options.contains_key("encrypted") {
        return Err(SpecError::not_implemented("encrypted overlay networks"));
    }
    if spec.enable_ipv6.unwrap_or(false) || spec.enable_ipv4 == Some(false) {
        return Err(SpecError::not_implemented("IPv6 overlay networks"));
    }
    if spec.ingress.unwrap_or(false) {
        check_ingress(state, spec)?;
    }
    check_ipam(spec)
}

fn names_one(value: &serde_json::Value) -> bool {
    value.pointer("/Network").and_then(|n| n.as_str()).is_some_and(|n| !n.is_empty())
}

fn check_ingress(state: &ClusterState, spec: &NetworkSpec) -> Result<(), SpecError> {
    if spec.attachable == Some(true) {
        return Err(SpecError::invalid("ingress network cannot be attachable"));
    }
    if spec.internal.unwrap_or(false) {
        return Err(SpecError::invalid("ingress network cannot be internal"));
    }
    match state.networks.values().find(|n| n.is_ingress()) {
        Some(other) => {
            Err(SpecError::conflict(format!("ingress network ({}) is already present", other.id)))
        }
        None => Ok(()),
    }
}

fn check_ipam(spec: &NetworkSpec) -> Result<(), SpecError> {
    let Some(ipam) = &spec.ipam else { return Ok(()) };
    if let Some(driver) = ipam.driver.as_deref().filter(|d| !matches!(*d, "" | "default")) {
        return Err(SpecError::not_implemented(format!("IPAM driver '{driver}'")));
    }
    for config in ipam.config.iter().flatten() {
        let text = config.subnet.as_deref().unwrap_or_default();
        let partial = config.gateway.is_some() || config.ip_range.is_some();
        if text.is_empty() {
            if partial {
                return Err(SpecError::invalid(
                    "invalid IPAM config: a gateway or an ip-range needs a subnet",
                ));
            }
            continue;
        }
        let subnet: ipnet::IpNet = text
            .parse()
            .map_err(|_| SpecError::invalid(format!("invalid CIDR address: {text}")))?;
        match subnet {
            ipnet::IpNet::V6(_) => {
                return Err(SpecError::not_implemented("IPv6 overlay networks"));
            }
            ipnet::IpNet::V4(v4) if v4.prefix_len() > 29 || v4.prefix_len() < 8 => {
                return Err(SpecError::invalid(format!(
                    "invalid subnet {text}: its prefix length must be from 8 to 29"
                )));
            }
            ipnet::IpNet::V4(_) => {}
        }
    }
    Ok(())
}

/// Checks that nothing uses `network`.
///
/// # Errors
/// [`SpecError::Invalid`] names a user of it.
pub fn removable_network(state: &ClusterState, network: &Network) -> Result<(), SpecError> {
    let name = &network.spec.name;
    let uses = |targets: &[shoal_model::spec::task::NetworkAttachmentConfig]| {
        targets
            .iter()
            .any(|a| find_network(&state.networks, &a.target).is_some_and(|n| n.id == network.id))
    };
    for service in state.services.values() {
        let published = network.is_ingress() && !service.endpoint.ports.is_empty();
        let vip = service.endpoint.vips.iter().any(|v| v.network_id == network.id);
        if network.is_ingress() && (published || vip) {
            return Err(SpecError::invalid(format!(
                "ingress network cannot be removed because service {} depends on it",
                service.id
            )));
        }
        if uses(service.spec.networks()) {
            return Err(SpecError::invalid(format!(
                "network {} is in use by service {}",
                network.id, service.id
            )));
        }
    }
    // Tasks that are on their way out do not hold it: `stack rm` removes services and networks in
    // one go.
    let stays = |t: &shoal_model::object::Task| {
        t.is_live() && t.service_id.as_ref().is_none_or(|id| state.services.contains_key(id))
    };
    for task in state.tasks.values().filter(|t| stays(t)) {
        if task.networks.iter().any(|n| n.network_id == network.id) {
            let user = match &task.spec.network_attachment_spec {
                Some(attachment) => format!("container {}", attachment.container_id),
                None => format!("task {}", task.id),
            };
            return Err(SpecError::invalid(format!("network {name} is in use by {user}")));
        }
    }
    Ok(())
}

/// Checks the new spec of a node; `group` is as its leader sees it now.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn changed_node(
    state: &ClusterState,
    group: &GroupView,
    node: &Node,
    spec: &NodeSpec,
) -> Result<(), SpecError> {
    bounds::fits("node", SPEC_BYTES_MAX, spec)?;
    if !spec.availability.is_known() {
        let given = spec.availability.as_str();
        return Err(SpecError::invalid(format!("invalid availability: \"{given}\"")));
    }
    bounds::labels(&spec.labels)?;
    match (node.spec.role, spec.role) {
        (NodeRole::Worker, NodeRole::Manager) if node.manager.is_none() && !has_room(state) => {
            Err(too_many_managers())
        }
        (NodeRole::Manager, NodeRole::Worker) => demotable(state, group, node),
        _ => Ok(()),
    }
}

/// That a cluster has as many managers as it may.
#[must_use]
pub fn too_many_managers() -> SpecError {
    SpecError::conflict(format!(
        "the swarm has {MANAGERS_MAX} managers; more than {MANAGERS_MAX} would make it slower and no \
         safer: the node can be a worker"
    ))
}

/// Checks that the others go on without a node that is to be removed, if it is a manager.
///
/// # Errors
/// [`SpecError`] says how many of the managers would be left.
pub fn removable_manager(
    state: &ClusterState,
    group: &GroupView,
    node: &Node,
) -> Result<(), SpecError> {
    if node.spec.role == NodeRole::Manager { demotable(state, group, node) } else { Ok(()) }
}

/// Whether a manager may be taken out of the group.
fn demotable(state: &ClusterState, group: &GroupView, node: &Node) -> Result<(), SpecError> {
    let stays = |n: &&Arc<Node>| n.id != node.id && n.spec.role == NodeRole::Manager;
    let others = state.nodes.values().filter(stays).filter_map(|n| n.manager.as_ref());
    let voters: BTreeSet<u64> =
        others.map(|m| m.raft_id).filter(|id| group.voters.contains(id)).collect();
    let Some(leaving) = &node.manager else { return Ok(()) };
    // Who only learns counts for nothing.
    if !group.voters.contains(&leaving.raft_id) {
        return Ok(());
    }
    if voters.is_empty() {
        return Err(SpecError::invalid("attempting to demote the last manager of the swarm"));
    }
    if keeps_quorum(&voters, &group.heard, leaving.raft_id) {
        return Ok(());
    }
    let (rest, up) = (voters.len(), voters.intersection(&group.heard).count());
    Err(SpecError::conflict(format!(
        "node {} cannot be taken out of the managers: of the {rest} managers that would remain only \
         {up} can be reached, and nothing could be changed any more",
        node.id
    )))
}

/// Checks the cluster's new settings.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn changed_cluster(spec: &ClusterSpec) -> Result<(), SpecError> {
    bounds::fits("swarm", SPEC_BYTES_MAX, spec)?;
    if !matches!(spec.name.as_str(), "" | "default") {
        return Err(SpecError::invalid("swarm spec must be named \"default\""));
    }
    external_authorities(&spec.ca_config)?;
    if spec.dispatcher.heartbeat_period.is_some_and(|p| p.0 < 0) {
        return Err(SpecError::invalid("heartbeat time period cannot be a negative duration"));
    }
    Ok(())
}

/// Checks how long certificates are to last: `shortest` at least, [`CERT_EXPIRY_MIN`] but in tests.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn cert_expiry(spec: &ClusterSpec, shortest: Duration) -> Result<(), SpecError> {
    let short = |e: Nanos| e.0 != 0 && (e.0 < 0 || e.duration() < shortest);
    if spec.ca_config.node_cert_expiry.is_some_and(short) {
        return Err(SpecError::invalid(
            "minimum certificate expiry time is 1h0m0s: a shorter one cannot be renewed in time",
        ));
    }
    Ok(())
}

/// Checks who is to issue certificates, as far as that can be read.
fn external_authorities(config: &CaConfig) -> Result<(), SpecError> {
    if config.external_cas.len() > EXTERNAL_CAS_MAX {
        return Err(SpecError::invalid(format!("more than {EXTERNAL_CAS_MAX} external CAs")));
    }
    for ca in &config.external_cas {
        if !ca.protocol.is_empty() && ca.protocol != "cfssl" {
            return Err(SpecError::invalid(format!(
                "unrecognized external CA protocol {}",
                ca.protocol
            )));
        }
        if !ca.url.starts_with("https://") {
            return Err(SpecError::invalid(format!(
                "invalid external CA URL '{}': it must begin with https://",
                ca.url
            )));
        }
    }
    if config.signing_ca_cert.is_empty() && !config.signing_ca_key.is_empty() {
        return Err(SpecError::invalid(
            "if a signing CA key is provided, the signing CA cert must also be provided",
        ));
    }
    Ok(())
}
