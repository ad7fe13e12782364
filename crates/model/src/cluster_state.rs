//! The whole cluster state in memory, and the only way it changes.
//!
//! **Invariants**, checked here when a change is applied, so that they hold no matter who proposed
//! it: names are unique per kind; VNIs, node indices and published ports are unique; within a
//! network every address belongs to one task or one service; desired and observed task states only
//! grow; the cluster's level only grows, and nothing is in the state that needs a higher one. A
//! refused transaction changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::change::{
    ApplyError, CHANGES_MAX, Change, Changed, Expect, Object, ObjectKey, Transaction,
};
use crate::claim::{Claim, claims_of, refusal};
#[cfg(feature = "next-level")]
use crate::id::ClusterId;
use crate::id::{ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId, TaskId};
use crate::level;
use crate::object::{Cluster, Config, Meta, Network, Node, Secret, Service, Task};

/// Objects by id. Cloning is cheap: maps and objects are shared until somebody writes.
pub type Table<K, V> = Arc<BTreeMap<K, Arc<V>>>;

/// The state of a cluster at one revision. Cloning takes a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterState {
    /// The last applied revision.
    pub revision: Revision,
    /// Set from `swarm init` on.
    pub cluster: Option<Arc<Cluster>>,
    /// Members.
    pub nodes: Table<NodeId, Node>,
    /// Services.
    pub services: Table<ServiceId, Service>,
    /// Tasks, with their history.
    pub tasks: Table<TaskId, Task>,
    /// Swarm-scoped networks.
    pub networks: Table<NetworkId, Network>,
    /// Secrets, with their data.
    pub secrets: Table<SecretId, Secret>,
    /// Configs, with their data.
    pub configs: Table<ConfigId, Config>,
    /// Who holds what must be unique; derived from the tables.
    claims: Arc<HashMap<Claim, ObjectKey>>,
}

impl ClusterState {
    /// What may be written: see [`crate::level`]. What is applied differently from some level on
    /// depends on this, which all members agree on.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.cluster.as_ref().map_or(level::FIRST, |cluster| cluster.level)
    }

    /// A node as operators know it: its host name, or its id as long as that is not known.
    #[must_use]
    pub fn node_name(&self, node: &NodeId) -> String {
        let name = self.nodes.get(node).map(|known| known.description.hostname.clone());
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| node.to_string())
    }

    /// Rebuilds a state from stored objects, whose metadata is kept.
    #[must_use]
    pub fn restore(revision: Revision, objects: Vec<Object>) -> Self {
        let mut state = Self { revision, ..Self::default() };
        for object in objects {
            let key = object.key();
            for claim in claims_of(&object) {
                Arc::make_mut(&mut state.claims).insert(claim, key.clone());
            }
            state.insert(object);
        }
        state
    }

    /// Every object, for snapshots on disk.
    #[must_use]
    pub fn objects(&self) -> Vec<Object> {
        let cluster = self.cluster.iter().map(|o| Object::Cluster(Box::new((**o).clone())));
        let nodes = self.nodes.values().map(|o| Object::Node(Box::new((**o).clone())));
        let services = self.services.values().map(|o| Object::Service(Box::new((**o).clone())));
        let tasks = self.tasks.values().map(|o| Object::Task(Box::new((**o).clone())));
        let networks = self.networks.values().map(|o| Object::Network(Box::new((**o).clone())));
        let secrets = self.secrets.values().map(|o| Object::Secret(Box::new((**o).clone())));
        let configs = self.configs.values().map(|o| Object::Config(Box::new((**o).clone())));
        let payloads = secrets.chain(configs);
        cluster.chain(nodes).chain(services).chain(tasks).chain(networks).chain(payloads).collect()
    }

    /// Applies `transaction` as revision `revision`, whole or not at all.
    ///
    /// # Errors
    /// [`ApplyError`] names the object that moved on or the thing that is taken.
    pub fn apply(
        &mut self,
        revision: Revision,
        transaction: &Transaction,
    ) -> Result<Vec<Changed>, ApplyError> {
        let count = transaction.changes.len();
        if count > CHANGES_MAX {
            return Err(ApplyError::TooLarge { count });
        }
        // Changed in place and undone if a later change is refused: copying the tables for every
        // transaction would cost as much as the whole cluster is large.
        let (old_revision, old_cluster) = (self.revision, self.cluster.clone());
        self.revision = revision;
        let mut done = Vec::with_capacity(count);
        for change in &transaction.changes {
            match self.apply_one(change, revision, transaction) {
                Ok(changed) => done.push(changed),
                Err(refused) => {
                    self.undo(done);
                    (self.revision, self.cluster) = (old_revision, old_cluster);
                    return Err(refused);
                }
            }
        }
        Ok(done)
    }

    fn undo(&mut self, done: Vec<Changed>) {
        for Changed { key, before, after } in done.into_iter().rev() {
            if let Some(object) = &after {
                self.release(object, &key);
            }
            match before {
                Some(object) => {
                    self.claim(&object, &key);
                    self.insert(object);
                }
                None => self.remove(&key),
            }
        }
    }

    /// Makes one change, or none at all.
    fn apply_one(
        &mut self,
        change: &Change,
        revision: Revision,
        transaction: &Transaction,
    ) -> Result<Changed, ApplyError> {
        #[cfg(feature = "next-level")]
        let change = &self.spelled_out(change)?;
        let (key, expect) = match change {
            Change::Put { object, expect } => (object.key(), *expect),
            Change::Delete { key, expect } => (key.clone(), *expect),
            // Spelled out above.
            #[cfg(feature = "next-level")]
            Change::Note { .. } => (ObjectKey::Cluster(ClusterId::new("")), Expect::Absent),
        };
        let before = self.get(&key);
        check_expectation(&key, expect, before.as_ref())?;
        let after = match change {
            Change::Put { object, .. } => {
                let mut object = object.clone();
                let (created, created_at) = before
                    .as_ref()
                    .map_or((revision, transaction.at), |o| (meta(o).created, meta(o).created_at));
                *meta_mut(&mut object) =
                    Meta { version: revision, created, created_at, updated_at: transaction.at };
                keep_growing(&mut object, before.as_ref());
                if object.needs() > self.level() {
                    let (needs, level) = (object.needs(), self.level());
                    return Err(ApplyError::Level { key, needs, level });
                }
                self.check_claims(&object, &key)?;
                Some(object)
            }
            _ => None,
        };
        if let Some(old) = &before {
            self.release(old, &key);
        }
        match &after {
            Some(object) => {
                self.claim(object, &key);
                self.insert(object.clone());
            }
            None => self.remove(&key),
        }
        Ok(Changed { key, before, after })
    }

    /// The next version's change, for tests, as one that writes the cluster.
    #[cfg(feature = "next-level")]
    fn spelled_out(&self, change: &Change) -> Result<Change, ApplyError> {
        let Change::Note { text } = change else { return Ok(change.clone()) };
        let none = || ClusterId::new("");
        let key = ObjectKey::Cluster(self.cluster.as_ref().map_or_else(none, |c| c.id.clone()));
        let (needs, level) = (change.needs(), self.level());
        match &self.cluster {
            Some(known) if needs <= level => {
                let note = Some(text.clone());
                let object = Object::Cluster(Box::new(Cluster { note, ..(**known).clone() }));
                Ok(Change::Put { object, expect: Expect::Any })
            }
            _ => Err(ApplyError::Level { key, needs, level }),
        }
    }

    /// The object that `key` names.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        match key {
            ObjectKey::Cluster(id) => self
                .cluster
                .as_ref()
                .filter(|c| c.id == *id)
                .map(|o| Object::Cluster(Box::new((**o).clone()))),
            ObjectKey::Node(id) => {
                self.nodes.get(id).map(|o| Object::Node(Box::new((**o).clone())))
            }
            ObjectKey::Service(id) => {
                self.services.get(id).map(|o| Object::Service(Box::new((**o).clone())))
            }
            ObjectKey::Task(id) => {
                self.tasks.get(id).map(|o| Object::Task(Box::new((**o).clone())))
            }
            ObjectKey::Network(id) => {
                self.networks.get(id).map(|o| Object::Network(Box::new((**o).clone())))
            }
            ObjectKey::Secret(id) => {
                self.secrets.get(id).map(|o| Object::Secret(Box::new((**o).clone())))
            }
            ObjectKey::Config(id) => {
                self.configs.get(id).map(|o| Object::Config(Box::new((**o).clone())))
            }
        }
    }

    fn insert(&mut self, object: Object) {
        match object {
            Object::Cluster(o) => self.cluster = Some(Arc::new(*o)),
            Object::Node(o) => {
                Arc::make_mut(&mut self.nodes).insert(o.id.clone(), Arc::new(*o));
            }
            Object::Service(o) => {
                Arc::make_mut(&mut self.services).insert(o.id.clone(), Arc::new(*o));
            }
            Object::Task(o) => {
                Arc::make_mut(&mut self.tasks).insert(o.id.clone(), Arc::new(*o));
            }
            Object::Network(o) => {
                Arc::make_mut(&mut self.networks).insert(o.id.clone(), Arc::new(*o));
            }
            Object::Secret(o) => {
                Arc::make_mut(&mut self.secrets).insert(o.id.clone(), Arc::new(*o));
            }
            Object::Config(o) => {
                Arc::make_mut(&mut self.configs).insert(o.id.clone(), Arc::new(*o));
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Cluster(_) => self.cluster = None,
            ObjectKey::Node(id) => {
                Arc::make_mut(&mut self.nodes).remove(id);
            }
            ObjectKey::Service(id) => {
                Arc::make_mut(&mut self.services).remove(id);
            }
            ObjectKey::Task(id) => {
                Arc::make_mut(&mut self.tasks).remove(id);
            }
            ObjectKey::Network(id) => {
                Arc::make_mut(&mut self.networks).remove(id);
            }
            ObjectKey::Secret(id) => {
                Arc::make_mut(&mut self.secrets).remove(id);
            }
            ObjectKey::Config(id) => {
                Arc::make_mut(&mut self.configs).remove(id);
            }
        }
    }

    fn release(&mut self, object: &Object, key: &ObjectKey) {
        for claim in claims_of(object) {
            if self.claims.get(&claim) == Some(key) {
                Arc::make_mut(&mut self.claims).remove(&claim);
            }
        }
    }

    fn check_claims(&self, object: &Object, key: &ObjectKey) -> Result<(), ApplyError> {
        for claim in claims_of(object) {
            if let Some(holder) = self.claims.get(&claim).filter(|holder| *holder != key) {
                return Err(refusal(claim, holder.clone()));
            }
        }
        Ok(())
    }

    fn claim(&mut self, object: &Object, key: &ObjectKey) {
        for claim in claims_of(object) {
            Arc::make_mut(&mut self.claims).insert(claim, key.clone());
        }
    }
}

fn check_expectation(
    key: &ObjectKey,
    expect: Expect,
    before: Option<&Object>,
) -> Result<(), ApplyError> {
    let actual = before.map(|o| meta(o).version);
    let fits = match expect {
        Expect::Any => true,
        Expect::Absent => actual.is_none(),
        Expect::Version(version) => actual == Some(version),
    };
    if fits {
        Ok(())
    } else {
        Err(ApplyError::OutOfSequence { key: key.clone(), expected: expect, actual })
    }
}

/// A late report must not bring a task back to life, nor may a stale plan; and what is written in
/// one form is not written in an older one later.
fn keep_growing(object: &mut Object, before: Option<&Object>) {
    match (object, before) {
        (Object::Task(task), Some(Object::Task(old))) => {
            // A word that is not known is refused, not compared.
            let known = task.status.state.is_known() && task.desired_state.is_known();
            if known && task.status.state < old.status.state {
                task.status = old.status.clone();
            }
            if known {
                task.desired_state = task.desired_state.max(old.desired_state);
            }
        }
        (Object::Cluster(cluster), Some(Object::Cluster(old))) => {
            cluster.level = cluster.level.max(old.level);
        }
        _ => {}
    }
}

fn meta(object: &Object) -> Meta {
    match object {
        Object::Cluster(o) => o.meta,
        Object::Node(o) => o.meta,
        Object::Service(o) => o.meta,
        Object::Task(o) => o.meta,
        Object::Network(o) => o.meta,
        Object::Secret(o) => o.meta,
        Object::Config(o) => o.meta,
    }
}

fn meta_mut(object: &mut Object) -> &mut Meta {
    match object {
        Object::Cluster(o) => &mut o.meta,
        Object::Node(o) => &mut o.meta,
        Object::Service(o) => &mut o.meta,
        Object::Task(o) => &mut o.meta,
        Object::Network(o) => &mut o.meta,
        Object::Secret(o) => &mut o.meta,
        Object::Config(o) => &mut o.meta,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::net::NodeIndex;
    use crate::object::{ManagerStatus, NodeDescription, NodeState, NodeStatus};
    use crate::spec::node::NodeSpec;
    use crate::time::Timestamp;
    use crate::trust::NodeTls;

    fn node(id: &str, index: u16) -> Object {
        Object::Node(Box::new(Node {
            id: id.into(),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: NodeDescription::default(),
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: String::new(),
                since: Timestamp::ZERO,
                back_by: None,
            },
            index: NodeIndex(index),
            data_path_addr: None,
            manager: None,
            tls: NodeTls::default(),
            extra: Default::default(),
        }))
    }

    fn put(id: &str, index: u16, expect: Expect) -> Change {
        Change::Put { object: node(id, index), expect }
    }

    fn delete(id: &str) -> Change {
        Change::Delete { key: ObjectKey::Node(id.into()), expect: Expect::Any }
    }

    fn apply(state: &mut ClusterState, at: u64, changes: Vec<Change>) -> Result<(), ApplyError> {
        let transaction = Transaction { changes, at: Timestamp::from_secs(1) };
        state.apply(Revision(at), &transaction).map(|_| ())
    }

    #[test]
    fn an_index_belongs_to_one_node_and_is_free_again_afterwards() {
        let mut state = ClusterState::default();
        apply(&mut state, 1, vec![put("a", 1, Expect::Absent)]).unwrap();
        let taken = apply(&mut state, 2, vec![put("b", 1, Expect::Absent)]).unwrap_err();
        assert!(matches!(taken, ApplyError::NotUnique { .. }), "{taken}");
        // Within one transaction the order counts: given back, then taken.
        apply(&mut state, 3, vec![delete("a"), put("b", 1, Expect::Absent)]).unwrap();
        apply(&mut state, 4, vec![put("b", 2, Expect::Version(Revision(3)))]).unwrap();
        apply(&mut state, 5, vec![put("c", 1, Expect::Absent)]).unwrap();
        assert_eq!(state.nodes.len(), 2);
    }

    #[test]
    fn a_manager_number_belongs_to_one_node() {
        let manager = |id: &str, index: u16, raft_id: u64| {
            let mut object = node(id, index);
            if let Object::Node(node) = &mut object {
                let addr = format!("{id}:2377");
                node.manager =
                    Some(ManagerStatus { raft_id, addr, reachable: true, leader: false });
            }
            Change::Put { object, expect: Expect::Any }
        };
        let mut state = ClusterState::default();
        apply(&mut state, 1, vec![manager("a", 1, 1)]).unwrap();
        let taken = apply(&mut state, 2, vec![manager("b", 2, 1)]).unwrap_err();
        assert!(matches!(taken, ApplyError::NotUnique { .. }), "{taken}");
        apply(&mut state, 3, vec![manager("b", 2, 3)]).unwrap();
        apply(&mut state, 4, vec![put("a", 1, Expect::Any), manager("b", 2, 3)]).unwrap();
    }

    /// Every pair and triple of a few changes: whatever is refused leaves no trace, whatever is
    /// applied has exactly the claims that its objects have.
    #[test]
    fn a_refused_transaction_leaves_no_trace() {
        let changes = [
            put("a", 1, Expect::Any),
            put("a", 2, Expect::Any),
            put("b", 1, Expect::Any),
            put("b", 3, Expect::Absent),
            put("c", 2, Expect::Version(Revision(9))),
            delete("a"),
            delete("b"),
        ];
        let mut start = ClusterState::default();
        let both = vec![put("a", 1, Expect::Any), put("b", 2, Expect::Any)];
        apply(&mut start, 1, both).unwrap();
        let mut refused = 0;
        for first in &changes {
            for second in &changes {
                for third in &changes {
                    let mut state = start.clone();
                    let all = vec![first.clone(), second.clone(), third.clone()];
                    if apply(&mut state, 2, all).is_err() {
                        refused += 1;
                        assert_eq!(state, start);
                    } else {
                        assert_eq!(state, ClusterState::restore(Revision(2), state.objects()));
                    }
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
