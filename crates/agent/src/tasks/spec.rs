//! From a task's spec to the container that the engine makes of it.

use std::collections::BTreeMap;

use shoal_engine::attacher::TaskAttachment;
use shoal_model::object::{NodeDescription, Task};
use shoal_model::spec::StringMap;
use shoal_model::spec::container::{
    ContainerConfig, ContainerCreate, HostConfig, LogConfig, Mount, PortBinding, Words,
};
use shoal_model::spec::generic::GenericResource;
use shoal_model::spec::service::{PortConfig, PublishMode};
use shoal_model::spec::task::{ContainerSpec, NodeNetwork};

use super::failure::Failure;
use super::template::{Fields, expand};
use crate::agent::Agent;

/// What placeholders may say of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeFacts {
    /// The node's id.
    pub id: Option<String>,
    /// What the node says of itself.
    pub description: NodeDescription,
}

impl NodeFacts {
    /// Asks the node.
    pub(crate) async fn of(agent: &Agent) -> Self {
        Self {
            id: agent.assignment().own.as_ref().map(|own| own.node_id.to_string()),
            description: agent.fixed_description().await,
        }
    }
}

/// The addresses that the manager gave.
pub(crate) fn attachment(task: &Task) -> TaskAttachment {
    TaskAttachment { task_id: task.id.clone(), networks: task.networks.clone() }
}

/// The ports that the task has on its node alone.
pub(crate) fn host_ports(task: &Task) -> Vec<PortConfig> {
    task.endpoint_ports.iter().filter(|p| p.mode() == PublishMode::Host).cloned().collect()
}

/// The container of a task.
///
/// # Errors
/// What Shoal does not have.
pub(crate) fn container_create(task: &Task, node: &NodeFacts) -> Result<ContainerCreate, Failure> {
    let Some(spec) = &task.spec.container_spec else {
        return Err(missing("tasks without a container"));
    };
    let fields = fields(task, node);
    let fill =
        |text: &str| expand(text, &fields).map_err(|what| missing(&format!("placeholder {what}")));
    let hostname = spec.hostname.as_deref().map(fill).transpose()?;
    let mut env = match &spec.env {
        Some(env) => Some(env.iter().map(|line| fill(line)).collect::<Result<Vec<_>, _>>()?),
        None => None,
    };
    let given = GenericResource::environment(&task.assigned_generic_resources);
    if !given.is_empty() {
        env.get_or_insert_default().extend(given);
    }
    let mut mounts = spec.mounts.clone().unwrap_or_default();
    for mount in &mut mounts {
        mount.source = mount.source.as_deref().map(fill).transpose()?;
        mount.target = fill(&mount.target)?;
    }
    let config = ContainerConfig {
        hostname,
        env,
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        cmd: spec.args.clone().map(Words::List),
        entrypoint: spec.command.clone().map(Words::List),
        healthcheck: spec.healthcheck.clone(),
        image: Some(spec.image.clone()),
        working_dir: spec.dir.clone(),
        labels: Some(labels(task, spec)),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: i64::try_from(spec.stop_grace_period().as_secs()).ok(),
        ..ContainerConfig::default()
    };
    let host_config = host_config(task, spec, mounts)?;
    Ok(ContainerCreate { config, host_config, ..ContainerCreate::default() })
}

fn host_config(
    task: &Task,
    spec: &ContainerSpec,
    mounts: Vec<Mount>,
) -> Result<HostConfig, Failure> {
    let dns = spec.dns_config.clone().unwrap_or_default();
    let own_network = NodeNetwork::among(task.spec.networks.as_deref().unwrap_or(&[]));
    let limits = task.spec.resources.as_ref().and_then(|r| r.limits.clone()).unwrap_or_default();
    let log = task.spec.log_driver.as_ref().map(|driver| LogConfig {
        driver: driver.name.clone(),
        config: driver.options.clone().unwrap_or_default(),
    });
    Ok(HostConfig {
        mounts: Some(mounts),
        network_mode: Some(own_network.map_or("default", NodeNetwork::name).to_owned()),
        port_bindings: Some(port_bindings(task)),
        cap_add: spec.capability_add.clone(),
        cap_drop: spec.capability_drop.clone(),
        readonly_rootfs: spec.read_only,
        dns: dns.nameservers,
        dns_options: dns.options,
        dns_search: dns.search,
        extra_hosts: spec.hosts.as_ref().map(|lines| lines.iter().map(|l| host_line(l)).collect()),
        group_add: spec.groups.clone(),
        security_opt: security(spec)?,
        memory: limits.memory_bytes,
        nano_cpus: limits.nano_cpus,
        pids_limit: limits.pids,
        ulimits: spec.ulimits.clone(),
        init: spec.init,
        sysctls: spec.sysctls.clone(),
        oom_score_adj: spec.oom_score_adj,
        log_config: log,
        ..HostConfig::default()
    })
}

/// `Privileges` as the engine knows them; what it does not know is refused by name.
fn security(spec: &ContainerSpec) -> Result<Option<Vec<String>>, Failure> {
    let Some(serde_json::Value::Object(privileges)) = &spec.privileges else { return Ok(None) };
    let mut options = Vec::new();
    for (name, value) in privileges {
        let mode = value.get("Mode").and_then(serde_json::Value::as_str).unwrap_or_default();
        match (name.as_str(), value) {
            (_, serde_json::Value::Null | serde_json::Value::Bool(false)) => {}
            ("NoNewPrivileges", serde_json::Value::Bool(true)) => {
                options.push("no-new-privileges".to_owned());
            }
            ("Seccomp", _) if mode == "unconfined" => options.push("seccomp=unconfined".to_owned()),
            ("Seccomp" | "AppArmor", _) if mode.is_empty() || mode == "default" => {}
            ("SELinuxContext" | "CredentialSpec", _) if is_empty(value) => {}
            (other, _) => return Err(missing(&format!("Privileges.{other}"))),
        }
    }
    Ok((!options.is_empty()).then_some(options))
}

fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Object(map) => map.values().all(is_empty),
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Bool(set) => !set,
        serde_json::Value::Null => true,
        _ => false,
    }
}

/// A service's `address name` is a container's `name:address`.
fn host_line(line: &str) -> String {
    match line.split_once(char::is_whitespace) {
        Some((address, name)) => format!("{}:{address}", name.trim()),
        None => line.to_owned(),
    }
}

fn port_bindings(task: &Task) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let mut bindings: BTreeMap<String, Option<Vec<PortBinding>>> = BTreeMap::new();
    for port in host_ports(task) {
        let inside = format!("{}/{}", port.target_port, port.protocol());
        let binding = PortBinding {
            host_ip: String::new(),
            host_port: port.published_port.map(|p| p.to_string()).unwrap_or_default(),
        };
        bindings.entry(inside).or_default().get_or_insert_with(Vec::new).push(binding);
    }
    bindings
}

fn labels(task: &Task, spec: &ContainerSpec) -> StringMap {
    let mut labels = spec.labels.clone().unwrap_or_default();
    let mut set = |key: &str, value: String| {
        labels.insert(format!("com.docker.swarm.{key}"), value);
    };
    set("node.id", task.node_id.as_ref().map(ToString::to_string).unwrap_or_default());
    set("service.id", task.service_id.as_ref().map(ToString::to_string).unwrap_or_default());
    set("service.name", task.service_name.clone());
    set("task", String::new());
    set("task.id", task.id.to_string());
    set("task.name", task.name());
    labels
}

/// What placeholders may name.
pub(crate) fn fields(task: &Task, node: &NodeFacts) -> Fields {
    let platform = &node.description.platform;
    let service = task.service_id.as_ref().map(ToString::to_string).unwrap_or_default();
    Fields(BTreeMap::from([
        (".Service.ID", service),
        (".Service.Name", task.service_name.clone()),
        (".Node.ID", node.id.clone().unwrap_or_default()),
        (".Node.Hostname", node.description.hostname.clone()),
        (".Node.Platform.Architecture", platform.architecture.clone()),
        (".Node.Platform.OS", platform.os.clone()),
        (".Task.ID", task.id.to_string()),
        (".Task.Name", task.name()),
        (".Task.Slot", slot(task)),
    ]))
}

/// A global task's slot is its node, as in Docker.
fn slot(task: &Task) -> String {
    match (&task.node_id, task.shown_slot()) {
        (Some(node), 0) => node.to_string(),
        (_, slot) => slot.to_string(),
    }
}

fn missing(what: &str) -> Failure {
    Failure { step: "preparing", text: format!("not implemented: {what} [SH-AGT-008]") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn task(members: Value) -> Task {
        let at = "1970-01-01T00:00:01Z";
        let status = json!({"timestamp": at, "state": "preparing", "message": "", "err": "",
            "container": null, "ports": []});
        let container =
            json!({"Image": "x", "Env": ["SLOT={{.Task.Slot}}", "NAME={{.Task.Name}}"]});
        let mut whole = json!({
            "id": "t1", "meta": {"version": 1, "created_at": at, "updated_at": at},
            "service_id": "s1", "service_name": "web", "slot": 1, "node_id": "n1",
            "spec": {"ContainerSpec": container}, "spec_version": 1, "endpoint_ports": [],
            "networks": [], "status": status, "desired_state": "running", "not_before": null,
        });
        whole.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn environment(members: Value) -> Vec<String> {
        let create = container_create(&task(members), &NodeFacts::default()).unwrap();
        create.config.env.unwrap()
    }

    #[test]
    fn a_task_is_told_its_devices() {
        let gpu = |id: &str| json!({"NamedResourceSpec": {"Kind": "gpu", "Value": id}});
        let env = environment(json!({"assigned_generic_resources": [gpu("a"), gpu("b")]}));
        assert_eq!(env, ["SLOT=1", "NAME=web.1.t1", "DOCKER_RESOURCE_GPU=a,b"]);
    }

    #[test]
    fn a_jobs_slots_count_from_zero_as_in_docker() {
        let env = environment(json!({"job_iteration": 0}));
        assert_eq!(env, ["SLOT=n1", "NAME=web.n1.t1"]);
        let env = environment(json!({"job_iteration": 0, "slot": 3}));
        assert_eq!(env, ["SLOT=2", "NAME=web.2.t1"]);
    }
}
