//! Services.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::object::{NodeState, Service, Task, UpdateStatus};
use shoal_model::spec::service::{ReplicatedJob, ServiceSpec};
use shoal_model::task_state::TaskState;

use super::{head, spec_json};

/// What of a service to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Write defaults into the spec where the client said nothing.
    pub insert_defaults: bool,
    /// Count its tasks.
    pub status: bool,
    /// The client speaks an API below 1.44: its networks belong at the top of the spec, too.
    pub old_networks: bool,
}

/// `Service` of the Engine API.
#[must_use]
pub fn service(state: &ClusterState, service: &Service, view: ServiceView) -> Value {
    let mut out = head(service.id.as_str(), service.meta);
    out.insert("Spec".into(), spec(state, &service.spec, view));
    if let Some(previous) = &service.previous_spec {
        out.insert("PreviousSpec".into(), spec(state, previous, view));
    }
    out.insert("Endpoint".into(), endpoint(service));
    if let Some(status) = &service.update_status {
        out.insert("UpdateStatus".into(), update_status(status));
    }
    if let Some(status) = service.job_status() {
        let iteration = json!({ "Index": status.iteration });
        let status = json!({ "JobIteration": iteration, "LastExecution": status.last_execution });
        out.insert("JobStatus".into(), status);
    }
    if view.status {
        out.insert("ServiceStatus".into(), counts(state, service));
    }
    if let Some(problem) = &service.allocation_error {
        out.insert("AllocationError".into(), json!(problem));
    }
    Value::Object(out)
}

fn spec(state: &ClusterState, spec: &ServiceSpec, view: ServiceView) -> Value {
    let mut out = spec_json(spec);
    let Some(members) = out.as_object_mut() else { return out };
    // Docker stores a service without a mode as replicated, and clients read it without looking.
    if spec.mode.is_none() {
        members.insert("Mode".into(), json!({ "Replicated": { "Replicas": 1 } }));
    } else if let Some(Value::Object(mode)) = members.get_mut("Mode") {
        if mode.contains_key("Replicated") {
            fill(mode, "Replicated", json!({ "Replicas": 1 }));
        }
        if let Some(job) = spec.replicated_job() {
            let (concurrent, total) = (job.max_concurrent(), job.total_completions());
            let said = json!({ "MaxConcurrent": concurrent, "TotalCompletions": total });
            fill(mode, "ReplicatedJob", said);
        }
    }
    resolve_networks(state, members);
    if let Some(task) = members.get_mut("TaskTemplate").and_then(Value::as_object_mut) {
        task.entry("ForceUpdate").or_insert(json!(0));
        task.entry("Runtime").or_insert(json!("container"));
    }
    if view.old_networks {
        let networks = members.get("TaskTemplate").and_then(|t| t.get("Networks")).cloned();
        if let Some(networks) = networks {
            members.insert("Networks".into(), networks);
        }
    }
    if view.insert_defaults {
        insert_defaults(members, spec.is_job());
    }
    out
}

/// Clients may name a network; Docker answers with its id.
fn resolve_networks(state: &ClusterState, members: &mut Map<String, Value>) {
    if let Some(moved) = members.remove("Networks") {
        let task = members.entry("TaskTemplate").or_insert_with(|| json!({}));
        if let Some(task) = task.as_object_mut()
            && task.get("Networks").is_none_or(|have| have == &json!([]))
        {
            task.insert("Networks".into(), moved);
        }
    }
    let list = members.get_mut("TaskTemplate").and_then(|t| t.get_mut("Networks"));
    for attachment in list.and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(target) = attachment.get_mut("Target") else { continue };
        let name = target.as_str().unwrap_or("").to_owned();
        let by_name = state.networks.values().find(|n| n.spec.name == name);
        if let Some(network) = by_name {
            *target = json!(network.id);
        }
    }
}

fn insert_defaults(members: &mut Map<String, Value>, is_job: bool) {
    let update = || {
        json!({
            "Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_i64,
            "MaxFailureRatio": 0, "Order": "stop-first",
        })
    };
    // A job that said so would be refused.
    for key in ["UpdateConfig", "RollbackConfig"].into_iter().filter(|_| !is_job) {
        fill(members, key, update());
    }
    fill(members, "EndpointSpec", json!({ "Mode": "vip" }));
    let Some(task) = members.get_mut("TaskTemplate").and_then(Value::as_object_mut) else {
        return;
    };
    let restart = json!({ "Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0 });
    fill(task, "RestartPolicy", restart);
    fill(task, "Placement", json!({}));
    fill(task, "Resources", json!({ "Limits": {}, "Reservations": {} }));
    if let Some(container) = task.get_mut("ContainerSpec").and_then(Value::as_object_mut) {
        container.entry("StopGracePeriod").or_insert(json!(10_000_000_000_i64));
        container.entry("DNSConfig").or_insert(json!({}));
        container.entry("Isolation").or_insert(json!("default"));
    }
}

/// Sets every member of `defaults` that the object `key` lacks.
fn fill(members: &mut Map<String, Value>, key: &str, defaults: Value) {
    let slot = members.entry(key).or_insert_with(|| json!({}));
    if let (Some(have), Value::Object(defaults)) = (slot.as_object_mut(), defaults) {
        for (name, value) in defaults {
            have.entry(name).or_insert(value);
        }
    }
}

fn endpoint(service: &Service) -> Value {
    let mut spec = service.spec.endpoint_spec.as_ref().map_or(json!({}), spec_json);
    if let Some(members) = spec.as_object_mut()
        && (!service.endpoint.vips.is_empty() || members.contains_key("Ports"))
    {
        members.entry("Mode").or_insert(json!("vip"));
    }
    let mut out = Map::new();
    out.insert("Spec".into(), spec);
    if !service.endpoint.ports.is_empty() {
        let ports = service.endpoint.ports.iter().map(port);
        out.insert("Ports".into(), ports.collect());
    }
    if !service.endpoint.vips.is_empty() {
        let vips = service.endpoint.vips.iter();
        let vips = vips.map(|vip| json!({ "NetworkID": vip.network_id, "Addr": vip.addr }));
        out.insert("VirtualIPs".into(), vips.collect());
    }
    Value::Object(out)
}

/// A published port with every member said.
pub(crate) fn port(port: &shoal_model::spec::service::PortConfig) -> Value {
    let mut out = spec_json(port);
    if let Some(members) = out.as_object_mut() {
        members.entry("Protocol").or_insert(json!("tcp"));
        members.entry("PublishMode").or_insert(json!("ingress"));
    }
    out
}

fn update_status(status: &UpdateStatus) -> Value {
    let mut out = Map::new();
    out.insert("State".into(), json!(status.state.as_str()));
    out.insert("StartedAt".into(), json!(status.started_at));
    if let Some(at) = status.completed_at {
        out.insert("CompletedAt".into(), json!(at));
    }
    out.insert("Message".into(), json!(status.message));
    Value::Object(out)
}

/// Running and wanted tasks, as `service ls` shows them: tasks on nodes that are down do not count.
fn counts(state: &ClusterState, service: &Service) -> Value {
    let node_up = |task: &Task| {
        let node = task.node_id.as_ref().and_then(|id| state.nodes.get(id));
        node.is_none_or(|node| node.status.state != NodeState::Down)
    };
    let own = || state.tasks.values().filter(|t| t.service_id.as_ref() == Some(&service.id));
    let wanted_now = |task: &Task| task.desired_state <= TaskState::Running;
    let running = own()
        .filter(|t| wanted_now(t) && t.status.state == TaskState::Running && node_up(t))
        .count();
    if let Some(job) = service.job_status() {
        return job_counts(service, own().filter(|t| t.job_iteration == Some(job.iteration)));
    }
    let completed = own().filter(|t| t.status.state == TaskState::Complete).count();
    let desired = match service.spec.replicas() {
        Some(replicas) => replicas,
        None => own().filter(|t| wanted_now(t) && node_up(t)).count() as u64,
    };
    json!({ "RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed })
}

/// The same for the tasks of a job's iteration. Docker wants as many of a replicated job as may run
/// at a time, whatever is done, and of a global job those that have not completed.
fn job_counts<'t>(service: &Service, tasks: impl Iterator<Item = &'t Arc<Task>>) -> Value {
    let (mut running, mut completed, mut open) = (0, 0, 0);
    for task in tasks {
        running += u64::from(task.status.state == TaskState::Running);
        completed += u64::from(task.is_done());
        open += u64::from(!task.is_done() && task.desired_state <= TaskState::Running);
    }
    let desired = service.spec.replicated_job().map_or(open, ReplicatedJob::max_concurrent);
    json!({ "RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed })
}
