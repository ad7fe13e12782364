//! What at most one object may hold: names, numbers, addresses.

use std::net::IpAddr;

use crate::change::{ApplyError, Object, ObjectKey};
use crate::id::NetworkId;
use crate::net::Port;
use crate::spec::service::PublishMode;

/// Something that at most one object may hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    ServiceName(String),
    NetworkName(String),
    SecretName(String),
    ConfigName(String),
    Vni(u32),
    NodeIndex(u16),
    RaftId(u64),
    IngressPort(Port),
    Address(NetworkId, IpAddr),
}

/// Why somebody else cannot have `claim`.
pub(crate) fn refusal(claim: Claim, holder: ObjectKey) -> ApplyError {
    let what = match claim {
        Claim::ServiceName(name)
        | Claim::NetworkName(name)
        | Claim::SecretName(name)
        | Claim::ConfigName(name) => {
            return ApplyError::NameTaken { name, holder };
        }
        Claim::Vni(vni) => format!("VXLAN number {vni}"),
        Claim::NodeIndex(index) => format!("node index {index}"),
        Claim::RaftId(id) => format!("manager number {id}"),
        Claim::IngressPort(port) => format!("published port {port}"),
        Claim::Address(network, address) => format!("address {address} on network '{network}'"),
    };
    ApplyError::NotUnique { what, holder }
}

/// Everything that `object` holds.
pub(crate) fn claims_of(object: &Object) -> Vec<Claim> {
    match object {
        Object::Cluster(_) => Vec::new(),
        Object::Node(node) => {
            let raft_id = node.manager.iter().map(|m| Claim::RaftId(m.raft_id));
            std::iter::once(Claim::NodeIndex(node.index.0)).chain(raft_id).collect()
        }
        Object::Network(network) => {
            let gateways = network.subnets.iter().map(|s| s.gateway);
            [Claim::NetworkName(network.spec.name.clone()), Claim::Vni(network.vni.0)]
                .into_iter()
                .chain(gateways.map(|gw| Claim::Address(network.id.clone(), gw)))
                .collect()
        }
        Object::Service(service) => {
            let vips = service.endpoint.vips.iter();
            let ports = service.endpoint.ports.iter();
            std::iter::once(Claim::ServiceName(service.spec.name.clone()))
                .chain(vips.map(|v| Claim::Address(v.network_id.clone(), v.addr.addr())))
                .chain(
                    ports
                        .filter(|p| p.mode() == PublishMode::Ingress)
                        .filter_map(|p| p.published().map(Claim::IngressPort)),
                )
                .collect()
        }
        Object::Secret(secret) => vec![Claim::SecretName(secret.spec.name.clone())],
        Object::Config(config) => vec![Claim::ConfigName(config.spec.name.clone())],
        // An ended task gives its addresses back; its record stays as history.
        Object::Task(task) if task.status.state.is_terminal() => Vec::new(),
        Object::Task(task) => task
            .networks
            .iter()
            .flat_map(|n| {
                n.addresses.iter().map(|a| Claim::Address(n.network_id.clone(), a.addr()))
            })
            .collect(),
    }
}
