//! Services.

use std::collections::BTreeSet;

use shoal_model::cluster_state::ClusterState;
use shoal_model::id::ServiceId;
use shoal_model::net::Port;
use shoal_model::object::Service;
use shoal_model::spec::generic::GenericResource;
use shoal_model::spec::service::{
    EndpointMode, PortConfig, PublishMode, ServiceMode, ServiceSpec, UpdateConfig,
};
use shoal_model::spec::task::{NodeNetwork, Placement, Resources, RestartPolicy, TaskSpec};
use shoal_model::sysctl::OwnNamespaces;
use shoal_model::time::Nanos;

use super::container::check_container;
use super::effective::effective;
use super::payload::check_existence;
use super::{SpecError, bounds, check_name};
use crate::allocation::find_network;
use crate::constraint::Constraint;
use crate::rebalance;

/// Most tasks of one service, or completions of one job: what one manager is known to place in
/// reasonable time.
pub const REPLICAS_MAX: u64 = 10_000;

/// Smallest memory amount that Docker accepts.
const MEMORY_MIN: i64 = 4 * 1024 * 1024;
/// Smallest CPU amount that Docker accepts, in billionths.
const CPU_MIN: i64 = 1_000_000;

/// Checks a new service.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn new_service(state: &ClusterState, spec: &ServiceSpec) -> Result<(), SpecError> {
    check_spec(state, spec)?;
    if state.services.values().any(|s| s.spec.name == spec.name) {
        return Err(SpecError::conflict(format!(
            "name conflicts with an existing object: service {} already exists",
            spec.name
        )));
    }
    port_conflicts(state, None, spec)
}

/// Checks the new spec of a service.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn changed_service(
    state: &ClusterState,
    service: &Service,
    spec: &ServiceSpec,
) -> Result<(), SpecError> {
    if service.spec.name != spec.name {
        return Err(SpecError::invalid("renaming services is not supported"));
    }
    check_spec(state, spec)?;
    if service.spec.mode_name() != spec.mode_name() {
        return Err(SpecError::invalid("service mode change is not allowed"));
    }
    port_conflicts(state, Some(&service.id), spec)
}

/// Whether tasks made from `old` are out of date once `new` holds: their template, networks or own
/// ports change. Labels, scale, and ports of the routing mesh concern no task. A job that is to be
/// completed more or less often begins anew.
#[must_use]
pub fn outdates_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let host = |spec: &ServiceSpec| -> Vec<PortConfig> {
        spec.ports().iter().filter(|p| p.mode() == PublishMode::Host).cloned().collect()
    };
    let job = |spec: &ServiceSpec| {
        spec.replicated_job().map(|job| (job.max_concurrent(), job.total_completions()))
    };
    let meshed = |spec: &ServiceSpec| spec.ports().iter().any(|p| p.mode() == PublishMode::Ingress);
    effective(&old.task_template) != effective(&new.task_template)
        || old.networks() != new.networks()
        || host(old) != host(new)
        || meshed(old) != meshed(new)
        || job(old) != job(new)
}

fn check_spec(state: &ClusterState, spec: &ServiceSpec) -> Result<(), SpecError> {
    check_name(&spec.name)?;
    bounds::service(spec)?;
    rebalance::moves_per_minute(&spec.labels).map_err(SpecError::invalid)?;
    check_mode(spec.mode.as_ref())?;
    let network = NodeNetwork::among(spec.networks()) != Some(NodeNetwork::Host);
    check_template(&spec.task_template, OwnNamespaces { network, ..OwnNamespaces::ALL })?;
    if spec.is_job() {
        check_job(spec)?;
    }
    for (what, config) in [("update", &spec.update_config), ("rollback", &spec.rollback_config)] {
        if let Some(config) = config {
            check_update(what, config)?;
        }
    }
    check_endpoint(spec)?;
    check_existence(state, spec)?;
    check_networks(state, spec)
}

fn check_mode(mode: Option<&ServiceMode>) -> Result<(), SpecError> {
    let Some(mode) = mode else { return Ok(()) };
    let named = [
        mode.replicated.is_some(),
        mode.global.is_some(),
        mode.replicated_job.is_some(),
        mode.global_job.is_some(),
    ];
    match named.iter().filter(|is_named| **is_named).count() {
        0 => return Err(SpecError::invalid("must specify a service mode")),
        1 => {}
        _ => return Err(SpecError::invalid("must specify only one service mode")),
    }
    let replicas = mode.replicated.as_ref().map(|r| ("replicas", r.replicas.unwrap_or(1)));
    let completions =
        mode.replicated_job.as_ref().map(|job| ("total completions", job.total_completions()));
    match replicas.or(completions).filter(|(_, number)| *number > REPLICAS_MAX) {
        Some((what, number)) => {
            Err(SpecError::invalid(format!("invalid {what}: {number} is more than {REPLICAS_MAX}")))
        }
        None => Ok(()),
    }
}

/// A job is begun anew as a whole: there is no update that could roll.
fn check_job(spec: &ServiceSpec) -> Result<(), SpecError> {
    if spec.update_config.is_some() {
        return Err(SpecError::invalid("Jobs may not have an update config"));
    }
    if spec.rollback_config.is_some() {
        // The words of Docker's client, which refuses it before Docker's managers could.
        return Err(SpecError::invalid(
            "update and rollback configuration is not supported for jobs",
        ));
    }
    Ok(())
}

fn check_template(template: &TaskSpec, own: OwnNamespaces) -> Result<(), SpecError> {
    match template.runtime.as_deref() {
        None | Some("" | "container") => {}
        Some(other) => {
            return Err(SpecError::not_implemented(format!("task runtime '{other}'")));
        }
    }
    if template.extra.get("PluginSpec").is_some_and(|v| !v.is_null()) {
        return Err(SpecError::not_implemented("plugin services"));
    }
    if template.network_attachment_spec.is_some() {
        return Err(SpecError::invalid("services cannot be made of network attachments"));
    }
    let container = template
        .container_spec
        .as_ref()
        .ok_or_else(|| SpecError::invalid("ContainerSpec: missing in task spec"))?;
    check_container(container, own)?;
    let log_driver = template.log_driver.as_ref().map_or("", |d| d.name.as_str());
    if !matches!(log_driver, "" | "json-file") {
        return Err(SpecError::not_implemented(format!("log driver '{log_driver}'")));
    }
    if let Some(resources) = &template.resources {
        let swap = ["SwapBytes", "MemorySwappiness"];
        if let Some(key) = swap.iter().find(|k| resources.extra.get(**k).is_some_and(is_set)) {
            return Err(SpecError::not_implemented(format!("resource '{key}' of services")));
        }
        for part in [&resources.limits, &resources.reservations].into_iter().flatten() {
            check_resources(part)?;
        }
        let listed = |part: &Option<Resources>| {
            part.as_ref().and_then(|r| r.generic_resources.clone()).unwrap_or_default()
        };
        if !listed(&resources.limits).is_empty() {
            return Err(SpecError::invalid("generic resources can be reserved, not limited"));
        }
        check_generic(&listed(&resources.reservations))?;
    }
    if let Some(policy) = &template.restart_policy {
        check_restart(policy)?;
    }
    template.placement.as_ref().map_or(Ok(()), check_placement)
}

fn is_set(value: &serde_json::Value) -> bool {
    !value.is_null() && value.as_i64() != Some(0)
}

fn check_resources(resources: &Resources) -> Result<(), SpecError> {
    if let Some(cpu) = resources.nano_cpus.filter(|c| *c != 0 && *c < CPU_MIN) {
        let cpus = cpu as f64 / 1e9;
        return Err(SpecError::invalid(format!(
            "invalid cpu value {cpus}: Must be at least 0.001"
        )));
    }
    if let Some(bytes) = resources.memory_bytes.filter(|m| *m != 0 && *m < MEMORY_MIN) {
        return Err(SpecError::invalid(format!(
            "invalid memory value {bytes}: Must be at least 4MiB"
        )));
    }
    if let Some(pids) = resources.pids.filter(|p| *p < 0) {
        return Err(SpecError::invalid(format!("invalid pids value {pids}: cannot be negative")));
    }
    Ok(())
}

/// Tasks ask for numbers; which ones they get is the scheduler's choice.
fn check_generic(listed: &[serde_json::Value]) -> Result<(), SpecError> {
    bounds::few("generic resources", listed, bounds::REFERENCES_MAX)?;
    for value in listed {
        match GenericResource::read(value) {
            Some(GenericResource::Discrete(some)) if some.kind.is_empty() => {
                return Err(SpecError::invalid("invalid generic resource: its kind is empty"));
            }
            Some(GenericResource::Discrete(some)) if some.value < 0 => {
                return Err(SpecError::invalid(format!(
                    "could not parse GenericResource: cannot ask for negative resource {}",
                    some.kind
                )));
            }
            Some(GenericResource::Discrete(_)) => {}
            Some(GenericResource::Named(one)) => {
                return Err(SpecError::invalid(format!(
                    "invalid argument for resource {}",
                    one.kind
                )));
            }
            None => return Err(SpecError::invalid(format!("invalid generic resource: {value}"))),
        }
    }
    Ok(())
}

fn not_negative(what: &str, span: Option<Nanos>) -> Result<(), SpecError> {
    match span {
        Some(span) if span.0 < 0 => {
            Err(SpecError::invalid(format!("TaskSpec: {what} cannot be negative")))
        }
        _ => Ok(()),
    }
}

fn check_restart(policy: &RestartPolicy) -> Result<(), SpecError> {
    not_negative("restart-delay", policy.delay)?;
    not_negative("restart-window", policy.window)?;
    match policy.condition.as_deref() {
        None | Some("" | "none" | "on-failure" | "any") => Ok(()),
        Some(other) => Err(SpecError::invalid(format!("invalid RestartCondition: \"{other}\""))),
    }
}

fn check_placement(placement: &Placement) -> Result<(), SpecError> {
    for text in placement.constraints.iter().flatten() {
        Constraint::parse(text).map_err(|why| {
            SpecError::invalid(format!("invalid placement constraint '{text}': {why}"))
        })?;
    }
    for preference in placement.preferences.iter().flatten() {
        let descriptor = preference.pointer("/Spread/SpreadDescriptor").and_then(|d| d.as_str());
        let known = descriptor
            .is_some_and(|d| d.starts_with("node.labels.") || d.starts_with("engine.labels."));
        if !known {
            return Err(SpecError::invalid(format!(
                "invalid placement preference {preference}: expected spread=node.labels.<label> or \
                 spread=engine.labels.<label>"
            )));
        }
    }
    Ok(())
}

fn check_update(what: &str, config: &UpdateConfig) -> Result<(), SpecError> {
    not_negative(&format!("{what}-delay"), config.delay)?;
    not_negative(&format!("{what}-monitor"), config.monitor)?;
    if config.max_failure_ratio.is_some_and(|r| !(0.0..=1.0).contains(&r)) {
        return Err(SpecError::invalid(format!(
            "TaskSpec: {what}-maxfailureratio cannot be less than 0 or bigger than 1"
        )));
    }
    match config.failure_action.as_deref() {
        None | Some("" | "pause" | "continue") => {}
        Some("rollback") if what == "update" => {}
        Some(other) => {
            return Err(SpecError::invalid(format!("unrecognized {what} failure action {other}")));
        }
    }
    match config.order.as_deref() {
        None | Some("" | "stop-first" | "start-first") => Ok(()),
        Some(other) => Err(SpecError::invalid(format!("unrecognized {what} order {other}"))),
    }
}

fn check_endpoint(spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen: BTreeSet<(Port, bool)> = BTreeSet::new();
    for port in spec.ports() {
        if port.target_port == 0 {
            return Err(SpecError::invalid("EndpointSpec: target port must be from 1 to 65535"));
        }
        if port.mode() == PublishMode::Ingress && spec.endpoint_mode() == EndpointMode::Dnsrr {
            return Err(SpecError::invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        let Some(published) = port.published() else { continue };
        if !seen.insert((published, port.mode() == PublishMode::Host)) {
            return Err(SpecError::invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

fn check_networks(state: &ClusterState, spec: &ServiceSpec) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    for attachment in spec.networks() {
        let word = attachment.target.as_str();
        if let Some(own) = NodeNetwork::named(word) {
            check_node_network(own, spec)?;
            continue;
        }
        let network = find_network(&state.networks, word)
            .ok_or_else(|| SpecError::not_found(format!("network {word} not found")))?;
        if network.is_ingress() {
            return Err(SpecError::invalid(format!(
                "Service cannot be explicitly attached to the ingress network \"{}\"",
                network.spec.name
            )));
        }
        if !seen.insert(network.id.clone()) {
            return Err(SpecError::invalid(format!(
                "specified network {} more than once",
                network.spec.name
            )));
        }
        if attachment.driver_opts.as_ref().is_some_and(|o| !o.is_empty()) {
            return Err(SpecError::not_implemented("driver options of a service's network"));
        }
    }
    Ok(())
}

/// A network of the node is a task's only one: its namespace is the node's, or has nothing that
/// others could be put beside. What is published there has no address for the mesh to lead to.
fn check_node_network(own: NodeNetwork, spec: &ServiceSpec) -> Result<(), SpecError> {
    let name = own.name();
    if spec.networks().len() > 1 {
        return Err(SpecError::invalid(format!(
            "network '{name}' is each node's own: a service on it can be on no other network"
        )));
    }
    let Some(port) = spec.ports().first() else { return Ok(()) };
    let target = port.target_port;
    let why = match own {
        NodeNetwork::Bridge => return Ok(()),
        NodeNetwork::Host => {
            "a task on it listens on the node's own ports; publish nothing, and reach the service \
             at the nodes that run it"
        }
        NodeNetwork::None => "nothing reaches a task on it; publish nothing",
    };
    Err(SpecError::invalid(format!(
        "port {target} cannot be published by a service on network '{name}': {why}"
    )))
}

fn port_conflicts(
    state: &ClusterState,
    own: Option<&ServiceId>,
    spec: &ServiceSpec,
) -> Result<(), SpecError> {
    for wanted in spec.ports() {
        let Some(port) = wanted.published() else { continue };
        for other in state.services.values().filter(|s| Some(&s.id) != own) {
            let held = other.spec.ports().iter().chain(&other.endpoint.ports);
            let mut same = held.filter(|p| p.published() == Some(port));
            let clash = same.find(|p| {
                p.mode() == PublishMode::Ingress || wanted.mode() == PublishMode::Ingress
            });
            if let Some(held) = clash {
                let how = match held.mode() {
                    PublishMode::Ingress => "an ingress port",
                    PublishMode::Host => "a host-published port",
                };
                return Err(SpecError::invalid(format!(
                    "port '{}' is already in use by service '{}' ({}) as {how}",
                    port.number, other.spec.name, other.id
                )));
            }
        }
    }
    Ok(())
}
