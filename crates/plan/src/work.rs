//! The snapshot that a pass works on, and what the pass has changed in it so far.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_model::change::{CHANGES_MAX, Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::{ClusterState, Table};
use shoal_model::id::{IdSource, NodeId, ServiceId, TaskId};
use shoal_model::object::{Node, NodeState, Service, Task, TaskStatus};
use shoal_model::spec::task::TaskSpec;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

use crate::addresses::Addresses;
use crate::reconcile::Plan;

/// A snapshot with changes on top. Every part of a pass sees what the parts before it did.
pub(crate) struct Work<'a> {
    base: &'a ClusterState,
    /// The leader's clock.
    pub now: Timestamp,
    /// Fresh ids.
    pub ids: &'a mut dyn IdSource,
    /// Services, changed in place.
    pub services: Table<ServiceId, Service>,
    /// Tasks, changed in place.
    pub tasks: Table<TaskId, Task>,
    by_service: BTreeMap<ServiceId, BTreeSet<TaskId>>,
    /// Keys in the order in which they were first changed.
    touched: Vec<ObjectKey>,
    touched_set: BTreeSet<ObjectKey>,
    wake_at: Option<Timestamp>,
    addresses: Option<Addresses>,
    templates: BTreeMap<(ServiceId, u64), Arc<TaskSpec>>,
}

impl<'a> Work<'a> {
    /// Starts a pass over `base`.
    pub fn new(base: &'a ClusterState, now: Timestamp, ids: &'a mut dyn IdSource) -> Self {
        let mut by_service: BTreeMap<ServiceId, BTreeSet<TaskId>> = BTreeMap::new();
        for task in base.tasks.values() {
            if let Some(service) = &task.service_id {
                by_service.entry(service.clone()).or_default().insert(task.id.clone());
            }
        }
        Self {
            base,
            now,
            ids,
            services: base.services.clone(),
            tasks: base.tasks.clone(),
            by_service,
            touched: Vec::new(),
            touched_set: BTreeSet::new(),
            wake_at: None,
            addresses: None,
            templates: BTreeMap::new(),
        }
    }

    /// The snapshot, for what no pass changes: cluster, nodes, networks.
    pub fn base(&self) -> &'a ClusterState {
        self.base
    }

    /// A node that is a member.
    pub fn node(&self, id: &NodeId) -> Option<&'a Arc<Node>> {
        self.base.nodes.get(id)
    }

    /// Whether nothing can be learned from the task's node any more: it is down or no member.
    pub fn node_is_lost(&self, task: &Task) -> bool {
        task.node_id.as_ref().is_some_and(|id| self.node(id).is_none_or(|n| is_lost(n)))
    }

    /// The tasks of a service.
    pub fn tasks_of(&self, service: &ServiceId) -> Vec<Arc<Task>> {
        let ids = self.by_service.get(service).into_iter().flatten();
        ids.filter_map(|id| self.tasks.get(id).cloned()).collect()
    }

    /// Whether this pass may change more objects. What it leaves, the next pass does.
    pub fn has_room(&self) -> bool {
        self.touched.len() < CHANGES_MAX
    }

    /// Asks for another pass at `at`.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    /// Whether `at` has come; if not, asks for another pass then.
    pub fn due(&mut self, at: Timestamp) -> bool {
        if at <= self.now {
            return true;
        }
        self.wake(at);
        false
    }

    fn touch(&mut self, key: ObjectKey) {
        if self.touched_set.insert(key.clone()) {
            self.touched.push(key);
        }
    }

    /// Changes a task.
    pub fn edit_task(&mut self, id: &TaskId, edit: impl FnOnce(&mut Task)) {
        if let Some(task) = Arc::make_mut(&mut self.tasks).get_mut(id) {
            edit(Arc::make_mut(task));
            self.touch(ObjectKey::Task(id.clone()));
        }
    }

    /// Raises what managers want of a task; never lowers it.
    pub fn want(&mut self, id: &TaskId, desired: TaskState) {
        if self.tasks.get(id).is_some_and(|t| t.desired_state < desired) {
            self.edit_task(id, |task| task.desired_state = desired);
        }
    }

    /// Writes a task's error while no agent knows the task. Equal text changes nothing.
    pub fn explain(&mut self, id: &TaskId, message: &str, err: &str) {
        let same = |t: &Arc<Task>| t.status.err == err && t.status.message == message;
        if self.tasks.get(id).is_none_or(same) {
            return;
        }
        let now = self.now;
        self.edit_task(id, |task| {
            task.status.err = err.to_owned();
            task.status.message = message.to_owned();
            task.status.timestamp = now;
        });
    }

    /// Moves a task's observed state on behalf of an agent that does not exist.
    pub fn observe(&mut self, id: &TaskId, state: TaskState, message: &str) {
        let now = self.now;
        self.edit_task(id, |task| {
            let old = std::mem::replace(&mut task.status, TaskStatus::new(now, state, message));
            task.status.container = old.container;
            if state.is_terminal() {
                task.status.err = old.err;
            }
        });
    }

    /// Adds a task.
    pub fn add_task(&mut self, task: Task) -> Arc<Task> {
        if let Some(service) = &task.service_id {
            self.by_service.entry(service.clone()).or_default().insert(task.id.clone());
        }
        self.touch(ObjectKey::Task(task.id.clone()));
        let task = Arc::new(task);
        Arc::make_mut(&mut self.tasks).insert(task.id.clone(), task.clone());
        task
    }

    /// Removes a task and its record.
    pub fn delete_task(&mut self, id: &TaskId) {
        if let Some(task) = Arc::make_mut(&mut self.tasks).remove(id) {
            let service = task.service_id.as_ref().and_then(|s| self.by_service.get_mut(s));
            if let Some(ids) = service {
                ids.remove(id);
            }
            self.touch(ObjectKey::Task(id.clone()));
        }
    }

    /// Changes a service.
    pub fn edit_service(&mut self, id: &ServiceId, edit: impl FnOnce(&mut Service)) {
        if let Some(service) = Arc::make_mut(&mut self.services).get_mut(id) {
            edit(Arc::make_mut(service));
            self.touch(ObjectKey::Service(id.clone()));
        }
    }

    /// The addresses in use, gathered when first asked for.
    pub fn addresses(&mut self) -> &mut Addresses {
        let (base, now) = (self.base, self.now);
        let (services, tasks) = (&self.services, &self.tasks);
        self.addresses
            .get_or_insert_with(|| Addresses::gather(&base.networks, services, tasks, now))
    }

    /// The task template of a service, shared by the tasks made from it.
    pub fn template(&mut self, service: &Service) -> Arc<TaskSpec> {
        let key = (service.id.clone(), service.spec_version);
        let make = || {
            let mut template = service.spec.task_template.clone();
            // Clients before API 1.44 put the networks beside the template.
            let networks = service.spec.networks();
            if !networks.is_empty() {
                template.networks = Some(networks.to_vec());
            }
            Arc::new(template)
        };
        self.templates.entry(key).or_insert_with(make).clone()
    }

    /// The plan: what differs from the snapshot.
    pub fn finish(self) -> Plan {
        let mut changes = Vec::new();
        for key in &self.touched {
            if changes.len() == CHANGES_MAX {
                break;
            }
            changes.extend(self.change_of(key));
        }
        Plan { changes, wake_at: self.wake_at }
    }

    fn change_of(&self, key: &ObjectKey) -> Option<Change> {
        match key {
            ObjectKey::Service(id) => {
                let (old, new) = (self.base.services.get(id), self.services.get(id)?);
                (old != Some(new)).then(|| Change::Put {
                    object: Object::Service(Box::new((**new).clone())),
                    expect: expect(old.map(|o| o.meta.version)),
                })
            }
            ObjectKey::Task(id) => match (self.base.tasks.get(id), self.tasks.get(id)) {
                (old, Some(new)) => (old != Some(new)).then(|| Change::Put {
                    object: Object::Task(Box::new((**new).clone())),
                    expect: expect(old.map(|o| o.meta.version)),
                }),
                (Some(old), None) => Some(Change::Delete {
                    key: key.clone(),
                    expect: Expect::Version(old.meta.version),
                }),
                (None, None) => None,
            },
            ObjectKey::Cluster(_)
            | ObjectKey::Node(_)
            | ObjectKey::Network(_)
            | ObjectKey::Secret(_)
            | ObjectKey::Config(_) => None,
        }
    }
}

fn expect(version: Option<shoal_model::id::Revision>) -> Expect {
    version.map_or(Expect::Absent, Expect::Version)
}

/// Whether a member cannot be reached.
pub(crate) fn is_lost(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Down | NodeState::Disconnected)
}
