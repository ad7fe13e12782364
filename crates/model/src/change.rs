//! Changes to the cluster's state: what goes through consensus.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId, TaskId};
use crate::level;
use crate::object::{Cluster, Config, Network, Node, Secret, Service, Task};
use crate::time::Timestamp;

/// Most changes in one transaction: bounds the log entry and the time that applying it takes.
pub const CHANGES_MAX: usize = 1000;

/// Changes that happen together or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// In order.
    pub changes: Vec<Change>,
    /// The proposer's clock; becomes `created_at` and `updated_at`.
    pub at: Timestamp,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Write an object.
    Put {
        /// The object; its `meta` is set when the change is applied.
        object: Object,
        /// What must be there now.
        expect: Expect,
    },
    /// Remove an object.
    Delete {
        /// Which.
        key: ObjectKey,
        /// What must be there now.
        expect: Expect,
    },
    /// The next version's, for tests: writes a note into the cluster.
    #[cfg(feature = "next-level")]
    Note {
        /// The note.
        text: String,
    },
}

impl Transaction {
    /// The lowest level that can apply it: what is in it, and what it raises the cluster to.
    #[must_use]
    pub fn level(&self) -> u32 {
        let of = |change: &Change| match change {
            Change::Put { object: Object::Cluster(cluster), .. } => cluster.level,
            other => other.needs(),
        };
        self.changes.iter().map(of).max().unwrap_or(level::FIRST)
    }
}

impl Change {
    /// The lowest level of a cluster in which it may be made.
    #[must_use]
    pub fn needs(&self) -> u32 {
        match self {
            Self::Put { object, .. } => object.needs(),
            Self::Delete { .. } => level::FIRST,
            #[cfg(feature = "next-level")]
            Self::Note { .. } => level::FIRST + 1,
        }
    }
}

/// What must be there for a change to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// No such object.
    Absent,
    /// The object at exactly this version.
    Version(Revision),
}

/// Any object of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// See [`Cluster`].
    Cluster(Box<Cluster>),
    /// See [`Node`].
    Node(Box<Node>),
    /// See [`Service`].
    Service(Box<Service>),
    /// See [`Task`].
    Task(Box<Task>),
    /// See [`Network`].
    Network(Box<Network>),
    /// See [`Secret`].
    Secret(Box<Secret>),
    /// See [`Config`].
    Config(Box<Config>),
}

/// Names any object of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKey {
    /// See [`Cluster`].
    Cluster(ClusterId),
    /// See [`Node`].
    Node(NodeId),
    /// See [`Service`].
    Service(ServiceId),
    /// See [`Task`].
    Task(TaskId),
    /// See [`Network`].
    Network(NetworkId),
    /// See [`Secret`].
    Secret(SecretId),
    /// See [`Config`].
    Config(ConfigId),
}

impl Object {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(o) => ObjectKey::Cluster(o.id.clone()),
            Self::Node(o) => ObjectKey::Node(o.id.clone()),
            Self::Service(o) => ObjectKey::Service(o.id.clone()),
            Self::Task(o) => ObjectKey::Task(o.id.clone()),
            Self::Network(o) => ObjectKey::Network(o.id.clone()),
            Self::Secret(o) => ObjectKey::Secret(o.id.clone()),
            Self::Config(o) => ObjectKey::Config(o.id.clone()),
        }
    }

    /// The lowest level of a cluster that may hold it.
    #[must_use]
    pub fn needs(&self) -> u32 {
        let known = |known: bool| if known { level::FIRST } else { level::UNKNOWN };
        match self {
            Self::Task(task) => task.status.state.needs().max(task.desired_state.needs()),
            Self::Node(node) => {
                known(node.status.state.is_known() && node.spec.availability.is_known())
            }
            Self::Service(service) => {
                known(service.update_status.as_ref().is_none_or(|status| status.state.is_known()))
            }
            #[cfg(feature = "next-level")]
            Self::Cluster(cluster) if cluster.note.is_some() => level::FIRST + 1,
            Self::Cluster(_) | Self::Network(_) | Self::Secret(_) | Self::Config(_) => level::FIRST,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(id) => write!(f, "cluster '{id}'"),
            Self::Node(id) => write!(f, "node '{id}'"),
            Self::Service(id) => write!(f, "service '{id}'"),
            Self::Task(id) => write!(f, "task '{id}'"),
            Self::Network(id) => write!(f, "network '{id}'"),
            Self::Secret(id) => write!(f, "secret '{id}'"),
            Self::Config(id) => write!(f, "config '{id}'"),
        }
    }
}

/// What a transaction did to one object, for watchers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Which.
    pub key: ObjectKey,
    /// Before; `None` if it was made.
    pub before: Option<Object>,
    /// After; `None` if it was removed.
    pub after: Option<Object>,
}

/// Why a transaction was refused. It then changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ApplyError {
    /// Someone else wrote in between.
    #[error("update out of sequence: {key} is at version {actual:?}, expected {expected:?}")]
    OutOfSequence {
        /// Which object.
        key: ObjectKey,
        /// What the proposer had seen.
        expected: Expect,
        /// What is there.
        actual: Option<Revision>,
    },
    /// A name is taken.
    #[error("name '{name}' is in use by {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: ObjectKey,
    },
    /// A number or address that must be unique is taken.
    #[error("{what} is in use by {holder}")]
    NotUnique {
        /// What, in words: `address 10.0.1.4 on network 'x'`.
        what: String,
        /// Who has it.
        holder: ObjectKey,
    },
    /// Something is not of this cluster's level, or of no level that this program knows.
    #[error("{} cannot be written: {}", key, unfit(*needs, *level))]
    Level {
        /// Which object.
        key: ObjectKey,
        /// The level that it needs.
        needs: u32,
        /// The cluster's.
        level: u32,
    },
    /// Too many changes at once.
    #[error("transaction has {count} changes, more than {CHANGES_MAX}")]
    TooLarge {
        /// How many.
        count: usize,
    },
}

fn unfit(needs: u32, level: u32) -> String {
    if needs == level::UNKNOWN {
        return "it has a word that is not known".to_owned();
    }
    format!("it needs format {needs}, the cluster writes {level}")
}
