//! Places of hand-made containers on swarm networks.

use std::net::IpAddr;
use std::sync::Arc;

use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ContainerId, IdSource, NetworkId, NodeId, Revision, TaskId};
use shoal_model::object::{Meta, Network, Task, TaskNetwork, TaskStatus};
use shoal_model::spec::Extra;
use shoal_model::spec::task::{NetworkAttachmentConfig, NetworkAttachmentSpec, TaskSpec};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

use crate::allocation::find_network;
use crate::validate::SpecError;
use crate::work::Work;

/// A container that wants a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it runs.
    pub node_id: NodeId,
    /// The container.
    pub container_id: ContainerId,
    /// The network's id or name.
    pub network: String,
    /// The names that mean it there, its own first.
    pub names: Vec<String>,
    /// Wanted addresses; usually none.
    pub addresses: Vec<IpAddr>,
}

/// Makes the task that stands for the container's place, with its address.
///
/// # Errors
/// [`SpecError`] when the network does not exist, is not for hand-made containers, or is full.
pub fn attach(
    state: &ClusterState,
    wanted: &Wanted,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Task, SpecError> {
    let network = find_network(&state.networks, &wanted.network)
        .ok_or_else(|| SpecError::not_found(format!("network {} not found", wanted.network)))?;
    let name = &network.spec.name;
    // Every other network may be joined by hand. Clients send `Attachable: false` whenever the user
    // says nothing, so it cannot mean no.
    if network.is_ingress() {
        return Err(SpecError::Forbidden {
            message: format!(
                "Could not attach to network {name}: it carries the routing mesh, nothing else"
            ),
        });
    }
    let networks = place(state, network, wanted, now, ids)?;
    let spec = TaskSpec {
        network_attachment_spec: Some(NetworkAttachmentSpec {
            container_id: wanted.container_id.to_string(),
        }),
        networks: Some(vec![NetworkAttachmentConfig {
            target: network.id.to_string(),
            ..NetworkAttachmentConfig::default()
        }]),
        ..TaskSpec::default()
    };
    Ok(Task {
        id: TaskId::generate(ids),
        meta: Meta {
            created: Revision::UNWRITTEN,
            created_at: now,
            updated_at: now,
            ..Meta::default()
        },
        service_id: None,
        service_name: String::new(),
        slot: 0,
        node_id: Some(wanted.node_id.clone()),
        spec: Arc::new(spec),
        spec_version: 0,
        endpoint_ports: Vec::new(),
        networks: vec![networks],
        status: TaskStatus::new(now, TaskState::Assigned, "attached to the network"),
        desired_state: TaskState::Running,
        not_before: None,
        job_iteration: None,
        assigned_generic_resources: Vec::new(),
        extra: Extra::new(),
    })
}

fn place(
    state: &ClusterState,
    network: &Arc<Network>,
    wanted: &Wanted,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<TaskNetwork, SpecError> {
    let mut work = Work::new(state, now, ids);
    let mut addresses = Vec::new();
    for address in &wanted.addresses {
        let taken = work.addresses().take_this(network, *address).ok_or_else(|| {
            SpecError::conflict(format!(
                "address {address} is in use or not an address of network '{}'",
                network.spec.name
            ))
        })?;
        addresses.push(taken);
    }
    if addresses.is_empty() {
        let taken = work.addresses().take(network).map_err(|full| {
            SpecError::conflict(format!(
                "subnet full: no address left on network '{}' ({})",
                network.spec.name, full.detail
            ))
        })?;
        addresses.push(taken);
    }
    let network_id: NetworkId = network.id.clone();
    Ok(TaskNetwork { network_id, addresses, aliases: wanted.names.clone() })
}
