//! Tasks.

use serde_json::{Map, Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::object::{Network, Task, TaskNetwork, TaskStatus};
use shoal_model::task_state::TaskState;

use super::{head, service, set_text, spec_json};

/// `Task` of the Engine API.
#[must_use]
pub fn task(state: &ClusterState, task: &Task) -> Value {
    let mut out = head(task.id.as_str(), task.meta);
    out.insert("Labels".into(), json!({}));
    out.insert("Spec".into(), spec(task));
    if let Some(service) = &task.service_id {
        out.insert("ServiceID".into(), json!(service));
    }
    if task.shown_slot() != 0 {
        out.insert("Slot".into(), json!(task.shown_slot()));
    }
    if let Some(node) = &task.node_id {
        out.insert("NodeID".into(), json!(node));
    }
    out.insert("Status".into(), status(&task.status));
    out.insert("DesiredState".into(), json!(desired_state(task).as_str()));
    let networks: Vec<Value> = task.networks.iter().filter_map(|n| attachment(state, n)).collect();
    if !networks.is_empty() {
        out.insert("NetworksAttachments".into(), Value::Array(networks));
    }
    if let Some(iteration) = task.job_iteration {
        out.insert("JobIteration".into(), json!({ "Index": iteration }));
    }
    if !task.assigned_generic_resources.is_empty() {
        out.insert("GenericResources".into(), json!(task.assigned_generic_resources));
    }
    out.insert("Volumes".into(), Value::Null);
    Value::Object(out)
}

/// What is wanted of a task, in Docker's words: a job's tasks are to complete, and what has
/// completed is as it should be for ever.
#[must_use]
pub fn desired_state(task: &Task) -> TaskState {
    let runs = task.job_iteration.is_some() && task.desired_state == TaskState::Running;
    if runs || (task.is_done() && task.desired_state < TaskState::Remove) {
        return TaskState::Complete;
    }
    task.desired_state
}

fn spec(task: &Task) -> Value {
    let mut spec = spec_json(&*task.spec);
    if let Some(members) = spec.as_object_mut() {
        members.entry("ForceUpdate").or_insert(json!(0));
    }
    spec
}

fn status(status: &TaskStatus) -> Value {
    let mut out = Map::new();
    out.insert("Timestamp".into(), json!(status.timestamp));
    out.insert("State".into(), json!(status.state.as_str()));
    out.insert("Message".into(), json!(status.message));
    set_text(&mut out, "Err", &status.err);
    if let Some(container) = &status.container {
        let part = json!({
            "ContainerID": container.container_id,
            "PID": container.pid,
            "ExitCode": container.exit_code,
        });
        out.insert("ContainerStatus".into(), part);
    }
    let mut ports = Map::new();
    if !status.ports.is_empty() {
        ports.insert("Ports".into(), status.ports.iter().map(service::port).collect());
    }
    out.insert("PortStatus".into(), Value::Object(ports));
    Value::Object(out)
}

fn attachment(state: &ClusterState, place: &TaskNetwork) -> Option<Value> {
    let network = state.networks.get(&place.network_id)?;
    Some(json!({ "Network": swarm_network(network), "Addresses": place.addresses }))
}

/// A network as it appears inside a task.
fn swarm_network(network: &Network) -> Value {
    let mut out = head(network.id.as_str(), network.meta);
    let mut spec = Map::new();
    spec.insert("Name".into(), json!(network.spec.name));
    spec.insert("Labels".into(), json!(network.spec.labels));
    spec.insert("DriverConfiguration".into(), json!({ "Name": "overlay" }));
    if network.is_ingress() {
        spec.insert("Ingress".into(), json!(true));
    } else {
        spec.insert("Attachable".into(), json!(true));
    }
    spec.insert("IPAMOptions".into(), json!({ "Driver": { "Name": "default" } }));
    spec.insert("Scope".into(), json!("swarm"));
    out.insert("Spec".into(), Value::Object(spec));
    let options = json!({ super::network::VNI_LIST: network.vni.0.to_string() });
    out.insert("DriverState".into(), json!({ "Name": "overlay", "Options": options }));
    let configs: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| json!({ "Subnet": subnet.subnet, "Gateway": subnet.gateway }))
        .collect();
    let ipam = json!({ "Driver": { "Name": "default" }, "Configs": configs });
    out.insert("IPAMOptions".into(), ipam);
    Value::Object(out)
}
