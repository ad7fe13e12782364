//! What became of the desired state: results of an apply, status of the networks, drift.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use shoal_model::id::{NetworkId, Revision};

use crate::claims::{HostPort, PortConflict};
use crate::desired::SandboxId;

/// What one apply achieved. Parts that failed are tried again by the next apply or verify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision of the tables that the kernel now has, if nothing failed.
    pub revision: Revision,
    /// Networks that are not as desired, with the whole chain of causes.
    pub networks: BTreeMap<NetworkId, String>,
    /// Sandboxes that are not as desired (namespace or one of their ports).
    pub sandboxes: BTreeMap<SandboxId, String>,
    /// Ports of this host that somebody did not get.
    pub ports: Vec<PortConflict>,
    /// The resolver's failure: names may be stale.
    pub resolver: Option<String>,
    /// The host's own table or settings: published ports and outside reach suffer.
    pub host: Option<String>,
}

impl Applied {
    /// Whether the kernel is wholly as desired.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_but_for_ports() && self.ports.is_empty()
    }

    /// Whether at most a port is not as desired.
    #[must_use]
    pub fn is_but_for_ports(&self) -> bool {
        self.networks.is_empty()
            && self.sandboxes.is_empty()
            && self.resolver.is_none()
            && self.host.is_none()
    }

    /// What is not as desired and is tried again, one text for each.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let networks = self.networks.iter().map(|(id, cause)| format!("network '{id}': {cause}"));
        let sandboxes =
            self.sandboxes.iter().map(|(id, cause)| format!("the network of '{id}': {cause}"));
        let ports = self.ports.iter().map(|conflict| conflict.cause.clone());
        let names = self.resolver.iter().map(|cause| format!("names may be stale: {cause}"));
        let host = self.host.iter().map(|cause| format!("the host's part of the network: {cause}"));
        networks.chain(sandboxes).chain(ports).chain(names).chain(host).collect()
    }

    /// Why `wanted_by` does not have the port, if so: also the reason for a service's tasks.
    #[must_use]
    pub fn port_conflict(&self, place: HostPort, wanted_by: &str) -> Option<&PortConflict> {
        self.ports.iter().find(|one| one.wanted_by == wanted_by && one.place == place)
    }

    /// Why a workload in `sandbox` cannot be started, if so.
    #[must_use]
    pub fn sandbox_error(&self, sandbox: &SandboxId) -> Option<&str> {
        self.sandboxes.get(sandbox).map(String::as_str)
    }
}

/// The state of all networks of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Each network.
    pub networks: BTreeMap<NetworkId, NetStatus>,
    /// The last apply's result.
    pub applied: Applied,
    /// What the last verifications had to repair, newest last; bounded.
    pub drift: Vec<Drift>,
}

/// The state of one network on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// Its name.
    pub name: String,
    /// The revision that the kernel has of it.
    pub kernel_revision: Revision,
    /// Its links inside its namespace.
    pub links: Vec<String>,
    /// Transit addresses and underlay addresses of the other nodes.
    pub peers: Vec<(Ipv4Addr, IpAddr)>,
    /// Why it is not as desired, if so: the whole chain of causes.
    pub error: Option<String>,
}

/// A difference between kernel and desired state that somebody else made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Where: a network's name, or `host`.
    pub place: String,
    /// What was wrong, one line each: `missing route 10.0.1.4/32`.
    pub found: Vec<String>,
    /// Whether it is repaired.
    pub repaired: bool,
}
