//! What a manager tells a node: the tasks it must run and the endpoint tables of the networks it
//! is on, as a full state and then changes of entries, each with a revision.

mod list;
mod parts;
mod table;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::list::{Keyed, ListChange};
pub use self::table::{
    Backend, BackendState, EndpointEntry, IngressPort, NetworkInfo, NetworkTable, Peer,
    ServiceEntry,
};
pub use self::update::{
    AssignmentUpdate, IngressPortChange, Known, KnownChanges, ServiceChange, TableChange,
};

use crate::id::{NetworkId, Revision, TaskId};
use crate::object::Task;
use crate::payload::Payloads;

/// Everything that concerns one node, at one revision. What is the same for other nodes, or the
/// state's own, is shared with them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The store's revision that this was computed from.
    pub revision: Revision,
    /// Tasks whose node this is and that are not terminal-and-forgotten.
    pub tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Tables of every network that this node must have.
    pub networks: BTreeMap<NetworkId, Arc<NetworkTable>>,
    /// The cluster's published ports, open on every node.
    pub ingress_ports: Arc<Vec<IngressPort>>,
    /// The node itself, as its peers see it: its index and where its VXLAN frames come from.
    #[serde(default)]
    pub own: Option<Peer>,
    /// Secrets and configs of its tasks that have not ended.
    #[serde(default)]
    pub payloads: Payloads,
}

impl Assignment {
    /// Whether nothing but the revision differs.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        same_values(&self.tasks, &other.tasks)
            && same_values(&self.networks, &other.networks)
            && same(&self.ingress_ports, &other.ingress_ports)
            && self.own == other.own
            && self.payloads == other.payloads
    }

    /// What of it may be written to a disk: all but secrets and configs.
    #[must_use]
    pub fn durable(&self) -> Self {
        Self { payloads: Payloads::default(), ..self.clone() }
    }
}

/// Equal, and as a rule the very same: then nothing is compared.
fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn same_values<K: Ord, V: PartialEq>(
    one: &BTreeMap<K, Arc<V>>,
    other: &BTreeMap<K, Arc<V>>,
) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((a, one), (b, other))| a == b && same(one, other))
}
