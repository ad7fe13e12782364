//! Chooses a node for every task that waits for one: filter, then spread.
//!
//! Among the nodes that can take a task the one is chosen where (in this order) the service has not
//! kept failing lately, the groups of the placement preferences are emptiest, the service has the
//! fewest tasks, and there are the fewest tasks in all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::{NodeId, ServiceId, TaskId};
use shoal_model::net::Port;
use shoal_model::object::{Node, Task};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

use crate::constraint;
use crate::filter::{Refusal, explain, fits, host_ports, reserved};
use crate::generic::{self, Taken};
use crate::slots::{SlotKey, slot_of};
use crate::work::Work;

/// A node where a service failed at least this often lately is the last choice for it. A refusal
/// counts threefold: the node said that it cannot.
pub const FAULTY_AFTER: u64 = 5;

/// How long a failure is held against a node.
pub const FAULT_MEMORY: Duration = Duration::from_secs(300);

/// What a node carries already.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub cpu: i64,
    pub memory: i64,
    pub generic: Taken,
    tasks: u64,
    by_service: BTreeMap<ServiceId, BTreeMap<SlotKey, u64>>,
    faults: BTreeMap<ServiceId, u64>,
    ports: BTreeMap<Port, Vec<(Option<ServiceId>, SlotKey)>>,
}

impl Load {
    /// How many tasks of the service run here.
    pub fn of_service(&self, service: Option<&ServiceId>) -> u64 {
        service.and_then(|id| self.by_service.get(id)).map_or(0, |slots| slots.values().sum())
    }

    /// How many places of the task's service are here besides its own: the task that it replaces
    /// does not keep it away.
    pub fn other_places(&self, task: &Task) -> u64 {
        let own = slot_of(task);
        let slots = task.service_id.as_ref().and_then(|id| self.by_service.get(id));
        slots.map_or(0, |s| s.keys().filter(|key| **key != own).count() as u64)
    }

    /// Whether another place's task holds a host port. (The task's own predecessor will be gone
    /// before it starts.)
    pub fn port_in_use(&self, port: Port, task: &Task) -> bool {
        let own = (task.service_id.clone(), slot_of(task));
        self.ports.get(&port).is_some_and(|holders| holders.iter().any(|h| *h != own))
    }

    /// How many tasks are here, of whichever service.
    pub fn tasks(&self) -> u64 {
        self.tasks
    }

    /// How often the service failed here lately.
    pub fn faults_of(&self, service: Option<&ServiceId>) -> u64 {
        service.and_then(|id| self.faults.get(id)).copied().unwrap_or(0)
    }

    fn faulty(&self, service: Option<&ServiceId>) -> bool {
        self.faults_of(service) >= FAULTY_AFTER
    }

    fn add(&mut self, task: &Task, now: Timestamp) {
        let ended = task.status.state.is_terminal();
        if task.is_live() {
            let (cpu, memory) = reserved(task);
            self.cpu = self.cpu.saturating_add(cpu);
            self.memory = self.memory.saturating_add(memory);
            self.tasks += 1;
        }
        if !ended {
            self.generic.add(task);
            for port in host_ports(task) {
                let holder = (task.service_id.clone(), slot_of(task));
                self.ports.entry(port).or_default().push(holder);
            }
        }
        let Some(service) = &task.service_id else { return };
        if task.is_live() {
            let slots = self.by_service.entry(service.clone()).or_default();
            *slots.entry(slot_of(task)).or_default() += 1;
        } else if now.since(task.status.timestamp) < FAULT_MEMORY {
            let weight = match task.status.state {
                TaskState::Failed => 1,
                TaskState::Rejected => 3,
                _ => 0,
            };
            *self.faults.entry(service.clone()).or_default() += weight;
        }
    }
}

/// What each node carries.
pub(crate) type Loads = BTreeMap<NodeId, Load>;

/// Gives nodes to the tasks that wait, and says why to those that get none.
pub(crate) fn tasks(work: &mut Work<'_>) {
    let waits = |t: &&Arc<Task>| t.status.state == TaskState::Pending && t.is_live();
    let mut waiting: Vec<Arc<Task>> = work.tasks.values().filter(waits).cloned().collect();
    // An attempt begins on a node with its image and its mounts, which may be what fails: before
    // its time has come, a replacement is shown to nobody.
    waiting.retain(|task| task.not_before.is_none_or(|at| work.due(at)));
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by(|a, b| (&a.service_id, a.slot, &a.id).cmp(&(&b.service_id, b.slot, &b.id)));
    let mut loads = gather(work);
    let mut refused: BTreeMap<(Option<ServiceId>, u64), String> = BTreeMap::new();
    for task in waiting {
        if !work.has_room() {
            return;
        }
        let group = (task.service_id.clone(), task.spec_version);
        if let Some(why) = refused.get(&group).filter(|_| task.node_id.is_none()) {
            let why = why.clone();
            work.explain(&task.id, WAITING, &why);
            continue;
        }
        match choose(work, &loads, &task) {
            Ok(node) => assign(work, &mut loads, &task.id, &node),
            // A move to a node that cannot take it after all: its place has a task that serves.
            Err(_) if task.node_id.is_some() && task.slot != 0 => {
                work.want(&task.id, TaskState::Shutdown);
            }
            Err(refusals) => {
                let why = explain(&refusals);
                work.explain(&task.id, WAITING, &why);
                // The same would be found for every task of the group, unless its place matters.
                let placement = task.spec.placement.as_ref();
                let limited = placement.and_then(|p| p.max_replicas).unwrap_or(0) > 0;
                if task.node_id.is_none() && !limited && host_ports(&task).next().is_none() {
                    refused.insert(group, why);
                }
            }
        }
    }
}

const WAITING: &str = "pending task scheduling";

/// What each node carries now.
pub(crate) fn gather(work: &Work<'_>) -> Loads {
    let mut loads: Loads =
        work.base().nodes.keys().map(|id| (id.clone(), Load::default())).collect();
    for task in work.tasks.values() {
        // A global task that only waits for its node does not weigh on it yet.
        if task.status.state < TaskState::Assigned {
            continue;
        }
        if let Some(load) = task.node_id.as_ref().and_then(|id| loads.get_mut(id)) {
            load.add(task, work.now);
        }
    }
    loads
}

fn assign(work: &mut Work<'_>, loads: &mut Loads, id: &TaskId, node: &NodeId) {
    work.observe(id, TaskState::Assigned, "scheduler assigned task to node");
    let task = work.tasks.get(id).cloned();
    let given = match (&task, work.node(node), loads.get(node)) {
        // It was found to fit.
        (Some(task), Some(node), Some(load)) => generic::choose(node, &load.generic, task),
        _ => Ok(Vec::new()),
    };
    work.edit_task(id, |task| {
        task.node_id = Some(node.clone());
        task.assigned_generic_resources = given.unwrap_or_default();
        task.status.err.clear();
    });
    let now = work.now;
    if let (Some(load), Some(task)) = (loads.get_mut(node), work.tasks.get(id)) {
        load.add(task, now);
    }
}

fn choose(work: &Work<'_>, loads: &Loads, task: &Task) -> Result<NodeId, Vec<Refusal>> {
    let nodes = &work.base().nodes;
    let none = Load::default();
    let mut refusals = Vec::new();
    let mut fitting: Vec<(&Arc<Node>, &Load)> = Vec::new();
    let preset = |node: &&Arc<Node>| task.node_id.as_ref().is_none_or(|id| *id == node.id);
    for node in nodes.values().filter(preset) {
        let load = loads.get(&node.id).unwrap_or(&none);
        match fits(node, load, task) {
            Ok(()) => fitting.push((node, load)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let service = task.service_id.as_ref();
    let paths: BTreeMap<&NodeId, Vec<String>> =
        nodes.values().map(|n| (&n.id, preference_path(n, task))).collect();
    let rank = |node: &Node, load: &Load| {
        let path = paths.get(&node.id).map(Vec::as_slice).unwrap_or(&[]);
        let groups = group_counts(path, &paths, loads, service);
        (load.faulty(service), groups, load.of_service(service), load.tasks, node.index)
    };
    let best = fitting.into_iter().min_by_key(|(node, load)| rank(node, load));
    best.map(|(node, _)| node.id.clone()).ok_or(refusals)
}

/// The node's values of the labels that the service wants to spread over, outermost first.
pub(crate) fn preference_path(node: &Node, task: &Task) -> Vec<String> {
    let placement = task.spec.placement.as_ref();
    let preferences = placement.and_then(|p| p.preferences.as_deref()).unwrap_or(&[]);
    let descriptor = |value: &serde_json::Value| {
        value.pointer("/Spread/SpreadDescriptor").and_then(|d| d.as_str()).map(str::to_owned)
    };
    let label = |name: String| {
        let value = match name.strip_prefix("node.labels.") {
            Some(key) => node.spec.labels.get(key),
            None => {
                let key = name.strip_prefix("engine.labels.")?;
                node.description.engine_labels.get(key)
            }
        };
        Some(value.cloned().unwrap_or_default())
    };
    preferences.iter().filter_map(descriptor).filter_map(label).collect()
}

/// For each level of `path`, how many of the service's tasks run in the same group.
fn group_counts(
    path: &[String],
    paths: &BTreeMap<&NodeId, Vec<String>>,
    loads: &Loads,
    service: Option<&ServiceId>,
) -> Vec<u64> {
    let count = |depth: usize| {
        let group = path.get(..depth);
        let same = paths.iter().filter(|(_, other)| other.get(..depth) == group);
        same.filter_map(|(id, _)| loads.get(*id)).map(|load| load.of_service(service)).sum()
    };
    (1..=path.len()).map(count).collect()
}

/// Whether some node could take `task` now. For tests of liveness.
#[must_use]
pub fn is_feasible(
    state: &shoal_model::cluster_state::ClusterState,
    task: &Task,
    now: Timestamp,
) -> bool {
    let mut ids = shoal_model::id::CountingIds::default();
    let work = Work::new(state, now, &mut ids);
    choose(&work, &gather(&work), task).is_ok()
}

/// Whether the node is one that constraints and platform allow for the task.
#[must_use]
pub fn is_allowed(node: &Node, task: &Task) -> bool {
    constraint::node_suits(node, task.spec.placement.as_ref())
}
