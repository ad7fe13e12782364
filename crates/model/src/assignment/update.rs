//! Updates of an assignment, entry by entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::list::{self, KEY_WEIGHT, Keyed, ListChange};
use super::table::{
    Backend, EndpointEntry, IngressPort, NetworkInfo, NetworkTable, Peer, ServiceEntry,
};
use super::{Assignment, same};
use crate::id::{NetworkId, NodeId, Revision, ServiceId, TaskId};
use crate::net::Port;
use crate::object::Task;
use crate::payload::PayloadChange;

/// Backends that go into one message at most: half a megabyte.
const BACKENDS_MAX: usize = 4_096;

/// A change of an [`Assignment`], or one of several parts of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AssignmentUpdate {
    /// The revision that it changes; without one it begins from nothing. Whoever has another
    /// revision asks for a full one.
    pub base: Option<Revision>,
    /// The revision afterwards.
    pub revision: Revision,
    /// New and changed tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks_set: Vec<Arc<Task>>,
    /// Tasks that are gone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tasks_removed: BTreeSet<TaskId>,
    /// New networks, and what has changed of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks_set: Vec<Arc<TableChange>>,
    /// Networks that are gone from this node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks_removed: BTreeSet<NetworkId>,
    /// What has changed of the published ports.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub ingress_ports: Arc<ListChange<IngressPort>>,
    /// The node itself, if that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<Peer>,
    /// What changes of the secrets and configs.
    #[serde(default)]
    pub payloads: PayloadChange,
    /// Whether another part follows: nothing of it is in force before the last one.
    #[serde(default)]
    pub more: bool,
}

fn is_empty(change: &Arc<ListChange<IngressPort>>) -> bool {
    change.is_empty()
}

/// What changes of a network's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableChange {
    /// The network, as it is now.
    pub network: NetworkInfo,
    /// Of its nodes.
    #[serde(default)]
    pub peers: ListChange<Peer>,
    /// Of its tasks' addresses.
    #[serde(default)]
    pub endpoints: ListChange<EndpointEntry>,
    /// Of its services.
    #[serde(default)]
    pub services: ListChange<ServiceEntry>,
}

/// What changes of a service on a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// The service as it is now, without its backends.
    pub service: ServiceEntry,
    /// Of its backends.
    #[serde(default)]
    pub backends: ListChange<Backend>,
}

/// What changes of a published port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IngressPortChange {
    /// The port as it is now, without its backends.
    pub port: IngressPort,
    /// Of its backends.
    #[serde(default)]
    pub backends: ListChange<Backend>,
}

/// A change that was worked out once, and what it leads from and to.
#[derive(Clone, Debug)]
pub struct Known<T, C> {
    /// What was.
    pub from: Arc<T>,
    /// What is.
    pub to: Arc<T>,
    /// The way.
    pub change: Arc<C>,
}

impl<T, C> Known<T, C> {
    /// The change, if it leads from just this to just that.
    fn between(&self, old: &Arc<T>, new: &Arc<T>) -> Option<Arc<C>> {
        let fits = Arc::ptr_eq(&self.from, old) && Arc::ptr_eq(&self.to, new);
        fits.then(|| Arc::clone(&self.change))
    }
}

/// Changes that were worked out once for all nodes.
#[derive(Clone, Debug, Default)]
pub struct KnownChanges {
    /// Of networks' tables.
    pub tables: BTreeMap<NetworkId, Known<NetworkTable, TableChange>>,
    /// Of the published ports.
    pub ingress_ports: Option<Known<Vec<IngressPort>, ListChange<IngressPort>>>,
}

impl KnownChanges {
    fn table(
        &self,
        old: Option<&Arc<NetworkTable>>,
        new: &Arc<NetworkTable>,
    ) -> Option<Arc<TableChange>> {
        let Some(old) = old else { return Some(Arc::new(new.change_from(None))) };
        let known = self.tables.get(&new.network.id).and_then(|known| known.between(old, new));
        known.or_else(|| (!same(old, new)).then(|| Arc::new(new.change_from(Some(old)))))
    }

    fn ports(
        &self,
        old: &Arc<Vec<IngressPort>>,
        new: &Arc<Vec<IngressPort>>,
    ) -> Arc<ListChange<IngressPort>> {
        if Arc::ptr_eq(old, new) {
            return Arc::default();
        }
        let known = self.ingress_ports.as_ref().and_then(|known| known.between(old, new));
        known.unwrap_or_else(|| Arc::new(ListChange::between(old, new)))
    }
}

impl NetworkTable {
    /// Puts its lists into the order in which changes of them are found.
    pub fn sort(&mut self) {
        list::sort(&mut self.peers);
        list::sort(&mut self.endpoints);
        list::sort(&mut self.services);
    }

    /// What leads from `old`, or from nothing, to this.
    #[must_use]
    pub fn change_from(&self, old: Option<&Self>) -> TableChange {
        let (peers, endpoints, services) = old.map_or((&[][..], &[][..], &[][..]), |old| {
            (&old.peers[..], &old.endpoints[..], &old.services[..])
        });
        TableChange {
            network: self.network.clone(),
            peers: ListChange::between(peers, &self.peers),
            endpoints: ListChange::between(endpoints, &self.endpoints),
            services: ListChange::between(services, &self.services),
        }
    }

    fn changed(old: Option<Self>, change: TableChange) -> Self {
        let mut table = old.unwrap_or_else(|| Self {
            network: change.network.clone(),
            peers: Vec::new(),
            endpoints: Vec::new(),
            services: Vec::new(),
        });
        table.network = change.network;
        change.peers.apply(&mut table.peers);
        change.endpoints.apply(&mut table.endpoints);
        change.services.apply(&mut table.services);
        table
    }
}

impl IngressPort {
    /// Puts a list of them into the order in which changes of it are found.
    pub fn sort(list: &mut Vec<Self>) {
        list::sort(list);
    }
}

impl Assignment {
    /// Applies an update or a part of one; `false` if it does not fit this revision and a full one
    /// is needed.
    #[must_use]
    pub fn apply(&mut self, update: AssignmentUpdate) -> bool {
        match update.base {
            None => *self = Self::default(),
            Some(base) if base != self.revision => return false,
            Some(_) => {}
        }
        self.revision = update.revision;
        self.tasks.retain(|id, _| !update.tasks_removed.contains(id));
        self.tasks.extend(update.tasks_set.into_iter().map(|t| (t.id.clone(), t)));
        self.networks.retain(|id, _| !update.networks_removed.contains(id));
        for change in update.networks_set {
            let id = change.network.id.clone();
            let old = self.networks.remove(&id).map(Arc::unwrap_or_clone);
            let table = NetworkTable::changed(old, Arc::unwrap_or_clone(change));
            self.networks.insert(id, Arc::new(table));
        }
        let ports = Arc::unwrap_or_clone(update.ingress_ports);
        if !ports.is_empty() {
            ports.apply(Arc::make_mut(&mut self.ingress_ports));
        }
        self.own = update.own.or(self.own.take());
        self.payloads.apply(update.payloads);
        true
    }

    /// The update that leads from nothing to this.
    #[must_use]
    pub fn full(&self) -> AssignmentUpdate {
        AssignmentUpdate { base: None, ..Self::default().delta_to(self, &KnownChanges::default()) }
    }

    /// The smallest update that turns `self` into `next`.
    #[must_use]
    pub fn delta_to(&self, next: &Self, known: &KnownChanges) -> AssignmentUpdate {
        let task_changed =
            |id: &TaskId, task: &Arc<Task>| !self.tasks.get(id).is_some_and(|old| same(old, task));
        let tables = next.networks.iter();
        let networks_set =
            tables.filter_map(|(id, table)| known.table(self.networks.get(id), table)).collect();
        AssignmentUpdate {
            base: Some(self.revision),
            revision: next.revision,
            tasks_set: next
                .tasks
                .iter()
                .filter(|(id, task)| task_changed(id, task))
                .map(|(_, task)| Arc::clone(task))
                .collect(),
            tasks_removed: missing(&self.tasks, &next.tasks),
            networks_set,
            networks_removed: missing(&self.networks, &next.networks),
            ingress_ports: known.ports(&self.ingress_ports, &next.ingress_ports),
            own: if self.own == next.own { None } else { next.own.clone() },
            payloads: self.payloads.change_to(&next.payloads),
            more: false,
        }
    }
}

fn missing<K: Ord + Clone, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
    old.keys().filter(|key| !new.contains_key(key)).cloned().collect()
}

/// What is sent whole.
macro_rules! whole {
    ($entry:ty, $key:ty, |$one:ident| $of:expr, $weight:expr) => {
        impl Keyed for $entry {
            type Key = $key;
            type Change = Self;

            fn key(&self) -> Self::Key {
                let $one = self;
                $of
            }

            fn key_of(change: &Self) -> Self::Key {
                change.key()
            }

            fn change_from(&self, _: Option<&Self>) -> Self {
                self.clone()
            }

            fn changed(_: Option<Self>, change: Self) -> Self {
                change
            }

            fn weight($one: &Self) -> usize {
                KEY_WEIGHT + $weight
            }
        }
    };
}

whole!(Peer, NodeId, |peer| peer.node_id.clone(), peer.node_id.as_str().len());
whole!(EndpointEntry, (TaskId, IpAddr), |entry| (entry.task_id.clone(), entry.address), {
    KEY_WEIGHT + texts(&entry.names)
});
whole!(Backend, (IpAddr, TaskId), |one| (one.address, one.task_id.clone()), {
    one.task_id.as_str().len()
});

fn texts(list: &[String]) -> usize {
    list.iter().map(|text| text.len() + 4).sum()
}

fn in_pieces(backends: ListChange<Backend>) -> Vec<ListChange<Backend>> {
    let ListChange { set, removed } = backends;
    let mut pieces: Vec<ListChange<Backend>> = set
        .chunks(BACKENDS_MAX)
        .map(|chunk| ListChange { set: chunk.to_vec(), ..ListChange::default() })
        .collect();
    let removed: Vec<_> = removed.into_iter().collect();
    pieces.extend(removed.chunks(BACKENDS_MAX).map(|chunk| ListChange {
        removed: chunk.iter().cloned().collect(),
        ..ListChange::default()
    }));
    if pieces.is_empty() {
        pieces.push(ListChange::default());
    }
    pieces
}

impl Keyed for ServiceEntry {
    type Key = ServiceId;
    type Change = ServiceChange;

    fn key(&self) -> ServiceId {
        self.service_id.clone()
    }

    fn key_of(change: &ServiceChange) -> ServiceId {
        change.service.service_id.clone()
    }

    fn change_from(&self, old: Option<&Self>) -> ServiceChange {
        let before = old.map_or(&[][..], |old| &old.backends);
        ServiceChange {
            service: Self {
                service_id: self.service_id.clone(),
                name: self.name.clone(),
                aliases: self.aliases.clone(),
                mode: self.mode,
                vip: self.vip,
                backends: Vec::new(),
            },
            backends: ListChange::between(before, &self.backends),
        }
    }

    fn changed(old: Option<Self>, change: ServiceChange) -> Self {
        let mut backends = old.map(|old| old.backends).unwrap_or_default();
        change.backends.apply(&mut backends);
        Self { backends, ..change.service }
    }

    fn weight(change: &ServiceChange) -> usize {
        let service = &change.service;
        let words = service.name.len() + texts(&service.aliases);
        2 * KEY_WEIGHT + words + change.backends.weight()
    }

    fn pieces(change: ServiceChange) -> Vec<ServiceChange> {
        let ServiceChange { service, backends } = change;
        let pieces = in_pieces(backends).into_iter();
        pieces.map(|backends| ServiceChange { service: service.clone(), backends }).collect()
    }
}

impl Keyed for IngressPort {
    type Key = (Option<Port>, ServiceId);
    type Change = IngressPortChange;

    fn key(&self) -> Self::Key {
        (self.port.published(), self.service_id.clone())
    }

    fn key_of(change: &IngressPortChange) -> Self::Key {
        change.port.key()
    }

    fn change_from(&self, old: Option<&Self>) -> IngressPortChange {
        let before = old.map_or(&[][..], |old| &old.backends);
        IngressPortChange {
            port: Self {
                service_id: self.service_id.clone(),
                service_name: self.service_name.clone(),
                port: self.port.clone(),
                backends: Vec::new(),
            },
            backends: ListChange::between(before, &self.backends),
        }
    }

    fn changed(old: Option<Self>, change: IngressPortChange) -> Self {
        let mut backends = old.map(|old| old.backends).unwrap_or_default();
        change.backends.apply(&mut backends);
        Self { backends, ..change.port }
    }

    fn weight(change: &IngressPortChange) -> usize {
        3 * KEY_WEIGHT + change.port.service_name.len() + change.backends.weight()
    }

    fn pieces(change: IngressPortChange) -> Vec<IngressPortChange> {
        let IngressPortChange { port, backends } = change;
        let pieces = in_pieces(backends).into_iter();
        pieces.map(|backends| IngressPortChange { port: port.clone(), backends }).collect()
    }
}
