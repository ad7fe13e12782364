//! What the helper answers from: a value made from the desired network, kept in a file so that a
//! restarted helper goes on. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_model::assignment::{BackendState, ServiceEntry};
use shoal_model::id::{NetworkId, Revision};
use shoal_model::spec::service::EndpointMode;

use crate::desired::{
    DesiredNet, DesiredNetwork, Guest, LocalPort, NetKind, SandboxId, SandboxSpec,
};

/// Format of the value, in the file and between daemon and helper.
pub const FORMAT: u32 = 3;

/// All names, and who sees which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`FORMAT`].
    pub format: u32,
    /// The revision of the tables that it was made from.
    pub revision: Revision,
    /// Names by network.
    pub zones: BTreeMap<NetworkId, Zone>,
    /// Who asks, and what he sees.
    pub views: BTreeMap<SandboxId, View>,
}

/// The names of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The network's name in lower case: a suffix of its names.
    pub suffix: String,
    /// Addresses in here have names from here or none.
    pub subnets: Vec<IpNet>,
    /// Lower-case names without the suffix.
    pub names: BTreeMap<String, Entry>,
    /// Names of addresses, without the suffix.
    pub pointers: BTreeMap<IpAddr, String>,
}

/// What differs between two snapshots: as much is said to the helper as has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Number of the snapshot or change that it comes after.
    pub base: u64,
    /// Its own number.
    pub serial: u64,
    /// The revision of the tables.
    pub revision: Revision,
    /// Networks: gone, new, or changed.
    pub zones: BTreeMap<NetworkId, Option<ZoneChange>>,
    /// Workloads: gone, new, or changed.
    pub views: BTreeMap<SandboxId, Option<View>>,
}

/// What differs between two states of a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneChange {
    /// As in [`Zone`].
    pub suffix: String,
    /// As in [`Zone`].
    pub subnets: Vec<IpNet>,
    /// Names: gone, new, or changed.
    pub names: BTreeMap<String, Option<Entry>>,
    /// Names of addresses: gone, new, or changed.
    pub pointers: BTreeMap<IpAddr, Option<String>>,
}

/// What turns `old` into `new`, entry by entry.
fn differences<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).map(|key| (key.clone(), None));
    let come = new.iter().filter(|(key, value)| old.get(key) != Some(value));
    gone.chain(come.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

fn take_over<K: Ord, V>(map: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => {
                map.insert(key, value);
            }
            None => {
                map.remove(&key);
            }
        }
    }
}

impl Zone {
    fn since(&self, old: &Self) -> ZoneChange {
        ZoneChange {
            suffix: self.suffix.clone(),
            subnets: self.subnets.clone(),
            names: differences(&old.names, &self.names),
            pointers: differences(&old.pointers, &self.pointers),
        }
    }

    fn apply(&mut self, change: ZoneChange) {
        self.suffix = change.suffix;
        self.subnets = change.subnets;
        take_over(&mut self.names, change.names);
        take_over(&mut self.pointers, change.pointers);
    }
}

/// What a name means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its addresses of both families; none for a service without running tasks.
    pub addresses: Vec<IpAddr>,
    /// A virtual address: it stays as long as the service does.
    pub stable: bool,
}

/// What one workload sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The namespace where its questions arrive.
    pub netns: PathBuf,
    /// Where they arrive in it.
    pub listen: Listen,
    /// Addresses that its questions come from, where it shares the place with others.
    #[serde(default)]
    pub clients: Vec<IpAddr>,
    /// Its networks, in the order in which a name is looked for.
    pub networks: Vec<NetworkId>,
    /// Names that only it knows, before all others: its own host name.
    pub local: BTreeMap<String, Vec<IpAddr>>,
    /// Who answers other names; nobody named: whoever the host asks.
    pub servers: Vec<IpAddr>,
    /// Whether other names are asked for outside at all.
    pub forward: bool,
}

/// Where questions arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Listen {
    /// At 127.0.0.11, port 53, while leaving the port 53 of every other address to the workload.
    Loopback,
    /// At that address of the namespace, for all workloads whose view says so: guests, which have
    /// no namespace of their own. Who asks is told by the source of the question.
    Address(IpAddr),
}

impl Snapshot {
    /// Whose question from `client` it is that arrived at the address `at` in `netns`.
    #[must_use]
    pub fn asker(&self, netns: &Path, at: IpAddr, client: IpAddr) -> Option<&SandboxId> {
        let own = |view: &View| {
            view.clients.contains(&client)
                && view.listen == Listen::Address(at)
                && view.netns == netns
        };
        self.views.iter().find(|(_, view)| own(view)).map(|(id, _)| id)
    }

    /// What turns `old`, which has the number `base`, into this.
    #[must_use]
    pub fn since(&self, old: &Self, base: u64, serial: u64) -> Change {
        let nothing = Zone::default();
        let gone = old.zones.keys().filter(|id| !self.zones.contains_key(id));
        let mut zones: BTreeMap<_, _> = gone.map(|id| (id.clone(), None)).collect();
        for (id, zone) in &self.zones {
            let before = old.zones.get(id);
            if before != Some(zone) {
                zones.insert(id.clone(), Some(zone.since(before.unwrap_or(&nothing))));
            }
        }
        let views = differences(&old.views, &self.views);
        Change { base, serial, revision: self.revision, zones, views }
    }

    /// Carries out a change.
    pub fn apply(&mut self, change: Change) {
        self.revision = change.revision;
        for (id, zone) in change.zones {
            match zone {
                Some(zone) => self.zones.entry(id).or_default().apply(zone),
                None => {
                    self.zones.remove(&id);
                }
            }
        }
        take_over(&mut self.views, change.views);
    }

    /// The names of `desired` for the workloads whose namespaces are in `sandboxes`.
    #[must_use]
    pub fn of(desired: &DesiredNetwork, sandboxes: &BTreeMap<SandboxId, PathBuf>) -> Self {
        let zones = desired.networks.iter().map(|(id, net)| (id.clone(), zone(desired, net)));
        let mut ports: BTreeMap<&SandboxId, Vec<Port<'_>>> = BTreeMap::new();
        for (network, net) in &desired.networks {
            for port in &net.local_ports {
                ports.entry(&port.sandbox).or_default().push((network, net, port));
            }
        }
        let views = desired.sandboxes.iter().filter_map(|(id, spec)| {
            let netns = sandboxes.get(id)?.clone();
            let ports = ports.remove(id).unwrap_or_default();
            Some((id.clone(), view(ports, spec, netns)))
        });
        Self {
            format: FORMAT,
            revision: desired.revision,
            zones: zones.collect(),
            views: views.collect(),
        }
    }
}

/// A workload's port, with its network.
type Port<'a> = (&'a NetworkId, &'a DesiredNet, &'a LocalPort);

fn view(mut ports: Vec<Port<'_>>, spec: &SandboxSpec, netns: PathBuf) -> View {
    // Overlays of users before the ingress before networks of this node, as in Docker.
    let rank = |net: &DesiredNet| match net.info.kind {
        NetKind::Overlay if !net.info.ingress => 0,
        NetKind::Overlay => 1,
        NetKind::Bridge => 2,
    };
    ports.sort_by_key(|(_, net, port)| (rank(net), port.order));
    let own: Vec<IpAddr> =
        ports.iter().flat_map(|(_, _, port)| &port.address).map(IpNet::addr).collect();
    let mut local = BTreeMap::new();
    if !spec.hostname.is_empty() && !own.is_empty() {
        local.insert(spec.hostname.to_lowercase(), own);
    }
    let home = |guest: &Guest| ports.iter().find(|(network, ..)| **network == guest.home).copied();
    let gateway = spec.guest.as_ref().and_then(home).and_then(gateway);
    let (listen, clients) = match gateway {
        Some((gateway, own)) => (Listen::Address(gateway), vec![own]),
        None => (Listen::Loopback, Vec::new()),
    };
    View {
        netns,
        listen,
        clients,
        networks: ports.iter().map(|(network, ..)| (*network).clone()).collect(),
        local,
        servers: spec.dns_servers.clone(),
        forward: ports.iter().any(|(_, net, _)| !net.info.internal),
    }
}

/// The gateway's address on a guest's home network, and the guest's own.
fn gateway((_, net, port): Port<'_>) -> Option<(IpAddr, IpAddr)> {
    let own = port.address.iter().map(IpNet::addr).find(IpAddr::is_ipv4)?;
    let subnet = net.info.subnets.iter().find(|subnet| subnet.subnet.contains(&own))?;
    Some((subnet.gateway, own))
}

fn zone(desired: &DesiredNetwork, net: &DesiredNet) -> Zone {
    let mut zone = Zone {
        suffix: net.info.name.to_lowercase(),
        subnets: net.info.subnets.iter().map(|subnet| subnet.subnet).collect(),
        ..Zone::default()
    };
    // The ingress network only carries the routing mesh: nobody is meant by a name on it.
    if net.info.ingress {
        return zone;
    }
    for service in &net.services {
        add_service(&mut zone, service);
    }
    let services: BTreeSet<String> = zone.names.keys().cloned().collect();
    let mut add_task = |name: &str, addresses: &mut dyn Iterator<Item = IpAddr>| {
        let name = name.to_lowercase();
        if name.is_empty() || services.contains(&name) {
            return;
        }
        let mut known = Vec::new();
        for address in addresses {
            zone.pointers.entry(address).or_insert_with(|| name.clone());
            known.push(address);
        }
        let entry = zone.names.entry(name).or_default();
        for address in known {
            if !entry.addresses.contains(&address) {
                entry.addresses.push(address);
            }
        }
    };
    for port in &net.local_ports {
        let names = desired.sandboxes.get(&port.sandbox).map(|s| s.names.as_slice());
        for name in names.unwrap_or_default().iter().chain(&port.aliases) {
            add_task(name, &mut port.address.iter().map(IpNet::addr));
        }
    }
    for endpoint in &net.endpoints {
        for name in &endpoint.names {
            add_task(name, &mut std::iter::once(endpoint.address));
        }
    }
    zone
}

fn add_service(zone: &mut Zone, service: &ServiceEntry) {
    let serving =
        |state| service.backends.iter().filter(move |b| b.state == state).map(|b| b.address);
    let mut tasks: Vec<IpAddr> = serving(BackendState::Serving).collect();
    if tasks.is_empty() {
        // Better a task that is about to stop than no address at all.
        tasks = serving(BackendState::Draining).collect();
    }
    let vip = service.vip.filter(|_| service.mode == EndpointMode::Vip);
    for name in std::iter::once(&service.name).chain(&service.aliases) {
        let name = name.to_lowercase();
        let meaning = match vip {
            Some(vip) => Entry { addresses: vec![vip], stable: true },
            None => Entry { addresses: tasks.clone(), stable: false },
        };
        add(zone, name.clone(), meaning);
        add(zone, format!("tasks.{name}"), Entry { addresses: tasks.clone(), stable: false });
    }
    if let Some(vip) = vip {
        zone.pointers.insert(vip, service.name.to_lowercase());
    }
}

/// Services may share an alias: it then means all of them.
fn add(zone: &mut Zone, name: String, meaning: Entry) {
    let entry =
        zone.names.entry(name).or_insert_with(|| Entry { stable: true, ..Entry::default() });
    entry.stable &= meaning.stable;
    for address in meaning.addresses {
        if !entry.addresses.contains(&address) {
            entry.addresses.push(address);
        }
    }
}
