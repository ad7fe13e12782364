//! Gives services their published ports and virtual addresses, and tasks their addresses.
//!
//! What cannot be given is said where the user looks: in the service's `allocation_error` and in
//! the error of each waiting task, the cause first.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_model::id::{NetworkId, ServiceId};
use shoal_model::net::{Port, Protocol};
use shoal_model::object::{Endpoint, Network, Service, Task, TaskNetwork, VirtualIp};
use shoal_model::spec::service::{EndpointMode, PortConfig, PublishMode};
use shoal_model::spec::task::{NetworkAttachmentConfig, NodeNetwork};
use shoal_model::task_state::TaskState;

use crate::addresses::Exhausted;
use crate::work::Work;

/// The ports that are given out when a service names none: Docker's range.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The network that `word` (id or name) means.
pub(crate) fn find_network<'n>(
    networks: &'n BTreeMap<NetworkId, Arc<Network>>,
    word: &str,
) -> Option<&'n Arc<Network>> {
    let by_name = || networks.values().find(|n| n.spec.name == word);
    networks.get(&NetworkId::new(word)).or_else(by_name)
}

/// Without the networks that each node has for itself: there the cluster gives no addresses.
fn of_cluster(
    networks: &[NetworkAttachmentConfig],
) -> impl Iterator<Item = &NetworkAttachmentConfig> {
    networks.iter().filter(|attachment| NodeNetwork::named(&attachment.target).is_none())
}

/// The cluster's ingress network.
pub(crate) fn ingress(networks: &BTreeMap<NetworkId, Arc<Network>>) -> Option<&Arc<Network>> {
    networks.values().find(|n| n.is_ingress())
}

fn publishes(ports: &[PortConfig]) -> bool {
    ports.iter().any(|p| p.mode() == PublishMode::Ingress)
}

/// Gives every service what it needs and takes back what it does not need any more.
pub(crate) fn services(work: &mut Work<'_>) {
    let mut holders: BTreeMap<Port, ServiceId> = BTreeMap::new();
    // What is not wanted any more goes first, so that the next one can have it in the same pass.
    let ids: Vec<ServiceId> = work.services.keys().cloned().collect();
    for id in &ids {
        let Some(service) = work.services.get(id).cloned() else { continue };
        release(work, &service);
    }
    for service in work.services.values() {
        let held = service.endpoint.ports.iter().filter(|p| p.mode() == PublishMode::Ingress);
        for port in held.filter_map(PortConfig::published) {
            holders.insert(port, service.id.clone());
        }
    }
    for id in &ids {
        let Some(service) = work.services.get(id).cloned() else { continue };
        let outcome = acquire(work, &service, &mut holders);
        let error = outcome.err();
        if service.allocation_error != error {
            work.edit_service(id, |service| service.allocation_error = error);
        }
    }
}

/// Whether an allocated port still answers one of the spec's.
fn answers(have: &PortConfig, wanted: &PortConfig) -> bool {
    have.protocol() == wanted.protocol()
        && have.mode() == wanted.mode()
        && have.target_port == wanted.target_port
        && (wanted.published().is_none() || wanted.published() == have.published())
}

fn release(work: &mut Work<'_>, service: &Service) {
    let wanted = wanted_networks(work, service).unwrap_or_default();
    let ports = service.spec.ports();
    let keep_port = |have: &PortConfig| ports.iter().any(|want| answers(have, want));
    let keep_vip = |vip: &VirtualIp| wanted.iter().any(|n| n.id == vip.network_id);
    let endpoint = &service.endpoint;
    if endpoint.ports.iter().all(keep_port) && endpoint.vips.iter().all(keep_vip) {
        return;
    }
    for vip in endpoint.vips.iter().filter(|vip| !keep_vip(vip)) {
        work.addresses().release(&vip.network_id, vip.addr.addr());
    }
    work.edit_service(&service.id, |service| {
        service.endpoint.ports.retain(keep_port);
        service.endpoint.vips.retain(keep_vip);
    });
}

/// The networks on which a service gets a virtual address, the ingress network's first.
fn wanted_networks(work: &Work<'_>, service: &Service) -> Result<Vec<Arc<Network>>, String> {
    if service.spec.endpoint_mode() == EndpointMode::Dnsrr {
        return Ok(Vec::new());
    }
    let networks = &work.base().networks;
    let mut wanted = Vec::new();
    if publishes(service.spec.ports()) {
        wanted.push(ingress(networks).ok_or(NO_INGRESS)?.clone());
    }
    for attachment in of_cluster(service.spec.networks()) {
        let network = find_network(networks, &attachment.target);
        let network = network.ok_or_else(|| no_network(&attachment.target))?;
        if !wanted.iter().any(|n| n.id == network.id) {
            wanted.push(network.clone());
        }
    }
    Ok(wanted)
}

const NO_INGRESS: &str = "no ingress network: a port is published but the cluster has no ingress \
     network; create one with 'docker network create -d overlay --ingress ingress' [SH-MGR-003]";

fn no_network(word: &str) -> String {
    format!("network not found: the service names the network '{word}', which does not exist")
}

fn acquire(
    work: &mut Work<'_>,
    service: &Service,
    holders: &mut BTreeMap<Port, ServiceId>,
) -> Result<(), String> {
    let networks = wanted_networks(work, service)?;
    let has_vip = |n: &Arc<Network>| service.endpoint.vips.iter().any(|v| v.network_id == n.id);
    let wanted_ports = service.spec.ports();
    let complete = wanted_ports.len() == service.endpoint.ports.len()
        && networks.len() == service.endpoint.vips.len()
        && networks.iter().all(has_vip)
        && wanted_ports.iter().zip(&service.endpoint.ports).all(|(w, h)| answers(h, w));
    if complete {
        return Ok(());
    }
    let ports = choose_ports(service, holders)?;
    let mut vips = Vec::new();
    for network in &networks {
        let known = service.endpoint.vips.iter().find(|v| v.network_id == network.id);
        let vip = match known {
            Some(vip) => vip.clone(),
            None => take_vip(work, network)?,
        };
        vips.push(vip);
    }
    for port in ports.iter().filter(|p| p.mode() == PublishMode::Ingress) {
        if let Some(port) = port.published() {
            holders.insert(port, service.id.clone());
        }
    }
    work.edit_service(&service.id, |service| service.endpoint = Endpoint { ports, vips });
    Ok(())
}

fn take_vip(work: &mut Work<'_>, network: &Arc<Network>) -> Result<VirtualIp, String> {
    let taken = work.addresses().take(network);
    let addr = taken.map_err(|full| exhausted("virtual address", network, &full))?;
    Ok(VirtualIp { network_id: network.id.clone(), addr })
}

fn exhausted(what: &str, network: &Network, full: &Exhausted) -> String {
    format!(
        "subnet full: no {what} left on network '{}' ({}); use a network with a larger subnet, or \
         remove services from this one [SH-MGR-004]",
        network.spec.name, full.detail
    )
}

fn choose_ports(
    service: &Service,
    holders: &BTreeMap<Port, ServiceId>,
) -> Result<Vec<PortConfig>, String> {
    let mut chosen: Vec<PortConfig> = Vec::new();
    let mut spare = service.endpoint.ports.clone();
    for wanted in service.spec.ports() {
        let mut port = wanted.clone();
        if wanted.mode() == PublishMode::Ingress {
            let known = spare.iter().position(|have| answers(have, wanted));
            port.published_port = Some(match known.map(|i| spare.remove(i)) {
                Some(have) => have.published_port.unwrap_or_default(),
                None => choose_number(service, wanted, holders, &chosen)?,
            });
        }
        chosen.push(port);
    }
    Ok(chosen)
}

fn choose_number(
    service: &Service,
    wanted: &PortConfig,
    holders: &BTreeMap<Port, ServiceId>,
    chosen: &[PortConfig],
) -> Result<u16, String> {
    let protocol = wanted.protocol();
    let free = |number: u16| {
        let port = Port { protocol, number };
        holders.get(&port).is_none_or(|holder| *holder == service.id)
            && !chosen.iter().any(|c| c.published() == Some(port))
    };
    if let Some(port) = wanted.published() {
        return if free(port.number) {
            Ok(port.number)
        } else {
            let holder = holders.get(&port).map(ToString::to_string).unwrap_or_default();
            Err(format!(
                "port {} in use: it is already published by service '{holder}' [SH-MGR-005]",
                port.number
            ))
        };
    }
    DYNAMIC_PORTS.into_iter().find(|n| free(*n)).ok_or_else(|| no_dynamic_port(protocol))
}

fn no_dynamic_port(protocol: Protocol) -> String {
    format!(
        "no free port: all {protocol} ports from {} to {} are published; name a published port \
         [SH-MGR-005]",
        DYNAMIC_PORTS.start(),
        DYNAMIC_PORTS.end()
    )
}

/// Gives addresses to tasks that have none yet, and moves them on to wait for a node.
pub(crate) fn tasks(work: &mut Work<'_>) {
    let fresh = |t: &&Arc<Task>| t.status.state == TaskState::New && t.is_live();
    let mut waiting: Vec<Arc<Task>> = work.tasks.values().filter(fresh).cloned().collect();
    waiting.sort_by(|a, b| (&a.service_id, a.slot, &a.id).cmp(&(&b.service_id, b.slot, &b.id)));
    for task in waiting {
        if !work.has_room() {
            return;
        }
        match allocate(work, &task) {
            Ok((networks, ports)) => {
                let message = match task.not_before {
                    Some(at) if at > work.now => "waits until its restart delay is over",
                    _ => "pending task scheduling",
                };
                work.observe(&task.id, TaskState::Pending, message);
                work.edit_task(&task.id, |task| {
                    task.status.err.clear();
                    task.networks = networks;
                    task.endpoint_ports = ports;
                });
            }
            Err(err) => work.explain(&task.id, "waiting for addresses and ports", &err),
        }
    }
}

type Allocated = (Vec<TaskNetwork>, Vec<PortConfig>);

fn allocate(work: &mut Work<'_>, task: &Task) -> Result<Allocated, String> {
    let service: Option<Arc<Service>> =
        task.service_id.as_ref().and_then(|id| work.services.get(id).cloned());
    if let Some(error) = service.as_ref().and_then(|s| s.allocation_error.clone()) {
        return Err(error);
    }
    let ports = service.map(|s| s.endpoint.ports.clone()).unwrap_or_default();
    let networks = &work.base().networks;
    let mut places: Vec<(Arc<Network>, &NetworkAttachmentConfig)> = Vec::new();
    let none = NetworkAttachmentConfig::default();
    if publishes(&ports) {
        places.push((ingress(networks).ok_or(NO_INGRESS)?.clone(), &none));
    }
    for attachment in of_cluster(task.spec.networks.as_deref().unwrap_or(&[])) {
        let network = find_network(networks, &attachment.target);
        let network = network.ok_or_else(|| no_network(&attachment.target))?;
        if !places.iter().any(|(n, _)| n.id == network.id) {
            places.push((network.clone(), attachment));
        }
    }
    let mut taken = Vec::new();
    for (network, attachment) in &places {
        match work.addresses().take(network) {
            Ok(address) => taken.push(TaskNetwork {
                network_id: network.id.clone(),
                addresses: vec![address],
                aliases: attachment.aliases.clone().unwrap_or_default(),
            }),
            Err(full) => {
                give_back(work, &taken);
                return Err(exhausted("address", network, &full));
            }
        }
    }
    Ok((taken, ports))
}

fn give_back(work: &mut Work<'_>, taken: &[TaskNetwork]) {
    for place in taken {
        for address in &place.addresses {
            work.addresses().release(&place.network_id, address.addr());
        }
    }
}
